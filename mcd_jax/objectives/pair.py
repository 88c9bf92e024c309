"""What every two-tower method shares: the towers of a config, encoding of views, the embedding head, common metrics.

A forward pass has three parts, so that composed methods share the first: the towers encode views (`View`, each once, in
microbatches), `Parts.rows` keeps of them what the losses need, `Parts.finish` sees the whole batch. A method of one's own writes
these, and `objective` makes the rest.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.microbatch import microbatched
from mcd_jax.models import moe
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import Objective, nothing, unchanged

TOWERS = ("shared", "image", "text", "logit_scale", "logit_bias")   # entries of params that all methods share
HEADS = ("embed", "dense")   # heads that all methods have


class View(NamedTuple):
    """One tower's pass over one batch key. Equal views are encoded once, in a method and in several composed."""
    tower: str          # "image" | "text"
    key: str            # batch key
    keep: float = 1.0   # share of the patches that the network sees; views of one key and share see the same ones
    network: str = ""   # whose parameters: "" those that are trained, else one of `Parts.networks`
    noisy: bool = False  # a network of `Parts.networks` drops paths, and units, as the trained one does; else it drops none


def embeddings(params, encoded):
    """The unit embeddings f32 (b, D) of every view: `Parts.rows` of a method that needs nothing else."""
    return {name: out["z"] for name, out in encoded.items()}


def as_it_is(out, params, memory, batch, key, step):
    """`Parts.finish` of a method that adds nothing to its rows."""
    return out


class Parts(NamedTuple):
    """A method's forward pass. b rows of a microbatch, B of the global batch."""
    views: Mapping                  # name -> View
    rows: Callable = embeddings     # (params, encoded) -> dict of (b, ...) arrays; encoded: name -> the tower's outputs and "input"
    finish: Callable = as_it_is     # (out, params, memory, batch, key, step) -> out; here the rows are (B, ...)
    networks: Mapping = {}          # name -> fn(params, memory) -> params
    draw: Callable = nothing        # (batch, key) -> more batch keys, drawn for the whole batch, that views and `finish` read
    embed: Callable = nothing       # (params, encoded) -> more for the head "embed"; encoded has "image", "text" where present


def towers_of(config):
    """The `Towers` of a resolved config (`config.model.inputs` holds what the data pipeline decides)."""
    model = config.model.to_dict()
    return towers_lib.make({k: v for k, v in model.items() if k != "inputs"}, **model["inputs"], group_size=config.group_size)


def group_size(config):
    """Rows that devices and microbatches keep together: config.group_size, or else the groups of the model's experts, or 1."""
    of_experts = [tower["experts"].get("group_size", moe.Options().group_size)
                  for tower in (config.model.get(kind) or {} for kind in ("shared", "image", "text")) if tower.get("experts")]
    return config.group_size or max(of_experts, default=1)


def lock(objective, names):
    """`objective` with towers locked (LiT, Zhai et al. 2022, arXiv 2111.07991): in `memory["locked"]`, where nothing trains them.

    Any objective whose towers are those of `towers_of` can be wrapped, whatever else it does: a locked tower has no gradient, no
    optimizer state and no copy in a teacher or an average, and it is sharded, saved and restored as memory is. The objective's
    `forward` and heads get the locked parts at params["locked"], its `start` and `remember` what is trained only. A teacher must
    therefore replace keys of the parameters, {**params, **memory["teacher"]}, as `embed.parameters` does for evaluations.

    Args:
      objective: an `Objective`.
      names: config.model.locked, see `towers.split`. Empty: nothing is changed.
    """
    if not names:
        return objective

    def both(params, memory):
        rest = {k: v for k, v in memory.items() if k != "locked"}
        return {**params, "locked": jax.lax.stop_gradient(memory["locked"])}, rest

    def start(key, params, batch):
        fresh = objective.init(jax.random.fold_in(key, 1), batch)   # until weights are put in its place: see `job.initial`
        return {**objective.start(key, params, batch), "locked": towers_lib.split(fresh, names)[1]}

    def remember(memory, params, keep, step):
        _, rest = both(params, memory)
        return {**objective.remember(rest, params, keep, step), "locked": memory["locked"]}

    def head(fn):
        return lambda params, memory, batch: fn(*both(params, memory), batch)

    return objective._replace(
        init=lambda key, batch: towers_lib.split(objective.init(key, batch), names)[0],
        start=start,
        forward=lambda params, memory, batch, key, step: objective.forward(*both(params, memory), batch, key, step),
        heads={name: head(fn) for name, fn in objective.heads.items()},
        remember=remember)


