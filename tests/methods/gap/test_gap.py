"""The modality gap in numbers: published and measured values, invariants, slow loops (Liang et al., NeurIPS 2022)."""
import math
import os
import pathlib

import numpy as np
import pytest

from mcd_jax.evals import retrieval
from mcd_jax.methods.gap import cone, fairness_eval, gap_eval, landscape, move_sweep, shift

# the folder Figure_1_Modality_Gap of github.com/Weixin-Liang/Modality-Gap (commit 8e20cb2, MIT licence), or nothing
FEATURES = os.environ.get("MCD_JAX_GAP_FEATURES")


def golden():
    n, d = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    return shift.unit(np.sin(0.7 * (6 * n + d) + 0.3) + 1), shift.unit(np.sin(0.9 * (6 * n + d) + 1.1) - 0.5)


def clouds(n=60, d=16, seed=0, apart=1.0):
    """Two cones that are apart, with pairs that belong together."""
    rng = np.random.default_rng(seed)
    own, away = rng.normal(size=(n, d)), apart * rng.normal(size=(1, d))
    return shift.unit(own + away + 0.3 * rng.normal(size=(n, d))), shift.unit(own - away + 0.3 * rng.normal(size=(n, d)))


def slow_loss(x, y, scale, rows_only=False):
    """The contrastive loss by loops."""
    logits, losses = scale * x @ y.T, []
    for side in (logits, logits.T)[:1 if rows_only else 2]:
        sums = [max(row) + math.log(sum(math.exp(v - max(row)) for v in row)) for row in side]
        losses.append(np.mean([total - row[i] for i, (row, total) in enumerate(zip(side, sums))]))
    return sum(losses) / len(losses)


# ---- golden values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam, distance, sign, sharp, rows_only, flat", [
    (-0.25, 1.66548538, 1, 34.23782547, 34.53751486, 1.53292915),
    (0.0, 1.41910162, 1, 55.67697010, 56.17495493, 1.64429126),
    (0.25, 0.91696948, 1, 90.01700129, 90.52122343, 1.85334687),
    (0.5, 0.08008280, 1, 116.53343573, 116.54486261, 2.04370317),
    (0.75, 0.89928310, -1, 94.66620634, 94.71468867, 1.89883327),
])
def test_move_on_the_golden_input(lam, distance, sign, sharp, rows_only, flat):
    x, y = golden()
    along = shift.vector(x, y)
    a, b = shift.move(x, y, lam, along)
    assert shift.distance(a, b) == pytest.approx(distance, abs=5e-9)
    assert shift.distance(a, b, along) == pytest.approx(sign * distance, abs=5e-9)
    assert landscape.batch_losses(a, b, [100.0, 1.0]) == pytest.approx([sharp, flat], abs=5e-8)
    assert landscape.batch_losses(a, b, [100.0], rows_only=True)[0] == pytest.approx(rows_only, abs=5e-8)
    assert slow_loss(a, b, 100.0) == pytest.approx(sharp, abs=5e-8)
    # the other parametrisation at delta = 2 |gap| lambda
    c, d = shift.move(x, y, 2 * np.linalg.norm(along) * lam, along, "delta")
    np.testing.assert_allclose(c, a, atol=1e-14)
    np.testing.assert_allclose(d, b, atol=1e-14)


def test_rotation_on_the_golden_input():
    x, y = golden()
    turn = shift.rotation(x, y)
    assert np.linalg.norm(x - y) == pytest.approx(3.59632477, abs=5e-9)
    assert np.linalg.norm(x - y @ turn.T) == pytest.approx(1.34670908, abs=5e-9)
    assert shift.distance(x, y @ turn.T) == pytest.approx(0.18341181, abs=5e-9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(6), atol=1e-14)


