"""Which experts see what: modalities, concepts, patches and tokens at every expert of a run with mixtures.

Pairs of an evaluation go through the trained towers, each modality by itself, without noise and with the places that evaluations
have. An expert "sees" a token when the router's choice is it, whether or not it has room. Beside `analysis/experts.json`, which the
report draws, the page is written by itself as `<workdir>/analysis/experts.html`.
"""
import collections

import jax
import numpy as np

from mcd_jax import analyze, command, trained
from mcd_jax.data import pipeline
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import rows
from mcd_jax.html import document
from mcd_jax.methods.limoe import experts_section
from mcd_jax.objectives import two_tower
from mcd_jax.report.gallery import uri

KINDS = ("image", "text", "padding")


def arguments(parser):
    parser.add_argument("--workdir", type=command.path, action="append", required=True, help="folder of a run; as often as wanted")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="file.py[:arguments] in place of the config's evaluations")
    parser.add_argument("--weights_from", "--read", default="params", help="whose parameters, such as memory/teacher")
    parser.add_argument("--pairs", default="", help="instance of config.evals.gap or .retrieval, in place of the first")
    parser.add_argument("--rows", type=command.whole(1), default=512, help="at most so many pairs")
    parser.add_argument("--concepts", default="group", help="stored column that says what an image shows; '' for none")
    parser.add_argument("--examples", type=command.whole(0), default=10, help="patches and tokens shown of each expert")


def run(args):
    """Measures every --workdir, writes `analysis/experts.json` and `.html` into it, and prints a summary.

    Raises:
      ValueError, OSError: a folder that is no run, a model without experts, or an evaluation that there isn't.
    """
    found = {}
    for workdir in args.workdir:
        found[workdir] = result = measure(workdir, args)
        path = analyze.write(workdir, "experts", result, lambda name: document(
            f"{name}: experts", [], {"experts": (experts_section.TITLE, experts_section.section(result))}))
        print(summary(result), f"wrote {path}", sep="\n", flush=True)
    return found


def measure(workdir, args):
    """Everything the page shows, as a dict that fits into JSON."""
    with trained.opened(workdir, args.step, args.evals) as (run, state, evals):
        towers = two_tower.towers_of(run.config)
        if not towers.experts:
            raise ValueError(f"{workdir} has no experts to train: this analysis is of models with config.model.*.experts")
        name, settings = pairs_of(evals, args.pairs)
        params = embedder_lib.parameters(state, args.weights_from)
        seen = route(towers, params, settings, name, args, run)
        layers = [layer(seen, i, towers, args.examples) for i in range(max(towers.mixtures.values()))]
        return {"step": int(state.step), "pairs": name, "rows": len(seen["rows"]), "num": max(
                    e.num for e in towers.experts.values()), "shared": towers.both is not None, "weights_from": args.weights_from,
                "concepts": args.concepts if seen["concepts"] is not None else "", "layers": layers}


def pairs_of(evals, name):
    """(instance, settings) of the evaluation that gives the pairs.

    Raises:
      ValueError: there is none of that name.
    """
    found = {key: own for module in ("gap", "retrieval") for key, own in (evals.get(module) or {}).items()
             if own.get("weights_from") != "init"}
    if not found or (name and name not in found):
        raise ValueError(f"--pairs={name or '<instance>'} must be an instance of config.evals.gap or .retrieval: there is "
                         f"{', '.join(found) or 'none; give one by --evals=file.py'}")
    name = name or next(iter(found))
    return name, found[name]


def route(towers, params, settings, name, args, run):
    """What the routers choose for the pairs: {"image", "text"} of (layers, n, N, k) arrays, and what the tokens are."""
    source = rows.open_source(settings["source"], (), name)
    places = rows.sample(source, dict(settings.get("where") or {}), args.rows, name)
    views = rows.pick(settings["views"], ["image", "text"], name)
    row = source[int(places[0])]
    concepts = rows.columns(source, [args.concepts], places)[args.concepts].astype(str) if args.concepts in row else None
    if args.concepts and concepts is None and args.concepts != "group":
        raise ValueError(f"--concepts={args.concepts}: the pairs have no such column; there are {', '.join(sorted(row))}")
    size = embedder_lib.batch_rows(64, run.mesh)
    place = embedder_lib.placement(run.mesh)
    chosen = {kind: jax.jit(lambda p, x, kind=kind: towers.routes(p, kind, x)) for kind in towers.experts}
    parts, inputs = collections.defaultdict(list), collections.defaultdict(list)
    for batch in pipeline.sequential(source, views, size, seed=0, indices=places):
        good = ~batch["bad"]
        for kind in ("image", "text"):
            inputs[kind].append(batch[kind][good])
            if kind in chosen:
                padded = place({kind: embedder_lib.pad(batch[kind], size)})
                out = jax.device_get(chosen[kind](params, padded[kind]))
                parts[kind].append({key: value[:, :len(good)][:, good] for key, value in out.items()})
        inputs["good"].append(good)
    good = np.concatenate(inputs["good"])
    tokens = np.concatenate(inputs["text"])
    tokenizer, _ = views.tokens["text"]
    return {"pixels": np.concatenate(inputs["image"]), "tokens": tokens, "tokenizer": tokenizer, "pad": padding(tokens, tokenizer),
            "concepts": None if concepts is None else concepts[good], "rows": [int(i) for i in places[good]],
            **{kind: {key: np.concatenate([p[key] for p in own], axis=1) for key in own[0]} for kind, own in parts.items()}}


