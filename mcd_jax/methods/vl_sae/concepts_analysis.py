"""The concepts of sparse codes: what fires each unit, what its images and texts share, and why a pair belongs together.

For runs whose objective has a head "concepts". An instance of the run's `config.evals.concepts` gives the rows; `concepts_eval.py`
has the figures. Beside `<workdir>/analysis/concepts.json`, a page to browse them is written: `<workdir>/analysis/concepts.html`
opens offline (search by word, click a concept). Pictures come from the source itself, or for stored embeddings from the source
that was embedded, if it is still there.
"""
import numpy as np

from mcd_jax import analyze, command, trained
from mcd_jax import embed as embed_lib
from mcd_jax.data import decode as decode_lib
from mcd_jax.data import pipeline
from mcd_jax.data.tools import pack
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import rows
from mcd_jax.methods.vl_sae import concepts_eval
from mcd_jax.methods.vl_sae import concepts_section as concepts_section_lib
from mcd_jax.report import gallery

SIDE = 56   # pixels of a picture on the page


def arguments(parser):
    parser.add_argument("--workdir", type=command.path, action="append", required=True, help="folder of a run; as often as wanted")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="file.py[:arguments] in place of the config's evaluations")
    parser.add_argument("--instance", default="", help="of config.evals.concepts; the first when left out")
    parser.add_argument("--weights_from", "--read", default="", help="whose parameters; default: as the evaluation says")
    parser.add_argument("--top", type=command.whole(1), default=10, help="images and captions for each concept")
    parser.add_argument("--features", nargs="+", default=[], metavar="KEY=VALUE",
                        help="source of stored embeddings of the same rows that judges intra- and inter-similarity")
    parser.add_argument("--pair", type=command.whole(0), action="append", default=[], metavar="ROW",
                        help="row of the source to explain")
    parser.add_argument("--pairs", type=command.whole(0), default=8, help="so many random rows are explained beside them")
    parser.add_argument("--pictures", type=command.whole(0), default=4000, help="at most so many pictures on the page")


def run(args):
    """Measures every --workdir, writes `analysis/concepts.json` and `.html` into it, and prints a summary.

    Raises:
      ValueError, OSError: a folder that is no run, an instance that it doesn't have, or a row that isn't there.
    """
    found = {}
    for workdir in args.workdir:
        result = measure(workdir, args)
        path = analyze.write(workdir, "concepts", result, lambda name: concepts_section_lib.browser(analyze.plain(result), name))
        print(summary(result), f"wrote {path}", sep="\n", flush=True)
        found[workdir] = result
    return found


def measure(workdir, args):
    """Everything the page shows, as a dict that fits into JSON: figures, units, captions and pictures by row, pairs."""
    with trained.opened(workdir, args.step, args.evals) as (run, state, evals):
        return _measure(run, state, args, evals)


def _measure(run, state, args, given):
    if "concepts" not in run.objective.heads:
        raise ValueError(f"this run's objective has no head 'concepts': it has {', '.join(run.objective.heads)}")
    instances = given.get("concepts") or {}
    name = args.instance or next(iter(instances), "")
    if name not in instances:
        raise ValueError(f"--instance={name or '<name>'} must be one of config.evals.concepts: there are "
                         f"{', '.join(instances) or 'none; give one by --evals=file.py'}")
    settings = dict(instances[name])
    if args.features:
        settings["features"] = pack.read_source(args.features)
    weights_from = args.weights_from or settings.get("weights_from") or "params"
    embed = embedder_lib.on_mesh(run, weights_from, settings.get("batch_size", 256), concepts_eval.HEADS)
    source = rows.open_source(settings["source"], (), f"concepts.{name}")
    found = concepts_eval.gather(settings, f"concepts.{name}", embed, state, source)
    place = {int(row): i for i, row in enumerate(found["index"])}
    for row in args.pair:
        if row not in place:
            raise ValueError(f"--pair={row}: instance {name!r} has no such row it could read; it has {len(place)} of them")
    random = np.random.default_rng(0).permutation(found["index"])[:args.pairs].tolist()
    features = concepts_eval.judged(settings, found, f"concepts.{name}")
    result = {"step": int(state.step), "objective": str(run.config.objective.name), "instance": name, "weights_from": weights_from,
              "judge": "stored features" if settings.get("features") else "the run's own embeddings", "rows": len(place),
              "figures": concepts_eval.figures(found, features, args.top, settings.get("sample", 100)),
              **described(found, features, args.top), "pairs": explained(found, place, [*args.pair, *random])}
    shown = [row for unit in result["units"] for row, _ in unit["images"]]
    wanted = list(dict.fromkeys([*(pair["row"] for pair in result["pairs"]), *shown]))[:args.pictures]
    return {**result, "pictures": pictures(source, settings["source"], wanted)}


