"""Tables of means over runs as markdown, CSV and one HTML page with plots: pure functions of `run.means.Table`."""
from collections.abc import Sequence
import csv
import io
import re
from typing import Any

from mcd_jax.html import document, el, figure, grid, note, table, words
from mcd_jax.report import plots
from mcd_jax.run import means
from mcd_jax.run.means import Column, Figure, Group, Table
from mcd_jax.run.results import COUNTS, number

DIFFERENCES = "mean of the differences between runs of one seed, its 95 % interval, and p of the paired t-test, two-sided."
_WIDE = 9   # more figures than this stand below one another, with the groups across


def markdown(result: Table) -> str:
    """A page: title, text, the table, and the command that makes a run of each row."""
    lines = [f"# {result.title or result.name}", ""]
    if result.origin:
        lines += ["<!-- Written by `mcd-jax results`. Change the stored figures, not this page. -->", ""]
    for paragraph in result.text:
        lines += [paragraph, ""]
    head, rows = cells(result)
    right = [":---", *["---:"] * (len(head) - 1)]
    lines += [_line(head), _line(right), *[_line(row) for row in rows], ""]
    if result.against:
        head, rows = differences(result)
        lines += [f"Less {result.against}: {DIFFERENCES}", "", _line(head), _line([":---", *["---:"] * (len(head) - 1)]),
                  *[_line(row) for row in rows], ""]
    if result.origin:
        lines += [f"*Origin of the figures*: {result.origin}", ""]
    commands = [(name(one), one.command) for one in result.groups if one.command]
    if commands:
        lines += ["Commands, one for a row; `--config.seed=1` makes another seed:", "", "```",
                  *[f"{text}   # {label}" for label, text in commands], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def contents(tables: Sequence[Table]) -> str:
    """A list of the pages that `markdown` makes of several tables."""
    lines = [f"* [{result.title or result.name}]({result.name}.md)" for result in tables]
    text = "Written by `mcd-jax results` from stored figures, one file of `figures/` for each page."
    return "\n".join(["# Results", "", text, "", *lines]) + "\n"


def _line(row: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) + " |"


def cells(result: Table) -> tuple[list[str], list[list[str]]]:
    """(head, rows) as text: a row for each group, or for each figure where there are many figures."""
    counts = len({one.runs for one in result.groups}) > 1 or not result.origin
    if len(result.columns) > _WIDE >= len(result.groups) and not any(column.label for column in result.columns):
        head = ["", *[name(one) + (f" ({one.runs} run{'s' if one.runs > 1 else ''})" if counts else "") for one in result.groups]]
        return head, [[title(column), *[cell(column, one) for one in result.groups]] for column in result.columns]
    head = [_labels_head(result.groups), *(["runs"] if counts else []), *[title(column) for column in result.columns]]
    return head, [[name(one), *([str(one.runs)] if counts else []), *[cell(column, one) for column in result.columns]]
                  for one in result.groups]


def differences(result: Table) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the other groups less the one named `against`, as text, paired by seed.

    Raises:
      ValueError: no group has that name.
    """
    names = [name(one) for one in result.groups]
    if result.against not in names:
        raise ValueError(f"--against={result.against}: no row of this table has that name; there are {', '.join(names)}")
    base, rows = result.groups[names.index(result.against)], []
    for label, one in zip(names, result.groups):
        if one is not base:
            rows.append([label, *[_difference(column, one, base) for column in result.columns]])
    return [_labels_head(result.groups), *[title(column) for column in result.columns]], rows


def _difference(column, one, base):
    found = means.difference(one.by_seed.get(column.figure, {}), base.by_seed.get(column.figure, {}))
    if found is None:
        return "-"
    mean, low, high = (digits(column, value, found.mean) for value in found[:3])
    return f"{'+' if found.mean > 0 else ''}{mean} [{low}, {high}], p {found.p:.2g}"


def _labels_head(groups: Any) -> str:
    keys = list(dict.fromkeys(key for one in groups for key in one.labels))
    return ", ".join(key for key in keys if key)


def name(group: Group) -> str:
    """What a group is called: the values of its labels."""
    return ", ".join(shown(value) for value in group.labels.values())


def shown(value: Any) -> str:
    """A config value for people."""
    if isinstance(value, (list, tuple)):
        return " + ".join(map(str, value)) if all(isinstance(part, str) for part in value) else "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def title(column: Column) -> str:
    """The head of a figure's column, with its unit."""
    text = column.label or column.figure
    return f"{text}, %" if share(column) and "%" not in text else text


def share(column: Column) -> bool:
    """Whether a figure is a share, shown in percent."""
    return number(column.figure.rpartition("/")[2], 0.5).endswith("%")


def cell(column: Column, group: Group) -> str:
    """"15.3 ± 0.4": mean and sample deviation; the mean alone for one run; "-" where there is no such figure."""
    value = group.figures.get(column.figure)
    if value is None:
        return "-"
    text = digits(column, value.mean)
    text += "" if value.deviation is None else f" ± {digits(column, value.deviation, value.mean)}"
    return text + (f" ({value.runs} of {group.runs})" if value.runs != group.runs else "")


def digits(column: Column, value: float, like: float | None = None) -> str:
    """A value with the decimals of its column, or with those that fit a value of the size of `like`."""
    scaled, size = (100 * value if share(column) else value), abs(value if like is None else like)
    count = column.digits
    if count is None:
        whole = column.figure.rpartition("/")[2] in COUNTS
        count = 0 if whole or (not share(column) and size >= 100) else 1 if share(column) or size >= 10 else 3
    return f"{scaled:,.{count}f}"


def as_csv(result: Table) -> str:
    """A line for each group: its labels, the number of runs, then mean and deviation of every figure, unrounded."""
    keys = list(dict.fromkeys(key for one in result.groups for key in one.labels))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*[key or "name" for key in keys], "runs",
                     *[part for column in result.columns for part in (column.figure, f"{column.figure} deviation")]])
    for one in result.groups:
        values = [one.figures.get(column.figure) for column in result.columns]
        writer.writerow([*[one.labels.get(key, "") for key in keys], one.runs,
                         *[part for value in values for part in ((value.mean, value.deviation) if value else (None, None))]])
    return text.getvalue()


