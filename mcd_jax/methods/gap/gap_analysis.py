"""The modality gap of trained runs: moving along it, the loss around it, cones, seeds, and a table over runs.

After Liang et al., NeurIPS 2022. What is taken from a run's `config.evals` (or from the files of --evals):

  gap        the first instance gives the image-text pairs for the gap itself, the cones and the seeds; the loss landscape is made
             for each
  retrieval, zeroshot   every instance is measured at every move along the gap. The move is chosen on the instances named by
             --choose (by default those with "validation" in the name), and reported on all beside no move and their own best move
  fairness   every instance is measured while the images alone move along the gap of the pairs

Instances that read the untrained network are left out, and so are figures `without` some rows.
"""
import functools
import itertools
import pathlib
import re

import jax
import numpy as np

from mcd_jax import analyze, command, trained
from mcd_jax import config as config_lib
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import retrieval, zeroshot
from mcd_jax.methods.gap import cone, fairness_eval, gap_eval, landscape, move_sweep, shift
from mcd_jax.run import results, small_files
from mcd_jax.run import workdir as workdir_lib

DELTAS = tuple(np.arange(-3.0, 3.001, 0.125).tolist())       # of the landscape; the paper: -5 to 5 by 0.25
IMAGE_DELTAS = tuple(round(float(v), 2) for v in np.arange(-1.0, 1.001, 0.1))
ELEVATIONS = tuple(range(-90, 91))
BINS = 100
SIZES = (*results.COUNTS, "chance")
MODULES = {"retrieval": retrieval, "zeroshot": zeroshot, "fairness": fairness_eval}


def arguments(parser):
    parser.add_argument("--workdir", type=command.path, action="append", required=True,
                        help="folder of a run; as often as wanted, for a table")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="file.py[:arguments] in place of the config's evaluations")
    parser.add_argument("--weights_from", "--read", default="",
                        help="whose parameters, such as memory/teacher; default: as each evaluation says")
    parser.add_argument("--pairs", default="", help="instance of config.evals.gap, in place of all")
    parser.add_argument("--choose", action="append", default=[], help="module/instance on which the move is chosen")
    parser.add_argument("--metric", default="MRR", help="figure of retrieval, the mean of both directions, that chooses the move")
    parser.add_argument("--vector", choices=("choose", "own"), default="choose",
                        help="the gap vector to move along: of the data that chooses, or of each data set itself")
    parser.add_argument("--batches", choices=("shuffled", "consecutive"), default="shuffled",
                        help="pairs in a batch of the loss landscape; the paper takes consecutive ones of COCO")
    parser.add_argument("--seeds", type=command.whole(0), default=3, help="untrained networks to compare; below 2: none")
    parser.add_argument("--rows", type=command.whole(1), default=500, help="at most so many pairs for untrained networks and noise")
    parser.add_argument("--only_table", action="store_true", help="measure nothing, print what the folders hold")


def run(args):
    """Measures every --workdir, writes `analysis/gap.json` into it, and prints a table.

    Raises:
      ValueError, OSError: a folder that is no run, or an evaluation that it doesn't have.
    """
    found = {}
    for workdir in args.workdir:
        if not args.only_table:
            result = measure(workdir, args)
            path = analyze.write(workdir, "gap", result)
            print(summary(result), f"wrote {path}; mcd-jax report --workdir={workdir} draws it", sep="\n", flush=True)
        found[workdir] = stored(workdir)
    if len(found) > 1 or args.only_table:
        print(table(found), flush=True)
    return found


def stored(workdir):
    """What an earlier call wrote.

    Raises:
      FileNotFoundError: nothing yet.
    """
    with workdir_lib.opened(workdir, write=False) as small:
        path = small.folder / "analysis" / "gap.json"
        if not path.exists():
            raise FileNotFoundError(f"{workdir} has no analysis/gap.json yet: run without --only_table")
        return small_files.read(path)


# ---- one run -------------------------------------------------------------------------------------------------------------------


