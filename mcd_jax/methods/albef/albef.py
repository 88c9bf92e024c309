"""ALBEF: align image and text, then fuse them, with an averaged teacher's keys and soft targets (Li et al. 2021, arXiv 2107.07651).

Three losses of weight one: image-text contrast against a teacher's keys and a queue of them (itc), matching with hard negatives of
the group (itm), masked words read off the fused text (mlm). Momentum distillation mixes the teacher's distribution into the
targets of itc and mlm with a share alpha that rises from 0 in the first epoch. Cross-entropy is linear in its target,
(1 - alpha) hard + alpha soft = hard + alpha (soft - hard), so alpha is the weight of the terms `itc_distill` and `mlm_distill`,
which are soft - hard, and its ramp is their `warmup`.

Follows the published code (salesforce/ALBEF at b9727e4) where paper and code differ. The teacher there is averaged with the current
student before each forward pass; here after each update, which is the same: at step 0 both are equal. The queue is written after
the loss. The temperature is a parameter of its own and not a logarithm, as there; `temperature_range` binds it in the forward pass
(the gradient is that at the bound value), and `config.optimizer.bounds` keeps the parameter itself inside.

In-batch keys and negatives come from groups of config.group_size rows: with 64 this is what eight processes of 64 rows compute.

Fine-tuning for retrieval (the code's models/model_retrieval.py) is the same with the option `ids` and without masked words: rows
and keys of the queue with one image id match each other, targets are spread over them, and none is drawn as a negative.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import mlm
from mcd_jax.methods.albef import fusion_layers as fusion_layers_lib
from mcd_jax.methods.albef import matching, queue
from mcd_jax.models import bert
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, Tree
from mcd_jax.objectives.two_tower import Term, TowerPass
from mcd_jax.sharding.microbatch import microbatched


class Options(NamedTuple):
    """Defaults are those of the published code, which all were seen there."""
    image: str = "image"
    text: str = "text"
    fusion_layers: int = 6              # on top of the text tower's layers; BERT-base has 6 and 6
    queue: int = 65536                  # keys of earlier steps, a multiple of the batch; 0: none
    ema_m: float = 0.995                # the teacher's momentum
    temperature: float = 0.07           # at the start
    temperature_range: tuple = (0.001, 0.5)   # (): not bound, as in the published fine-tuning
    ids: str = ""                       # batch key of int image ids, by which several rows match: fine-tuning for retrieval
    keys: str = "group"                 # in-batch keys of itc: of the row's "group" (the code) | of the whole "batch"
    mask_id: int = -1                   # id of [MASK]; must be given
    mask_rate: float = 0.15             # share of words that are masked
    mlm_mean: str = "group"             # over masked words of each "group", then over groups (the code) | of the whole "batch"
    teacher_dropout: bool = True        # the teacher drops units too (the code); the rate is config.model.text.dropout
    implementation: str = "auto"        # of the contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"itc": 1.0, "itm": 1.0, "mlm": 1.0, "itc_distill": 0.4, "mlm_distill": 0.4}
WARMUP = {"itc_distill": "1 epoch", "mlm_distill": "1 epoch"}
AVERAGED = ("image", "text", "fusion", "mlm")   # what the teacher has of params: neither matching head nor temperature
MASKED, CHOSEN = "text/masked", "text/chosen"   # batch keys that are drawn


class Pieces(NamedTuple):
    """What the parts of the forward pass are made of."""
    config: ConfigDict
    opts: Options
    towers: towers_lib.Towers
    layers: fusion_layers_lib.Cross   # the fusion layers
    tower: bert.Bert                  # the text tower, below them
    teacher: two_tower.Teacher
    live: two_tower.Live              # heads: "match" (the pairs of itm), "words" (masked ones)

    @property
    def softened(self) -> bool:
        """Whether the teacher reads masked words too."""
        return "teacher/masked" in self.live.views


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: itc, itm, mlm, itc_distill, mlm_distill. memory: teacher, queue. Heads: also states, match, heat.

    Raises:
      ValueError: an option outside its range, no [MASK] id, or a text tower that isn't a BERT.
    """
    opts, towers = two_tower.prepare(config, Options)
    layers, tower = cross_of(config, towers, opts.fusion_layers)
    terms = {**_terms(opts, config.get("group_size", 0)), **extra_terms}
    live = two_tower.live(config, terms)
    _check(opts, config, tower, "words" in live.heads)
    teacher = two_tower.teacher(AVERAGED, opts.ema_m)
    pieces = Pieces(config, opts, towers, layers, tower, teacher, live)

    def init(key, batch):
        k_towers, k_layers = jax.random.split(key)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        return {**params, **layers.init(k_layers), "temperature": jnp.float32(opts.temperature)}

    def draw(batch, key):
        return _masked_words(opts, tower, batch[opts.text], key) if "words" in live.heads else {}

    def on_batch(out, params, memory, batch, key, step):
        return _on_batch(pieces, out, params, memory, batch, key)

    always, masked = _views(opts)
    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass(always, lambda params, encoded: _rows(live, encoded), on_batch, {"teacher": teacher.of}, draw,
                              optional=masked),
        needs=(opts.image, opts.text, *filter(None, [opts.ids])),
        init=init,
        init_memory=lambda key, params, batch: _init_memory(pieces, key, params, batch),
        terms=terms,
        metrics=_metrics(opts, config.get("group_size", 0)),
        heads=_heads(pieces),
        update_memory=lambda memory, params, for_memory, step: _update_memory(pieces, memory, params, for_memory, step),
    )


