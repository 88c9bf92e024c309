"""Sections of a config whose keys depend on what they name: the keys of a tower, a source, a method, an evaluation.

`inside` asks the named module what it declares. `check` walks a config by it and refuses what isn't declared; `settled` gives
values the form of their type. `change` sets keys.
"""
from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

from mcd_jax import plugins
from mcd_jax.config import base, keys, method_section
from mcd_jax.config.keys import NEEDED, Key

NOUNS = {"source": "source", "objective": "method", "model": "tower", "eval": "evaluation", "benchmark": "benchmark"}

_OWN = {"eval": "one of your own is a <name>_eval.py in a folder of mcd_jax/methods, or is named by its dotted path in a file of "
                "`mcd-jax evaluate --evals`"}   # names in a config have no dots


class Inside(NamedTuple):
    """What a section holds."""
    keys: dict[str, Key]                          # the declared ones
    other: str | Callable[[str], str] | None      # type of any other name, or a function of the name; None: there are no others
    what: str                                     # whose keys they are, for messages: "the webdataset source"
    names: Callable[[], list[str]] | None = None  # where nothing is named yet: the names that there are


def module(kind: str, name: str) -> Any:
    """The plugin module; a ValueError names the nearest where there is none."""
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no name of a {NOUNS[kind]}: a name is a string")
    try:
        return _loaded(kind, name)
    except ValueError as error:
        names = plugins.known(kind)
        near = keys.near(name, names)
        raise ValueError(f"there is no {NOUNS[kind]} {name!r}; " + (f"did you mean {near!r}?" if near else
                         f"there are {', '.join(names)}; {_OWN.get(kind, 'a module of your own is named by its dotted path')}")
                         ) from error


@functools.cache
def _loaded(kind, name):
    return plugins.load(kind, name)


def kinds(kind) -> list:
    """The parts of a type: "str | map of int | None" is not split behind "of"."""
    if isinstance(kind, dict):
        return [kind]
    parts, rest = [], kind
    while rest:
        if rest.startswith(("map of ", "pairs of ")):
            return [*parts, rest]
        part, _, rest = rest.partition(" | ")
        parts.append(part)
    return parts


def section_of(kind):
    """The part of a type that is a section, or None."""
    return next((part for part in kinds(kind) if isinstance(part, dict) or part.startswith("map of ") or part == "dict"
                 or part.partition("/")[0] in _INSIDE), None)


def pairs_of(kind):
    """X of a type "pairs of X", or None."""
    return kind[len("pairs of "):] if isinstance(kind, str) and kind.startswith("pairs of ") else None


def inside(section, value) -> Inside:
    """What the section of a config with this `value` may hold.

    Raises:
      ValueError: it names a module that there is not.
    """
    if isinstance(section, dict):
        return Inside(section, None, "this section")
    if section == "dict":
        return Inside({}, "any", "this section")
    if section.startswith("map of "):
        return Inside({}, section[len("map of "):], "this section")
    return _INSIDE[section.partition("/")[0]](value, section.partition("/")[2])


def _source(value, _):
    name = {"name": Key("str", NEEDED, "which kind of source: a module of data/sources, or a dotted path")}
    if not value.get("name"):
        return Inside(name, None, "a source without a name", lambda: plugins.known("source"))
    return _declared(name, module("source", value["name"]), f"the {value['name']} source")


def _benchmark(value, _):
    name = {"name": Key("str", NEEDED, "which benchmark: a module of evals/benchmarks, or a dotted path")}
    if not value.get("name"):
        return Inside(name, None, "a benchmark without a name", lambda: plugins.known("benchmark"))
    return _declared(name, module("benchmark", value["name"]), f"the {value['name']} benchmark")


def _declared(name, owner, what):
    open_ended = "any" if getattr(owner, "KEYS", None) is None else None   # it may check its settings by itself
    return Inside({**name, **declared_by(owner)}, open_ended, what)


def declared_by(owner: Any) -> dict[str, Key]:
    """The KEYS of a module, which may also be names alone."""
    declared = getattr(owner, "KEYS", None) or {}
    return declared if isinstance(declared, dict) else {key: Key("any", None, "") for key in declared if key != "name"}


