"""Embeddings of host batches by a trained state: one compiled function for any number of rows.

`mcd-jax embed --workdir=... --out=...` writes those of a whole source into a file: see `store`.
"""
from collections.abc import Callable, Sequence
import functools
from typing import Any

from absl import logging
import jax
import numpy as np

from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, Tree
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.step import State


def parameters(state: State, weights_from: str) -> Tree:
    """The parameter tree that `weights_from` names, locked towers in their places.

    Args:
      state: a `State`.
      weights_from: "params" or "init" (the caller passes a state with fresh parameters): `state.params`; "memory/<path>": the tree
        at that path of `state.memory`, whose keys replace those of `state.params` (a teacher of the towers keeps the rest).

    Raises:
      ValueError: no such path; the message lists what there is.
    """
    if weights_from in ("params", "init"):
        return two_tower.merge_locked(state.params, state.memory)
    root, *path = weights_from.split("/")
    node, seen = (state.memory, root) if root == "memory" and path else (None, root)
    for key in path if node is not None else ():
        if not isinstance(node, dict) or key not in node:
            known = ", ".join(f"{seen}/{k}" for k in node) if isinstance(node, dict) and node else "nothing"
            raise ValueError(f"weights_from={weights_from!r}: this run's {seen} holds {known}; 'params' and 'init' always exist")
        node, seen = node[key], f"{seen}/{key}"
    if not isinstance(node, dict):
        held = ", ".join(f"memory/{k}" for k in state.memory) if isinstance(state.memory, dict) else ""
        raise ValueError(f"weights_from={weights_from!r} names no parameters: there are "
                         f"{', '.join(filter(None, ['params', 'init', held]))}")
    return two_tower.merge_locked({**state.params, **node}, state.memory)


def make_embed(objective: Objective, weights_from: str = "params", batch_size: int = 256, place: Callable | None = None,
               held: Sequence[int] | None = None, heads: tuple[str, ...] = ("embed",)) -> Callable:
    """embed(state, batch) -> embeddings, compiled once for each set of batch keys.

    Args:
      objective: an `Objective`; its `heads` of these names do the work, in one function: what they share is computed once.
      weights_from: which parameters, see `parameters`.
      batch_size: rows per call of the compiled function. Short batches are padded by repeating their last row, long ones split.
      place: host batch of `batch_size` rows -> device batch (sharded over a mesh); None: left to jax.jit.
      held: on several processes, the rows of such a batch that this process's devices take from its host arrays.

    Returns:
      embed(state, batch): `batch` maps keys to host arrays with any equal number of rows n >= 1; the result maps the head's keys
      ("image", "text": unit; "image_raw", "text_raw") to (n, D) float32 numpy arrays, of the modalities in the batch. With `held`
      it has the attributes held, batch_size and exchange: a batch of at most `batch_size` rows of which each process has filled
      its own -> the whole, in every process. gives(state, batch) -> the head's keys for such a batch, a set; nothing is compiled.
      heads: the names of all of the objective's heads; head(name) -> such a function of another one, else ValueError. pooled: the
      objective's.
    """
    head = jax.jit(_together(objective, heads))  # the same function again shares what is compiled

    def embed(state, batch):
        if not objective.pooled and "embed" in heads:
            _say_untrained()
        params = parameters(state, weights_from)
        sizes = {key: len(value) for key, value in batch.items()}
        rows = next(iter(sizes.values()), 0)
        if rows < 1 or set(sizes.values()) != {rows}:
            raise ValueError(f"a batch to embed needs arrays with the same number of rows, at least one: got {sizes}")
        parts = []
        for start in range(0, rows, batch_size):
            part = {key: value[start:start + batch_size] for key, value in batch.items()}
            count = min(batch_size, rows - start)
            part = {key: pad(value, batch_size) for key, value in part.items()}
            out = head(params, state.memory, place(part) if place else part)
            parts.append({key: np.asarray(_whole(value), np.float32)[:count] for key, value in out.items()})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def exchange(batch):
        whole = place({key: pad(value, batch_size) for key, value in batch.items()})
        return {key: np.asarray(_whole(value))[:len(batch[key])] for key, value in whole.items()}

    def gives(state, batch):
        shapes = {key: jax.ShapeDtypeStruct((batch_size, *np.shape(value)[1:]), value.dtype) for key, value in batch.items()}
        return set(jax.eval_shape(head, parameters(state, weights_from), state.memory, shapes))

    @functools.cache
    def other(name):
        if name not in objective.heads:
            raise ValueError(f"this run's objective has no head {name!r}: it has {', '.join(objective.heads)}")
        return make_embed(objective, weights_from, batch_size, place, held, (name,))

    embed.gives, embed.heads, embed.head, embed.pooled = gives, frozenset(objective.heads), other, objective.pooled
    if held is not None:
        embed.held, embed.batch_size, embed.exchange = np.asarray(held), batch_size, exchange
    return embed


@functools.cache
def _say_untrained():
    """Once."""
    logging.warning("this run's objective trained no pooled embeddings, and these are such: it compares tokens, and so do its "
                    "evaluations of retrieval and zero-shot classification")


def on_mesh(job: Any, weights_from: str = "params", batch_size: int = 256, heads: tuple[str, ...] = ("embed",)) -> Callable:
    """`make_embed` for the network of a `Job` or a `Trained`, rows shared by all devices of its mesh and all processes.

    batch_size: rows of a call, rounded up as `batch_rows` does.
    """
    size = batch_rows(batch_size, job.mesh)
    held = mesh_lib.local_rows(size, job.mesh) if jax.process_count() > 1 else None
    return make_embed(job.objective, weights_from, size, placement(job.mesh), held, heads)


def batch_rows(size: int, mesh: jax.sharding.Mesh) -> int:
    """`size` rounded up to what the devices of `mesh` can share evenly."""
    return -(-size // mesh.size) * mesh.size


def placement(mesh: jax.sharding.Mesh) -> Callable[[Tree], Tree]:
    """place(batch): host arrays of the whole batch -> arrays sharded over the batch axes of `mesh`, which take a process's rows."""
    sharding = mesh_lib.batch_sharding(mesh)

    def place(batch):
        return {key: jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
                for key, value in batch.items()}

    return place


def _together(objective, heads):
    """One head, or the outputs of several."""
    if len(heads) == 1:
        return objective.heads[heads[0]]

    def every(params, memory, batch):
        out = {}
        for name in heads:
            out |= objective.heads[name](params, memory, batch)
        return out
    return every


def pad(value: np.ndarray, size: int) -> np.ndarray:
    """`value` (n, ...) as an array of `size` rows: the last one is repeated."""
    value = np.asarray(value)
    return np.concatenate([value, np.repeat(value[-1:], size - len(value), axis=0)]) if len(value) < size else value


def _whole(value):
    """An output as an array that this process can read: gathered first when other processes hold parts of it."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return value
    return _replicate(value.sharding.mesh)(value)


@functools.lru_cache
def _replicate(mesh):
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)
