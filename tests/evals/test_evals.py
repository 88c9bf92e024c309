"""Evaluations: figures against slow or closed forms, and each module on a tiny source through the real pipeline."""
import io
import json
import math
import sys
import types

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from scipy import stats

from mcd_jax import duration
from mcd_jax.data.decode import Bad
from mcd_jax.evals import building, embedder, misalignment, retrieval, rows, zeroshot
from mcd_jax.objectives.objective import Objective
from mcd_jax.run import results as results_lib
from mcd_jax.sharding import mesh
from mcd_jax.step import State


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def draw(n, d=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


# ---- retrieval -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_recall_matches_a_slow_search(chunk):
    queries, candidates = draw(7), draw(23, seed=1)
    query_ids, candidate_ids = np.arange(7) % 5, np.arange(23) % 5
    slow = []
    for q, i in zip(queries, query_ids):
        order = sorted(range(23), key=lambda j: -float(q @ candidates[j]))
        slow.append(1 + next(place for place, j in enumerate(order) if candidate_ids[j] == i))
    slow = np.array(slow)
    found = retrieval.recall(queries, candidates, query_ids, candidate_ids, (1, 2, 5), chunk)
    assert found == {**{f"R@{k}": float(np.mean(slow <= k)) for k in (1, 2, 5)}, "MRR": pytest.approx(np.mean(1 / slow))}


def test_ties_count_against_a_query():
    same = unit(np.ones((6, 4)))
    assert retrieval.ranks(same, same, np.arange(6), np.arange(6)).tolist() == [6] * 6
    broken = np.full((6, 4), np.nan, np.float32)
    assert retrieval.recall(broken, broken, np.arange(6), np.arange(6), (5,))["R@5"] == 0.0


def test_perfect_embeddings_are_found_and_random_ones_at_chance():
    x = draw(400, d=32)
    ids = np.arange(400) // 2
    assert retrieval.recall(x, x, ids, ids)["R@1"] == 1.0
    expected = retrieval.chance(ids, ids, (1, 10, 500))
    slow = 1 - np.prod([(398 - i) / (400 - i) for i in range(10)])
    assert expected["chance_R@1"] == pytest.approx(2 / 400) and expected["chance_R@10"] == pytest.approx(slow)
    assert expected["chance_R@500"] == 1.0
    found = np.mean([retrieval.recall(draw(400, 32, s), draw(400, 32, s + 50), ids, ids, (10,))["R@10"] for s in range(20)])
    assert abs(found - expected["chance_R@10"]) < 4 * math.sqrt(0.05 * 0.95 / 8000)


def test_a_query_without_a_candidate_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries match no candidate, such as id 9"):
        retrieval.recall(draw(2), draw(3), [0, 9], [0, 1, 2])


# ---- zero-shot -----------------------------------------------------------------------------------------------------------------


def test_class_embeddings_average_unit_prompts():
    prompts = np.array([[3.0, 0.0], [0.0, 0.5], [0.0, 2.0]], np.float32)   # lengths must not matter
    found = zeroshot.class_embeddings(prompts, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(found, [[math.sqrt(0.5)] * 2, [0, 1]], atol=1e-6)


def test_zero_shot_accuracy_per_class_and_ties():
    classes = np.eye(7, dtype=np.float32)
    image = classes[[0, 0, 0, 1]]
    labels = np.array([30, 30, 30, 10])                                    # class ids in any order
    ids = np.array([30, 20, 10, 40, 50, 60, 70])
    found = zeroshot.accuracy(image, classes, labels, ids)
    assert found["top1"] == 0.75 and found["mean_per_class"] == 0.5        # the image of class 10 looks like class 20
    assert found["top5"] == 0.75 and found["chance_top1"] == pytest.approx(1 / 7)   # ties with the others count against it
    with pytest.raises(ValueError, match="label 99"):
        zeroshot.accuracy(image, classes, np.array([30, 30, 30, 99]), ids)


# ---- misalignment --------------------------------------------------------------------------------------------------------------


def test_spearman_matches_scipy_and_known_data():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (3, 20)), rng.normal(size=(3, 20))           # with ties
    np.testing.assert_allclose(misalignment.spearman(x, y), [stats.spearmanr(a, b).statistic for a, b in zip(x, y)], atol=1e-12)
    iq, tv = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert misalignment.spearman(iq, tv) == pytest.approx(-29 / 165)
    assert misalignment.spearman(np.ones(4), np.arange(4.0)) == 0.0


def test_predicted_misalignment_and_order():
    text, original = draw(5, seed=1), draw(5, seed=2)
    r = misalignment.predicted(text, np.stack([original, text, -text], axis=1), original)
    near = np.sum((text.astype(float) - original) ** 2, axis=1)
    np.testing.assert_allclose(r[:, 0], 0)
    np.testing.assert_allclose(r[:, 1], np.log(1e-6) - np.log(near + 1e-6), atol=1e-3)
    np.testing.assert_allclose(r[:, 2], np.log(4 / near), atol=1e-5)
    severity = np.array([[1.0, 2.0, 2.0]])
    assert misalignment.ordered(np.array([[0.0, 1.0, 5.0]]), severity) == 1.0   # the pair of equal severity is not asked
    assert misalignment.ordered(np.array([[3.0, 1.0, 5.0]]), severity) == 0.5
    assert misalignment.ordered(np.array([[1.0, 1.0, 1.0]]), severity) == 0.5   # ties count half
    with pytest.raises(ValueError, match="two levels"):
        misalignment.ordered(np.ones((1, 3)), np.ones((1, 3)))


def test_misalignment_figures_by_kind():
    severity = np.tile([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], (4, 1))
    r = severity.copy()
    r[:, 3:] *= -1                                                         # right for the first kind, reversed for the second
    found = misalignment.figures(r, severity, severity, ["crop", "blur"], [0.1, 0.5, 0.9])
    assert found["crop/ordered"] == 1 and found["blur/ordered"] == 0 and found["pixel/ordered"] == 1
    assert found["crop/spearman"] == pytest.approx(1) and found["blur/spearman_per_image"] == pytest.approx(-1)
    assert found["crop/mean@0.5"] == 2 and found["blur/mean@0.9"] == -3 and found["positive"] == 0.5


# ---- embed ---------------------------------------------------------------------------------------------------------------------


def _head(params, memory, batch):
    out = {}
    if "image" in batch:
        raw = jnp.mean(batch["image"].astype(jnp.float32), axis=(1, 2)) @ params["image"]["w"]
        out |= {"image_raw": raw, "image": raw / jnp.linalg.norm(raw, axis=-1, keepdims=True)}
    if "text" in batch:
        raw = params["text"]["table"][batch["text"][:, 2] % 600]  # the word that tells texts apart
        out |= {"text_raw": raw, "text": raw / jnp.linalg.norm(raw, axis=-1, keepdims=True)}
    return out


OBJECTIVE = Objective(needs=("image", "text"), init=None, init_memory=None, forward=None, terms={}, metrics={},
                      heads={"embed": _head}, update_memory=None)


def state(vocab=600):
    key = jax.random.key(0)
    params = {"image": {"w": jax.random.normal(key, (3, 8))}, "text": {"table": jax.random.normal(key, (vocab, 8))},
              "logit_scale": jnp.float32(1)}
    memory = {"teacher": {"image": {"w": -params["image"]["w"]}}, "queue": jnp.zeros(3)}
    return State(jnp.int32(7), params, {}, memory, key)


def test_embed_padding_and_splitting_change_nothing():
    images = np.random.default_rng(0).integers(0, 255, (11, 4, 4, 3), np.uint8)
    want = embedder.make_embed(OBJECTIVE, batch_size=11)(state(), {"image": images})
    got = embedder.make_embed(OBJECTIVE, batch_size=4)(state(), {"image": images})
    assert set(got) == {"image", "image_raw"} and got["image"].shape == (11, 8) and got["image"].dtype == np.float32
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=1e-6)
    np.testing.assert_allclose(embedder.make_embed(OBJECTIVE, batch_size=4)(state(), {"image": images[:1]})["image"],
                               want["image"][:1], atol=1e-6)
    with pytest.raises(ValueError, match="same number of rows"):
        embedder.make_embed(OBJECTIVE)(state(), {"image": images, "text": np.zeros((3, 2), np.int32)})


