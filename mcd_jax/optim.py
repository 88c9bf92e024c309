"""The optimizer from `config.optimizer`: regex lists over parameter paths decide who is updated how.

Keys, all optional. Lists are (regex, value) pairs: the first whole match wins, all parameters must match.
  optimizers       pairs (or one dict for all) with dict(name=, ...) as in OPTIMIZERS below
  lr               peak learning rate, of every optimizer
  schedule         pairs (or one dict) with dict(name="cosine"|"linear"|"constant"|"rsqrt"|"stairs"|"bert_cosine", warmup=duration,
                   start=0., final=0.: shares of lr), or None: frozen, which never moves and has no moments. "stairs" is
                   cosine in stairs of `every` (a duration, say "1 epoch"), of which `warmup` rise; its last stair is at
                   `final` and so wasted if that is 0, unless fix_last_epoch=True spreads the cosine over one stair more
  lr_mults         pairs of regex and factor on the learning rate, decay included; empty: 1 everywhere
  weight_decay     decoupled (AdamW): lr * weight_decay * parameter is subtracted, whatever the optimizer
  decay_mask       pairs of regex and True, False or a factor; empty: tensors of 2 or more dimensions, but no
                   bias, norm or logit_*
  clip_norm        largest gradient norm; None or 0: any
  clip_per         "global": the norm over all trained parameters; "tensor": of each one
  max_logit_scale  every `logit_scale` stays in [0, this] after the update (SLIP: ln 100); None: free
  max_skipped      read by the trainer: it stops after this many non-finite updates in a row
"""
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mcd_jax import duration, rules

KEYS = ("optimizers", "lr", "schedule", "lr_mults", "weight_decay", "decay_mask", "clip_norm", "clip_per",
        "max_logit_scale", "max_skipped")
OPTIMIZERS = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "mu_dtype": "float32"},
    "lion": {"b1": 0.9, "b2": 0.99, "mu_dtype": "float32"},
    "sgd": {"momentum": 0.0, "nesterov": False, "l2": 0.0},
    "bertadam": {"b1": 0.9, "b2": 0.98, "eps": 1e-6},
    "adafactor": {"decay_rate": 0.8, "min_dim_size_to_factor": 128, "clipping_threshold": 1.0, "momentum": 0.0,
                      "multiply_by_parameter_scale": False},
}
SCHEDULES = ("cosine", "linear", "constant", "rsqrt", "stairs", "bert_cosine")
_SCHEDULE_OPTIONS = {"name": "cosine", "warmup": 0, "start": 0.0, "final": 0.0, "every": 0, "fix_last_epoch": False}
_UNDECAYED = re.compile(r"(.*/)?(bias|scale|gamma|logit_[^/]*)|(.*/)?[^/]*norm[^/]*/[^/]*")
_FROZEN = "frozen"


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
        if key not in KEYS:
            raise ValueError(f"unknown key config.optimizer.{key}: there are {', '.join(KEYS)}")
    lr, decay = _number(config, "lr", 1e-3), _number(config, "weight_decay", 0.0)
    optimizers = _pairs(config.get("optimizers", {"name": "adamw"}), "optimizers")
    schedules = _pairs(config.get("schedule", {"name": "constant"}), "schedule")
    fns = [_schedule(spec, lr, total_steps, batch_size, examples) for _, spec in schedules]
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
        _cap(config.get("max_logit_scale"), trained))
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


def _cap(highest, trained):
    if highest is None:
        return optax.identity()
    capped = {path for path in trained if path.split("/")[-1] == "logit_scale"}
    return optax.stateless(lambda updates, params: _map(
        lambda path, u, p: jnp.clip(p + u, 0.0, highest) - p if path in capped else u, updates, params))


def _scaler(spec):
    """The optax transformation that `spec` names, without learning rate, sign and weight decay."""
    name = spec.get("name") if isinstance(spec, dict) else None
    if name not in OPTIMIZERS:
        raise ValueError(f"config.optimizer.optimizers: {spec!r} needs a name out of {', '.join(OPTIMIZERS)}")
    o = _options({k: v for k, v in spec.items() if k != "name"}, OPTIMIZERS[name], f"option of {name}")
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
            decay_rate=o["decay_rate"], min_dim_size_to_factor=o["min_dim_size_to_factor"]),
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


