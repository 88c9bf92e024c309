"""What a sweep found: `sweep.csv`, and `sweep.html` with the runs best first, means over seeds, plots and curves."""
import csv
import io
import json
import pathlib
import statistics

from mcd_jax import report
from mcd_jax.html import document, duration, el, figure, grid, note, table, words
from mcd_jax.report import plots
from mcd_jax.run import atomic
from mcd_jax.run.results import COUNTS, number
from mcd_jax.sweep.plan import short

_OTHERS = "#cbd5e1"   # colour of the runs that are not among the best


def gather(runs, states, metric, minimize=False):
    """What is known of each run, best first: finished ones by `metric`, then those under way, then the failed.

    Args:
      runs: of `plan`. states: {name: (status, sentence)}. metric: a figure of evals.json, or a value of metrics.jsonl.
      minimize: the lowest is the best.

    Returns:
      [{"name", "status", "error", "overrides", "metric", "step", "seconds" (of training), "evals", "last" (newest logged values),
      "series"}]; an override that a run doesn't have is shown with the value that its config has.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    rows = []
    for run in runs:
        found = {"evals": {}, "series": {}, "last": {}}
        if (run.workdir / "config.json").exists():
            found = report.read(run.workdir)
        spent = [found["last"].get(f"seconds/{part}") for part in ("train", "stall")]
        row = {"name": run.name, "status": states[run.name][0], "error": states[run.name][1],
               "overrides": {key: value(run.config, key) for key in keys}, "step": found["last"].get("step"),
               "seconds": None if None in spent else sum(spent), "last": found["last"], "series": found["series"],
               "evals": {key: v for key, v in found["evals"].items() if key != "step"}}
        rows.append({**row, "metric": newest(row, metric)})
    return sorted(rows, key=lambda row: _place(row, minimize))


def newest(row, name):
    """A figure of a run, the latest evaluated or else the latest logged; None where there is none."""
    found = row["evals"].get(name, row["last"].get(name))
    return found if isinstance(found, (int, float)) else None


def value(config, key):
    """The value of a dotted key of a config."""
    for name in key.split("."):
        config = config[name]
    return config


def _place(row, minimize):
    state = {"finished": 0, "failed": 2}.get(row["status"], 1)
    return state, row["metric"] is None, (row["metric"] or 0) * (1 if minimize else -1)


def seeds(rows, names, minimize=False):
    """Mean and standard deviation over the seeds of otherwise equal runs, best first; empty when no run overrides the seed.

    Args:
      rows: of `gather`. names: the figures wanted; the first one orders.

    Returns:
      [{"overrides", "finished", "runs", "figures": {name: (mean, sample standard deviation or None for one run)}}], of finished
      runs only.
    """
    groups = {}
    for row in rows:
        if "seed" in row["overrides"]:
            other = {key: v for key, v in row["overrides"].items() if key != "seed"}
            groups.setdefault(json.dumps(other, sort_keys=True), (other, []))[1].append(row)
    result = []
    for other, members in groups.values():
        done, figures = [row for row in members if row["status"] == "finished"], {}
        for name in names:
            values = [v for v in (newest(row, name) for row in done) if v is not None]
            if values:
                figures[name] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        result.append({"overrides": other, "finished": len(done), "runs": len(members), "figures": figures})
    mean = lambda group: group["figures"].get(names[0], (None,))[0]
    return sorted(result, key=lambda group: (mean(group) is None, (mean(group) or 0) * (1 if minimize else -1)))


# ---- CSV -----------------------------------------------------------------------------------------------------------------------


def as_csv(rows, metric):
    """The runs as CSV text: name, status, overrides, the metric, loss, step, seconds, error, then every figure of evals.json."""
    figures = sorted({key for row in rows for key in row["evals"]} - {metric})
    keys = list(rows[0]["overrides"]) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = [] if metric == "loss" else [metric]
    writer.writerow(["name", "status", *keys, *own, "loss", "step", "seconds", "error", *figures])
    for row in rows:
        writer.writerow([row["name"], row["status"], *row["overrides"].values(), *[row["metric"] for _ in own], newest(row, "loss"),
                         row["step"], row["seconds"], row["error"], *[row["evals"].get(key) for key in figures]])
    return text.getvalue()


# ---- HTML ----------------------------------------------------------------------------------------------------------------------


def as_html(rows, metric, minimize=False, name="sweep"):
    """The runs as one self-contained page.

    Args:
      rows: of `gather`. name: the title.
    """
    near = beside(rows, metric)
    counts = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    total = sum(row["seconds"] or 0 for row in rows)
    lead = el("p", el("b", f"{len(rows)} runs"), ": " + ", ".join(f"{n} {state}" for state, n in counts.items())
              + f", {duration(total)} of training. Best first by ", el("b", metric), " (lowest)." if minimize else " (highest).",
              cls="lead")
    means = seeds(rows, near, minimize)
    sections = {"runs": ("Runs", runs_table(rows, metric, near))}
    if means:
        text = "Mean and standard deviation over the seeds of finished runs that are otherwise equal."
        sections["seeds"] = ("Over the seeds", [note(text), seeds_table(means, near)])
    if over := swept(rows, metric):
        text = "A point for each run in the colour of its curve, and the mean over the runs that share a value."
        sections["swept"] = ("Over what was swept", [note(text), grid(over)])
    sections["curves"] = ("Curves", panels(rows, near))
    return document(name, lead, sections)


def beside(rows, metric):
    """The metric, and the other figures of its group that are worth a column: R@1 beside R@10, but no counts and no chance."""
    group = metric.rpartition("/")[0]
    own = list(dict.fromkeys(key for row in rows for key in row["evals"] if group and key.rpartition("/")[0] == group))
    keep = [key for key in own if key != metric and not key.rpartition("/")[2].startswith(("chance_", "mean@"))
            and key.rpartition("/")[2] not in COUNTS]
    return [metric, *keep]


def runs_table(rows, metric, near):
    """Every run: its overrides, its figures, and why it failed; the best carry the colour of their curves."""
    paint, keys = colours(rows), list(rows[0]["overrides"]) if rows else []
    head = [el("th", "run"), el("th", "status"), [el("th", short(key, keys), title=key) for key in keys],
            [_head(key, metric) for key in near], el("th", "loss") if metric != "loss" else None, el("th", "steps"),
            el("th", "training")]
    lines = []
    for row in rows:
        mark = el("i", style=f"background:{paint[row['name']]}") if row["series"] else None
        lines.append((None if row["status"] == "finished" else "pale", [
            el("th", mark, row["name"], el("small", row["error"]) if row["error"] else None, cls="run"), el("td", row["status"]),
            [el("td", shown(v)) for v in row["overrides"].values()],
            [el("td", _number(key, newest(row, key))) for key in near],
            el("td", _number("loss", newest(row, "loss"))) if metric != "loss" else None,
            el("td", "-" if row["step"] is None else f"{row['step']:,}"),
            el("td", "-" if row["seconds"] is None else duration(row["seconds"]))]))
    return table(head, lines)


def seeds_table(means, near):
    keys = list(means[0]["overrides"])
    head = [[el("th", short(key, keys), title=key) for key in keys] or el("th"), el("th", "finished"),
            [_head(key, near[0]) for key in near]]
    lines = []
    for group in means:
        own = [el("th" if i == 0 else "td", shown(v)) for i, v in enumerate(group["overrides"].values())] or el("th", "all runs")
        cells = [el("td", _spread(key, *group["figures"][key]) if key in group["figures"] else "-") for key in near]
        lines.append([own, el("td", f"{group['finished']} of {group['runs']}"), cells])
    return table(head, lines)


def swept(rows, metric):
    """A drawing for each key that was swept, the seed aside: the metric over its values, on a logarithmic axis where that fits."""
    paint, drawn = colours(rows), []
    scored = [row for row in rows if row["metric"] is not None]
    keys = [key for key in (rows[0]["overrides"] if rows else ()) if key != "seed"]
    for key in keys:
        chosen = [row["overrides"][key] for row in scored]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in chosen)
        values = sorted(set(chosen)) if numbers else list(dict.fromkeys(map(shown, chosen)))
        if len(values) < 2:
            continue
        place = (lambda value: value) if numbers else (lambda value, values=values: values.index(shown(value)))
        groups: dict = {}
        for row in scored:
            groups.setdefault(place(row["overrides"][key]), []).append(row["metric"])
        x = sorted(groups)
        mean = [statistics.fmean(groups[v]) for v in x]
        spread = [statistics.stdev(groups[v]) if len(groups[v]) > 1 else None for v in x]
        dots = [(place(row["overrides"][key]), row["metric"], paint.get(row["name"], _OTHERS)) for row in reversed(scored)]
        best = shown(scored[0]["overrides"][key])
        label = words(metric.rpartition("/")[2])
        drawing = plots.points([("", x, mean, spread)], dots, ylabel=label, log=plots.log_fits(values)) if numbers else plots.named(
            values, mean, spread, dots, xlabel=label)
        drawn.append(figure(short(key, keys), f"best: {best}", drawing))
    return drawn


def panels(rows, near):
    """Loss, its terms and the metric's group over the steps, every run in each: the best in colour and on top, the others grey."""
    paint = colours(rows)
    logged = {key for row in rows for key in row["series"]}
    terms = sorted(key for key in logged if key.startswith("loss/"))
    drawn = []
    for key in dict.fromkeys(["loss", *terms, *near]):
        own = [row for row in rows if key in row["series"]]
        if own:
            drawing = plots.curves([("", *row["series"][key]) for row in reversed(own)],
                                   colours=tuple(paint[row["name"]] for row in reversed(own)))
            best = own[0]["last"].get(key)
            drawn.append(figure(_title(key), "-" if best is None else plots.short(best), drawing))
    many = sum(bool(row["series"]) for row in rows) > len(plots.COLOURS)
    text = "Beside each title is the newest value of the best run that has one."
    return [note(("The best are in the colours of the table, the others grey. " if many else "Colours as in the table. ") + text),
            grid(drawn)] if drawn else note("No step has been logged yet.")