def _model(value, _):
    own = ("shared",) if "shared" in value else ("image", "text", "shared")
    return Inside({**{kind: Key(f"tower/{kind}", {}, base.TOWERS[kind]) for kind in own}, **base.MODEL}, None, "this section")


def _tower(value, kind):
    known = {"proj": Key("str", "linear", "the projection to the embedding: linear | biased | none")}
    if kind != "shared":
        known = {"name": Key("str", NEEDED, f"which {kind} tower: a module of models/, or a dotted path"), **known}
        if not value.get("name"):
            return Inside(known, None, "a tower without a name", lambda: towers(kind))
    name = value["name"] if kind != "shared" else "shared"
    return of_tower(known, module("model", name), f"the {name} tower")


def towers(kind: str) -> list[str]:
    """The names of the towers of a kind, "image" or "text": the modules whose `make` is given what the data decides for it."""
    given = {"image": "image_size", "text": "vocab_size"}[kind]
    found = {name: inspect.signature(module("model", name).make).parameters.values() for name in plugins.known("model")}
    return [name for name, own in found.items()
            if name != "shared" and any(p.name == given or p.kind == p.VAR_KEYWORD for p in own)]


def of_tower(known: dict, owner, what: str) -> Inside:
    """The keys of a tower: the fields of the module's TOWER that its `make` isn't given by the job."""
    tower = getattr(owner, "TOWER", None)
    if tower is None:
        return Inside(known, "any", what)
    given = tuple(p.name for p in inspect.signature(owner.make).parameters.values() if p.kind == p.KEYWORD_ONLY)
    common = module("model", "transformer").MEANINGS
    fields = {key: own._replace(meaning=own.meaning or common.get(key, "")) for key, own in keys.of_fields(tower, given).items()}
    if sizes := getattr(owner, "VARIANTS", None):
        meaning = f"a named size, whose options those beside it replace: {', '.join(sizes)}"
        known = {**known, "variant": Key("str | None", "", meaning)}
    if "experts" in fields:
        fields["experts"] = Key("experts | None", None, fields["experts"].meaning)
    return Inside({**known, **fields}, None, what)


def _experts(value, _):
    return Inside(keys.of_fields(module("model", "moe").Options), None, "a tower's experts")


def _optimizer(value, _):
    name = {"name": Key("str", NEEDED, f"one of {', '.join(base.OPTIMIZERS)}")}
    if str(value.get("name")) not in base.OPTIMIZERS:
        near = keys.near(str(value.get("name", "")), base.OPTIMIZERS)
        raise ValueError(f"there is no optimizer {value.get('name', '')!r}; "
                         + (f"did you mean {near!r}?" if near else f"there are {', '.join(base.OPTIMIZERS)}"))
    return Inside({**name, **base.OPTIMIZERS[value["name"]]}, None, f"the optimizer {value['name']}")


def _schedule(value, _):
    return Inside(base.SCHEDULE, None, "a schedule")


def _objective(value, _):
    return Inside(*method_section.declared(value))


def _evals(value, _):
    def of(name):
        module("eval", name)
        return f"map of eval/{name} | None"
    return Inside({}, of, "config.evals")


def _eval(value, name):
    return _declared(base.EVAL, module("eval", name), f"the evaluation {name}")


_INSIDE = {"source": _source, "benchmark": _benchmark, "model": _model, "tower": _tower, "experts": _experts,
           "optimizer": _optimizer, "schedule": _schedule, "objective": _objective, "evals": _evals, "eval": _eval}


# ---- checks --------------------------------------------------------------------------------------------------------------------


