"""Configs: every key with its default (`base`), what a config may hold (`sections`), how a command line sets it (`overrides`).

A file in `configs/` starts from `default()` and changes what it needs. What is wrong is said in one sentence with the nearest right
key, before any data is read: keys that nothing declares at any depth, values of a wrong type, names of modules that there are not.
Durations ("3 epochs", "10 percent", "200 steps", "1e6 examples" or plain steps) are read by `duration.steps`.

    mcd-jax config [--config=NAME] [KEY]      explains the keys, see `explain`
"""
import json
import pathlib
import re

from ml_collections import ConfigDict

from mcd_jax.config import overrides, sections
from mcd_jax.config.base import BASE, default, values
from mcd_jax.config.method_section import completed, methods, objective, options, refuse_unknown, title
from mcd_jax.run import atomic, small_files

FORMER_OPTIONS = {"form": "implementation", "keep": "keep_share"}   # of methods, in stored configs
# of evaluations: what these keys stood for in stored configs that lack them; resolved configs have them, with today's defaults
FORMER_DEFAULTS = {"probe": {"features": "image_raw"}}

__all__ = ["check", "check_metric", "default", "from_file", "methods", "objective", "of_command", "options", "read",
           "refuse_unknown", "resolved", "save", "title"]


def check(config: ConfigDict) -> None:
    """Refuses, with a sentence, what can be seen to be wrong before any data is read.

    Raises:
      ValueError: an unknown key, or a value of another type or outside its range.
    """
    for key in BASE:
        if key not in config and key not in ("init_copies", "init_locked"):
            raise ValueError(f"config.{key} is missing: start from mcd_jax.config.default(), which has every key")
    sections.check(config, BASE)
    for key in ("batch_size", "microbatches", "log_every"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]!r} must be a whole number of at least 1")
    if config.batch_size == 1:
        raise ValueError("config.batch_size=1: with one pair there is nothing to tell it from, and the loss is 0; take at least 2")
    if config.batch_size % config.microbatches:
        raise ValueError(f"config.batch_size={config.batch_size} is not a multiple of config.microbatches={config.microbatches}")
    if config.group_size and config.batch_size % config.group_size:
        raise ValueError(f"config.batch_size={config.batch_size} is not a multiple of config.group_size={config.group_size}")
    if not 0 <= config.seed < 2 ** 32:   # JAX's keys take no more: 2**32 would be 0
        raise ValueError(f"config.seed={config.seed} must lie from 0 to {2 ** 32 - 1}")
    if not 0 <= config.ema < 1:
        raise ValueError(f"config.ema={config.ema} must lie in [0, 1)")
    _check_starts(config)
    if not config.objective.name:
        raise ValueError("config.objective.name is empty: name a module of mcd_jax/methods or your own dotted path")
    if not config.data.views:
        raise ValueError("config.data.views is empty: give at least one batch key with its pipe string")


def _check_starts(config):
    """What config.init_fresh, init_copies and init_locked say, as far as the config alone can tell."""
    for regex in config.init_fresh or ():
        try:
            re.compile(regex)
        except (re.error, TypeError) as error:
            raise ValueError(f"config.init_fresh: {regex!r} is not a regular expression: {error}") from error
    for pair in config.get("init_copies") or ():
        try:
            regex, other = pair
            re.sub(regex, other, "")
        except (re.error, TypeError, ValueError) as error:
            raise ValueError(f"config.init_copies: {pair!r} is not a pair of a regular expression and what replaces it, such as "
                             f"('decoder/(.*)', r'fusion/\\1'): {error}") from error
        if not config.init_from:
            raise ValueError(f"config.init_copies: {pair!r} copies parameters of config.init_from, which is empty")
    for kind, folder in config.get("init_locked", {}).items():
        if folder and kind not in config.model.get("locked", ()):
            raise ValueError(f"config.init_locked.{kind}={folder!r}, but config.model.locked={config.model.get('locked', ())!r} "
                             f"does not lock the {kind} tower: add {kind!r} to it, or leave the key empty")


def check_metric(metric: str | None, evals, where: str) -> None:
    """Refuses the name of a figure, "module/instance/...", of an evaluation that the config doesn't have.

    Args:
      metric: "" or None for none. evals: config.evals. where: what gives it, for the sentence.

    Raises:
      ValueError: with the nearest evaluation.
    """
    metric = (metric or "").removeprefix("-")
    known = {f"{module}/{name}": (module, settings)
             for module, own in (evals or {}).items() for name, settings in (own or {}).items()
             if settings is not None}
    if not metric:
        return
    name = next((name for name in known if metric.startswith(f"{name}/")), None)
    if name is None:
        refuse_unknown("/".join(metric.split("/")[:2]), known, f"evaluation in {where}={metric}")
        raise ValueError(f"{where}={metric} names an evaluation but none of its figures: add one, as in {metric}/...")
    figures = getattr(sections.module("eval", known[name][0]), "figures_of", None)
    if figures:
        refuse_unknown(metric, [f"{name}/{figure}" for figure in figures(known[name][1])], f"figure in {where}")


