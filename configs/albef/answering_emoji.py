"""Questions about the embedded drawings: the decoder of answers on top of ALBEF, from a run of `albef_emoji.py` or scratch.

    mcd-jax train --config=albef_emoji --workdir=runs/albef_emoji
    mcd-jax train --config=answering_emoji:run=runs/albef_emoji --workdir=runs/answering_emoji

    run=FOLDER    the run that towers, fusion layers and, as copies, the decoder start from; without it they start from scratch
    image=resnet  where the run of ALBEF had that image tower
    blind=1       the control: every image is black in training and evaluation, so what is right follows from the question alone
    seed=0        of the pairs of drawings that are asked about
    epochs=8      the published number; a question of each kind and drawing comes once in each

`methods/albef/questions_source.py` says what is asked: "subgroup", "tag" and "either" are balanced, so that 50 % is what a question
alone gives. Concepts of the validation and test splits and the fourth vendor's drawings are asked about only in evaluation. Every
run is also asked with black images ("..._blind").
"""
from mcd_jax.configs.albef import albef_emoji

from mcd_jax import config as config_lib
from mcd_jax.configs import emoji, pretrain
from mcd_jax.data import tokenizers
from mcd_jax.methods.albef import vqa

QUESTION, ANSWER = f"tokenize({emoji.CONTEXT}, 'emoji')", "tokenize(8, 'emoji')"   # a few labels of flags are cut
PLAIN = f"decode|resize({emoji.SIZE})"


def get_config(arguments=""):
    args = pretrain.arguments(arguments, run="", image="vit", blind=0, seed=0, epochs=8)
    config = albef_emoji.get_config(args["image"])
    config.steps = f"{args['epochs']} epochs"
    config.data.source = source("train", seed=args["seed"])
    config.data.views = dict(image=emoji.ORIGINAL + "|blank" * bool(args["blind"]), text=f"caption('first')|{QUESTION}",
                             answers=f"captions(1, 'first', 'choices')|{ANSWER}", weights="column('weights')")
    config.data.cache, config.data.workers = False, 2   # six questions about each drawing would be six copies of it
    config.objective = config_lib.objective("vqa", fusion_layers=2, decoder_layers=2, ema_m=0.99,
                                            start_id=tokenizers.make("emoji").vocab_size)
    config.sharding = config_lib.default().sharding
    config.optimizer.bounds, config.optimizer.lr_mults = (), ()
    config.optimizer.schedule = (("(image|text)/proj/.*", None), *config.optimizer.schedule)   # which nothing here reads
    if args["run"]:
        config.init_from, config.init_fresh, config.init_copies = args["run"], vqa.LEFT_OUT, vqa.COPIES
        config.optimizer.lr = 3e-4
    config.evals = dict(answers=evaluations(args["blind"]))
    return config


def source(split, **more):
    return dict(name="questions", split=split, **more)


def evaluations(blind):
    """`config.evals.answers`: each split ranked, without its images, and written word for word; of the vendor's 4,000 questions."""
    every = source("train+validation+test", vendors=("google",))   # one vendor's drawings have every concept's answers

    def instance(split, image=PLAIN, **more):
        return dict(source=source(split), answers=every, types="question_type", k=16, n=4000,
                    views=dict(image=image + "|blank" * bool(blind), text=f"caption('first')|{QUESTION}", answer=ANSWER), **more)

    splits = dict(heldout_vendor="openmoji_train", heldout_concepts="test", heldout_both="openmoji_test")
    return {"validation": instance("validation", every="25 percent"),
            **{name: instance(split) for name, split in splits.items()},
            **{f"{name}_blind": instance(split, f"{PLAIN}|blank") for name, split in splits.items()},
            "heldout_vendor_written": instance("openmoji_train", how="generate")}
