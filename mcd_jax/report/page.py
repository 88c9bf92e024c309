"""The report as one HTML document: a pure function of what `report.read` and `gallery.gather` return."""
import json

from mcd_jax import plugins
from mcd_jax.html import document, duration, el, figure, flat, grid, join, note, table, tree, words
from mcd_jax.report import plots
from mcd_jax.report.tables import augmentation_gallery, classified_gallery, evaluations, text_gallery
from mcd_jax.run import history
from mcd_jax.run.results import number

_SPEED = ("examples_per_sec", "input_stall", "mfu", "device_memory", "host_memory", "memory_bytes")
_PICTURES = {"queries": "queries", "classified": "classified", "augmentation": "augmented"}   # section -> key of the gallery
_PARTS = {"start": "start", "train": "steps", "stall": "waiting for input", "eval": "evaluation", "checkpoint": "checkpoints"}
_OPTIMIZER = ("grad_norm", "update_norm", "param_norm", "lr", "weight", "skipped_updates", "skipped_in_row", "bad_examples")
_CURVES = ("R@1", "R@5", "R@10", "top1", "top5", "spearman_per_image", "ordered", "distance")


def page(run, gallery, other=None):
    """The whole document: `run` and `other` (to compare with, or None) of `report.read`, `gallery` of `gallery.gather`."""
    sections = {"curves": ("Learning curves", curves(run, other)), "speed": ("Speed", speed(run, other)),
                "evaluations": ("Evaluations", evaluations(run, other)), **galleries(gallery),
                **analyses(run), **sessions(run), "config": ("Config and versions", config(run, other))}
    against = el("p", "compared with ", el("b", other["name"], cls="two"), cls="against") if other else None
    return document(run["name"], [against, summary(run, gallery, other)], sections)


def galleries(gallery):
    """The sections with pictures, of those evaluations that the run has."""
    sections = {"queries": ("Text queries", text_gallery), "classified": ("Images and their classes", classified_gallery),
                "augmentation": ("Growing augmentation", augmentation_gallery)}
    shown = {key: (title, make(gallery)) for key, (title, make) in sections.items() if gallery.get(_PICTURES[key])}
    return shown if shown or not gallery.get("error") else {"queries": ("Pictures", note(gallery["error"]))}


def summary(run, gallery, other):
    """One line on what was trained, and cards with the figures that one looks for first."""
    settings, last, evals = run["config"], run["last"], run["evals"]
    method = (settings.get("objective") or {}).get("name", "?")
    method = method if isinstance(method, str) else " + ".join(method)
    source = ((settings.get("data") or {}).get("source") or {}).get("name", "?")
    cards = []
    instances = tree(evals).get("retrieval", {})
    instance = gallery.get("instance") if gallery.get("instance") in instances else next(iter(instances), "")
    groups = instances.get(instance, {})
    for side in ("text_to_image", "image_to_text"):
        for k in ("R@1", "R@10"):
            value = groups.get(side, {}).get(k)
            if value is None:
                continue
            notes = [f"chance {number('chance', groups[side].get(f'chance_{k}'))}"]
            notes += [f"{words(group.rpartition('/')[0])} {number(k, own[k])}" for group, own in groups.items()
                      if group.endswith(f"/{side}") and k in own]
            compared = other["evals"].get(f"retrieval/{instance}/{side}/{k}") if other else None
            cards.append(_card(f"{words(side)} {k}", number(k, value), notes, None if compared is None else number(k, compared)))
    cards = cards or classification_cards(run, other)
    for title, key, form in (("loss", "loss", plots.short), ("examples per second", "examples_per_sec", plots.short),
                             ("input stall", "input_stall", lambda v: f"{100 * v:.1f}%")):
        if last.get(key) is not None:
            compared = other["last"].get(key) if other else None
            cards.append(_card(title, form(last[key]), _of(run, key), None if compared is None else form(compared)))
    if last.get("seconds/train") is not None:
        notes = [f"{duration(last['seconds/stall'])} of it waiting for input"] if last.get("seconds/stall") else []
        cards.append(_card("training", duration(training(last)), notes,
                           duration(training(other["last"])) if other and "seconds/train" in other["last"] else None))
    step = last.get("step") or evals.get("step") or 0
    what = (f", seed {settings.get('seed', '?')}: {step:,} steps of {settings.get('batch_size', '?')} "
            f"(asked for: {settings.get('steps', '?')})")
    if run["sessions"]:
        what += f", {history.examples_seen(run['sessions'], step, settings.get('batch_size', 0)):,} examples seen"
    return [el("p", el("b", method), " on ", el("b", source), what, cls="lead"), el("div", cards, cls="cards")]


def classification_cards(run, other):
    """Cards of zero-shot classification and of linear probes, for a run without retrieval."""
    found = []
    for module in ("zeroshot", "probe"):
        for instance, groups in tree(run["evals"]).get(module, {}).items():
            own = groups.get("", {})
            if own.get("top1") is not None:
                compared = other["evals"].get(f"{module}/{instance}/top1") if other else None
                notes = [f"chance {number('chance', own['chance_top1'])}"] if own.get("chance_top1") is not None else []
                found.append(_card(f"{words(module)} {words(instance)} top1", number("top1", own["top1"]), notes,
                                   None if compared is None else number("top1", compared)))
    return found[:4]


def training(last):
    """Seconds of training in the newest values of a run: over its restarts, waiting for input included, as `train` prints them."""
    return last["seconds/train"] + last.get("seconds/stall", 0.0)


