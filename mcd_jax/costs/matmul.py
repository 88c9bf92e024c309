"""The matmul peak of this machine: `python -m mcd_jax.costs.matmul [size]` prints one JSON line."""
import json
import sys
import time

import jax
import jax.numpy as jnp


def measure(size=2048, dtype="float32", repeats=4):
    """FLOP/s of the best of `repeats` multiplications of two (size, size) matrices on one device (2 * size**3 FLOPs each).

    On CPU one device uses every core, so this is the peak of the machine whatever the number of fake devices.
    """
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def main():
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    print(json.dumps({"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "size": size,
                      **{f"{dtype}_flops_per_sec": measure(size, dtype) for dtype in ("float32", "bfloat16")}}))


if __name__ == "__main__":
    main()
