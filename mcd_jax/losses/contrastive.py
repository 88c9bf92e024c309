"""Contrastive losses between two sets of matching embeddings. Inputs of any float type; inside, float32.

Each has two forms, equal in value and gradient. "gather": one product of all pairs, of which a device computes its rows. "ring":
tiles, with embeddings that travel from device to device (`mcd_jax.sharding.ring`); memory grows with the rows of a device, not with
rows x batch, for a third more matmul work. "ring_bf16": the same with keys rounded to bfloat16, half the traffic. "auto" takes the
ring where the logits of a device would exceed `GATHER_BYTES`.
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import ring

IMPLEMENTATIONS = ("auto", "gather", "ring", "ring_bf16")
GATHER_BYTES = 128 * 2 ** 20   # of one matrix of logits: a loss keeps three or four, about 3 % of the smallest HBM in use (16 GB)


def check_implementation(implementation: str) -> None:
    """Raises ValueError unless `implementation` is one of IMPLEMENTATIONS."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"config.objective.implementation={implementation!r} must be one of {', '.join(IMPLEMENTATIONS)}")


def picks_ring(rows: int, keys: int, implementation: str) -> bool:
    """Whether a loss over rows x keys of the global batch runs as a ring. The rule of "auto": 4 bytes * rows * keys / devices."""
    check_implementation(implementation)
    return implementation.startswith("ring") or (implementation == "auto" and 4 * rows
                                                 * keys / mesh_lib.ambient_batch_axes()[1] > GATHER_BYTES)


def transport(implementation: str) -> Any:
    """The dtype in which keys travel, None for their own."""
    return jnp.bfloat16 if implementation == "ring_bf16" else None


def seen(y: jax.Array, implementation: str) -> jax.Array:
    """Keys y as sums over all pairs see them: float32, rounded to bfloat16 by "ring_bf16". The gradient passes as if they were not.

    What stands beside such a sum, a positive or a teacher's logits, must read the same keys: else the loss is off by what rounding
    does to its largest logits, nats at a scale of 1000.
    """
    if transport(implementation) is None:
        return y
    y = y.astype(jnp.float32)
    return y + jax.lax.stop_gradient(jax.lax.reduce_precision(y, 8, 7) - y)   # XLA leaves casts there and back out


