"""Speed of the train step alone, on one batch that stays on the device; prints one JSON line.

python -m mcd_jax.bench.step [--config=configs/mcd_emoji.py] [--steps=10] [--config.key=value ...]
"""
import json
import statistics
import sys
import time

from absl import app, flags
import jax
from ml_collections import config_flags

from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax import mesh as mesh_lib
from mcd_jax import metrics


def measure(config, steps):
    """The figures of `steps` train steps of `config`.

    Returns:
      {"examples_per_sec", "step_seconds" (median), "compile_seconds", "flops_per_step" (the model's own, counted from its
      matmuls and convolutions), "flops_per_sec", "peak_flops_per_sec" (of the devices, or on CPU the best float32 matmul
      measured before and after), "peak_share", ...}.

    Raises:
      ValueError: the config doesn't fit together.
    """
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        batch = mesh_lib.to_global(job.pipeline.batch(0), job.mesh)
        state = job.init(jax.random.key(config.seed))
        peak = metrics.peak_flops()
        start = time.perf_counter()
        step = job.step.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - start
        seconds = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            state, report = step(state, batch)
            jax.block_until_ready((state, report))
            seconds.append(time.perf_counter() - start)
    job.pipeline.close()
    peak = max(peak, metrics.peak_flops()) if peak else peak
    median, work = statistics.median(seconds[1:]), job.flops()
    return {"objective": config_lib.title(config.objective), "batch_size": config.batch_size,
            "device": jax.devices()[0].device_kind, "devices": job.mesh.size, "steps": steps,
            "examples_per_sec": config.batch_size / median, "step_seconds": median,
            "compile_seconds": compile_seconds, "flops_per_step": work, "flops_per_sec": work / median,
            "peak_flops_per_sec": peak, "peak_share": work / median / peak if peak else None,
            "loss": float(report["loss"]), "memory_bytes": metrics.device_memory()}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    try:
        print(json.dumps(measure(flags.FLAGS.config, flags.FLAGS.steps)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":   # not before: `mcd_jax.train` has a flag of the same name
    config_flags.DEFINE_config_file("config", "configs/mcd_emoji.py", "a file of configs/")
    flags.DEFINE_integer("steps", 10, "how many steps to time", lower_bound=1)
    app.run(main)
