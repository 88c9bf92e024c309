"""The figures of a run: `evals.json`, read, written and shown."""
from collections.abc import Mapping
import json
import math
import os
import pathlib

from absl import logging

from mcd_jax.run import atomic, small_files

COUNTS = ("queries", "candidates", "images", "train_images", "iterations", "classes", "bad", "missing")
_SHARES = ("R@", "chance", "accuracy", "top1", "top5", "mean_per_class", "ordered", "positive", "within_k", "mAP")


def write(workdir: str | os.PathLike, results: Mapping[str, float], step: int) -> pathlib.Path:
    """Merges figures into `<workdir>/evals.json`, atomically, and returns its path; figures that are not finite become null.

    "step" is that of the newest figures. Instances ("retrieval/validation") whose figures are of an earlier step are in "steps",
    instance -> step. Figures of an earlier step than the newest, as of `mcd-jax evaluate --step=N`, don't replace those: they go to
    `evals-<step>.json` beside it. A file that can't be read is set aside as `<name>.broken`, with a warning. Several processes may
    write at the same time, such as a run that trains and `mcd-jax evaluate`: each figure stays.
    """
    with small_files.alone(workdir):
        return _merged(_path(workdir), results, int(step))


def _merged(path, results, step):
    stored = _whole(path)
    if step < stored.get("step", step):
        path = path.with_name(f"evals-{step}.json")
        stored = _whole(path)
    steps = {_instance(key): stored["step"] for key in stored if "step" in stored and _is_figure(key)} | stored.get("steps", {})
    steps = {instance: of for instance, of in steps.items() if of != step and instance not in map(_instance, results)}
    figures = {**{key: value for key, value in stored.items() if _is_figure(key)},
               **{key: value if math.isfinite(value) else None for key, value in results.items()}}
    atomic.write_text(path, json.dumps({"step": step, **({"steps": steps} if steps else {}), **figures}, indent=1) + "\n")
    return path


def latest(workdir: str | os.PathLike) -> dict[str, float | None]:
    """What `evals.json` holds: figure -> float or None, and "step"; empty where there is no file or it can't be read."""
    return {key: value for key, value in _read(_path(workdir)).items() if key != "steps"}


def of_step(workdir: str | os.PathLike, step: int) -> dict[str, float | None]:
    """The figures of `evals.json` that are of exactly this step."""
    stored = _read(_path(workdir))
    return {key: value for key, value in stored.items()
            if _is_figure(key) and stored.get("steps", {}).get(_instance(key), stored.get("step")) == step}


def rewind(workdir: str | os.PathLike, step: int) -> None:
    """Before a run goes on at `step`: sets figures of later steps, which it will never have taken, aside as `evals-<step>.json`."""
    path = _path(workdir)
    with small_files.alone(workdir):
        if (newest := _read(path).get("step", step)) > step:
            path.replace(path.with_name(f"evals-{newest}.json"))


def _path(workdir):
    return pathlib.Path(workdir) / "evals.json"


def _read(path):
    return small_files.read_or(path, {}, fits=_fits)


def _whole(path):
    """What a file of figures holds; one that is broken is set aside."""
    try:
        stored = small_files.read(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        stored = None
    if stored is not None and _fits(stored):
        return stored
    logging.warning("%s can't be read: it is kept as %s, and a new one is begun", path, small_files.set_aside(path).name)
    return {}


def _fits(stored):
    """Whether a dict is what `write` writes: numbers or null, a whole "step", and instance -> step in "steps"."""
    steps = stored.get("steps", {})
    numbers = [value for key, value in stored.items() if _is_figure(key) and value is not None]
    return (not stored or type(stored.get("step")) is int) and all(type(value) in (int, float) for value in numbers) \
        and isinstance(steps, dict) and all(type(step) is int for step in steps.values())


def _is_figure(key):
    return key not in ("step", "steps")


def _instance(key):
    return "/".join(key.split("/")[:2])


def table(results: Mapping[str, float | None]) -> str:
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


def number(figure: str, value: float | None) -> str:
    """A figure for people: shares in percent, counts whole, the rest with three decimals."""
    if value is None or not math.isfinite(value):
        return "-"
    if figure.startswith(_SHARES):
        return f"{100 * value:.2f}%" if abs(value) < 0.0995 else f"{100 * value:.1f}%"
    return f"{value:,.0f}" if figure in (*COUNTS, "pairs", "bytes") else f"{value:.3f}"
