"""`config.objective`: the section of a method, or of several that are composed."""
from typing import Any

from ml_collections import ConfigDict

from mcd_jax import plugins
from mcd_jax.config import keys
from mcd_jax.config.keys import NEEDED, Key

COMMON = ("name", "weights", "warmup", "decay")
_MEANINGS = {"image": "batch key of the images", "text": "batch key of the texts"}   # of options, where they have no other
_NAME = Key("str | tuple", NEEDED, "the method: a module of methods/, or a dotted path; or a tuple of them, to compose")


def objective(name: str | tuple, weights=None, warmup=None, decay=None, **changes) -> ConfigDict:
    """The `config.objective` of method `name`: all of its options with their defaults, `changes` applied.

    Args:
      name: a module of `methods/`, or a dotted path; or a tuple of them, to compose. Then `changes` are one dict for each method
        that doesn't keep its defaults, by the last part of its name: `objective(("mcd", "gcl"), gcl=dict(weights=dict(gcl=0.5)))`.
      weights: term -> weight, over the method's defaults.
      warmup: term -> duration over which its weight grows linearly from zero.
      decay: term -> duration after which its weight is a half, then a third, and so on.

    Raises:
      ValueError: an option, a term or a method that isn't one.
    """
    if isinstance(name, (tuple, list)):
        return _composed(tuple(name), weights or warmup or decay, changes)
    module = find(name)
    for part in ("Options", "WEIGHTS"):
        if not hasattr(module, part):
            raise ValueError(f"the module {name} is no method: it has no {part} (docs/add_a_method.md has a whole one)")
    options = module.Options()._asdict()
    for key in changes:
        refuse_unknown(key, options, f"option of objective {name!r}")
    for key in [*(weights or {}), *(warmup or {}), *(decay or {})]:
        refuse_unknown(key, module.WEIGHTS, f"term of objective {name!r}")
    result = ConfigDict(dict(name=name, weights={t: float(w) for t, w in (module.WEIGHTS | dict(weights or {})).items()},
                             **{**options, **changes}), type_safe=False)
    for key, default, given in (("warmup", "WARMUP", warmup), ("decay", "DECAY", decay)):
        durations = {term: 0 for term in module.WEIGHTS} | dict(getattr(module, default, {})) | dict(given or {})
        result[key] = ConfigDict({term: str(value or 0) for term, value in durations.items()}, type_safe=False)
    return result


def _composed(names, common, sections):
    for name in names:
        find(name)
    shorts = [name.rpartition(".")[2] for name in names]
    if len(set(shorts)) < len(shorts) or len(shorts) < 2:
        raise ValueError(f"config.objective.name={names}: composed methods are two or more, whose last parts differ")
    if common:
        raise ValueError(f"weights and warmups belong to one of the composed methods: write {shorts[0]}=dict(weights=...)")
    for key in sections:
        refuse_unknown(key, shorts, "composed method")
    return ConfigDict(dict(name=names, **{short: objective(name, **_more(sections.get(short)))
                                          for name, short in zip(names, shorts, strict=True)}), type_safe=False)


def _more(section):
    return {key: value for key, value in (section or {}).items() if key != "name"}


def find(name: str) -> Any:
    """The module of a method; a ValueError names the nearest where there is none."""
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no name of a method: a name is a string")
    try:
        return plugins.load("objective", name)
    except ValueError as error:
        names = plugins.known("objective")
        near = keys.near(name, names)
        raise ValueError(f"there is no method {name!r}; " + (f"did you mean {near!r}?" if near else
                         f"there are {', '.join(names)}; a module of your own is named by its dotted path")) from error


def completed(section: dict) -> dict:
    """A section that may lack options and weights, with the defaults of its methods, as nested dicts.

    Raises:
      ValueError: an option, a term or a method that isn't one.
    """
    return objective(**section).to_dict() if section.get("name") else dict(section)


def methods(objective: ConfigDict) -> dict[str, ConfigDict]:
    """The section of `config.objective` that each method reads: {"": all of it} for one, {last part of its name: ...} for several.

    Raises:
      ValueError: a composed method without a section.
    """
    if isinstance(objective.name, str):
        return {"": objective}
    shorts = [name.rpartition(".")[2] for name in objective.name]
    for short in shorts:
        if not isinstance(objective.get(short), ConfigDict):
            raise ValueError(f"config.objective.{short} is missing: make the section of every method of config.objective.name="
                             f"{tuple(objective.name)} with config_lib.objective(...)")
    return {short: objective[short] for short in shorts}


def title(objective: ConfigDict) -> str:
    """The methods of a config as people read them: "mcd", "mcd + gcl"."""
    return objective.name if isinstance(objective.name, str) else " + ".join(objective.name)


def options(cls: type, mapping) -> Any:
    """An `Options` tuple of a method from `config.objective`; the keys that every method has are left out.

    Raises:
      ValueError: an unknown option, or a value of another type than the default's.
    """
    given = {k: v for k, v in mapping.items() if k not in COMMON}
    defaults = cls()._asdict()
    for key, value in given.items():
        refuse_unknown(key, defaults, f"option of objective {mapping['name']!r}")
        want = type(defaults[key])
        if (want in (bool, str) and not isinstance(value, want)) or (want is float and not isinstance(value, (int, float))):
            raise ValueError(f"config.objective.{key}={value!r} must be a {want.__name__}, as its default {defaults[key]!r} is")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def refuse_unknown(key, known, what: str) -> None:
    """Raises a ValueError that names `key` and the nearest of `known`, unless it is one of them."""
    if key not in known:
        near = keys.near(key, known)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(map(str, known))) or 'none'}"
        raise ValueError(f"unknown {what}: {key!r}; {hint}")


# ---- what it declares ----------------------------------------------------------------------------------------------------------


def declared(section) -> tuple:
    """(keys, type of other keys, whose they are, a function that gives advice), see `sections.Inside`."""
    name = section.get("name")
    if not name:
        return {"name": _NAME, **dict.fromkeys(COMMON[1:], Key("dict", {}, ""))}, None, "an objective without a name", (
            lambda: plugins.known("objective"))
    if not isinstance(name, (tuple, list)):
        return of_method(name, find(name))
    for one in name:
        find(one)
    shorts = {one.rpartition(".")[2]: one for one in name}
    return {"name": _NAME, **{short: Key("objective", None, f"the section of {one}") for short, one in shorts.items()}}, None, (
        " + ".join(name)), None


def of_method(name: str, module) -> tuple:
    """The same of one method."""
    weights = getattr(module, "WEIGHTS", None)
    if weights is None or not hasattr(module, "Options"):
        return {"name": _NAME}, "any", f"the method {name}", None

    def terms(kind, defaults, meaning):
        return Key({term: Key(kind, defaults.get(term, 0), f"of the term {term}") for term in weights}, None, meaning)
    fields = keys.of_fields(module.Options)
    return {"name": _NAME,
            "weights": terms("float", weights, "weights of the terms; a term with the weight 0 costs nothing"),
            "warmup": terms("duration", getattr(module, "WARMUP", {}), "over which a term's weight grows linearly from zero"),
            "decay": terms("duration", getattr(module, "DECAY", {}), "after which a weight is a half, then a third, and so on"),
            **{key: own._replace(meaning=own.meaning or _MEANINGS.get(key, "")) for key, own in fields.items()},
            }, None, f"the method {name}", None
