"""Means and deviations over seeds: `mcd-jax results runs/mcd_emoji* runs/clip_emoji* --figures='retrieval/*/R@10'`.

Runs that differ in nothing but the seed are one group. `--by=objective.name,model.image.width` groups by these config keys instead,
and labels the groups by them. The table is printed and written as `results.md`, `results.csv` and `results.html` (with plots).
`--against=NAME` adds what each row has more than that of this name: paired by seed, with the interval of the mean and a t-test.

A JSON file in place of a workdir is a table of stored figures and gets a page of its own: `docs/results` is written by
`mcd-jax results docs/results/figures/*.json --out=docs/results --formats=md`, and
`--store=FILE` makes such a file of workdirs.
"""
from collections.abc import Sequence
import pathlib
import sys

from mcd_jax import command
from mcd_jax.report import results as pages
from mcd_jax.run import atomic, means
from mcd_jax.run import workdir as workdir_lib

FORMATS = {"md": pages.markdown, "csv": pages.as_csv, "html": pages.as_html}


def tables(paths: Sequence[str], by: Sequence[str] = (), figures: Sequence[str] = ()) -> list[means.Table]:
    """One `Table` of the workdirs among `paths`, and one for each JSON file.

    Raises:
      ValueError, OSError: a path is neither, an unknown key of `by`, or a glob of `figures` that fits nothing.
    """
    stored = [means.read_table(path) for path in paths if str(path).endswith(".json")]
    runs = runs_at(paths)
    return ([of_runs(runs, by, figures)[0]] if runs else []) + [
        table._replace(columns=_chosen(table, figures)) if figures else table for table in stored]


def runs_at(paths: Sequence[str]) -> list[means.Run]:
    """The `Run` of each workdir among `paths`; one that is named twice, as by two globs, counts once."""
    folders = {}
    for path in paths:
        if not str(path).endswith(".json"):
            folders.setdefault(path if workdir_lib.is_remote(path) else pathlib.Path(path).resolve(), path)
    return [means.read_run(path) for path in folders.values()]


def _chosen(table, figures):
    named = {column.figure: column for column in table.columns}
    return [named.get(column.figure, column) for column in means.choose(table.groups, figures)]


def of_runs(runs: Sequence[means.Run], by: Sequence[str] = (),
            figures: Sequence[str] = ()) -> tuple[means.Table, list[means.Run]]:
    """(Table, the runs in it) of runs that have been evaluated; the others are named on the screen and left out.

    Raises:
      ValueError: none has been evaluated; see also `means.group` and `means.choose`.
    """
    for run in runs:
        if not run.figures:
            print(f"{run.name} has no figures in evals.json yet: left out", file=sys.stderr)
    runs = [run for run in runs if run.figures]
    if not runs:
        raise ValueError("none of these runs has been evaluated: `mcd-jax evaluate --workdir=...` does it")
    groups = means.group(runs, by)
    for name, keys in means.mixed(runs, groups).items():
        print(f"the group of {name} averages over runs that differ in {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}, "
              "not only in the seed", file=sys.stderr)
    return means.Table("results", groups, means.choose(groups, figures)), runs


def write(table: means.Table, folder: str | pathlib.Path, formats: Sequence[str]) -> list[pathlib.Path]:
    """Writes a table as `<folder>/<name>.<format>`, each; returns the paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in formats:
        paths.append(folder / f"{table.name}.{kind}")
        atomic.write_text(paths[-1], FORMATS[kind](table))
    return paths


def on_screen(table: means.Table) -> str:
    """A table as aligned text, and below it the differences from the row of `table.against`."""
    text = _aligned(*pages.cells(table))
    if table.against:
        text += f"\n\nless {table.against}: {pages.DIFFERENCES}\n{_aligned(*pages.differences(table))}"
    return text


def _aligned(head, rows):
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths))).rstrip()
                     for row in (head, *rows))


def parser() -> command.Parser:
    """The command's flags."""
    parser = command.Parser(prog="mcd-jax results", description=command.summary(__doc__))
    parser.add_argument("paths", nargs="+", metavar="WORKDIR", help="folders of runs, or JSON files of stored results")
    parser.add_argument("--by", default="", metavar="KEY,KEY", help="config keys to group and label by, such as objective.name")
    parser.add_argument("--figures", default="", metavar="GLOB,GLOB", help="figures to show; default: all but counts and chance")
    parser.add_argument("--out", type=command.local_path, default="results", metavar="DIR", help="folder to write the pages into")
    parser.add_argument("--formats", default="md,csv,html", help="of the pages: md, csv, html")
    parser.add_argument("--store", default="", metavar="FILE", help="also keep the runs' figures as a JSON file")
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument("--against", default="", metavar="NAME", help="row that the others are compared with, paired by seed")
    return parser


def main(args: list[str] | None = None) -> None:
    """The command; see the module."""
    args = parser().parse_args(args)
    by, figures, formats = (tuple(filter(None, text.split(","))) for text in (args.by, args.figures, args.formats))
    with command.sentences():
        if unknown := set(formats) - set(FORMATS):
            raise ValueError(f"--formats={args.formats}: {', '.join(sorted(unknown))} is not one of {', '.join(FORMATS)}")
        made = [table._replace(title=args.title or table.title, against=args.against or table.against)
                for table in tables(args.paths, by, figures)]
        for table in made:
            print(on_screen(table))
            print(", ".join(map(str, write(table, args.out, formats))), flush=True)
        if len(made) > 1 and "md" in formats:
            atomic.write_text(pathlib.Path(args.out) / "README.md", pages.contents(made))
        if args.store:
            table, runs = of_runs(runs_at(args.paths), by, figures)
            means.store(args.store, runs, table.groups, table.columns, args.title, args.against)
            print(args.store)


if __name__ == "__main__":
    main()
