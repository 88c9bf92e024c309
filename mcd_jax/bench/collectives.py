"""What the train step of a config moves between devices: one JSON line, kind -> {"count", "bytes", ...}, see `costs.hlo`.

JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -m mcd_jax.bench.collectives --config=clip_emoji:vit \\
    --config.mesh.data=1 --config.mesh.fsdp=4 --config.sharding="(('image/.*', 'fsdp'), ('.*', 'replicate'))"

The step is compiled for the devices that are there, fake ones too, and not run. It shows whether the rules of config.sharding are
what the program does; for chips that aren't there see `mcd_jax.compile`.
"""
import json

from absl import flags
import jax

from mcd_jax import command
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.config import overrides
from mcd_jax.costs import hlo


def measure(config):
    """{kind: {"count", "bytes", "async", "hidden"}} of one step on one device.

    Raises:
      ValueError: the config doesn't fit together.
    """
    job = job_lib.build(config)
    job.pipeline.close()
    with jax.set_mesh(job.mesh):
        return hlo.collectives(job.step.lower(job.abstract, job.batch).compile().as_text())


def main(_):
    with command.sentences():
        print(json.dumps(measure(config_lib.of_command(flags.FLAGS.config, overrides.given()))))


if __name__ == "__main__":   # not before: `mcd_jax.train` has a flag of the same name
    overrides.define("a config's name or file, with overrides as --config.key=value", "clip_emoji:vit")
    overrides.run(main)
