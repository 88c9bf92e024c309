"""Linear probes: both solvers against scikit-learn's answers and their optimality conditions, and the module on small sources."""
import io
import json
import sys
import types

import numpy as np
from PIL import Image
import pytest

from mcd_jax import config as config_lib
from mcd_jax.evals import probe

# ---- solvers -------------------------------------------------------------------------------------------------------------------

_I, _J = np.arange(60)[:, None], np.arange(4)[None, :]
X = np.sin(0.7 * (4 * _I + _J) + 0.3) + 0.3 * np.cos(1.3 * _I * (_J + 1))
Y = (np.arange(60) * 7 % 11) % 3
# scikit-learn 1.9.1 on X, Y: LogisticRegression(C, tol=1e-12).coef_[0], its intercepts less their mean; Ridge(alpha=1 / C).coef_[0]
SKLEARN = {
    0.01: ([-0.0684893915, -0.0871136483, -0.0623560788, -0.0061762241], [0.1594316130, 0.1122036340, -0.2716352470],
           [-0.0522550042, -0.0652319389, -0.0448696267, -0.0013097444]),
    1.0: ([-0.2864223819, -0.6029464350, -0.3921869012, 0.0786934127], [0.1925438754, 0.1307202541, -0.3232641294],
          [-0.0819792979, -0.1995642595, -0.1283357216, 0.0638665806]),
    100.0: ([-0.1029218313, -0.7867803735, -0.4858792400, 0.2613529935], [0.1993539127, 0.1360016869, -0.3353555996],
            [-0.0613380179, -0.2163444077, -0.1393359545, 0.0856818646]),
}


@pytest.mark.parametrize("C", SKLEARN)
def test_solvers_agree_with_scikit_learn(C):
    first, bias, ridge = SKLEARN[C]
    weights, iterations, early = probe.logistic(X, Y, 3, C)
    np.testing.assert_allclose(weights[:-1, 0], first, atol=2e-5)
    np.testing.assert_allclose(weights[-1] - weights[-1].mean(), bias, atol=2e-5)
    assert 3 < iterations < 200 and not early
    np.testing.assert_allclose(probe.Ridge(X, Y, 3).weights(C)[:-1, 0], ridge, atol=1e-8)
    again, *_ = probe.logistic(X, Y, 3, C, start=weights + 1.0)   # where it begins makes no difference, nor do chunks
    np.testing.assert_allclose(again[:-1], weights[:-1], atol=2e-5)


@pytest.mark.parametrize("C", [1e-3, 3.0])
def test_the_gradient_is_zero_at_the_optimum(C, monkeypatch):
    monkeypatch.setattr(probe, "_CHUNK", 7)
    weights, *_ = probe.logistic(X, Y, 3, C)
    p = np.exp(X @ weights[:-1] + weights[-1])
    error = p / p.sum(axis=1, keepdims=True) - np.eye(3)[Y]
    np.testing.assert_allclose(weights[:-1] + C * X.T @ error, 0, atol=2e-5 * max(1, C))
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-4)
    weights = probe.Ridge(X, Y, 3).weights(C)
    error = X @ weights[:-1] + weights[-1] - np.eye(3)[Y]
    np.testing.assert_allclose(weights[:-1] + C * X.T @ error, 0, atol=1e-12)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-12)


def test_ridge_with_more_features_than_rows():
    x = np.random.default_rng(0).normal(size=(9, 30)).astype(np.float32)
    y, C = np.arange(9) % 3, 0.7
    wide, centred = np.eye(3)[y], x.astype(float) - x.astype(float).mean(axis=0)
    dual = centred.T @ np.linalg.solve(centred @ centred.T + np.eye(9) / C, wide - wide.mean(axis=0))
    np.testing.assert_allclose(probe.Ridge(x, y, 3).weights(C)[:-1], dual, atol=1e-10)


def test_the_search_for_C_is_clips():
    assert probe.GRID[0] == pytest.approx(1e-6) and probe.GRID[-1] == pytest.approx(1e6) and len(probe.GRID) == 97
    assert probe.GRID[8] / probe.GRID[0] == pytest.approx(10)
    for peak in (0, 1, 17, 48, 55, 96):
        asked = []

        def score(place):
            asked.append(place)
            return -abs(place - peak)
        assert probe.choose(score) == peak
        assert asked[:7] == [0, 16, 32, 48, 64, 80, 96] and len(asked) == len(set(asked)) <= 15
    assert probe.choose(lambda place: 0.5) == 0   # nothing to choose: the strongest regularisation