def described(found, features, top):
    """{"units": the living ones by mean activation, "captions": row -> text}.

    A unit has "unit" (its number), "mean", "images" and "texts" ([row, code] by code, at most `top`; a caption once), and "intra",
    the cosine of their mean features (None where it has only one kind).
    """
    image, text = found["image_codes"], found["text_codes"]
    first, mean = concepts_eval.distinct(found["texts"]), concepts_eval.mean_activation(image, text)
    image_rows = concepts_eval.top_rows(image, top)
    text_rows = [first[own] for own in concepts_eval.top_rows(text[first], top)]
    units, used = [], set()
    for i in np.argsort(-mean, kind="stable").tolist():
        x, y = image_rows[i], text_rows[i]
        if not len(x) and not len(y):
            continue
        intra = concepts_eval.similarities(*features, [x], [y])["intra"] if len(x) and len(y) else None
        units.append({"unit": i, "mean": float(mean[i]), "intra": intra,
                      **{key: [[int(found["index"][r]), float(codes[r, i])] for r in own]
                         for key, codes, own in (("images", image, x), ("texts", text, y))}})
        used.update(map(int, (*x, *y)))
    return {"units": units, "captions": {str(found["index"][r]): found["texts"][r] for r in sorted(used)}}


def explained(found, place, chosen):
    """[{"row", "text", "shared", "image", "caption"}] of rows: concepts as [unit, score], of the pair and of either side alone."""
    mean = concepts_eval.mean_activation(found["image_codes"], found["text_codes"])
    result = []
    for row in dict.fromkeys(map(int, chosen)):
        x, y = (found[f"{kind}_codes"][place[row]] for kind in ("image", "text"))
        result.append({"row": row, "text": found["texts"][place[row]], "shared": concepts_eval.explain(x, y, mean, 8),
                       "image": concepts_eval.explain(x, None, mean, 8), "caption": concepts_eval.explain(None, y, mean, 8)})
    return result


def pictures(source, spec, wanted):
    """{row: data URI} of the rows that have a picture, in the source or in the one whose embeddings it stores."""
    if not wanted:
        return {}
    behind, places = source, wanted
    if "image" not in source[wanted[0]]:
        behind, _ = embed_lib.origin(spec["path"]) if isinstance(spec.get("path"), str) else (None, {})
        places = rows.columns(source, ["index"], wanted)["index"].tolist()
        if behind is None or max(places) >= len(behind):
            return {}
    views = pipeline.Views({"image": f"decode|center({SIDE})"})
    try:
        shown = gallery.pixels(behind, views, places)
    except decode_lib.Bad:
        return {}
    return {str(row): gallery.uri(picture["image"]) for row, picture in zip(wanted, shown)}


def summary(result):
    """Lines for the terminal."""
    f = result["figures"]
    lines = [f"step {result['step']:,}, {result['rows']:,} pairs of {result['instance']}: {f['units']:.0f} units, {f['dead']:.0f} "
             f"dead, {f['fires']:.1f} fire per row; similarities by {result['judge']}",
             "  " + ", ".join(f"{key} {f[key]:.4f}" for key in ("intra", "inter", "inter_upper", "pair_cosine", "random_cosine",
                                                               "explained/image", "explained/text") if f.get(key) is not None)]
    for pair in result["pairs"][:3]:
        shared = ", ".join(f"{unit} ({score:.2f})" for unit, score in pair["shared"][:5])
        lines.append(f"  row {pair['row']} {pair['text']!r}: {shared or 'no shared concept'}")
    return "\n".join(lines)
