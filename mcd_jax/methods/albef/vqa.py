"""Answers to questions about images, written by a decoder on top of ALBEF's fusion layers (Li et al. 2021, arXiv 2107.07651).

The question is the text: the text tower and the fusion layers read it together with the image, and a decoder of causal layers,
which attends to the fused question and not to the image, gives the words of an answer. A question has several answers with weights:
its loss is the sum over them of weight * the negative log-likelihood of all words, averaged over the questions of the batch.

Momentum distillation mixes the teacher's distribution over the next word into the targets with a share alpha, which is the weight
of the term `answer_distill`, soft - hard, as in `albef.py`; its ramp is the term's `warmup`. The published code passed
alpha to its decoder only after the published run (salesforce/ALBEF, issue 90), which a weight of 0 reproduces: then there is no
teacher. The decoder starts as a copy of the fusion layers, its tables as the text tower's and its head as that of masked words,
where config.init_from and COPIES as config.init_copies give them.

Batch keys beside image and text: "answers" int32 (B, n, T), rows that end in end-of-text; "weights" float32 (B, n), 0 where a
question has fewer answers. Ranking of given answers and generation are heads: `answers_eval.py`.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import mlm
from mcd_jax.methods.albef import albef
from mcd_jax.methods.albef import answer_loss as answer_loss_lib
from mcd_jax.methods.albef import decoder as decoder_lib
from mcd_jax.methods.albef import fusion_layers as fusion_layers_lib
from mcd_jax.models import bert
from mcd_jax.models.towers import Towers
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective
from mcd_jax.objectives.two_tower import Term, TowerPass
from mcd_jax.sharding.microbatch import microbatched


class Options(NamedTuple):
    """Defaults are those of the published code, which all were seen there."""
    image: str = "image"
    text: str = "text"                  # the question
    answers: str = "answers"            # batch key of the tokens of answers
    weights_of: str = "weights"         # batch key of the answers' weights
    fusion_layers: int = 6              # on top of the text tower's layers
    decoder_layers: int = 6             # that write an answer
    start_id: int = -1                  # stands before an answer ([CLS]); must be given
    longest: int = 10                   # words of a generated answer, end of text included
    ema_m: float = 0.995                # the teacher's momentum
    teacher_dropout: bool = True        # the teacher drops units too (the code); the rate is config.model.text.dropout


WEIGHTS = {"answer": 1.0, "answer_distill": 0.4}
WARMUP = {"answer_distill": "1 epoch"}
AVERAGED = ("image", "text", "fusion", "decoder", "answers")
COPIES = (("decoder/(block.*)", r"fusion/\1"), ("decoder/((?!block).*)", r"text/\1"), ("answers/(.*)", r"mlm/\1"))
LEFT_OUT = ("mlm/.*", "itm/.*", "temperature")   # of a run of ALBEF: config.init_fresh


class Pieces(NamedTuple):
    """What the parts of the forward pass are made of."""
    config: ConfigDict
    opts: Options
    towers: Towers
    layers: fusion_layers_lib.Cross   # the fusion layers
    tower: bert.Bert                  # the text tower, below them
    decoder: decoder_lib.Decoder      # above them
    teacher: two_tower.Teacher
    with_soft: bool                   # whether the teacher's distributions are needed


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: answer, answer_distill. memory: teacher. Heads: also `question`, `first`, `score`, `generate`.

    Raises:
      ValueError: an option outside its range, or a text tower that isn't a BERT.
    """
    opts, towers = two_tower.prepare(config, Options)
    layers, tower = albef.cross_of(config, towers, opts.fusion_layers)
    decoder = decoder_lib.make(tower, opts.decoder_layers)
    _check(opts, tower, decoder)
    terms = {"answer": lambda out: _mean(out, "hard"),
             "answer_distill": Term(lambda out: _mean(out, "soft") - _mean(out, "hard"), teacher=("image", "text"),
                                    heads=("soft",)), **extra_terms}
    live = two_tower.live(config, terms)
    teacher = two_tower.teacher(AVERAGED, opts.ema_m) if live.teacher else two_tower.NO_TEACHER
    pieces = Pieces(config, opts, towers, layers, tower, decoder, teacher, "soft" in live.heads)

    def init(key, batch):
        answers, weights = batch[opts.answers].shape, batch[opts.weights_of].shape
        if len(answers) != 3 or weights != answers[:2] or answers[2] > decoder.context:
            raise ValueError(f"config.data.views.{opts.answers} gives {answers} and {opts.weights_of} {weights}: there must be "
                             f"rows of n answers of at most {decoder.context} tokens (config.model.text.positions) and n weights")
        k_towers, k_layers, k_decoder = jax.random.split(key, 3)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        return {**params, "fusion": layers.init(k_layers)["fusion"], **decoder.init(k_decoder)}

    def on_batch(out, params, memory, batch, key, step):
        return _on_batch(pieces, out, params, memory, batch, key)

    taught = {"teacher/image": TowerPass("image", opts.image, network="teacher"),
              "teacher/text": TowerPass("text", opts.text, network="teacher", noisy=opts.teacher_dropout)}
    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": TowerPass("image", opts.image), "text": TowerPass("text", opts.text)}, _rows, on_batch,
                              {"teacher": teacher.of}, optional=taught),
        needs=(opts.image, opts.text, opts.answers, opts.weights_of),
        init=init,
        init_memory=teacher.init_memory,
        terms=terms,
        metrics={"answer/words": _right_words, "answer/right": _right_answers,
                 "answer/kl": Term(lambda out: _mean(out, "kl"), heads=("soft",))},
        heads=_heads(pieces),
        update_memory=teacher.update_memory,
    )


