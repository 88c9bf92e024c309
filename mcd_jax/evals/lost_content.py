"""Does the network know what a crop has lost of its caption? Beside the truth, over crops of one size.

The predicted misalignment r of `misalignment` (log-ratio of the distances between caption and crop, and caption and whole image)
is compared with the true one of the source, 1 + the share of what the caption says that the crop lost (see `decode(content=...)`).
As all crops have the same area, whoever knows only how strong an augmentation is knows nothing. Figures, over `looks` crops of each
of n images; those of images whose crops all lose the same are in the first figure only:

  spearman            rank correlation of r with what was lost, over all crops of all images
  spearman_per_image  the same within one image, averaged over the images
  ordered             share of pairs of crops of one image that lose different shares which r puts in the right order
  lost                mean share that the crops lose
  area/..., pixel/... the first three for the area that is cut off, which says nothing, and for the root mean square pixel
                      distance to the whole image, in place of r
  boxes/...           the same for a prediction that knows which things are named and where their boxes are: what can be
                      reached without knowing their outlines (of sources that have `boxes` and `named`, as scenes do)
  bad                 images that can't be read and are left out, when there are any

Instance: source, where, n (images, evenly spaced), looks, views (pipes of "image", the whole image, and of "text"), cut (the pipe
of a crop, such as "decode(content='said')|crop(64, 0.3, 0.3, ratio=(1, 1))"), eps, similarity (as in `misalignment`).
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import pipeline
from mcd_jax.evals import misalignment, rows
from mcd_jax.evals import similarity as similarity_lib

KEYS = {
    "source": Key("source", NEEDED, "of pairs, with what their captions say: scenes"),
    "where": Key("dict | None", None, "rows that are kept: {column: a value or several}"),
    "n": Key("int | None", 256, "images, evenly spaced"),
    "looks": Key("int", 8, "crops of each"),
    "views": Key("map of str", {}, "pipes of image (the whole image) and text; left out: as in training, without randomness"),
    "cut": Key("str", NEEDED, "of a crop that reports the truth: \"decode(content='said')|crop(64, 0.3, 0.3, ratio=(1, 1))\""),
    "eps": Key("float", 1e-6, "keeps the logarithm finite"),
    "similarity": similarity_lib.KEY,
}
_BOXES = ("boxes", "named")


def lost_of_boxes(boxes: np.ndarray, named: np.ndarray, view: np.ndarray) -> float:
    """Mean share of the named boxes that a view doesn't show; 0 where nothing is named.

    Args:
      boxes: (M, 4), view: (4,), left, top, right, bottom as shares of the image; named: bool (M,).
    """
    boxes = np.asarray(boxes, np.float64)[np.asarray(named, bool)]
    if not len(boxes):
        return 0.0
    low, high = np.maximum(boxes[:, :2], view[:2]), np.minimum(boxes[:, 2:], view[2:])
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return float(np.mean(1 - np.clip(high - low, 0, None).prod(1) / np.maximum(whole, 1e-12)))


def figures(predictions: dict[str, np.ndarray], lost: np.ndarray) -> dict[str, float]:
    """The figures of the module docstring.

    Args:
      predictions: {"" for r, or the name that its figures begin with: (n, V)}; lost: (n, V), shares from 0 to 1.

    Raises:
      ValueError: no image has crops that lose different shares.
    """
    differ = np.ptp(lost, axis=1) > 0
    if not differ.any():
        raise ValueError(f"config.evals.lost_content: none of {len(lost)} images has two crops that lose different shares of its "
                         "caption: let `cut` take smaller ones")
    out = {"lost": float(lost.mean())}
    for name, r in predictions.items():
        own = {"spearman": float(misalignment.spearman(r.ravel(), lost.ravel())),
               "spearman_per_image": float(np.mean(misalignment.spearman(r[differ], lost[differ]))),
               "ordered": misalignment.ordered(r, lost)}
        out.update({f"{name}/{key}" if name else key: value for key, value in own.items()})
    return out


def measure(embed, state, source, compiled, looks, batch_size, indices, eps=1e-6):
    """({"", "area", "pixel" and, of a source with boxes, "boxes": (n, looks)}, lost (n, looks)) of the usable rows of `indices`."""
    names, parts = [f"v{i}" for i in range(looks)], []
    for batch in pipeline.sequential(source, compiled, batch_size, seed=0, indices=indices):
        if batch[names[0]].shape != batch["image"].shape:
            raise ValueError(f"config.evals.lost_content: the crops of `cut` have {batch[names[0]].shape[1:3]} pixels and the view "
                             f"'image' has {batch['image'].shape[1:3]}: both need one size")
        seen = np.stack([batch["image"], *(batch[name] for name in names)], axis=1)
        boxes = np.stack([batch[f"{name}/params"][:, :4] for name in names], 1)   # left, top, width, height
        found = {"": misalignment.log_ratios(embed, state, batch["text"], seen, eps),
                 "area": 1 - boxes[..., 2] * boxes[..., 3],
                 "pixel": np.sqrt(np.mean((seen[:, 1:].astype(np.float32) - seen[:, :1]) ** 2, axis=(2, 3, 4)))}
        if _BOXES[0] in batch:
            corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)
            found["boxes"] = np.array([[lost_of_boxes(of, named, view) for view in views]
                                       for of, named, views in zip(batch["boxes"], batch["named"], corners)])
        lost = np.stack([batch[f"{name}/misalignment"] for name in names], 1) - 1
        parts.append({key: value[~batch["bad"]] for key, value in {**found, "lost": lost}.items()})
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {key: value for key, value in joined.items() if key != "lost"}, joined["lost"]


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring.

    Raises:
      ValueError: a key or a column that isn't there, or a cut that doesn't report the truth.
    """
    instance = f"lost_content.{name}"
    where, looks = dict(config.get("where") or {}), config.get("looks", 8)
    if isinstance(looks, bool) or not isinstance(looks, int) or looks < 2:
        raise ValueError(f"config.evals.{instance}.looks={looks!r} must be a whole number from 2")
    similarity = config.get("similarity", "auto")
    similarity_lib.check(similarity, instance)
    source = rows.open_source(config["source"], where, instance)
    pipes = dict(config["views"])
    rows.pick(pipes, ["image", "text"], instance)
    has = set(source[0])
    beside = {column: f"column('{column}')" for column in _BOXES} if has.issuperset(_BOXES) else {}
    cuts = {f"v{i}": config["cut"] for i in range(looks)}
    compiled = pipeline.Views({"image": pipes["image"], "text": pipes["text"], **cuts, **beside})
    if not compiled.true("v0"):
        raise ValueError(f"config.evals.{instance}.cut={config['cut']!r} doesn't report what is lost: begin with "
                         "decode(content='said'), or the column that has it")
    compiled.check(has)

    def evaluate(embed, state):
        chosen = rows.sample(source, where, config.get("n", 256), instance)
        embed = similarity_lib.using(embed, similarity, instance)
        measured = measure(embed, state, source, compiled, looks, config.get("batch_size", 64), chosen, config.get("eps", 1e-6))
        return rows.with_bad(figures(*measured), np.arange(len(chosen)) < len(measured[1]))

    return evaluate
