"""Curves for the report, as SVG to be placed inside an HTML page.

Drawn by matplotlib rather than by a script in the page: a curve is 10 to 20 kB, so that a report stays below about 2 MB, where
plotly's script alone has 4.8 MB; and the page prints, opens anywhere, and needs no permission to run anything.
"""
import io
import re

from matplotlib import rc_context, ticker
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
import numpy as np

from mcd_jax.markup import Html

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
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
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
