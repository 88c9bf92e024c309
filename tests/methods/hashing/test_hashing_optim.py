"""The optimizer of the hashing baselines: BertAdam, its schedule, SGD with PyTorch's decay."""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from mcd_jax.optim import optimizer

RUN = dict(total_steps=100, batch_size=10, examples=100)
BERT = dict(optimizers=((".*", dict(name="bertadam")),), lr=1e-3, weight_decay=0.2, decay_mask=((".*", True),), clip_norm=1.0,
            clip_per="tensor", schedule=((".*", dict(name="bert_cosine", warmup="10 percent")),))


def test_hashing_bertadam_against_a_slow_version():
    """Its first update is 0 (the schedule's), which decay doesn't change; then no bias correction, decay 0.2 on biases too."""
    rng = np.random.default_rng(0)
    p = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    grads = [{k: 3 * rng.normal(size=v.shape) for k, v in p.items()} for _ in range(13)]
    tx, schedules = optimizer.make(ConfigDict(BERT), jax.tree.map(jnp.float32, p), **RUN)
    got, update = jax.tree.map(jnp.float32, p), jax.jit(tx.update)
    state, m, v = tx.init(got), {k: 0.0 for k in p}, {k: 0.0 for k in p}
    for step, g in enumerate(grads):
        before = got
        updates, state = update(jax.tree.map(jnp.float32, g), state, got)
        got = optax.apply_updates(got, updates)
        x = step / 100
        lr = 1e-3 * (x / 0.1 if x < 0.1 else (1 + np.cos(np.pi * x)) / 2)
        for k in p:
            clipped = g[k] * min(1.0, 1.0 / np.linalg.norm(g[k]))
            m[k], v[k] = 0.9 * m[k] + 0.1 * clipped, 0.98 * v[k] + 0.02 * clipped ** 2
            p[k] = p[k] - lr * (m[k] / (np.sqrt(v[k]) + 1e-6) + 0.2 * p[k])
            np.testing.assert_allclose(got[k], p[k], rtol=2e-6, atol=1e-7, err_msg=f"step {step}, {k}")
        if step == 0:
            jax.tree.map(np.testing.assert_array_equal, before, got)
    share = lambda s: float(schedules["lr"](s)) / 1e-3
    assert share(0) == 0 and share(9) == pytest.approx(0.9) and share(10) == pytest.approx(0.976, abs=5e-4)   # the reference's jump
    assert share(100) == pytest.approx(0, abs=1e-6)


def test_hashing_proxies_have_sgd_with_the_decay_inside_the_gradient():
    config = dict(BERT, optimizers=(("proxies", dict(name="sgd", momentum=0.9, l2=0.5)), (".*", dict(name="bertadam"))),
                  schedule=(("proxies", dict(name="constant")), (".*", dict(name="bert_cosine", warmup="10 percent"))),
                  lr_mults=(("proxies", 20.0), (".*", 1.0)), decay_mask=(("proxies", False), (".*", True)), clip_norm=0.0)
    p, rng = {"proxies": jnp.ones((2, 2)), "other": jnp.ones(3)}, np.random.default_rng(1)
    tx, _ = optimizer.make(ConfigDict(config), p, **RUN)
    state, slow, buffer = tx.init(p), np.ones((2, 2)), 0.0
    for _ in range(3):
        g = rng.normal(size=(2, 2))
        updates, state = tx.update({"proxies": jnp.float32(g), "other": jnp.ones(3)}, state, p)
        p = optax.apply_updates(p, updates)
        buffer = 0.9 * buffer + g + 0.5 * slow       # torch.optim.SGD(lr=.02, momentum=.9, weight_decay=.5)
        slow = slow - 0.02 * buffer
        np.testing.assert_allclose(p["proxies"], slow, rtol=1e-5)
