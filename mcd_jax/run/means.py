"""Figures of many runs side by side: means and sample deviations over the seeds of runs that are otherwise equal.

A run is a workdir with `config.json` and `evals.json`. What was published from runs whose folders are gone, or too large to keep,
is a small JSON file, a `Table`: its rows hold the figures of each run, or only the mean and the deviation, and say which.
"""
from collections.abc import Iterable, Mapping, Sequence
import difflib
import fnmatch
import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from mcd_jax import config as config_lib
from mcd_jax.html import flat
from mcd_jax.run import atomic, results, small_files
from mcd_jax.run import workdir as workdir_lib

FORMAT = "mcd_jax results 1"
_UNTOLD = ("total_steps", "model.inputs", "batch_shapes")   # keys that follow from others
MISSING = "-"


class Run(NamedTuple):
    name: str
    config: Mapping[str, Any]         # "model.image.name" -> value
    figures: Mapping[str, float]      # "retrieval/validation/text_to_image/R@1" -> value


class Figure(NamedTuple):
    mean: float
    deviation: float | None           # sample standard deviation over the runs; None for one run
    runs: int


class Group(NamedTuple):
    labels: Mapping[str, Any]         # what tells this group from the others: config key -> value, or {"": its name}
    runs: int
    names: tuple                      # of the runs, where they are known
    figures: Mapping[str, Figure]
    command: str = ""                 # what makes one of these runs
    by_seed: Mapping[str, Mapping] = {}   # figure -> {seed: value}, of runs whose seeds differ


class Column(NamedTuple):
    figure: str
    label: str = ""
    digits: int | None = None         # decimals; None: by the size of the value


class Table(NamedTuple):
    name: str
    groups: Sequence[Group]
    columns: Sequence[Column]
    title: str = ""
    text: Sequence[str] = ()          # paragraphs: what the columns mean
    origin: str = ""                  # where the figures come from
    against: str = ""                 # name of the group that the others are compared with, seed by seed


# ---- runs ----------------------------------------------------------------------------------------------------------------------


def read_run(workdir: str) -> Run:
    """What a run's `config.json` and `evals.json` hold; figures that are not finite are left out.

    Raises:
      FileNotFoundError: there is no config.json. ValueError: it can't be read.
    """
    with workdir_lib.opened(workdir, write=False) as small:
        path = small.folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{workdir} has no config.json: give workdirs of runs, or JSON files of stored results")
        config, evals = config_lib.read(path).to_dict(), results.latest(small.folder)
        figures = {key: float(v) for key, v in evals.items() if key != "step" and isinstance(v, (int, float)) and math.isfinite(v)}
        return Run(str(workdir).rstrip("/"), flat(config), figures)


