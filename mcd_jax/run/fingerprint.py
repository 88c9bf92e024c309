"""32-bit fingerprints of arrays, to notice a stored state that is not what was saved."""
import jax
import jax.numpy as jnp


def flat(tree):
    """{path: leaf} with paths such as "params/image/block_0/kernel"."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x
            for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def fingerprints(tree):
    """{path: int} 32-bit sums over the bits of each leaf and their positions: exact, and the same under any sharding."""
    return {k: int(v) for k, v in jax.device_get(_fingerprints(flat(tree))).items()}


@jax.jit
def _fingerprints(leaves):
    return {path: _fingerprint(x) for path, x in leaves.items()}


def _fingerprint(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    size = min(x.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(jnp.uint32)
    position = jnp.full(bits.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(bits.ndim):
        position = position * jnp.uint32(0x01000193) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (position * jnp.uint32(0x85EBCA6B))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
