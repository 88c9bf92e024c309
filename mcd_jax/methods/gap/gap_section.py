"""The report's section on the modality gap: a pure function of what `gap_analysis.py` wrote."""
from mcd_jax.html import el, figure, grid, note, table, words
from mcd_jax.report import plots
from mcd_jax.run.results import number

TITLE = "Modality gap"
_SIZE = (3.6, 2.3)
_SHOWN = ("R@1", "R@10", "MRR", "top1", "top5")
_AXIS = "gap after the move (distance of the means)"
_WEIGHTS = {"trained": "trained", "untrained": "untrained", "noise": "untrained, noise as input"}


def section(result):
    """The parts of the section."""
    own = result["figures"]
    lead = (f"Images and texts lie in two clouds whose means are {own['distance']:.3f} apart (0: no gap, 2: opposite points), at "
            f"step {result['step']:,}, over {result['rows']:,} pairs of {words(result['pairs'])}. The means are "
            f"{own['norm_image']:.3f} and {own['norm_text']:.3f} long, a pair's mean cosine is {own['pair_cosine']:.3f}. "
            f"Untrained, the gap was {result['start']['distance']:.3f}; with the untrained texts rotated onto the images "
            f"{result['start']['rotated']:.3f}.")
    whose = "of each data set itself" if result["vector"] == "own" else "of the data that choose the move"
    moves = (f"Both clouds move along the gap vector, the difference of their means, here {whose}; then every embedding is made "
             "unit again. Left of 0 the means have passed each other. Dashed: no move, and the move chosen on validation data.")
    losses = (f"The contrastive loss of {result['batches']} batches of 50 pairs after the same moves, each set along its own gap "
              "vector. Far beyond either end all images and all texts fall into two opposite points, where the loss is a guess's, "
              "ln 50 = 3.91. τ is the temperature.")
    parts = [note(lead),
             el("h3", "Figures after moving both clouds along the gap"), note(moves), grid(_curves(result)), _moved(result),
             el("h3", "Loss around the gap"), note(losses), grid(_losses(result)),
             el("h3", "Cones"), grid(_cones(result)), _cone_table(result)]
    if result.get("seeds"):
        parts.append(_seeds(result))
    if result.get("fairness"):
        parts += [el("h3", "Watched classes while the images move along the gap"), grid(_fairness(result))]
    return parts + [el("h3", "Simulations, the same for every run"), grid(_simulations(result))]


def _curves(result):
    panels = []
    for key, found in result["curves"].items():
        module, _, name = key.partition("/")
        groups = {}
        for figure_name, values in found["figures"].items():
            group, _, last = figure_name.rpartition("/")
            if last in _SHOWN and "/" not in group:
                groups.setdefault(group, []).append((last, *_broken(found["gap"], values)))
        for group, series in groups.items():
            marks = [(found["gap"][found["amount"].index(0.0)], "no move")]
            choice = result["choice"].get(result["judge"].get(key))
            if choice and choice["amount"] != 0:
                marks.append((found["gap"][choice["place"]], "chosen"))
            title = " · ".join(filter(None, (words(module), words(name), words(group))))
            panels.append(figure(title, "", plots.curves(series, _AXIS, _SIZE, legend=True, ylabel="%", exact=True, at=marks)))
    return panels


def _broken(gaps, values):
    """A line in percent that is interrupted where the means pass each other at a distance, which no move along a vector that isn't
    their own can avoid."""
    x, y = list(gaps), [None if v is None else 100 * v for v in values]
    for i in range(len(gaps) - 1, 0, -1):
        if gaps[i - 1] * gaps[i] < 0 and min(abs(gaps[i - 1]), abs(gaps[i])) > 0.1:
            x.insert(i, 0.0)
            y.insert(i, None)
    return x, y


def _moved(result):
    """The table of no move, the chosen one and the best."""
    if not result["moved"]:
        return note("No evaluation chooses a move: give one with 'validation' in its name, or name it by --choose.")
    lines = []
    for key, figures in result["moved"].items():
        chosen = result["choice"][result["judge"][key]]
        for name, v in figures.items():
            group, _, last = name.rpartition("/")
            if last in ("R@1", "R@10", "top1") and "/" not in group:
                title = " · ".join(filter(None, (words(key.replace("/", " · ")), words(group), last)))
                small = el("small", "chooses the move") if key in result["choice"] else None
                lines.append([el("th", title, small), *(el("td", number("R@1", v[k])) for k in ("default", "chosen", "oracle")),
                              *(el("td", f"{amount:+.2f}") for amount in (chosen["amount"], v["oracle_amount"]))])
    head = [el("th"), *(el("th", h) for h in ("no move", "chosen", "oracle", "chosen λ", "oracle's λ"))]
    return [note("The oracle is the best move for the very data that it is measured on: an upper bound, not a result. λ moves the "
                 "images by -λ and the texts by +λ gap vectors; 0.5 closes the gap, below 0 widens it."), table(head, lines)]