def padding(tokens, tokenizer):
    """Where tokens (n, L) are padding, bool; the first end of a text is none, even where both have one id."""
    found = tokens == tokenizer.pad
    if tokenizer.pad == tokenizer.eot:
        found &= np.cumsum(found, axis=1) > 1
    return found


# ---- one mixture ---------------------------------------------------------------------------------------------------------------


def layer(seen, i, towers, examples):
    """One mixture: shares by modality, entropies, and every expert's concepts, patches and tokens."""
    tokens = {}   # kind -> (expert, gate, kept, row, position), one entry for each choice of a token
    for kind in towers.experts:
        if i >= len(seen[kind]["expert"]):
            continue
        expert, gate, kept = (seen[kind][key][i] for key in ("expert", "gate", "kept"))
        row, position, _ = np.indices(expert.shape)
        flat = [x.reshape(-1) for x in (expert, gate, kept, row, position)]
        if kind == "text":
            pad = np.broadcast_to(seen["pad"][:, :, None], expert.shape).reshape(-1)
            tokens["padding"], flat = [x[pad] for x in flat], [x[~pad] for x in flat]
        tokens[kind] = flat
    num = max(e.num for e in towers.experts.values())
    count = {kind: np.bincount(own[0], minlength=num) for kind, own in tokens.items()}
    share = {kind: own / max(own.sum(), 1) for kind, own in count.items()}
    named, seen_by = concepts(seen, tokens, num), np.maximum(sum(count.values()), 1)
    return {"share": {kind: own.tolist() for kind, own in share.items()},
            "kept": {kind: float(own[2].mean()) if len(own[2]) else None for kind, own in tokens.items()},
            "used": {kind: float(np.exp(-np.sum(own * np.log(np.where(own > 0, own, 1))))) for kind, own in share.items()},
            "experts": [{"images": float(count["image"][e] / seen_by[e]) if "image" in count else None,
                         "concepts": named[e], "patches": patches(seen, tokens.get("image"), e, examples),
                         "tokens": words_of(seen, tokens.get("text"), e, examples)} for e in range(num)]}


def concepts(seen, tokens, num, top=3, least=20):
    """Of each expert the concepts whose patches and words come to it most above average: [(name, times as often, share)]."""
    if seen["concepts"] is None:
        return [[] for _ in range(num)]
    names, number = np.unique(seen["concepts"], return_inverse=True)
    table = np.zeros((len(names), num))
    for kind in ("image", "text"):
        if kind in tokens:
            np.add.at(table, (number[tokens[kind][3]], tokens[kind][0]), 1)
    of_concept = table / np.maximum(table.sum(1, keepdims=True), 1)
    average = table.sum(0) / max(table.sum(), 1)
    found = []
    for e in range(num):
        times = of_concept[:, e] / max(average[e], 1e-9)
        order = [j for j in np.argsort(-times, kind="stable") if table[j].sum() >= least and times[j] > 1][:top]
        found.append([(str(names[j]), float(times[j]), float(of_concept[j, e])) for j in order])
    return found


def patches(seen, tokens, e, top):
    """The surest patches of an expert, one of a picture: [{"image": data URI of it among its neighbours, "gate", "row"}]."""
    if tokens is None:
        return []
    expert, gate, _, row, position = tokens
    mine = np.flatnonzero(expert == e)
    mine = mine[np.argsort(-gate[mine], kind="stable")]
    _, first = np.unique(row[mine], return_index=True)
    grid = round((int(position.max()) + 1) ** 0.5)
    chosen = mine[np.sort(first)][:top]
    return [{"image": uri(spot(seen["pixels"][row[t]], int(position[t]), grid)), "gate": float(gate[t]),
             "row": seen["rows"][row[t]]} for t in chosen]


def spot(picture, position, grid):
    """uint8 (H, W, 3): the picture paled but for one patch of its grid."""
    side = picture.shape[0] // grid
    y, x = divmod(position, grid)
    here = slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side)
    pale = (0.3 * picture + 0.7 * 255).astype(np.uint8)
    pale[here] = picture[here]
    return pale


def words_of(seen, tokens, e, top, least=3):
    """Tokens that go to an expert most often, of those seen `least` times: [(text, share of its occurrences, occurrences)]."""
    if tokens is None:
        return []
    expert, _, _, row, position = tokens
    ids = seen["tokens"][row, position]
    names, number = np.unique(ids, return_inverse=True)
    total, here = np.bincount(number), np.bincount(number, weights=expert == e)
    share = here / total
    order = sorted((j for j in range(len(names)) if total[j] >= least and here[j] > 0), key=lambda j: (-share[j], -total[j]))[:top]
    text = [" ".join(piece for _, piece in seen["tokenizer"].pieces([names[j]])) for j in order]
    return [(text, float(share[j]), int(total[j])) for text, j in zip(text, order, strict=True)]


# ---- words ---------------------------------------------------------------------------------------------------------------------


def summary(result):
    """The figures of one run as text."""
    lines = [f"experts of step {result['step']:,} on {result['pairs']} ({result['rows']:,} pairs)"]
    for i, own in enumerate(result["layers"]):
        lines.append(f"  mixture {i}: " + "; ".join(
            f"{kind} use {own['used'][kind]:.1f} of {result['num']} experts, busiest {100 * max(own['share'][kind]):.0f}%"
            for kind in KINDS if kind in own["used"]))
    return "\n".join(lines)
