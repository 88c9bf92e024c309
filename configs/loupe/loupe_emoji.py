"""LOUPE on the embedded data set: regions and phrases aligned by interactions, at the data, steps and model of the others.

mcd-jax train --config=loupe_emoji --workdir=runs/loupe_emoji

The method's defaults scaled down: 4 regions and 4 phrases, 32 samples, the fast game that leaves out the image tower's last
tokens (it pools by their mean, so that is the tower itself), exact interactions of regions and phrases (256 subsets cost less than
an estimator of them), a narrow estimator for the token level, the first 100 steps always played.
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji

PHRASES = f"caption('random')|phrases({emoji.CONTEXT}, 4, 'emoji')"


def get_config():
    config = emoji.base(emoji.STEPS, dict(image=emoji.ORIGINAL, phrases=PHRASES))
    config.group_size = 16
    config.objective = config_lib.objective(
        "loupe", regions=4, hidden=64, masking="tokens", samples=32, token_quota=8, pair_labels="exact", first=100,
        estimator_width=32, estimator_depth=1, estimator_heads=2)
    return config