def test_embed_reads_a_teacher_and_names_what_there_is():
    batch = {"image": np.full((2, 4, 4, 3), 9, np.uint8), "text": np.ones((2, 3), np.int32)}
    student, teacher = (embedder.make_embed(OBJECTIVE, read, 2)(state(), batch) for read in ("params", "memory/teacher"))
    np.testing.assert_allclose(teacher["image"], -student["image"], atol=1e-6)
    np.testing.assert_allclose(teacher["text"], student["text"])           # the teacher holds no text tower: the student's is kept
    for read, hint in (("memory/techer", "memory/teacher, memory/queue"), ("memory/queue", "no parameters"),
                       ("teacher", "params, init, memory/teacher")):
        with pytest.raises(ValueError, match=hint):
            embedder.parameters(state(), read)


# ---- modules through sources, pipeline and evaluate ----------------------------------------------------------------------------

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20), (20, 240, 240), (240, 20, 240)]


class Colours:
    """Two flat drawings of each of six colours; the last two colours are flags."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        data = io.BytesIO()
        Image.new("RGB", (24, 24), tuple(max(0, c - 10 * (i // 6)) for c in COLOURS[i % 6])).save(data, "PNG")
        return {"image": data.getvalue(), "text": [f"colour {i % 6}", f"farbe {i % 6}"], "key": f"k{i}", "concept_id": i % 6,
                "group": i % 2, "flag": i % 6 > 3, "concept_split": "test" if i % 6 == 0 else "train"}


@pytest.fixture
def spec(monkeypatch):
    module = types.ModuleType("tiny.colours")
    module.make = lambda spec: Colours()
    monkeypatch.setitem(sys.modules, "tiny", types.ModuleType("tiny"))
    monkeypatch.setitem(sys.modules, "tiny.colours", module)
    return {"name": "tiny.colours"}


def oracle(state, batch):
    """Embeds a colour as its centred RGB, and a text by the ids of its last character."""
    out = {}
    if "image" in batch:
        out["image"] = unit(batch["image"].astype(np.float32).mean(axis=(1, 2)) - 128)
    if "text" in batch:
        out["text"] = unit(np.array([COLOURS[TEXT_IDS[row.tobytes()]] for row in batch["text"]], np.float32) - 128)
    return out


TEXT_IDS = {}


@pytest.fixture
def views():
    from mcd_jax.data import tokenizers
    for word in ("colour", "farbe"):
        for i in range(6):
            TEXT_IDS[tokenizers.make("clip").encode([f"{word} {i}"], 12)[0].tobytes()] = i
    return {"image": "decode|resize(16)", "text": "caption('first')|tokenize(12, 'clip')"}


def test_retrieval_module_filters_flags_and_queries(spec, views):
    settings = {"source": spec, "views": views, "match": "concept_id", "queries": {"concept_split": ["train"]}, "ks": (1, 2),
                "without": {"no_flags": "flag"}, "batch_size": 5}
    found = retrieval.make(settings, "x")(oracle, None)
    assert found["text_to_image/R@1"] == found["image_to_text/R@1"] == found["no_flags/text_to_image/R@1"] == 1.0
    sizes = {k: v for k, v in found.items() if k.endswith(("queries", "candidates"))}
    assert sizes == {"text_to_image/queries": 5, "text_to_image/candidates": 12, "image_to_text/queries": 10,
                     "image_to_text/candidates": 6, "no_flags/text_to_image/queries": 3, "no_flags/text_to_image/candidates": 8,
                     "no_flags/image_to_text/queries": 6, "no_flags/image_to_text/candidates": 4}
    assert found["no_flags/image_to_text/chance_R@1"] == 0.25
    with pytest.raises(ValueError, match="reads column 'concept'"):
        retrieval.make({**settings, "match": "concept"}, "x")
    with pytest.raises(ValueError, match="no row has concept_split in"):
        retrieval.make({**settings, "queries": {"concept_split": "valid"}}, "x")(oracle, None)
    with pytest.raises(ValueError, match="needs a pipe for 'text'"):
        retrieval.make({**settings, "views": {"image": views["image"]}}, "x")


def test_a_corrupt_image_neither_asks_nor_answers(spec, views, monkeypatch):
    read = Colours.__getitem__
    broken = {"image": b"no image"}
    monkeypatch.setattr(Colours, "__getitem__", lambda self, i: {**read(self, i), **(broken if i in (0, 6, 7) else {})})
    found = retrieval.make({"source": spec, "views": views, "match": "concept_id"}, "x")(oracle, None)
    sizes = {k: v for k, v in found.items() if k.endswith(("queries", "candidates", "bad"))}
    assert sizes == {"text_to_image/queries": 5, "text_to_image/candidates": 9, "image_to_text/queries": 9,
                     "image_to_text/candidates": 6, "bad": 3}   # nothing is left of colour 0
    assert found["text_to_image/R@1"] == found["image_to_text/R@1"] == 1.0
    settings = {"source": spec, "views": views, "label": "concept_id", "names": spec, "tokenizer": "clip", "context": 12}
    found = zeroshot.make(settings, "x")(oracle, None)
    assert found["images"] == 9 and found["bad"] == 3
    settings = {"source": spec, "views": views, "n": None, "kinds": ("gray",), "levels": (0.2, 0.8), "batch_size": 5,
                "augmented": "decode|resize(16)|severity('{kind}', {level})"}
    assert misalignment.make(settings, "x")(oracle, None)["bad"] == 3
    with pytest.raises(ValueError, match=r"row 1 has no text that can be used: .* is empty"):
        rows.tokens(rows.Texts(["a", "\u200b"]), rows.pick(views, ["text"], "x"), None, 4)


@pytest.mark.parametrize("text, bad", [(None, 2), ([], 1), (float("nan"), 2), (["", None], 3)])
def test_of_all_captions_a_row_without_any_has_none(spec, views, monkeypatch, text, bad):
    read = Colours.__getitem__

    def some(self, i):
        if i == 1:
            raise Bad("no image")
        return {**read(self, i), **({"text": text} if i == 2 else {})}
    monkeypatch.setattr(Colours, "__getitem__", some)
    found = retrieval.make({"source": spec, "views": views, "texts": "all"}, "x")(oracle, None)
    sizes = {k: v for k, v in found.items() if k.endswith(("queries", "candidates", "bad"))}
    assert sizes == {"text_to_image/queries": 20, "text_to_image/candidates": 11, "image_to_text/queries": 10,
                     "image_to_text/candidates": 20, "bad": bad}   # and row 1 has not the captions of row 0


def test_zero_shot_module_takes_names_from_rows_or_a_list(spec, views):
    settings = {"source": spec, "views": views, "label": "concept_id", "names": spec, "templates": ("{}",), "tokenizer": "clip",
                "context": 12, "without": {"no_flags": "flag"}}
    found = zeroshot.make(settings, "x")(oracle, None)
    assert "bad" not in found
    assert found["top1"] == 1 and found["classes"] == 6 and found["no_flags/classes"] == 4 and found["no_flags/images"] == 8
    assert found["no_flags/chance_top1"] == 0.25
    listed = {**settings, "names": [["colour 0", "farbe 0"], "colour 1", "colour 2", "colour 3", "colour 4", "colour 5"]}
    assert zeroshot.make(listed, "x")(oracle, None) == pytest.approx(found)
    with pytest.raises(ValueError, match=r"has no '\{\}'"):
        zeroshot.make({**settings, "templates": ("a drawing",)}, "x")


def test_classes_whose_prompts_are_the_same_are_taken_for_the_first(spec, views, monkeypatch, caplog):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    names = ["colour 0", ["Colour  0"], "colour 2", "colour 3", "colour 4", "COLOUR 2"]   # as CLIP's tokenizer lowers them
    settings = {"source": spec, "views": views, "label": "concept_id", "names": names}
    found = zeroshot.make(settings, "x")(oracle, None)
    assert found["top1"] == 4 / 6   # of two classes with one name the first is right, the second wrong
    assert "2 of the 6 classes have the same prompts as one before them ('colour 0' and 'Colour  0')" in caplog.text
    read = Colours.__getitem__
    monkeypatch.setattr(Colours, "__getitem__", lambda self, i: {**read(self, i), **({"text": None} if i == 3 else {})})
    assert zeroshot.make({**settings, "names": spec}, "x")(oracle, None)["top1"] == 1


def test_misalignment_module(spec, views):
    settings = {"source": spec, "views": views, "n": 4, "kinds": ("gray", "crop"), "levels": (0.2, 0.8), "batch_size": 3,
                "augmented": "decode|resize(16)|severity('{kind}', {level})"}
    found = misalignment.make(settings, "x")(oracle, None)
    assert found["gray/ordered"] == 1.0 and found["gray/pixel/ordered"] == 1.0      # greyer is further from a colour's name
    assert found["crop/pixel/ordered"] == 0.5 and found["gray/mean@0.8"] > found["gray/mean@0.2"] > 0  # a flat image: crops tie
    with pytest.raises(ValueError, match=r"has no \{level\}"):
        misalignment.make({**settings, "augmented": "decode|{kind}"}, "x")


def test_evaluate_builds_runs_and_writes(spec, views, tmp_path):
    settings = {"source": spec, "views": views, "match": "concept_id"}
    config = ConfigDict({"seed": 0, "evals": {"retrieval": {"now": {**settings, "every": "2 epochs"},
                                                            "untrained": {**settings, "weights_from": "init"}}}})
    durations = lambda name, value: duration.steps(value, batch_size=6, examples=12, total_steps=10, name=name)
    evals = building.build(config, OBJECTIVE, durations, state())
    assert [(e.instance, e.every, e.weights_from) for e in evals] == [("now", 4, "params"), ("untrained", 0, "init")]
    fresh = state()._replace(params={**state().params, "image": {"w": -state().params["image"]["w"]}})
    job = types.SimpleNamespace(objective=OBJECTIVE, config=config, init=lambda key, params=None, locked=None: fresh,
                                mesh=mesh.make({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1, "expert": 1}))
    (tmp_path / "evals.json").write_text('{"step": 1, "retrieval/now/text_to_image/R@1": 7, "other/x/y": 3}')
    results = building.run(evals, state(), 8, job, tmp_path)
    saved = json.loads((tmp_path / "evals.json").read_text())
    assert saved["step"] == 8 and saved["other/x/y"] == 3 and set(results) <= set(saved)
    assert saved["retrieval/now/text_to_image/R@1"] == results["retrieval/now/text_to_image/R@1"] <= 1
    assert building.run(evals, state(), 9, job, tmp_path, stop=lambda: True) == {}
    assert results["retrieval/untrained/text_to_image/MRR"] != results["retrieval/now/text_to_image/MRR"]
    head, first = results_lib.table(results).splitlines()[:2]
    assert head.split() == ["retrieval", "R@1", "R@5", "R@10", "MRR"]
    assert first.split()[:2] == ["now/text_to_image", results_lib.number("R@1", results["retrieval/now/text_to_image/R@1"])]
    results_lib.write(tmp_path, {"a/b/c": float("nan")}, 10)
    assert results_lib.latest(tmp_path)["a/b/c"] is None


def test_figures_keep_their_step(tmp_path):
    """An older checkpoint that is evaluated doesn't set the run back, and no figure is shown as one of another step."""
    results_lib.write(tmp_path, {"zeroshot/a/top1": 0.1, "retrieval/b/MRR": 0.2}, 4)
    assert results_lib.write(tmp_path, {"retrieval/b/MRR": 0.3}, 8).name == "evals.json"
    assert results_lib.latest(tmp_path) == {"step": 8, "zeroshot/a/top1": 0.1, "retrieval/b/MRR": 0.3}
    assert json.loads((tmp_path / "evals.json").read_text())["steps"] == {"zeroshot/a": 4}
    assert results_lib.of_step(tmp_path, 8) == {"retrieval/b/MRR": 0.3} and results_lib.of_step(tmp_path, 5) == {}
    before = (tmp_path / "evals.json").read_bytes()
    assert results_lib.write(tmp_path, {"retrieval/b/MRR": 0.0}, 4).name == "evals-4.json"
    assert (tmp_path / "evals.json").read_bytes() == before
    assert json.loads((tmp_path / "evals-4.json").read_text()) == {"step": 4, "retrieval/b/MRR": 0.0}
    results_lib.write(tmp_path, {"zeroshot/a/top1": 0.5}, 8)
    assert "steps" not in json.loads((tmp_path / "evals.json").read_text())
    results_lib.rewind(tmp_path, 6)
    assert results_lib.latest(tmp_path) == {} and json.loads((tmp_path / "evals-8.json").read_text())["step"] == 8


@pytest.mark.parametrize("change, message", [
    ({"mtach": "concept_id"}, "did you mean config.evals.retrieval.now.match"), ({"weights_from": "memory/x"}, "memory/teacher"),
    ({"views": None}, "config.evals.retrieval.now needs the key 'views'"),
    ({"ks": 3}, "config.evals.retrieval.now.ks=3 must be a tuple"),
    ({"batch_size": 0}, "config.evals.retrieval.now.batch_size=0 must be at least 1")])
def test_evaluate_refuses_a_wrong_config_before_running(spec, views, change, message):
    settings = {"source": spec, "views": views, **change}
    config = {"evals": {"retrieval": {"now": {k: v for k, v in settings.items() if v is not None}}}}
    with pytest.raises(ValueError, match=message):
        building.build(types.SimpleNamespace(**config), OBJECTIVE, lambda name, value: 0, state())