def whole(params, memory):
    """The parameters of the whole model, {"image": ..., "text": ..., ...}, from a state's `params` and `memory`."""
    return towers_lib.whole({**params, "locked": memory.get("locked", {})}) if memory else params


class Teacher(NamedTuple):
    """A moving average of the trained parameters, kept in memory["teacher"]."""
    start: Callable     # (key, params, batch) -> {"teacher": a copy}: `Objective.start`
    remember: Callable  # (memory, params, keep, step) -> memory after the step: `Objective.remember`
    of: Callable        # (params, memory) -> the teacher's whole parameters, constant: for `Parts.networks`


def teacher(names, momentum):
    """The `Teacher` of these entries of the parameters, after each step momentum * teacher + (1 - momentum) * params."""
    def start(key, params, batch):
        return {"teacher": {name: jax.tree.map(jnp.copy, params[name]) for name in names if name in params}}

    def remember(memory, params, keep, step):
        old = memory["teacher"]
        new = jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, old, {name: params[name] for name in old})
        return {**memory, "teacher": new}

    def of(params, memory):
        return jax.lax.stop_gradient({**params, **memory["teacher"]})

    return Teacher(start, remember, of)


NO_TEACHER = Teacher(nothing, unchanged, lambda params, memory: jax.lax.stop_gradient(params))


def live(config, *terms):
    """Whether any of the terms has a weight other than the constant 0, so that its part of the forward pass is worth building."""
    return any(config.objective.weights.get(term, 0.0) != 0 for term in terms)


def objective(config, towers, parts, *, terms, needs=None, init=None, start=nothing, metrics=None, heads=None, remember=unchanged):
    """The `Objective` whose forward pass is `parts`. Unless given, `needs` are the keys of its views and `init` is the towers'."""
    def forward(params, memory, batch, key, step):
        key, last = keys(key)
        batch = drawn({"": parts}, batch, key)
        out = encode(config, towers, {"": parts}, params, {"": memory}, batch, key)[""]
        return parts.finish(out, params, memory, batch, last, step)

    return Objective(
        needs=tuple(dict.fromkeys(view.key for view in parts.views.values())) if needs is None else needs,
        init=(lambda key, batch: towers.init(key)) if init is None else init,
        start=start,
        forward=forward,
        terms=terms,
        metrics=metrics or {},
        heads={"embed": embed_head(towers, parts.embed), "dense": dense_head(towers), **(heads or {})},
        remember=remember,
        parts=parts,
    )


def keys(key):
    """(key for `encode`, key for `Parts.finish`) of a step."""
    return key, jax.random.fold_in(key, 2 ** 31 - 1)


def drawn(methods, batch, key):
    """The batch with what `Parts.draw` of every method, name -> Parts, adds."""
    for number, parts in enumerate(methods.values()):
        batch = {**batch, **parts.draw(batch, jax.random.fold_in(key, 2 ** 30 + number))}
    return batch


def encode(config, towers, methods, params, memory, batch, key):
    """The rows of every method, each view of all of them encoded once.

    Args:
      config: resolved; `config.microbatches` slices.
      methods: name -> Parts.
      memory: name -> that method's memory.
      key: draws which patches are kept and which paths are dropped, for the whole batch.

    Returns:
      name -> what `Parts.rows` gives, (B, ...) arrays.
    """
    own = {name: {n: view._replace(network=view.network and f"{name}/{view.network}") for n, view in parts.views.items()}
           for name, parts in methods.items()}
    views = list(dict.fromkeys(view for of_method in own.values() for view in of_method.values()))
    networks = {f"{name}/{n}": (name, fn) for name, parts in methods.items() for n, fn in parts.networks.items()}

    def slice_of(params, memory, rows, keys):
        def network(view):
            if not view.network:
                return params
            name, fn = networks[view.network]
            return fn(params, memory[name])

        weights, encoded = {view.network: network(view) for view in views}, {}
        for number, some in enumerate(_together(towers, views)):
            drawn = None if keys is None or some[0].network else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            encoded |= _apply(towers, some, weights[some[0].network], rows, drawn)
        return {"rows": {name: parts.rows(params, {n: encoded[view] for n, view in own[name].items()})
                         for name, parts in methods.items()}}

    rows, key, size = _rows(towers, views, batch, key), jax.random.fold_in(key, 2) if towers.experts else None, group_size(config)
    if key is not None and len(jax.tree.leaves(rows)[0]) % size:
        raise ValueError(f"{len(jax.tree.leaves(rows)[0])} rows aren't whole groups of {size}, whose tokens compete for experts: "
                         "set config.group_size")
    return microbatched(slice_of, config.microbatches, size if towers.experts else 1)(params, memory, rows, key)["rows"]


