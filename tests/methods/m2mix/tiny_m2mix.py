"""m2-Mix at the size of a toy."""
from cases import Case, slow_clip
import numpy as np


def slow_m2(out):
    image, text = np.asarray(out["image"], np.float64), np.asarray(out["text"], np.float64)
    lam, scale, total = float(out["mix/m2"]), float(out["m2/scale"]), 0.0
    theta = np.arccos(np.sum(image * text, axis=1))[:, None]
    mixed = (np.sin(lam * theta) * image + np.sin((1 - lam) * theta) * text) / np.sin(theta)
    for i in range(len(image)):
        for anchor in (image[i], text[i]):
            positive = np.exp(scale * image[i] @ text[i])
            negatives = sum(np.exp(scale * anchor @ mixed[j]) for j in range(len(image)) if j != i)
            total -= np.log(positive / (positive + negatives))
    return total / len(image) / 2


CASES = {"m2mix": Case((2.88622, 146.93076, 0.06059, 13.21975), {"clip": slow_clip, "m2": slow_m2},
                       dict(temperature=0.0, m2_learned=True), weights=dict(m2=0.5, v=0.5, l=0.5, vl=0.5))}
