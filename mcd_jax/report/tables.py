"""Evaluation tables and galleries of the report: pure functions of figures and pictures."""
from mcd_jax.html import el, figure, grid, note, table, tree, words
from mcd_jax.report import plots
from mcd_jax.run.results import COUNTS, number

_FIRST = ("R@1", "R@5", "R@10", "top1", "top5", "mean_per_class", "MRR", "distance")
_MISALIGNMENT = {"ordered": "Pairs of views of one image in the right order (chance 50%)",
                 "spearman_per_image": "Rank correlation with severity within an image (chance 0)",
                 "spearman": "Rank correlation with severity over all images (chance 0)"}
_KINDS = ("image", "text", "fused")
_UNUSED = {"missing": "image files are missing", "bad": "images or texts can't be used"}


# ---- tables --------------------------------------------------------------------------------------------------------------------


def evaluations(run, other):
    """One table per module and instance; misalignment as contenders by kind of augmentation."""
    mine, theirs = tree(run["evals"]), tree(other["evals"]) if other else {}
    if not mine:
        return note("Nothing has been evaluated yet.")
    text = [note(f"Figures of step {run['evals'].get('step') or 0:,}. Small grey figures are what chance would give.")]
    for module, instances in mine.items():
        beside = theirs.get(module, {})
        text.append(el("h3", words(module)))
        if module == "misalignment":
            text.append(_misalignment(run, instances, other, beside))
        elif module == "universal":
            text.append(_universal(instances, beside))
        elif all(list(groups) == [""] for groups in instances.values()):
            text.append(el("div", _columns(instances, beside), cls="tables"))
        else:
            own = [_instance(name, groups, beside.get(name, {})) for name, groups in instances.items()]
            text.append(el("div", own, cls="tables"))
    return text


def _columns(instances, beside):
    """Figures downwards, instances across: for evaluations without groups."""
    names = {f: None for groups in instances.values() for f in groups[""]}
    rows = [[el("th", words(f)), [_cell(f, groups[""], beside.get(name, {}).get("", {})) for name, groups in instances.items()]]
            for f in names]
    return table([el("th"), [el("th", words(name)) for name in instances]], rows)


def _instance(name, groups, beside):
    names = {f: None for group in groups.values() for f in group if not f.startswith("chance_") and f not in COUNTS}
    names = sorted(names, key=lambda f: _FIRST.index(f) if f in _FIRST else len(_FIRST))
    plain = [g for g in groups if "/" not in g]

    def place(group):   # a variant ("no_flags/text_to_image") comes right after what it is a variant of
        base = group.rpartition("/")[2]
        return plain.index(base) if base in plain else len(plain), "/" in group

    lines = []
    for group in sorted(groups, key=place):
        values = groups[group]
        sizes = ", ".join(f"{values[c]:,.0f} {c}" for c in COUNTS if values.get(c) is not None)
        title = ", ".join(words(part) for part in reversed(group.split("/"))) or "all"
        lines.append([el("th", title, el("small", sizes)), [_cell(f, values, beside.get(group, {})) for f in names]])
    return table([el("th", words(name)), [el("th", words(f)) for f in names]], lines, cls="wide" if len(names) > 5 else None)


def _universal(instances, beside):
    """A square for each pool, queries down and candidates across; what has few combinations, or several tasks, as a list."""
    found = []
    for name, groups in instances.items():
        theirs = beside.get(name, {})
        squares = {pool: [f"{pool}/{q}_to_{c}" for q in _KINDS for c in _KINDS if f"{pool}/{q}_to_{c}" in groups]
                   for pool in ("global", "local")}
        squares = {pool: shown for pool, shown in squares.items() if len(shown) > len(_KINDS)}
        drawn = {"", *(group for pool, shown in squares.items() for group in (*shown, f"{pool}/mean"))}
        tables = [_square(name, pool, shown, groups, theirs) for pool, shown in squares.items()]
        rest = {group: own for group, own in groups.items() if group not in drawn}
        found.append(el("div", [tables, _instance(name, rest, theirs) if rest else None], cls="tables"))
        found += [note(f"{words(name)}: {groups[''][key]:,.0f} {what}.") for key, what in _UNUSED.items()
                  if groups.get("", {}).get(key)]
    return [note("On the left what asks, above what is wanted. In the global pool all kinds of candidates are mixed and only the "
                 "wanted kind counts; in the local pool there is no other kind."), found]


def _square(name, pool, shown, groups, beside):
    """R@k of one pool for k = 10 or the largest; below it R@k for the smallest, and what chance would give."""
    ks = sorted(int(figure[2:]) for figure in groups[shown[0]] if figure.startswith("R@"))
    main, first = f"R@{10 if 10 in ks else ks[-1]}", f"R@{ks[0]}"

    def cell(group):
        values = groups.get(group, {})
        if values.get(main) is None:
            return el("td")
        own = beside.get(group, {})
        return el("td", number(main, values[main]), el("span", number(main, own[main]), cls="two") if main in own else None,
                  el("small", f"{first} {number(first, values.get(first))}") if first != main else None,
                  el("small", f"chance {number('chance', values.get(f'chance_{main}'))}"),
                  style=f"background:rgba(37,99,235,{0.35 * min(max(values[main], 0.0), 1.0):.3f})")

    sizes = sorted({groups[group]["candidates"] for group in shown})
    mean = groups.get(f"{pool}/mean", {}).get(main)
    title = [f"{words(name)}, {pool} pool: {main} among {' or '.join(f'{size:,.0f}' for size in sizes)} candidates",
             f", mean {number(main, mean)}" if mean is not None else None]
    lines = [[el("th", words(q)), [cell(f"{pool}/{q}_to_{c}") for c in _KINDS]] for q in _KINDS]
    return table([el("th"), [el("th", words(c)) for c in _KINDS]], lines, cls="square", caption=title)


