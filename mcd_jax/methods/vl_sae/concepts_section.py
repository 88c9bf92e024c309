"""The report's section on concepts, and the page to browse them: pure functions of what `concepts_analysis.py` wrote."""
import base64
import hashlib
import json
import pathlib

from mcd_jax.data.tools.inspect import visible
from mcd_jax.html import Html, document, el, note, table, words
from mcd_jax.run.results import number

TITLE = "Concepts"
_HERE = pathlib.Path(__file__)
_SHOWN, _STRIP, _LETTERS = 12, 8, 200


def section(result):
    """The parts of the section: figures, the concepts that fire most, explained pairs."""
    f = result["figures"]
    lead = (f"{f['units']:.0f} units over {result['rows']:,} pairs of {words(result['instance'])} at step {result['step']:,}, "
            f"{f['dead']:.0f} of them dead, {f['fires']:.1f} fire per row. analysis/concepts.html beside this file lets you browse "
            "all of them.")
    return [note(lead), _figures(result),
            el("h3", "The concepts that fire most"), [_unit(result, unit) for unit in result["units"][:_SHOWN]],
            el("h3", "Why pairs belong together"), note(_SCORES), [_pair(result, pair) for pair in result["pairs"]]]


_SCORES = ("Shared concepts of an image and its caption by image code times text code over the concept's mean activation.")


def _figures(result):
    lines = [[el("th", words(key)), el("td", number(key, value))] for key, value in result["figures"].items() if value is not None]
    return table([el("th", f"similarities by {result['judge']}"), el("th", "")], lines)


def _unit(result, unit):
    pictures = [_picture(result, row, f"{code:.2f}") for row, code in unit["images"][:_STRIP]]
    captions = [el("div", el("bdi", shown(result["captions"].get(str(row), ""))), el("small", f" {code:.2f}"))
                for row, code in unit["texts"][:_STRIP]]
    head = el("div", el("b", f"concept {unit['unit']}"), el("small", f"mean activation {unit['mean']:.4f}"),
              el("small", f"intra {unit['intra']:.3f}") if unit["intra"] is not None else None)
    return el("div", head, el("div", el("div", pictures, cls="strip"), captions), cls="query")


def _pair(result, pair):
    chips = ", ".join(f"{unit} ({score:.2f})" for unit, score in pair["shared"]) or "no shared concept"
    return el("div", el("div", el("q", el("bdi", shown(pair["text"]))), el("small", f"row {pair['row']}")),
              el("div", el("div", _picture(result, pair["row"], ""), cls="strip"), el("small", f"concepts {chips}")), cls="query")


def _picture(result, row, text):
    uri = result["pictures"].get(str(row))
    image = el("img", src=uri, alt=shown(result["captions"].get(str(row), ""))) if uri and uri.startswith("data:image/") else None
    return el("figure", image, el("figcaption", text or f"row {row}"))


def shown(text):
    """A caption cut to what a page can hold, with letters that can't be seen or turn the line written as their number."""
    return visible(text[:_LETTERS]) + ("..." if len(text) > _LETTERS else "")


def browser(result, name):
    """The page to browse: one document that refers to nothing outside and may run its own script alone.

    Captions reach the page as JSON and become text nodes; no markup is ever made of them.
    """
    code = _HERE.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    data = {**{key: result[key] for key in ("units", "pairs", "pictures")},
            "captions": {row: shown(text) for row, text in result["captions"].items()}}
    data["pairs"] = [{**pair, "text": shown(pair["text"])} for pair in data["pairs"]]
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    f = result["figures"]
    lead = el("p", el("b", f"{f['units']:.0f} units"), f" over {result['rows']:,} pairs of {words(result['instance'])}, "
              f"{f['dead']:.0f} dead, {f['fires']:.1f} fire per row; step {result['step']:,}", cls="lead")
    search = el("div", el("input", id="word", type="search", placeholder="search captions, such as cat, or a concept's number",
                          autocomplete="off", aria_label="search concepts"), el("span", "", id="count"), cls="search")
    parts = {"concepts": ("Concepts", [search, el("div", el("div", "", id="list"), el("div", "", id="detail"), cls="browse")]),
             "pairs": ("Why pairs belong together", [note(_SCORES), el("div", "", id="pairs_list")]),
             "figures": ("Figures", [_figures(result), el("script", Html(text), id="data", type="application/json"),
                                     el("script", Html(code))])}
    return document(f"{name}: concepts", lead, parts, _HERE.with_suffix(".css").read_text(encoding="utf-8"), policy)