# ---- the forward pass ------------------------------------------------------------------------------------------------------------


def _rows(params, encoded):
    return {f"states/{name}": albef.image_states(outputs) if name.endswith("image") else outputs["tokens"]
            for name, outputs in encoded.items()}


def _on_batch(pieces, out, params, memory, batch, key):
    """Fusion layers and decoder in microbatches; "answer/*" (B, n) and the answers' "weights"."""
    opts, layers, decoder = pieces.opts, pieces.layers, pieces.decoder
    answers, weights = batch[opts.answers], batch[opts.weights_of].astype(jnp.float32)
    slices = {"answers": answers, "seen": batch[opts.text] != pieces.tower.pad,
              **{name.removeprefix("states/"): value for name, value in out.items()}}
    if layers.noise_depth:
        depth = layers.noise_depth + answers.shape[1] * decoder.noise_depth
        slices["noise"] = jax.random.uniform(key, (len(answers), 2, depth))

    def sums(student, averaged, x, _):
        return {"rows": _sums(pieces, student, averaged, x)}

    student = _layers_of(params)
    averaged = _layers_of(pieces.teacher.of(params, memory)) if pieces.with_soft else {}
    rows = microbatched(sums, pieces.config.microbatches)(student, averaged, slices)["rows"]
    return {**{f"answer/{name}": value for name, value in rows.items()}, "weights": weights}


def _sums(pieces, params, averaged, x):
    """Of each answer (b, n) the sums of `mlm.row_sums` over its words."""
    opts, layers, tower, decoder = pieces.opts, pieces.layers, pieces.tower, pieces.decoder
    read, labels = answer_loss_lib.shifted(x["answers"], opts.start_id, tower.pad)
    b, n, _ = read.shape
    read, labels = (rows.reshape(b * n, -1) for rows in (read, labels))

    def words(of, prefix, number):
        noise = x["noise"][:, number] if "noise" in x and (number == 0 or opts.teacher_dropout) else None
        of_fusion, of_decoder = (None, None) if noise is None else jnp.split(noise, [layers.noise_depth], axis=1)
        fused = layers.fuse(of["fusion"], x[f"{prefix}text"], x["seen"], x[f"{prefix}image"], of_fusion)["tokens"]
        if of_decoder is not None:
            of_decoder = of_decoder.reshape(b * n, decoder.noise_depth)
        return decoder.logits(of, read, jnp.repeat(fused, n, axis=0), jnp.repeat(x["seen"], n, axis=0), of_decoder)

    soft = words(averaged, "teacher/", 1) if pieces.with_soft else None
    sums = mlm.row_sums(words(params, "", 0), labels, labels != tower.pad, soft)
    return {name: value.reshape(b, n) for name, value in sums.items()}


# ---- heads -----------------------------------------------------------------------------------------------------------------------


