"""What every config on the embedded data set shares: data, model, optimizer, evaluations. Not a config by itself.

Three vendors' drawings of the training concepts are seen; a fourth vendor's (openmoji), 10 % of the concepts (test) and another 5 %
(validation, for choosing) are not.
"""
import json
import math
import pathlib

from mcd_jax import config as config_lib

STEPS = "1000 steps"   # 54 epochs
SIZE = 48
ORIGINAL = f"decode|crop({SIZE}, 0.5)"
AUGMENTED = f"decode|crop({SIZE}, 0.08)|jitter(0.4, 0.4, 0.4, 0.1, 0.8)|gray(0.2)|blur(0.5)|flip(0.5)"   # SLIP's
# recipe; the published figures were taken with this blur, which is narrower than SLIP's: blur(0.5, method='pillow')
CONTEXT = 12
TEXT, LABEL = (f"caption({which!r})|tokenize({CONTEXT}, {{tokenizer!r}})" for which in ("random", "first"))
HELD_OUT_VENDOR = "openmoji_train+openmoji_validation+openmoji_test"
# prompts of the multilingual ensemble; the captions that train are English
LANGUAGES = ("en", "de", "es", "fr", "it", "pt")


def base(steps, views, size=SIZE, tokenizer="emoji"):
    """The config of the embedded data set without an objective.

    Args:
      steps: a duration.
      views: image views of the batch beside the caption, name -> pipe string.
      size: pixels of the images that evaluations show.
      tokenizer: of captions and evaluations.
    """
    config = config_lib.default()
    config.steps = steps
    config.batch_size = 256
    config.data.source = dict(name="emoji", split="train", captions=("label", "label: tags"), languages=("en",))
    config.data.views = dict(**views, text=TEXT.format(tokenizer=tokenizer))
    config.data.workers, config.data.cache = 1, True
    config.model = dict(
        image=dict(name="resnet", widths=(48, 128), depths=(1, 1), stem_patch=4, mask_patch=8, grad_rows=32),
        text=dict(name="text", width=192, depth=0, num_heads=3, causal=False, pool="mean"),   # labels are short: a bag of words
        embed_dim=192,
        dtype="float32",
    )
    config.optimizer.lr = 4e-3
    config.optimizer.weight_decay = 0.1
    config.evals = evaluations("params", size, tokenizer)
    config.evals.retrieval.validation.every = "20 percent"
    config.checkpoint = dict(every="20 percent", keep=2, best="")
    return config


def temperature(config, start=0.0, learned=True):
    """Sets where the temperature of the loss starts and whether it is learned.

    start: the inverse of exp(logit_scale); it also stands in for that of `config.init_from`. 0: leaves it.
    """
    if start:
        config.model.logit_scale = -math.log(start)
        config.init_fresh = ("logit_scale",)
    if not learned:
        config.optimizer.schedule = (("logit_scale", None), *config.optimizer.schedule)


def source(split, **more):
    """A source of the embedded set whose rows have the English label as their first text."""
    return dict(name="emoji", split=split, **{"captions": ("label",), "languages": ("en",), **more})


def stored(split, run):
    """The source of the embeddings that `mcd-jax embed` wrote of a split into the folder `run`."""
    return dict(name="embeddings", path=f"{run}/{split}.array_record")


def on_embeddings(config, run, width):
    """Makes a config train on the stored embeddings in the folder `run`, in place of images. width: where none are yet."""
    about = pathlib.Path(run) / "train.array_record.json"
    width = json.loads(about.read_text())["width"]["image_embedding"] if about.is_file() else width
    tower = dict(name="stored", width=width, proj="none")
    config.data.source = stored("train", run)
    config.data.views, config.data.cache = dict(image="column('image_embedding')", text="column('text_embedding')"), False
    config.model = dict(image=tower, text=tower, embed_dim=width)


def on_towers(config, run):
    """Makes a config train over the towers of `run`, locked in memory."""
    config.data.views.text = LABEL.format(tokenizer="emoji")
    config.data.source.captions = ("label",)
    config.model.locked = ("image", "image/proj", "text", "text/proj")
    config.init_locked = dict(image=run, text=run)


def evaluations(weights_from, size=SIZE, tokenizer="emoji"):
    """`config.evals`: figures on the held-out vendor, the held-out concepts and the validation concepts."""
    flags = dict(no_flags="flag")
    plain = dict(image=f"decode|resize({size})", text=LABEL.format(tokenizer=tokenizer))

    def retrieval(split, queries=None):
        return dict(source=source(split), views=plain, match="concept_id", queries=queries or {}, without=flags,
                    weights_from=weights_from)

    def zeroshot(split, label, templates=("{}",), languages=("en",)):
        names = GROUP_NAMES if label == "group" else source("train+validation+test", languages=languages)
        return dict(source=source(split), views=dict(image=plain["image"]), label=label, names=names, templates=templates,
                    tokenizer=tokenizer, context=CONTEXT, without=flags, weights_from=weights_from)

    def misalignment(split, weights_from):
        return dict(source=source(split), n=200, views=plain, kinds=("crop", "jitter", "gray", "blur", "all"),
                    levels=(0.25, 0.5, 0.75, 1.0), augmented=f"decode|resize({size})|severity('{{kind}}', {{level}})",
                    weights_from=weights_from)

    return dict(
        retrieval=dict(
            validation=retrieval("validation"),
            heldout_vendor=retrieval(HELD_OUT_VENDOR, dict(concept_split="train")),
            heldout_concepts=retrieval("test"),
            heldout_both=retrieval(HELD_OUT_VENDOR, dict(concept_split="test")),
        ),
        zeroshot=dict(
            labels_heldout_vendor=zeroshot(HELD_OUT_VENDOR, "concept_id"),
            labels_heldout_concepts=zeroshot("test", "concept_id"),
            languages_heldout_vendor=zeroshot(HELD_OUT_VENDOR, "concept_id", languages=LANGUAGES),
            groups_heldout_vendor=zeroshot(HELD_OUT_VENDOR, "group", GROUP_TEMPLATES),
            groups_heldout_concepts=zeroshot("test", "group", GROUP_TEMPLATES),
        ),
        misalignment=dict(
            heldout_vendor=misalignment("openmoji_train", weights_from),
            heldout_concepts=misalignment("test", weights_from),
            untrained=misalignment("openmoji_train", "init"),
        ),
        gap=dict(heldout_vendor=dict(source=source(HELD_OUT_VENDOR), views=plain, weights_from=weights_from)),
    )


GROUP_TEMPLATES = ("{}", "a drawing of {}", "an emoji of {}")
GROUP_NAMES = (
    ("smiling face", "emotion", "heart"), ("person", "people", "hand"), ("skin tone", "hair"), ("animal", "nature", "plant"),
    ("food", "drink"), ("travel", "place", "vehicle"), ("activity", "sport", "game"), ("object", "tool", "clothing"),
    ("symbol", "sign", "button"), ("flag", "country"),
)
