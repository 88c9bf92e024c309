"""What the tests know of each method, to build it at the size of a toy and to run it everywhere: a `Case`.

Those of the single files of `methods/` are here. A method in a folder has its own in tests/methods/<folder>/tiny_<folder>.py, as
CASES: name -> `Case`; `tiny` finds them for the folders that there are.
"""
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

SIZE, CONTEXT, VOCAB, EOT, BATCH = 16, 6, 32, 2, 8
IMAGE = dict(name="resnet", widths=(8, 8), depths=(1, 1), stem_patch=4, mask_patch=4, norm="layer")
TEXT = dict(name="text", width=8, depth=1, num_heads=2, mlp_dim=16)
BERT = dict(name="bert", width=8, depth=1, num_heads=2, mlp_dim=16, spare_ids=1)


class Case(NamedTuple):
    """Of several methods composed, "mcd+gcl", options, model and formulas are those of each."""
    golden: tuple = ()           # loss, gradient norm, update norm, parameter norm of the first step
    formulas: Mapping = {}       # term -> fn(out) -> float, slowly in numpy; out["memory"] is the memory
    options: Mapping = {}        # of config.objective
    model: Mapping = {}          # of config.model, in place of IMAGE and TEXT where it says so
    weights: Mapping = {}        # every term that a mesh could break
    folders: tuple = ()          # of methods/ that it needs besides its own
    slow: bool = False           # to compile: the whole matrix runs in make test-all only
    quick: bool = False          # to compile: more of the matrix runs in make test
    every_mesh: bool = False     # its parts are what others are made of
    layers: tuple = ()           # entries of params that are transformer layers beside the towers
    mesh: str = "2 data x 2 fsdp"
    rtol: float = 2e-5           # of losses between meshes
    steps: int = 1               # until every parameter has moved
    lockable: bool = True        # whether a text tower can be locked in it
    text_passes: int = 1         # of a locked text tower in each step


def cross_entropy(logits):
    """Mean of -log softmax at the diagonal, row by row, in float64."""
    return np.mean([-(row[i] - np.log(np.sum(np.exp(row - row.max()))) - row.max()) for i, row in enumerate(logits)])


def slow_clip(out):
    logits = float(out["scale"]) * np.asarray(out["image"], np.float64) @ np.asarray(out["text"], np.float64).T
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def slow_siglip(out):
    image, text = np.asarray(out["image"], np.float64), np.asarray(out["text"], np.float64)
    total = 0.0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            label = 1 if i == j else -1
            total += np.log1p(np.exp(-label * (float(out["scale"]) * x @ y + float(out["bias"]))))
    return total / len(image)


def slow_ssl(out):
    views = [np.asarray(out[k], np.float64) for k in ("view1", "view2")]
    z = np.concatenate([v / np.linalg.norm(v, axis=1, keepdims=True) for v in views])
    n, total = len(views[0]), 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        scores = np.exp([z[i] @ z[j] / 0.1 for j in others])
        total -= np.log(scores[others.index((i + n) % (2 * n))] / scores.sum())
    return total / (2 * n)


def slow_eclipse(out):
    """KL of the averaged tower's softmaxed alignment matrix to the trained one's, mean over rows and over both directions."""
    text = np.asarray(out["text"], np.float64)
    teacher, student = (float(out["scale"]) * np.asarray(out[key], np.float64) @ text.T for key in ("teacher/image", "image"))
    total = 0.0
    for t, s in ((teacher, student), (teacher.T, student.T)):
        for row, other in zip(t, s):
            p, q = np.exp(row - row.max()), np.exp(other - other.max())
            p, q = p / p.sum(), q / q.sum()
            total += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q)) / (2 * len(text))
    return total


def slow_alip(text, fit):
    """The loss of pairs of image and `text`, each weighed by how it fits; averages that started at 1 have moved once."""
    def loss(out):
        z = {name: np.asarray(out[name], np.float64) for name in ("image", "text", "caption")}
        pairs = {"text_caption": ("text", "caption"), "image_text": ("image", "text"), "image_caption": ("image", "caption")}
        own = {}
        for name, (a, b) in pairs.items():
            inner = [x @ y for x, y in zip(z[a], z[b])]
            mean = 0.99 * float(out["memory"]["fit"][name]) + 0.01 * np.mean(inner)
            own[name] = [np.exp(x - mean) ** 2 for x in inner]
        logits, total = float(out["scale"]) * z["image"] @ z[text].T, 0.0
        for i, g in enumerate(own["text_caption"]):
            weight = min(1, g) * (own[fit][i] if g < 1 else 1)
            total += weight * sum(np.log(np.sum(np.exp(line))) - logits[i, i] for line in (logits[i], logits[:, i])) / 2
        return total / len(logits)
    return loss