def as_html(result: Table) -> str:
    """One page that opens offline: the table, and a plot of every figure over what tells the groups apart."""
    runs = sum(one.runs for one in result.groups)
    lead = el("p", el("b", f"{runs} runs"), f" in {len(result.groups)} groups. Mean ± sample standard deviation over the "
              "runs of each.", cls="lead")
    head, rows = cells(result)
    lines = [[el("th" if i == 0 else "td", text) for i, text in enumerate(row)] for row in rows]
    sections = {"table": ("Means", [[note(_plain(text)) for text in result.text], table([el("th", text) for text in head], lines),
                                    note(f"Origin of the figures: {result.origin}") if result.origin else None])}
    if result.against:
        head, rows = differences(result)
        lines = [[el("th" if i == 0 else "td", text) for i, text in enumerate(row)] for row in rows]
        sections["differences"] = (f"Less {result.against}", [note(DIFFERENCES), table([el("th", text) for text in head], lines)])
    sections["plots"] = ("Plots", grid([figure(words(title(column)), "", plot(result, column)) for column in result.columns
                                        if any(column.figure in one.figures for one in result.groups)]))
    return document(result.title or result.name, lead, sections)


def _plain(text: str) -> str:
    """A paragraph of markdown without its signs and links."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("*", "")


def plot(result: Table, column: Column) -> str:
    """The means of one figure: over the first label that is a number, a line for each of the other labels; else over the names."""
    groups = [one for one in result.groups if column.figure in one.figures]
    scale = 100 if share(column) else 1
    values = [(one, Figure(*[v if v is None else v * scale for v in one.figures[column.figure][:2]], one.runs)) for one in groups]
    key = next((key for key in groups[0].labels if _numeric([one.labels.get(key) for one in groups])), None)
    if key is None:
        mean, deviation, _ = zip(*(value for _, value in values))
        return plots.named([name(one) for one in groups], mean, deviation)
    lines: dict[str, list] = {}
    for one, value in sorted(values, key=lambda pair: pair[0].labels[key]):
        other = ", ".join(shown(v) for k, v in one.labels.items() if k != key)
        lines.setdefault(other, []).append((one.labels[key], value.mean, value.deviation))
    series = [(label, *map(list, zip(*own))) for label, own in lines.items()]
    return plots.points(series, xlabel=key, log=plots.log_fits([one.labels[key] for one in groups]), legend=len(series) > 1)


def _numeric(values: list) -> bool:
    return len(set(map(str, values))) > 1 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
