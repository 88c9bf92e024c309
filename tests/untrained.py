"""A run that was never trained, for the tests of what opens runs."""
import types

import jax

from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.run import checkpoint


def untrained(folder, config):
    """A run that has a checkpoint (of untrained parameters under another key), its job and its state."""
    folder.mkdir()
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(9))._replace(step=jax.numpy.int32(7))
        saver = checkpoint.Checkpoints(folder)
        saver.save(7, state)
        saver.close()
    config_lib.save(job.config, folder / "config.json")
    return types.SimpleNamespace(folder=folder, job=job, state=state)
