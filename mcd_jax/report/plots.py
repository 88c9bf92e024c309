"""Curves and points for the report, as SVG to be placed inside an HTML page.

Drawn by matplotlib rather than by a script in the page: a curve is 10 to 20 kB, so that a report stays below about 2 MB, where
plotly's script alone has 4.8 MB; and the page prints, opens anywhere, and needs no permission to run anything.
"""
import io
import re

from matplotlib import rc_context, ticker
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
import numpy as np

from mcd_jax.html import Html

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#64748b")
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "mcd_jax", "font.family": "sans-serif", "font.size": 8, "axes.spines.top": False,
          "axes.spines.right": False, "axes.edgecolor": "#cbd5e1", "xtick.color": "#64748b", "ytick.color": "#64748b",
          "axes.labelcolor": "#64748b", "axes.grid": True, "grid.color": "#eef2f7", "grid.linewidth": 0.8, "xtick.major.size": 0,
          "ytick.major.size": 0, "lines.solid_capstyle": "round", "legend.frameon": False, "text.parse_math": False}


def curves(series, xlabel="step", size=(3.6, 1.9), legend=False, markers=False, colours=COLOURS, ylabel=None, exact=False, at=()):
    """An SVG element with one line per series.

    Args:
      series: list of (label, x, y), equal lengths; a y that is None or not finite leaves a gap. Lines of more than 40 points are
        drawn faintly with their running mean on top, unless they are `exact`.
      size: inches; the element scales with its container.
      colours: of the series, from the first again when there are more.
      at: list of (x, label): dashed vertical lines.
    """
    with rc_context(_STYLE):
        figure, axes = _axes(size)
        for (label, x, y), colour in zip(series, colours * (1 + len(series) // len(colours)), strict=False):
            x, y = np.asarray(x, float), np.array([np.nan if v is None else v for v in y], float)
            noisy = len(x) > 40 and not exact
            axes.plot(x, y, color=colour, alpha=0.25 if noisy else 1, linewidth=0.8 if noisy else 1.6, markersize=3,
                      marker="o" if markers or (len(x) < 12 and not exact) else None, label=None if noisy else label)
            if noisy:
                axes.plot(x, smooth(y), color=colour, linewidth=1.6, label=label)
        for i, (place, label) in enumerate(at):   # labels one below the other: they may stand close together
            axes.axvline(place, color="#64748b", linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            axes.annotate(label, (place, 1), xycoords=("data", "axes fraction"), xytext=(2, 1 - 8 * i), textcoords="offset points",
                          color="#475569", fontsize=7)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel or "")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: short(v)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: short(v)))
        if legend:
            figure.legend(loc="outside upper left", ncols=6, labelcolor="#334155", handlelength=1, columnspacing=1.2, borderpad=0)
        return svg(figure)


def points(series, dots=(), xlabel="", ylabel="", log=False, size=(3.6, 1.9), legend=False):
    """An SVG element with means over a number, and bars of one standard deviation.

    Args:
      series: list of (label, x, mean, deviation), equal lengths; a deviation may be None.
      dots: list of (x, y, colour): single runs, drawn behind the means.
      log: a logarithmic x axis, see `log_fits`.
    """
    with rc_context(_STYLE):
        figure, axes = _axes(size)
        for x, y, colour in dots:
            axes.plot([x], [y], marker="o", markersize=3.5, color=colour, alpha=0.7, zorder=1)
        for (label, x, mean, deviation), colour in zip(series, COLOURS * (1 + len(series) // len(COLOURS)), strict=False):
            axes.errorbar(x, mean, yerr=_spread(deviation), color=colour, label=label, marker="o", markersize=4, linewidth=1.4,
                          elinewidth=1.2, capsize=2, zorder=2)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.06)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        values = sorted({float(v) for _, x, *_ in series for v in x} | {float(x) for x, *_ in dots})
        if len(values) <= 6:   # what was swept, rather than round numbers
            axes.set_xticks(values)
        elif not log:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: short(v)))
        if legend:
            figure.legend(loc="outside upper left", ncols=4, labelcolor="#334155", handlelength=1, columnspacing=1.2, borderpad=0)
        return svg(figure)


def named(names, mean, deviation, dots=(), xlabel="", width=3.6):
    """An SVG element with a mean for each of `names`, one below the other, and bars of one standard deviation.

    Args:
      mean, deviation: numbers, a deviation may be None. dots: list of (place in `names`, value, colour): single runs.
    """
    with rc_context(_STYLE):
        figure, axes = _axes((width, 0.55 + 0.17 * max(3, len(names))))
        for place, value, colour in dots:
            axes.plot([value], [place], marker="o", markersize=3.5, color=colour, alpha=0.7, zorder=1)
        axes.errorbar(mean, range(len(names)), xerr=_spread(deviation), color=COLOURS[0], marker="o", markersize=4, linewidth=0,
                      elinewidth=1.2, capsize=2, zorder=2)
        axes.set_yticks(range(len(names)), [text if len(text) < 33 else text[:32] + "…" for text in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: short(v)))
        return svg(figure)


def _spread(deviation):
    values = [v or 0.0 for v in deviation]
    return values if any(values) else None


def log_fits(values):
    """Whether numbers are better shown on a logarithmic axis: all positive, over a factor of 10 or more, as evenly spaced."""
    values = sorted(set(values))
    if len(values) < 2 or values[0] <= 0 or values[-1] < 10 * values[0]:
        return False
    gaps = np.diff(values), np.diff(np.log(values))
    linear, logarithmic = (float(np.max(gap) / np.min(gap)) for gap in gaps)
    return logarithmic <= linear * (1 + 1e-9)


def _axes(size):
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def smooth(y, span=None):
    """Exponential running mean over about `span` points (a fifteenth of them), which starts unbiased and steps over NaN."""
    rate, mean, weight, out = 2.0 / ((span or max(4, len(y) // 15)) + 1), 0.0, 0.0, []
    for value in y:
        if np.isfinite(value):
            mean, weight = (1 - rate) * mean + rate * value, (1 - rate) * weight + rate
        out.append(mean / weight if weight else np.nan)
    return np.array(out)


def short(value):
    """A tick or a card's number in few letters: 12k, 3.5M, 0.02, 1e-6."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.3g}{unit}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def svg(figure):
    """A figure as an SVG element that refers to nothing outside, without the XML head and namespaces that HTML does not need."""
    data = io.StringIO()
    FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = data.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.S)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    return Html(f'<svg {box} role="img">' + re.sub(r">\s+<", "><", body).strip())
