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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, matching, mlm, queue
from mcd_jax.microbatch import microbatched
from mcd_jax.models import cross as cross_lib
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import pair


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
    mask_rate: float = 0.15
    mlm_mean: str = "group"             # over masked words of each "group", then over groups (the code) | of the whole "batch"
    teacher_dropout: bool = True        # the teacher drops units too (the code); the rate is config.model.text.dropout
    form: str = "auto"                  # of the contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"itc": 1.0, "itm": 1.0, "mlm": 1.0, "itc_distill": 0.4, "mlm_distill": 0.4}
WARMUP = {"itc_distill": "1 epoch", "mlm_distill": "1 epoch"}
AVERAGED = ("image", "text", "fusion", "mlm")   # what the teacher has of params: neither matching head nor temperature
MASKED, CHOSEN = "text/masked", "text/chosen"   # batch keys that are drawn


def make(config):
    """The `Objective`; terms: itc, itm, mlm, itc_distill, mlm_distill. memory: teacher, queue. Heads also: states, match, heat.

    Raises:
      ValueError: an option outside its range, no [MASK] id, or a text tower that isn't a BERT.
    """
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)
    cross, tower = cross_of(config, towers, opts.fusion_layers)
    _check(opts, config, tower)
    group = config.get("group_size", 0)
    with_words, with_match = pair.live(config, "mlm", "mlm_distill"), pair.live(config, "itm")
    from_teacher = with_words and pair.live(config, "mlm_distill")
    teacher = pair.teacher(AVERAGED, opts.ema_m)

    def init(key, batch):
        k_towers, k_cross = jax.random.split(key)
        params = {k: v for k, v in towers.init(k_towers).items() if k not in ("logit_scale", "logit_bias")}
        return {**params, **cross.init(k_cross), "temperature": jnp.float32(opts.temperature)}

    def start(key, params, batch):
        memory = teacher.start(key, params, batch)
        if opts.queue:
            size, dim = len(batch[opts.image]), config.model.embed_dim
            both = {name: queue.start(k, opts.queue, size, dim) for name, k in zip(("image", "text"), jax.random.split(key))}
            memory["queue"] = {**both, "at": jnp.int32(0)}
            if opts.ids:
                memory["queue"]["ids"] = jnp.full((opts.queue // size, size), queue.NOBODY, jnp.int32)
        return memory

    def remember(memory, params, keep, step):
        memory = teacher.remember(memory, params, keep, step)
        if opts.queue:
            at = memory["queue"]["at"]
            both = {name: queue.write(memory["queue"][name], keep[name], at) for name in keep}
            memory["queue"] = {**both, "at": (at + 1) % len(both["image"])}
        return memory

    def draw(batch, key):
        if not with_words:
            return {}
        tokens = batch[opts.text]
        open_ = (tokens != tower.pad) & (tokens != tower.eot)
        if tower.pool == "first":   # the start token stands for the text
            open_ &= (jnp.arange(tokens.shape[1]) > 0)[None]
        ids, chosen = mlm.mask(key, tokens, open_, opts.mask_rate, opts.mask_id, tower.vocab_size, tower.pad)
        return {MASKED: ids, CHOSEN: chosen}

    def rows(params, encoded):
        """Unit embeddings f32 (b, D) of student and teacher, and the states that the fusion layers read."""
        out = {name: encoded[name]["z"] for name in ("image", "text", "teacher/image", "teacher/text")}
        states = {name: encoded[name] for name in encoded if name not in ("teacher/text", *(() if with_match else ("text",)))}
        return {**out, **{f"states/{name}": image_states(found) if name.endswith("image") else found["tokens"]
                          for name, found in states.items()}}

    def finish(out, params, memory, batch, key, step):
        size = len(out["image"])
        size_of_group = group or size
        temperature = params["temperature"]
        if opts.temperature_range:
            temperature += jax.lax.stop_gradient(jnp.clip(temperature, *opts.temperature_range) - temperature)
        scale = 1 / temperature
        ids = batch[opts.ids] if opts.ids else None
        k_images, k_texts, k_noise = jax.random.split(key, 3)
        found = {"image": out["image"], "text": out["text"], "scale": scale,
                 "keep": {name: jax.lax.stop_gradient(out[f"teacher/{name}"]) for name in ("image", "text")}}
        if opts.ids:
            found["keep"]["ids"] = ids
        for one, other in (("image", "text"), ("text", "image")):
            entropies = queue.cross_entropies(
                out[one], out[f"teacher/{one}"], out[f"teacher/{other}"], memory["queue"][other] if opts.queue else None, scale,
                size_of_group if opts.keys == "group" else size, opts.form,
                None if ids is None else (ids, memory["queue"]["ids"] if opts.queue else None))
            found |= {f"itc/{one}/{name}": value for name, value in entropies._asdict().items()}

        slices = {name.removeprefix("states/"): value for name, value in out.items() if name.startswith("states/")}
        slices["seen"] = batch[opts.text] != tower.pad
        if with_match:
            def likely(one, other):
                x, y = (z.reshape(-1, size_of_group, z.shape[-1]) for z in (out[one], out[f"teacher/{other}"]))
                return scale * jnp.einsum("gid,gjd->gij", x, y, precision="highest")
            of_group = None if ids is None else ids.reshape(-1, size_of_group)
            images = matching.hard_negatives(k_images, likely("text", "image"), of_group)   # an image for each text
            texts = matching.hard_negatives(k_texts, likely("image", "text"), of_group)
            if opts.ids:
                found["negative/true"] = jnp.repeat(~matching.alone(of_group), size_of_group, total_repeat_length=size)
            slices |= {"other/image": matching.take(slices["image"], images), "other/text": matching.take(slices["text"], texts),
                       "other/seen": matching.take(slices["seen"], texts)}
            found |= {"negative/image": images, "negative/text": texts}
        if with_words:
            slices |= {"labels": batch[opts.text], "chosen": batch[CHOSEN]}
        if cross.noise_depth:
            slices["noise"] = jax.random.uniform(k_noise, (size, 5, cross.noise_depth))
        own, averaged = heads_of(params), heads_of(teacher.of(params, memory))
        return {**found, **microbatched(fused, config.microbatches)(own, averaged, slices)["rows"]}

    def fused(params, averaged, x, _):
        """Logits (b, 3, 2) of each row's own pair and its two negatives; sums over its masked words."""
        found = {}
        if with_match:
            def three(*each):   # row by row, so that a row's pairs stay on its device
                return jnp.stack(each, axis=1).reshape(-1, *each[0].shape[1:])
            read = cross.fuse(params["fusion"], three(x["text"], x["text"], x["other/text"]),
                              three(x["seen"], x["seen"], x["other/seen"]), three(x["image"], x["other/image"], x["image"]),
                              x["noise"][:, :3].reshape(-1, cross.noise_depth) if "noise" in x else None)
            found["itm"] = cross.match(params["itm"], read["pooled"]).reshape(-1, 3, 2)
        if with_words:
            def words(of, states, image, noise):
                noise = x["noise"][:, noise] if "noise" in x and noise else None
                return cross.words(of["mlm"], of["table"], cross.fuse(of["fusion"], states, x["seen"], image, noise)["tokens"])
            logits = words(params, x["masked"], x["image"], 3)
            soft = words(averaged, x["teacher/masked"], x["teacher/image"], 4 * opts.teacher_dropout) if from_teacher else None
            found |= {f"mlm/{name}": value for name, value in mlm.row_sums(logits, x["labels"], x["chosen"], soft).items()}
        return {"rows": found}

    def states(params, memory, batch):
        found = {}
        if opts.image in batch:
            found["image_states"] = image_states(towers.image(params, batch[opts.image]))
        if opts.text in batch:
            found["text_states"] = towers.text(params, batch[opts.text])["tokens"]
        return found

    def match(params, memory, batch):
        """Pairs of images ("image" pixels or "image_states") and texts ("text" tokens; "text_states" saves their pass)."""
        batch = {**states(params, memory, {k: v for k, v in batch.items() if f"{k}_states" not in batch}), **batch}
        pooled = cross.fuse(params["fusion"], batch["text_states"], batch["text"] != tower.pad, batch["image_states"])["pooled"]
        logits = cross.match(params["itm"], pooled)
        return {"probability": jax.nn.softmax(logits)[:, cross_lib.MATCH], "score": logits[:, cross_lib.MATCH]}

    def heat(params, memory, batch):
        """Of pairs as `match` takes them: "heat" (b, layers, L, N), what of the image each word's match rests on; "score" (b,)."""
        batch = {**states(params, memory, {k: v for k, v in batch.items() if f"{k}_states" not in batch}), **batch}
        logits, maps = cross.relevance(params, batch["text_states"], batch["text"] != tower.pad, batch["image_states"])
        return {"heat": maps[..., 1:], "score": logits[:, cross_lib.MATCH]}   # without the column of the pooled vector

    def itc(out, name):
        return 0.5 * (jnp.mean(out[f"itc/image/{name}"]) + jnp.mean(out[f"itc/text/{name}"]))

    def words(out, name):
        size = len(out["mlm/count"])
        return mlm.mean(out[f"mlm/{name}"], out["mlm/count"], size if opts.mlm_mean == "batch" or not group else group)

    views = {"image": pair.View("image", opts.image), "text": pair.View("text", opts.text),
             "teacher/image": pair.View("image", opts.image, network="teacher"),
             "teacher/text": pair.View("text", opts.text, network="teacher", noisy=opts.teacher_dropout)}
    if with_words:
        views["masked"] = pair.View("text", MASKED)
    if from_teacher:
        views["teacher/masked"] = pair.View("text", MASKED, network="teacher", noisy=opts.teacher_dropout)
    return pair.objective(
        config, towers, pair.Parts(views, rows, finish, {"teacher": teacher.of}, draw),
        needs=(opts.image, opts.text, *filter(None, [opts.ids])),
        init=init,
        start=start,
        terms={"itc": lambda out: itc(out, "hard"), "itm": lambda out: matching.loss(out["itm"], out.get("negative/true")),
               "mlm": lambda out: words(out, "hard"), "itc_distill": lambda out: itc(out, "soft") - itc(out, "hard"),
               "mlm_distill": lambda out: words(out, "soft") - words(out, "hard")},
        metrics=_metrics(opts, itc, words, with_match, with_words, from_teacher),
        heads={"states": states, "match": match, "heat": heat},
        remember=remember,
    )


def image_states(encoded):
    """What the fusion layers read of an image, (b, 1 + N, W): the pooled vector (of a ViT the class token), then tokens."""
    return jnp.concatenate([encoded["pooled"][:, None], encoded["tokens"]], axis=1)


def heads_of(params):
    """What `Cross` needs of a tree of parameters; the word table is the text tower's."""
    table = towers_lib.whole(params)["text"]["token"]
    return {"table": table, **{name: params[name] for name in ("fusion", "mlm", "itm")}}


def _metrics(opts, itc, words, with_match, with_words, from_teacher):
    found = {**pair.metrics(opts.form), "temperature": lambda out: 1 / out["scale"], "itc/kl": lambda out: itc(out, "kl")}
    if with_match:
        found["itm/accuracy"] = lambda out: matching.accuracy(out["itm"], out.get("negative/true"))
    if with_words:
        found["mlm/accuracy"] = lambda out: jnp.sum(out["mlm/right"]) / jnp.maximum(jnp.sum(out["mlm/count"]), 1.0)
    if from_teacher:
        found["mlm/kl"] = lambda out: words(out, "kl")
    return found


def cross_of(config, towers, depth):
    """(`cross.Cross` of so many fusion layers, the `bert.Bert` below them); a config is refused as by `cross.make`."""
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
    return cross_lib.make(tower, depth, width), tower


def _check(opts, config, tower):
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
    if pair.live(config, "mlm", "mlm_distill") and not 0 <= opts.mask_id < ids:
        raise ValueError(
            f"config.objective.mask_id={opts.mask_id} must be the id of [MASK], one of the {ids} ids of the text tower. A "
            f"tokenizer without one: set config.model.text.spare_ids=1 and mask_id={tower.vocab_size}, the first id beyond it")
