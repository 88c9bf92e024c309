"""The optimizer from `config.optimizer`: regex lists over parameter paths decide who is updated how.

Its keys are `config.base.OPTIMIZER`, of which the trainer reads `max_skipped`; an optimizer's own options are OPTIMIZERS there.
Lists are (regex, value) pairs: the first whole match wins, all parameters must match.
"""
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mcd_jax.config.base import OPTIMIZER, OPTIMIZERS
from mcd_jax.optim import schedule
from mcd_jax.run import fingerprint
from mcd_jax.sharding import rules

_UNDECAYED = re.compile(r"(.*/)?(bias|scale|gamma|logit_[^/]*)|(.*/)?[^/]*norm[^/]*/[^/]*")
_FROZEN = "frozen"
_ROUNDING = 1e-5   # of a bound in float32


class SkipState(NamedTuple):
    skipped: Any   # int32 (): non-finite updates so far
    in_row: Any    # int32 (): of which the last ones in a row; 0 after a good update
    inner: Any


def make(config, params, total_steps, batch_size, examples):
    """The optax transformation of `config.optimizer`, and its learning rates for logging.

    Args:
      config: mapping with the keys above.
      params: the parameters, or a tree of their shapes.
      total_steps, batch_size, examples: of the run, of a step (global) and of an epoch; durations need them.

    Returns:
      (tx, schedules). tx.update needs `params`; its state is a `SkipState`. An update without a finite norm, its
      own or its gradient's, becomes zeros and leaves the rest of the state as it was. schedules maps "lr", or
      "lr/<regex>" where there are several, to a function of the number of updates applied.

    Raises:
      ValueError: an unknown key, name or option, a value out of range, or parameters that a list leaves out.
    """
    config = _plain(config)
    for key in config:
        if key not in OPTIMIZER:
            raise ValueError(f"unknown key config.optimizer.{key}: there are {', '.join(OPTIMIZER)}")
    lr, decay = _number(config, "lr", 1e-3), _number(config, "weight_decay", 0.0)
    optimizers = _pairs(config.get("optimizers", {"name": "adamw"}), "optimizers")
    schedules = _pairs(config.get("schedule", {"name": "constant"}), "schedule")
    fns = [schedule.make(spec, lr, total_steps, batch_size, examples) for _, spec in schedules]
    kind, which = _number_of(optimizers, params, "optimizers"), _number_of(schedules, params, "schedule")
    labels = {path: _FROZEN if fns[which[path]] is None else str(kind[path]) for path in kind}
    trained = [path for path, label in labels.items() if label != _FROZEN]
    if not trained:
        raise ValueError("config.optimizer.schedule freezes every parameter: nothing is left to train")
    txs = {_FROZEN: optax.set_to_zero(), **{str(i): _scaler(spec) for i, (_, spec) in enumerate(optimizers)}}
    used = {label: txs[label] for label in sorted(set(labels.values()))}
    mults = _factors(config.get("lr_mults"), params, "lr_mults")
    if any(m <= 0 for m in mults.values()):
        raise ValueError("config.optimizer.lr_mults must be positive; freeze with a schedule of None")
    decays = _factors(config.get("decay_mask"), params, "decay_mask", default=_decayed)
    rate = {path: (which[path], mults[path]) for path in trained}
    inner = optax.chain(
        _clip(config.get("clip_norm"), config.get("clip_per", "global")),
        optax.partition(used, _tree(labels, params)),
        _add_decay({path: decay * decays[path] for path in trained}),
        _scale_by_schedules(fns, rate),
        _cap(config.get("max_logit_scale"), config.get("bounds"), params, trained))
    live = {regex: fn for (regex, _), fn in zip(schedules, fns, strict=True) if fn is not None}
    return _skip_nonfinite(inner, set(trained)), {
        "lr" if len(live) == 1 else f"lr/{regex}": fn for regex, fn in live.items()}


def skipped(opt_state):
    """{"skipped_updates", "skipped_in_row"}: int32 () counts of non-finite updates, in all and in a row."""
    return {"skipped_updates": opt_state.skipped, "skipped_in_row": opt_state.in_row}