def _losses(result):
    """One panel per set of pairs and temperature, since their losses lie far apart."""
    panels = []
    for name, found in result["landscape"].items():
        here = [(found["gap"][found["amount"].index(0.0)], "no move")]
        for scale, losses, best in zip(found["scales"], found["loss"], found["best"]):
            title = f"{words(name)} · τ = 1/{scale:g}" + (" (this run's)" if _same(scale, result["logit_scale"]) else "")
            drawing = plots.curves([("", found["gap"], losses)], _AXIS, _SIZE, ylabel="loss (nats)", exact=True, at=here)
            edge = " (edge)" if best in (found["gap"][0], found["gap"][-1]) else ""
            panels.append(figure(title, f"lowest at {best:+.2f}{edge}", drawing))
    return panels


def _same(scale, own):
    return own is not None and abs(scale - own) < 0.06


def _cones(result):
    panels = []
    for key in ("image", "text"):
        series = []
        for weights, title in _WEIGHTS.items():
            own = result["cone"][weights][key]
            shown = [i for i, d in enumerate(own["density"]) if d > 0]
            span = slice(max(0, shown[0] - 1), shown[-1] + 2)
            peak = max(own["density"])
            series.append((title, own["centers"][span], [d / peak for d in own["density"][span]]))
        drawing = plots.curves(series, f"cosine of two {key}s", _SIZE, legend=True, ylabel="density / its peak", exact=True)
        panels.append(figure(f"{key}s", "", drawing))
    return panels


def _cone_table(result):
    columns = [(key, k) for key in ("image", "text") for k in ("mean", "min")]
    lines = [[el("th", title), *(el("td", f"{result['cone'][weights][key][k]:.3f}") for key, k in columns)]
             for weights, title in _WEIGHTS.items()]
    return table([el("th", "cosine of two different rows"), *(el("th", f"{key}s, {k}") for key, k in columns)], lines)


def _seeds(result):
    lines = [[el("th", f"{key}s"), *(el("td", f"{s[k]:.3f}") for k in ("distance", "inside", "across")),
              *(el("td", f"{100 * s[k]:.1f}%") for k in ("separated", "variance"))] for key, s in result["seeds"].items()]
    head = [el("th"), *(el("th", h) for h in ("distance of two seeds' means", "cosine inside a seed", "across seeds",
                                              "nearest to their own seed", "variance that the seed explains"))]
    return [note("The same inputs through untrained networks that differ only in the seed:"), table(head, lines)]


def _fairness(result):
    panels = []
    for key, found in result["fairness"].items():
        kinds = {}
        for name, values in found["figures"].items():
            group, _, kind = name.rpartition("/")
            if group and kind != "images":
                kinds.setdefault(kind, []).append((group, found["gap"], [100 * v for v in values]))
        zero = found["gap"][found["amount"].index(0.0)]
        panels += [figure(f"{words(key.partition('/')[2])} · {words(kind)}", "", plots.curves(
            series, _AXIS, _SIZE, legend=True, ylabel="% of the group", exact=True, at=[(zero, "no move")]))
            for kind, series in kinds.items()]
    return panels


def _simulations(result):
    panels = []
    for kind, found in result["sphere"].items():
        series = [(f"1/{scale:g}", found["elevation"], losses) for scale, losses in zip(found["scales"], found["loss"])]
        title = "six pairs on a sphere, " + ("two swapped" if kind == "mismatched" else "matched") + ", by temperature"
        panels.append(figure(title, "", plots.curves(
            series, "elevation of the texts (degrees)", _SIZE, legend=True, ylabel="loss (nats)", exact=True)))
    series = [(words(name), range(len(values)), values) for name, values in result["depth"].items()]
    panels.append(figure("random layers on random inputs", "", plots.curves(
        series, "layers", _SIZE, legend=True, ylabel="mean cosine", exact=True)))
    return panels