def group(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Runs that differ in nothing but the seed, together; with `by` the runs that agree in these config keys.

    Without `by` the groups are labelled by as few config keys as tell them apart.

    Raises:
      ValueError: a key of `by` that no run's config has.
    """
    known = {key for run in runs for key in run.config}
    for key in by:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            raise ValueError(f"--by={key}: no run's config has this key" + (f"; did you mean {near[0]!r}?" if near else ""))
    members: dict[str, list[Run]] = {}
    for run in runs:
        same = {key: run.config.get(key) for key in by} if by else _without_seed(run.config)
        members.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    configs = [_without_seed(own[0].config) for own in members.values()]
    keys = by or telling(configs)
    result = []
    for own in members.values():
        labels = {key: own[0].config.get(key, MISSING) for key in keys} or {"": own[0].name}
        result.append(Group(labels, len(own), tuple(run.name for run in own), _summaries([run.figures for run in own]),
                            by_seed=_by_seed([(run.config.get("seed"), run.figures) for run in own])))
    return result


def mixed(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, list[str]]:
    """{name of a group's first run: config keys beside the seed in which the runs of the group differ}: for a warning."""
    configs, result = {run.name: _without_seed(run.config) for run in runs}, {}
    for one in groups:
        own = [configs[name] for name in one.names]
        keys = [key for key in own[0] if any(config.get(key) != own[0][key] for config in own)]
        if keys:
            result[one.names[0]] = keys
    return result


def telling(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few keys as tell all `configs` apart, those that split them most first; [] for one config."""
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key.partition(".")[0] != "evals"]
    text = {key: [json.dumps(config.get(key), sort_keys=True, default=str) for config in configs] for key in keys}
    chosen: list[str] = []
    parts = [""] * len(configs)
    while len(set(parts)) < len(configs):
        best = max(keys, default=None, key=lambda key: (len({*zip(parts, text[key])}), key == "objective.name"))
        if best is None or len({*zip(parts, text[best])}) == len(set(parts)):
            return chosen   # they differ in their evaluations only
        chosen.append(best)
        parts = [f"{part}|{value}" for part, value in zip(parts, text[best])]
    return chosen


def choose(groups: Sequence[Group], patterns: Sequence[str] = ()) -> list[Column]:
    """The figures to show: those that fit one of the globs, in their order; without any, all but counts and what chance gives.

    Raises:
      ValueError: a glob that no figure fits.
    """
    known = list(dict.fromkeys(key for one in groups for key in one.figures))
    if not patterns:
        return [Column(key) for key in known if not _aside(key)]
    chosen: dict[str, None] = {}
    for pattern in patterns:
        fitting = [key for key in known if fnmatch.fnmatchcase(key, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, known, 1, cutoff=0.3)
            raise ValueError(f"--figures={pattern}: no figure of these runs fits" + (f"; there is {near[0]!r}" if near else ""))
        chosen.update(dict.fromkeys(fitting))
    return [Column(key) for key in chosen]


def _aside(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith(("chance_", "mean@")) or name in results.COUNTS


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in config.items() if key != "seed" and not key.startswith(_UNTOLD)}


def _summaries(figures: Iterable[Mapping[str, float]]) -> dict[str, Figure]:
    """{figure: mean, deviation and number of the values that there are}."""
    values: dict[str, list[float]] = {}
    for own in figures:
        for key, value in own.items():
            values.setdefault(key, []).append(value)
    return {key: Figure(statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None, len(v)) for key, v in values.items()}


def _by_seed(runs):
    """{figure: {seed: value}} of (seed, figures); {} where two runs have one seed, or one has none."""
    seeds = [seed for seed, _ in runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        return {}
    return {key: {seed: own[key] for seed, own in runs if key in own} for key in dict.fromkeys(k for _, own in runs for k in own)}


# ---- differences ---------------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    mean: float
    low: float                        # 95 % interval of the mean
    high: float
    p: float                          # two-sided
    pairs: int


def difference(values: Mapping[Any, float], base: Mapping[Any, float]) -> Difference | None:
    """The paired t-test of two {seed: value}, over the seeds that both have; None for fewer than two.

    Where every difference is the same its interval has no width, and p is 0, or 1 for no difference.
    """
    gaps = [values[seed] - base[seed] for seed in values if seed in base]
    if len(gaps) < 2:
        return None
    from scipy import stats  # takes half a second, and few tables need it
    mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(gaps) - 1)) if error else float(not mean)
    return Difference(mean, mean - half, mean + half, p, len(gaps))


# ---- stored tables -------------------------------------------------------------------------------------------------------------


def read_table(path: str | pathlib.Path) -> Table:
    """The table that a JSON file holds, see `store`.

    Raises:
      ValueError: the file is no such table.
    """
    path = pathlib.Path(path)
    stored = small_files.read(path)
    if stored.get("format") != FORMAT:
        raise ValueError(f'{path} holds no stored results: "format" must be "{FORMAT}"')
    try:
        return _table(path, stored)
    except (KeyError, TypeError, AttributeError, ValueError, statistics.StatisticsError) as error:
        what = f"a row or column lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} can't be read as stored results: {what}; `mcd-jax results "
                         "--store=FILE` writes whole ones") from error


def _table(path, stored):
    groups = []
    for row in stored["rows"]:
        if "runs" in row:
            figures, count = _summaries([run["figures"] for run in row["runs"]]), len(row["runs"])
        else:
            count = row["seeds"]
            figures = {key: Figure(value["mean"], value.get("deviation"), value.get("seeds", count))
                       for key, value in row["published"].items()}
        names = tuple(run["name"] for run in row.get("runs", ()))
        seeds = _by_seed([(run.get("seed"), run["figures"]) for run in row.get("runs", ())])
        groups.append(Group(row["labels"], count, names, figures, row.get("command", ""), seeds))
    columns = [Column(c["figure"], c.get("label", ""), c.get("digits")) for c in stored["columns"]]
    return Table(path.stem, groups, columns, stored.get("title", ""), stored.get("text", ()), stored.get("origin", ""),
                 stored.get("against", ""))


def store(path: str | pathlib.Path, runs: Sequence[Run], groups: Sequence[Group], columns: Sequence[Column], title: str = "",
          against: str = ""):
    """Writes the figures of `runs` as a JSON file that `read_table` reads: a row for each group, with each of its runs."""
    wanted, by_name = [column.figure for column in columns], {run.name: run for run in runs}
    rows = []
    for one in groups:
        own = [by_name[name] for name in one.names]
        rows.append({"labels": dict(one.labels), "runs": [
            {"name": run.name, "seed": run.config.get("seed"), "figures": {k: run.figures[k] for k in wanted if k in run.figures}}
            for run in own]})
    record = {"format": FORMAT, "title": title, "origin": "figures of each run's evals.json",
              "against": against, "columns": [{"figure": column.figure} for column in columns], "rows": rows}
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
