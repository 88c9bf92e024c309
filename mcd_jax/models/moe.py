"""Mixture-of-experts layers: each token goes to k of E feed-forward networks (Riquelme et al. 2021, V-MoE, arXiv 2106.05974).

A group is `group_size` consecutive rows of the batch with all their tokens. Each expert has C places for the tokens of a group; who
comes late is dropped: the layer adds nothing to it. Batch priority routing lets the tokens with the largest gate come first, else
they come in their order. So results depend on the group size, and neither on the mesh nor on microbatches.

Experts live on the mesh axis "expert", E / X to each of its X devices, if config.sharding says so. Tokens visit them through one
all-to-all and come back through another; the gradient does the same. Devices along every other batch axis hold copies of the
experts.
"""
from functools import partial
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mcd_jax.losses import routing
from mcd_jax.models.transformer import ACTIVATIONS
from mcd_jax.sharding import constrain
from mcd_jax.sharding import mesh as mesh_lib


class Options(NamedTuple):
    """Of a mixture layer: `config.model.<tower>.experts`. Confidence in values from memory of LIMoE's is in brackets."""
    num: int = 32                  # experts, E
    k: int = 1                     # experts for each token; gates aren't normalised again
    capacity: float = 1.05         # places of an expert: this times its fair share of the group's tokens (V-MoE's; LIMoE: [low])
    eval_capacity: float = 0.0     # the same in evaluation; 0: room for every token, so that no row depends on its batch
    group_size: int = 8            # rows whose tokens compete for places; config.group_size, if set, overrides it
    priority: bool = True          # batch priority routing: the surest tokens first (V-MoE, section 4)
    noise: float = 1.0             # router logits get normal noise of standard deviation noise / E in training (V-MoE)
    jitter: float = 0.0            # the router's input is multiplied by uniform numbers in 1 +- jitter in training (Switch)
    dropout: float = 0.0           # of what the experts give, in training
    every: int = 2                 # mixtures replace the MLP of blocks every - 1, 2 * every - 1, ...
    layers: tuple = ()             # or of exactly these blocks, the first being 0


def make(where, given, depth, drop_path=0.0, scan=False):
    """`Options` of config.<where>.experts, a mapping; None without one.

    Args:
      depth, drop_path, scan: of the tower that the mixtures are in.

    Raises:
      ValueError: an option that isn't one or is out of range, or a tower that can't have mixtures.
    """
    if given is None:
        return None
    for key in given:
        if key not in Options._fields:
            raise ValueError(f"config.{where}.experts has no key {key!r}; there are {', '.join(Options._fields)}")
    o = Options(**given)
    ranges = {"num": o.num >= 1, "k": 1 <= o.k <= o.num, "capacity": o.capacity > 0, "eval_capacity": o.eval_capacity >= 0,
              "group_size": o.group_size >= 1, "noise": o.noise >= 0, "jitter": 0 <= o.jitter < 1, "dropout": 0 <= o.dropout < 1,
              "every": o.every >= 1}
    for key, good in ranges.items():
        if not good:
            raise ValueError(f"config.{where}.experts.{key}={getattr(o, key)!r} is out of range: there are {o.num} experts")
    mixture_layers(o, depth)
    if drop_path or scan:
        raise ValueError(f"config.{where}: a tower with experts has unlike blocks: set scan=False and drop_path=0")
    return o


def capacity(tokens, options, factor=None):
    """Places of an expert in a group of so many tokens: V-MoE's, rounded up to a multiple of 4. factor: or options.capacity."""
    places = math.ceil(round(tokens * options.k * (factor or options.capacity) / options.num, 6))
    return max(4 * math.ceil(places / 4), 4)


def mixture_layers(options, depth):
    """Numbers of the blocks, out of `depth`, whose MLP is a mixture.

    Raises:
      ValueError: a layer outside the tower, or none at all.
    """
    chosen = tuple(options.layers) or tuple(range(options.every - 1, depth, options.every))
    if not chosen or sorted(set(chosen)) != list(chosen) or chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(f"experts: the mixtures are blocks {chosen} of {depth}, counted from 0: name some, in order, by "
                         "layers=(...)")
    return chosen


