"""The peak of each chip: FLOP/s, memory, bandwidth. `count_flops.count` counts what a step does."""
# dense bf16 FLOP/s of one JAX device: v2 and v3 have two devices per chip (the vendor's figure is per chip), the others one.
# Sources: cloud.google.com/tpu/docs/system-architecture and the NVIDIA data sheets (without sparsity)
PEAK = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

# per JAX device: bytes of memory, bytes/s to it, bytes/s to the neighbours over all links (the vendor's Gbit/s / 8). Same sources
MEMORY = {
    "TPU v2": (8 * 2 ** 30, 350e9, 62e9),
    "TPU v3": (16 * 2 ** 30, 450e9, 82e9),
    "TPU v4": (32 * 2 ** 30, 1228e9, 300e9),
    "TPU v5 lite": (16 * 2 ** 30, 819e9, 200e9),
    "TPU v5e": (16 * 2 ** 30, 819e9, 200e9),
    "TPU v5": (95 * 2 ** 30, 2765e9, 600e9),
    "TPU v5p": (95 * 2 ** 30, 2765e9, 600e9),
    "TPU v6 lite": (32 * 2 ** 30, 1640e9, 448e9),
    "TPU v6e": (32 * 2 ** 30, 1640e9, 448e9),
}


def peak(kind):
    """FLOP/s of one device of this `device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3", ...); None if unknown, as for a CPU."""
    names = [name for name in PEAK if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK[max(names, key=len)] if names else None
