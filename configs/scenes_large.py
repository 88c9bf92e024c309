"""A row of the comparison on scenes at ViT-S/16 and 96 pixels, on scenes of 315 concepts that never come again: for one GPU.

mcd-jax train --config=scenes_large:row=clip,steps=2000 --workdir=runs/large_clip

row: a config scenes_<row>.py. `launch/scenes_table.sh --large` trains the rows that decide.
"""
import importlib

from mcd_jax import config as config_lib
from mcd_jax.configs import pretrain, scenes

SIZE, SMALL = 96, 64
GROUPS = ("animals-nature", "food-drink", "activities")
SCENE = dict(size=128, objects=(1, 9), named=(1, 3))
ROWS = ("clip", "siglip", "slip", "mcd", "uniclip", "eclipse", "filip", "declip", "defilip")


def get_config(arguments=""):
    args = pretrain.arguments(arguments, row="mcd", steps=2000, batch_size=1024, processes=14)
    config_lib.refuse_unknown(args["row"], ROWS, "row")
    config = importlib.import_module(f"mcd_jax.configs.scenes_{args['row']}").get_config()
    config.steps, config.batch_size = f"{args['steps']} steps", args["batch_size"]
    config.data.update(workers=1, processes=args["processes"], cache=False)
    config.data.source.update(examples=args["steps"] * args["batch_size"], **SCENE)
    config.data.source.source.groups = GROUPS
    for name, view in config.data.views.items():
        config.data.views[name] = view.replace(f"crop({scenes.SIZE},", f"crop({SIZE},").replace(f"crop({scenes.SMALL},",
                                                                                                 f"crop({SMALL},")
    if "bank" in config.objective:
        config.objective.bank = 8 * config.batch_size
    config.model.image = dict(name="vit", variant="S/16")
    config.model.text = dict(name="text", variant="clip-S", spare_ids=config.model.text.get("spare_ids", 0))
    config.model.embed_dim, config.model.dtype, config.optimizer.lr = 384, "bfloat16", 1e-3
    with config.unlocked():
        config.evals = scenes.evaluations(pixels=SIZE, groups=GROUPS, **SCENE)
    return config
