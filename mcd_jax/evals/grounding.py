"""Zero-shot grounding: for each named object of an image the box that fits its name best, right if it overlaps the true one.

An instance of `config.evals.grounding` says:

  source   source spec with columns boxes (n, 4) and names (n str) of each image, such as mosaics (`mcd_jax.data.mosaic`)
  views    pipes of "image" and "text"; the texts are the names
  thresholds  (0.3, 0.5): accuracy@t is the share of names whose box overlaps the true one by at least t
  share    (0.5) of the range of a heat map that its box takes in, see `boxes.from_heat`
  use      "auto": the objective's head "regions" where it has one, else "dense"; or one of the two

Candidates come from a head. "regions" gives "boxes" (b, M, 4), "confidence" (b, M), unit "features" (b, M, D), and "text" (b, D) of
texts: the region most similar to the name is taken. "dense" gives unit "tokens" (b, N, D) of a square grid and "text": the box
around the hottest part of the tokens' similarity to the name is taken. So any two towers can stand in one table with methods that
learn regions. Figures: accuracy@t, mean_iou, pointing (the middle of the box lies in the true one), queries, images.
"""
import numpy as np

from mcd_jax.evals import boxes as boxes_lib
from mcd_jax.evals import rows

KEYS = ("source", "views", "thresholds", "share", "use")


def make(config, name):
    """fn(embed, state) -> {"accuracy@0.5": ..., ...}; `config`: see the module."""
    instance = f"grounding.{name}"
    source = rows.open_source(config["source"], ("boxes", "names"), instance)
    image_view, text_view = (rows.pick(config["views"], [key], instance) for key in ("image", "text"))
    thresholds, share, size = tuple(config.get("thresholds", (0.3, 0.5))), config.get("share", 0.5), config.get("batch_size", 256)

    def run(embed, state):
        head = embed.head(chosen(embed, config.get("use", "auto"), instance))
        table = rows.columns(source, ("boxes", "names"), ragged=("boxes", "names"))
        image, good = rows.encode(head, state, source, image_view, ["image"], size)
        names = list(dict.fromkeys(name for own in table["names"] for name in own))
        text, _ = rows.encode(head, state, rows.Texts(names), text_view, ["text"], size)
        text = dict(zip(names, text["text"]))
        overlaps, points = [], []
        for number in np.flatnonzero(good):
            one = {key: value[number] for key, value in image.items()}
            for box, own in zip(table["boxes"][number], table["names"][number]):
                guess = best(one, text[own], share)
                middle = (guess[:2] + guess[2:]) / 2
                overlaps.append(boxes_lib.iou(guess[None], np.asarray(box)[None])[0, 0])
                points.append((middle >= box[:2]).all() and (middle <= box[2:]).all())
        overlaps = np.array(overlaps)
        return {**{f"accuracy@{t:g}": float(np.mean(overlaps >= t)) for t in thresholds}, "mean_iou": float(np.mean(overlaps)),
                "pointing": float(np.mean(points)), "queries": float(len(overlaps)), "images": float(good.sum())}

    return run


def best(image, text, share):
    """The box (4,) of an image's candidates that fits a unit text (D,) best."""
    if "boxes" in image:
        return image["boxes"][np.argmax(image["features"] @ text)]
    return boxes_lib.from_heat(image["tokens"] @ text, share)[0]


def chosen(embed, use, instance):
    """The name of the head that gives candidates.

    Raises:
      ValueError: `use` names one that the objective doesn't have.
    """
    name = use if use != "auto" else "regions" if "regions" in embed.heads else "dense"
    if name not in embed.heads or name not in ("regions", "dense"):
        raise ValueError(f"config.evals.{instance}.use={use!r}: candidates come from the head 'regions' or 'dense', and this "
                         f"objective has {', '.join(sorted(embed.heads))}")
    return name
