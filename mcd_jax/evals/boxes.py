"""Boxes, (left, top, right, bottom) as shares of the image: overlap, suppression, average precision, and boxes out of heat maps."""
import cv2
import numpy as np
from scipy import ndimage


def iou(one, other):
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m); 0 for boxes without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    union = area(one)[:, None] + area(other)[None] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0.0)


def area(boxes):
    """(n,) areas of boxes (n, 4)."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def nms(boxes, scores, threshold=0.5):
    """Non-maximum suppression: indices of boxes (n, 4), the best first, none overlapping a better one by more than `threshold`."""
    overlap, kept = iou(boxes, boxes), []
    for i in np.argsort(-scores, kind="stable"):
        if not kept or overlap[i, kept].max() <= threshold:
            kept.append(int(i))
    return np.array(kept, int)


def average_precision(found, truth, threshold):
    """AP of one class, the area under the precision-recall curve made monotone (PASCAL VOC's since 2010).

    The detections of all images, best first, each take the true box of their image that they overlap most; a detection is right if
    that is at least `threshold` and nobody better took it.

    Args:
      found: [(image number, score, box (4,)), ...]. truth: {image number: boxes (n, 4)}.

    Returns:
      float, NaN where there is no true box.
    """
    total = sum(len(boxes) for boxes in truth.values())
    if not total:
        return float("nan")
    taken, right = {number: np.zeros(len(boxes), bool) for number, boxes in truth.items()}, []
    for number, _, box in sorted(found, key=lambda item: -item[1]):
        overlap = iou(np.asarray(box)[None], truth[number])[0] if len(truth.get(number, ())) else np.zeros(0)
        best = int(np.argmax(overlap)) if len(overlap) else -1
        hit = best >= 0 and overlap[best] >= threshold and not taken[number][best]
        right.append(hit)
        if hit:
            taken[number][best] = True
    if not right:
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    return float(np.sum(precision * np.asarray(right)) / total)


def mean_ap(found, truth, threshold):
    """The mean of `average_precision` over the classes that occur.

    Args:
      found: [(image number, class, score, box), ...]. truth: [(boxes (n, 4), classes (n,)), ...], one for each image.
    """
    by_class = {}
    for number, kind, score, box in found:
        by_class.setdefault(int(kind), []).append((number, score, box))
    values = []
    for kind in np.unique(np.concatenate([kinds for _, kinds in truth])):
        own = {number: boxes[kinds == kind] for number, (boxes, kinds) in enumerate(truth)}
        values.append(average_precision(by_class.get(int(kind), []), own, threshold))
    return float(np.mean(values))


def from_heat(heat, share=0.5):
    """(box, cells bool (side * side,)) around the hottest connected part of a square map.

    Args:
      heat: (side * side,), row-major.
      share: cells this far up from the coldest to the hottest belong to a part.
    """
    side = round(len(heat) ** 0.5)
    grid = np.asarray(heat).reshape(side, side)
    hot = grid >= grid.min() + share * (grid.max() - grid.min())
    parts, _ = ndimage.label(hot)
    part = parts == parts[np.unravel_index(np.argmax(grid), grid.shape)]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32) / side
    return box, part.reshape(-1)


def proposal_scores(heat, boxes, height, width, power=0.5):
    """(n,) float64: the heat inside each of the boxes (n, 4) over its area ** power, for an image of height x width pixels.

    The map is resized to the image's pixels (bicubic); a box holds the pixels from its left and top edge, rounded down, to its
    right and bottom one, and its area is not rounded.

    Args:
      heat: (side * side,), row-major, from 0. power: 0 prefers large boxes, 1 takes the mean heat.

    Source: Li et al. 2021 (ALBEF), weakly supervised grounding on RefCOCO+, after Yu et al. 2018 (MAttNet)'s proposals.
    """
    side = round(len(heat) ** 0.5)
    pixels = cv2.resize(np.asarray(heat, np.float32).reshape(side, side), (width, height), interpolation=cv2.INTER_CUBIC)
    scores = []
    for box in np.asarray(boxes, np.float64) * (width, height, width, height):
        left, top, right, bottom = np.floor(box + 1e-6).astype(int)
        scores.append(pixels[top:bottom, left:right].sum(dtype=np.float64) / max(area(box[None])[0], 1e-9) ** power)
    return np.array(scores)