def measure(workdir, args):
    """Everything the module docstring names, as a dict that fits into JSON."""
    with trained.opened(workdir, args.step, args.evals) as (run, state, evals):
        return _measure(run, state, args, evals)


def _measure(run, state, args, evals):
    @functools.cache
    def embed(weights_from):
        return embedder_lib.on_mesh(run, weights_from)

    def collect(module, name, settings, weights_from=None, state=state):
        settings = {k: v for k, v in settings.items() if k != "without"}
        own, score = module.parts(settings, name)
        image, text, rest = own(embed(weights_from or args.weights_from or settings.get("weights_from") or "params"), state)
        return shift.unit(image), shift.unit(text), lambda x, y: score(x, y, rest)

    # ---- the pairs: gap, landscape, cones ----
    names = pick(evals.get("gap") or {}, args.pairs)
    name, settings = names[0], evals["gap"][names[0]]
    pairs = {key: collect(gap_eval, key, evals["gap"][key]) for key in names}
    image, text, score = pairs[name]
    along, scale = shift.vector(image, text), logit_scale(state.params)
    scales = sorted({*landscape.SCALES, *([] if scale is None else [round(scale, 1)])}, reverse=True)
    result = {"step": int(state.step), "objective": config_lib.title(run.config.objective), "seed": int(run.config.seed),
              "weights_from": args.weights_from or settings.get("weights_from") or "params", "logit_scale": scale,
              "temperature": temperature(run.config),
              "pairs": name, "vector": args.vector, "rows": len(image), "figures": score(image, text), "batches": args.batches,
              "landscape": {key: around(*own[:2], scales, args.batches) for key, own in pairs.items()},
              "cone": {"trained": {"image": cone.cosines(image, bins=BINS), "text": cone.cosines(text, bins=BINS)}},
              "sphere": {"mismatched": landscape.sphere(ELEVATIONS), "matched": landscape.sphere(ELEVATIONS, mismatched=False)},
              "depth": {name: cone.depth(name, rows=256) for name in cone.ACTIVATIONS}}

    # ---- untrained networks ----
    few = {**settings, "n": min(args.rows, settings.get("n") or args.rows)}
    untrained = [collect(gap_eval, name, few, "init", run.init(jax.random.key(run.config.seed + i)))[:2]
                 for i in range(max(1, args.seeds))]
    image, text = untrained[0]
    noise = embed("init")(run.init(jax.random.key(run.config.seed)), random_inputs(run.config.model, len(image)))
    result["cone"]["untrained"] = {"image": cone.cosines(image, bins=BINS), "text": cone.cosines(text, bins=BINS)}
    result["cone"]["noise"] = {key: cone.cosines(noise[key], bins=BINS) for key in ("image", "text")}
    turned = shift.unit(text @ shift.rotation(image, text).T)
    result["start"] = {"distance": shift.distance(image, text), "rotated": shift.distance(image, turned)}
    if args.seeds > 1:
        result["seeds"] = {key: cone.seeds([rows[i] for rows in untrained]) for i, key in enumerate(("image", "text"))}

    # ---- figures along the gap ----
    found = {f"{module}/{name}": (module, *collect(MODULES[module], name, settings)) for module in MODULES
             for name, settings in (evals.get(module) or {}).items() if settings.get("weights_from") != "init"}
    fair = {key: found.pop(key) for key in [key for key in found if found[key][0] == "fairness"]}
    result |= along_the_gap(found, args.choose, args.metric, args.vector)
    result["fairness"] = {key: move_sweep.curve(*own, IMAGE_DELTAS, along, "images") for key, (_, *own) in fair.items()}
    return result


