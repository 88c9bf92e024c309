"""Runs the evaluations of a config: `python -m mcd_jax.evaluate --workdir=runs/mcd_emoji [--step=N]` on a finished or running job.

`--evals=configs/evals/zeroshot.py:sets=cifar10,food101` (as often as wanted) runs those of a file in place of the config's own: its
`get_evals(arguments)` returns a mapping like `config.evals`. Several processes evaluate together, as they train: see `train`.

`config.evals` has two levels, a module of `evals/` (or a dotted path) and an instance; beside the module's own keys each instance
has `every` (a duration; without one it runs at the end only), `read` (whose parameters: "params", "memory/<path>", or "init" for
the untrained network) and `batch_size`. Views that are left out: the training's image view if it is without randomness, else the
central part of the image at the model's size; and the first caption with the training's tokenizer. Figures are named
<module>/<instance>/<figure>; the latest of each is in `evals.json`.
"""
import argparse
import ast
from collections.abc import Callable
import contextlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
import traceback
from typing import NamedTuple

import jax

from mcd_jax import checkpoint, distributed, load
from mcd_jax import config as config_lib
from mcd_jax import embed as embed_lib
from mcd_jax import job as job_lib
from mcd_jax import mesh as mesh_lib
from mcd_jax import workdir as workdir_lib

COMMON = ("every", "read", "batch_size")
COUNTS = ("queries", "candidates", "images", "train_images", "iterations", "classes", "bad", "missing")


class Eval(NamedTuple):
    module: str
    instance: str
    every: int          # steps between runs; 0: at the end only
    read: str
    batch_size: int
    fn: Callable        # fn(embed, state) -> {figure: float}
    heads: tuple = ("embed",)   # of the objective, whose outputs `embed` gives: HEADS of the module


def build(config, objective, durations, abstract=None, chosen=None):
    """The evaluations of `config.evals`, each ready to run; sources are opened and pipes compiled here.

    Args:
      config: resolved ConfigDict.
      objective: an `Objective` with a head "embed".
      durations: (key name, duration) -> steps.
      abstract: a State of shapes, so that a wrong `read` is refused here; None: when it first runs.
      chosen: a mapping like `config.evals` to take in its place.

    Raises:
      ValueError: an unknown module, instance key, column, pipe or `read`, with its name.
    """
    evals, views = [], default_views(config)
    for module, instances in (config.evals if chosen is None else chosen).items():
        plugin = load.load("evals", module)
        for name, settings in (instances or {}).items():
            key = f"evals.{module}.{name}"
            settings = settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)
            for option in settings if hasattr(plugin, "KEYS") else ():
                config_lib.refuse_unknown(option, (*COMMON, *plugin.KEYS), f"key of config.{key}")
            if "views" in getattr(plugin, "KEYS", ()):
                settings = with_views(settings, views)
            read = settings.get("read") or "params"
            if abstract is not None:
                _checked(lambda: embed_lib.parameters(abstract, read), key)
            every = durations(f"{key}.every", settings.get("every"))
            size = settings.get("batch_size", 256)
            heads = tuple(getattr(plugin, "HEADS", ("embed",)))
            if lacking := [head for head in heads if head not in objective.heads]:
                raise ValueError(f"config.{key} needs an objective with the head {lacking[0]!r}: "
                                 f"this one has {', '.join(objective.heads) or 'none'}")
            evals.append(Eval(module, name, every, read, size, _checked(lambda: plugin.make(settings, name), key), heads))
    return evals


def default_views(config):
    """The pipes of "image" and "text" for evaluations that leave them out; {} for a config without data."""
    data, model = getattr(config, "data", {}), getattr(config, "model", {})
    if not data.get("views") or "inputs" not in model:
        return {}
    given = str(data["views"].get("image", ""))   # an image view without randomness is what this model looks through
    plain = [part.strip().partition("(")[0] for part in given.split("|")]
    plain = plain in (["decode", "center"], ["decode", "resize"], ["column"])
    views = {"image": given if plain else f"decode|center({model['inputs']['image_size']})"}
    if str(data["views"].get("text", "")).startswith("column("):
        return {**views, "text": data["views"]["text"]}
    for _, spec in sorted(data["views"].items(), key=lambda item: item[0] != "text"):   # the view called text, or the first
        last = ast.parse(spec.strip(), mode="eval").body
        last = ast.unparse(last.right if isinstance(last, ast.BinOp) else last)
        if last.startswith("tokenize("):
            return {**views, "text": f"caption('first')|{last}"}
    return views