def test_simulation_on_the_sphere():
    angles, scales = list(range(-90, 91)), (1.0, 5.0, 35.0, 50.0, 100.0)
    found = landscape.sphere(angles, scales)
    loss = dict(zip(scales, np.array(found["loss"])))
    lowest = {scale: angles[int(np.argmin(values))] for scale, values in loss.items()}
    assert lowest[1.0] == lowest[5.0] == 0
    assert [abs(lowest[scale]) for scale in (35.0, 50.0, 100.0)] == [53, 65, 78]
    for values in loss.values():
        np.testing.assert_allclose(values, values[::-1], atol=1e-12)
    assert loss[1.0][90] == pytest.approx(1.547743, abs=5e-7) and loss[5.0][90] == pytest.approx(1.095220, abs=5e-7)
    assert loss[100.0][90] == pytest.approx(2.014244, abs=5e-7)
    fine = np.array(landscape.sphere(np.arange(50, 80, 0.01), scales[2:])["loss"])   # whole degrees step over the lowest point
    assert [f"{low:.6f}"[:6] for low in fine.min(axis=1)] == ["0.8095"] * 3
    matched = np.array(landscape.sphere(angles, scales, mismatched=False)["loss"])
    assert [angles[i] for i in np.argmin(matched, axis=1)] == [0] * 5
    assert matched[-1][90] == pytest.approx(0.003998, abs=5e-7)
    # one angle by hand
    up, at = math.radians(30), [math.radians(a) for a in (-20, 0, 20, 40, 60, 80)]
    image = np.array([[math.cos(a), math.sin(a), 0] for a in at])
    text = np.array([[math.cos(a) * math.cos(up), math.sin(a) * math.cos(up), math.sin(up)] for a in [at[1], at[0], *at[2:]]])
    assert loss[35.0][120] == pytest.approx(slow_loss(image, text, 35.0), abs=1e-10)


@pytest.mark.parametrize("activation, expected", [
    ("relu", [.320, .487, .607, .670, .746, .803, .851, .884, .916, .950]), ("sigmoid", [.853, .991]), ("linear", [0.0] * 10)])
def test_cone_by_depth(activation, expected):
    found = cone.depth(activation, layers=len(expected))
    np.testing.assert_allclose(found[1:], expected, atol=0.03)
    assert found[0] < 0.01


def test_a_layer_brings_random_inputs_nearer():
    """Theorem 1: cos(relu(Wu + b), relu(Wv + b)) > cos(u, v), here for 300 pairs, each under weights of its own."""
    rng, d, nearer = np.random.default_rng(0), 512, 0
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for _ in range(300):
        u, v, w, b = rng.normal(size=d), rng.normal(size=d), rng.normal(size=(d, d)) * d ** -0.5, rng.normal(size=d) * d ** -0.5
        nearer += cosine(np.maximum(w @ u + b, 0), np.maximum(w @ v + b, 0)) > cosine(u, v)
    assert nearer == 300


# ---- invariants ----------------------------------------------------------------------------------------------------------------


def test_gap_invariants():
    x, y = clouds()
    along, rng = shift.vector(x, y), np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    distance = shift.distance(x, y)
    assert shift.distance(x, x) == 0 and 0.5 < distance <= 2 and shift.distance(np.eye(2)[:1], -np.eye(2)[:1]) == 2
    assert shift.distance(x @ turn, y @ turn) == pytest.approx(distance)
    assert shift.distance(x[rng.permutation(60)], y[rng.permutation(60)[:]]) == pytest.approx(distance)   # no pairs are needed
    np.testing.assert_allclose(shift.vector(y, x), -along)
    assert shift.distance(y, x) == pytest.approx(distance) and shift.distance(y, x, along) == pytest.approx(-distance)
    for form in shift.FORMS:
        same = shift.move(x, y, 0.0, along, form)
        assert np.array_equal(same[0], x) and np.array_equal(same[1], y)
        for amount in (-1.0, 0.3, 2.0):
            for side in shift.move(x, y, amount, along, form):
                np.testing.assert_allclose(np.linalg.norm(side, axis=1), 1, atol=1e-12)
    assert np.array_equal(shift.move(x, y, 0.7, along, "images")[1], y)
    np.testing.assert_allclose(shift.move(x, y, 0.2, along, "images")[0], shift.unit(x - 0.2 * along / np.linalg.norm(along)))
    for lam in (-0.5, 0.1, 0.5, 0.8):   # before the rows are made unit again, the gap shrinks in proportion
        raw = shift.move(x, y, lam, along, normalise=False)
        np.testing.assert_allclose(shift.vector(*raw), (1 - 2 * lam) * along, atol=1e-14)
    assert shift.distance(*shift.move(x, y, 0.5, along, normalise=False)) < 1e-15
    with pytest.raises(ValueError, match="form='half' is none of lambda, delta, images"):
        shift.move(x, y, 0.5, along, "half")
    with pytest.raises(ValueError, match="no direction"):
        shift.move(x, x, 0.5, np.zeros(16), "delta")


