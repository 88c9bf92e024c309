"""Patterns with braces, as shells write them: "{00..12}" counts, "{train,test}" lists."""
import re

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 10_000_000  # names that one pattern may stand for


def braces(pattern):
    """The list of names that a pattern stands for, in order; leading zeros are kept.

    Raises:
      ValueError: braces that can't be read, or that stand for more than ten million names.
    """
    names, rest = [""], pattern
    while match := _BRACE.search(rest):
        parts = _parts(match[1], pattern)
        if len(parts) * len(names) > _MOST:
            raise ValueError(f"{pattern!r} stands for more than {_MOST:,} names")
        names = [name + _plain(rest[:match.start()], pattern) + part for name in names for part in parts]
        rest = rest[match.end():]
    return [name + _plain(rest, pattern) for name in names]


def _plain(text, pattern):
    if "{" in text or "}" in text:
        raise ValueError(f"the braces of {pattern!r} can't be read; they are like {{00000..00331}} or {{train,test}}, not nested")
    return text


def _parts(inside, pattern):
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        if "," in inside:
            return inside.split(",")
        raise ValueError(f"{{{inside}}} in {pattern!r} is neither a range such as {{00000..00331}} nor a list such as {{a,b}}")
    first, last = int(counted[1]), int(counted[2])
    padded = any(re.match(r"-?0\d", number) for number in counted.groups())
    width = max(map(len, counted.groups())) if padded else 0
    step = 1 if last >= first else -1
    if abs(last - first) >= _MOST:
        raise ValueError(f"{pattern!r} stands for more than {_MOST:,} names")
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