def colours(rows):
    """{name: colour}: one of its own for each of the best runs that have curves, grey for the others."""
    drawn = [row["name"] for row in rows if row["series"]]
    return {name: plots.COLOURS[i] if i < len(plots.COLOURS) else _OTHERS for i, name in enumerate(drawn)}


def _title(key):
    return words(key.replace("/", " · ")) if key.count("/") > 1 else key


def _head(key, metric):
    name = words(key.rpartition("/")[2])
    return el("th", el("b", name) if key == metric else name, title=key)


def shown(value):
    """An override's value for people."""
    return "x".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _number(key, value):
    return number(key.rpartition("/")[2], value)


def _spread(key, mean, deviation):
    return _number(key, mean) + (f" ± {_number(key, deviation)}" if deviation is not None else "")


def write(runs, states, workdir, metric, minimize=False):
    """Writes `<workdir>/sweep.csv` and `sweep.html`; returns their rows, best first.

    Args: as `gather`; workdir: the sweep's folder.
    """
    rows, workdir = gather(runs, states, metric, minimize), pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in (("sweep.csv", as_csv(rows, metric)),
                       ("sweep.html", as_html(rows, metric, minimize, f"sweep {workdir.resolve().name}"))):
        atomic.write_text(workdir / name, text)
    return rows
