"""Durations in any unit: `200`, "200 steps", "3 epochs", "1e6 examples", "10 percent"."""
import math
import re

_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "percent": "percent", "%": "percent"}


def steps(value, *, batch_size, examples, total_steps=None, name="duration"):
    """Number of optimizer steps in `value`, at least 1 for a positive value (rounded to the nearest step).

    Args:
      value: int steps, or a string "<number> <unit>" with unit steps, epochs, examples or percent; None and 0 give 0.
      batch_size: global examples per step.
      examples: examples in one epoch.
      total_steps: what 100 percent means; without it a percentage is refused.
      name: the config key, for the error message.

    Raises:
      ValueError: the value can't be read, is negative, or is a percentage with nothing to be a share of.
    """
    if value is None or value == "":
        return 0
    if not readable(value):
        raise ValueError(f"{name}={value!r} is not a duration: write 200, '3 epochs', '1e6 examples' or '10 percent'")
    number, unit = _parts(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}={value!r} must be a finite duration of at least 0")
    if unit == "percent" and total_steps is None:
        raise ValueError(f"{name}={value!r}: a percentage has nothing to be a share of here; use steps, epochs or examples")
    scale = {"steps": 1.0, "epochs": examples / batch_size, "examples": 1.0 / batch_size,
             "percent": (total_steps or 0) / 100.0}[unit]
    return max(1, round(number * scale)) if number > 0 else 0


def readable(value) -> bool:
    """Whether a value says a number and a unit, as those that `steps` takes do."""
    if value is None or value == "":
        return True
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and _parts(value) is not None


def _parts(value):
    """(number, unit) of a duration, or None."""
    if not isinstance(value, str):
        return float(value), "steps"
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*", value)
    unit = _UNITS.get(match[2].lower().rstrip("s") or "step") if match else None
    try:
        return (float(match[1]), unit) if unit else None
    except ValueError:   # "1.2.3"
        return None