def with_views(settings, views):
    """The settings of an instance with what its `views` lack."""
    return {**settings, "views": {**views, **(settings.get("views") or {})}} if views else settings


def read_evals(specs):
    """One mapping like `config.evals` out of several "file.py:arguments"; a later file's instances replace an earlier one's.

    Raises:
      FileNotFoundError: no such file. ValueError: it has no get_evals(arguments), or refuses the arguments.
    """
    chosen = {}
    for spec in specs:
        path, _, arguments = spec.partition(":")
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"--evals={spec}: there is no file {path}")
        found = importlib.util.spec_from_file_location("mcd_jax_evals", path)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        if not callable(getattr(module, "get_evals", None)):
            raise ValueError(f"--evals={spec}: {path} has no get_evals(arguments) that returns a mapping like config.evals")
        for name, instances in module.get_evals(arguments).items():
            chosen[name] = {**chosen.get(name, {}), **instances}
    return chosen


def _checked(build_one, key):
    """`build_one()`, with a missing setting reported as the config key it is."""
    try:
        return build_one()
    except KeyError as error:
        raise ValueError(f"config.{key} needs the key {error.args[0]!r}") from error


def run(evals, state, step, job, workdir, stop=lambda: False, say=None, compiled=None):
    """Runs `evals` on `state` and merges their figures into `evals.json`.

    Args:
      evals: of `build`.
      state: on `job.mesh`. step: its number, written beside the figures.
      job: the run's `Job`; its `init` makes the untrained state that read="init" asks for.
      stop: asked before each evaluation, by all processes at the same point; once true, the rest is left out.
      say: called with a line after each evaluation.
      compiled: a dict that keeps the compiled embedding functions from one call to the next.

    Returns:
      {"<module>/<instance>/<figure>": float} of what was run.
    """
    results, fresh = {}, None
    embeds = {} if compiled is None else compiled
    for e in evals:
        if stop():
            break
        start = time.time()
        if e.read == "init" and fresh is None:
            fresh = job.init(jax.random.key(job.config.seed), None, state.memory.get("locked"))
        size = batch_rows(e.batch_size, job.mesh)
        which = (e.read, size, e.heads)
        if which not in embeds:
            held = mesh_lib.local_rows(size, job.mesh) if jax.process_count() > 1 else None
            embeds[which] = embed_lib.make_embed(job.objective, e.read, size, placement(job.mesh), held, e.heads)
        figures = e.fn(embeds[which], fresh if e.read == "init" else state)
        results.update({f"{e.module}/{e.instance}/{figure}": float(value) for figure, value in figures.items()})
        if say:
            say(f"{e.module}/{e.instance} ({e.read}): {time.time() - start:.1f} s")
    if jax.process_index() == 0 and results:
        write(workdir, results, step)
    return results


