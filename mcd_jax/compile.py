"""Compiles the very step that `train` runs for a TPU topology that isn't there, and says what it needs.

mcd-jax compile --config=mcd_web:variant=b16_yfcc15m,batch_size=32768 --topology=v5e:16x16 [--slices=2] [--json]

No TPU is needed, but libtpu: pip install 'jax[tpu]'. Nothing is executed: memory is the compiler's own account (per chip), FLOPs
are counted from the program, traffic and collectives from what the compiler made, and the roofline time is the slowest of the three
at the chip's published rates: a bound, not a measurement. `--effort=low` (the default) compiles in about a minute;
`--effort=default` takes minutes and is the one to judge the overlap of collectives by.
"""
import os

# before jax: libtpu must not look for the machine that it isn't on
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16",
                  TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import importlib.util
import json
import re
import sys
import time

from absl import flags, logging
import jax
from jax.experimental import topologies

from mcd_jax import command
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.config import overrides
from mcd_jax.costs import flops, hlo
from mcd_jax.data.views import Views

KNOWN = {"v4": "2x2x1 to 8x8x8", "v5e": "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16", "v5p": "2x2x1 to 16x16x16",
         "v6e": "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"}


def devices_of(topology, slices=1):
    """The devices of a TPU topology.

    Raises:
      RuntimeError: libtpu isn't installed.
      ValueError: there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError("libtpu, the TPU compiler, is not installed: pip install 'jax[tpu]' (0.7 GB; no TPU is needed)")
    options = {"num_slices": slices} if slices > 1 else {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:
        if "lockfile" in str(error):
            raise RuntimeError(f"another process uses libtpu: {str(error).splitlines()[0][:200]}") from error
        names = "; ".join(f"{chip}:{sizes.replace(', ', f', {chip}:')}" for chip, sizes in KNOWN.items())
        raise ValueError(f"there is no topology {topology!r}: {names} ({str(error).splitlines()[0][:200]})") from error


def plan(config, devices, examples=10 ** 6):
    """The `Job` of a config over `devices`; a source that isn't on this machine is replaced by a placeholder of `examples`."""
    try:
        return job_lib.build(config, devices=devices), False
    except FileNotFoundError:
        views = Views(config.data.views)
        images, texts = {"image", *map(views.sources.get, views.images)}, {"text", *map(views.sources.get, views.tokens)}
        with config.unlocked():
            config.data.source = dict(name="mcd_jax.data.sources.placeholder", examples=examples, images=tuple(sorted(images)),
                                      texts=tuple(sorted(texts)))
        return job_lib.build(config, devices=devices), True


def compiled(job, effort="low"):
    """(jax Compiled of the train step, seconds). Raises jax.errors.JaxRuntimeError where it does not fit in memory."""
    options = {"exec_time_optimization_effort": -1.0} if effort == "low" else {}
    start = time.perf_counter()
    with jax.set_mesh(job.mesh):
        lowered = job.step.lower(job.abstract, job.batch)
        return lowered.compile(compiler_options=options), time.perf_counter() - start


def held(tree):
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(_bytes(x) for x in jax.tree.leaves(tree))


def _bytes(x):
    size = 1
    for n in x.sharding.shard_shape(x.shape):
        size *= n
    return size * (16 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)


def parts(job):
    """Bytes per chip of what goes into a step."""
    return {"params_bytes": held(job.abstract.params), "optimizer_bytes": held(job.abstract.opt),
            "memory_bytes": held(job.abstract.memory), "batch_bytes": held(job.batch)}


def account(job, program, seconds):
    """The figures of a compiled step, per chip: see the README's table of them."""
    kind, chips = job.mesh.devices.flat[0].device_kind, job.mesh.size
    hbm, bandwidth, links = flops.MEMORY[kind]
    memory, text = program.memory_analysis(), program.as_text()
    moved = hlo.collectives(text)
    needed = job.flops() / chips
    traffic = hlo.traffic(text)
    times = {"compute": needed / flops.peak(kind), "memory": traffic / bandwidth,
             "network": sum(c["bytes"] for c in moved.values()) / links}
    bound = max(times, key=times.get)
    hours = job.total_steps * times[bound] / 3600
    return {
        "fits": True, "chip": kind, "hbm_bytes": hbm, "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes, "temp_bytes": memory.temp_size_in_bytes,
        **parts(job), "flops": needed, "hbm_traffic_bytes": traffic, "collectives": moved,
        "roofline_seconds": times[bound], "bound": bound, "mfu_predicted": times["compute"] / times[bound],
        "steps": job.total_steps, "pairs_per_second_per_chip": job.config.batch_size / times[bound] / chips, "hours": hours,
        "chip_hours": hours * chips, "compile_seconds": round(seconds, 1),
        "largest": [{"bytes": size, "kind": kind, "source": source or name} for size, kind, name, source in hlo.largest(text)],
    }


