"""Scenes: several drawings on a background and a caption that says some of them, with the truth beside (see mcd_jax.data.sources):

    dict(name="scenes", source=dict(name="emoji", split="train"), size=96, examples=100_000, objects=(1, 9), named=(1, 3), seed=0)

Example i is a pure function of (spec, i). Things of one kind are one drawing several times; things come in front of each other by
chance. The caption names some kinds, all things of a kind, and may say where the first stand to the second, which is then true of
all of them: "two red apples left of a dog". What it doesn't name are distractors. Columns, padded to M, the most of `objects`:

  image    PNG, size x size               boxes   float32 (M, 4), left, top, right, bottom as shares; 0 behind the last thing
  text     the caption                    labels  int32 (M,), -1 behind the last thing
  key      "<seed>/<index>"               named   bool (M,), whether the caption says the thing
  objects  how many things, int           masks   bool (M, size, size), the pixels on which a thing is seen
  relation that of the caption, or ""     said    float32 (size, size), what the caption says, see below

`said` sums to 1: each named thing has an equal part, spread over the pixels on which it is seen. So what a crop loses of the
caption is 1 less the sum of `said` inside of it.
"""
import functools
from typing import NamedTuple
import zlib

import cv2
import numpy as np

from mcd_jax.config.keys import Key
from mcd_jax.data import decode as decode_lib
from mcd_jax.data import sources, tokenizers
from mcd_jax.data.scenes import layout, phrases
from mcd_jax.data.sources.columns import check_spec, position

MOST = 4096   # pixels of a side: nine masks of that size are 150 MB
TOGETHER = ("any", "seen", "unseen")
KEYS = {
    "source": Key("source", {"name": "emoji", "split": "train"}, "the drawings, on white; their first caption is their name"),
    "label": Key("str", "concept_id", "integer column; the kinds of a scene differ in it"),
    "size": Key("int", 96, "pixels of the canvas's side"),
    "examples": Key("int", 10_000, "how many scenes"),
    "seed": Key("int", 0, "of what is drawn"),
    "objects": Key("tuple", (1, 9), "fewest and most things"),
    "named": Key("tuple", (1, 3), "fewest and most kinds that the caption names, where the scene has so many"),
    "several": Key("float", 0.3, "chance of a kind to be two or three things"),
    "relations": Key("float", 0.5, "chance of a caption to say a relation that holds"),
    "scale": Key("tuple", (0.6, 1.0), "smallest and largest size of a thing; 1: the canvas's side over the root of their number"),
    "overlap": Key("float", 0.2, "share of the smaller of two things that may lie in the other"),
    "backgrounds": Key("str | tuple", layout.BACKGROUNDS, "which there are"),
    "together": Key("str", "any", "kinds of a caption: any | seen: no pair that is kept apart | unseen: the first two are one"),
    "apart": Key("float", 0.2, "share of all pairs of kinds that is kept apart"),
}
_TRIES = 1000   # of kinds that fit what the caption must say


