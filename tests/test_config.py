"""Durations, the config's checks, plugins by name, and FLOPs counted from a trace."""
import json
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import duration, plugins
from mcd_jax.costs import count_flops
from mcd_jax.evals import building


@pytest.mark.parametrize("value, want", [
    (7, 7), ("7", 7), ("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("0.5 epoch", 5), ("64 examples", 8), ("1e3 examples", 125),
    ("10 percent", 30), ("10%", 30), (None, 0), (0, 0), ("", 0), ("0.01 epochs", 1),
])
def test_durations(value, want):
    assert duration.steps(value, batch_size=8, examples=80, total_steps=300) == want


@pytest.mark.parametrize("value, words", [
    ("3 fortnights", "is not a duration"), ("many", "is not a duration"), (-1, "at least 0"), (True, "is not a duration"),
    ("nan epochs", "is not a duration"), ("1e999 steps", "finite"),
])
def test_bad_durations_name_their_key(value, words):
    with pytest.raises(ValueError, match=f"config.steps.*{words}"):
        duration.steps(value, batch_size=8, examples=80, name="config.steps")


def test_a_percentage_needs_a_whole():
    with pytest.raises(ValueError, match="nothing to be a share of"):
        duration.steps("10 percent", batch_size=8, examples=80)


@pytest.mark.parametrize("change, words", [
    (lambda c: c.update(batch_size=1, microbatches=1), "config.batch_size=1: with one pair there is nothing to tell it from"),
    (lambda c: c.update(batch_size=10, microbatches=4), "not a multiple of config.microbatches=4"),
    (lambda c: c.update(group_size=3), "not a multiple of config.group_size=3"),
    (lambda c: c.update(seed=2 ** 32), "config.seed=4294967296 must lie from 0 to 4294967295"),   # JAX's key of it is that of 0
    (lambda c: c.update(seed=-1), "config.seed=-1 must lie from 0"),
    (lambda c: c.update(ema=1.0), "config.ema=1.0 must lie in"),
    (lambda c: c.update(log_every=0), "config.log_every=0"),
    (lambda c: c.update(optimiser={}), r"unknown key config\.optimiser; did you mean config\.optimizer\?"),
    (lambda c: c.update(init_copies=(("a(", "b"),), init_from="x"), r"config.init_copies: \('a\(', 'b'\) is not a pair"),
    (lambda c: c.update(init_copies=(("a/(.*)", r"b/\1"),)), "copies parameters of config.init_from, which is empty"),
    (lambda c: c.checkpoint.update(evry=3), r"unknown key config\.checkpoint\.evry; did you mean config\.checkpoint\.every\?"),
])
def test_check_names_the_key(change, words):
    config = tiny.config("clip")
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=words):
        config_lib.check(config)


def test_a_config_survives_its_file(tmp_path):
    config = tiny.config("slip")
    config.data.views.image = "decode"
    config_lib.save(config, tmp_path / "config.json")
    read = config_lib.read(tmp_path / "config.json")
    assert read.objective.hidden == config.objective.hidden and config_lib.check(read) is None
    with pytest.raises(FileNotFoundError, match="is this the --workdir of a run"):
        config_lib.read(tmp_path / "other.json")


@pytest.mark.parametrize("change, words", [
    (dict(model=None), "has model=None where a section is needed"),
    (dict(batch_size="x"), "has batch_size='x' where a whole number is needed"),
    (dict(evals=[1]), r"has evals=\[1\] where a section is needed"),
    (dict(evals={"retrieval": [1]}), "is not what a run writes"), ({"a.b": 1}, "is not what a run writes .* a.b ")])
def test_a_file_that_was_edited_is_named(tmp_path, change, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config_lib.default().to_dict(), **change}))
    with pytest.raises(ValueError, match=f"config.json {words}.*: put the file back"):
        config_lib.read(path)


def test_an_evaluation_of_none_is_left_out(tmp_path):
    """As `--config.evals.retrieval.b=None` gives it."""
    config = config_lib.default()
    config.evals = {"retrieval": {"a": {"match": "x"}, "b": None}, "zeroshot": None}
    config.model.inputs = {"image_size": 8}
    config_lib.save(config, tmp_path / "config.json")
    for own in (config, config_lib.read(tmp_path / "config.json")):
        assert building.evaluations(own)["retrieval"].keys() == {"a"} and building.default_views(own) == {}
    with pytest.raises(ValueError, match="unknown evaluation in x=retrieval/b"):
        config_lib.check_metric("retrieval/b/R@1", config.evals, "x")


def test_a_config_of_an_older_version_gets_the_keys_that_it_lacks(tmp_path):
    config = config_lib.default().to_dict()
    del config["init_fresh"], config["data"]["processes"], config["checkpoint"]["best"]
    config["seed"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = config_lib.read(tmp_path / "config.json")
    assert read.init_fresh == () and read.data.processes == 0 and read.checkpoint.best == "" and read.seed == 5
    assert set(read.to_dict()) == set(config_lib.default().to_dict())


def test_a_method_of_ones_own_runs_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    (tmp_path / "my_lab" / "method.py").write_text("from mcd_jax.methods.clip import WEIGHTS, Options, make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert config_lib.objective("my_lab.method").weights.clip == 1.0
    assert plugins.load("objective", "my_lab.method") is sys.modules["my_lab.method"]
    with pytest.raises(ValueError, match=r"no objective module 'my_lab\.other'"):
        plugins.load("objective", "my_lab.other")


def test_an_import_error_inside_a_plugin_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin_pkg").mkdir()
    (tmp_path / "broken_plugin_pkg" / "__init__.py").write_text("")
    (tmp_path / "broken_plugin_pkg" / "m.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        plugins.load("objective", "broken_plugin_pkg.m")


def test_flops_are_counted_by_hand():
    a, b = jnp.zeros((4, 6)), jnp.zeros((6, 10))
    assert count_flops.count(lambda a, b: a @ b, a, b) == 2 * 4 * 6 * 10
    assert count_flops.count(lambda a, b: (a @ b, 3.0 * a)[1], a, b) == 0                       # a result that nobody uses
    scan = lambda a: jax.lax.scan(lambda c, _: (c @ jnp.ones((6, 6)), None), a, length=5)[0]
    assert count_flops.count(scan, a) == 5 * 2 * 4 * 6 * 6                                       # once per iteration
    assert count_flops.count(jax.grad(lambda b, a: jnp.sum(a @ b)), b, a) == 2 * 4 * 6 * 10   # one product backward; forward unused
    x, k = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert count_flops.count(conv, x, k) == 2 * (2 * 6 * 6 * 5) * 3 * 3 * 3