def _cell(name, values, beside):
    if name not in values:
        return el("td")
    chance = values.get(f"chance_{name}")
    return el("td", number(name, values[name]), el("span", number(name, beside[name]), cls="two") if name in beside else None,
              el("small", number("chance", chance)) if chance is not None else None)


def _misalignment(run, instances, other, beside):
    settings = (run["config"].get("evals") or {}).get("misalignment") or {}
    kinds = list({g.split("/")[0]: None for groups in instances.values() for g in groups if g not in ("", "pixel")})
    contenders = []   # (title, class, group -> figures)
    for name, groups in instances.items():
        contenders.append((words(name), None, groups, ""))
        if (settings.get(name) or {}).get("weights_from") != "init":
            contenders.append((f"{words(name)}: pixel distance", "pale", groups, "pixel"))
    contenders += [(f"{words(name)} ({other['name']})", "two", groups, "") for name, groups in beside.items()]
    tables = []
    for name, title in _MISALIGNMENT.items():
        lines = []
        for contender, tone, groups, suffix in contenders:
            own = [groups.get("/".join(filter(None, (kind, suffix))), {}) for kind in ("", *kinds)]
            lines.append((tone, [el("th", contender), [el("td", number(name, g[name]) if name in g else "") for g in own]]))
        tables.append(table([el("th"), [el("th", words(kind or "overall")) for kind in ("", *kinds)]], lines, caption=title))
    panels = []
    for name, groups in instances.items():
        series = []
        for kind in kinds:
            levels = {float(f[5:]): v for f, v in groups.get(kind, {}).items() if f.startswith("mean@")}
            if levels:
                series.append((kind, list(levels), list(levels.values())))
        if series:
            drawing = plots.curves(series, "level", legend=True, markers=True)
            panels.append(figure(f"mean predicted misalignment, {words(name)}", "", drawing))
    question = ("Is the predicted misalignment, log D(text, augmented) / D(text, untouched), larger for the more severe "
                "augmentation? Beside it the same question put to the pixel distance.")
    return [note(question), el("div", tables, cls="tables"), grid(panels)]


# ---- galleries -----------------------------------------------------------------------------------------------------------------


def text_gallery(gallery):
    """Texts with the images found for them."""
    text = [note(f"Texts drawn at random from {words(gallery['instance'])} and their nearest images among "
                 f"{gallery['queries'][0]['candidates']:,}, at step {gallery['step']:,}. A match is framed in green; the number is "
                 "the cosine.")]
    for query in gallery["queries"]:
        asked = el("div", el("q", query["text"]), _place(query["rank"]))
        text.append(el("div", asked, el("div", _hits(query["hits"]), cls="strip"), cls="query"))
    return text


def _place(rank):
    return el("small", f"found at {rank:,}" if rank > 1 else "found first", cls="good" if rank <= 10 else None)


def _hits(hits):
    """The images of one query, best first."""
    return [el("figure", el("img", alt=hit["text"], src=hit["image"]), el("figcaption", f"{hit['score']:.2f}"),
               cls="hit" if hit["right"] else None, title=hit["text"]) for hit in hits]


def classified_gallery(gallery):
    """Images with the classes that they are taken for."""
    text = (f"Images drawn at random from {words(gallery['classes_of'])} and the classes whose prompts are nearest, at step "
            f"{gallery['step']:,}; the number is the cosine. What is right is framed in green.")
    figures = []
    for item in gallery["classified"]:
        guesses = [el("small", f"{guess['name']} {guess['score']:.2f}", cls="good" if guess["right"] else None)
                   for guess in item["guesses"]]
        figures.append(el("figure", el("img", alt=item["name"], src=item["image"]), el("figcaption", el("b", item["name"])),
                          [el("figcaption", guess) for guess in guesses], cls="hit" if item["guesses"][0]["right"] else None))
    return [note(text), el("div", figures, cls="strip")]


def augmentation_gallery(gallery):
    """Images under augmentation, with what is predicted of each view."""
    items = []
    for item in gallery["augmented"]:
        top = max([abs(view["r"]) for row in item["rows"] for view in row["views"]] + [1e-9])
        rows = []
        for row in item["rows"]:
            views = [_view(row["kind"], view, top) for view in row["views"]]
            rows.append(el("div", el("span", words(row["kind"])), el("div", views, cls="strip"), cls="kind"))
        picture = el("figure", el("img", alt="untouched", src=item["image"]), el("figcaption", el("q", item["text"])))
        items.append(el("div", picture, el("div", rows), cls="item"))
    text = ("Under each view its predicted misalignment: how much further from the text it is than the untouched image, as a log "
            "ratio of distances. The bar shows it, grey where the view came nearer. Small: the severity that the pipeline reports.")
    return [note(text), el("div", items, cls="items")]


def _view(kind, view, top):
    width = f"width:{100 * min(1, abs(view['r']) / top):.0f}%"
    return el("figure", el("img", alt=f"{kind} {view['level']:g}", src=view["image"]),
              el("i", style=width, cls=None if view["r"] > 0 else "less"),
              el("figcaption", el("b", f"{round(view['r'], 2) + 0.0:+.2f}"), " ", el("small", f"{view['y'] - 1:.2f}")))
