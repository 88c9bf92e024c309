"""The page that adds a method: its code, taken out of the page, computes FILIP's loss and trains."""
import sys

from doc_pages import ROOT, blocks
import jax
import numpy as np
import pytest
import tiny

from mcd_jax import step as step_lib


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The page's two files in a folder my_lab on Python's path."""
    code = [block.text for block in blocks(ROOT / "docs" / "add_a_method.md") if block.kind == "python"]
    (tmp_path / "my_lab").mkdir()
    for name, text in zip(("filip.py", "filip_emoji.py"), code, strict=True):
        (tmp_path / "my_lab" / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "my_lab"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def slow(patches, words, real, scale):
    """FILIP's loss, pair by pair and token by token."""
    size = len(patches)
    by_image, by_text = np.zeros((size, size)), np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            own = words[j][real[j]]
            by_image[i, j] = np.mean([max(float(patch @ word) for word in own) for patch in patches[i]])
            by_text[i, j] = np.mean([max(float(patch @ word) for patch in patches[i]) for word in own])
    total = 0.0
    for i in range(size):
        total += np.log(np.sum(np.exp(scale * by_image[i]))) - scale * by_image[i, i]
        total += np.log(np.sum(np.exp(scale * by_text[:, i]))) - scale * by_text[i, i]
    return total / (2 * size)


def test_the_loss_is_that_of_the_slow_form(lab):
    import my_lab.filip as filip
    rng = np.random.default_rng(0)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    patches, words = unit(rng.normal(size=(5, 4, 8))), unit(rng.normal(size=(5, 6, 8)))
    real = np.arange(6) < rng.integers(1, 7, (5, 1))
    np.testing.assert_allclose(filip.loss(patches, words, real, 7.0), slow(patches, words, real, 7.0), rtol=1e-5)


def test_it_trains_and_composes_as_any_method(lab):
    objective, tx, weights, state, batch = tiny.build("my_lab.filip")
    step, losses = jax.jit(step_lib.make_step(objective, tx, weights)), []
    for _ in range(6):
        state, report = step(state, batch)
        losses.append(float(report["loss/filip"]))
    assert losses[-1] < losses[0] and float(report["loss"]) == losses[-1]
    assert set(jax.eval_shape(objective.heads["embed"], state.params, state.memory, batch)) >= {"image", "text"}


def test_the_config_of_the_page_names_it(lab):
    from mcd_jax import config as config_lib
    config = config_lib.from_file(str(lab / "filip_emoji.py"), ["--config.objective.weights.filip=2"])
    assert config.objective.name == "my_lab.filip" and config.objective.weights.filip == 2.0
    config_lib.check(config)
