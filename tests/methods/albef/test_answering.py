"""Answers to questions: the decoder, the loss by slow loops, ranking and generation, what a run starts from, the evaluation."""
from functools import partial
import json

import jax
import jax.numpy as jnp
from mcd_jax.configs.albef import answering_b16
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from mcd_jax import compile as compile_lib
from mcd_jax import job as job_lib
from mcd_jax import step as step_lib
from mcd_jax.data import tokenizers
from mcd_jax.data.views import Views
from mcd_jax.methods.albef import answer_loss as answer_loss_lib
from mcd_jax.methods.albef import answers_eval, vqa
from mcd_jax.optim import optimizer
from mcd_jax.run import checkpoint, fingerprint

START, EOT, T = tiny.VOCAB, tiny.EOT, 4


def test_what_is_read_begins_with_the_start_token_once():
    """With a start token in the rows, as BERT's, and without one: the same words are asked for."""
    plain = jnp.asarray([[5, 6, 2, 0], [7, 2, 0, 0]])
    with_start = jnp.asarray([[9, 5, 6, 2], [9, 7, 2, 0]])
    for rows, words in ((plain, [[5, 6, 2, 0], [7, 2, 0, 0]]), (with_start, [[5, 6, 2, 0], [7, 2, 0, 0]])):
        read, labels = answer_loss_lib.shifted(rows, 9)
        np.testing.assert_array_equal(labels, words)
        np.testing.assert_array_equal(read, [[9, 5, 6, 2], [9, 7, 2, 0]])


def shaped(method, seed, **changes):
    """(config, objective, random parameters, batch) of a tiny method; drawn by numpy, because nothing is to be compiled."""
    config = tiny.config(method, **changes)
    objective, batch = job_lib.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype),
                          jax.eval_shape(objective.init, jax.random.key(0), batch))
    return config, objective, params, batch


@pytest.fixture(scope="module")
def built():
    """A tiny method whose words depend on image and question, its jitted heads, a batch."""
    _, objective, params, batch = shaped("vqa", 0)
    memory = {"teacher": {name: params[name] for name in vqa.AVERAGED}}
    heads = {name: jax.jit(partial(head, params, memory)) for name, head in objective.heads.items()}
    return objective, params, memory, heads, batch


def words_of(tokens):
    """The words of a row that count: up to the end of text."""
    return [int(t) for t in tokens if t != 0]


def test_the_loss_equals_a_slow_loop_over_words(built):
    """Each word's probability by itself: the score of the answer cut after it, less that of the answer cut before."""
    objective, params, memory, heads, batch = built
    out = jax.jit(objective.forward)(params, memory, batch, jax.random.key(1), jnp.int32(0))
    states = heads["question"]({k: batch[k] for k in ("image", "text")})
    rows = np.asarray(batch["answers"])
    cuts = np.stack([np.where(np.arange(T) < n, rows, 0) for n in range(1, T)], axis=2)   # (B, 2, T - 1, T)
    scores = np.asarray(heads["score"]({**states, "answers": jnp.asarray(cuts.reshape(8, -1, T))})["score"]).reshape(8, 2, T - 1)
    total = 0.0
    for b in range(8):
        for a in range(2):
            length = len(words_of(rows[b, a]))
            each = np.diff(np.concatenate([[0], scores[b, a, :length]]))
            assert (each < 0).all()
            total -= float(batch["weights"][b, a]) * each.sum()
    np.testing.assert_allclose(objective.terms["answer"](out), total / 8, rtol=1e-4)
    single = [b for b in range(8) if batch["weights"][b, 1] == 0]   # what has no weight has no influence
    changed = {**batch, "answers": batch["answers"].at[jnp.asarray(single), 1, 0].set(17)}
    again = jax.jit(objective.forward)(params, memory, changed, jax.random.key(1), jnp.int32(0))
    np.testing.assert_allclose(objective.terms["answer"](again), objective.terms["answer"](out), rtol=1e-6)


