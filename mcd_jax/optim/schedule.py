"""Learning rates by `config.optimizer.schedule`: dict(name=..., ...), where only the name is needed.

The keys are `config.base.SCHEDULE`. An update s < warmup uses the share (s + 1) / warmup of the way from start * lr to lr, so none
is wasted.
"""
import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax import duration
from mcd_jax.config.base import SCHEDULE

NAMES = ("cosine", "linear", "constant", "rsqrt", "stairs", "bert_cosine")
OPTIONS = {name: key.default for name, key in SCHEDULE.items()}
_OF = {"hold": ("cosine", "linear"), "warmup_hold": ("cosine", "linear"), "every": ("stairs",), "fix_last_epoch": ("stairs",)}
_KEY = "config.optimizer.schedule"


def make(spec, lr, total_steps, batch_size, examples):
    """Learning rate () float32 as a function of the updates applied, or None where the spec is None (frozen).

    Args:
      spec: see the module. lr: the peak. total_steps, batch_size, examples: of the run, of a step and of an epoch, for durations.

    Raises:
      ValueError: an unknown name or option, an option of another name, or a duration that doesn't fit the run.
    """
    if spec is None:
        return None
    if not isinstance(spec, dict):
        raise ValueError(f"{_KEY}: {spec!r} is neither a dict(name=...) nor None (frozen)")
    for key in spec:
        config_lib.refuse_unknown(key, OPTIONS, f"option of {_KEY}")
    o = {**OPTIONS, **spec}
    if o["name"] not in NAMES:
        raise ValueError(f"{_KEY}: name={o['name']!r} is not in {', '.join(NAMES)}")
    for key, names in _OF.items():
        if o[key] and o["name"] not in names:
            raise ValueError(f"{_KEY}: {key} belongs to name={' or '.join(map(repr, names))}, not {o['name']!r}")

    def steps(key):
        return duration.steps(o[key], total_steps=total_steps, batch_size=batch_size, examples=examples, name=f"{_KEY} {key}")
    warmup = steps("warmup")
    if warmup > total_steps:
        raise ValueError(f"{_KEY}: warmup={o['warmup']!r} is {warmup} steps, longer than the run of {total_steps}")
    if o["name"] == "stairs":
        return _stairs(lr, o, total_steps, warmup, steps("every"))
    hold, warmup_hold = steps("hold"), steps("warmup_hold")
    if hold or warmup_hold:
        return _staircase(lr, o, total_steps, warmup, max(hold, 1), max(warmup_hold, 1))

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
        raise ValueError(f"{_KEY}: name='stairs' needs every=<duration> within the run of {total_steps} steps, "
                         f"such as '1 epoch', not {o['every']!r}")
    count = round(total_steps / every)
    rising = round(warmup / every)
    if rising >= count:
        raise ValueError(f"{_KEY}: warmup={o['warmup']!r} leaves none of the {count} stairs")

    def fn(step):
        e = jnp.minimum(jnp.floor(jnp.asarray(step, jnp.float32) * (count / total_steps) + 1e-4), count - 1)
        done = (e - rising + 1) / (count - rising + bool(o["fix_last_epoch"]))
        share = o["final"] + (1.0 - o["final"]) * (0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return lr * jnp.where(e < rising, o["start"] + (1.0 - o["start"]) * (e + 1.0) / max(rising, 1), share)
    return fn


def _staircase(lr, o, total_steps, warmup, hold, warmup_hold):
    """A cosine or linear rate that is constant for `hold` steps at a time, and in the warm-up for `warmup_hold`.

    Let s be the number of updates, rounded down to a multiple of what it is held for. Warm-up: start + (1 - start) * s / warmup.
    After it the decay counts from the run's first step, s / total_steps, not from the end of the warm-up. ALBEF's code steps its
    rate so: every 100 iterations in the first epoch, then every epoch.
    """
    def fn(count):
        s = jnp.asarray(count, jnp.float32)
        done = jnp.clip(jnp.floor(s / hold) * hold / total_steps, 0.0, 1.0)
        fall = 0.5 + 0.5 * jnp.cos(jnp.pi * done) if o["name"] == "cosine" else 1.0 - done
        rising = o["start"] + (1.0 - o["start"]) * jnp.floor(s / warmup_hold) * warmup_hold / max(warmup, 1)
        return lr * jnp.where(s < warmup, rising, o["final"] + (1.0 - o["final"]) * fall)
    return fn
