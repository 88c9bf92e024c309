"""FILIP on the embedded data set: CLIP's control with patches that look for words in place of one embedding for each side.

mcd-jax train --config=filip_emoji --workdir=runs/filip_emoji

Its pooled embeddings are not trained: evaluations compare tokens, and what needs pooled ones (`gap`, search, exports) is left out.
--config.objective.weights.clip=1.0 trains them beside the tokens, and evaluations compare them then; similarity="token_wise" of an
instance brings the tokens back.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL))
    config.objective = config_lib.objective("filip")
    del config.evals["gap"]
    return config
