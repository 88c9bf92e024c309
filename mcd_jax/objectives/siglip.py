"""SigLIP: every image-caption pair of the batch is a binary question (Zhai et al. 2023, algorithm 1)."""
from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive
from mcd_jax.objectives import clip, pair

Options = clip.Options

WEIGHTS = {"siglip": 1.0}


def make(config):
    """The `Objective`; terms: siglip. The model needs a logit bias (`config.model.logit_bias`, -10 in the paper).

    Raises:
      ValueError: the model has no logit bias.
    """
    if config.model.get("logit_bias") is None:
        raise ValueError("the sigmoid loss needs a learned bias: set config.model.logit_bias=-10.0 (and logit_scale=log(10))")
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers = pair.towers_of(config)

    def finish(out, params, memory, batch, key, step):
        return {**out, "scale": towers.scale(params), "bias": towers.bias(params)}

    return pair.objective(
        config, towers, pair.Parts({"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)}, finish=finish),
        terms={"siglip": lambda out: contrastive.sigmoid(out["image"], out["text"], out["scale"], out["bias"], opts.form)},
        metrics={**pair.metrics(opts.form), "logit_bias": lambda out: out["bias"]},
    )
