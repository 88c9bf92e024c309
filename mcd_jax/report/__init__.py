"""Writes a run's report: `python -m mcd_jax.report --workdir=runs/mcd_emoji [--compare=runs/clip_emoji]`.

`<workdir>/report.html` is one file that opens offline and refers to nothing outside: learning curves, speed, evaluations,
analyses, galleries from the newest checkpoint, the config and versions. A run that is still going is reported as far as it got.
"""
import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

from mcd_jax import analyze, evaluate
from mcd_jax import workdir as workdir_lib
from mcd_jax.report import gallery as gallery_lib
from mcd_jax.report import page

_PACKAGES = ("mcd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "matplotlib")


def read(workdir):
    """What the files of a run say.

    Returns:
      {"name", "config", "versions", "evals": figure -> value, "series": name -> (steps, values), "last": name -> newest value,
       "analyses": name -> what `python -m mcd_jax.analyze <name>` wrote}.

    Raises:
      FileNotFoundError: the folder has no config.json.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is this the --workdir of a run that `python -m mcd_jax.train` started?")
    series, last = {}, {}
    for line in lines(workdir / "metrics.jsonl"):
        for key, value in line.items():
            if key != "step" and (value is None or isinstance(value, (int, float))):
                steps, values = series.setdefault(key, ([], []))
                steps.append(line["step"])
                values.append(value)
            if value is not None:
                last[key] = value
    return {"name": workdir.resolve().name, "config": json.loads(path.read_text()), "evals": evaluate.latest(workdir),
            "series": series, "last": last, "analyses": analyze.read(workdir), "versions": versions()}


def lines(path):
    """The JSON objects of a metrics file; a line that is being written right now is left out."""
    found = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def versions():
    """{name: version} of the packages that make the results, of Python and of the machine."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"}


def write(workdir, compare=None, gallery=""):
    """Writes `<workdir>/report.html`; returns its path and its size in bytes.

    Args:
      compare: another workdir, or None. gallery: see `gallery.gather`.
    """
    with contextlib.ExitStack() as stack:
        mine, *others = [stack.enter_context(workdir_lib.opened(w, write=w == workdir)) for w in (workdir, compare) if w]
        run, *rest = [{**read(place.folder), "name": place.name} for place in (mine, *others)]
        try:
            pictures = gallery_lib.gather(workdir, gallery)
        except FileNotFoundError as error:
            pictures = {"error": f"No pictures yet: {error}"}
        text = page.page(run, pictures, rest[0] if rest else None)
        part = mine.folder / f".report.{os.getpid()}.html"
        part.write_text(text)
        part.replace(mine.folder / "report.html")
    return f"{str(workdir).rstrip('/')}/report.html", len(text.encode())


def main(args=None):
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--compare", help="folder of another run, shown beside it")
    parser.add_argument("--gallery", default="", help="instance of config.evals.retrieval for the text gallery")
    args = parser.parse_args(args)
    try:
        path, size = write(args.workdir, args.compare, args.gallery)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{path} ({size / 1e6:.1f} MB)")