def along_the_gap(found, choose=(), metric="MRR", vector="choose", amounts=move_sweep.LAMBDAS):
    """Figures at every move, and the moves that the validation data choose.

    Args:
      found: {"retrieval/validation": ("retrieval", image rows, text rows, score), ...}.
      choose: keys of `found` that choose; empty: those with "validation" in the name.
      metric: of retrieval; zero-shot classification chooses by top1.
      vector: "choose": the gap vector is that of the data that choose; "own": of each.

    Returns:
      {"curves": key -> `sweep.curve`, "judge": key -> the key that chooses for it, "choice": judge -> {"metric", "place", "amount",
      "gap"}, "moved": key -> `sweep.compare`}. Where several of a module choose, the one whose name begins most alike does; where
      none does, that of another module. Without any, nothing is chosen or compared.

    Raises:
      ValueError: --choose names what isn't there, or --metric a figure that it doesn't give.
    """
    for key in choose:
        if key not in found:
            raise ValueError(f"--choose={key}: there are {', '.join(found) or 'no evaluations'}")
    judges = list(choose) or [key for key in found if "validation" in key.rpartition("/")[2]]
    judge = {key: max(judges, key=lambda j, key=key: (j == key, alike(j, key))) for key in found if judges}
    curves, choices = {}, {}
    for key, (_, image, text, score) in found.items():
        own = shift.vector(*found[judge[key]][1:3]) if judges and vector == "choose" else shift.vector(image, text)
        curves[key] = move_sweep.curve(image, text, score, amounts, own)
        curves[key]["figures"] = {k: v for k, v in curves[key]["figures"].items() if not k.rpartition("/")[2].startswith(SIZES)}
    for key in dict.fromkeys(judge.values()):
        wanted = metric if found[key][0] == "retrieval" else "top1"
        figures = [k for k in curves[key]["figures"] if k.rpartition("/")[2] == wanted]
        if not figures:
            raise ValueError(f"--metric={metric}: {key} gives {', '.join(curves[key]['figures'])}")
        place = move_sweep.best(curves[key], figures)
        choices[key] = {"metric": ", ".join(figures), "place": place, "amount": amounts[place], "gap": curves[key]["gap"][place]}
    moved = {key: move_sweep.compare(curves[key], choices[judge[key]]["place"]) for key in judge}
    return {"curves": curves, "judge": judge, "choice": choices, "moved": moved}


def alike(a, b):
    """How many words two keys have in common at their beginnings: "zeroshot/labels_x" and "zeroshot/labels_y" have 2."""
    pairs = zip(*(re.split("[/_]", key) for key in (a, b)))
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def around(image, text, scales, batches):
    """The loss landscape of pairs, in batches of their own order or of a random one."""
    order = np.random.default_rng(0).permutation(len(image)) if batches == "shuffled" else np.arange(len(image))
    return landscape.landscape(image[order], text[order], DELTAS, scales)


def pick(instances, name):
    """[name], or all instances of the trained network.

    Raises:
      ValueError: there is none.
    """
    trained = [key for key, settings in instances.items() if settings.get("weights_from") != "init"]
    if not trained or (name and name not in trained):
        raise ValueError(f"--pairs={name or '<instance>'} must be an instance of config.evals.gap, which gives the image-text "
                         f"pairs: there is {', '.join(trained) or 'none; give one by --evals=file.py'}")
    return [name] if name else trained


def logit_scale(params):
    """exp(logit_scale) of a parameter tree, or None where it has none."""
    return float(np.exp(np.asarray(params["logit_scale"]))) if "logit_scale" in params else None


def temperature(config):
    """Whether the optimizer leaves the temperature where it is: "fixed" or "learned"."""
    for regex, spec in config.optimizer.schedule if isinstance(config.optimizer.schedule, (list, tuple)) else ():
        if re.fullmatch(regex, "logit_scale"):
            return "fixed" if spec is None else "learned"
    return "learned"


def random_inputs(model, n, seed=0):
    """The paper's noise: pixels that are standard normal after preprocessing (float32 (n, H, H, 3)), uniformly random token ids.

    Args:
      model: resolved `config.model`. The last token is the end-of-text id, so that a tower which pools there has it.
    """
    rng, inputs = np.random.default_rng(seed), model["inputs"]
    mean, std = (np.broadcast_to(np.asarray(model.get(key, 0.5), np.float32), (3,)) for key in ("mean", "std"))
    pixels = 255 * (mean + std * rng.standard_normal((n, inputs["image_size"], inputs["image_size"], 3), np.float32))
    tokens = rng.integers(0, inputs["vocab_size"], (n, inputs["context"]), np.int32)
    tokens[:, -1] = inputs["eot"]
    return {"image": pixels, "text": tokens}