def _of(run, key):
    """Notes for the newest value of `key`: its step, where that isn't the run's newest."""
    steps, values = run["series"][key]
    step = next(step for step, value in zip(reversed(steps), reversed(values)) if value is not None)
    return [f"at step {step:,}"] if step != run["last"]["step"] else []


def _card(title, value, notes, compared):
    return el("div", el("small", title), el("strong", value, el("span", compared, cls="two") if compared else None),
              [el("em", line) for line in notes], cls="card")


def curves(run, other):
    """Every logged value over the steps, by what it tells."""
    instances = tuple(f"{module}/{name}/" for module, own in (run["config"].get("evals") or {}).items() for name in own or {})
    kinds, evaluated = {"Loss": [], "Method": [], "Optimizer and data": []}, {}
    for key in sorted(run["series"], key=lambda k: (k != "loss", k)):
        if key.startswith(instances):
            group, _, name = key.rpartition("/")
            if name in _CURVES and len(run["series"][key][0]) > 1:
                evaluated.setdefault(group, {})[name] = run["series"][key]
        elif key == "loss" or key.startswith("loss/"):
            kinds["Loss"].append(panel(key, run, other))
        elif key.split("/")[0] in _OPTIMIZER:
            kinds["Optimizer and data"].append(panel(key, run, other))
        elif key not in _SPEED and not key.startswith("seconds/"):
            kinds["Method"].append(panel(key, run, other))
    measured = [figure(words(group.replace("/", " · ")), "", plots.curves(
        [(name, *own[name]) for name in _CURVES if name in own], legend=True)) for group, own in evaluated.items()]
    parts = [[el("h3", title), grid(panels)] for title, panels in (
        ("Loss and its terms", kinds["Loss"]), ("Evaluations", measured), ("What the method watches", kinds["Method"])) if panels]
    if kinds["Optimizer and data"]:
        parts.append(el("details", el("summary", "Optimizer and data"), grid(kinds["Optimizer and data"])))
    return parts or note("No step has been logged yet.")


def panel(key, run, other=None):
    """A drawing of one logged value; the compared run is the second line."""
    series = [("", *who["series"][key]) for who in (run, other) if who and key in who["series"]]
    value = run["last"].get(key)
    return figure(key, "-" if value is None else plots.short(value), plots.curves(series))


def speed(run, other):
    """Throughput, stall and where the run's seconds went."""
    rows = []
    for who in filter(None, (run, other)):
        seconds = {part: who["last"].get(f"seconds/{part}") for part in _PARTS}
        seconds = {part: spent for part, spent in seconds.items() if spent}
        total = sum(seconds.values())
        if total:
            rows += [el("p", el("b", who["name"]), f": where {duration(total)} went", cls="where"),
                     el("div", [el("i", cls=k, style=f"width:{100 * v / total:.2f}%") for k, v in seconds.items()], cls="time"),
                     el("div", [el("span", el("i", cls=k), f"{_PARTS[k]} {duration(v)} ({100 * v / total:.0f}%)")
                                for k, v in seconds.items()], cls="names")]
    panels = [panel(key, run, other) for key in _SPEED if key in run["series"]]
    return [grid(panels), rows] if panels or rows else note("No speed has been logged yet.")


def analyses(run):
    """A section for each analysis in the run's folder: what `mcd-jax analyze` found there."""
    modules = {name: plugins.load("section", name) for name in run["analyses"]}
    return {name: (module.TITLE, module.section(run["analyses"][name])) for name, module in modules.items()}


def sessions(run):
    """A section of the starts of the run: at which step, what it had seen, where and with what it ran, and what was changed."""
    if not run["sessions"]:
        return {}
    rows = []
    for entry in run["sessions"]:
        changed = [f"{key}: {json.dumps(was)} to {json.dumps(now)}" for key, (was, now) in (entry.get("changes") or {}).items()]
        where = (f"{entry.get('host', '?')}, {entry.get('processes', '?')} processes, "
                 f"{entry.get('devices', '?')} {entry.get('platform', '')}")
        ran = " ".join(f"{name} {(entry.get('software') or {}).get(name, '?')}" for name in ("mcd_jax", "jax", "flax"))
        rows.append([el("td", text) for text in (f"{entry['step']:,}", f"{entry['seen']:,}", str(entry["batch_size"]),
                     entry.get("began", "before there was a history"), where, f"{ran} {entry.get('commit', '')[:10]}",
                     "; ".join(changed))])
    head = [el("th", name) for name in ("from step", "examples seen", "batch size", "began", "on", "software", "changed")]
    return {"sessions": ("Sessions", table(head, rows, cls="text"))}


def config(run, other):
    """What differs from the compared run, versions, and the resolved config."""
    parts = []
    if other:
        mine, theirs = flat(run["config"]), flat(other["config"])
        rows = [[el("th", k), el("td", str(mine.get(k, ""))), el("td", str(theirs.get(k, "")), cls="two")]
                for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k) and not k.startswith("evals.")]
        head = [el("th"), el("th", run["name"]), el("th", other["name"])]
        parts += [el("h3", "What differs, evaluations aside"), table(head, rows, cls="text")]
    versions = [el("span", el("b", name), f" {version}") for name, version in run["versions"].items()]
    dump = json.dumps(run["config"], indent=2, ensure_ascii=False)
    return join([parts, el("div", versions, cls="versions"), el("details", el("summary", "config.json"), el("pre", dump))])