def test_a_word_does_not_see_later_ones_nor_the_padding_of_the_question(built):
    """The first word's probability is the same for all answers, and that of `first`; it depends on the image."""
    _, _, _, heads, batch = built
    text = batch["text"].at[:, 3:].set(jnp.asarray([EOT, 0, 0])[None])
    states = heads["question"]({"image": batch["image"], "text": text})
    rows = jnp.asarray([[[5, 6, EOT, 0], [5, 9, EOT, 0], [5, EOT, 0, 0]]] * 8)
    found = heads["score"]({**states, "answers": rows})
    first = heads["first"](states)["first"]
    np.testing.assert_allclose(found["first"], np.repeat(np.asarray(first)[:, 5:6], 3, axis=1), atol=1e-5)
    np.testing.assert_allclose(np.exp(first).sum(1), 1, rtol=1e-5)
    hidden = jnp.where(states["seen"][..., None], states["states"], 100.0)
    assert float(jnp.max(jnp.abs(hidden - states["states"]))) > 50
    np.testing.assert_allclose(heads["first"]({**states, "states": hidden})["first"], first, atol=1e-5)
    other = heads["question"]({"image": batch["image"][::-1], "text": text})
    assert float(jnp.max(jnp.abs(heads["first"](other)["first"] - first))) > 1e-3


def test_generation_equals_a_slow_greedy_search(built):
    """Each next word is the best of all one-word continuations by the ranking head; after the end comes padding."""
    _, _, _, heads, batch = built
    states = heads["question"]({k: batch[k] for k in ("image", "text")})
    found = heads["generate"](states)
    written = np.zeros((8, T), np.int32)
    done, total = np.zeros(8, bool), np.zeros(8)
    allowed = [v for v in range(tiny.VOCAB + 1) if v not in (0, START)]
    for t in range(T):
        tries = np.repeat(written[:, None], len(allowed), axis=1)
        tries[:, :, t] = allowed
        scores = np.asarray(heads["score"]({**states, "answers": jnp.asarray(tries)})["score"])
        best = scores.argmax(1)
        written[~done, t] = np.asarray(allowed)[best[~done]]
        total[~done] = scores.max(1)[~done]
        done |= written[:, t] == EOT
    np.testing.assert_array_equal(found["tokens"], written)
    np.testing.assert_allclose(found["score"], total, rtol=1e-4)


def test_without_distillation_there_is_no_teacher(built):
    """The published run's loss: a weight of 0 leaves no teacher in memory, nor soft targets."""
    config = tiny.config("vqa")
    config.objective.weights.answer_distill = 0.0
    objective, (_, params, _, _, batch) = job_lib.objective_of(config), built
    assert objective.init_memory(jax.random.key(0), params, batch) == {}
    out = jax.eval_shape(objective.forward, params, {}, batch, jax.random.key(0), 0)
    assert "answer/soft" not in out and "answer/kl" not in objective.metrics


@pytest.mark.full
def test_the_teacher_is_averaged_after_the_update():
    objective, tx, weights, state, batch = tiny.build("vqa", ema_m=0.75)
    after, report = jax.jit(step_lib.make_step(objective, tx, weights))(state, batch)
    assert set(state.memory["teacher"]) == {"image", "text", "fusion", "decoder", "answers"} and abs(report["answer/kl"]) < 1e-5
    want = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *({k: p[k] for k in state.memory["teacher"]}
                                                            for p in (state.params, after.params)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), after.memory["teacher"], want)


def test_questions_are_whole_in_evaluation():
    """salesforce/ALBEF, VQA.py: 25 tokens in training, no truncation in `evaluation`, of 50 words (dataset/vqa_dataset.py)."""
    config = answering_b16.get_config("tokenizer=clip")
    asked, words = config.evals.answers.test, "zebra crossing " * 25
    lengths = []
    for pipe in (config.data.views.text, asked.views.text):
        tokenizer, context = Views({"text": pipe}).tokens["text"]
        lengths.append((int(np.count_nonzero(tokenizer.row(words, context))), len(tokenizer.row(words, 512).nonzero()[0])))
    (cut, whole), (kept, _) = lengths
    assert cut == 25 < whole == kept and asked.source.words == 50 and config.model.text.get("positions", 512) >= 128


