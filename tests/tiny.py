"""Tiny configs and batches shared by the tests: every method that there is at the size of a toy (see `cases`)."""
import importlib
import pathlib
import sys

from cases import BATCH, BERT, CONTEXT, CORE, EOT, IMAGE, SIZE, TEXT, VOCAB, Case
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax import job, plugins
from mcd_jax import step as step_lib
from mcd_jax.models.augmentation_head import UNTOUCHED
from mcd_jax.optim import optimizer

__all__ = ["BATCH", "BERT", "CASES", "CONTEXT", "EOT", "IMAGE", "METHODS", "MOST", "SIZE", "TEXT", "VOCAB"]
FOLDERS = pathlib.Path(__file__).resolve().parent / "methods"


def _of_folders():
    """name -> `Case` of the methods whose folders there are."""
    cases, folders = {}, plugins.methods()
    for folder in folders:
        if (FOLDERS / folder / f"tiny_{folder}.py").exists():
            sys.path.append(str(FOLDERS / folder))
            cases |= importlib.import_module(f"tiny_{folder}").CASES
    return {name: case for name, case in cases.items() if set(case.folders) <= set(folders)}


CASES = {**CORE, **_of_folders()}
METHODS = tuple(CASES)   # "+": composed
MOST = [pytest.param(name, marks=pytest.mark.full if case.slow else ()) for name, case in CASES.items()]   # for slow tests


def cases_of(method):
    """The `Case` of each of the methods that are composed."""
    return {name: CASES.get(name, Case()) for name in method.split("+")}


def config(method, **changes):
    """A resolved config of `method` whose step compiles in a second."""
    result, cases = config_lib.default(), cases_of(method)
    result.batch_size, result.steps, result.total_steps = BATCH, "10 steps", 10
    if "+" in method:   # changes: of every method that has the option
        sections = {name: {k: v for k, v in {**case.options, **changes}.items() if k in options(name)}
                    for name, case in cases.items()}
        result.objective = config_lib.objective(tuple(cases), **sections)
    else:
        result.objective = config_lib.objective(method, **{**cases[method].options, **changes})
    model = {}
    for case in cases.values():
        model |= case.model
    towers = {} if "shared" in model else dict(image=IMAGE, text=TEXT)
    result.model = {"logit_bias": None, "embed_dim": 8, **towers, **model}
    result.model.inputs = dict(vocab_size=VOCAB, context=CONTEXT, eot=EOT, image_size=SIZE)
    result.optimizer.schedule = ((".*", dict(name="constant")),)
    return ConfigDict(result.to_dict())


def options(method):
    return plugins.load("objective", method).Options._fields


def weigh(config, weights):
    """Sets weights in a config: term -> number, "<method>/<term>" of a composed one."""
    for name, value in weights.items():
        method, _, term = name.rpartition("/")
        (config.objective[method] if method else config.objective).weights[term] = float(value)


def weights(config):
    """term -> constant weight, as the step takes it."""
    return job.term_weights(config, lambda name, value: 0)


def batch(seed=0, size=BATCH):
    """One host batch with views and columns of every kind."""
    rng = np.random.default_rng(seed)
    views = {}
    for i, name in enumerate(("image", "augmented", "augmented2", "view1", "view2")):
        views[name] = rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)
        views[f"{name}/misalignment"] = (1 + (i > 0) * rng.random(size)).astype(np.float32)
        views[f"{name}/params"] = UNTOUCHED + (i > 0) * 0.1 * np.random.default_rng(seed + i).random((size, 12)).astype(np.float32)
    text = rng.integers(3, VOCAB, (size, CONTEXT)).astype(np.int32)
    text[:, -1] = EOT
    label = (rng.random((size, 5)) < 0.4).astype(np.int32)   # several, one or none
    label[:2] = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]           # several each, and none in common
    phrases = np.zeros((size, 3, 2), np.int32)
    phrases[:, 0], phrases[::2, 1] = (0, 2), (2, 5)          # one phrase or two, and room for a third
    answers = np.where(np.arange(4) < 3, rng.integers(3, VOCAB, (size, 2, 4)), 0).astype(np.int32)   # of one word or two
    answers[:, 0, 2], answers[:, 1, 1:] = EOT, (EOT, 0, 0)
    weights = np.tile(np.float32([0.7, 0.3]), (size, 1))
    weights[1::2] = 1, 0                                     # and half of the questions have one answer
    caption = np.random.default_rng(seed + 1).integers(3, VOCAB, (size, CONTEXT)).astype(np.int32)   # a second one
    caption[:, -1] = EOT
    return {**views, "text": text, "caption": caption, "label": label, "phrases": phrases, "answers": answers, "weights": weights,
            "kind": np.arange(size, dtype=np.int32) % 3}


def build(method, weights_of=None, model=None, rows=None, **changes):
    """(objective, tx, weights, state, batch) of a tiny method; `weights_of` terms, changes of config.model, `rows` of the batch."""
    cfg = config(method, **changes)
    for key, value in (model or {}).items():
        cfg.model[key] = value
    weigh(cfg, weights_of or {})
    objective = job.objective_of(cfg)
    data = jax.tree.map(jnp.asarray, {**batch(), **(rows or {})})
    shapes = jax.eval_shape(objective.init, jax.random.key(0), data)
    tx, _ = optimizer.make(cfg.optimizer, shapes, total_steps=10, batch_size=BATCH, examples=80)
    state = step_lib.init_state(objective, tx, jax.random.key(0), data)
    return objective, tx, weights(cfg), state, data
