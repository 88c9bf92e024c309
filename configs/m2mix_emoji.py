"""m2-Mix on the embedded data set: fine-tuning of a CLIP run, the same from scratch, and the control that a claim about it needs.

mcd-jax train --config=clip_emoji --workdir=runs/clip_emoji
mcd-jax train --config=m2mix_emoji:init_from=runs/clip_emoji --workdir=runs/m2mix_emoji
mcd-jax train --config=m2mix_emoji:kind=control,init_from=runs/clip_emoji --workdir=runs/control_emoji

Arguments after the colon, all optional:
  kind         m2; m3 (V-, L- and VL-Mix too); control: CLIP's loss alone, for the same steps, by default at a higher temperature
  init_from    a workdir, or one of its checkpoints/<step>; without one it trains from scratch, 1,000 steps instead of 9 epochs
  temperature  of all terms but m2, whose temperature is 0.07. Default: that of init_from; 0.1 for the control
  scale        frozen or learned: whether it stays there. Default: learned from scratch without a given temperature, else frozen
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, pretrain

KINDS = ("m2", "m3", "control")


def get_config(arguments=""):
    args = pretrain.arguments(arguments, kind="m2", init_from="", temperature=0.0, scale="")
    kind, tuned = args["kind"], bool(args["init_from"])
    start = args["temperature"] or (0.1 if kind == "control" else 0.0)
    scale = args["scale"] or ("frozen" if tuned or start else "learned")
    if kind not in KINDS or scale not in ("frozen", "learned"):
        raise ValueError(f"m2mix_emoji.py:{arguments}: kind is one of {', '.join(KINDS)}, scale is frozen or learned")
    config = emoji.base("9 epochs" if tuned else emoji.STEPS, dict(image=emoji.ORIGINAL))
    if tuned:
        config.init_from = args["init_from"]
        config.optimizer.lr = 4e-4
        config.optimizer.schedule = ((".*", dict(name="cosine", warmup="10 percent")),)
    emoji.temperature(config, start, scale == "learned")
    if kind == "control":
        config.objective = config_lib.objective("clip")
        return config
    weights = dict(m2=0.01) if kind == "m2" else dict(m2=0.01, v=0.05, l=0.05, vl=0.1)
    decay = {} if tuned else {term: 0 for term in ("m2", "v", "l", "vl")}   # 1 / epoch would leave nothing of them
    config.objective = config_lib.objective("m2mix", weights=weights, decay=decay, temperature=0.0,
                                            m2_beta=0.5 if kind == "m2" else 0.2)
    return config
