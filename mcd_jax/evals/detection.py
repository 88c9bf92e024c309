"""Zero-shot detection: boxes with a class out of many, by mean average precision at some overlaps.

What an instance may say is KEYS.

A region is every class with score = confidence * softmax over the classes of its similarity / temperature. Where there is only the
head "dense", each class proposes the box around the hottest part of its heat map, whose mean token is scored. Figures: mAP@t,
recall@t (true boxes that any kept detection of their class overlaps enough), detections per image, images, classes; "bad", the
images that can't be read and are left out, when there are any.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import boxes as boxes_lib
from mcd_jax.evals import grounding, rows, zeroshot

KEYS = {
    "source": Key("source", NEEDED, "with columns boxes (n, 4) and labels (n,) of each image"),
    "views": Key("map of str", {}, "pipe of image; left out: as in training, without randomness"),
    "names": Key("tuple | source", NEEDED, "class names, or a source that has them, as in zeroshot"),
    "label": Key("str | None", None, "column of that source with the class"),
    "names_where": Key("dict | None", None, "rows of that source that are kept"),
    "templates": Key("tuple", ("{}",), "prompts; {} is where the name goes"),
    "tokenizer": Key("str | None", None, "of the prompts; left out: that of the view of text"),
    "context": Key("int | None", None, "tokens of a prompt"),
    "thresholds": Key("tuple", (0.3, 0.5), "overlaps from which a box is right"),
    "temperature": Key("float", 0.01, "of the softmax over classes"),
    "overlap": Key("float", 0.5, "above which a worse box of a class is suppressed"),
    "keep": Key("int", 20, "detections of an image, the best"),
    "least": Key("float", 0.0, "confidence of a region"),
    "share": Key("float", 0.5, "of the range of a heat map that its box takes in"),
    "use": Key("str", "auto", "regions | dense | auto: the objective's head regions where it has one, else dense"),
}


def make(config, name):
    """fn(embed, state) -> {"mAP@0.5": ..., ...}; `config`: see the module."""
    instance = f"detection.{name}"
    source = rows.open_source(config["source"], ("boxes", "labels"), instance)
    if hasattr(config["names"], "items"):
        where = dict(config.get("names_where") or {})
        texts = rows.open_source(config["names"], {*where, config["label"]}, instance)
        names, _ = zeroshot.named(texts, config["label"], where, (), instance)
    else:
        names = {i: [n] if isinstance(n, str) else list(n) for i, n in enumerate(config["names"])}
    class_ids = np.array(sorted(names))
    prompts = [(i, t.replace("{}", n)) for i, c in enumerate(class_ids) for n in names[c] for t in config.get("templates", ("{}",))]
    views, tokens = rows.pick(config["views"], ["image"], instance), zeroshot.prompt_view(config, instance)
    thresholds, size = tuple(config.get("thresholds", (0.3, 0.5))), config.get("batch_size", 256)
    options = {key: config.get(key, value) for key, value in (
        ("temperature", 0.01), ("overlap", 0.5), ("keep", 20), ("least", 0.0), ("share", 0.5))}

    def run(embed, state):
        head = embed.head(grounding.chosen(embed, config.get("use", "auto"), instance))
        texts, usable = rows.encode(head, state, rows.Texts(p for _, p in prompts), tokens, ["text"], size)
        rows.refuse_empty(usable, [prompt for _, prompt in prompts], instance)
        classes = zeroshot.class_embeddings(texts["text"], np.array([i for i, _ in prompts]), len(class_ids))
        table = rows.columns(source, ("boxes", "labels"), ragged=("boxes", "labels"))
        image, good = rows.encode(head, state, source, views, ["image"], size)
        found, truth = [], []
        for number in np.flatnonzero(good):
            one = detect({key: value[number] for key, value in image.items()}, classes, **options)
            found += [(len(truth), class_ids[kind], score, box) for kind, score, box in one]
            truth.append((np.asarray(table["boxes"][number]), np.asarray(table["labels"][number])))
        figures = {**{f"mAP@{t:g}": boxes_lib.mean_ap(found, truth, t) for t in thresholds},
                   **{f"recall@{t:g}": recall(found, truth, t) for t in thresholds},
                   "detections": len(found) / max(len(truth), 1), "images": float(len(truth)), "classes": float(len(class_ids))}
        return rows.with_bad(figures, good)

    return run


def detect(image, classes, temperature, overlap, keep, least, share):
    """[(class, score, box (4,)), ...] of one image, the best first.

    Args:
      image: what a head gives of it. classes: (C, D), unit.
    """
    if "boxes" in image:
        use = np.flatnonzero(image["confidence"] >= least)
        boxes, scores = image["boxes"][use], probabilities(image["features"][use] @ classes.T, temperature)
        scores = scores * image["confidence"][use][:, None]
        boxes = np.repeat(boxes[:, None], len(classes), axis=1)
    else:
        heat, proposals, scores = image["tokens"] @ classes.T, [], []
        for kind in range(len(classes)):
            box, cells = boxes_lib.from_heat(heat[:, kind], share)
            feature = image["tokens"][cells].mean(0)
            scores.append(probabilities((feature / max(np.linalg.norm(feature), 1e-12) @ classes.T)[None], temperature)[0, kind])
            proposals.append(box)
        boxes, scores = np.stack(proposals)[None], np.array(scores)[None]
    best = np.unravel_index(np.argsort(-scores, axis=None, kind="stable")[:4 * keep], scores.shape)
    result = []
    for kind in np.unique(best[1]):
        own = best[0][best[1] == kind]
        for at in boxes_lib.nms(boxes[own, kind], scores[own, kind], overlap):
            result.append((int(kind), float(scores[own[at], kind]), boxes[own[at], kind]))
    return sorted(result, key=lambda item: -item[1])[:keep]


def recall(found, truth, threshold):
    """The share of true boxes that a detection of their class and image overlaps by at least `threshold`."""
    hits = [np.zeros(len(kinds), bool) for _, kinds in truth]
    for number, kind, _, box in found:
        boxes, kinds = truth[number]
        hits[number] |= (kinds == kind) & (boxes_lib.iou(np.asarray(box)[None], boxes)[0] >= threshold)
    return float(np.mean(np.concatenate(hits)))


def probabilities(similarities, temperature):
    """Softmax over the last axis of similarities / temperature."""
    scaled = (similarities - similarities.max(-1, keepdims=True)) / temperature
    return np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
