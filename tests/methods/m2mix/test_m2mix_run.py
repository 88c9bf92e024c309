"""m2-Mix as a method: terms, metrics, coefficients, temperatures, weights over the epochs, and fine-tuning from a run."""
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import job, train
from mcd_jax import step as step_lib
from mcd_jax.configs import clip_emoji, m2mix_emoji
from mcd_jax.methods.m2mix import m2mix, mixup
from mcd_jax.optim import optimizer
from mcd_jax.run import checkpoint


def stepped(steps=1, weights=None, schedule=None, **changes):
    """(state before, state after, report) of a tiny run."""
    cfg = tiny.config("m2mix", **changes)
    for name, value in (weights or {}).items():
        cfg.objective.weights[name] = value
    objective, data = m2mix.make(cfg), jax.tree.map(jnp.asarray, tiny.batch())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), data)
    cfg.optimizer.schedule = schedule or cfg.optimizer.schedule
    tx, _ = optimizer.make(cfg.optimizer, shapes, total_steps=10, batch_size=tiny.BATCH, examples=80)
    before = state = step_lib.init_state(objective, tx, jax.random.key(0), data)
    step = jax.jit(step_lib.make_step(objective, tx, cfg.objective.weights.to_dict()))
    for _ in range(steps):
        state, report = jax.block_until_ready(step(state, data))
    return before, state, {k: float(x) for k, x in report.items()}


EVERY = dict(m2=0.5, v=0.5, l=0.5, vl=0.5)


def test_metrics_of_every_term():
    _, _, report = stepped(weights=EVERY)
    assert {"mix/m2", "mix/v", "mix/l", "mix/vl", "m2/hard_negatives", "m2/logit_scale", "logit_scale"} <= report.keys()
    mixes = [report[f"mix/{term}"] for term in EVERY]
    assert all(0 <= lam <= 1 for lam in mixes) and len(set(mixes)) == 4      # drawn for each term by itself
    assert 0 <= report["m2/hard_negatives"] <= 1
    np.testing.assert_allclose(report["m2/logit_scale"], 1 / 0.07, rtol=1e-6)
    total = report["loss/clip"] + 0.5 * sum(report[f"loss/{term}"] for term in EVERY)
    np.testing.assert_allclose(report["loss"], total, rtol=1e-6)
    _, _, without = stepped(weights=dict(m2=0.0))
    assert not [k for k in without if "m2" in k or "mix" in k]


def test_coefficients_follow_their_distribution():
    objective, _, _, state, batch = tiny.build("m2mix", EVERY, m2_beta=0.2, beta=1.0, vl_beta=4.0)
    keys = jax.random.split(jax.random.key(5), 4000)
    draw = jax.jit(jax.vmap(lambda key: {k: v for k, v in objective.forward(state.params, {}, batch, key, 0).items()
                                         if k.startswith("mix/")}))
    out = {k: np.asarray(v) for k, v in draw(keys).items()}
    for term, beta in (("m2", 0.2), ("v", 1.0), ("l", 1.0), ("vl", 4.0)):
        lam = out[f"mix/{term}"]
        assert np.all((lam >= 0) & (lam <= 1)) and abs(lam.mean() - 0.5) < 0.03
        np.testing.assert_allclose(lam.var(), 1 / (4 * (2 * beta + 1)), rtol=0.08)
    extreme = lambda lam: np.mean((lam < 0.05) | (lam > 0.95))
    assert extreme(out["mix/m2"]) > 0.5 and extreme(out["mix/vl"]) < 0.01    # a U and a bell
    assert abs(np.corrcoef(out["mix/v"], out["mix/l"])[0, 1]) < 0.06


