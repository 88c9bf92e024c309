"""`--config=FILE[:arguments]` and `--config.KEY=VALUE` on a command line: found, read and put into the config of the file.

KEY is any key that `mcd-jax config` explains, whether the file lists it or not, with dots between its parts. Inside
(regex, value) pairs a number says which pair, and may be left out where there is one: `--config.optimizer.optimizers.b2=0.95`.
VALUE is a string as it is, a number, true or false, or what Python writes: `--config.data.source='dict(name="parquet", path="x")'`,
where a whole section replaces what the file says. Another name (of a source, a tower, a method) begins its section afresh. Shorter
keys are set before longer ones and names before what stands beside them, so that the order of the flags doesn't matter.
"""
import argparse
from collections.abc import Callable, Iterable
import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from mcd_jax import command, configs
from mcd_jax.config import change, keys
from mcd_jax.config.base import BASE

_FLAG = re.compile(r"--?config\.([^=]*)(=(.*))?", re.DOTALL)


def locate(spec: str) -> str:
    """The file that `--config=NAME[:arguments]` or `FILE[:arguments]` names, with the arguments.

    Raises:
      FileNotFoundError: there is none; the sentence has the nearest names.
    """
    return configs.resolve(spec)


# ---- the file ------------------------------------------------------------------------------------------------------------------


def load(spec: str) -> ConfigDict:
    """What the file of `FILE[:arguments]` makes by its `get_config`.

    Raises:
      ValueError: the file can't be run, has no get_config, refuses the arguments or returns no config. FileNotFoundError: no file.
    """
    path, colon, arguments = locate(spec).partition(":")
    get_config = getattr(imported(path), "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path} has no function get_config that returns a config")
    given = (arguments,) if colon else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        raise ValueError(f"--config={spec}: this config takes no arguments after a colon" if colon else
                         f"--config={spec}: this config needs arguments after a colon, --config={spec}:"
                         f"{','.join(inspect.signature(get_config).parameters)}") from None
    config = called(path, get_config, *given)
    if not hasattr(config, "items"):
        raise ValueError(f"{path}: get_config returned {type(config).__name__}, not a config; does it end in `return config`?")
    return ConfigDict(_plain(config), type_safe=False) if not isinstance(config, ConfigDict) else config


def imported(path: str, flag: str = "--config") -> Any:
    """The module of the file that `flag` names; a ValueError names the line that fails."""
    found = importlib.util.spec_from_file_location("mcd_jax_config_file", path)
    if found is None:
        raise ValueError(f"{flag}={path} is not a Python file: its name ends in .py")
    module = importlib.util.module_from_spec(found)
    called(path, found.loader.exec_module, module)
    return module


def called(path: str, function: Callable, *arguments: Any) -> Any:
    """What a function of the file at `path` returns; a ValueError or OSError of one sentence where it fails."""
    try:
        return function(*arguments)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, (ValueError, OSError)) and type(error).__module__ == "builtins":
            kind = ValueError if isinstance(error, UnicodeError) else type(error)   # those take more than a text
            own = pathlib.Path(path).resolve().is_relative_to(configs.FOLDER)   # of the package: where it is says nothing
            raise kind(text if own or pathlib.Path(path).name in text else f"{path}: {text}") from error
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise ValueError(f"{path}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {text}") from error


# ---- overrides -----------------------------------------------------------------------------------------------------------------


