"""Zero-shot grounding: for each named object of an image the box that fits its name best, right if it overlaps the true one.

What an instance may say is KEYS.

Candidates come from a head. "regions" gives "boxes" (b, M, 4), "confidence" (b, M), unit "features" (b, M, D), and "text" (b, D) of
texts: the region most similar to the name is taken. "dense" gives unit "tokens" (b, N, D) of a square grid and "text": the box
around the hottest part of the tokens' similarity to the name is taken. "heat" reads image and name together and gives maps "heat"
(b, layers, L, N), whose mean over the L positions of the text is the heat; images are encoded once by the head "states". So any two
towers can stand in one table with methods that learn regions or fuse.

Figures: accuracy@t, mean_iou, pointing (the middle of the box lies in the true one), queries, images; "bad", the images that can't
be read and are left out, when there are any; with `proposals` also
accuracy_proposals@t (a map that is cold in all of them chooses none and is wrong) and chance_proposals, the mean of 1 / m.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import boxes as boxes_lib
from mcd_jax.evals import rows

KEYS = {
    "source": Key("source", NEEDED, "with columns boxes (n, 4) and names (n str) of each image"),
    "views": Key("map of str", {}, "pipes of image and text, the names; left out: as in training, without randomness"),
    "thresholds": Key("tuple", (0.3, 0.5), "overlaps from which a box is right"),
    "share": Key("float", 0.5, "of the range of a heat map that its box takes in, see `boxes.from_heat`"),
    "use": Key("str", "auto", "regions | dense | heat | auto: the objective's head regions where it has one, else dense"),
    "layer": Key("int", 0, "which of the maps of the head heat, from 1; 0: the middle one, of six the third"),
    "proposals": Key("str | None", "", "a column of boxes (m, 4) of each image, out of which a heat map also chooses"),
    "power": Key("float", 0.5, "of a proposal's area, by which the heat inside it is divided"),
}
SOURCES = ("regions", "dense", "heat")
_PIXELS = 384   # of the side of a heat map when proposals are scored


def make(config, name):
    """fn(embed, state) -> {"accuracy@0.5": ..., ...}; `config`: see the module."""
    instance, proposals = f"grounding.{name}", config.get("proposals", "")
    source = rows.open_source(config["source"], ("boxes", "names", *filter(None, [proposals])), instance)
    image_view, text_view = (rows.pick(config["views"], [key], instance) for key in ("image", "text"))
    thresholds, share, size = tuple(config.get("thresholds", (0.3, 0.5))), config.get("share", 0.5), config.get("batch_size", 256)
    layer, power = config.get("layer", 0), config.get("power", 0.5)
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"config.evals.{instance}.layer={layer!r} must be the number of a map, from 1, or 0 for the middle one")

    def run(embed, state):
        use = chosen(embed, config.get("use", "auto"), instance, SOURCES)
        table = rows.columns(source, ("boxes", "names", *filter(None, [proposals])), ragged=("boxes", "names", proposals))
        if proposals and use == "regions":
            raise ValueError(f"config.evals.{instance}.proposals: the head 'regions' has boxes of its own: use='dense' or 'heat'")
        found = (of_pairs(embed, state, source, image_view, text_view, table["names"], size, layer, instance) if use == "heat" else
                 of_sides(embed.head(use), state, source, image_view, text_view, table["names"], size, instance))
        overlaps, points, images, picked, chance = [], [], 0, [], []
        for number, asked in found:
            images += 1
            for truth, (boxes, heat) in zip(np.asarray(table["boxes"][number]), asked):
                guess = boxes if heat is None else boxes_lib.from_heat(heat, share)[0]
                middle = (guess[:2] + guess[2:]) / 2
                overlaps.append(boxes_lib.iou(guess[None], truth[None])[0, 0])
                points.append((middle >= truth[:2]).all() and (middle <= truth[2:]).all())
                if proposals:
                    given = np.asarray(table[proposals][number])
                    scores = boxes_lib.proposal_scores(heat - min(heat.min(), 0), given, _PIXELS, _PIXELS, power)
                    right = boxes_lib.iou(given[np.argmax(scores)][None], truth[None])[0, 0]
                    picked.append(right if scores.max() > 0 else 0.0)
                    chance.append(1 / len(given))
        overlaps, picked = np.array(overlaps), np.array(picked)
        figures = {**{f"accuracy@{t:g}": float(np.mean(overlaps >= t)) for t in thresholds}, "mean_iou": float(np.mean(overlaps)),
                   "pointing": float(np.mean(points)), "queries": float(len(overlaps)), "images": float(images)}
        if proposals:
            figures |= {f"accuracy_proposals@{t:g}": float(np.mean(picked >= t)) for t in thresholds}
            figures["chance_proposals"] = float(np.mean(chance))
        return rows.with_bad(figures, np.arange(len(source)) < images)

    return run


def of_sides(head, state, source, image_view, text_view, names, size, instance):
    """(image number, [(box, None) or (None, heat) of each of its names]) of images that can be read; image and text apart."""
    image, good = rows.encode(head, state, source, image_view, ["image"], size)
    every = list(dict.fromkeys(name for own in names for name in own))
    text, usable = rows.encode(head, state, rows.Texts(every), text_view, ["text"], size)
    rows.refuse_empty(usable, every, instance)
    text = dict(zip(every, text["text"]))
    for number in np.flatnonzero(good):
        one = {key: value[number] for key, value in image.items()}
        yield number, [best(one, text[name]) for name in names[number]]


def of_pairs(embed, state, source, image_view, text_view, names, size, layer, instance):
    """The same of a head that reads an image and a name together; the states of `size` images are held at a time."""
    states, head = rows.like(embed.head("states"), embed), embed.head("heat")
    every = list(dict.fromkeys(name for own in names for name in own))
    tokens = dict(zip(every, rows.tokens(rows.Texts(every), text_view, None, size)))
    for start in range(0, len(source), size):
        held, good = rows.encode(states, state, source, image_view, ["image"], size,
                                 indices=np.arange(start, min(start + size, len(source))))
        pairs = [(at, name) for at in np.flatnonzero(good) for name in names[start + at]]
        heats = []
        for at in range(0, len(pairs), size):
            some = pairs[at:at + size]
            found = head(state, {"text": np.stack([tokens[name] for _, name in some]),
                                 "image_states": held["image_states"][[image for image, _ in some]]})
            heats.extend(map_of(found["heat"], layer, instance))
        heats = iter(heats)
        for at in np.flatnonzero(good):
            yield start + at, [(None, next(heats)) for _ in names[start + at]]


def map_of(heat, layer, instance):
    """(b, N), of maps (b, layers, L, N) that of one layer, averaged over the text; `layer` as in the config.

    Raises:
      ValueError: there is no such layer.
    """
    layers = heat.shape[1]
    if layer > layers:
        raise ValueError(f"config.evals.{instance}.layer={layer}: this objective's head 'heat' has {layers}")
    return heat[:, (layer or (layers + 1) // 2) - 1].mean(1)


def best(image, text):
    """(box (4,), None) of an image's region that fits a unit text (D,) best, or (None, heat (N,)) of its tokens."""
    if "boxes" in image:
        return image["boxes"][np.argmax(image["features"] @ text)], None
    return None, image["tokens"] @ text


def chosen(embed, use, instance, known=("regions", "dense")):
    """The name of the head that gives candidates, out of `known`.

    Raises:
      ValueError: `use` names one that the objective doesn't have.
    """
    name = use if use != "auto" else "regions" if "regions" in embed.heads else "dense"
    if name not in embed.heads or name not in known:
        raise ValueError(f"config.evals.{instance}.use={use!r}: candidates come from the head {' or '.join(map(repr, known))}, and "
                         f"this objective has {', '.join(sorted(embed.heads))}")
    return name
