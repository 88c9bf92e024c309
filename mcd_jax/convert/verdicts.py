"""`mcd-jax convert check`: for each kind of image file and each library, whether both sides give the same, or why they don't.

A difference is followed through the steps that make an embedding: decoding, resampling, the tower. Each step is looked at by
itself, by giving the library what ours made of the step before. It is explained where the reason is known and what it predicts is
what is seen; else the two differ, which is a fault of the export, the import or a library.
"""
from collections.abc import Sequence
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from mcd_jax.convert import files, formats, odd_files, peers, runs
from mcd_jax.data import decode

TARGETS = ("open_clip", "hf", "onnx")
EMBEDDING, LEVELS = 1e-4, 0.01   # largest difference of equal unit embeddings, and of equal pixels in units of 256 levels
NARROW = 0.05                    # of unit embeddings, by weights that are stored in 16 bits
EQUAL, EXPLAINED, DIFFERS, UNCHECKED = "equal", "explained", "DIFFERS", "not checked"
DECODING = {   # what is known of libraries that read files by Pillow
    "16 bit": "Pillow cuts 16-bit grey off at 255, where we take the upper 8 bits: convert such files to 8 bits first",
    "CMYK": "Pillow and OpenCV turn CMYK into RGB by other roundings",
}
ROUNDING = {"CMYK": 2}   # so many levels at most, where it is only rounding


class Verdict(NamedTuple):
    """One line: of a target and an input; embedding, pixels: largest differences, None where there are none; why: in words."""
    target: str
    input: str
    verdict: str
    embedding: float | None = None
    pixels: float | None = None
    why: str = ""


def check(workdir: str, targets: Sequence[str] = (), checkpoint: str | None = None, name: str = "", weights_from: str = "params",
          step: int | None = None, count: int = 16) -> list[Verdict]:
    """The verdicts on a run.

    Args:
      workdir: of the run; weights_from, step: which of its weights.
      targets: formats; (): all of TARGETS. checkpoint: the folder or file of the one target, None: the run is exported into a
        temporary folder. name: the peer's name of the model, for a bare file of weights.
      count: drawings and captions of the embedded test set, beside the kinds of file.

    Raises:
      ValueError, OSError: no such run or checkpoint, a format that nothing can be checked with.
    """
    if checkpoint and len(targets) != 1:
        raise ValueError("--checkpoint is one library's: say which by --with=NAME")
    run, found = runs.open_run(workdir, weights_from, step), []
    modules = {target: formats.named(target, "IMPORTS" if checkpoint and target in formats.names("IMPORTS") else "EXPORTS")
               for target in targets or TARGETS}
    peers.declare_operators()
    for target, module in modules.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                if not checkpoint:
                    module.save(run, pathlib.Path(folder), "float32")
                peer = module.peer(checkpoint or folder, name)
            except ImportError as error:
                lacking = error.name or str(error).partition("\n")[0]
                found.append(Verdict(target, "everything", UNCHECKED, why=f"it needs {lacking}: {module.REQUIRES}"))
            except ValueError as error:
                if checkpoint:
                    raise
                found.append(Verdict(target, "everything", UNCHECKED, why=str(error)))
            else:
                found += compared(target, run, peer, checkpoint or folder, count)
    return found


def status(verdicts: Sequence[Verdict]) -> int:
    """The exit status: 1 where something differs, or nothing was checked."""
    return int(any(v.verdict == DIFFERS for v in verdicts) or all(v.verdict == UNCHECKED for v in verdicts))


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in columns, and what they add up to."""
    rows = [("library", "input", "verdict", "embedding", "pixels", "")]
    rows += [(v.target, v.input, v.verdict, *("" if x is None else f"{x:.2g}" for x in (v.embedding, v.pixels)), v.why)
             for v in verdicts]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[5]]).rstrip() for row in rows]
    counts = ", ".join(f"{n} {what}" for what in (EQUAL, EXPLAINED, DIFFERS, UNCHECKED)
                       if (n := sum(v.verdict == what for v in verdicts)))
    return "\n".join([*lines, f"{counts}; equal: unit embeddings within {EMBEDDING:g}, pixels within {LEVELS:g} of 256 levels"])


def compared(target, run, peer, checkpoint, count):
    """The verdicts on one library's model; arguments as `check` has them."""
    ours, kinds = peers.of_run(run), odd_files.made()
    drawings, captions = peers.examples(count)
    names = [*kinds, *([f"{count} drawings"] * count)]
    images = [*kinds.values(), *drawings]
    mine, theirs = ours.pixels(images), _levels(run, peer, images)
    if theirs.shape != mine.shape:
        height, width = theirs.shape[1:3]
        return [Verdict(target, "everything", DIFFERS, why=f"its images are {height} x {width} px, the run's {mine.shape[1]}")]
    plain = _levels(run, peer, [_png(decode.decode(data)) for data in images])
    bicubic = peers.of_run(run._replace(view=run.view._replace(method="bicubic"))).pixels(images)

    def apart(a, b):
        return np.abs(a.astype(np.float32) - b).max((1, 2, 3))

    def embedded(levels):
        return _unit(peer.image(np.rint(levels).astype(np.uint8) if peer.takes_levels else ours.normalised(levels)))

    own = _unit(ours.image(mine))
    seen = dict(whole=np.abs(own - embedded(theirs)).max(1), tower=np.abs(own - embedded(mine)).max(1), pixels=apart(mine, theirs),
                decoding=apart(theirs, plain), resampling=apart(mine, plain), filter=apart(bicubic, plain))
    narrow, result = _narrow(checkpoint, target), []
    for kind in dict.fromkeys(names):
        rows = [i for i, name in enumerate(names) if name == kind]
        largest = {step: float(values[rows].max()) for step, values in seen.items()}
        reasons = _reasons(kind, largest, narrow, target, run, [decode.size(images[i]) for i in rows])
        equal = not reasons and largest["whole"] <= EMBEDDING and largest["pixels"] <= LEVELS
        explained = reasons and all(known for known, _ in reasons)
        result.append(Verdict(target, kind, EQUAL if equal else EXPLAINED if explained else DIFFERS, largest["whole"],
                              largest["pixels"], "; ".join(why for _, why in reasons) or ("" if equal else "by no step alone")))
    return [*result, *_texts(target, ours, peer, captions, narrow)]


