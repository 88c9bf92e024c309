"""Generated scenes of held-out drawings, for any run on the embedded data set: captions find their scene, and what crops lose:

    mcd-jax evaluate --workdir=runs/x --evals=scenes_emoji
    mcd-jax evaluate --workdir=runs/x --evals=scenes_emoji:size=48,images=500,weights_from=memory/teacher

size: pixels at which scenes are shown, by default those of training on scenes.
"""
from mcd_jax.configs import pretrain, scenes


def get_evals(arguments=""):
    args = pretrain.arguments(arguments, size=scenes.SIZE, images=1000, weights_from="params")
    return scenes.evaluations(pixels=args.pop("size"), **args)
