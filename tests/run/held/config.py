"""A run that is over when it is told to: `held.method` on rows of `held.rows`, with a checkpoint and an evaluation now and then."""
from mcd_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.steps, config.batch_size, config.log_every, config.tensorboard = "1000 steps", 16, 1, False
    config.objective = config_lib.objective("held.method")
    config.data.source = dict(name="held.rows", good=10 ** 9)
    config.data.views = dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')")
    config.optimizer.schedule = ((".*", dict(name="constant")),)
    config.evals.retrieval = dict(validation=dict(source=dict(name="emoji", split="validation"), every="2 steps"))
    config.checkpoint.every = "1 steps"
    return config