def similarity(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner products (B, C) float32 of x (B, D) and y (C, D), at the highest matmul precision.

    An accelerator's default precision rounds to bfloat16: percents of gradient at a scale of 100.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _split(jnp.einsum("bd,cd->bc", x, y, precision=jax.lax.Precision.HIGHEST))


def lse(x: jax.Array, y: jax.Array, scale: float | jax.Array, allow: Callable | None = None, row_aux: Any = (), key_aux: Any = (),
        columns: bool = True, implementation: str = "auto", factor: Callable | None = None) -> tuple[jax.Array, jax.Array | None]:
    """log(sum_j exp(scale * x_i . y_j)) over the keys j of each row and over the rows of each key, (B,) and (C,) float32.

    Args:
      x, y: (B, D), (C, D).
      scale: () inverse temperature.
      allow: None, or which pairs enter, as `ring.lse` takes it, with `row_aux` and `key_aux`, for example `ring.off_diagonal`.
      columns: False gives None for the keys and saves their work.
      factor: None, or by what the inner products are multiplied, as `ring.lse` takes it; no gradient.
    """
    out = sums(x, y, scale, allow, row_aux, key_aux, columns, implementation, factor)
    return out.row_lse, out.key_lse


def sums(x: jax.Array, y: jax.Array, scale: float | jax.Array, allow: Callable | None = None, row_aux: Any = (), key_aux: Any = (),
         columns: bool = True, implementation: str = "auto", factor: Callable | None = None,
         target: Callable | None = None, own: str = "") -> ring.Sums:
    """The `ring.Sums` of `lse`'s arguments: log-sum-exps and, given `target` as `ring.lse` takes it, sums of weight * logit.

    Without `columns` those of the keys are None. own: "", or the name in `key_aux`, a dict, by which the functions find y itself.
    """
    if picks_ring(len(x), len(y), implementation):
        out = ring.lse(x, y, scale, 0.0, row_aux, key_aux, allow=allow, columns=columns, factor=factor, target=target,
                       transport=transport(implementation), own=own)
        return out if columns else out._replace(key_lse=None, key_target=None)
    key_aux = {**key_aux, own: y} if own else key_aux
    raw_BC, (row_aux, key_aux) = scale * similarity(x, y), jax.lax.stop_gradient((row_aux, key_aux))
    numbers = jnp.arange(len(x))[:, None], jnp.arange(len(y))[None, :]
    if factor is not None:
        raw_BC *= factor(row_aux, key_aux, *numbers)
    logits_BC = raw_BC if allow is None else jnp.where(allow(row_aux, key_aux, *numbers), raw_BC, ring.NEVER)
    of_rows, of_keys = (0.0, 0.0) if target is None else jax.lax.stop_gradient(target(row_aux, key_aux, *numbers))
    return ring.Sums(jax.nn.logsumexp(logits_BC, axis=1), jax.nn.logsumexp(logits_BC, axis=0) if columns else None,
                     jnp.sum(of_rows * raw_BC, axis=1), jnp.sum(of_keys * raw_BC, axis=0) if columns else None)


def softmax(x: jax.Array, y: jax.Array, scale: float | jax.Array, implementation: str = "auto",
            weights: jax.Array | None = None) -> jax.Array:
    """Symmetric InfoNCE, mean of the cross-entropies x -> y and y -> x over the batch, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).
      weights: (B,) by which the cross-entropies of pair i are multiplied, or None: 1; no gradient.

    Source: Radford et al. 2021 (CLIP), figure 3. Both sides of every pair of the global batch get gradient.
    """
    rows, columns = lse(x, y, scale, implementation=implementation)
    positive = scale * matching(x, seen(y, implementation))
    if weights is not None:
        return jnp.mean(jax.lax.stop_gradient(weights) * 0.5 * (rows + columns - 2 * positive))
    return 0.5 * (jnp.mean(rows - positive) + jnp.mean(columns - positive))


def one_way(x: jax.Array, y: jax.Array, scale: float | jax.Array, implementation: str = "auto") -> jax.Array:
    """The half of `softmax` that goes from x to y: the mean cross-entropy of the rows alone, () float32, nats."""
    rows, _ = lse(x, y, scale, columns=False, implementation=implementation)
    return jnp.mean(rows - scale * matching(x, seen(y, implementation)))


def sigmoid(x: jax.Array, y: jax.Array, scale: float | jax.Array, bias: float | jax.Array,
            implementation: str = "auto") -> jax.Array:
    """Pairwise sigmoid loss: sum over all B * B pairs of -log sigmoid(+-logit), over B, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).
      bias: () added to every logit.

    Source: Zhai et al. 2023 (SigLIP), algorithm 1.
    """
    if picks_ring(len(x), len(y), implementation):
        shared = jnp.float32(scale), jnp.float32(bias)
        return ring.pair_sum(_sigmoid_pairs, x, y, shared, transport=transport(implementation)) / len(x)
    numbers = jnp.arange(len(x))
    return jnp.sum(_sigmoid_pairs(x, y, (scale, bias), (), (), numbers[:, None], numbers[None, :])) / len(x)


def _sigmoid_pairs(x, y, shared, row_aux, key_aux, i, j):
    scale, bias = shared
    logits = scale * similarity(x, y) + bias
    return jax.nn.softplus(jnp.where(i == j, -logits, logits))


def matching(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner product of row i of x (B, D) with row i of y (B, D), (B,) float32."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)


def nearest(x: jax.Array, y: jax.Array, implementation: str = "auto") -> jax.Array:
    """For each row of x (B, D) the number of the row of y (C, D) with the largest inner product, int (B,); a tie: the first."""
    return ring.nearest(x, y) if picks_ring(len(x), len(y), implementation) else jnp.argmax(similarity(x, y), axis=1)


def accuracy(x: jax.Array, y: jax.Array, implementation: str = "auto") -> jax.Array:
    """Share of rows of x (B, D) whose nearest row of y (B, D) is their own, () float32 (a tie: the first)."""
    return jnp.mean((nearest(x, y, implementation) == jnp.arange(x.shape[0])).astype(jnp.float32))


def _split(logits):
    """Each device keeps the rows of its part of the batch; where there are more keys than rows, the columns of its keys."""
    axes, devices = mesh_lib.ambient_batch_axes()
    side = int(logits.shape[1] > logits.shape[0])
    if not axes or logits.shape[side] % devices:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec(*[None] * side, axes))
