"""Shows a batch as one HTML page that opens offline: what the model is given, row by row.

    mcd-jax inspect --config=mcd_emoji --step=0 [--rows=32] [--out=FILE.html] [--config.key=value
    ...]

The rows are those of the training run with the same config and seed at that step: each view's picture as it leaves the pipeline,
where its box lies in the stored image, what was done to it, its misalignment target, the caption, and the tokens after the cut. A
row whose example was bad says which one was asked for, and why it was replaced.
"""
import base64
import io
import pathlib
import tempfile
import unicodedata

import cv2
import numpy as np
from PIL import Image

from mcd_jax import command
from mcd_jax import config as config_lib
from mcd_jax.config import overrides
from mcd_jax.data import decode, pipeline
from mcd_jax.data.ops.augmented import PARAMS, Augmented
from mcd_jax.html import document, el, flat, table
from mcd_jax.run import atomic, small_files

_STYLE = pathlib.Path(__file__).with_suffix(".css")
_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2")
_SIDE = 320          # pixels: the longest side of a stored image on the page
_CAPTIONS = 8        # captions of an example that are shown beside the chosen one
_LETTERS = 400       # of a caption
_STRANGE = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
_TURNING = set(map(chr, (0x200e, 0x200f, 0x61c, *range(0x202a, 0x202f), *range(0x2066, 0x206a))))


def sheet(config, step, rows=32, title="batch"):
    """The page, str.

    Args:
      config: ConfigDict as train reads it. step: which batch, from 0. rows: how many of its rows, from the first.

    Raises:
      ValueError: a bad config or step; RuntimeError: no usable example.
    """
    if step < 0 or rows < 1:
        raise ValueError(f"--step={step} must be at least 0 and --rows={rows} at least 1")
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "bad.jsonl"
        data = pipeline.make(config.data, config.seed, config.batch_size, rows=slice(0, rows), bad_log=log)
        batch = data.batch(step)
        causes = {line["index"]: f"{line['cause']} {line['detail']}".strip()
                  for line in small_files.lines(log)}
    positions, asked = data.asked(step)
    draws = data.views.draws(config.seed, positions)
    parts = [_row(data, batch, j, position, index, {name: draws[name][j] for name in draws}, causes)
             for j, (position, index) in enumerate(zip(positions, asked))]
    sections = {"views": ("Views", _views(data, batch)), "rows": ("Rows", el("div", parts, cls="rows"))}
    return document(f"{title}, step {step:,}", _lead(config, data, batch, step, len(parts)), sections,
                    _STYLE.read_text(encoding="utf-8"))


def _lead(config, data, batch, step, count):
    source = flat(config.data.source.to_dict())
    epoch = step * config.batch_size / data.examples
    replaced = int(batch["bad"].sum())
    return [el("p", el("b", f"{count} of {config.batch_size:,} rows"), f", seed {config.seed}, epoch {epoch:.2f} of "
               f"{data.examples:,} examples, ", el("b", f"{replaced} replaced"), cls="lead"),
            el("p", ", ".join(f"{key}={value!r}" for key, value in source.items()), cls="lead")]


def _views(data, batch):
    lines = []
    for name, spec in data.views.specs.items():
        shape = f"{batch[name].dtype} {tuple(batch[name].shape[1:])}"
        target = batch.get(f"{name}/misalignment")
        lines.append([el("th", name), el("td", spec), el("td", shape), el("td", "" if target is None else f"{target.mean():.2f}")])
    head = [el("th", name) for name in ("view", "pipe", "shape of a row", "mean misalignment of these rows")]
    return table(head, lines, cls="text")


# ---- one row ----


def _row(data, batch, j, position, asked, draws, causes):
    index, replaced = int(batch["index"][j]), bool(batch["bad"][j])
    example = dict(data.source[index])
    head = [el("span", "row ", el("b", j)), el("span", "index ", el("b", index)),
            el("span", "key ", el("b", el("bdi", visible(str(example.get("key", "")))))), el("span", "position ", f"{position:,}")]
    if replaced:
        cause = causes.get(asked, "bad")
        head.append(el("span", "stands in for index ", el("b", asked), f": {visible(cause)}", cls="why"))
    views = data.views
    pictures = [_stored(example, column, [n for n in views.images if views.sources[n] == column], batch, j)
                for column in dict.fromkeys(views.sources[name] for name in views.images)]
    pictures += [_picture(name, batch, j) for name in views.images]
    texts = [_text(name, views, text, batch[name][j], example) for name, text in views.texts(dict(example), draws).items()]
    others = [name for name in views.specs if name not in views.images and name not in views.tokens]
    values = el("p", [el("span", el("b", name), f" {_value(batch[name][j])}") for name in others], cls="values") if others else None
    body = el("div", el("div", pictures, cls="shown") if pictures else None, el("div", texts, values, cls="texts"), cls="body")
    return el("div", el("p", head), body, cls="row bad" if replaced else "row")


