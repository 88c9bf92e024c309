import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from mcd_jax.optim import optimizer
from mcd_jax.sharding import rules

RUN = {"total_steps": 100, "batch_size": 10, "examples": 200}   # 20 steps an epoch


def params():
    return {"image": {"conv": {"kernel": jnp.full((4, 3), 0.5), "bias": jnp.full(3, 0.5)},
                      "norm": {"scale": jnp.ones((2, 3))}},
            "text": {"embed": {"embedding": jnp.full((5, 3), -0.5)}},
            "logit_scale": jnp.float32(2.0)}


def make(p=None, **config):
    return optimizer.make(ConfigDict(config), p or params(), **RUN)


def run(tx, p, grads):
    """(params, state) after one update for each tree of gradients."""
    state = tx.init(p)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def like(p, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), p)


def test_rules_match_whole_paths_and_the_first_wins():
    tree = {"a": 0, "ab": {"c": 0, "d": 0}}
    assert rules.match([("a", 1), ("ab/c|a", 2), (".*", None)], tree, "key") == {"a": 1, "ab/c": 2, "ab/d": None}
    with pytest.raises(ValueError, match="'b/c' matches no parameter"):
        rules.match([("b/c", 1), (".*", 2)], tree, "key")
    assert rules.match([("b/c", 1), (".*", 2)], tree, "key", allow_unused=True)["ab/c"] == 2


def test_adamw_by_hand():
    p, rng = params(), np.random.default_rng(0)
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), p) for _ in range(3)]
    tx, _ = make(optimizers={"name": "adamw", "b1": 0.8, "b2": 0.9, "eps": 1e-3}, lr=0.1, weight_decay=0.5,
                 schedule={"name": "constant"}, lr_mults=[("text/.*", 0.1), (".*", 1.0)])
    got, _ = run(tx, p, grads)
    for path, w in rules.paths(p).items():
        w, m, v = np.float64(w), 0.0, 0.0
        lr = 0.01 if path.startswith("text/") else 0.1
        decay = 0.5 if path in ("image/conv/kernel", "text/embed/embedding") else 0.0
        for t, g in enumerate(grads, 1):
            g = np.float64(rules.paths(g)[path])
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            step = m / (1 - 0.8 ** t) / (np.sqrt(v / (1 - 0.9 ** t)) + 1e-3)
            w = w - lr * (step + decay * w)
        np.testing.assert_allclose(rules.paths(got)[path], w, rtol=1e-5, err_msg=path)


def test_lion_and_sgd_by_hand_side_by_side():
    p = params()
    tx, _ = make(optimizers=[("image/.*", {"name": "lion"}), (".*", {"name": "sgd", "momentum": 0.5})],
                 lr=0.1, schedule={"name": "constant"})
    got, _ = run(tx, p, [like(p, 2.0), like(p, 2.0)])
    np.testing.assert_allclose(got["image"]["conv"]["kernel"], 0.5 - 0.1 - 0.1, rtol=1e-6)   # the sign only
    np.testing.assert_allclose(got["text"]["embed"]["embedding"], -0.5 - 0.1 * (2 + 3), rtol=1e-6)


def test_adafactor_is_factored():
    p = {"w": jnp.ones((256, 128))}
    tx, _ = make(p, optimizers={"name": "adafactor"}, lr=0.1, schedule={"name": "constant"})
    got, state = run(tx, p, [like(p, 3.0)])
    assert sum(x.size for x in jax.tree.leaves(state)) < 1000
    np.testing.assert_allclose(got["w"], 1 - 0.1, rtol=1e-3)


def test_frozen_does_not_move_and_has_no_moments():
    p = params()
    tx, schedules = make(p, optimizers={"name": "adamw"}, lr=1.0, weight_decay=0.5, clip_norm=1.0, max_logit_scale=1.0,
                         schedule=[("image/.*", None), ("logit_scale", None), (".*", {"name": "constant"})])
    nan_where_frozen = {**like(p, 1.0), "image": like(p["image"], np.nan)}
    got, state = run(tx, p, [nan_where_frozen] * 2)
    for path in ("image/conv/kernel", "image/conv/bias", "image/norm/scale", "logit_scale"):
        np.testing.assert_array_equal(rules.paths(got)[path], rules.paths(p)[path])
    assert np.all(got["text"]["embed"]["embedding"] != -0.5) and optimizer.was_finite(state)
    held = list(rules.paths(state))
    assert any("text/embed" in path for path in held) and not any("image/" in path or "logit" in path for path in held)
    assert list(schedules) == ["lr"]


def test_frozen_gradients_do_not_count_for_clipping():
    p = params()
    tx, _ = make(p, optimizers={"name": "sgd"}, lr=1.0, clip_norm=1.0,
                 schedule=[("image/.*", None), (".*", {"name": "constant"})])
    got, _ = run(tx, p, [{**like(p, 0.01), "image": like(p["image"], 1e6)}])
    np.testing.assert_allclose(got["logit_scale"], 2.0 - 0.01, rtol=1e-6)