# ---- routing: which token goes where ----


def places(gates, k, size, priority):
    """Where the tokens of one group go.

    Args:
      gates: float32 (T, E). size: places of an expert, C. priority: whether tokens come in the order of their largest gate.

    Returns:
      gate float32 (T, k), the chosen gates; expert int32 (T, k); place int32 (T, k) in [0, E * C), E * C where there is no room.
      First choices of all tokens come before second choices; ties keep the order of the tokens, and of the experts.
    """
    tokens, experts = gates.shape
    gate, expert = jax.lax.top_k(gates, k)
    order = jnp.argsort(-gate[:, 0], stable=True) if priority else jnp.arange(tokens)
    arriving = expert[order].T.reshape(-1)                                          # (k * T,), choice by choice
    before = jnp.cumsum(jax.nn.one_hot(arriving, experts, dtype=jnp.int32), axis=0)
    position = jnp.take_along_axis(before, arriving[:, None], axis=1)[:, 0] - 1
    position = position.reshape(k, tokens).T[jnp.argsort(order)]                    # back in the order of the tokens
    return gate, expert, jnp.where(position < size, expert * size + position, experts * size)


# ---- the experts ----


def apply_experts(params, x, gate, place, num, size, act, parted=True):
    """What the experts give each token, weighted by its gates: (G, T, D) of x (G, T, D), gate and place (G, T, k).

    params: in/kernel (E, D, F), in/bias (E, F), out/kernel (E, F, D), out/bias (E, D), in the dtype of x; inside a `shard_map` with
    the axis expert those of this device only. num, size: E and C. Under an ambient mesh each device holds whole groups, and
    with `parted` its share of the experts, to which their tokens travel; else all of them.
    """
    axes, devices = mesh_lib.ambient_batch_axes()
    run = partial(_visit, num=num, size=size, act=act)
    if not axes:
        return run(params, x, gate, place)
    if x.shape[0] % devices:
        raise ValueError(f"{x.shape[0]} groups of experts can't be shared by {devices} devices: each holds whole groups of "
                         "config.group_size rows")
    split, held = PartitionSpec(axes), PartitionSpec("expert" if parted and "expert" in axes else None)
    return jax.shard_map(run, in_specs=(held, split, split, split), out_specs=split, axis_names=set(axes))(params, x, gate, place)


def _visit(params, x, gate, place, num, size, act):
    groups, _, width = x.shape
    parted = len(params["in"]["kernel"]) < num   # this device holds some of the experts

    def send(x, place):
        rows, at = jnp.repeat(x, place.shape[1], axis=0), place.reshape(-1)
        at = jnp.where(at < num * size, at, num * size + jnp.arange(len(at)))   # those without room too are in different places
        return jnp.zeros((num * size, width), x.dtype).at[at].set(rows, mode="drop", unique_indices=True)
    sent = jax.vmap(send)(x, place).reshape(groups, num, size, width).swapaxes(0, 1).reshape(num, groups * size, width)
    if parted:   # each expert's tokens to the device that holds it
        sent = jax.lax.all_to_all(sent, "expert", 0, 1, tiled=True)
    hidden = jnp.einsum("ecd,edf->ecf", sent, params["in"]["kernel"]) + params["in"]["bias"][:, None]
    given = jnp.einsum("ecf,efd->ecd", ACTIVATIONS[act](hidden), params["out"]["kernel"]) + params["out"]["bias"][:, None]
    if parted:
        given = jax.lax.all_to_all(given, "expert", 1, 0, tiled=True)
    given = given.reshape(num, groups, size, width).swapaxes(0, 1).reshape(groups, num * size, width)

    def receive(given, gate, place):
        found = given.at[place].get(mode="fill", fill_value=0)                      # (T, k, D)
        return jnp.einsum("tkd,tk->td", found, gate.astype(found.dtype))
    return jax.vmap(receive)(given, gate, place)


