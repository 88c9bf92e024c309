"""Speed of the train step alone, on one batch that stays on the device; prints one JSON line.

python -m mcd_jax.bench.step [--config=mcd_emoji] [--steps=10] [--config.key=value ...]
python -m mcd_jax.bench.step --config=limoe_emoji --against=limoe_emoji:kind=dense

With --against both are measured in turn, a step of the one and a step of the other, so that a machine's other work falls on both.
"""
import json
import statistics
import time

from absl import flags
import jax

from mcd_jax import command
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.config import overrides
from mcd_jax.objectives import two_tower
from mcd_jax.run import metrics
from mcd_jax.sharding import mesh as mesh_lib
from mcd_jax.sharding import rules


def measure(config, steps):
    """The figures of `steps` train steps of `config`.

    Returns:
      {"examples_per_sec", "step_seconds" (median), "cpu_seconds" (of a step, the process's own, all threads), "compile_seconds",
      "flops_per_step" (the model's own, counted from its matmuls and convolutions), "flops_per_sec", "peak_flops_per_sec" (of the
      devices, or on CPU the best float32 matmul measured before and after), "peak_share", "program_bytes" (what the compiled step
      needs on a device: arguments, results and temporaries), "params" and "active_params" (of experts those that a token uses),
      ...}.

    Raises:
      ValueError: the config doesn't fit together.
    """
    return together([config], steps)[0]


def together(configs, steps):
    """`measure` of each config, their steps in turn."""
    runs = [_Run(config) for config in configs]
    peak = metrics.peak_flops()
    for _ in range(steps + 1):
        for run in runs:
            run.once()
    peak = max(peak, metrics.peak_flops()) if peak else peak
    return [run.figures(peak) for run in runs]


class _Run:
    """A compiled step with its state and one batch."""

    def __init__(self, config):
        self.job = job_lib.build(config)
        with jax.set_mesh(self.job.mesh):
            self.batch = mesh_lib.to_global(self.job.pipeline.batch(0), self.job.mesh)
            self.state = self.job.init(jax.random.key(config.seed))
            start = time.perf_counter()
            self.step = self.job.step.lower(self.state, self.batch).compile()
            self.compile_seconds = time.perf_counter() - start
        self.seconds, self.cpu, self.report = [], [], {}
        self.job.pipeline.close()

    def once(self):
        start, cpu = time.perf_counter(), time.process_time()
        with jax.set_mesh(self.job.mesh):
            self.state, self.report = jax.block_until_ready(self.step(self.state, self.batch))
        self.seconds.append(time.perf_counter() - start)
        self.cpu.append(time.process_time() - cpu)

    def figures(self, peak):
        config, job, median = self.job.config, self.job, statistics.median(self.seconds[1:])
        work, memory = job.flops(), self.step.memory_analysis()
        return {"objective": config_lib.title(config.objective), "batch_size": config.batch_size,
                "device": jax.devices()[0].device_kind, "devices": job.mesh.size, "steps": len(self.seconds) - 1,
                "examples_per_sec": config.batch_size / median, "step_seconds": median,
                "cpu_seconds": statistics.median(self.cpu[1:]), "compile_seconds": self.compile_seconds, "flops_per_step": work,
                "flops_per_sec": work / median, "peak_flops_per_sec": peak, "peak_share": work / median / peak if peak else None,
                "loss": float(self.report["loss"]), "memory_bytes": metrics.device_memory(),
                "program_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
                - memory.alias_size_in_bytes, **parameters(job)}


def parameters(job):
    """{"params", "active_params"}: how many the model has, and how many of them one token of each modality uses."""
    experts = two_tower.towers_of(job.config).experts
    sizes = {path: x.size for path, x in rules.paths(job.abstract.params).items()}
    active = 0
    for path, size in sizes.items():
        own = experts.get(path.split("/")[0].replace("shared", "image")) if "/experts/" in path else None
        active += size * own.k // own.num if own else size
    return {"params": sum(sizes.values()), "active_params": active}


def main(_):
    with command.sentences():
        configs = [config_lib.of_command(flags.FLAGS.config, overrides.given())]
        configs += [config_lib.from_file(flags.FLAGS.against)] if flags.FLAGS.against else []
        own, *other = together(configs, flags.FLAGS.steps)
        if other:
            own |= {f"{key}_ratio": own[key] / other[0][key] for key in ("step_seconds", "cpu_seconds", "program_bytes")}
            own["against"] = other[0]
        print(json.dumps(own))


if __name__ == "__main__":   # not before: `mcd_jax.train` has a flag of the same name
    overrides.define("a config's name or file, with overrides as --config.key=value", "mcd_emoji")
    flags.DEFINE_string("against", "", "a second config, with its arguments, to measure beside it")
    flags.DEFINE_integer("steps", 10, "how many steps to time", lower_bound=1)
    overrides.run(main)
