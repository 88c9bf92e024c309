"""The figures of the gap evaluation against closed forms, and the module on a tiny source through the real pipeline."""
import numpy as np
import pytest

from mcd_jax.methods.gap import gap_eval
from tests.evals.test_evals import Colours, draw, oracle, spec, views

__all__ = ["spec", "views"]   # fixtures


def test_uniformity_closed_forms():
    assert gap_eval.uniformity(np.repeat(draw(1), 5, axis=0)) == pytest.approx(0.0, abs=1e-6)
    assert gap_eval.uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)      # distance 2: log exp(-2 * 4)
    assert gap_eval.uniformity(np.eye(6)) == pytest.approx(-4.0)                                # squared distance 2 for every pair
    assert gap_eval.uniformity(draw(9), chunk=2) == pytest.approx(gap_eval.uniformity(draw(9)))
    d = 64  # for many points on a high sphere: log E exp(-4 + 4 x.y), E exp(4 x.y) -> exp(8 / d)
    assert gap_eval.uniformity(draw(1500, d)) == pytest.approx(-4 + 8 / d, abs=0.01)


def test_gap_reference_values():
    n, d = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    mix = [np.sin(0.7 * (6 * n + d) + 0.3), 2 * np.sin(0.9 * (6 * n + d) + 1.1)]
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in mix)
    found = gap_eval.figures(x, y)
    assert found["uniformity_both"] == pytest.approx(-1.80544058, abs=1e-7)
    assert found["uniformity_image"] == pytest.approx(-1.77893050, abs=1e-7)
    assert found["alignment"] == pytest.approx(2.58208012, abs=1e-7)
    x, y = np.sin(0.7 * (6 * n + d) + 0.3) + 1, np.sin(0.9 * (6 * n + d) + 1.1) - 0.5
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    assert gap_eval.figures(x, y)["distance"] == pytest.approx(1.41910162, abs=1e-7)


def test_gap_of_a_modality_with_itself():
    x = draw(50)
    found = gap_eval.figures(x, x)
    assert found["distance"] == 0 and found["alignment"] == 0 and found["pair_cosine"] == pytest.approx(1, abs=1e-6)
    away = x @ x.T
    assert found["other_cosine"] == pytest.approx((away.sum() - np.trace(away)) / (50 * 49), abs=1e-6)
    assert gap_eval.figures(x, -x)["alignment"] == pytest.approx(4, abs=1e-5)


def test_the_module_and_what_it_does_with_broken_images(spec, views, monkeypatch):
    settings = {"source": spec, "views": views, "where": {"flag": [False]}, "n": 3}
    assert gap_eval.make(settings, "x")(oracle, None)["pair_cosine"] > 0.99
    read = Colours.__getitem__
    broken = {"image": b"no image"}
    monkeypatch.setattr(Colours, "__getitem__", lambda self, i: {**read(self, i), **(broken if i in (0, 6, 7) else {})})
    assert gap_eval.make({"source": spec, "views": views}, "x")(oracle, None)["pair_cosine"] > 0.99