# ---- words ---------------------------------------------------------------------------------------------------------------------


def summary(result):
    """The figures of one run as text."""
    own, start = result["figures"], result["start"]
    lines = [f"gap of step {result['step']:,} on {result['pairs']} ({result['rows']:,} pairs): {own['distance']:.3f} "
             f"(means {own['norm_image']:.3f} and {own['norm_text']:.3f} long, pairs' cosine {own['pair_cosine']:.3f}); "
             f"untrained {start['distance']:.3f}, with the texts rotated onto the images {start['rotated']:.3f}"]
    for weights, sides in result["cone"].items():
        lines.append(f"  cone, {weights}: " + ", ".join(
            f"{key} mean {c['mean']:.3f} least {c['min']:.3f}" for key, c in sides.items()))
    for key, s in result.get("seeds", {}).items():
        lines.append(f"  two seeds, {key}: centers {s['distance']:.3f} apart, {100 * s['separated']:.0f}% nearest to their own, "
                     f"{100 * s['variance']:.0f}% of the variance")
    for key, surface in result["landscape"].items():
        lows = ", ".join(f"{low:+.3f} at 1/{scale:g}{' (edge)' * edge(surface, low)}" for scale, low in zip(
            surface["scales"], surface["best"]))
        lines.append(f"  gap {surface['gap'][DELTAS.index(0.0)]:.3f} on {key}; the loss is lowest at gap {lows}")
    for key, choice in result["choice"].items():
        lines.append(f"  move {choice['amount']:+.2f}, to gap {choice['gap']:+.3f}, chosen on {key} by {choice['metric']}")
    if result["moved"]:
        head = ("", "default", "chosen", "oracle", "(move)")
        lines.append(f"  {head[0]:58}" + "".join(f"{h:>9}" for h in head[1:]))
        for key, figures in result["moved"].items():
            for name, v in figures.items():
                if name.rpartition("/")[2] in ("R@1", "R@10", "top1"):
                    cells = [results.number("R@1", v[k]) for k in ("default", "chosen", "oracle")] + [f"{v['oracle_amount']:+.2f}"]
                    lines.append(f"  {key + ' ' + name:58}" + "".join(f"{c:>9}" for c in cells))
    return "\n".join(lines)


def edge(surface, gap_at):
    """Whether the lowest loss of a landscape stands at the end of its sweep, and may go on falling."""
    return gap_at in (surface["gap"][0], surface["gap"][-1])


COLUMNS = ("objective", "seed", "step", "scale", "temperature", "start", "gap", "|image|", "|text|", "pair", "validation R@1")


def line(result):
    """The cells of `COLUMNS` of one run, as text."""
    own, judges = result["figures"], [key for key in result["choice"] if key.startswith("retrieval/")]
    recall = [v["default"] for key in judges[:1] for k, v in result["moved"][key].items() if k.endswith("R@1")]
    scale = "-" if result["logit_scale"] is None else f"{result['logit_scale']:.1f}"
    return [result["objective"], str(result["seed"]), f"{result['step']:,}", scale, result["temperature"],
            f"{result['start']['distance']:.3f}", f"{own['distance']:.3f}", f"{own['norm_image']:.3f}", f"{own['norm_text']:.3f}",
            f"{own['pair_cosine']:.3f}", results.number("R@1", float(np.mean(recall)) if recall else None)]


def table(found):
    """Runs side by side as text: `found` maps workdirs to what `measure` gave."""
    rows = [("", *COLUMNS), *((pathlib.PurePath(workdir).name, *line(result)) for workdir, result in found.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(f"{row[0]:{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:])) for row in rows)