@pytest.mark.full
def test_the_paper_size_is_planned_without_its_data():
    """Shapes and shardings of the whole state, from the config alone."""
    config = answering_b16.get_config("batch_size=64,fsdp=2")
    config.data.views = {name: spec.replace("data/bert/tokenizer.json", "clip") for name, spec in config.data.views.items()}
    job, standin = compile_lib.plan(config, jax.devices()[:4], examples=10_000)
    assert standin and job.batch["answers"].shape == (64, 10, 12) and job.batch["image"].shape == (64, 384, 384, 3)
    assert set(job.abstract.memory["teacher"]) == set(vqa.AVERAGED)


@pytest.mark.full
def test_dropout_does_not_depend_on_slices():
    def losses(microbatches, **changes):
        config = tiny.config("vqa", **changes)
        config.model.text.dropout, config.microbatches = 0.2, microbatches
        objective, batch = job_lib.objective_of(config), jax.tree.map(jnp.asarray, tiny.batch())
        params = objective.init(jax.random.key(0), batch)
        memory = objective.init_memory(jax.random.key(1), params, batch)
        out = jax.jit(objective.forward)(params, memory, batch, jax.random.key(2), jnp.int32(0))
        return np.asarray([objective.terms[name](out) for name in ("answer", "answer_distill")])

    whole = losses(1)
    np.testing.assert_allclose(losses(4), whole, rtol=1e-4, atol=1e-5)
    assert abs(losses(1, teacher_dropout=False) - whole)[1] > 1e-6