def _heads(pieces):
    opts, towers, layers, tower, decoder = pieces.opts, pieces.towers, pieces.layers, pieces.tower, pieces.decoder

    def question(params, memory, batch):
        """{"image", "text"} -> what the other heads read of them, {"states" (B, L, W), "seen" (B, L)}."""
        text = batch["text"]
        fused = layers.fuse(params["fusion"], towers.text(params, text)["tokens"], text != tower.pad,
                            albef.image_states(towers.image(params, batch["image"])))
        return {"states": fused["tokens"], "seen": text != tower.pad}

    def first(params, memory, batch):
        """{"states", "seen"} -> "first" (B, ids): log-probabilities of an answer's first word."""
        row = jnp.full((len(batch["seen"]), 1), opts.start_id, jnp.int32)
        return {"first": jax.nn.log_softmax(decoder.logits(params, row, batch["states"], batch["seen"] > 0)[:, 0])}

    def score(params, memory, batch):
        """{"states", "seen", "answers" int32 (B, k, T)} -> (B, k) log-probabilities: "score" of all words, "first" of the first."""
        read, labels = answer_loss_lib.shifted(batch["answers"], opts.start_id, tower.pad)

        def one(rows):
            log_p = jax.nn.log_softmax(decoder.logits(params, rows[0], batch["states"], batch["seen"] > 0))
            log_p = jnp.take_along_axis(log_p, rows[1][..., None], axis=-1)[..., 0]
            return jnp.sum(jnp.where(rows[1] != tower.pad, log_p, 0.0), axis=1), log_p[:, 0]
        total, of_first = jax.lax.map(one, (jnp.swapaxes(read, 0, 1), jnp.swapaxes(labels, 0, 1)))
        return {"score": total.T, "first": of_first.T}

    def generate(params, memory, batch):
        """{"states", "seen"} -> "tokens" int32 (B, longest): the likeliest word each time, end of text, padding; "score" (B,)."""
        size = len(batch["seen"])
        never = jnp.zeros((tower.vocab_size + tower.spare_ids,)).at[jnp.asarray([tower.pad, opts.start_id])].set(-jnp.inf)

        def word(t, carry):
            read, total, done = carry
            at = jax.lax.dynamic_index_in_dim(decoder.logits(params, read[:, :-1], batch["states"], batch["seen"] > 0), t, 1, False)
            log_p = jax.nn.log_softmax(at)
            chosen = jnp.argmax(log_p + never[None], axis=1).astype(jnp.int32)
            total += jnp.where(done, 0.0, jnp.take_along_axis(log_p, chosen[:, None], axis=1)[:, 0])
            read = jax.lax.dynamic_update_index_in_dim(read, jnp.where(done, tower.pad, chosen), t + 1, 1)
            return read, total, done | (chosen == tower.eot)
        read = jnp.full((size, opts.longest + 1), tower.pad, jnp.int32).at[:, 0].set(opts.start_id)
        read, total, _ = jax.lax.fori_loop(0, opts.longest, word, (read, jnp.zeros(size), jnp.zeros(size, bool)))
        return {"tokens": read[:, 1:], "score": total}

    return {"question": question, "first": first, "score": score, "generate": generate}


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _mean(out, name):
    return answer_loss_lib.weighted(out[f"answer/{name}"], out["weights"])


def _layers_of(params):
    return {name: params[name] for name in ("fusion", "decoder", "answers")}


def _right_words(out):
    """Share of the words of all answers that would have been chosen after the words before them."""
    there = out["weights"] > 0
    return jnp.sum(out["answer/right"] * there) / jnp.maximum(jnp.sum(out["answer/count"] * there), 1.0)


def _right_answers(out):
    """Share of the questions whose first answer would have been written word for word."""
    return jnp.mean((out["answer/right"] == out["answer/count"])[:, 0].astype(jnp.float32))


def _check(opts, tower, decoder):
    if not 0 <= opts.ema_m <= 1:
        raise ValueError(f"config.objective.ema_m={opts.ema_m} must lie in [0, 1]")
    ids = tower.vocab_size + tower.spare_ids
    if not 0 <= opts.start_id < ids or opts.start_id in (tower.pad, tower.eot):
        raise ValueError(
            f"config.objective.start_id={opts.start_id} must be the id that answers begin with, one of the {ids} ids of the text "
            f"tower and neither padding nor end of text; for a tokenizer without one set config.model.text.spare_ids=1 and "
            f"start_id={tower.vocab_size}, the first id beyond it")
    if isinstance(opts.longest, bool) or not isinstance(opts.longest, int) or not 1 <= opts.longest <= decoder.context:
        raise ValueError(f"config.objective.longest={opts.longest!r} must be a whole number from 1 to "
                         f"config.model.text.positions={decoder.context}")
