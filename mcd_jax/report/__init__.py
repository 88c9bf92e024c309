"""Writes a run's report: `mcd-jax report --workdir=runs/mcd_emoji [--compare=runs/clip_emoji]`.

`<workdir>/report.html` is one file that opens offline and refers to nothing outside: learning curves, speed, evaluations,
analyses, galleries from the newest checkpoint, the config and versions. A run that is still going is reported as far as it got.
"""
import contextlib
import pathlib

from mcd_jax import analyze, command
from mcd_jax.report import gallery as gallery_lib
from mcd_jax.report import page
from mcd_jax.run import atomic, history, small_files, software
from mcd_jax.run import results as results_lib
from mcd_jax.run import workdir as workdir_lib


def read(workdir):
    """What the files of a run say.

    Returns:
      {"name", "config", "versions", "sessions": of `history.read`, "evals": figure -> value,
       "series": name -> (steps, values), "last": name -> newest value, "analyses": name -> what `mcd-jax analyze <name>` wrote}.

    Raises:
      FileNotFoundError: the folder has no config.json.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is this the --workdir of a run that `mcd-jax train` started?")
    series, last = {}, {}
    for line in lines(workdir / "metrics.jsonl"):
        for key, value in line.items():
            if key != "step" and (value is None or isinstance(value, (int, float))):
                steps, values = series.setdefault(key, ([], []))
                steps.append(line["step"])
                values.append(value)
            if value is not None:
                last[key] = value
    return {"name": workdir.resolve().name, "config": small_files.read(path), "evals": results_lib.latest(workdir),
            "sessions": history.read(workdir), "series": series, "last": last, "analyses": analyze.read(workdir),
            "versions": {**software.versions(), "machine": software.machine()}}


def lines(path):
    """The JSON objects of a metrics file; a line that is being written right now is left out."""
    return small_files.steps(path)


def write(workdir, compare=None, gallery="", out=None):
    """Writes `<workdir>/report.html`, or the file `out`; returns its path and its size in bytes.

    Args:
      compare: another workdir, or None. gallery: see `gallery.gather`.

    Raises:
      OSError: the folder can't be written.
    """
    with contextlib.ExitStack() as stack:
        mine, *others = [stack.enter_context(workdir_lib.opened(w, write=w == workdir and not out))
                         for w in (workdir, compare) if w]
        run, *rest = [{**read(place.folder), "name": place.name} for place in (mine, *others)]
        try:
            pictures = gallery_lib.gather(workdir, gallery)
        except gallery_lib.NoImages as error:
            pictures = {"error": f"No pictures: {error}"}
        except FileNotFoundError as error:
            pictures = {"error": f"No pictures yet: {error}"}
        text = page.page(run, pictures, rest[0] if rest else None)
        try:
            atomic.write_text(out or mine.folder / "report.html", text)
        except OSError as error:
            error.add_note("--out=FILE writes the report elsewhere")
            raise
    return out or f"{str(workdir).rstrip('/')}/report.html", len(text.encode())


def main(args=None):
    parser = command.Parser(prog="mcd-jax report", description=command.summary(__doc__))
    parser.add_argument("--workdir", type=command.path, required=True, help="folder of a run")
    parser.add_argument("--compare", type=command.path, help="folder of another run, shown beside it")
    parser.add_argument("--out", type=command.local_path, help="the file to write; default: report.html in the run's folder")
    parser.add_argument("--gallery", default="", help="instance of config.evals.retrieval for the text gallery")
    args = parser.parse_args(args)
    with command.sentences():
        path, size = write(args.workdir, args.compare, args.gallery, args.out)
    print(f"{path} ({size / 1e6:.1f} MB)")
