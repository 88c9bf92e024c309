"""Sets a key of a config, whether the config lists it or not, by what the named modules declare (see `sections`)."""
from collections.abc import Callable
from typing import Any

from mcd_jax.config import base, keys, method_section, sections
from mcd_jax.config.keys import NEEDED

_NAMED = ("source", "objective", "optimizer", "schedule", "benchmark", "tower")   # of these, another name is another section


def put(value: Any, kind, parts: list[str], make: Callable[[Any, str], Any], where: str = "") -> Any:
    """`value` with what stands at `parts` replaced by what `make(type, dotted key)` gives; nothing is changed in place.

    Args:
      value: of plain dicts and tuples. kind: its type. parts: of the dotted key below it. where: the dotted key of `value`.

    Raises:
      ValueError: no such key, or what `make` raises.
    """
    if not parts:
        return make(kind, where)
    pairs, section = sections.pairs_of(kind), sections.section_of(kind)
    if pairs:
        return _put_pair(value, pairs, parts, make, where)
    if section is None or (sections.is_list(value) and parts[0].isdigit()):
        if sections.is_list(value) and parts[0].isdigit():
            return _put_item(value, "any", parts, make, where)
        raise ValueError(f"config.{where}.{'.'.join(parts)}: config.{where} is {keys.said(kind)} and has no keys")
    old = dict(value) if hasattr(value, "items") else {}
    known = sections.found(section, old, where)
    name, rest = first(parts, old)
    own = sections.type_of(name, known, where, old)
    if name not in old and rest and name not in known.keys and sections.section_of(own):
        raise ValueError(f"unknown key config.{where}.{name}; {sections.suggestion(name, list(old), where)}" if old else
                         f"config.{where} has no {name!r} yet: give all of it, as in --config.{where}.{name}='dict(...)'")
    before = old.get(name, known.keys[name].default if name in known.keys and known.keys[name].default is not NEEDED else None)
    new = put(before, own, rest, make, f"{where}.{name}" if where else name)
    if name == "name" and not rest and str(section).partition("/")[0] in _NAMED and new != old.get("name"):
        try:
            return complete({"name": new}, section)
        except ValueError as error:
            raise ValueError(f"config.{where}.name: {error}") from error
    return {**old, name: new}


def given(text: str | None, kind, where: str) -> Any:
    """The value that a text gives a key of a type; None, a flag without a text, is True where that can be.

    Raises:
      ValueError: it doesn't fit; the sentence names the key.
    """
    pairs, section = sections.pairs_of(kind), sections.section_of(kind)
    plain = "any" if pairs else " | ".join("dict" if part == section else part for part in sections.kinds(kind))
    if isinstance(section, dict):
        plain = "dict"
    if text is None and plain != "bool":
        raise ValueError(f"--config.{where} has no value: write --config.{where}=..., {keys.said(plain)}")
    try:
        value = keys.read(plain, "true" if text is None else text)
    except ValueError as error:
        reason = f": {error}" if {"dict", "tuple", "any"} & set(plain.split(" | ")) else ""
        words = "a dict, as in dict(name=...)" if section else keys.said(plain)
        raise ValueError(f"config.{where}={text!r} must be {words}{reason}") from error
    value = complete(value, section) if section and hasattr(value, "items") else value
    sections.check(value, kind, where)
    return value


def complete(value: dict, section) -> dict:
    """A section that was given as a whole, with the defaults of what it leaves out where all configs have it."""
    if isinstance(section, dict):
        return {**base.values(section), **{name: complete(part, section[name].type) if name in section and hasattr(part, "items")
                                           and sections.section_of(section[name].type) else part for name, part in value.items()}}
    if section == "objective":
        return method_section.completed(value)
    return value


def first(parts: list[str], old) -> tuple[str, list[str]]:
    """(the first name of a dotted key, the other parts): a name that the section has may have dots itself."""
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in old:
            return ".".join(parts[:length]), parts[length:]
    return parts[0], parts[1:]


def _put_pair(value, kind, parts, make, where):
    """A key inside (regex, value) pairs: `0.1.b2` and `0.b2` are of the first pair's value, and so is `b2` where there is one."""
    if not sections.is_list(value):
        is_section = value is None or hasattr(value, "items")
        return put(value, kind, parts[1:] if is_section and parts[0] == "0" else parts, make, where)
    number, rest = (int(parts[0]), parts[1:]) if parts[0].isdigit() else (0, parts)
    if not parts[0].isdigit() and len(value) != 1:
        raise ValueError(f"config.{where}.{'.'.join(parts)}: there are {len(value)} (regex, value) pairs: say which, as in "
                         f"config.{where}.0.{'.'.join(parts)}" + f"; they are of {', '.join(repr(pair[0]) for pair in value)}")
    if number >= len(value):
        raise ValueError(f"config.{where}.{number}: there are {len(value)} (regex, value) pairs, counted from 0; a new one is "
                         f"given with all of them, as in --config.{where}='((\".*\", ...),)'")
    regex, own = value[number]
    if rest[:1] == ["0"] and len(rest) == 1:
        return (*value[:number], (make("str", f"{where}.{number}.0"), own), *value[number + 1:])
    rest = rest[1:] if rest[:1] == ["1"] else rest
    return (*value[:number], (regex, put(own, kind, rest, make, f"{where}.{number}")), *value[number + 1:])


def _put_item(value, kind, parts, make, where):
    """A place of a tuple, counted from 0."""
    number = int(parts[0])
    if number >= len(value):
        raise ValueError(f"config.{where}.{number}: {tuple(value)!r} has {len(value)} places, counted from 0")
    return (*value[:number], put(value[number], kind, parts[1:], make, f"{where}.{number}"), *value[number + 1:])