@pytest.mark.full
def test_temperatures_constant_learned_and_frozen():
    """By default both are constants and logit_scale is not touched; 0 takes the parameter; m2 can learn its own; None freezes."""
    before, after, report = stepped(temperature=0.01, m2_learned=False)
    assert after.params["logit_scale"] == before.params["logit_scale"] and set(after.params) == {"image", "text", "logit_scale"}
    np.testing.assert_allclose([report["logit_scale"], report["m2/logit_scale"]], [100, 1 / 0.07], rtol=1e-6)

    frozen = (("logit_scale", None), (".*", dict(name="constant")))
    before, after, report = stepped(2, temperature=0.0, m2_learned=True, schedule=frozen)
    assert after.params["logit_scale"] == before.params["logit_scale"]
    np.testing.assert_allclose(report["logit_scale"], math.exp(before.params["logit_scale"]), rtol=1e-6)
    np.testing.assert_allclose(before.params["m2"]["logit_scale"], math.log(1 / 0.07), rtol=1e-6)
    assert after.params["m2"]["logit_scale"] != before.params["m2"]["logit_scale"]
    assert np.any(after.params["image"]["proj"]["kernel"] != before.params["image"]["proj"]["kernel"])

    objective, _, _, state, batch = tiny.build("m2mix", m2_temperature=0.0, m2_learned=False)
    params = {**state.params, "logit_scale": jnp.float32(2.0)}
    scales = jax.jit(lambda params: [objective.forward(params, {}, batch, state.key, 0)[k] for k in ("scale", "m2/scale")])(params)
    np.testing.assert_allclose(scales, math.exp(2), rtol=1e-6)


@pytest.fixture(scope="module")
def plain():
    """The report of a step of the defaults."""
    return stepped(weights=EVERY)[2]


@pytest.mark.parametrize("changes", [dict(m2_reduce="sum"), dict(m2_negative_scale=0.01), dict(vl_target="both"),
                                     dict(unmixed_negatives=True), dict(m2_beta=5.0), dict(beta=5.0), dict(vl_beta=5.0)], ids=str)
@pytest.mark.full
def test_every_switch_changes_the_update(changes, plain):
    changed = stepped(weights=EVERY, **changes)[2]
    assert np.isfinite(list(changed.values())).all()
    assert max(abs(changed[k] / plain[k] - 1) for k in ("loss", "grad_norm")) > 1e-5


@pytest.mark.parametrize("changes, words", [
    (dict(m2_reduce="max"), "config.objective.m2_reduce='max' must be one of mean, sum"),
    (dict(vl_target="hard"), "config.objective.vl_target='hard' must be one of own, both"),
    (dict(m2_beta=0.0), "config.objective.m2_beta=0.0 must be positive"),
    (dict(temperature=-1.0), "config.objective.temperature=-1.0 must be positive"),
    (dict(m2_learned=True, m2_temperature=0.0), "set config.objective.m2_temperature"),
    (dict(implementation="rings"), "config.objective.implementation='rings'"),
])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny.build("m2mix", **changes)
    with pytest.raises(ValueError, match="reduce='max'"):
        mixup.m2(*[jnp.eye(2)] * 3, 1.0, "max")


def test_weights_of_the_mixes_fall_with_the_epochs():
    """The released scripts divide them by the number of the epoch, from 1; here an epoch has 10 steps."""
    cfg = tiny.config("m2mix")
    assert cfg.objective.decay.to_dict() == dict(clip="0", m2="1 epoch", v="1 epoch", l="1 epoch", vl="1 epoch")
    weights = job.term_weights(cfg, lambda name, value: {"0": 0, "1 epoch": 10}[value])
    assert weights["clip"] == 1.0 and weights["v"] == 0.0
    got = [float(weights["m2"](jnp.int32(s))) for s in (0, 9, 10, 19, 20, 89)]
    np.testing.assert_allclose(got, [0.01, 0.01, 0.005, 0.005, 0.01 / 3, 0.01 / 9], rtol=1e-6)
    cfg.objective.warmup.m2 = "warm"
    ramped = job.term_weights(cfg, lambda name, value: {"0": 0, "1 epoch": 10, "warm": 20}[value])["m2"]
    np.testing.assert_allclose([float(ramped(jnp.int32(s))) for s in (0, 10, 30)], [0, 0.0025, 0.0025], rtol=1e-6)


# ---- fine-tuning