def was_finite(opt_state):
    """bool (): the last update was applied, or there was none yet."""
    return opt_state.in_row == 0


def _skip_nonfinite(inner, trained):
    """An update that isn't finite becomes zero, leaves the inner state untouched and is counted."""
    def init(params):
        return SkipState(jnp.int32(0), jnp.int32(0), inner.init(params))

    def update(grads, state, params=None, **extra):
        grads = _map(lambda path, g: g if path in trained else jnp.zeros_like(g), grads)
        updates, new = inner.update(grads, state.inner, params, **extra)
        # norms, not elements: squares that overflow would stay in the second moment for good
        finite = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(optax.tree.norm(updates))
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state.inner)
        bad = 1 - finite.astype(jnp.int32)
        return updates, SkipState(state.skipped + bad, (state.in_row + 1) * bad, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _clip(norm, per):
    if per not in ("global", "tensor"):
        raise ValueError(f"config.optimizer.clip_per={per!r} must be 'global' or 'tensor'")
    if not norm:
        return optax.identity()
    if norm < 0:
        raise ValueError(f"config.optimizer.clip_norm={norm} must be positive, or None for no clipping")
    if per == "global":
        return optax.clip_by_global_norm(norm)

    def one(g):
        return g * jnp.minimum(1.0, norm / jnp.maximum(optax.tree.norm(g), 1e-30)).astype(g.dtype)
    return optax.stateless(lambda grads, _: jax.tree.map(one, grads))


def _add_decay(coefficients):
    return optax.stateless(lambda updates, params: _map(
        lambda path, u, p: u + coefficients[path] * p if coefficients.get(path) else u, updates, params))


def _scale_by_schedules(fns, rate):
    """Updates times minus the learning rate of each path; counts the updates applied."""
    def update(updates, state, params=None):
        now = [None if fn is None else fn(state.count) for fn in fns]

        def scale(path, u):
            if path not in rate:
                return u
            which, mult = rate[path]
            return -(now[which] * mult).astype(u.dtype) * u
        return _map(scale, updates), optax.ScaleByScheduleState(state.count + 1)
    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.int32(0)), update)


def clipped_by_first_update(config, params):
    """Sentences, one for each trained parameter whose value lies where `config.optimizer` lets no update leave it.

    Args:
      config: of the optimizer. params: the tree that training starts from.
    """
    config = _plain(config)
    schedules = _pairs(config.get("schedule", {"name": "constant"}), "schedule")
    which = _number_of(schedules, params, "schedule")
    trained = [path for path, number in which.items() if schedules[number][1] is not None]
    leaves, sentences = fingerprint.flat(params), []
    for path, (low, high) in _ranges(config.get("max_logit_scale"), config.get("bounds"), params, trained).items():
        value = leaves[path]
        if float(value.min()) < low - _ROUNDING or float(value.max()) > high + _ROUNDING:
            key = "max_logit_scale" if (low, high) == (0.0, config.get("max_logit_scale")) else "bounds"
            numbers = f"{float(value.min()):.4g}" + (f" to {float(value.max()):.4g}" if value.size > 1 else "")
            if path.split("/")[-1] == "logit_scale":
                numbers += f" (a scale of {math.exp(float(value.max())):.4g})"
            free = "config.optimizer.max_logit_scale=None keeps it" if key == "max_logit_scale" else "wider bounds keep it"
            sentences.append(f"{path} starts at {numbers}, outside of the [{low:.4g}, {high:.4g}] of config.optimizer.{key}: the "
                             f"first update moves it there; {free}")
    return sentences


def _cap(highest, bounds, params, trained):
    ranges = _ranges(highest, bounds, params, trained)
    if not ranges:
        return optax.identity()
    return optax.stateless(lambda updates, params: _map(
        lambda path, u, p: jnp.clip(p + u, *ranges[path]) - p if path in ranges else u, updates, params))