def _schedule(spec, lr, total_steps, batch_size, examples):
    """Learning rate () float32 as a function of the updates applied, or None where the spec is None.

    Update s < warmup uses the share (s + 1) / warmup of the way from start * lr to lr, so none is wasted.
    cosine and linear reach final * lr at total_steps; rsqrt is lr * sqrt(warmup / s), at least final * lr. bert_cosine is
    pytorch_pretrained_bert's warmup_cosine: s / warmup before (so the first update is 0), then (1 + cos(pi s / total_steps)) / 2,
    which begins below lr.
    """
    if spec is None:
        return None
    if not isinstance(spec, dict):
        raise ValueError(f"config.optimizer.schedule: {spec!r} is neither a dict(name=...) nor None (frozen)")
    o = _options(spec, _SCHEDULE_OPTIONS, "option of config.optimizer.schedule")
    if o["name"] not in SCHEDULES:
        raise ValueError(f"config.optimizer.schedule: name={o['name']!r} is not in {', '.join(SCHEDULES)}")
    warmup = duration.steps(o["warmup"], total_steps=total_steps, batch_size=batch_size, examples=examples,
                            name="config.optimizer.schedule warmup")
    if warmup > total_steps:
        raise ValueError(f"config.optimizer.schedule: warmup={o['warmup']!r} is {warmup} steps, "
                         f"longer than the run of {total_steps}")

    if o["name"] == "stairs":
        every = duration.steps(o["every"], total_steps=total_steps, batch_size=batch_size, examples=examples,
                               name="config.optimizer.schedule every")
        return _stairs(lr, o, total_steps, warmup, every)
    if o["every"] or o["fix_last_epoch"]:
        raise ValueError(f"config.optimizer.schedule: every and fix_last_epoch belong to name='stairs', not {o['name']!r}")

    def fn(count):
        s = jnp.asarray(count, jnp.float32)
        done = jnp.clip((s - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        final, first = o["final"], max(warmup, 1)
        share = {"cosine": final + (1.0 - final) * (0.5 + 0.5 * jnp.cos(jnp.pi * done)),
                 "linear": final + (1.0 - final) * (1.0 - done),
                 "constant": jnp.ones_like(s),
                 "rsqrt": jnp.maximum(jnp.sqrt(first / jnp.maximum(s, first)), final),
                 "bert_cosine": 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(s / total_steps, 1.0))}[o["name"]]
        rising = o["start"] + (1.0 - o["start"]) * (s + 1.0) / first if o["name"] != "bert_cosine" else s / first
        return lr * jnp.where(s < warmup, rising, share)
    return fn


def _stairs(lr, o, total_steps, warmup, every):
    """A learning rate that stays the same for a stair of `every` steps: stair e of w that rise and n in all is at (e + 1) / w, then
    at (1 + cos(pi (e - w + 1) / (n - w))) / 2. With fix_last_epoch, n - w + 1 in place of n - w."""
    if every < 1 or every > total_steps:
        raise ValueError(f"config.optimizer.schedule: name='stairs' needs every=<duration> within the run of {total_steps} steps, "
                         f"such as '1 epoch', not {o['every']!r}")
    count = round(total_steps / every)
    rising = round(warmup / every)
    if rising >= count:
        raise ValueError(f"config.optimizer.schedule: warmup={o['warmup']!r} leaves none of the {count} stairs")

    def fn(step):
        e = jnp.minimum(jnp.floor(jnp.asarray(step, jnp.float32) * (count / total_steps) + 1e-4), count - 1)
        done = (e - rising + 1) / (count - rising + bool(o["fix_last_epoch"]))
        share = o["final"] + (1.0 - o["final"]) * (0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return lr * jnp.where(e < rising, o["start"] + (1.0 - o["start"]) * (e + 1.0) / max(rising, 1), share)
    return fn


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
