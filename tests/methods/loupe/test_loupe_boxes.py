"""Mosaics with known boxes, box matching and average precision, detection and grounding of perfect and of wrong answers."""
import cv2
import numpy as np
import pytest

from mcd_jax.data import decode as decode_lib
from mcd_jax.data import sources
from mcd_jax.evals import boxes, detection, grounding, zeroshot

SPEC = dict(name="mosaic", source=dict(name="emoji", split="test", captions=("label",), languages=("en",)), label="concept_id",
            examples=12, side=2, size=96, seed=5)


def slow_iou(one, other):
    """By counting the cells of a fine grid."""
    x, y = np.meshgrid((np.arange(300) + 0.5) / 300, (np.arange(300) + 0.5) / 300)
    inside = [(x > b[0]) & (x < b[2]) & (y > b[1]) & (y < b[3]) for b in (one, other)]
    return (inside[0] & inside[1]).sum() / max((inside[0] | inside[1]).sum(), 1)


def some_boxes(seed, n):
    draw = np.random.default_rng(seed)
    low = draw.random((n, 2)) * 0.6
    return np.concatenate([low, low + 0.05 + draw.random((n, 2)) * 0.35], axis=1)


def test_overlaps_equal_counted_cells():
    one, other = some_boxes(0, 4), some_boxes(1, 5)
    want = [[slow_iou(a, b) for b in other] for a in one]
    np.testing.assert_allclose(boxes.iou(one, other), want, atol=0.02)
    np.testing.assert_allclose(np.diag(boxes.iou(one, one)), 1)
    assert boxes.iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def slow_ap(found, truth, threshold):
    """Average precision from its definition: the precision at each recall is the best at that recall or above."""
    total, taken, curve, right = sum(map(len, truth.values())), set(), [], 0
    for rank, (number, _, box) in enumerate(sorted(found, key=lambda item: -item[1]), 1):
        overlaps = [slow_iou(box, other) for other in truth.get(number, ())]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= threshold and (number, best) not in taken:
            taken.add((number, best))
            right += 1
        curve.append((right / total, right / rank))
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return area


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_equals_its_definition(seed):
    draw = np.random.default_rng(seed)
    truth = {i: some_boxes(10 * seed + i, n) for i, n in enumerate((3, 0, 4))}
    found = [(i, draw.random(), np.clip(box + draw.normal(0, 0.03, 4), 0, 1)) for i, own in truth.items() for box in own]
    found += [(i, draw.random(), box) for i in truth for box in some_boxes(100 + i, 2)] + found[:2]   # wrong ones and copies
    for threshold in (0.3, 0.5):
        np.testing.assert_allclose(boxes.average_precision(found, truth, threshold), slow_ap(found, truth, threshold), atol=1e-9)


def test_perfect_boxes_give_one_and_each_mistake_costs():
    truth = [(some_boxes(i, 3), np.array([0, 1, 1])) for i in range(3)]
    perfect = [(i, kind, 0.9, box) for i, (own, kinds) in enumerate(truth) for box, kind in zip(own, kinds)]
    assert boxes.mean_ap(perfect, truth, 0.5) == 1
    assert boxes.mean_ap(perfect + [(i, k, 0.1, box) for i, k, _, box in perfect], truth, 0.5) == 1   # copies that come last
    swapped = [(i, 1 - kind, score, box) for i, kind, score, box in perfect]
    assert boxes.mean_ap(swapped, truth, 0.5) == 0
    assert boxes.mean_ap(perfect[1:], truth, 0.5) == pytest.approx((2 / 3 + 1) / 2)
    assert boxes.mean_ap([(0, 0, 1.0, np.array([0.0, 0, 0.01, 0.01])), *perfect], truth, 0.5) == pytest.approx((3 / 4 + 1) / 2)


def test_suppression_keeps_the_best_of_what_overlaps():
    own = np.array([[0, 0, .5, .5], [0, 0, .5, .45], [.5, .5, 1, 1], [.45, .45, 1, 1]])
    assert boxes.nms(own, np.array([0.8, 0.9, 0.1, 0.2])).tolist() == [1, 3]
    assert len(boxes.nms(own, np.array([0.8, 0.9, 0.1, 0.2]), threshold=1.0)) == 4


def test_a_heat_map_gives_the_box_of_its_hottest_part():
    heat = np.zeros((5, 5))
    heat[1:3, 2:4], heat[4, 0] = [[1, .9], [.6, .2]], 0.95   # another part, nearly as hot, is not joined to it
    box, cells = boxes.from_heat(heat.reshape(-1))
    np.testing.assert_allclose(box, [.4, .2, .8, .6])
    assert cells.sum() == 3