def make(spec):
    """The scenes that a spec describes; its keys are KEYS.

    Raises:
      ValueError: a key that doesn't exist or a value that doesn't fit.
    """
    check_spec(spec, KEYS)
    given = {key: spec.get(key, declared.default) for key, declared in KEYS.items()}
    for key, least in (("size", 16), ("examples", 1), ("seed", 0)):
        if isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < least:
            raise ValueError(f"data.source.{key}={given[key]!r} must be a whole number from {least}")
    if given["size"] > MOST:
        raise ValueError(f"data.source.size={given['size']} must be at most {MOST} pixels")
    for key in ("objects", "named"):
        if not _rises(given[key], int) or not 1 <= given[key][0] <= given[key][1] <= 9:
            raise ValueError(f"data.source.{key}={given[key]!r} must be the fewest and the most, whole numbers from 1 to 9")
    for key in ("several", "relations", "overlap", "apart"):
        if isinstance(given[key], bool) or not isinstance(given[key], (int, float)) or not 0 <= given[key] <= 1:
            raise ValueError(f"data.source.{key}={given[key]!r} must be a number from 0 to 1")
    if not _rises(given["scale"], int | float) or not 0 < given["scale"][0] <= given["scale"][1] <= 1:
        raise ValueError(f"data.source.scale={given['scale']!r} must be the smallest and the largest, above 0 and at most 1")
    kinds = (given["backgrounds"],) if isinstance(given["backgrounds"], str) else tuple(given["backgrounds"])
    if not kinds or set(kinds) - set(layout.BACKGROUNDS):
        raise ValueError(f"data.source.backgrounds={given['backgrounds']!r}: there are {', '.join(layout.BACKGROUNDS)}")
    if given["together"] not in TOGETHER:
        raise ValueError(f"data.source.together={given['together']!r} must be one of {', '.join(TOGETHER)}")
    if given["together"] == "unseen" and (given["named"][1] < 2 or given["objects"][1] < 2):
        raise ValueError("data.source.together='unseen' needs captions that name two kinds: let named and objects reach 2")
    return Scenes(sources.open(given["source"]), given | {"backgrounds": kinds})


def _rises(pair, kind):
    """Whether a value of a config is two numbers of a kind, the smaller first."""
    return hasattr(pair, "__len__") and len(pair) == 2 and all(isinstance(x, kind) and not isinstance(x, bool) for x in pair) \
        and pair[0] <= pair[1]


class Drawing(NamedTuple):
    """Of one kind of thing. cut_out: as `layout.cut_out` makes it."""
    cut_out: np.ndarray
    name: str
    label: int