def _stored(example, column, names, batch, j):
    """The stored image with the box of each of its views."""
    pixels = decode.decode(bytes(example[column]))
    height, width = pixels.shape[:2]
    shrink = min(1, _SIDE / max(height, width))
    if shrink < 1:
        small = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    boxes, legend = [], []
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        left, top, wide, high = (100 * float(v) for v in batch[f"{name}/params"][j][:4])
        boxes.append(el("i", style=f"left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{high:.2f}%;"
                                   f"border-color:{colour}", title=name))
        legend.append(el("div", el("span", "\u25a0 ", style=f"color:{colour}"), name))
    return el("figure", el("figcaption", el("b", f"stored {column}"), f"{width} x {height}"),
              el("div", el("img", alt="stored", src=uri(pixels)), boxes, cls="frame"), legend,
              cls="small" if max(height, width) < 160 else None)


def _picture(name, batch, j):
    pixels, row = batch[name][j], batch[f"{name}/params"][j]
    height, width = pixels.shape[:2]
    done = [f"{what} {value:.2f}" for what, value, plain in zip(PARAMS, row, untouched()) if abs(value - plain) > 1e-6]
    every = ", ".join(f"{what} {value:.4g}" for what, value in zip(PARAMS, row))
    return el("figure", el("figcaption", el("b", name), f"{width} x {height}"),
              el("div", el("img", alt=name, src=uri(pixels)), cls="frame"),
              el("div", "misalignment ", el("b", f"{float(batch[f'{name}/misalignment'][j]):.2f}")),
              el("div", ", ".join(done) or "untouched", title=every), cls="small" if max(height, width) < 160 else None)


def untouched():
    """The row of PARAMS of an image to which nothing was done."""
    return Augmented(np.zeros((1, 1, 3), np.uint8)).params()


def _text(name, views, text, tokens, example):
    """The captions that were tokenized, and their tokens; the example's other captions after them."""
    tokenizer, context = views.tokens[name]
    chosen, parts = ([text] if isinstance(text, str) else text), []
    for one, row in zip(chosen, tokens.reshape(-1, context)):
        used, wanted = (sum(len(ids) for ids, _ in tokenizer.pieces(r)) for r in (row, tokenizer.row(one, context + 1)))
        count = f"{used} of {context} tokens" + (", cut" if wanted > context else "")
        marks = ((tokenizer.sot,), (tokenizer.eot,))
        chips = [el("bdi", visible(piece), title=" ".join(map(str, ids)), cls="mark" if ids in marks else None)
                 for ids, piece in tokenizer.pieces(row)]
        parts.append(el("div", el("small", name), el("bdi", el("q", shortened(one))), " ", el("small", count),
                        el("div", chips, cls="tokens"), cls="text"))
    stored = example[views.sources[name]]
    others = [shortened(other) for other in ([stored] if isinstance(stored, (str, bytes)) else stored)]
    others = [other for other in others if other not in map(shortened, chosen)]
    if others:
        more = f" and {len(others) - _CAPTIONS} more" if len(others) > _CAPTIONS else ""
        listed = [[" · " if n else None, el("bdi", other)] for n, other in enumerate(others[:_CAPTIONS])]
        parts.append(el("div", el("small", f"not in {name}"), listed, more, cls="text unused"))
    return parts


def _value(value):
    if value.size <= 12:
        return str(value.tolist())
    return f"{value.dtype} {value.shape}, {value.min():.4g} to {value.max():.4g}, mean {value.mean():.4g}"


# ---- text and pictures for a page ----


def shortened(text):
    """A caption (str or bytes) as `visible`, cut to what a page can hold."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return visible(text[:_LETTERS]) + (f" ... ({len(text):,} letters)" if len(text) > _LETTERS else "")


def visible(text):
    """The text with letters that can't be seen or would turn the line round written as their number: ⟨U+202E⟩."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if c in _TURNING or unicodedata.category(c) in _STRANGE else c for c in text)


def uri(pixels):
    """uint8 (H, W, 3) -> a data URI, without loss where the picture is small."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "WEBP", lossless=max(pixels.shape) < 160, quality=90)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def main(args=None):
    parser = command.Parser(prog="mcd-jax inspect", description=__doc__)
    parser.add_argument("--config", required=True, help="a config's name or file; overrides as --config.key=value")
    parser.add_argument("--step", type=command.whole(0), default=0, help="which batch")
    parser.add_argument("--rows", type=command.whole(1), default=32, help="how many rows of it")
    parser.add_argument("--out", type=command.local_path,
                        help="the file to write; default: NAME_STEP.html of the config in this folder")
    args, found = overrides.parsed(parser, args)
    name = pathlib.Path(args.config.partition(":")[0]).stem
    out = pathlib.Path(args.out or f"{name}_{args.step}.html")
    with command.sentences():
        page = sheet(config_lib.of_command(args.config, found), args.step, args.rows, name)
        atomic.write_text(out, page)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
