"""What every two-tower method shares: the towers of a config, what its terms need, encoding of views, the embedding head, metrics.

A forward pass has three parts, so that composed methods share the first: the towers encode views (`TowerPass`, each once, in
microbatches), `ForwardPass.rows` keeps of them what the losses need, `ForwardPass.on_batch` sees the whole batch. A method of
one's own writes these, and `objective` makes the rest.

A term says what it needs (`Term`). What has to be computed follows from the terms that have a weight, here and nowhere else
(`live`): views that none of them reads are not encoded, and methods leave out what `Live` doesn't name.
"""
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive
from mcd_jax.models import moe
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives.objective import Objective, Tree, apart, nothing, unchanged
from mcd_jax.sharding.microbatch import microbatched

TOWERS = ("shared", "image", "text", "logit_scale", "logit_bias")   # entries of params that all methods share
HEADS = ("embed", "dense", "pooled")   # heads that all methods have


class TowerPass(NamedTuple):
    """One tower's pass over one batch key. Equal views are encoded once, in a method and in several composed."""
    tower: str                # "image" | "text"
    key: str                  # batch key
    keep_share: float = 1.0   # share of the patches that the network sees; views of one key and share see the same ones
    network: str = ""         # whose parameters: "" those that are trained, else one of `ForwardPass.networks`
    noisy: bool = False       # a network of `ForwardPass.networks` drops paths, and units, as the trained one does; else none


class Term(NamedTuple):
    """A loss term, or a metric, that needs more than the embeddings of image and text; a plain function needs these alone."""
    fn: Callable[[Tree], jax.Array]              # (out) -> f32 ()
    views: tuple[str, ...] = ()                  # it reads these views too, names of `ForwardPass.optional`
    teacher: bool | tuple[str, ...] = False      # and the teacher's image, text and `views`; a tuple: of the teacher's these alone
    heads: tuple[str, ...] = ()                  # and what the method computes besides, under the names that its terms use

    def __call__(self, out: Tree) -> jax.Array:
        return self.fn(out)


class Live(NamedTuple):
    """What the terms that have a weight need, together."""
    terms: frozenset[str]    # their names
    views: frozenset[str]    # names of `ForwardPass.views` and `optional`
    heads: frozenset[str]

    @property
    def teacher(self) -> bool:
        """Whether any of them reads what a teacher encoded."""
        return any(view.startswith("teacher/") for view in self.views)

    def has(self, term: Callable) -> bool:
        """Whether there is all that a term, or a metric, needs."""
        return _views_of(term) <= self.views and set(getattr(term, "heads", ())) <= self.heads


def live(config: ConfigDict, terms: Mapping[str, Callable]) -> Live:
    """What is to be computed for `terms`, name -> function or `Term`, by config.objective.weights."""
    weighted = {name: term for name, term in terms.items() if config.objective.weights.get(name, 0.0) != 0}
    return Live(terms=frozenset(weighted), views=frozenset({"image", "text"}).union(*map(_views_of, weighted.values())),
                heads=frozenset(head for term in weighted.values() for head in getattr(term, "heads", ())))


def _views_of(term):
    """The names of the views that a term reads, a set."""
    if not isinstance(term, Term):
        return {"image", "text"}
    student = {"image", "text", *term.views}
    taught = student if term.teacher is True else set(term.teacher or ())
    return student | {f"teacher/{name}" for name in taught}


def embeddings(params: Tree, encoded: Tree) -> Tree:
    """The unit embeddings f32 (b, D) of every view: `ForwardPass.rows` of a method that needs nothing else."""
    return {name: out["z"] for name, out in encoded.items()}


def as_it_is(out: Tree, params: Tree, memory: Tree, batch: Tree, key: jax.Array, step: jax.Array) -> Tree:
    """`ForwardPass.on_batch` of a method that adds nothing to its rows."""
    return out


class ForwardPass(NamedTuple):
    """A method's forward pass. b rows of a microbatch, B of the global batch."""
    views: Mapping[str, TowerPass]          # what is always encoded
    rows: Callable[..., Tree] = embeddings  # (params, encoded) -> dict of (b, ...) arrays; encoded: name -> the tower's outputs
                                            # and "input"
    on_batch: Callable[..., Tree] = as_it_is            # (out, params, memory, batch, key, step) -> out; here the rows are (B, ...)
    networks: Mapping[str, Callable[..., Tree]] = {}    # name -> fn(params, memory) -> params
    draw: Callable[..., Tree] = nothing     # (batch, key) -> more batch keys, drawn for the whole batch, that views and `on_batch`
                                            # read
    embed: Callable[..., Tree] = nothing    # (params, encoded) -> more for the head "embed"; encoded has "image", "text" where
                                            # present
    optional: Mapping[str, TowerPass] = {}  # what is encoded for terms that need it, behind `views`
    drawn_keys: tuple[str, ...] = ()        # the batch keys that `draw` adds, which composed methods can read too