def apply_dropless(params, x, gate, expert, num, act):
    """The same with room for every token: x (B, N, D), gate and expert (B, N, k) -> (B, N, D). Each device needs all experts.

    Tokens are sorted by expert and multiplied in blocks of one expert each, so that it costs little more than the tokens do; a
    ragged product would multiply all tokens by all experts where the backend has no kernel for it, as on CPUs.
    """
    def run(params, x, gate, expert):
        if len(params["in"]["kernel"]) < num:
            params = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, "expert", tiled=True), params)
        rows, choice, k = x.reshape(-1, x.shape[-1]), expert.reshape(-1), expert.shape[-1]
        count = len(choice)
        size = max(1, min(256, count // num))
        order, sizes = jnp.argsort(choice, stable=True), jnp.bincount(choice, length=num)
        blocks = -(-sizes // size)
        first, ends = jnp.cumsum(sizes) - sizes, jnp.cumsum(blocks)

        def block(number):
            e = jnp.minimum(jnp.sum(ends <= number), num - 1)   # blocks after the last are empty
            at = first[e] + (number - ends[e] + blocks[e]) * size + jnp.arange(size)
            mine = order[jnp.minimum(at, count - 1)]
            own = jax.tree.map(lambda leaf: leaf[e], params)
            hidden = rows[mine // k] @ own["in"]["kernel"] + own["in"]["bias"][None]
            given = ACTIVATIONS[act](hidden) @ own["out"]["kernel"] + own["out"]["bias"][None]
            return given, jnp.where(at < first[e] + sizes[e], mine, count)
        given, where = jax.lax.map(block, jnp.arange(count // size + num))
        given = jnp.zeros((count, x.shape[-1]), given.dtype).at[where.reshape(-1)].set(given.reshape(-1, x.shape[-1]), mode="drop")
        return jnp.einsum("bnkd,bnk->bnd", given.reshape(*expert.shape, -1), gate.astype(given.dtype))
    axes, devices = mesh_lib.ambient_batch_axes()
    if not axes or x.shape[0] % devices:
        return run(params, x, gate, expert)

    def local(params, *tokens):
        return run(jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), params), *tokens)
    split, one = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(local, in_specs=(one, split, split, split), out_specs=split, axis_names=set(axes))(params, x, gate, expert)


# ---- the layer ----


class Mixture(nn.Module):
    """In place of an `Mlp`: (B, N, W) tokens of B rows -> the same shape, and what the router did.

    Called with `sizes`, how many tokens of a row belong to each of M modalities in turn (they add up to N), and `keys`, a typed key
    for each group in training. In evaluation (None) there is no noise and, unless options.eval_capacity limits it, room for all.

    The second result is a dict of float32 sums over the tokens of each row and modality: "probability" and "chosen" (B, M, E),
    "win" (B, M, E; training with noise), "entropy", "squared_lse", "kept" (B, M). In evaluation the collection "routes", if it is
    mutable, gets "expert" int32, "gate" float32 and "kept" bool of each token, (B, N, k).
    """
    options: Options
    hidden: int
    act: str = "gelu"
    dtype: Any = jnp.float32
    out_std: float | None = None

    @nn.compact
    def __call__(self, x, sizes, keys=None):
        batch, count, width = x.shape
        o = self.options
        kernel = self.param("router", nn.initializers.normal(width ** -0.5), (width, o.num))
        experts = _Experts(o.num, self.hidden, width, self.out_std, name="experts")()
        experts = jax.tree.map(lambda leaf: leaf.astype(self.dtype), experts)
        rows = lambda a: a.reshape(batch, count, *a.shape[2:])
        if keys is None and not o.eval_capacity:
            logits = _logits(x, kernel)
            gates = jax.nn.softmax(logits)
            gate, expert = jax.lax.top_k(gates, o.k)
            kept = jnp.ones(gate.shape, bool)
            self._note(expert, gate, kept)
            return apply_dropless(experts, x, gate, expert, o.num, self.act), _sums(logits, gates, expert, kept, sizes)
        groups = _groups(batch, o.group_size) if keys is None else len(keys)
        if batch % groups:
            raise ValueError(f"{batch} rows can't be cut into {groups} groups")
        grouped = x.reshape(groups, -1, width)
        size = capacity(grouped.shape[1], o, None if keys is not None else o.eval_capacity)
        logits, noisy = _noisy(grouped, kernel, keys, o)
        gate, expert, place = jax.vmap(partial(places, k=o.k, size=size, priority=o.priority))(jax.nn.softmax(noisy))
        where = constrain.rooted("/".join((*self.path, "experts/in/kernel")))
        parted = constrain.placement(where, (o.num, width, self.hidden))[1][:1] == ("expert",)
        y = apply_experts(experts, grouped, gate, place, o.num, size, self.act, parted)
        if o.dropout and keys is not None:
            keep = _draw(keys, 2, lambda key: jax.random.bernoulli(key, 1 - o.dropout, y.shape[1:]))
            y = jnp.where(keep, y / (1 - o.dropout), 0)
        kept = rows(place) < o.num * size
        if keys is None:
            self._note(rows(expert), rows(gate), kept)
        win = rows(routing.win(logits, noisy, o.noise / o.num, o.k)) if o.noise and keys is not None else None
        return y.reshape(x.shape), _sums(rows(logits), jax.nn.softmax(rows(logits)), rows(expert), kept, sizes, win)

    def _note(self, expert, gate, kept):
        for name, value in (("expert", expert), ("gate", gate), ("kept", kept)):
            self.sow("routes", name, value, reduce_fn=lambda _, new: new)


def _groups(batch, size):
    """Groups of an evaluation's batch: of `size` rows, or one of all where they don't divide it."""
    return 1 if batch % size else batch // size


def _draw(keys, number, sample):
    return jax.vmap(lambda key: sample(jax.random.fold_in(key, number)))(keys)


def _noisy(x, kernel, keys, o):
    """Logits of tokens (G, T, D) before and after noise; in evaluation there is none."""
    if keys is not None and o.jitter:
        x = x * _draw(keys, 0, lambda key: jax.random.uniform(key, x.shape[1:], x.dtype, 1 - o.jitter, 1 + o.jitter))
    logits = _logits(x, kernel)
    if keys is None or not o.noise:
        return logits, logits
    return logits, logits + o.noise / o.num * _draw(keys, 1, lambda key: jax.random.normal(key, logits.shape[1:]))


class _Experts(nn.Module):
    """Parameters of E two-layer networks, each initialised by itself."""
    num: int
    hidden: int
    width: int
    out_std: float | None

    @nn.compact
    def __call__(self):
        return {"in": _Dense(self.num, self.width, self.hidden, (2 * self.width) ** -0.5, name="in")(),
                "out": _Dense(self.num, self.hidden, self.width, self.out_std or self.hidden ** -0.5, name="out")()}


class _Dense(nn.Module):
    num: int
    inputs: int
    outputs: int
    std: float

    @nn.compact
    def __call__(self):
        if not self.is_initializing():   # without a look at their shapes: a device may hold some of the experts
            return {name: self.get_variable("params", name) for name in ("kernel", "bias")}
        return {"kernel": self.param("kernel", nn.initializers.normal(self.std), (self.num, self.inputs, self.outputs)),
                "bias": self.param("bias", nn.initializers.zeros, (self.num, self.outputs))}


def _logits(x, kernel):
    """Router logits in float32 at the highest precision, whatever the dtype of x: small differences decide."""
    return jnp.einsum("...d,de->...e", x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)


def _sums(logits, gates, expert, kept, sizes, win=None):
    """Per row and modality; see `Mixture`. logits, gates, win (B, N, E); expert, kept (B, N, k)."""
    per_token = {"probability": gates, "chosen": jax.nn.one_hot(expert, gates.shape[-1]).sum(2), "entropy": routing.entropy(gates),
                 "squared_lse": routing.squared_lse(logits), "kept": kept.astype(jnp.float32).mean(2)}
    if win is not None:
        per_token["win"] = win
    ends = [sum(sizes[:i]) for i in range(1, len(sizes))]
    return {name: jnp.stack([part.sum(1) for part in jnp.split(value, ends, axis=1)], axis=1) for name, value in per_token.items()}
