"""MCD at the size of a toy."""
from cases import Case, slow_clip
import numpy as np


def slow_misalignment(out):
    def ratio(prefix):
        text, augmented, image = (np.asarray(out[prefix + k], np.float64) for k in ("text", "augmented", "image"))
        return [np.log(np.sum((t - a) ** 2) + 1e-6) - np.log(np.sum((t - o) ** 2) + 1e-6)
                for t, a, o in zip(text, augmented, image)]
    return np.mean((np.array(ratio("")) - np.array(ratio("teacher/"))) ** 2)


CASES = {"mcd": Case((4.79418, 205.18817, 0.06016, 13.1097), {"clip": slow_clip, "misalignment": slow_misalignment},
                     dict(ssl_hidden=16, ssl_dim=8), weights=dict(distill=0.5, clip_augmented=0.5), quick=True, every_mesh=True,
                     text_passes=2)}   # the teacher's is a second one