def prepare(config: ConfigDict, options: type) -> tuple[Any, towers_lib.Towers]:
    """(options, towers) of a method: its `Options` from config.objective, checked, and the towers of config.model.

    Raises:
      ValueError: an unknown option, or an `implementation` of the contrastive losses that there isn't.
    """
    opts = config_lib.options(options, config.objective)
    contrastive.check_implementation(getattr(opts, "implementation", "auto"))
    return opts, towers_of(config)


def towers_of(config: ConfigDict) -> towers_lib.Towers:
    """The `Towers` of a resolved config (`config.model.inputs` holds what the data pipeline decides)."""
    model = config.model.to_dict()
    return towers_lib.make({k: v for k, v in model.items() if k != "inputs"}, **model["inputs"], group_size=config.group_size)


def group_size(config: ConfigDict) -> int:
    """Rows that devices and microbatches keep together: config.group_size, or else the groups of the model's experts, or 1."""
    of_experts = [tower["experts"].get("group_size", moe.Options().group_size)
                  for tower in (config.model.get(kind) or {} for kind in ("shared", "image", "text")) if tower.get("experts")]
    return config.group_size or max(of_experts, default=1)


def lock(objective: Objective, names: tuple[str, ...]) -> Objective:
    """`objective` with towers locked (LiT, Zhai et al. 2022, arXiv 2111.07991): in `memory["locked"]`, where nothing trains them.

    Any objective whose towers are those of `towers_of` can be wrapped, whatever else it does: a locked tower has no gradient, no
    optimizer state and no copy in a teacher or an average, and it is sharded, saved and restored as memory is. The objective's
    `forward` and heads get the locked parts at params["locked"], its `init_memory` and `update_memory` what is trained only. A
    teacher must therefore replace keys of the parameters, {**params, **memory["teacher"]}, as evaluations do.

    Args:
      objective: an `Objective`.
      names: config.model.locked, see `towers.split`. Empty: nothing is changed.
    """
    if not names:
        return objective

    def both(params, memory):
        rest = {k: v for k, v in memory.items() if k != "locked"}
        return {**params, "locked": jax.lax.stop_gradient(memory["locked"])}, rest

    def init_memory(key, params, batch):
        fresh = objective.init(apart(key), batch)   # until weights are put in its place: see `job.initial`
        return {**objective.init_memory(key, params, batch), "locked": towers_lib.split(fresh, names)[1]}

    def update_memory(memory, params, for_memory, step):
        _, rest = both(params, memory)
        return {**objective.update_memory(rest, params, for_memory, step), "locked": memory["locked"]}

    def head(fn):
        return lambda params, memory, batch: fn(*both(params, memory), batch)

    return objective._replace(
        init=lambda key, batch: towers_lib.split(objective.init(key, batch), names)[0],
        init_memory=init_memory,
        forward=lambda params, memory, batch, key, step: objective.forward(*both(params, memory), batch, key, step),
        heads={name: head(fn) for name, fn in objective.heads.items()},
        update_memory=update_memory)


def merge_locked(params: Tree, memory: Tree) -> Tree:
    """The parameters of the whole model, {"image": ..., "text": ..., ...}, from a state's `params` and `memory`."""
    return towers_lib.merge_locked({**params, "locked": memory.get("locked", {})}) if memory else params


class Teacher(NamedTuple):
    """A moving average of the trained parameters, kept in memory["teacher"]."""
    init_memory: Callable[..., Tree]     # (key, params, batch) -> {"teacher": a copy}: `Objective.init_memory`
    update_memory: Callable[..., Tree]   # (memory, params, for_memory, step) -> memory after the step: `Objective.update_memory`
    of: Callable[..., Tree]              # (params, memory) -> the teacher's whole parameters, constant: for `ForwardPass.networks`