def test_mosaics_are_pure_and_their_boxes_hold_what_is_drawn():
    source, again = sources.open(SPEC), sources.open(SPEC)
    assert len(source) == 12
    for index in (0, 7):
        row, same = source[index], again[index]
        assert row["image"] == same["image"] and row["names"] == same["names"] and row["text"] == ", ".join(row["names"])
        pixels = decode_lib.decode(row["image"])
        assert pixels.shape == (96, 96, 3) and len(set(row["labels"].tolist())) == 4
        dark = (pixels < 250).any(2)
        for box in np.round(row["boxes"] * 96).astype(int):
            left, top, right, bottom = box
            inside = dark[top:bottom, left:right]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            dark[top:bottom, left:right] = False
        assert not dark.any()   # the boxes hold everything
    assert source[0]["image"] != source[1]["image"] and sources.open({**SPEC, "seed": 6})[0]["image"] != source[0]["image"]
    assert cv2.imdecode(np.frombuffer(source[3]["image"], np.uint8), 1) is not None


@pytest.mark.parametrize("change, words", [
    (dict(side=0), "data.source.side=0"), (dict(scale=(0.5, 1.5)), "scale"), (dict(label="colour"), "'colour' is no column"),
    (dict(source=dict(name="emoji", split="test[:2]"), side=3), "is no|different values|split"),
])
def test_mosaics_that_can_not_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        sources.open({**SPEC, **change})[0]


class Oracle:
    """Heads that know the answers: features are one-hot by name, boxes the true ones, or cells of a grid."""
    heads = frozenset(("embed", "regions", "dense"))

    def __init__(self, source, wrong=False):
        self.rows = [source[i] for i in range(len(source))]
        self.names = sorted({name for row in self.rows for name in row["names"]})
        self.wrong, self.at = wrong, 0

    def vectors(self, names):
        return np.array([[name == other for other in self.names] for name in names], np.float32)

    def head(self, which):
        return lambda state, batch: getattr(self, which)(batch)

    def text(self, batch):
        start, self.texts_at = self.texts_at, self.texts_at + len(batch["text"])
        return {"text": self.vectors(self.asked[start:start + len(batch["text"])])}

    def next(self, batch):
        rows, self.at = self.rows[self.at:self.at + len(batch["image"])], self.at + len(batch["image"])
        return rows

    def regions(self, batch):
        if "text" in batch:
            return self.text(batch)
        rows = self.next(batch)
        features = np.stack([self.vectors(row["names"])[::-1 if self.wrong else 1] for row in rows])
        return {"boxes": np.stack([row["boxes"] for row in rows]), "features": features,
                "confidence": np.full((len(rows), 4), 0.9, np.float32)}

    def dense(self, batch):
        if "text" in batch:
            return self.text(batch)
        side, found = 24, []
        middle = (np.arange(side) + 0.5) / side
        for row in self.next(batch):
            tokens = np.zeros((side, side, len(self.names)), np.float32)
            for box, vector in zip(row["boxes"], self.vectors(row["names"])):
                rows = (middle >= box[1]) & (middle <= box[3])
                tokens[np.ix_(rows, (middle >= box[0]) & (middle <= box[2]))] = vector
            found.append(tokens.reshape(side * side, -1))
        return {"tokens": np.stack(found)}


VIEWS = dict(image="decode|resize(96)", text="caption('first')|tokenize(12, 'emoji')")


def ground(oracle, **more):
    oracle.asked, oracle.texts_at = list(dict.fromkeys(name for row in oracle.rows for name in row["names"])), 0
    return grounding.make(dict(source=SPEC, views=VIEWS, **more), "toy")(oracle, None)


def test_grounding_of_perfect_regions_of_wrong_ones_and_of_heat_maps():
    source = sources.open(SPEC)
    perfect = ground(Oracle(source))
    assert perfect["accuracy@0.5"] == perfect["mean_iou"] == perfect["pointing"] == 1 and perfect["queries"] == 48
    assert ground(Oracle(source, wrong=True))["accuracy@0.5"] == 0
    dense = ground(Oracle(source), use="dense")
    assert dense["accuracy@0.5"] == 1 and 0.8 < dense["mean_iou"] < 1
    oracle = Oracle(source)
    oracle.heads = frozenset(("embed",))
    with pytest.raises(ValueError, match=r"evals\.grounding\.toy\.use='auto': candidates come from the head 'regions' or 'dense'"):
        ground(oracle)


@pytest.mark.parametrize("use", ["regions", "dense"])
def test_detection_of_perfect_boxes_is_one(use):
    source = sources.open(SPEC)
    oracle, wrong = Oracle(source), Oracle(source, wrong=True)
    concepts = zeroshot.named(sources.open(SPEC["source"]), "concept_id", {}, (), "toy")[0]

    def figures(oracle):
        oracle.asked, oracle.texts_at = [name for c in sorted(concepts) for name in concepts[c]], 0
        made = dict(source=SPEC, views=VIEWS, names=SPEC["source"], label="concept_id", tokenizer="emoji", context=12, use=use)
        return detection.make(made, "toy")(oracle, None)

    found = figures(oracle)
    assert found["mAP@0.3"] == found["mAP@0.5"] == found["recall@0.5"] == 1 and found["images"] == 12
    if use == "regions":
        assert figures(wrong)["mAP@0.5"] < 0.1