def slow_mp_nce(out):
    """Of two image views and a text, each row's positives apart in their denominators; every row of every view is an anchor."""
    views = {name: np.asarray(out[name], np.float64) for name in ("image", "augmented", "text")}
    total = []
    for a, x in views.items():
        for i, row in enumerate(x):
            def similarity(b, j, a=a, row=row):
                kind = ("image_image", "image_text", "text_text")[(a == "text") + (b == "text")]
                return float(out["scales"][kind]) * (row @ views[b][j] - float(out["biases"][kind]))
            negatives = [np.exp(similarity(b, j)) for b in views for j in range(len(x)) if j != i]
            total.append(np.mean([-np.log(np.exp(s) / (np.exp(s) + sum(negatives)))
                                  for s in (similarity(b, i) for b in views if b != a)]))
    return np.mean(total)


def slow_filip(out):
    """Every patch's best word among those that are no padding, and every such word's best patch; padding is at the end."""
    images, texts = np.asarray(out["image_tokens"], np.float64), np.asarray(out["text_tokens"], np.float64)
    words = [text[:round(1 / weight[0])] for text, weight in zip(texts, np.asarray(out["text_weight"]))]
    to_text = [[np.mean([max(patch @ word for word in own) for patch in image]) for own in words] for image in images]
    to_image = [[np.mean([max(word @ patch for patch in image) for word in own]) for image in images] for own in words]
    scale = float(out["token_scale"])
    return (cross_entropy(scale * np.array(to_text)) + cross_entropy(scale * np.array(to_image))) / 2


def slow_declip(out, texts=("text", "augmented_text"), first=0, last=4, both=True):
    """Mean over some of the pairs of two image views and two texts, in one direction or both."""
    total = []
    for image in ("image", "augmented"):
        for text in texts:
            logits = float(out["scale"]) * np.asarray(out[image], np.float64) @ np.asarray(out[text], np.float64).T
            total.append((cross_entropy(logits) + cross_entropy(logits.T)) / 2 if both else cross_entropy(logits))
    return np.mean(total[first:last])


def slow_neighbours(out):
    """Each text replaced by what is nearest to it in the bank, one by one."""
    bank, found = np.asarray(out["memory"]["bank"]["rows"], np.float64), {}
    for text in ("text", "augmented_text"):
        rows = [max(bank, key=lambda entry, z=z: entry @ z) for z in np.asarray(out[text], np.float64)]
        found[f"near {text}"] = np.stack([row / np.linalg.norm(row) for row in rows])
    return slow_declip({**out, **found}, tuple(found), both=False)


def slow_simsiam(out):
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    pairs = (("image", "augmented"), ("augmented", "image"))
    return -np.mean([[cosine(p, z) for p, z in zip(out[f"predicted/{a}"], out[f"projected/{b}"])] for a, b in pairs])


def of_part(method, formula):
    """A formula of one of the methods that another one is composed of."""
    return lambda out: formula({**out[method], "memory": out["memory"].get(method, {})})


SLOW_DECLIP = {"clip": slow_declip, "nn": slow_neighbours, "simsiam": slow_simsiam,
               "mlm": lambda out: np.sum(out["mlm/hard"]) / np.sum(out["mlm/count"])}
DECLIP = dict(augmented_text="caption", bank=12, hidden=16, bottleneck=8, mask_id=VOCAB, mask_rate=0.4)
CORE = {
    "declip": Case((3.09278, 32.305, 0.07086, 18.19433), SLOW_DECLIP, DECLIP, dict(text=dict(TEXT, spare_ids=1)), text_passes=2),
    "defilip": Case((3.65693, 46.39391, 0.07179, 18.82272),
                    {"filip": of_part("filip", slow_filip), **{term: of_part("declip", fn) for term, fn in SLOW_DECLIP.items()}},
                    dict(DECLIP, token_width=8, pads="masked", select=0), dict(text=dict(TEXT, spare_ids=1)), text_passes=2,
                    slow=True),
    "filip": Case((4.9686, 118.61741, 0.06163, 13.73134), {"filip": slow_filip, "clip": slow_clip},
                  dict(token_width=8, weights=dict(clip=0.5))),
    "uniclip": Case((8.71325, 65.75863, 0.0633, 14.49261), {"mp_nce": slow_mp_nce}, dict(hidden=8)),
    "alip": Case((0.52213, 21.03408, 0.06084, 12.9484), {"clip": slow_alip("text", "image_text"),
                                                         "clip_caption": slow_alip("caption", "image_caption")}, text_passes=2),
    "eclipse": Case((3.36042, 153.59349, 0.06053, 12.95059), {"clip": slow_clip, "distill": slow_eclipse}),
    "clip": Case((2.78435, 146.79958, 0.06058, 12.94974), {"clip": slow_clip}, quick=True, every_mesh=True),
    "siglip": Case((9.66278, 139.35451, 0.06058, 16.36142), {"siglip": slow_siglip}, model=dict(logit_bias=-10.0)),
    "slip": Case((8.29516, 211.11763, 0.06405, 15.68711), {"clip": slow_clip, "ssl": slow_ssl}, dict(hidden=16, out_dim=8)),
}
