"""Small networks on top of an embedding: those that give its hash code, and those that weigh its channels before that.

Embeddings are float32 (B, D), before they are made unit; codes are float32 (B, K), and the sign of a code is its bits.
"""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

HIDDEN = 128   # of `select`, as published


class Head(NamedTuple):
    init: Callable[[jax.Array], dict]    # (key) -> params
    apply: Callable[..., jax.Array]   # (params, x (B, D)) -> (B, ...) float32


class _Tanh(nn.Module):
    bits: int
    start: str = "flax"

    @nn.compact
    def __call__(self, x, dropped=None):
        bound = x.shape[-1] ** -0.5   # of torch.nn.Linear's weights and biases, uniform
        uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
        how = dict(kernel_init=uniform, bias_init=uniform) if self.start == "torch" else {}
        y = nn.Dense(self.bits, name="out", **how)(x)
        return jnp.tanh(y if dropped is None else y * dropped)


class _Select(nn.Module):
    bits: int

    @nn.compact
    def __call__(self, x):
        kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "uniform")   # kaiming_uniform_(mode="fan_out"), biases 0
        x = nn.relu(nn.Dense(HIDDEN, kernel_init=kaiming, name="in")(x))
        layers = lambda key, shape, dtype: jnp.concatenate(   # each bit has a layer of its own, with two outputs
            [kaiming(k, (shape[0], 2), dtype) for k in jax.random.split(key, self.bits)], axis=1)
        logits = nn.Dense(2 * self.bits, kernel_init=layers, name="out")(x)
        return nn.softmax(logits.reshape(*x.shape[:-1], self.bits, 2))


class _Gate(nn.Module):
    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        y = nn.relu(nn.Dense(max(1, width // 4), name="in")(nn.LayerNorm(name="norm")(x)))
        return nn.sigmoid(nn.Dense(width, bias_init=nn.initializers.constant(4.0), name="out")(y))


class _Channels(nn.Module):
    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        y = nn.relu(nn.Dense(max(1, width // 4), name="in")(x))
        return width * nn.softmax(nn.Dense(width, kernel_init=nn.initializers.zeros_init(), name="out")(y))


def tanh(width: int, bits: int, start: str = "flax") -> Head:
    """tanh(W x + b): (B, width) -> (B, bits) in (-1, 1). `apply` takes (B, bits) factors of W x + b as well, for a dropout.

    start: what W and b are at first: "flax", LeCun's normal and 0; "torch", uniform in +- width ** -0.5, as torch.nn.Linear.
    """
    return _head(_Tanh(bits, start), width)


def select(width: int, bits: int) -> Head:
    """DCHMT's hash layer: relu, then for each bit a softmax over "off" and "on": (B, width) -> (B, bits, 2).

    Source: kalenforn/DCHMT, model/hash_model.py, `HashLayer` and `weights_init_kaiming`.
    """
    return _head(_Select(bits), width)


def gate(width: int) -> Head:
    """AHLR-R's p = sigmoid(W2 relu(W1 LN(x))): how much each channel says, (B, width) in (0, 1), about .98 at first."""
    return _head(_Gate(), width)


def channels(width: int) -> Head:
    """AHLR-R's weights of the channels, width * softmax(W4 relu(W3 x)): (B, width), rows of sum `width`, all 1 at first."""
    return _head(_Channels(), width)


def _head(module, width):
    return Head(init=lambda key: module.init(key, jnp.zeros((1, width)))["params"],
                apply=lambda params, x, *more: module.apply({"params": params}, x.astype(jnp.float32), *more))


def keep_largest(p: jax.Array, share: float | jax.Array, whole_batch: bool = False) -> jax.Array:
    """float32 mask (B, D), no gradient: 1 at the ceil(share * D) largest channels of each row of p; of equal ones the first.

    Args:
      share: () in (0, 1], may be traced. ceil forgives 1e-4 of a channel, as float32 can't hold a share of 0.7.
      whole_batch: one mask for all rows, by the mean of p.
    """
    p = jax.lax.stop_gradient(p)
    scores = jnp.mean(p, axis=0, keepdims=True) if whole_batch else p
    count = jnp.ceil(share * p.shape[1] - 1e-4).astype(jnp.int32)
    least = jnp.take(jnp.sort(scores, axis=1), p.shape[1] - count, axis=1)[:, None]   # one sort is faster than two argsorts
    above, equal = scores > least, scores == least
    mask = above | (equal & (jnp.cumsum(equal, axis=1) <= count - jnp.sum(above, axis=1, keepdims=True)))
    return jnp.broadcast_to(mask, p.shape).astype(jnp.float32)
