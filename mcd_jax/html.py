"""Pages of HTML: elements whose text is escaped unless it is markup itself, and how figures and names are written."""
import html
import math
import pathlib

_EMPTY = ("img", "meta", "input")
_STYLE = pathlib.Path(__file__).with_suffix(".css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page can load and run nothing


class Html(str):
    """Text that is markup already."""


def el(tag, *parts, **attributes):
    """An element: parts are `Html`, text (escaped), None (left out), or lists of these; `cls` stands for class, `_` for `-`."""
    attributes = {"class" if k == "cls" else k.replace("_", "-"): v for k, v in attributes.items() if v is not None and v != ""}
    head = tag + "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{head}>" if tag in _EMPTY else f"<{head}>{join(parts)}</{tag}>")


def join(parts):
    """Parts one after the other, see `el`."""
    if parts is None:
        return Html("")
    if isinstance(parts, (list, tuple)):
        return Html("".join(join(part) for part in parts))
    return parts if isinstance(parts, Html) else Html(html.escape(str(parts)))


def words(name):
    """A part of a key for people: "text_to_image" -> "text → image"."""
    return name.replace("_to_", " → ").replace("_", " ")


def table(head, rows, cls=None, caption=None):
    """A table that scrolls by itself; `head` and each of `rows` are lists of th and td elements, or (class, list)."""
    lines = [row if isinstance(row, tuple) else (None, row) for row in rows]
    return el("div", el("table", el("caption", caption) if caption else None, el("tr", head),
                        [el("tr", cells, cls=tone) for tone, cells in lines], cls=cls), cls="table")


def figure(title, value, drawing):
    """A drawing under its title and newest value."""
    return el("figure", el("figcaption", el("span", title), el("b", value)), drawing)


def grid(panels):
    return el("div", panels, cls="grid") if panels else None


def note(text):
    return el("p", text)


def duration(seconds):
    """Seconds for people: "75 s", "12.5 min", "3.2 h"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def tree(evals):
    """{module: {instance: {group: {figure: value}}}} of the flat keys of evals.json, in order."""
    found = {}
    for key, value in evals.items():
        module, _, rest = key.partition("/")
        instance, _, rest = rest.partition("/")
        group, _, name = rest.rpartition("/")
        if name:
            found.setdefault(module, {}).setdefault(instance, {}).setdefault(group, {})[name] = value
    return found


def flat(config, path=""):
    """A nested config as {"model.image.name": value}."""
    if isinstance(config, dict) and config:
        return {k: v for name, sub in config.items() for k, v in flat(sub, f"{path}.{name}" if path else str(name)).items()}
    return {path: "nan" if isinstance(config, float) and math.isnan(config) else config}


def document(name, lead, sections, style="", policy=POLICY):
    """A page: `lead` under the title, then `sections`, id -> (title, part). `style`: further rules of CSS; `policy`: what the page
    may load, by default nothing."""
    nav = el("nav", [el("a", title, href=f"#{key}") for key, (title, _) in sections.items()])
    head = el("head", el("meta", charset="utf-8"), el("title", name),
              el("meta", http_equiv="Content-Security-Policy", content=policy),
              el("meta", name="viewport", content="width=device-width, initial-scale=1"),
              el("style", Html(_STYLE.read_text(encoding="utf-8") + style)))
    header = el("header", el("div", el("h1", name), nav, cls="bar"), lead, id="summary")
    body = el("main", [el("section", el("h2", title), part, id=key) for key, (title, part) in sections.items()])
    return "<!doctype html>" + el("html", head, el("body", header, body), lang="en") + "\n"