def check(value: Any, kind, where: str = "") -> None:
    """Refuses what isn't declared, at any depth: unknown keys, values of another type, names that no module has.

    Args:
      value: a config, a section or a value of one. kind: its type. where: its dotted key, "" for the whole config.

    Raises:
      ValueError: one sentence with the key and what would be right.
    """
    pairs, section = pairs_of(kind), section_of(kind)
    if pairs and (is_list(value) or "schedule" not in pairs or value is not None):
        for number, entry in enumerate(value) if is_list(value) else ():
            if not is_list(entry) or len(entry) != 2 or not isinstance(entry[0], str):
                raise ValueError(f"config.{where}: {entry!r} is not a (regex, value) pair")
            _check_entry(entry[1], pairs, f"{where}.{number}")
        if not is_list(value):
            _check_entry(value, pairs, where)
    elif section and hasattr(value, "items"):
        known = found(section, value, where) if value else None
        for name, part in value.items():
            check(part, type_of(str(name), known, where, value), f"{where}.{name}" if where else str(name))
    elif not pairs:
        plain = [part for part in kinds(kind) if part != section or section == "dict"]
        if not any(keys.fits(part, value) for part in plain):
            words = [keys.said(part) for part in plain] + ([f"a dict, as in {where}=dict(...)"] if section else [])
            if not keys.finite(value):
                words = ["a finite number" if type(value) is float else "made of finite numbers"]
                words += ["None"] if any("None" in str(part) for part in plain) else []
            must = f"is not {words[0]}" if plain == ["duration"] else f"must be {' or '.join(words)}"
            raise ValueError(f"config.{where}={value!r} {must}")


def _check_entry(value, kind, where):
    """One value of pairs; a schedule may be None."""
    if value is not None or kind != "schedule":
        check(value, kind, where)


def found(section, value, where: str) -> Inside:
    """`inside` of the section at `where`; a ValueError names the key that names a module that there is not."""
    try:
        return inside(section, value)
    except ValueError as error:
        at = where if str(section).startswith(("eval/", "map of eval")) or section == "evals" else f"{where}.name"
        raise ValueError(f"config.{at}: {error}") from error


def type_of(name: str, known: Inside, where: str, value=None) -> Any:
    """The type of the key `name` of a section.

    Raises:
      ValueError: there is no such key; the sentence has the nearest, here or elsewhere in the config.
    """
    if name in known.keys:
        return known.keys[name].type
    if known.other is not None:
        try:
            return known.other(name) if callable(known.other) else known.other
        except ValueError as error:
            raise ValueError(f"config.{where}.{name}: {error}") from error
    full = f"config.{where}.{name}" if where else f"config.{name}"
    if known.names:
        raise ValueError(f"unknown key {full} of {known.what}: set config.{where}.name first, one of {', '.join(known.names())}")
    raise ValueError(f"unknown key {full}{f' of {known.what}' if known.what != 'this section' else ''}; "
                     + suggestion(name, list(known.keys), where))


def suggestion(name: str, known: list, where: str = "") -> str:
    """"did you mean ...?" or the keys that there are."""
    above = f"config.{where}." if where else "config."
    if near := keys.near(name, known):
        return f"did you mean {above}{near}?"
    if where == "" or name not in known:
        for path in elsewhere(name):
            return f"did you mean config.{path}?"
    return f"there are {', '.join(map(str, known))}"


def elsewhere(name: str) -> list[str]:
    """Keys of the base sections that end in `name`, or nearly so."""
    paths = [f"{section}.{key}" for section, own in base.BASE.items() if isinstance(own.type, dict) for key in own.type]
    ends = {path.rpartition(".")[2]: path for path in [*reversed(paths), *base.BASE]}
    near = keys.near(name, ends)
    return [ends[near]] if near else []


# ---- values as the rest of the code wants them ---------------------------------------------------------------------------------


def settled(value: Any, kind, default: Any = NEEDED) -> Any:
    """A checked value in the form of its type: lists as tuples, whole numbers as floats, None as the default that says nothing."""
    pairs, section = pairs_of(kind), section_of(kind)
    if value is None and default in ("", (), 0) and "None" in kinds(kind):
        return default
    if pairs and is_list(value):
        return tuple((regex, settled(entry, pairs)) for regex, entry in value)
    if pairs and value is not None:
        return settled(value, pairs)
    if section and hasattr(value, "items"):
        known = inside(section, value)
        return {name: settled(part, type_of(str(name), known, ""),
                              known.keys[name].default if name in known.keys else NEEDED) for name, part in value.items()}
    if kind == "float":
        return float(value)
    return _tuples(value) if "tuple" in kinds(kind) else value


def _tuples(value):
    return tuple(map(_tuples, value)) if is_list(value) else value


def is_list(value: Any) -> bool:
    """Whether a value is a tuple, or what JSON makes of one."""
    return isinstance(value, (tuple, list))