def small(config, steps):
    """An emoji config as a run of seconds: the validation drawings, 16 pixels, no evaluations."""
    config.steps, config.batch_size, config.log_every, config.tensorboard = steps, 16, 1, False
    config.data.source = dict(name="emoji", split="validation", captions=("label",), languages=("en",))
    config.data.views = dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')")
    config.model.image = dict(name="resnet", widths=(8, 16), depths=(1, 1))
    config.model.text.width, config.model.embed_dim, config.evals = 24, 16, {}
    config.mesh.data, config.checkpoint.every = 4, "100 percent"
    return config


@pytest.mark.full
def test_fine_tuning_from_a_run_at_another_temperature(tmp_path):
    """All parameters but those named are the run's; the temperature starts as told and stays there where it is frozen."""
    source = tmp_path / "source"
    first = job.build(small(clip_emoji.get_config(), "2 steps"))
    with jax.set_mesh(first.mesh):
        state = first.init(jax.random.key(7))._replace(step=jax.numpy.int32(3))
    saver = checkpoint.Checkpoints(source)
    saver.save(3, state)
    saver.close()

    config = small(m2mix_emoji.get_config(f"temperature=0.2,init_from={source}/checkpoints/3"), "2 steps")
    assert config.init_fresh == ("logit_scale",)
    config.objective.m2_learned = True
    for fresh, words in ((("logit_scale",), r"params/m2/logit_scale is absent in .*config\.init_fresh"),
                         (("logit_scale", "m2/scale"), r"config\.init_fresh: 'm2/scale' matches no parameter")):
        config.init_fresh = fresh
        with pytest.raises(ValueError, match=words):
            train.train(config, str(tmp_path / "refused"))

    config.init_fresh = ("logit_scale", "m2/.*")
    assert train.train(config, str(tmp_path / "tuned")) == 0
    log = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert [line["logit_scale"] for line in log] == pytest.approx([5.0, 5.0])
    assert log[0]["m2/logit_scale"] == pytest.approx(1 / 0.07) != log[1]["m2/logit_scale"]
    after = checkpoint.restore_from(tmp_path / "tuned", first.abstract.params, "params", ("logit_scale", "m2/.*"))
    for name in ("image", "text"):
        for a, b in zip(jax.tree.leaves(state.params[name]), jax.tree.leaves(after[name]), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-3)   # two updates of at most 4e-4: no other random start is that near


def test_the_config_and_its_arguments():
    tuned = m2mix_emoji.get_config("init_from=runs/x")
    assert (tuned.objective.name, tuned.init_from, tuned.steps, tuned.init_fresh) == ("m2mix", "runs/x", "9 epochs", ())
    assert tuned.objective.temperature == 0 and tuned.optimizer.schedule[0] == ("logit_scale", None)
    m3 = m2mix_emoji.get_config("kind=m3,init_from=runs/x,temperature=0.05")
    assert m3.objective.weights.to_dict() == dict(clip=1.0, m2=0.01, v=0.05, l=0.05, vl=0.1) and m3.objective.m2_beta == 0.2
    assert m3.model.logit_scale == pytest.approx(math.log(20)) and m3.init_fresh == ("logit_scale",)
    scratch = m2mix_emoji.get_config()
    assert not scratch.init_from and scratch.optimizer.schedule[0][0] == ".*" and set(scratch.objective.decay.values()) == {"0"}
    control = m2mix_emoji.get_config("kind=control,init_from=runs/x")
    assert control.objective.name == "clip" and control.model.logit_scale == pytest.approx(math.log(10))
    assert control.steps == tuned.steps and control.optimizer == tuned.optimizer
    learned = m2mix_emoji.get_config("kind=control,init_from=runs/x,scale=learned")
    assert len(learned.optimizer.schedule) == 1
    for text, words in (("kind=clip", "one of m2, m3, control"), ("scale=free", "frozen or learned"), ("m3", "unknown argument")):
        with pytest.raises(ValueError, match=words):
            m2mix_emoji.get_config(text)
    bad = config_lib.default()
    bad.init_fresh = ("logit_scale(",)
    with pytest.raises(ValueError, match=r"config\.init_fresh: 'logit_scale\(' is not a regular expression"):
        config_lib.check(bad)
