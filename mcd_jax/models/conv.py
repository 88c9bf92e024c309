"""Convolution without bias, and with a kernel gradient that suits a CPU's cache."""
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Conv(nn.Module):
    """(B, H, W, C) -> (B, h, w, width) by a `side` x `side` kernel; parameter "kernel" (side, side, C, width).

    Padded by (side - 1) // 2 zeros, or not at all when the stride is the side (patches). `grad_rows`: see `sliced`; 0 is off.
    """
    width: int
    side: int
    stride: int = 1
    grad_rows: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.side, self.side, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.side == 1:
            return x @ kernel[0, 0]
        padding = 0 if self.stride == self.side else (self.side - 1) // 2
        if self.grad_rows and self.stride == 1:
            return sliced(x, kernel, padding, self.grad_rows)
        return convolve(x, kernel, self.stride, padding)


def convolve(x, kernel, stride, padding):
    """x (B, H, W, C), kernel (s, s, C, D) -> (B, h, w, D)."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def sliced(x, kernel, padding, rows):
    """`convolve` with stride 1, whose kernel gradient is summed over slices of `rows` examples. Reverse mode only.

    XLA's CPU backend computes that gradient as one convolution whose kernel is the whole batch, at a quarter of the speed of the
    other two on early stages; slices of 8 to 32 examples stay in the cache. Leave it off on accelerators, and where a batch is
    split over devices, which would have to gather it.
    """
    return convolve(x, kernel, 1, padding)


def _forward(x, kernel, padding, rows):
    return convolve(x, kernel, 1, padding), (x, kernel)


def _backward(padding, rows, saved, grad):
    x, kernel = saved
    _, to_x = jax.vjp(lambda x: convolve(x, kernel, 1, padding), x)
    total = jnp.zeros(kernel.shape, jnp.float32)
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        _, to_kernel = jax.vjp(lambda k, part=part: convolve(x[part], k, 1, padding), kernel)
        total = total + to_kernel(grad[part])[0].astype(jnp.float32)
    return to_x(grad)[0], total.astype(kernel.dtype)


sliced.defvjp(_forward, _backward)