def refused(job, error, seconds):
    """The figures of a step that does not fit, from the compiler's message."""
    kind = job.mesh.devices.flat[0].device_kind
    text = str(error)
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", text)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    scale = {"K": 2 ** 10, "M": 2 ** 20, "G": 2 ** 30, "T": 2 ** 40}
    sizes = re.findall(r"Size: ([\d.]+)([KMGT])\s+(?:Operator: op_name=\"([^\"]*)\"|Shape: (\S+))", text)
    nothing = dict.fromkeys(("argument_bytes", "temp_bytes", "flops", "hbm_traffic_bytes", "roofline_seconds", "mfu_predicted",
                             "pairs_per_second_per_chip", "hours", "chip_hours"))
    return {"fits": False, "chip": kind, "hbm_bytes": flops.MEMORY[kind][0],
            "peak_bytes": int(float(used[1]) * scale[used[2]]) if used else None, **nothing,
            **parts(job), "collectives": {}, "compile_seconds": round(seconds, 1),
            "largest": [{"bytes": int(float(n) * scale[unit]), "kind": "", "source": name or shape}
                        for n, unit, name, shape in sizes[:5]]}


def text(figures):
    """The figures for people."""
    def size(n):
        return "-" if n is None else f"{n / 2 ** 30:.2f} GiB" if n >= 2 ** 30 else f"{n / 2 ** 20:.1f} MiB"
    f = figures
    lines = [f"{f['config']} on {f['topology']}" + (f" x {f['slices']} slices" if f["slices"] > 1 else "")
             + f": {f['chips']} chips ({f['chip']})" + ("; its data isn't here: a placeholder" if f["placeholder"] else ""),
             f"{'fits' if f['fits'] else 'DOES NOT FIT'}: peak {size(f['peak_bytes'])} of {size(f['hbm_bytes'])} per chip "
             f"(compiled in {f['compile_seconds']:.0f} s)",
             f"parameters {size(f['params_bytes'])}, optimizer {size(f['optimizer_bytes'])}, "
             f"memory {size(f['memory_bytes'])}, batch {size(f['batch_bytes'])}, temporaries {size(f['temp_bytes'])}"]
    if f["fits"]:
        lines += [f"{f['flops'] / 1e12:.2f} TFLOP and {size(f['hbm_traffic_bytes'])} of memory traffic per step",
                  f"roofline {f['roofline_seconds'] * 1e3:.0f} ms per step, bound by {f['bound']}: "
                  f"MFU at most {f['mfu_predicted']:.0%}",
                  f"at best {f['pairs_per_second_per_chip']:,.0f} pairs/s per chip: the {f['steps']:,} steps of the config take "
                  f"{f['hours']:.3g} hours, {f['chip_hours']:.4g} chip-hours"]
        lines += [f"  {kind}: {c['count']} of {size(c['bytes'])} in all, {c['async']} asynchronous, {c['hidden']} behind a matmul"
                  for kind, c in f["collectives"].items()]
    lines += ["largest buffers:", *(f"  {size(b['bytes'])}  {b['kind']}  {b['source'][:100]}" for b in f["largest"])]
    return "\n".join(lines)


def main(_):
    logging.set_verbosity(logging.ERROR)
    with command.sentences():
        slices = [("mesh.slice", str(flags.FLAGS.slices))] if flags.FLAGS.slices > 1 else []
        config = config_lib.of_command(flags.FLAGS.config, [*overrides.given(), *slices])
        devices = devices_of(flags.FLAGS.topology, flags.FLAGS.slices)
        job, placeholder = plan(config, devices, flags.FLAGS.examples)
    start = time.perf_counter()
    try:
        figures = account(job, *compiled(job, flags.FLAGS.effort))
    except jax.errors.JaxRuntimeError as error:
        figures = refused(job, error, time.perf_counter() - start)
    figures = {"config": flags.FLAGS.config, "topology": flags.FLAGS.topology, "slices": flags.FLAGS.slices, "chips": job.mesh.size,
               "effort": flags.FLAGS.effort, "placeholder": placeholder, **figures}
    print(json.dumps(figures) if flags.FLAGS.json else text(figures), flush=True)
    sys.exit(0 if figures["fits"] else 1)


if __name__ == "__main__":   # not at import: other commands have a --config too
    overrides.define("a config's name or file, with overrides as --config.key=value")
    flags.DEFINE_string("topology", None, "such as v5e:16x16, v6e:16x16, v5p:8x8x8")
    flags.DEFINE_integer("slices", 1, "how many of them, joined by the data-centre network", lower_bound=1)
    flags.DEFINE_enum("effort", "low", ["low", "default"], "of the compiler")
    flags.DEFINE_bool("json", False, "print one JSON line")
    flags.DEFINE_integer("examples", 10 ** 6, "of the data set, where it isn't on this machine", lower_bound=1)
    flags.mark_flags_as_required(["config", "topology"])
    overrides.run(main)