def resolved(config: ConfigDict) -> ConfigDict:
    """A config that is checked and complete: lists as tuples, methods with all of their options. The given one stays as it is.

    Raises:
      ValueError: what `check` refuses.
    """
    config = _complete(config)
    check(config)
    config = ConfigDict(sections.settled(config.to_dict(), BASE), type_safe=False)
    for module, former in FORMER_DEFAULTS.items():
        declared = sections.module("eval", module).KEYS
        _fill(config, module, {key: declared[key].default for key in former})
    return config


def _fill(config, module, defaults):
    """Gives the instances of an evaluation the keys that they lack."""
    for settings in ((config.get("evals") or {}).get(module) or {}).values():
        for key, value in defaults.items():
            if settings is not None and key not in settings:
                settings[key] = value


def _complete(config):
    """A config whose method has weights, where a file or a command line gave its name alone."""
    section = config.get("objective")
    if not hasattr(section, "items") or not section.get("name"):
        return config
    names = section["name"] if isinstance(section["name"], (tuple, list)) else (section["name"],)
    if "weights" in section or (len(names) > 1 and all(str(name).rpartition(".")[2] in section for name in names)):
        return config
    plain = config.to_dict()
    return ConfigDict({**plain, "objective": completed(plain["objective"])}, type_safe=False)


def save(config: ConfigDict, path) -> None:
    """Writes the resolved config as JSON, atomically."""
    atomic.write_text(path, json.dumps(config.to_dict(), indent=2, default=str) + "\n")


def read(path) -> ConfigDict:
    """The ConfigDict that `save` wrote; keys that the run's version did not have yet get their defaults.

    Raises:
      FileNotFoundError: with the advice to train first. ValueError: the file isn't what `save` writes.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is this the --workdir of a run that `mcd-jax train` started?")
    stored = small_files.read(path)
    if not is_of_run(stored):
        raise ValueError(f"{path} is not of a run: it has neither model nor objective (an exported model's, say, comes back by "
                         "`mcd-jax convert import`)")
    for key, value in values(BASE).items():
        if key in stored and type(value) in (dict, int) and type(stored[key]) is not type(value):
            needed = "a section" if isinstance(value, dict) else "a whole number"
            raise ValueError(f"{path} has {key}={stored[key]!r} where {needed} is needed: put the file back that the run wrote")
    try:
        config = renewed(ConfigDict(stored, type_safe=False))
    except (ValueError, AttributeError, TypeError) as error:   # a key with a dot, a value in place of a section deeper down
        raise ValueError(f"{path} is not what a run writes ({error}): put the file back") from error
    for key, value in values(BASE).items():
        if key not in config:
            config[key] = value
        elif isinstance(BASE[key].type, dict) and isinstance(config[key], ConfigDict):
            for sub in set(value) - set(config[key]):
                config[key][sub] = value[sub]
    return config


def is_of_run(stored: dict) -> bool:
    """Whether a config.json is of a run or an import, rather than of another program."""
    return not {"model", "objective"}.isdisjoint(stored)


def renewed(config: ConfigDict) -> ConfigDict:
    """A stored config with today's names of its keys, and with what it meant by those that it lacks."""
    for section in methods(config.objective).values() if config.get("objective", {}).get("name") else ():
        _rename(section, FORMER_OPTIONS)
    for instances in config.get("evals", {}).values():
        for settings in filter(None, (instances or {}).values()):
            _rename(settings, {"read": "weights_from"})
    for module, defaults in FORMER_DEFAULTS.items():
        _fill(config, module, defaults)
    return config


def _rename(section, names):
    for old, new in names.items():
        if old in section and new not in section:
            section[new] = section[old]
            del section[old]


def from_file(path: str, given=()) -> ConfigDict:
    """The config of `--config=<path>` (a name or file, with `:arguments`, see `configs`) and the flags `given`.

    given: `--config.key=value` each.

    Raises:
      ValueError: what is wrong with the file, its arguments or a flag, in one sentence. FileNotFoundError: there is no such file.
    """
    rest, found = overrides.split(given)
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}: --config.key=value sets a key of the config")
    return of_command(path, found)


def of_command(path: str, found) -> ConfigDict:
    """The same with overrides as (key, text), for a run: what it is to be the best in must be a figure of its evaluations."""
    config = _complete(overrides.load(path))
    sections.check(config, BASE)
    config = overrides.apply(config, found) if found else config
    sections.check(config, BASE)
    check_metric(config.get("checkpoint", {}).get("best"), config.get("evals"), "config.checkpoint.best")
    return ConfigDict(sections.settled(config.to_dict(), BASE), type_safe=False).lock()