def split(argv: Iterable[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """(the other arguments, [(key, text)]) of a command line: `--config.KEY=VALUE`, `--config.KEY VALUE`, `--noconfig.KEY`.

    The text is None in `--config.KEY`, which is true for a key that is True or False.
    """
    rest, found, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if no := re.fullmatch(r"--?noconfig\.(.+)", word):
            found.append((no[1], "false"))
        elif not (match := _FLAG.fullmatch(word)):
            rest.append(word)
        elif match[2]:
            found.append((match[1], match[3]))
        else:   # a value of its own, or none
            own = bool(words) and (not words[0].startswith("-") or re.match(r"-[.\d]", words[0]) is not None)
            found.append((match[1], words.pop(0) if own else None))
    return rest, found


def apply(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """`config` with the keys set that `overrides` name, (key, text) each; of two for one key the later counts.

    Raises:
      ValueError: a key that can't be, or a text that doesn't fit it.
    """
    plain = _plain(config)
    for key, text in sorted(dict(overrides).items(), key=lambda item: _place(item[0])):
        if not key or not all(key.split(".")):
            raise ValueError(f"--config.{key}={text}: config.{key} is no key; write --config.seed=1, say")
        plain = change.put(plain, BASE, key.split("."), functools.partial(change.given, text))
    try:
        return ConfigDict(plain, type_safe=False)
    except ValueError as error:   # a name with a dot
        raise ValueError(f"--config.KEY=VALUE gives a name with a dot, and names in a config have none: {error}") from error


def check_key(config: ConfigDict, key: str) -> None:
    """Refuses a dotted key that nothing declares, with the nearest; a ValueError."""
    change.put(_plain(config), BASE, str(key).split("."), lambda kind, where: None)


def _place(key):
    parts = key.split(".")
    return len(parts) - 0.5 * (parts[-1] == "name")


def encode(config: ConfigDict, key: str, value: Any) -> str:
    """The text after `--config.key=` that gives the key this value: a string as it is where it is read so, else Python's."""
    if not isinstance(value, str):
        return repr(value)
    for text in (value, repr(value)):
        try:
            if field(apply(config, [(key, text)]), key) == value:
                return text
        except ValueError:
            pass
    return value


def field(config: Any, key: str) -> Any:
    """The value of a dotted key, as nested dicts and tuples; a KeyError where it isn't set."""
    parts = key.split(".")
    while parts:
        if hasattr(config, "items"):
            name, parts = change.first(parts, config)
            config = config[name]
        else:
            config, parts = _in_pairs(config, parts, key)
    return _plain(config)


def _in_pairs(value, parts, key):
    """(what a part of a key stands for in a tuple, the parts after it); of a pair the second, unless 0 or 1 says which."""
    if not isinstance(value, (tuple, list)):
        raise KeyError(key)
    pairs = value and all(isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    number, rest = (int(parts[0]), parts[1:]) if parts[0].isdigit() else (0, parts)
    if number >= len(value) or (rest is parts and not pairs):
        raise KeyError(key)
    if not pairs:
        return value[number], rest
    if rest[:1] in (["0"], ["1"]):
        return value[number][int(rest[0])], rest[1:]
    return (value[number][1] if rest else value[number]), rest


def _plain(value):
    if isinstance(value, (ConfigDict, dict)):
        return {key: _plain(part) for key, part in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value


# ---- commands ------------------------------------------------------------------------------------------------------------------


def define(help: str, default: str | None = None) -> None:
    """Defines the flag --config of a command that is started by `run`."""
    module = sys._getframe(1).f_globals["__name__"]   # the command's, so that its --help has the flag
    flags.DEFINE_string("config", default, help, module_name=sys.argv[0] if module == "__main__" else module)
    flags.DEFINE_multi_string("config_overrides", [], "what --config.KEY=VALUE gives, as KEY=VALUE")


def given() -> list[tuple[str, str]]:
    """[(key, text)] of the command line."""
    return [(key, text if equals else None) for key, equals, text in (w.partition("=") for w in flags.FLAGS.config_overrides)]


def run(main) -> None:
    """`app.run` of a command with the flag --config: what is wrong with its flags is said in one sentence, with status 1."""
    app.run(main, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """Absl's flags out of a command line, and those of the config. Returns the program's name.

    Raises:
      SystemExit: with the sentence to print.
    """
    rest, found = split("--help" if word == "-h" else word for word in argv)
    for word, following in zip(rest[1:], [*rest[2:], "--"]):
        if (name := re.fullmatch(r"--?(\w+)", word)) and name[1] in flags.FLAGS and not flags.FLAGS[name[1]].boolean and (
                following.startswith("--")):
            sys.exit(f"error: --{name[1]} has no value: write --{name[1]}=... ({_help(name[1])})")
    try:
        rest = flags.FLAGS([*rest, *(f"--config_overrides={key}" + ("" if text is None else f"={text}") for key, text in found)])
    except SystemExit:   # --help has been printed, and absl's status is 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        near = keys.near(error.flagname, [name for name in flags.FLAGS if name != "config_overrides"])
        sys.exit(f"error: unknown flag --{error.flagname}" + (f"; did you mean --{near}?" if near else
                 "; --help lists them, and --config.KEY=VALUE sets a key of the config"))
    except flags.Error as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        sys.exit("error: " + (f"--{missing[1]} is missing ({_help(missing[1])})" if missing else " ".join(str(error).split())))
    if len(rest) > 1:
        key = rest[1].partition("=")[0].removeprefix("config.")
        sys.exit(f"error: unknown argument {rest[1]!r}: flags begin with --" + (
            f"; did you mean --config.{rest[1].removeprefix('config.')}?" if key.split(".")[0] in BASE else
            f"; did you mean --config={rest[1]}?" if pathlib.Path(rest[1].partition(":")[0]).is_file() else ""))
    return rest


def _help(name):
    return flags.FLAGS[name].help


def parsed(parser: command.Parser, argv: list[str] | None) -> tuple[argparse.Namespace, list[tuple[str, str | None]]]:
    """(options, [(key, text)]) of a command whose other flags argparse reads.

    Raises:
      SystemExit: with one sentence.
    """
    rest, found = split(sys.argv[1:] if argv is None else argv)
    return parser.parse_args(rest), found