def teacher(names: Iterable[str], momentum: float) -> Teacher:
    """The `Teacher` of these entries of the parameters, after each step momentum * teacher + (1 - momentum) * params."""
    def init_memory(key, params, batch):
        return {"teacher": {name: jax.tree.map(jnp.copy, params[name]) for name in names if name in params}}

    def update_memory(memory, params, for_memory, step):
        old = memory["teacher"]
        new = jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, old, {name: params[name] for name in old})
        return {**memory, "teacher": new}

    def of(params, memory):
        return jax.lax.stop_gradient({**params, **memory["teacher"]})

    return Teacher(init_memory, update_memory, of)


NO_TEACHER = Teacher(nothing, unchanged, lambda params, memory: jax.lax.stop_gradient(params))


def objective(config: ConfigDict, towers: towers_lib.Towers, parts: ForwardPass, *, terms: Mapping[str, Callable],
              needs: tuple[str, ...] | None = None, init: Callable | None = None, init_memory: Callable = nothing,
              metrics: Mapping[str, Callable] | None = None, heads: Mapping[str, Callable] | None = None,
              update_memory: Callable = unchanged) -> Objective:
    """The `Objective` whose forward pass is `parts`, with those of its optional views that live terms need.

    Args:
      terms, metrics: name -> function of `out`, or `Term`. A metric whose needs no live term has is left out.
      needs: the batch keys; None: those of the views. init: None: that of the towers.

    Raises:
      ValueError: a term of some weight that needs a view which the method doesn't have.
    """
    needed = live(config, terms)
    parts = _with_live_views(parts, terms, needed)

    def forward(params, memory, batch, key, step):
        key, last = keys(key)
        batch = drawn({"": parts}, batch, key)
        out = encode(config, towers, {"": parts}, params, {"": memory}, batch, key)[""]
        return parts.on_batch(out, params, memory, batch, last, step)

    return Objective(
        needs=tuple(dict.fromkeys(view.key for view in parts.views.values())) if needs is None else needs,
        init=(lambda key, batch: towers.init(key)) if init is None else init,
        init_memory=init_memory,
        forward=forward,
        terms=terms,
        metrics={name: metric for name, metric in (metrics or {}).items() if not isinstance(metric, Term) or needed.has(metric)},
        heads={**common_heads(towers, parts.embed), **(heads or {})},
        update_memory=update_memory,
        parts=parts,
    )


def _with_live_views(parts, terms, needed):
    """`parts` whose views are all that is to be encoded, in the order in which they stand."""
    known = {"image", "text", *parts.views, *parts.optional}
    for name in needed.terms:
        if absent := sorted(_views_of(terms[name]) - known):
            raise ValueError(f"the term {name!r} needs the view {absent[0]!r}, which this method doesn't encode: it has "
                             f"{', '.join(sorted(known))}")
    views = {**parts.views, **{name: view for name, view in parts.optional.items() if name in needed.views}}
    return parts._replace(views=views, optional={})


def keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(key for `encode`, key for `ForwardPass.on_batch`) of a step."""
    return key, jax.random.fold_in(key, 2 ** 31 - 1)


def drawn(methods: Mapping[str, ForwardPass], batch: Tree, key: jax.Array) -> Tree:
    """The batch with what `ForwardPass.draw` of every method, name -> ForwardPass, adds."""
    for number, parts in enumerate(methods.values()):
        batch = {**batch, **parts.draw(batch, jax.random.fold_in(key, 2 ** 30 + number))}
    return batch


def encode(config: ConfigDict, towers: towers_lib.Towers, methods: Mapping[str, ForwardPass], params: Tree, memory: Tree,
           batch: Tree, key: jax.Array) -> Mapping[str, Tree]:
    """The rows of every method, each view of all of them encoded once.

    Args:
      config: resolved; `config.microbatches` slices.
      methods: name -> ForwardPass.
      memory: name -> that method's memory.
      key: draws which patches are kept and which paths are dropped, for the whole batch.

    Returns:
      name -> what `ForwardPass.rows` gives, (B, ...) arrays.
    """
    views_of = {name: {n: view._replace(network=view.network and f"{name}/{view.network}") for n, view in parts.views.items()}
                for name, parts in methods.items()}
    views = list(dict.fromkeys(view for of_method in views_of.values() for view in of_method.values()))
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
        return {"rows": {name: parts.rows(params, {n: encoded[view] for n, view in views_of[name].items()})
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
    noise = {view: {"path_noise": rows.get(_noise(view)), **({"keep_ids": rows.get(_kept(view))} if view.tower == "image" else {})}
             for view in views}
    if len(views) == 2:
        image, text = views
        both = towers.both(params, rows[image.key], rows[text.key], noise[image]["keep_ids"], keys)
        outputs = {view: both[view.tower] for view in views}
    else:
        keys = {"keys": keys} if views[0].tower in towers.experts else {}
        outputs = {view: getattr(towers, view.tower)(params, rows[view.key], **noise[view], **keys) for view in views}
    return {view: {**out, "input": rows[view.key], **noise[view]} for view, out in outputs.items()}


def _rows(towers, views, batch, key):
    """What the views read, with their randomness: drawn for the whole batch, it doesn't depend on microbatches or mesh."""
    k_keep, k_noise = jax.random.split(key)
    rows = {view.key: batch[view.key] for view in views}
    size = len(next(iter(rows.values())))
    masked = dict.fromkeys((view.key, _kept(view), view.keep_share) for view in views if view.keep_share < 1)
    for i, (name, kept, share) in enumerate(masked):
        rows[kept] = towers_lib.draw_keep_ids(jax.random.fold_in(k_keep, i), size, towers.num_patches(batch[name].shape), share)
    for i, view in enumerate(sorted((v for v in views if v.noisy or not v.network), key=lambda view: view.tower)):
        if depth := towers.path_depth[view.tower]:
            rows[_noise(view)] = jax.random.uniform(jax.random.fold_in(k_noise, i), (size, depth))
    return rows


def _kept(view):
    return f"{view.key}/keep{view.keep_share}"


def _noise(view):
    return f"{view.tower}/{view.key}/noise{view.keep_share}{view.network}"


def common_heads(towers: towers_lib.Towers, more: Callable = nothing) -> dict[str, Callable]:
    """The HEADS; `more` as `embed_head` takes it."""
    return {"embed": embed_head(towers, more), "dense": dense_head(towers), "pooled": pooled_head(towers)}


def embed_head(towers: towers_lib.Towers, more: Callable = nothing) -> Callable:
    """The head "embed": unit `image`, `text` and raw `image_raw`, `text_raw` of the modalities in the batch, each f32 (B, D).

    `more(params, encoded)` adds to them; encoded: modality -> the tower's outputs and "input".
    """
    def embed(params, memory, batch):
        views = {tower: TowerPass(tower, tower) for tower in ("image", "text") if tower in batch}
        encoded = {tower: _apply(towers, (view,), params, batch)[view] for tower, view in views.items()}
        out = {}
        for name, outputs in encoded.items():
            out |= {name: outputs["z"], f"{name}_raw": outputs["raw"]}
        return {**out, **more(params, encoded)}
    return embed


def dense_head(towers: towers_lib.Towers) -> Callable:
    """The head "dense": unit joint features of an image's "tokens" f32 (B, N, D), and the unit "text" (B, D)."""
    def dense(params, memory, batch):
        out = {}
        if "image" in batch:
            view = TowerPass("image", "image")
            tokens = _apply(towers, (view,), params, batch)[view]["tokens"]
            out["tokens"] = towers_lib.unit(towers_lib.project(params, "image", tokens))
        if "text" in batch:
            view = TowerPass("text", "text")
            out["text"] = _apply(towers, (view,), params, batch)[view]["z"]
        return out
    return dense


def pooled_head(towers: towers_lib.Towers) -> Callable:
    """The head "pooled": what an image's or a text's projection reads, f32 (B, W of the tower)."""
    def pooled(params, memory, batch):
        views = {tower: TowerPass(tower, tower) for tower in ("image", "text") if tower in batch}
        return {f"{tower}_pooled": _apply(towers, (view,), params, batch)[view]["pooled"].astype(jnp.float32)
                for tower, view in views.items()}
    return pooled


def metrics(implementation: str) -> Mapping[str, Callable]:
    """The metrics of every two-tower method; `implementation` as the contrastive losses take it."""
    return {"logit_scale": lambda out: out["scale"],
            "accuracy": lambda out: contrastive.accuracy(out["image"], out["text"], implementation)}


def mean_over_views(fn: Callable[[str], jax.Array], views: tuple[str, ...]) -> jax.Array:
    """Mean of `fn(view)` over a tuple of views, f32 ()."""
    return jnp.mean(jnp.stack([fn(view) for view in views]))
