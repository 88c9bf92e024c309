"""The report's section on mixtures of experts: a pure function of what `experts_analysis.py` wrote."""
from mcd_jax.html import el, note, table

TITLE = "Experts"
_NAMES = {"image": "images", "text": "texts", "padding": "padding"}


def section(result):
    """The parts of the section."""
    lead = (f"Each token goes to one expert of every mixture (or to a few). Here are those of {result['rows']:,} pairs of "
            f"{result['pairs']} at step {result['step']:,}, each modality by itself, as evaluations see them. "
            + ("The network isn't told which modality a token is of. " if result["shared"] else "")
            + "Experts used is e to the entropy of the shares: 1 when one expert has all tokens, "
            f"{result['num']} when all have as many.")
    parts = [note(lead)]
    for i, layer in enumerate(result["layers"]):
        parts += [el("h3", f"Mixture {i + 1} of {len(result['layers'])}"), _overview(layer), _experts(layer, result)]
    return parts


def _overview(layer):
    kinds = [kind for kind in _NAMES if kind in layer["share"]]
    numbers = [el("th", str(e)) for e in range(len(layer["experts"]))]
    head = [el("th", "share of tokens by expert"), *numbers, el("th", "experts used"), el("th", "found room")]
    rows = [[el("th", _NAMES[kind]), *(_shade(share) for share in layer["share"][kind]), el("td", f"{layer['used'][kind]:.1f}"),
             el("td", "-" if layer["kept"][kind] is None else f"{100 * layer['kept'][kind]:.0f}%")] for kind in kinds]
    if "image" in kinds and len(kinds) > 1:
        images = [el("td", f"{100 * expert['images']:.0f}%") for expert in layer["experts"]]
        rows.append(("pale", [el("th", "images among what it sees"), *images, el("td"), el("td")]))
    return table(head, rows)


def _shade(share):
    """A cell as blue as its share is large."""
    return el("td", f"{100 * share:.0f}%", style=f"background:rgba(37,99,235,{min(1.0, share) * 0.7:.2f})")


def _experts(layer, result):
    """A row for each expert: what it sees."""
    items = []
    for number, expert in enumerate(layer["experts"]):
        facts = [el("b", f"Expert {number}")]
        if expert["images"] is not None and sum(own[number] for own in layer["share"].values()) == 0:
            facts.append(el("small", "sees nothing here"))
        facts += [el("small", f"{name}: {times:.1f} times as often as others") for name, times, _ in expert["concepts"]]
        pictures = [el("figure", el("img", alt=f"row {p['row']}", src=p["image"]), el("figcaption", f"{p['gate']:.2f}"))
                    for p in expert["patches"]]
        words = [el("span", el("b", text or "·"), f" {100 * share:.0f}% of {total}") for text, share, total in expert["tokens"]]
        strip, line = el("div", pictures, cls="strip") if pictures else None, el("div", words, cls="versions") if words else None
        items.append(el("div", el("div", facts), el("div", strip, line), cls="query"))
    what = ("The surest patches of each expert, one of a picture, with the router's gate below; and the tokens that most often go "
            "to it, with the share of their occurrences that does.")
    if result["concepts"]:
        what += f" Under the number: the values of {result['concepts']!r} whose patches and words it sees most above average."
    return [note(what), *items]