# ---- what is encoded -------------------------------------------------------------------------------------------------------------


def _views(opts):
    """(what is always encoded, what mlm and its distillation read)."""
    def by_teacher(tower, key):
        return TowerPass(tower, key, network="teacher", noisy=tower == "text" and opts.teacher_dropout)

    return ({"image": TowerPass("image", opts.image), "text": TowerPass("text", opts.text),
             "teacher/image": by_teacher("image", opts.image), "teacher/text": by_teacher("text", opts.text)},
            {"masked": TowerPass("text", MASKED), "teacher/masked": by_teacher("text", MASKED)})


def _masked_words(opts, tower, tokens, key):
    """The batch keys MASKED and CHOSEN, int32 and bool (B, L)."""
    open_ = (tokens != tower.pad) & (tokens != tower.eot)
    if tower.pool == "first":   # the start token stands for the text
        open_ &= (jnp.arange(tokens.shape[1]) > 0)[None]
    ids, chosen = mlm.mask(key, tokens, open_, opts.mask_rate, opts.mask_id, tower.vocab_size, (tower.pad,))
    return {MASKED: ids, CHOSEN: chosen}


def _rows(live, encoded):
    """Unit embeddings f32 (b, D) of student and teacher, and "states/*" that the fusion layers read."""
    out = {name: encoded[name]["z"] for name in ("image", "text", "teacher/image", "teacher/text")}
    unread = ("teacher/text", *(() if "match" in live.heads else ("text",)))
    return {**out, **{f"states/{name}": image_states(outputs) if name.endswith("image") else outputs["tokens"]
                      for name, outputs in encoded.items() if name not in unread}}


# ---- memory ----------------------------------------------------------------------------------------------------------------------