@pytest.mark.parametrize("changes, words", [
    (dict(start_id=-1), r"start_id=-1 must be the id that answers begin with.*spare_ids=1 and start_id=32"),
    (dict(start_id=EOT), r"start_id=2 must be the id that answers begin with"),
    (dict(decoder_layers=0), r"config\.objective\.decoder_layers=0 must be a whole number"),
    (dict(longest=600), r"config\.objective\.longest=600 must be a whole number from 1 to config\.model\.text\.positions=6"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.build("vqa", **changes)


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"config\.data\.views\.answers gives \(8, 4\).* rows of n answers"):
        tiny.build("vqa", rows={"answers": np.zeros((8, 4), np.int32)})


def test_the_published_size_and_rates():
    """The decoder is BERT-base's 6 layers with cross-attention, an embedding and a head of its own; rates as VQA.py sets them."""
    config = answering_b16.get_config("distill=0")
    config.model.inputs = dict(vocab_size=30522, context=26, eot=102, image_size=384)
    objective = job_lib.objective_of(ConfigDict(config.to_dict()))
    batch = {"answers": jax.ShapeDtypeStruct((256, 10, 12), jnp.int32), "weights": jax.ShapeDtypeStruct((256, 10), jnp.float32)}
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    flat = fingerprint.flat(params).items()
    size = lambda name: sum(x.size for path, x in flat if path.startswith(name) and "/proj/" not in path)
    width, vocabulary = 768, 30522
    dense, norm = lambda a, b: a * b + b, 2 * width
    layer = 8 * dense(width, width) + dense(width, 4 * width) + dense(4 * width, width) + 3 * norm
    table, head = (vocabulary + 512 + 2) * width + norm, dense(width, width) + norm + vocabulary
    assert size("decoder") == 6 * layer + table and size("answers") == head and size("image") == 86_090_496
    assert size("text") + size("fusion") + head == 123_697_722 and objective.init_memory(None, params, batch) == {}
    steps = 2500   # of an epoch
    _, found = optimizer.make(config.optimizer.to_dict() | {"decay_mask": ()}, {"w": jnp.zeros((2, 2)), "image": {"proj": {"kernel":
                          jnp.zeros((2, 2))}}}, total_steps=8 * steps, batch_size=256, examples=256 * steps)
    rate = lambda step: float(next(fn for name, fn in found.items() if name.startswith("lr"))(jnp.int32(step)))
    for step, want in {0: 1e-5, 99: 1e-5, 100: 1.25e-5, 399: 1.75e-5, 400: 2e-5, steps - 1: 2e-5,
                       4 * steps: 1.05e-5, 7 * steps: 1e-6 + 0.95e-5 * (1 + np.cos(np.pi * 7 / 8))}.items():
        assert rate(step) == pytest.approx(want, rel=1e-4), step


# ---- what a run starts from ------------------------------------------------------------------------------------------------------

def test_the_decoder_starts_as_a_copy_of_the_fusion_layers(tmp_path):
    """config.init_copies, with the regexes of objectives/answering.py, from a run of the pre-training method."""
    _, _, saved, _ = shaped("albef", 1)
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(3, step_lib.State(jnp.int32(3), saved, {}, {}, jax.random.key(0)))
    saver.wait()
    config, _, fresh, _ = shaped("vqa", 2)
    config.init_from, config.init_fresh, config.init_copies = str(tmp_path), vqa.LEFT_OUT, vqa.COPIES
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
    abstract = step_lib.State(None, shapes, None, {}, None)
    params, _ = job_lib.initial(config, abstract)
    got, had = fingerprint.flat(params), fingerprint.flat(saved)
    assert set(got) == set(fingerprint.flat(fresh))
    for path, value in got.items():
        other = {"decoder/block": path.replace("decoder", "fusion"), "answers": path.replace("answers", "mlm")}.get(
            "decoder/block" if path.startswith("decoder/block") else path.split("/")[0], path.replace("decoder", "text"))
        np.testing.assert_array_equal(value, had[other], err_msg=path)
    assert len({id(x) for x in got.values()}) == len(got)
    for copies, words in (((("nothing/.*", "x"),), "init_copies: 'nothing/.*' matches no parameter"),
                          ((("decoder/(block.*)", r"fused/\1"), *vqa.COPIES[1:]), "params/fused/.* is absent")):
        config.init_copies = copies
        with pytest.raises((ValueError, checkpoint.MismatchError), match=words):
            job_lib.initial(config, abstract)


# ---- the evaluation --------------------------------------------------------------------------------------------------------------

def test_accuracy_of_ten_annotators():
    """min(1, n / 3), and VQA's own 0, 0.3, 0.6, 0.9, 1 for n of ten: written down from its rule, not computed here."""
    for n, (plain, nine) in {0: (0, 0), 1: (1 / 3, 0.3), 2: (2 / 3, 0.6), 3: (1, 0.9), 4: (1, 1), 10: (1, 1)}.items():
        given = ["cat"] * n + [f"other {i}" for i in range(10 - n)]
        assert answers_eval.credit("cat", given) == pytest.approx((plain, nine))
    found = answers_eval.figures_of(["cat", "dog", None], [["cat"] * 2 + ["dog"] * 8, ["dog"] * 10, ["dog"] * 10], ["a", "a", "b"])
    assert found["accuracy"] == pytest.approx(1 / 3) and found["accuracy_commonest"] == 1 and found["queries"] == 3
    assert found["accuracy_vqa"] == pytest.approx((2 / 3 + 1) / 3) and found["accuracy_vqa_nine"] == pytest.approx(1.6 / 3)
    assert "accuracy_vqa" not in answers_eval.figures_of(["a"], [["a"]], [""])


@pytest.mark.parametrize("said, counts, words", [
    ("The cat!", "The cat ", "cat"), ("two dogs.", "two dogs", "2 dogs"), ("1,000", "1000", "1000"), ("None", "None", "0"),
    ("left-handed", "left handed", "left handed"), ("3.5 meters", "3.5 meters", "3.5 meters"),
    ("an apple, a pear", "an apple a pear", "apple pear")])
def test_answers_are_normalised_as_in_vqa(said, counts, words):
    assert answers_eval.normalised(said) == words and answers_eval.normalised(said, words=False) == counts


class Knows:
    """Heads that say the same of every question: the first word of candidate c is likely by FIRST[c], all of it by FULL[c]."""
    CANDIDATES = ("red", "green", "dark blue")
    FIRST, FULL = np.log([0.5, 0.2, 0.3]), np.array([-1.0, -0.4, -0.2])

    def __init__(self):
        tokenizer = tokenizers.make("emoji")
        self.words = [int(tokenizer.row(text, 5)[0]) for text in self.CANDIDATES]

    def __call__(self, state, batch):
        return {"states": batch["text"][:, :1, None].astype(np.float32), "seen": np.ones((len(batch["text"]), 1), np.float32)}

    def head(self, name):
        def first(state, batch):
            whole = np.full((len(batch["seen"]), 8193), -50.0)
            whole[:, self.words] = self.FIRST
            return {"first": whole}

        def score(state, batch):
            at = [[self.words.index(int(row[0])) for row in rows] for rows in batch["answers"]]
            return {"score": self.FULL[at], "first": self.FIRST[at]}

        def generate(state, batch):
            return {"tokens": np.stack([tokenizers.make("emoji").row("dark blue", 5)] * len(batch["seen"])).astype(np.float32)}
        return {"first": first, "score": score, "generate": generate}[name]


class Source:
    """Four questions without pixels; `rows.encode` is stood in for."""
    ANSWERS = (["dark blue"], ["red"], ["green"], ["dark blue"])

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"answers": self.ANSWERS[index], "kind": "ab"[index // 2], "question_id": 10 + index}


def test_ranking_counts_the_first_word_twice_or_once(monkeypatch, tmp_path):
    def encode(embed, state, source, views, names, size, indices, together):
        assert together and names == ["image", "text"]
        return embed(state, {"text": np.asarray(indices)[:, None]}), np.ones(len(indices), bool)

    monkeypatch.setattr(answers_eval.rows, "open_source", lambda *_: Source())
    monkeypatch.setattr(answers_eval.rows, "encode", encode)
    views = dict(image="decode|resize(8)", text="caption('first')|tokenize(5, 'emoji')", answer="tokenize(5, 'emoji')")
    settings = dict(source={}, views=views, answers=Knows.CANDIDATES, types="kind", batch_size=3, out=str(tmp_path / "said.json"))
    run = lambda **more: answers_eval.make({**settings, **more}, "planted")(Knows(), None)
    # once: -1.0, -0.4, -0.2, dark blue; twice: -1.69, -2.01, -1.40, dark blue; of the one likeliest first word: red
    for more, right in ((dict(twice=False), 0.5), (dict(), 0.5), (dict(k=1), 0.25), (dict(how="generate"), 0.5)):
        assert run(**more)["accuracy"] == right
    figures = run()
    assert figures["a/accuracy"] == figures["b/accuracy"] == 0.5 and figures["within_k"] == 1 and figures["bad"] == 0
    assert run(k=2)["within_k"] == 0.75 and run(k=1)["within_k"] == 0.25
    assert json.loads((tmp_path / "said.json").read_text())[0] == {"question_id": 10, "answer": "red"}
    monkeypatch.setattr(Knows, "FULL", np.array([-1.0, -0.4, -1.2]))
    run(twice=False)
    assert json.loads((tmp_path / "said.json").read_text())[0]["answer"] == "green"   # -0.4 is the largest
    run()
    assert json.loads((tmp_path / "said.json").read_text())[0]["answer"] == "red"     # -1.69, -2.01, -2.40
    for more, words in ((dict(how="guess"), r"config\.evals\.answers\.planted\.how='guess' must be one of 'rank', 'generate'"),
                        (dict(k=0), r"planted\.k=0 must be a whole number"),
                        (dict(answers=()), r"planted\.answers must give answers"),
                        (dict(views={**views, "answer": "decode|resize(8)"}), r"views\.answer=.* must tokenize an answer")):
        with pytest.raises(ValueError, match=words):
            run(**more)