def test_held_out_rows_are_of_every_class():
    y = np.array([0] * 20 + [1] * 10 + [2] * 3 + [3])
    out = probe.held_out(y, 0.2)
    assert [int(out[y == c].sum()) for c in range(4)] == [4, 2, 1, 0]
    assert not out[0] and not out[19]   # spaced over the class
    assert np.array_equal(out, probe.held_out(y, 0.2))


def test_accuracy_by_a_confusion_matrix():
    values, y = np.random.default_rng(1).normal(size=(50, 4)), np.arange(50) % 7 % 4
    table = np.zeros((4, 4))
    for row, c in zip(values.tolist(), y.tolist()):
        table[c, row.index(max(row))] += 1
    found = probe.accuracy(values, y)
    assert found["top1"] == pytest.approx(np.trace(table) / 50)
    assert found["mean_per_class"] == pytest.approx(np.mean(np.diag(table) / table.sum(axis=1)))


# ---- the module ----------------------------------------------------------------------------------------------------------------

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class Noisy:
    """Flat drawings of three colours, a little different each; the part decides the first row."""

    def __init__(self, part, n=30, names=tuple(COLOURS)):
        self._seed, self._n, self._names = {"train": 0, "validation": 1000, "test": 2000}[part], n, names

    def __len__(self):
        return self._n

    def __getitem__(self, i):
        name = self._names[i % len(self._names)]
        noise = np.random.default_rng(self._seed + i).integers(-25, 25, (6, 6, 3))
        data = io.BytesIO()
        Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)).save(data, "PNG")
        image = b"broken" if i == 5 else data.getvalue()
        return {"image": image, "text": name, "key": str(i), "class_name": name, "number": 7 * len(name)}


@pytest.fixture
def noisy(monkeypatch):
    module = types.ModuleType("tiny.noisy")
    module.make = lambda spec: Noisy(spec["part"], **{k: v for k, v in spec.items() if k not in ("name", "part")})
    monkeypatch.setitem(sys.modules, "tiny", types.ModuleType("tiny"))
    monkeypatch.setitem(sys.modules, "tiny.noisy", module)
    return lambda part, **more: {"name": "tiny.noisy", "part": part, **more}


def mean_colour(state, batch):
    raw = batch["image"].astype(np.float32).mean(axis=(1, 2)) / 100
    return {"image_raw": raw, "image": raw / np.linalg.norm(raw, axis=1, keepdims=True)}


def settings(noisy, **more):
    return {"train": noisy("train"), "source": noisy("test"), "label": "class_name", "views": {"image": "decode|resize(6)"},
            "max_iter": 60, **more}


@pytest.mark.parametrize("change", [{"max_iter": 20}, {"solver": "ridge"}, {"features": "image", "C": 100.0},
                                    {"C": 1.0}, {"label": "number", "C": 1.0}, {"features": "pixels", "solver": "ridge"},
                                    {"batch_size": 7, "solver": "ridge"}])
def test_separable_classes_are_told_apart(noisy, change):
    found = probe.make(settings(noisy, **change), "x")(mean_colour, None)
    assert found["top1"] == found["mean_per_class"] == 1.0 and found["chance_top1"] == pytest.approx(1 / 3)
    assert (found["images"], found["train_images"], found["classes"]) == (29, 29, 3)   # a broken image is in neither
    assert found["bad"] == 2
    assert found["log10_C"] == np.log10(change["C"]) if "C" in change else -6 <= found["log10_C"] <= 6
    assert found == probe.make(settings(noisy, **change), "x")(mean_colour, None)


def test_features_come_before_the_projection_as_clips(noisy):
    """CLIP's appendix A.3: "the features before the linear projection to the embedding space". Here the projection loses all."""
    def lost(state, batch):
        return {"image_raw": np.ones((len(batch["image"]), 2), np.float32)}

    def head(name):
        return {"pooled": lambda state, batch: {"image_pooled": mean_colour(state, batch)["image_raw"]}}[name]
    lost.heads, lost.head = frozenset(("embed", "pooled")), head
    own = settings(noisy, solver="ridge")
    assert probe.make(own, "x")(lost, None)["top1"] == 1.0
    assert probe.make({**own, "features": "image_raw"}, "x")(lost, None)["top1"] < 0.5


