"""Where in an image each text looks: maps of a head that reads image and text together, drawn over the images.

For runs whose objective has the heads "states" and "heat". The images are random rows of an instance of config.evals.grounding
(each with the names of what it shows, boxes drawn in) or else of .retrieval (each with its own caption and, for contrast, with that
of another row). Beside `<workdir>/analysis/attention.json` a page `attention.html` is written.
"""
import cv2
import numpy as np

from mcd_jax import analyze, command, trained
from mcd_jax.evals import boxes as boxes_lib
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import grounding, rows
from mcd_jax.html import document
from mcd_jax.methods.albef import attention_section
from mcd_jax.report.gallery import caption, pixels, uri

SIDE = 120   # pixels of a picture on the page
TRUE, GUESS = (5, 150, 105), (255, 255, 255)   # colours of boxes


def arguments(parser):
    parser.add_argument("--workdir", type=command.path, action="append", required=True, help="folder of a run; as often as wanted")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="file.py[:arguments] in place of the config's evaluations")
    parser.add_argument("--instance", default="", help="of config.evals.grounding or .retrieval; the first when left out")
    parser.add_argument("--weights_from", "--read", default="params", help="whose parameters, such as memory/teacher")
    parser.add_argument("--layer", type=command.whole(0), default=0, help="which map, from 1; 0: the middle one")
    parser.add_argument("--images", type=command.whole(1), default=8, help="so many random images")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")


def run(args):
    """Draws for every --workdir, writes `analysis/attention.json` and `.html` into it, and prints a summary.

    Raises:
      ValueError, OSError: a folder that is no run, an objective without such maps, or an evaluation or layer that there isn't.
    """
    found = {}
    for workdir in args.workdir:
        found[workdir] = result = measure(workdir, args)
        path = analyze.write(workdir, "attention", result, lambda name: document(
            f"{name}: attention", [], {"attention": (attention_section.TITLE, attention_section.section(result))}))
        print(summary(result), f"wrote {path}", sep="\n", flush=True)
    return found


def measure(workdir, args):
    """Everything the page shows, as a dict that fits into JSON."""
    with trained.opened(workdir, args.step, args.evals) as (run, state, evals):
        lacking = [name for name in ("states", "heat") if name not in run.objective.heads]
        if lacking:
            raise ValueError(f"{workdir}: its objective has no head {lacking[0]!r}, which this analysis draws; it has "
                             f"{', '.join(run.objective.heads)}")
        kind, name, settings = instance_of(evals, args.instance)
        size = embedder_lib.batch_rows(32, run.mesh)
        embed = embedder_lib.on_mesh(run, args.weights_from, size, ("states",))
        found = draw(embed, state, settings, kind, name, args, size)
        return {"step": int(state.step), "instance": f"{kind}.{name}", "weights_from": args.weights_from, **found}


def instance_of(evals, name):
    """(module, instance, settings) of the evaluation that gives the images.

    Raises:
      ValueError: there is none of that name.
    """
    found = [(kind, key, own) for kind in ("grounding", "retrieval") for key, own in (evals.get(kind) or {}).items()
             if own.get("weights_from") != "init" and name in ("", key)]
    if not found:
        raise ValueError(f"--instance={name or '<name>'} must be an instance of config.evals.grounding or .retrieval; give one by "
                         "--evals=mosaics_emoji")
    return found[0]