def _ranges(highest, bounds, params, trained):
    """path -> (low, high) of the parameters that updates keep within."""
    ranges = {path: (0.0, highest) for path in trained if highest is not None and path.split("/")[-1] == "logit_scale"}
    if bounds:
        given = rules.match([*bounds, [".*", None]], params, "config.optimizer.bounds")
        if any(pair is not None and not pair[0] < pair[1] for pair in given.values()):
            raise ValueError(f"config.optimizer.bounds={bounds!r} must be pairs of a regex and (low, high), low below high")
        ranges |= {path: pair for path, pair in given.items() if pair is not None and path in trained}
    return ranges


def _scaler(spec):
    """The optax transformation that `spec` names, without learning rate, sign and weight decay."""
    name = spec.get("name") if isinstance(spec, dict) else None
    if name not in OPTIMIZERS:
        raise ValueError(f"config.optimizer.optimizers: {spec!r} needs a name out of {', '.join(OPTIMIZERS)}")
    o = _options({k: v for k, v in spec.items() if k != "name"}, {key: own.default for key, own in OPTIMIZERS[name].items()},
                 f"option of {name}")
    if name == "adamw":
        return optax.scale_by_adam(o["b1"], o["b2"], o["eps"], mu_dtype=o["mu_dtype"])
    if name == "lion":
        return optax.scale_by_lion(o["b1"], o["b2"], mu_dtype=o["mu_dtype"])
    if name == "sgd":   # l2: a decay that is part of the gradient, as PyTorch's, beside the decoupled one of all optimizers
        return optax.chain(optax.add_decayed_weights(o["l2"]) if o["l2"] else optax.identity(),
                           optax.trace(o["momentum"], o["nesterov"]) if o["momentum"] else optax.identity())
    if name == "bertadam":
        return _bertadam(o["b1"], o["b2"], o["eps"])
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=o["decay_rate"], min_dim_size_to_factor=o["min_dim_size_to_factor"],
            decay_rate_fn=lambda step, power: jnp.minimum(o["max_decay"], 1.0 - (step + 1.0) ** -power)),
        optax.clip_by_block_rms(o["clipping_threshold"]) if o["clipping_threshold"] else optax.identity(),
        optax.scale_by_param_block_rms() if o["multiply_by_parameter_scale"] else optax.identity(),
        optax.ema(o["momentum"], debias=False) if o["momentum"] else optax.identity())


def _bertadam(b1, b2, eps):
    """Adam without bias correction (pytorch_pretrained_bert, optimization.py), whose moments start at 0."""
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.int32(0), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)
    return optax.GradientTransformation(init, update)


def _decayed(path, leaf):
    return float(len(leaf.shape) >= 2 and not _UNDECAYED.fullmatch(path))


def _factors(pairs, params, key, default=lambda path, leaf: 1.0):
    if not pairs:
        return {path: default(path, leaf) for path, leaf in rules.paths(params).items()}
    found = rules.match(pairs, params, f"config.optimizer.{key}")
    return {path: float(value) for path, value in found.items()}


def _number_of(pairs, params, key):
    """{path: index of the first pair that matches}."""
    return rules.match([(pair[0], i) for i, pair in enumerate(pairs)], params, f"config.optimizer.{key}")


def _map(fn, tree, *rest):
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(rules.name(path), *leaves), tree, *rest)


def _tree(values, params):
    return _map(lambda path, _: values[path], params)


def _pairs(value, key):
    if value is None or isinstance(value, dict):
        return [(".*", value)]
    if not isinstance(value, list) or not value or any(not isinstance(v, list) or len(v) != 2 for v in value):
        raise ValueError(f"config.optimizer.{key}={value!r} must be a dict or a list of (regex, dict) pairs")
    return value


def _options(given, defaults, what):
    for key in given:
        if key not in defaults:
            raise ValueError(f"unknown {what}: {key!r}; there are {', '.join(defaults)}")
    return {**defaults, **given}


def _number(config, key, default):
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"config.optimizer.{key}={value!r} must be a finite number of at least 0")
    return float(value)


def _plain(value):
    """ConfigDicts, also those inside lists, as plain dicts."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else value
