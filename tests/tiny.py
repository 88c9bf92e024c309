"""Tiny configs and batches shared by the tests: every method at the size of a toy."""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax import job, load, optim
from mcd_jax import step as step_lib

SIZE, CONTEXT, VOCAB, EOT, BATCH = 16, 6, 32, 2, 8
METHODS = ("clip", "siglip", "slip", "mcd", "gcl", "m2mix", "albef", "answering", "judging", "assigning", "limoe", "loupe",
           "vl_sae", "ahlr", "dchmt", "dsph", "mcd+gcl")   # "+": composed
SLOW = ("answering", "judging", "assigning", "dchmt", "dsph", "loupe", "mcd+gcl")   # to compile
MOST = [pytest.param(name, marks=pytest.mark.full if name in SLOW else ()) for name in METHODS]   # for slow tests
LOCKED = {"vl_sae": ("image", "image/proj", "text", "text/proj")}   # methods over frozen towers
SMALL = {"vl_sae": dict(k=8, ratio=4), "slip": dict(hidden=16, out_dim=8), "mcd": dict(ssl_hidden=16, ssl_dim=8),
         "m2mix": dict(temperature=0.0, m2_learned=True),
         "albef": dict(mask_id=VOCAB, mask_rate=0.4, queue=2 * BATCH, fusion_layers=1),
         "answering": dict(start_id=VOCAB, fusion_layers=1, decoder_layers=1, longest=4),
         "judging": dict(fusion_layers=1, second="augmented", label="kind"), "assigning": dict(fusion_layers=1),
         "limoe": dict(least_image=3.9, least_text=4.0, statistics="batch"),
         "loupe": dict(regions=2, project="own", anchors=((0.6, 1.2), (1.2, 1.2)), hidden=8, masking="tokens", samples=4, first=0,
                       token_quota=1, pair_quota=3, estimator_width=8, estimator_depth=1, estimator_heads=2),
         "ahlr": dict(bits=16), "dchmt": dict(bits=16), "dsph": dict(bits=16, threshold=0.1)}
IMAGE = dict(name="resnet", widths=(8, 8), depths=(1, 1), stem_patch=4, mask_patch=4, norm="layer")
TEXT = dict(name="text", width=8, depth=1, num_heads=2, mlp_dim=16)
BERT = dict(name="bert", width=8, depth=1, num_heads=2, mlp_dim=16, spare_ids=1)
TEXTS = dict.fromkeys(("albef", "answering", "judging", "assigning"), BERT)
SHARED = dict(width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=8, experts=dict(num=4, group_size=1))   # of limoe


def config(method, **changes):
    """A resolved config of `method` whose step compiles in a second."""
    result = config_lib.default()
    result.batch_size, result.steps, result.total_steps = BATCH, "10 steps", 10
    if "+" in method:   # changes: of every method that has the option
        own = {name: {k: v for k, v in {**SMALL.get(name, {}), **changes}.items() if k in options(name)}
               for name in method.split("+")}
        result.objective = config_lib.objective(tuple(method.split("+")), **own)
    else:
        result.objective = config_lib.objective(method, **{**SMALL.get(method, {}), **changes})
    towers = dict(shared=SHARED) if "limoe" in method else dict(image=IMAGE, text=TEXTS.get(method, TEXT))
    result.model = dict(**towers, embed_dim=8, logit_bias=-10.0 if "siglip" in method else None)
    if method in LOCKED:
        result.model.locked = LOCKED[method]
    result.model.inputs = dict(vocab_size=VOCAB, context=CONTEXT, eot=EOT, image_size=SIZE)
    result.optimizer.schedule = ((".*", dict(name="constant")),)
    return ConfigDict(result.to_dict())


def options(method):
    return load.load("objectives", method).Options._fields


def weigh(config, given):
    """Sets weights in a config: term -> number, "<method>/<term>" of a composed one."""
    for name, value in given.items():
        method, _, term = name.rpartition("/")
        (config.objective[method] if method else config.objective).weights[term] = float(value)


def weights(config):
    """term -> constant weight, as the step takes it."""
    return job.term_weights(config, lambda name, value: 0)


def batch(seed=0, size=BATCH):
    """One host batch with every view that a method of the package asks for."""
    rng = np.random.default_rng(seed)
    views = {}
    for i, name in enumerate(("image", "augmented", "augmented2", "view1", "view2")):
        views[name] = rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)
        views[f"{name}/misalignment"] = (1 + (i > 0) * rng.random(size)).astype(np.float32)
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
    return {**views, "text": text, "label": label, "phrases": phrases, "answers": answers, "weights": weights,
            "kind": np.arange(size, dtype=np.int32) % 3}


def hashing(method, given=None, rows=None, **changes):
    """`build` of a method over stored embeddings of width 8: nothing but its heads."""
    rng, tower = np.random.default_rng(0), dict(name="stored", width=8, proj="none")
    stored = {name: rng.normal(size=(BATCH, 8)).astype(np.float32) for name in ("image", "text")}
    return build(method, given, dict(image=tower, text=tower), {**stored, **(rows or {})}, **changes)


def build(method, given=None, model=None, rows=None, **changes):
    """(objective, tx, weights, state, batch) of a tiny method; `given` weights, `model` has changes of config.model, `rows` of the
    batch."""
    cfg = config(method, **changes)
    for key, value in (model or {}).items():
        cfg.model[key] = value
    weigh(cfg, given or {})
    objective = job.objective_of(cfg)
    data = jax.tree.map(jnp.asarray, {**batch(), **(rows or {})})
    shapes = jax.eval_shape(objective.init, jax.random.key(0), data)
    tx, _ = optim.make(cfg.optimizer, shapes, total_steps=10, batch_size=BATCH, examples=80)
    state = step_lib.init_state(objective, tx, jax.random.key(0), data)
    return objective, tx, weights(cfg), state, data