class Scenes:
    """See the module. `spec` has every one of KEYS."""

    def __init__(self, source, spec):
        if spec["label"] not in source[0]:
            raise ValueError(f"data.source.label={spec['label']!r} is no column of the drawings: there are "
                             f"{', '.join(sorted(source[0]))}")
        self._source, self._spec = source, spec
        self._drawing = functools.lru_cache(maxsize=8192)(self._read)

    def __getstate__(self):
        return self._source, self._spec

    def __setstate__(self, state):
        self.__init__(*state)

    def __len__(self):
        return self._spec["examples"]

    def __getitem__(self, index):
        spec, index = self._spec, position(index, len(self))
        draw = np.random.Generator(np.random.Philox(key=np.array([spec["seed"], index], np.uint64)))
        rows, counts, naming = self._kinds(draw)
        of_thing = np.repeat(np.arange(len(rows)), counts)
        drawings = [self._drawing(row) for row in rows]
        boxes = self._boxes([drawings[kind].cut_out.shape[:2] for kind in of_thing], draw)
        order = draw.permutation(len(of_thing))                # later ones stand in front
        of_thing, boxes = of_thing[order], boxes[order]
        canvas = layout.background(spec["backgrounds"][int(draw.integers(len(spec["backgrounds"])))], spec["size"], draw)
        masks = layout.paint(canvas, [drawings[kind].cut_out for kind in of_thing], boxes)
        middles = (boxes[:, :2] + boxes[:, 2:]) / (2 * spec["size"])
        relation = ""
        if naming > 1 and draw.random() < spec["relations"]:
            held = phrases.relations(middles[of_thing == 0], middles[of_thing == 1])
            relation = held[int(draw.integers(len(held)))] if held else ""
        named = of_thing < naming
        names = [drawing.name for drawing in drawings[:naming]]
        return {"image": cv2.imencode(".png", canvas[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
                "text": phrases.caption(names, counts[:naming], relation), "key": f"{spec['seed']}/{index}",
                "objects": len(of_thing), "relation": relation,
                "boxes": self._padded(boxes / np.float32(spec["size"]), np.float32, 0),
                "labels": self._padded(np.array([drawings[kind].label for kind in of_thing]), np.int32, -1),
                "named": self._padded(named, bool, False), "masks": self._padded(masks, bool, False), "said": said(masks[named])}

    def _padded(self, rows, dtype, fill):
        out = np.full((self._spec["objects"][1], *rows.shape[1:]), fill, dtype)
        out[:len(rows)] = rows
        return out

    def _read(self, row):
        """The `Drawing` of a row."""
        example = self._source[row]
        try:
            pixels = decode_lib.decode(example["image"])
        except decode_lib.Bad as error:
            raise decode_lib.Bad(error.cause, f"drawing {example.get('key', row)}: {error.detail}") from error
        return Drawing(layout.cut_out(pixels), tokenizers.captions(dict(example), "text")[0], int(example[self._spec["label"]]))

    def _kinds(self, draw):
        """(rows of the drawings, those that are named first; how many things of each; how many kinds are named)."""
        spec = self._spec
        total = int(draw.integers(spec["objects"][0], spec["objects"][1] + 1))
        wanted = int(draw.integers(spec["named"][0], spec["named"][1] + 1))
        if spec["together"] == "unseen":
            total, wanted = max(2, total), max(2, wanted)
        rows, labels, counts = [], [], []
        for _ in range(_TRIES):
            if sum(counts) >= total:
                return rows, counts, min(wanted, len(rows))
            row = int(draw.integers(len(self._source)))
            label = self._drawing(row).label
            if label in labels or (len(rows) < wanted and not self._may_be_said(label, labels)):
                continue
            room = total - sum(counts) - (spec["together"] == "unseen" and not rows)   # for the other of the pair
            several = draw.random() < spec["several"] and room > 1
            rows, labels = [*rows, row], [*labels, label]
            counts.append(int(draw.integers(2, min(3, room) + 1)) if several else 1)
        raise ValueError(f"data.source: of the drawings of a scene {total} things must be of different {spec['label']}"
                         f"{'' if spec['together'] == 'any' else ' and fit together=' + repr(spec['together'])}, and few do")

    def _may_be_said(self, label, labels):
        """Whether a caption that says `labels` may say `label` too."""
        if self._spec["together"] == "any" or not labels:
            return True
        kept = [kept_apart(label, other, self._spec["apart"]) for other in labels]
        return not any(kept) if self._spec["together"] == "seen" else len(labels) > 1 or kept[0]

    def _boxes(self, shapes, draw):
        """int (n, 4) left, top, right, bottom in pixels, of things whose drawings have these (height, width)."""
        size = self._spec["size"]
        shapes = np.array(shapes, np.float64)[:, ::-1]
        longest = draw.uniform(*self._spec["scale"], len(shapes)) / np.sqrt(len(shapes))
        sides = np.maximum(shapes / shapes.max(1, keepdims=True) * longest[:, None], 4 / size)
        corners = layout.places(sides, self._spec["overlap"], draw)
        low = np.rint(corners * size).astype(int)
        high = np.minimum(np.maximum(low + 4, np.rint((corners + sides) * size).astype(int)), size)
        return np.concatenate([np.minimum(low, high - 4), high], 1)


def kept_apart(label: int, other: int, share: float) -> bool:
    """Whether a pair of labels is one of the `share` of all pairs that captions of together="seen" never name."""
    low, high = sorted((int(label), int(other)))
    return zlib.crc32(f"{low}/{high}".encode()) < share * 2 ** 32


def said(masks: np.ndarray) -> np.ndarray:
    """float32 (S, S), sum 1: each of the masks bool (n, S, S) has an equal part; those of which nothing is seen have none.

    All zero where nothing is seen of any.
    """
    areas = masks.sum((1, 2), keepdims=True)
    weights = np.where(areas > 0, 1 / np.maximum(areas, 1), 0) / max(1, np.count_nonzero(areas))
    return (masks * weights).sum(0).astype(np.float32)
