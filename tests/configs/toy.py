"""A run of seconds on the validation drawings of the embedded data set."""
from mcd_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.steps, config.batch_size, config.log_every, config.tensorboard = "24 steps", 16, 2, False
    config.objective = config_lib.objective("clip")
    config.ema = 0.9   # so that there is a memory
    config.data.source = dict(name="emoji", split="validation")
    config.data.views = dict(image="decode|crop(16, 0.5)|flip(0.5)", text="caption('first')|tokenize(8, 'emoji')")
    config.data.cache = True
    config.model = dict(image=dict(name="resnet", widths=(8, 16), depths=(1, 1), mask_patch=4),
                        text=dict(name="text", width=16, depth=1, num_heads=2, mlp_dim=32), embed_dim=16)
    config.optimizer.lr = 1e-2
    views = dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')")
    config.evals.retrieval = dict(validation=dict(source=dict(name="emoji", split="validation"), views=views, match="concept_id",
                                                  without=dict(no_flags="flag"), weights_from="params",
                                                  every="100 percent"))
    config.checkpoint.every = "4 steps"
    return config
