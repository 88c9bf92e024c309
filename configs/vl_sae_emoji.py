"""VL-SAE on the embedded data set: a sparse autoencoder over a trained run's frozen encoders.

    mcd-jax embed --workdir=runs/clip_emoji --source split=train captions=label --out=runs/clip_emoji/train.array_record
    (the same for split=validation and split=openmoji_train)
    mcd-jax train --config=vl_sae_emoji --workdir=runs/vl_sae_emoji
    mcd-jax analyze concepts --workdir=runs/vl_sae_emoji

    --config=vl_sae_emoji:model=separate      an ablation, of MODELS below
    --config=vl_sae_emoji:run=runs/mcd_emoji  the encoders of another run
    --config=vl_sae_emoji:judge=runs/clip_emoji  stored embeddings that judge the concepts beside the run's own, so that
                                                         concepts of different encoders can be compared
    --config=vl_sae_emoji:towers=1            the run's towers in memory, in place of stored embeddings

The recipe is the released one (Adam, 1e-3, batches of 512, stairs of an epoch, the last at 0), over more epochs: 4,725 drawings
are a 600th of its 3 million pairs. k is 96 of 1,536 units, the released share (256 of 4,096).
"""
from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, pretrain
from mcd_jax.sweep import grid

MODELS = {
    "vl_sae": {},
    "shared": dict(encoder="linear"),                                  # linear shared encoder, two decoders
    "separate": dict(encoder="linear", shared_encoder=False),          # SAE-D
    "single": dict(encoder="linear", shared_decoder=True),             # SAE-V
    "distance": dict(shared_decoder=True),                             # distance encoder, one decoder
    "centred": dict(center=True),                                      # an extension
}
EPOCHS = 100
WIDTH = 192
HELD_OUT = "openmoji_train"


def get_config(arguments=""):
    given = pretrain.arguments(arguments, model="vl_sae", run="runs/clip_emoji", judge="", towers=0)
    if given["model"] not in MODELS:
        raise ValueError(f"model={given['model']} is not one of {', '.join(MODELS)}")
    config = emoji.base(f"{EPOCHS} epochs", dict(image=f"decode|resize({emoji.SIZE})"))
    config.batch_size = 512
    config.objective = config_lib.objective("vl_sae", k=96, **MODELS[given["model"]])
    if given["towers"]:
        emoji.on_towers(config, given["run"])
        config.evals = evaluations(emoji.source, dict(templates=emoji.GROUP_TEMPLATES, names=emoji.GROUP_NAMES, tokenizer="emoji",
                                                      context=emoji.CONTEXT))
    else:
        emoji.on_embeddings(config, given["run"], WIDTH)
        config.evals = evaluations(lambda split: emoji.stored(split, given["run"]), {})
    if given["judge"]:
        config.evals.concepts.judged = dict(**config.evals.concepts.train, features=emoji.stored("train", given["judge"]))
    config.optimizer.update(optimizers=((".*", dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8)),), lr=1e-3, weight_decay=0.0,
                            schedule=((".*", dict(name="stairs", every="1 epoch", warmup="2 epochs")),), clip_norm=0.0)
    config.checkpoint = dict(every="50 percent", keep=1, best="")
    return config


def evaluations(source, prompts):
    """Concepts of the training drawings; retrieval by codes and classification with a concept-level term on what no run has seen.

    source: split -> a source's spec. prompts: settings of the classification by group; {}: no prompts can be embedded.
    """
    flags = dict(no_flags="flag")
    found = {split: dict(source=source(split), match="concept_id", without=flags) for split in ("validation", HELD_OUT)}

    def sets(split):
        labels = dict(source=source(split), label="concept_id", names=source(split), without=flags)
        return labels if not prompts else {**labels, **dict(tokenizer="emoji", context=emoji.CONTEXT)}

    zeroshot = {split: sets(split) for split in ("validation", HELD_OUT)}
    if prompts:
        zeroshot["groups"] = dict(source=source(HELD_OUT), label="group", without=flags, **prompts)
    return dict(concepts=dict(train=dict(source=source("train"), retrieval=False), **found),
                concept_zeroshot=dict(emoji=dict(sets=zeroshot, choose=("validation",))))


def sweep(add):
    """Three seeds of every model: `mcd-jax sweep --config=vl_sae_emoji:run=... --workdir=...`."""
    for run in grid({"seed": range(3)}):
        for options in MODELS.values():
            add({**{f"objective.{key}": value for key, value in options.items()}, **run})