def test_figures_of_a_stored_run_stay_those_of_its_embedding(tmp_path):
    """A config from before the key `features` had "pooled" meant the embedding by its absence; one of today says what it means."""
    own = dict(train=dict(name="emoji"), source=dict(name="emoji"), label="group", views=dict(image="decode|resize(8)"))
    config = pairs_like(own)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert config_lib.read(tmp_path / "config.json").evals.probe.x.features == "image_raw"
    config_lib.save(config_lib.resolved(config), tmp_path / "config.json")
    assert config_lib.read(tmp_path / "config.json").evals.probe.x.features == probe.KEYS["features"].default == "pooled"


def pairs_like(own):
    config = config_lib.default()
    config.objective = config_lib.objective("clip")
    config.data.views = dict(image="decode|resize(8)", text="tokenize(8, 'bytes')")
    config.evals = dict(probe=dict(x=own))
    return config


def test_what_speaks_against_a_fit_is_said(noisy, capsys):
    probe.make(settings(noisy, max_iter=2), "x")(mean_colour, None)
    assert "fits stopped at max_iter=2 before they were done" in capsys.readouterr().err
    probe.make(settings(noisy, C=1.0, max_iter=1000), "x")(mean_colour, None)
    assert capsys.readouterr().err == ""
    constant = lambda state, batch: {"image_raw": np.ones((len(batch["image"]), 2), np.float32)}   # no C is better than another
    probe.make(settings(noisy, solver="ridge"), "x")(constant, None)
    assert "probe/x: the best C found, 1e-06, is the smallest of those tried" in capsys.readouterr().err
    assert "the largest" in probe.doubts(probe.Fit(None, probe.GRID[-1], 1, 0, 1), True)[0]
    assert not probe.doubts(probe.Fit(None, probe.GRID[-1], 1, 0, 1), False)


def test_validation_rows_choose_and_then_train(noisy):
    own = settings(noisy, validation=noisy("validation"), solver="ridge")
    found = probe.make(own, "x")(mean_colour, None)
    assert found["train_images"] == 58
    parts = {part: Noisy(part) for part in ("train", "validation", "test")}
    rows = {part: [(i, s[i]) for i in range(30) if i != 5] for part, s in parts.items()}
    names = sorted(COLOURS)

    def table(part):
        x = np.stack([np.asarray(Image.open(io.BytesIO(r["image"])), float).mean(axis=(0, 1)) / 100 for _, r in rows[part]])
        return x, np.array([names.index(r["text"]) for _, r in rows[part]])
    (x, y), (vx, vy), _ = table("train"), table("validation"), table("test")
    best = probe.choose(lambda p: probe.accuracy(probe.scores(vx, probe.Ridge(x, y, 3).weights(probe.GRID[p])), vy)["top1"])
    assert found["log10_C"] == pytest.approx(np.log10(probe.GRID[best]))
    fixed = probe.make({**own, "C": float(probe.GRID[best])}, "x")(mean_colour, None)
    assert fixed["top1"] == found["top1"] and fixed["train_images"] == 58


def test_labels_without_meaning_stay_at_chance(noisy, monkeypatch):
    read = Noisy.__getitem__
    label = lambda self, i: "abc"[(i * 7919 + self._seed) // 3 % 3]
    monkeypatch.setattr(Noisy, "__getitem__", lambda self, i: {**read(self, i), "class_name": label(self, i)})
    own = settings(noisy, train=noisy("train", n=120), source=noisy("test", n=300), C=1.0)
    found = probe.make(own, "x")(mean_colour, None)
    assert abs(found["top1"] - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)


@pytest.mark.parametrize("change, error, message", [
    ({"solver": "newton"}, ValueError, "probe.x.solver='newton' must be one of lbfgs, ridge"),
    ({"features": "text"}, ValueError, "features='text' must be one of pooled, image_raw, image, pixels"),
    ({"share": 1.5}, ValueError, "share=1.5 must lie between 0 and 1"), ({"train": None}, KeyError, "train"),
    ({"label": "species"}, ValueError, "reads column 'species'"), ({"set": "cifar11"}, ValueError, "no class set 'cifar11'"),
    ({"set": "cifar10"}, ValueError, "column 'class_name' holds 'blue', 'green', 'red': no class of the set 'cifar10'")])
def test_refusals(noisy, change, error, message):
    with pytest.raises(error, match=message):
        probe.make(settings(noisy, **change), "x")(mean_colour, None)


def test_a_class_that_was_never_trained_is_refused(noisy):
    own = settings(noisy, train=noisy("train", names=("red", "green")), label="text")
    with pytest.raises(ValueError, match="the test rows have the class 'blue', which no training row has"):
        probe.make(own, "x")(mean_colour, None)