def test_clipping():
    p = params()
    total = sum(x.size for x in jax.tree.leaves(p))
    for per, kernel in (("global", 1 / math.sqrt(total)), ("tensor", 1 / math.sqrt(12))):
        tx, _ = make(p, optimizers={"name": "sgd"}, lr=1.0, schedule={"name": "constant"}, clip_norm=1.0, clip_per=per)
        got, _ = run(tx, p, [like(p, 7.0)])
        np.testing.assert_allclose(got["image"]["conv"]["kernel"], 0.5 - kernel, rtol=1e-5)
        got, _ = run(tx, p, [like(p, 1e-3)])
        np.testing.assert_allclose(got["image"]["conv"]["kernel"], 0.5 - 1e-3, rtol=1e-5)


def test_decay_mask():
    p = params()
    still = like(p, 0.0)
    settings = {"optimizers": {"name": "adamw"}, "lr": 0.1, "weight_decay": 0.2, "schedule": {"name": "constant"}}
    got, _ = run(make(p, **settings)[0], p, [still])
    shrunk = {path: bool(np.all(rules.paths(got)[path] != x)) for path, x in rules.paths(p).items()}
    assert shrunk == {"image/conv/kernel": True, "image/conv/bias": False, "image/norm/scale": False,
                      "text/embed/embedding": True, "logit_scale": False}
    np.testing.assert_allclose(got["image"]["conv"]["kernel"], 0.5 * (1 - 0.1 * 0.2), rtol=1e-6)
    got, _ = run(make(p, **settings, decay_mask=[("text/.*", False), (".*bias", 0.5), (".*", True)])[0], p, [still])
    np.testing.assert_allclose(got["image"]["conv"]["bias"], 0.5 * (1 - 0.1 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(got["text"]["embed"]["embedding"], p["text"]["embed"]["embedding"])
    assert got["logit_scale"] < 2.0


def test_temperature_cap():
    top = math.log(100)
    for start, gradient, want in ((4.6, -1.0, top), (0.05, 1.0, 0.0), (2.0, -1.0, 2.1)):
        p = {**params(), "logit_scale": jnp.float32(start)}
        tx, _ = make(p, optimizers={"name": "sgd"}, lr=0.1, schedule={"name": "constant"}, max_logit_scale=top)
        got, _ = run(tx, p, [like(p, gradient)])
        np.testing.assert_allclose(got["logit_scale"], want, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(got["image"]["norm"]["scale"], 1 - 0.1 * gradient, rtol=1e-6)
    tx, _ = make(p, optimizers={"name": "sgd"}, lr=5.0, schedule={"name": "constant"}, max_logit_scale=None)
    assert run(tx, p, [like(p, -1.0)])[0]["logit_scale"] == 7.0


def test_what_the_first_update_would_cut_is_said():
    p = {**params(), "logit_scale": jnp.float32(math.log(117))}
    sentence, = optimizer.clipped_by_first_update(ConfigDict(dict(max_logit_scale=math.log(100))), p)
    assert "(a scale of 117)" in sentence and "max_logit_scale=None keeps it" in sentence
    bounded, = optimizer.clipped_by_first_update(ConfigDict(dict(max_logit_scale=None, bounds=[("text/.*", (0.0, 1.0))])), p)
    assert bounded.startswith("text/embed/embedding starts at -0.5 to -0.5") and "config.optimizer.bounds" in bounded
    frozen = [("logit_scale", None), (".*", {"name": "constant"})]
    free = (dict(max_logit_scale=None), dict(max_logit_scale=math.log(100), schedule=frozen))
    assert not any(optimizer.clipped_by_first_update(ConfigDict(config), p) for config in free)
    assert not optimizer.clipped_by_first_update(ConfigDict(dict(max_logit_scale=math.log(100))),
                                                 {**p, "logit_scale": jnp.float32(math.log(100))})


def test_non_finite_updates_are_skipped_counted_and_leave_everything():
    p = params()
    tx, _ = make(p, optimizers={"name": "adamw"}, lr=0.1, schedule={"name": "cosine", "warmup": 5}, clip_norm=1.0)
    update, good = jax.jit(tx.update), like(p, 0.3)
    p1, s1 = run(tx, p, [good])
    assert optimizer.was_finite(tx.init(p)) and optimizer.was_finite(s1)
    for bad_value in (np.nan, np.inf, 1e30):    # the squares of 1e30 overflow: the second moment would stay infinite
        bad = {**good, "logit_scale": jnp.float32(bad_value)}
        updates, s2 = update(bad, s1, p1)
        assert not np.any([np.any(u) for u in jax.tree.leaves(updates)]) and not optimizer.was_finite(s2)
        jax.tree.map(np.testing.assert_array_equal, s1.inner, s2.inner)
        _, s3 = update(bad, s2, p1)
        assert {k: int(v) for k, v in optimizer.skipped(s3).items()} == {"skipped_updates": 2, "skipped_in_row": 2}
        updates, s4 = update(good, s3, p1)
        want, _ = update(good, s1, p1)
        jax.tree.map(np.testing.assert_array_equal, updates, want)
        assert {k: int(v) for k, v in optimizer.skipped(s4).items()} == {"skipped_updates": 2, "skipped_in_row": 0}


def test_schedules_at_known_points():
    def at(steps, **spec):
        fn = make(lr=2.0, schedule=spec)[1]["lr"]
        return [float(fn(s)) for s in steps]
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(at((0, 9, 19, 20, 60, 100, 150), name="cosine", warmup="1 epoch", final=0.1),
                               [0.1, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2], **close)
    np.testing.assert_allclose(at((0, 50, 75, 100), name="linear"), [2.0, 1.0, 0.5, 0.0], **close)
    np.testing.assert_allclose(at((0, 4, 5, 99), name="constant", warmup="50 examples", start=0.5),
                               [1.2, 2.0, 2.0, 2.0], **close)
    np.testing.assert_allclose(at((9, 10, 40, 90), name="rsqrt", warmup="10 percent", final=0.4),
                               [2.0, 2.0, 1.0, 0.8], **close)


def test_updates_follow_their_schedules():
    p = params()
    tx, schedules = make(p, optimizers={"name": "sgd"}, lr=1.0, schedule=[
        ("image/.*", {"name": "constant"}), (".*", {"name": "linear", "warmup": 2})])
    got, _ = run(tx, p, [like(p, 1.0)] * 2)
    assert list(schedules) == ["lr/image/.*", "lr/.*"]
    np.testing.assert_allclose(got["image"]["conv"]["bias"], 0.5 - 2.0, rtol=1e-6)
    np.testing.assert_allclose(got["logit_scale"], 2.0 - 0.5 - 1.0, rtol=1e-6)


@pytest.mark.parametrize("config, words", [
    ({"schedule": [("image/.*", None)]}, ["config.optimizer.schedule", "no rule matches logit_scale, text/embed/embedding;"]),
    ({"schedule": [("image/.*", {"name": "constant"})]}, ["logit_scale", "text/embed/embedding"]),
    ({"optimizers": [("imgae/.*", {"name": "sgd"}), (".*", {"name": "adamw"})]}, ["'imgae/.*' matches no parameter"]),
    ({"lr_mults": [("image/.*", 0.1)]}, ["config.optimizer.lr_mults", "logit_scale"]),
    ({"lr_mults": [(".*", 0.0)]}, ["lr_mults must be positive", "None"]),
    ({"decay_mask": [("(", 1.0)]}, ["decay_mask", "not a regular expression"]),
    ({"schedule": None}, ["freezes every parameter"]),
    ({"weigth_decay": 0.1}, ["config.optimizer.weigth_decay"]),
    ({"optimizers": {"name": "adam"}}, ["'adam'", "adamw"]),
    ({"optimizers": {"name": "adamw", "beta1": 0.9}}, ["'beta1'", "b1"]),
    ({"schedule": {"name": "cos"}}, ["'cos'", "cosine"]),
    ({"schedule": {"name": "cosine", "warm_up": 3}}, ["'warm_up'", "warmup"]),
    ({"schedule": {"name": "cosine", "warmup": "3 epcohs"}}, ["warmup", "3 epcohs"]),
    ({"schedule": {"name": "cosine", "warmup": 101}}, ["101 steps", "longer than the run of 100"]),
    ({"clip_per": "layer"}, ["clip_per='layer'"]),
    ({"clip_norm": -1.0}, ["clip_norm=-1.0"]),
    ({"lr": -1.0}, ["config.optimizer.lr=-1.0"]),
    ({"lr": "3e-4"}, ["config.optimizer.lr='3e-4'"]),
])
def test_refusals_name_what_is_wrong(config, words):
    with pytest.raises(ValueError) as error:
        make(**config)
    assert all(word in str(error.value) for word in words), error.value


def test_configs_from_json_are_the_same():
    as_json = {"optimizers": [[".*", {"name": "adamw", "b1": 0.9}]], "schedule": [[".*", {"name": "cosine", "warmup": 3}]]}
    p = params()
    got = [run(make(p, **c)[0], p, [like(p, 0.1)])[0] for c in
           (as_json, {"optimizers": ((".*", {"name": "adamw", "b1": 0.9}),), "schedule": {"name": "cosine", "warmup": 3}})]
    jax.tree.map(np.testing.assert_array_equal, *got)