def _init_memory(pieces, key, params, batch):
    opts, memory = pieces.opts, pieces.teacher.init_memory(key, params, batch)
    if opts.queue:
        size, dim = len(batch[opts.image]), pieces.config.model.embed_dim
        both = {name: queue.start(k, opts.queue, size, dim) for name, k in zip(("image", "text"), jax.random.split(key))}
        memory["queue"] = {**both, "at": jnp.int32(0)}
        if opts.ids:
            memory["queue"]["ids"] = jnp.full((opts.queue // size, size), queue.NOBODY, jnp.int32)
    return memory


def _update_memory(pieces, memory, params, for_memory, step):
    memory = pieces.teacher.update_memory(memory, params, for_memory, step)
    if pieces.opts.queue:
        at = memory["queue"]["at"]
        both = {name: queue.write(memory["queue"][name], for_memory[name], at) for name in for_memory}
        memory["queue"] = {**both, "at": (at + 1) % len(both["image"])}
    return memory


# ---- the whole batch -------------------------------------------------------------------------------------------------------------


def _on_batch(pieces, out, params, memory, batch, key):
    """Contrast with the queue, negatives for matching, and the fusion layers in microbatches."""
    opts, live, size = pieces.opts, pieces.live, len(out["image"])
    group = pieces.config.get("group_size", 0) or size
    scale = 1 / _bound_temperature(opts, params["temperature"])
    ids = batch[opts.ids] if opts.ids else None
    k_images, k_texts, k_noise = jax.random.split(key, 3)
    result = {"image": out["image"], "text": out["text"], "scale": scale,
              "for_memory": {name: jax.lax.stop_gradient(out[f"teacher/{name}"]) for name in ("image", "text")},
              **_contrast(opts, out, memory, ids, scale, group)}
    if opts.ids:
        result["for_memory"]["ids"] = ids

    slices = {name.removeprefix("states/"): value for name, value in out.items() if name.startswith("states/")}
    slices["seen"] = batch[opts.text] != pieces.tower.pad
    if "match" in live.heads:
        of_group = None if ids is None else ids.reshape(-1, group)
        images = matching.hard_negatives(k_images, _likeness(out, "text", "image", scale, group), of_group)   # one for each text
        texts = matching.hard_negatives(k_texts, _likeness(out, "image", "text", scale, group), of_group)
        if opts.ids:
            result["negative/true"] = jnp.repeat(~matching.alone(of_group), group, total_repeat_length=size)
        slices |= {"other/image": matching.take(slices["image"], images), "other/text": matching.take(slices["text"], texts),
                   "other/seen": matching.take(slices["seen"], texts)}
        result |= {"negative/image": images, "negative/text": texts}
    if "words" in live.heads:
        slices |= {"labels": batch[opts.text], "chosen": batch[CHOSEN]}
    if pieces.layers.noise_depth:
        slices["noise"] = jax.random.uniform(k_noise, (size, 5, pieces.layers.noise_depth))

    def fused(student, averaged, x, _):
        return {"rows": _fused(pieces, student, averaged, x)}

    student, averaged = heads_of(params), heads_of(pieces.teacher.of(params, memory))
    return {**result, **microbatched(fused, pieces.config.microbatches)(student, averaged, slices)["rows"]}


def _bound_temperature(opts, temperature):
    """The temperature inside its range; the gradient is that at the bound value."""
    if not opts.temperature_range:
        return temperature
    return temperature + jax.lax.stop_gradient(jnp.clip(temperature, *opts.temperature_range) - temperature)


def _contrast(opts, out, memory, ids, scale, group):
    """"itc/image/*", "itc/text/*" (B,): `queue.Rows` of both directions."""
    result = {}
    for one, other in (("image", "text"), ("text", "image")):
        entropies = queue.cross_entropies(
            out[one], out[f"teacher/{one}"], out[f"teacher/{other}"], memory["queue"][other] if opts.queue else None, scale,
            group if opts.keys == "group" else len(out[one]), opts.implementation,
            None if ids is None else (ids, memory["queue"]["ids"] if opts.queue else None))
        result |= {f"itc/{one}/{name}": value for name, value in entropies._asdict().items()}
    return result


def _likeness(out, one, other, scale, group):
    """Logits (G, g, g) of the rows of each group with the teacher's of the other modality."""
    x, y = (z.reshape(-1, group, z.shape[-1]) for z in (out[one], out[f"teacher/{other}"]))
    return scale * jnp.einsum("gid,gjd->gij", x, y, precision="highest")


def _fused(pieces, params, averaged, x):
    """Logits (b, 3, 2) of each row's own pair and its two negatives; sums over its masked words."""
    layers, result = pieces.layers, {}
    if "match" in pieces.live.heads:
        def three(*each):   # row by row, so that a row's pairs stay on its device
            return jnp.stack(each, axis=1).reshape(-1, *each[0].shape[1:])
        read = layers.fuse(params["fusion"], three(x["text"], x["text"], x["other/text"]),
                           three(x["seen"], x["seen"], x["other/seen"]), three(x["image"], x["other/image"], x["image"]),
                           x["noise"][:, :3].reshape(-1, layers.noise_depth) if "noise" in x else None)
        result["itm"] = layers.match(params["itm"], read["pooled"]).reshape(-1, 3, 2)
    if "words" in pieces.live.heads:
        def words(of, states, image, noise):
            noise = x["noise"][:, noise] if "noise" in x and noise else None
            return layers.words(of["mlm"], of["table"], layers.fuse(of["fusion"], states, x["seen"], image, noise)["tokens"])
        logits, soft = words(params, x["masked"], x["image"], 3), None
        if pieces.softened:
            soft = words(averaged, x["teacher/masked"], x["teacher/image"], 4 * pieces.opts.teacher_dropout)
        result |= {f"mlm/{name}": value for name, value in mlm.row_sums(logits, x["labels"], x["chosen"], soft).items()}
    return result


# ---- heads -----------------------------------------------------------------------------------------------------------------------


def _heads(pieces):
    opts, towers, layers, tower = pieces.opts, pieces.towers, pieces.layers, pieces.tower

    def states(params, memory, batch):
        """"image_states" and "text_states" of what is there, for the other heads."""
        result = {}
        if opts.image in batch:
            result["image_states"] = image_states(towers.image(params, batch[opts.image]))
        if opts.text in batch:
            result["text_states"] = towers.text(params, batch[opts.text])["tokens"]
        return result

    def with_states(params, memory, batch):
        return {**states(params, memory, {k: v for k, v in batch.items() if f"{k}_states" not in batch}), **batch}

    def match(params, memory, batch):
        """Pairs of images ("image" pixels or "image_states") and texts ("text" tokens; "text_states" saves their pass)."""
        batch = with_states(params, memory, batch)
        pooled = layers.fuse(params["fusion"], batch["text_states"], batch["text"] != tower.pad, batch["image_states"])["pooled"]
        logits = layers.match(params["itm"], pooled)
        return {"probability": jax.nn.softmax(logits)[:, fusion_layers_lib.MATCH], "score": logits[:, fusion_layers_lib.MATCH]}

    def heat(params, memory, batch):
        """Of pairs as `match` takes them: "heat" (b, layers, L, N), what of the image each word's match rests on; "score" (b,)."""
        batch = with_states(params, memory, batch)
        logits, maps = layers.relevance(params, batch["text_states"], batch["text"] != tower.pad, batch["image_states"])
        return {"heat": maps[..., 1:], "score": logits[:, fusion_layers_lib.MATCH]}   # without the column of the pooled vector

    return {"states": states, "match": match, "heat": heat}


def image_states(encoded: Tree) -> jax.Array:
    """What the fusion layers read of an image, (b, 1 + N, W): the pooled vector (of a ViT the class token), then tokens."""
    return jnp.concatenate([encoded["pooled"][:, None], encoded["tokens"]], axis=1)


def heads_of(params: Tree) -> Tree:
    """What `Cross` needs of a tree of parameters; the word table is the text tower's."""
    table = towers_lib.merge_locked(params)["text"]["token"]
    return {"table": table, **{name: params[name] for name in ("fusion", "mlm", "itm")}}


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _itc(out, name):
    return 0.5 * (jnp.mean(out[f"itc/image/{name}"]) + jnp.mean(out[f"itc/text/{name}"]))


def _words(opts, group, out, name):
    size = len(out["mlm/count"])
    return mlm.mean(out[f"mlm/{name}"], out["mlm/count"], size if opts.mlm_mean == "batch" or not group else group)


def _terms(opts, group):
    """Each with what it needs: the pairs of matching, masked words, the teacher's reading of them."""
    def mlm_distill(out):
        return _words(opts, group, out, "soft") - _words(opts, group, out, "hard")

    return {"itc": lambda out: _itc(out, "hard"),
            "itm": Term(lambda out: matching.loss(out["itm"], out.get("negative/true")), heads=("match",)),
            "mlm": Term(lambda out: _words(opts, group, out, "hard"), views=("masked",), heads=("words",)),
            "itc_distill": lambda out: _itc(out, "soft") - _itc(out, "hard"),
            "mlm_distill": Term(mlm_distill, views=("masked",), teacher=("masked",), heads=("words",))}


def _metrics(opts, group):
    def right_words(out):
        return jnp.sum(out["mlm/right"]) / jnp.maximum(jnp.sum(out["mlm/count"]), 1.0)

    return {**two_tower.metrics(opts.implementation), "temperature": lambda out: 1 / out["scale"],
            "itc/kl": lambda out: _itc(out, "kl"),
            "itm/accuracy": Term(lambda out: matching.accuracy(out["itm"], out.get("negative/true")), heads=("match",)),
            "mlm/accuracy": Term(right_words, heads=("words",)),
            "mlm/kl": Term(lambda out: _words(opts, group, out, "kl"), views=("masked",), teacher=("masked",), heads=("words",))}


# ---- what a config must have -----------------------------------------------------------------------------------------------------


def cross_of(config: ConfigDict, towers: towers_lib.Towers, depth: int) -> tuple[fusion_layers_lib.Cross, bert.Bert]:
    """(`Cross` of so many fusion layers, the `bert.Bert` below them); a config is refused as by `fusion_layers.make`."""
    inputs = dict(config.model.inputs.items())
    size = inputs.pop("image_size")
    model = {k: v for k, v in config.model.to_dict().items() if k != "inputs"}
    _, tower, _ = towers_lib.tower(model, "text", **inputs)
    params = jax.eval_shape(towers.init, jax.random.key(0))
    image = jax.eval_shape(towers.image, params, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
    width, pooled = image["tokens"].shape[-1], image["pooled"].shape[-1]
    if width != pooled:
        raise ValueError(f"config.model.image: its tokens have width {width} and what it pools {pooled}; fusion layers read both, "
                         "so they must be equal: choose another pool")
    return fusion_layers_lib.make(tower, depth, width), tower


def _check(opts, config, tower, with_words):
    for name in ("keys", "mlm_mean"):
        if getattr(opts, name) not in ("group", "batch"):
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be 'group' or 'batch'")
    low, high = opts.temperature_range or (1e-30, float("inf"))
    if not 0 < low <= opts.temperature <= high:
        raise ValueError(f"config.objective.temperature={opts.temperature} must lie in temperature_range={opts.temperature_range}, "
                         "above 0")
    for name in ("ema_m", "mask_rate"):
        if not 0 <= getattr(opts, name) <= 1:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)} must lie in [0, 1]")
    if opts.queue < 0 or opts.queue % config.batch_size:
        raise ValueError(f"config.objective.queue={opts.queue} must be a multiple of config.batch_size={config.batch_size}, or 0")
    if (config.get("group_size", 0) or config.batch_size) < 2:
        raise ValueError("config.group_size=1 leaves no negatives: a group needs at least 2 rows, and 0 is the whole batch")
    ids = tower.vocab_size + tower.spare_ids
    if with_words and not 0 <= opts.mask_id < ids:
        raise ValueError(
            f"config.objective.mask_id={opts.mask_id} must be the id of [MASK], one of the {ids} ids of the text tower; for a "
            f"tokenizer without one set config.model.text.spare_ids=1 and mask_id={tower.vocab_size}, the first id beyond it")