def _reasons(kind, seen, narrow, target, run, sides):
    """[(whether it is explained, sentence)] of the steps that differ."""
    reasons, tower = [], seen["tower"]
    if seen["decoding"] > LEVELS:
        known = kind in DECODING and seen["decoding"] <= ROUNDING.get(kind, 255)
        reasons.append((known, f"decoding: {DECODING[kind]}" if known else
                        "decoding: the file becomes other pixels before they are resized"))
    if seen["resampling"] > LEVELS:
        if run.view.method != "bicubic" and seen["filter"] <= LEVELS:
            reasons.append((True, f"resampling: the run's evaluations average areas, {target} is bicubic"))
        elif target == "hf" and run.view.op == "center" and all(_odd(run.inputs["image_size"], *side) for side in sides):
            reasons.append((True, "resampling: CLIPImageProcessor cuts the middle out one pixel further up or left"))
        elif target == "onnx" and run.view.method != "bicubic":
            reasons.append((True, "resampling: the card's code averages areas by Pillow's BOX, the run's evaluations by OpenCV"))
        else:
            reasons.append((False, "resampling: the same decoded picture is resized to other pixels"))
    if tower > EMBEDDING:
        known = narrow and tower <= NARROW
        reasons.append((known, f"tower: weights of 16 bits, {tower:.1g} apart" if known else
                        f"tower: the same pixels give embeddings {tower:.1g} apart"))
    return reasons


def _texts(target, ours, peer, captions, narrow):
    """The verdicts on captions and on the logits' scale."""
    ids, theirs = ours.tokens(captions), np.asarray(peer.tokens(captions))
    same = ids.shape == theirs.shape and np.array_equal(ids, theirs)
    apart = float(np.abs(_unit(ours.text(ids)) - _unit(peer.text(ids))).max())
    good = apart <= EMBEDDING
    why = [] if same else ["tokens: the same captions have other ids"]
    rounded = narrow and apart <= NARROW
    why += [] if good else [f"tower: {'weights of 16 bits' if rounded else 'the same ids give other embeddings'}"]
    verdict = EQUAL if same and good else EXPLAINED if same and rounded else DIFFERS
    scale = np.allclose([peer.scale, peer.bias], [ours.scale, ours.bias], rtol=NARROW if narrow else 1e-4, atol=1e-4)
    return [Verdict(target, f"{len(captions)} captions", verdict, apart, None, "; ".join(why)),
            Verdict(target, "logit scale, bias", EQUAL if scale else DIFFERS, None, None, "" if scale else
                    f"{ours.scale:.5g}, {ours.bias:.5g} here, {peer.scale:.5g}, {peer.bias:.5g} there")]


def _levels(run, peer, images):
    """What the library makes of image files, float32 (B, H, W, 3) in [0, 255]."""
    pixels = np.asarray(peer.pixels(images), np.float32)
    if peer.takes_levels:
        return pixels
    mean, std = (np.broadcast_to(np.float32(run.model.get(key, 0.5)), 3) for key in ("mean", "std"))
    return (pixels.transpose(0, 2, 3, 1) * std + mean) * 255


def _png(pixels):
    """Decoded pixels as a file that every library decodes alike."""
    import cv2
    return cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()


def _unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _odd(size, height, width):
    return (size * max(height, width) // min(height, width) - size) % 2 == 1


def _narrow(checkpoint, target):
    """Whether a checkpoint's weights have 16 bits, as stored or as its loader makes them."""
    path = pathlib.Path(checkpoint)
    stored = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return target == "openai" or any(x.dtype.itemsize == 2 for file in stored if file.suffix == ".safetensors"
                                     for x in files.load(file).values())