@pytest.mark.parametrize("diagonal", [False, True])
def test_cone_matches_loops(diagonal):
    x = shift.unit(np.random.default_rng(3).normal(size=(23, 5)) + 0.8)
    slow = [x[i] @ x[j] for i in range(23) for j in range(23) if diagonal or i != j]
    found = cone.cosines(x, diagonal, bins=20, chunk=7)
    assert found["mean"] == pytest.approx(np.mean(slow)) == cone.mean(x, diagonal)
    assert found["min"] == pytest.approx(min(slow)) and found["max"] == pytest.approx(max(slow))
    density, _ = np.histogram(np.minimum(slow, 1.0), np.linspace(-1, 1, 21), density=True)
    np.testing.assert_allclose(found["density"], density, atol=1e-12)
    assert np.sum(found["density"]) * 0.1 == pytest.approx(1) and len(found["centers"]) == 20
    with pytest.raises(ValueError, match="at least two rows"):
        cone.cosines(x[:1])


def test_two_seeds_give_two_cones():
    """Random ReLU networks on the same inputs: each seed has a cone of its own, and most of the variance is the seed's."""
    inputs = np.random.default_rng(0).normal(size=(200, 128))

    def network(seed, layers=6):
        rng, x = np.random.default_rng(seed), inputs
        for _ in range(layers):
            x = np.maximum(x @ rng.normal(size=(128, 128)) * 128 ** -0.5 + rng.normal(size=(1, 128)) * 128 ** -0.5, 0)
        return shift.unit(x)

    found = cone.seeds([network(1), network(2), network(3)])
    assert found["separated"] == 1 and found["inside"] > found["across"] + 0.15 and found["variance"] > 0.5
    a, b, c = (network(seed) for seed in (1, 2, 3))
    centers = [np.mean(v, axis=0) for v in (a, b, c)]
    between = [np.linalg.norm(centers[i] - centers[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["distance"] == pytest.approx(np.mean(between))
    assert found["across"] == pytest.approx(np.mean([a[i] @ b[j] for i in range(200) for j in range(200)] + [
        v for one, two in ((a, c), (b, c)) for v in (one @ two.T).ravel()]))
    assert found["variance"] == pytest.approx(np.var(centers, axis=0).sum() / np.var(np.concatenate([a, b, c]), axis=0).sum())
    same = cone.seeds([a, a])
    assert same["distance"] == 0 and same["variance"] == 0 and same["separated"] == 0.5
    with pytest.raises(ValueError, match="two seeds"):
        cone.seeds([a])


def test_loss_in_batches_of_consecutive_pairs():
    x, y = clouds(130)
    expected = [np.mean([slow_loss(x[s:s + 50], y[s:s + 50], scale) for s in (0, 50)]) for scale in (30.0, 1.0)]
    assert landscape.batch_losses(x, y, (30.0, 1.0)) == pytest.approx(expected)   # the last 30 are no full batch
    assert landscape.batch_losses(x[:20], y[:20], (30.0,))[0] == pytest.approx(slow_loss(x[:20], y[:20], 30.0))
    found = landscape.landscape(x, y, (-0.5, 0.0, 0.5), (30.0, 1.0))
    assert found["loss"][0][1] == pytest.approx(expected[0]) and found["gap"][1] == pytest.approx(shift.distance(x, y))
    moved = shift.move(x, y, 0.5, shift.vector(x, y), "delta")
    assert found["gap"][2] == pytest.approx(shift.distance(*moved))
    assert found["loss"][1][2] == pytest.approx(landscape.batch_losses(*moved, (1.0,))[0])


# ---- choosing a move -----------------------------------------------------------------------------------------------------------


def test_a_move_is_chosen_on_other_data():
    x, y = clouds(80, seed=5)
    ids = np.arange(80)
    score = lambda a, b: {f"R@{k}": float(np.mean(retrieval.ranks(a, b, ids, ids) <= k)) for k in (1, 5)}
    curve = move_sweep.curve(x, y, score, (-0.5, 0.0, 0.5))
    assert curve["gap"][1] == pytest.approx(shift.distance(x, y)) and abs(curve["gap"][2]) < curve["gap"][1] < curve["gap"][0]
    moved = [side.astype(np.float32) for side in shift.move(x, y, 0.5, shift.vector(x, y))]
    assert curve["figures"]["R@1"][2] == score(*moved)["R@1"]
    curve = {"amount": [-0.5, 0.0, 0.5, 1.0], "gap": [1.5, 1, 0.1, -1],
             "figures": {"a": [0.25, 0.5, 0.5, 0.5], "b": [0.75, 0.1, 0.1, 0.5]}}
    assert move_sweep.best(curve, ["a"]) == 1 and move_sweep.best(curve, ["a", "b"]) == 0   # of equals the smallest move
    assert move_sweep.compare(curve, 3)["a"] == {"default": 0.5, "chosen": 0.5, "oracle": 0.5, "oracle_amount": 0.0}
    with pytest.raises(ValueError, match="no 0"):
        move_sweep.compare({**curve, "amount": [1, 2, 3, 4]}, 0)


# ---- who is called what --------------------------------------------------------------------------------------------------------


def test_fairness_readout_matches_loops():
    rng = np.random.default_rng(2)
    image, prompts = shift.unit(rng.normal(size=(90, 6))), shift.unit(rng.normal(size=(5, 6)))
    classes, watched = ["a woman", "a man", "thief", "animal", "ape"], {"crime": ("thief",), "non_human": ("animal", "ape")}
    groups, truth = rng.choice(["north", "south"], 90), rng.choice(classes[:2], 90)
    found = fairness_eval.readout(image, prompts, classes, groups, watched, truth)
    counts, right = {}, 0
    for row, group, own in zip(image, groups, truth):
        given = classes[max(range(5), key=lambda j, row=row: float(row @ prompts[j]))]
        right += given == own
        counts.setdefault(group, []).append(given)
    for group, names in counts.items():
        crime, animal = (sum(n in own for n in names) / len(names) for own in (("thief",), ("animal", "ape")))
        assert found[f"{group}/crime"] == pytest.approx(crime) and found[f"{group}/non_human"] == pytest.approx(animal)
        assert found[f"{group}/any"] == pytest.approx(crime + animal) and found[f"{group}/images"] == len(names)
    assert found["accuracy"] == pytest.approx(right / 90) and 0 < found["any"] < 1
    assert "accuracy" not in fairness_eval.readout(image, prompts, classes, groups, watched)
    with pytest.raises(ValueError, match="watched class 'robber'"):
        fairness_eval.readout(image, prompts, classes, groups, {"crime": ("robber",)})


# ---- published features --------------------------------------------------------------------------------------------------------

REGRESSION = {   # gap; mean cosine of two images, of two texts where the reference has them
    "clip": (.851352, .5315, .5152), "clip_random": (1.136057, .6814, .6635), "convirt": (.823076, .7641, .1316),
    "convirt_random": (1.403019,), "videoclip": (1.066891, .6889, .4947), "videoclip_random": (.954355,),
    "clasp": (1.044664, .6072, .7050), "clasp_random": (1.289261,)}
LANDSCAPE = {   # delta: gap, loss at scale 100, 50, 30, 20, 10, 1
    -0.5: (1.1958, .67300, .87974, 1.42694, 2.00743, 2.85199, 3.79832),
    -0.25: (1.0392, .59891, .75216, 1.23748, 1.81370, 2.72155, 3.78301),
    0: (.8514, .56602, .66970, 1.08922, 1.64373, 2.59599, 3.76756),
    0.25: (.6315, .63061, .66455, 1.01376, 1.52775, 2.49244, 3.75349),
    0.5: (.3831, .87359, .77403, 1.03862, 1.49397, 2.43042, 3.74279),
    0.75: (.1149, 1.34947, 1.01275, 1.16830, 1.55115, 2.42268, 3.73737),
    1.0: (-.1605, 1.95063, 1.33158, 1.36776, 1.67733, 2.46682, 3.73832)}
# lambda: gap, R@1 image to text, text to image
RECALL = {-.25: (1.152, .472, .516), 0: (.851, .552, .506), .1: (.705, .542, .504), .25: (.460, .468, .458), .5: (.008, .358, .366)}


def test_published_features():
    """What is read off two clouds, against loops; with $MCD_JAX_GAP_FEATURES, on the features that the authors published."""
    x, y = clouds(40, seed=9)
    found = gap_eval.figures(x, y)
    assert found["distance"] == pytest.approx(np.linalg.norm(sum(x) / 40 - sum(y) / 40))
    assert found["cone_image"] == pytest.approx(np.mean([x[i] @ x[j] for i in range(40) for j in range(40) if i != j]))
    assert found["lowest_text"] == pytest.approx(min(y[i] @ y[j] for i in range(40) for j in range(i)))
    if not FEATURES:
        return
    read = lambda name: tuple(shift.unit(side) for side in np.load(pathlib.Path(FEATURES) / f"features_{name}.npy"))
    for name, (distance, *cosines) in REGRESSION.items():
        x, y = read(name)
        assert shift.distance(x, y) == pytest.approx(distance, abs=1e-6), name
        assert [cone.mean(side) for side in (x, y)][:len(cosines)] == pytest.approx(cosines, abs=5e-5), name
    x, y = read("clip_random")
    assert shift.distance(x, y @ shift.rotation(x, y).T) == pytest.approx(.0117, abs=5e-5)
    x, y = read("clip")
    found = gap_eval.figures(x, y)
    assert found["pair_cosine"] == pytest.approx(.3099, abs=5e-5) and found["other_cosine"] == pytest.approx(.1616, abs=5e-5)
    surface = landscape.landscape(x, y, list(LANDSCAPE))
    assert surface["gap"] == pytest.approx([row[0] for row in LANDSCAPE.values()], abs=5e-5)
    np.testing.assert_allclose(np.transpose(surface["loss"]), [row[1:] for row in LANDSCAPE.values()], atol=6e-6)
    assert np.all(np.diff(surface["best"]) <= 0) and surface["best"][0] > 0.8 and surface["best"][-1] < 0.2
    ids = np.arange(500)
    first = lambda a, b: float(np.mean(retrieval.ranks(a, b, ids, ids) <= 1))
    curve = move_sweep.curve(x, y, lambda a, b: {"image": first(a, b), "text": first(b, a)}, list(RECALL))
    found = np.array([curve["gap"], curve["figures"]["image"], curve["figures"]["text"]]).T
    np.testing.assert_allclose(found, list(RECALL.values()), atol=6e-4)
