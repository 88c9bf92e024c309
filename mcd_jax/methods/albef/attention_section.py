"""The report's section on where texts look in images: a pure function of what `attention_analysis.py` wrote."""
from mcd_jax.html import el, note

TITLE = "Attention"
_LARGE = "width:120px;height:120px"


def section(result):
    """The parts of the section."""
    boxes = any(text["iou"] is not None for row in result["rows"] for text in row["texts"])
    lead = (f"Random images of {result['instance']} at step {result['step']:,}, as the network sees them, and what of them the "
            f"match with a text rests on: Grad-CAM of the match logit in fusion layer {result['layer']} of {result['layers']}. Red "
            "is the hottest part of a map; each large map has a scale of its own, the small ones, word by word, share one. The "
            "number is the match logit. ")
    lead += ("Green: the true box. White: the box around the hottest part; the second number is their overlap." if boxes else
             "The second text belongs to another image.")
    return [note(lead), *(_row(row) for row in result["rows"])]


def _row(row):
    picture = el("figure", el("img", alt=f"row {row['row']}", src=row["image"], style=_LARGE),
                 el("figcaption", f"row {row['row']}"), style="width:120px")
    return el("div", el("div", picture, cls="strip"), el("div", [_text(text) for text in row["texts"]]), cls="query")


def _text(text):
    facts = [el("b", text["text"]), el("small", f" {text['score']:.1f}", "" if text["iou"] is None else f" · {text['iou']:.2f}",
                                       "" if text["own"] else " · another image's")]
    maps = [el("figure", el("img", alt=f"map of {text['text']}", src=text["map"], style=_LARGE), el("figcaption", "all words"),
               style="width:120px")]
    maps += [el("figure", el("img", alt=f"map of {word}", src=drawn), el("figcaption", word)) for word, drawn in text["words"]]
    return el("div", el("p", facts), el("div", maps, cls="strip"))