def batch_rows(size, mesh):
    """`size` rounded up to what the devices of `mesh` can share evenly."""
    return -(-size // mesh.size) * mesh.size


def placement(mesh):
    """place(batch): host arrays of the whole batch -> arrays sharded over the batch axes of `mesh`, which take a process's rows."""
    sharding = mesh_lib.batch_sharding(mesh)

    def place(batch):
        return {key: jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
                for key, value in batch.items()}

    return place


def write(workdir, results, step):
    """Merges figures and "step" into `<workdir>/evals.json`, atomically; figures that are not finite become null."""
    path = pathlib.Path(workdir) / "evals.json"
    merged = {**latest(workdir), **{k: v if math.isfinite(v) else None for k, v in results.items()}}
    merged = {"step": int(step), **{k: v for k, v in merged.items() if k != "step"}}
    part = path.with_name(f".evals.{os.getpid()}.json")
    part.write_text(json.dumps(merged, indent=1) + "\n")
    part.replace(path)


def latest(workdir):
    """What `evals.json` holds: figure -> float or None, and "step"; empty where there is no file or it can't be read."""
    path = pathlib.Path(workdir) / "evals.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def table(results):
    """Text table of figures: a block for each module, a line for each group; what chance gives and sizes are left to the report."""
    modules = {}
    for key, value in results.items():
        group, _, figure = key.rpartition("/")
        if key != "step" and not figure.startswith(("chance_", "mean@")) and figure not in COUNTS:
            module, _, group = group.partition("/")
            modules.setdefault(module, {}).setdefault(group, {})[figure] = number(figure, value)
    lines = []
    for module, groups in modules.items():
        figures = list(dict.fromkeys(figure for own in groups.values() for figure in own))
        first = max(map(len, [module, *groups])) + 2
        widths = [max(len(f), *(len(own.get(f, "")) for own in groups.values())) + 2 for f in figures]
        lines.append(module.ljust(first) + "".join(f.rjust(w) for f, w in zip(figures, widths)))
        lines += [("  " + group).ljust(first) + "".join(own.get(f, "").rjust(w) for f, w in zip(figures, widths))
                  for group, own in groups.items()]
    return "\n".join(line.rstrip() for line in lines)


_SHARES = ("R@", "chance", "accuracy", "top1", "top5", "mean_per_class", "ordered", "positive", "within_k")


def number(figure, value):
    """A figure for people: shares in percent, counts whole, the rest with three decimals."""
    if value is None or not math.isfinite(value):
        return "-"
    if figure.startswith(_SHARES):
        return f"{100 * value:.2f}%" if abs(value) < 0.0995 else f"{100 * value:.1f}%"
    return f"{value:,.0f}" if figure in (*COUNTS, "pairs", "bytes") else f"{value:.3f}"


def open_run(workdir, step=None):
    """(Job, state) of a run's newest checkpoint, or of `step`; reads only. Call `job.pipeline.close()` when done.

    Raises:
      FileNotFoundError: no config.json, or no checkpoint yet.
      ValueError: `step` has no checkpoint.
    """
    with workdir_lib.opened(workdir, write=False) as small:
        config = config_lib.read(small.folder / "config.json")
    saver = checkpoint.Checkpoints(workdir, read_only=True)
    if step is not None and step not in saver.steps():
        raise ValueError(f"{workdir} has no checkpoint of step {step}: there are {', '.join(map(str, saver.steps())) or 'none'}")
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        return job, saver.restore(job.abstract, step)


@contextlib.contextmanager
def opened(workdir, step=None, evals=()):
    """`open_run` for a while, in its mesh: gives (Job, state, a mapping like config.evals, which is that of the files if any)."""
    chosen = read_evals(evals) if evals else None
    job, state = open_run(workdir, step)
    try:
        with jax.set_mesh(job.mesh):
            yield job, state, job.config.evals.to_dict() if chosen is None else chosen
    finally:
        job.pipeline.close()


def evaluate(workdir, step=None, evals=()):
    """Evaluates a run's newest checkpoint, or that of `step`; see the module. Returns the figures."""
    lead = jax.process_index() == 0

    def say(line):
        if lead:
            print(line, flush=True)

    chosen = read_evals(evals) if evals else None
    job, state = open_run(workdir, step)
    built = build(job.config, job.objective, job.durations, job.abstract, chosen)
    say(f"evaluating step {int(state.step):,} of {workdir}")
    with jax.set_mesh(job.mesh), workdir_lib.opened(workdir, write=lead) as small:
        results = run(built, state, int(state.step), job, small.folder, say=say)
    job.pipeline.close()
    say(table(results) or "config.evals is empty: nothing to evaluate")
    return results


def main(args=None):
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest when left out")
    parser.add_argument("--evals", action="append", default=[], help="file.py[:arguments], in place of the config's own")
    args = parser.parse_args(args)
    try:
        distributed.join()
        evaluate(args.workdir, args.step, args.evals)
    except (ValueError, OSError, RuntimeError) as error:
        if jax.distributed.is_initialized():
            print(f"error: {error}", file=sys.stderr)
        distributed.leave(1)
        sys.exit(f"error: {error}")
    except Exception:
        if jax.distributed.is_initialized():   # or the others would wait for this process until a time-out
            traceback.print_exc()
            distributed.leave(1)
        raise
    distributed.leave(0)


if __name__ == "__main__":
    main()