def draw(embed, state, settings, kind, name, args, size):
    """{"layer", "layers", "rows": [{"image", "row", "texts": [...]}]} of random images of a source; pictures are data URIs."""
    source = rows.open_source(settings["source"], ("boxes", "names") if kind == "grounding" else (), name)
    views = {key: rows.pick(settings["views"], [key], name) for key in ("image", "text")}
    places = np.sort(np.random.default_rng(args.seed).choice(len(source), min(args.images, len(source)), replace=False))
    held, good = rows.encode(embed, state, source, views["image"], ["image"], size, indices=places)
    examples = [source[int(place)] for place in places]
    if kind == "grounding":
        asked = [[(text, box) for text, box in zip(row["names"], row["boxes"])] for row in examples]
    else:
        captions = [caption(row) for row in examples]
        asked = [[(text, None), (other, None)] for text, other in zip(captions, captions[1:] + captions[:1])]
    pairs = [(at, text) for at in np.flatnonzero(good) for text, _ in asked[at]]
    tokens = rows.tokens(rows.Texts(text for _, text in pairs), views["text"], None, size)
    out = embed.head("heat")(state, {"text": tokens, "image_states": held["image_states"][[at for at, _ in pairs]]})
    layers, tokenizer = out["heat"].shape[1], views["text"].tokens["text"][0]
    overall, layer = grounding.map_of(out["heat"], args.layer, name), (args.layer or (layers + 1) // 2) - 1
    result, number = [], 0
    for at in np.flatnonzero(good):
        picture, texts = pixels(source, views["image"], places[at:at + 1])[0]["image"], []
        for place, (text, truth) in enumerate(asked[at]):
            heat, words = overall[number], out["heat"][number, layer]
            guess = boxes_lib.from_heat(heat)[0]
            texts.append({"text": text, "own": kind == "grounding" or place == 0, "score": float(out["score"][number]),
                          "iou": None if truth is None else float(boxes_lib.iou(guess[None], np.asarray(truth)[None])[0, 0]),
                          "map": uri(overlay(picture, heat, [] if truth is None else [(truth, TRUE), (guess, GUESS)])),
                          "words": [(piece(tokenizer, token), uri(overlay(picture, words[i], top=words.max())))
                                    for i, token in enumerate(tokens[number]) if words[i].any()]})
            number += 1
        result.append({"image": uri(enlarged(picture)), "row": int(places[at]), "texts": texts})
    return {"layer": layer + 1, "layers": layers, "rows": result}


def piece(tokenizer, token):
    """The letters of a token."""
    return " ".join(letters for _, letters in tokenizer.pieces([int(token)])) or "·"


def enlarged(picture):
    """uint8 (SIDE, SIDE, 3)."""
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(picture) > SIDE else cv2.INTER_CUBIC)


def overlay(picture, heat, boxes=(), top=None):
    """A map (side * side,) over a picture, uint8 (SIDE, SIDE, 3): grey where cold, red where it reaches `top` (its own maximum).

    Args:
      boxes: [(box (4,) as shares, colour), ...].
    """
    side = round(len(heat) ** 0.5)
    top = heat.max() if top is None else top
    grid = np.clip(heat.reshape(side, side) / max(float(top), 1e-20), 0, 1).astype(np.float32)
    share = np.clip(cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), 0, 1)[:, :, None]
    grey = np.repeat(enlarged(picture).mean(2, keepdims=True), 3, axis=2) * 0.5 + 127 * 0.5
    warm = np.array([[[220, 38, 38]]]) * share + np.array([[[250, 204, 21]]]) * (1 - share)   # from yellow to red
    drawn = np.ascontiguousarray((grey * (1 - 0.8 * share) + warm * 0.8 * share).astype(np.uint8))
    for box, colour in boxes:
        left, top_, right, bottom = (round(float(v)) for v in np.asarray(box) * (SIDE - 1))
        cv2.rectangle(drawn, (left, top_), (right, bottom), colour, 2)
    return drawn


def summary(result):
    """The figures of one run as text."""
    texts = [text for row in result["rows"] for text in row["texts"]]
    own, other = ([t["score"] for t in texts if t["own"] == which] for which in (True, False))
    line = (f"attention of step {result['step']:,} on {result['instance']}: {len(result['rows'])} images, {len(texts)} texts, "
            f"layer {result['layer']} of {result['layers']}; mean match logit {np.mean(own):.2f}")
    return line + (f", of other texts {np.mean(other):.2f}" if other else "")