def _together(towers, views):
    """Which views a tower sees at once, tuples: in a shared one the first image and the first text of a network, else one each.

    A further view, such as an augmented image, has a pass and a competition for experts by itself.
    """
    passes = {}
    for view in views:
        first = towers.both is not None and view == next(v for v in views if (v.tower, v.network) == (view.tower, view.network))
        passes.setdefault(view.network if first else view, []).append(view)
    return [tuple(sorted(some, key=lambda view: view.tower)) for some in passes.values()]


def _apply(towers, views, params, rows, keys=None):
    """The outputs of the views of one pass, view -> dict; keys of the groups, in training of a network with experts."""
    given = {view: {"path_noise": rows.get(_noise(view)), **({"keep_ids": rows.get(_kept(view))} if view.tower == "image" else {})}
             for view in views}
    if len(views) == 2:
        image, text = views
        both = towers.both(params, rows[image.key], rows[text.key], given[image]["keep_ids"], keys)
        found = {view: both[view.tower] for view in views}
    else:
        keys = {"keys": keys} if views[0].tower in towers.experts else {}
        found = {view: getattr(towers, view.tower)(params, rows[view.key], **given[view], **keys) for view in views}
    return {view: {**out, "input": rows[view.key], **given[view]} for view, out in found.items()}


def _rows(towers, views, batch, key):
    """What the views read, with their randomness: drawn for the whole batch, it doesn't depend on microbatches or mesh."""
    k_keep, k_noise = jax.random.split(key)
    rows = {view.key: batch[view.key] for view in views}
    size = len(next(iter(rows.values())))
    masked = dict.fromkeys((view.key, _kept(view), view.keep) for view in views if view.keep < 1)
    for i, (name, kept, share) in enumerate(masked):
        rows[kept] = towers_lib.draw_keep_ids(jax.random.fold_in(k_keep, i), size, towers.num_patches(batch[name].shape), share)
    for i, view in enumerate(sorted((v for v in views if v.noisy or not v.network), key=lambda view: view.tower)):
        if depth := towers.path_depth[view.tower]:
            rows[_noise(view)] = jax.random.uniform(jax.random.fold_in(k_noise, i), (size, depth))
    return rows


def _kept(view):
    return f"{view.key}/keep{view.keep}"


def _noise(view):
    return f"{view.tower}/{view.key}/noise{view.keep}{view.network}"


def embed_head(towers, more=nothing):
    """The head "embed": unit `image`, `text` and raw `image_raw`, `text_raw` of the modalities in the batch, each f32 (B, D).

    `more(params, encoded)` adds to them; encoded: modality -> the tower's outputs and "input".
    """
    def embed(params, memory, batch):
        views = {tower: View(tower, tower) for tower in ("image", "text") if tower in batch}
        encoded = {tower: _apply(towers, (view,), params, batch)[view] for tower, view in views.items()}
        out = {}
        for name, found in encoded.items():
            out |= {name: found["z"], f"{name}_raw": found["raw"]}
        return {**out, **more(params, encoded)}
    return embed


def dense_head(towers):
    """The head "dense": unit joint features of an image's "tokens" f32 (B, N, D), and the unit "text" (B, D)."""
    def dense(params, memory, batch):
        out = {}
        if "image" in batch:
            view = View("image", "image")
            tokens = _apply(towers, (view,), params, batch)[view]["tokens"]
            out["tokens"] = towers_lib.unit(towers_lib.project(params, "image", tokens))
        if "text" in batch:
            view = View("text", "text")
            out["text"] = _apply(towers, (view,), params, batch)[view]["z"]
        return out
    return dense


def metrics(form):
    """The metrics of every two-tower method; `form` as the contrastive losses take it."""
    return {"logit_scale": lambda out: out["scale"],
            "accuracy": lambda out: contrastive.accuracy(out["image"], out["text"], form)}


def mean_over_views(fn, views):
    """Mean of `fn(view)` over a tuple of views, f32 ()."""
    return jnp.mean(jnp.stack([fn(view) for view in views]))
