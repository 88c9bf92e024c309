"""GCL at the size of a toy, alone and composed."""
from cases import Case, slow_clip
import numpy as np


def slow_gcl(out):
    """SupCon's L_out over the 3N embeddings with the pair as label: two positives for each anchor, itself left out."""
    names, scale = ("image", "text", "fused"), float(out["scale"])
    rows = [(k, np.asarray(out[name][k], np.float64)) for name in names for k in range(len(out["image"]))]
    total = 0.0
    for i, (pair, anchor) in enumerate(rows):
        logits = [scale * anchor @ z for j, (_, z) in enumerate(rows) if j != i]
        labels = [k for j, (k, _) in enumerate(rows) if j != i]
        below = np.log(np.sum(np.exp(np.array(logits) - max(logits)))) + max(logits)
        total += sum(below - v for v, k in zip(logits, labels) if k == pair) / 2
    return total / len(rows)


CASES = {"gcl": Case((7.97567, 74.25021, 0.06057, 12.95069), {"clip": slow_clip, "gcl": slow_gcl},
                     weights=dict(separate_image=0.5, separate_text=0.5, clip=0.5)),
         "mcd+gcl": Case((12.08123, 325.53549, 0.06013, 13.10981), weights={"mcd/distill": 0.5}, folders=("mcd",), slow=True,
                         text_passes=2)}
