"""What can be set and what a config sets: every key with its type, default and meaning, as the code declares it (see `sections`).

    mcd-jax config                                     the keys that every config has
    mcd-jax config --config=mcd_emoji                  what this config sets, and what it could set
    mcd-jax config --config=mcd_emoji optimizer.lr     one key, or a section with all that is in it
    mcd-jax config data.source.webdataset              the keys of a source, a tower, an evaluation, ...
    mcd-jax config --markdown > docs/config.md         all there is, for the documentation

`python -m mcd_jax.config` is the same.
"""
from collections.abc import Iterator
import textwrap
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mcd_jax import command, plugins
from mcd_jax.config import base, keys, method_section, of_command, overrides, sections
from mcd_jax.config.base import BASE
from mcd_jax.config.keys import NEEDED, Key

_WIDTH = 120
# section -> (heading, kind of plugin)
_CHOICES = {"data.source": ("Sources", "source"), "model": ("Towers", "model"), "evals": ("Evaluations", "eval"),
            "objective": ("Methods", "objective"), "benchmark": ("Benchmarks of the evaluation universal", "benchmark")}


class Row(NamedTuple):
    key: str        # dotted
    own: Key
    value: Any      # what the config has; NEEDED: nothing
    set: bool       # whether that isn't the default


def rows(value: Any, kind, where: str = "", own: Key | None = None) -> Iterator[Row]:
    """The rows of a section of a config, those inside its own sections too: what it has, and what else it could have.

    Args:
      value: of the section. kind: its type. where: its dotted key. own: its declaration, None for the whole config.
    """
    pairs, section = sections.pairs_of(kind), sections.section_of(kind)
    if pairs and isinstance(value, (tuple, list)) and sections.section_of(pairs):
        for number, (regex, entry) in enumerate(value):
            about = Key(pairs, NEEDED, f"of the parameters {regex!r}")
            yield from rows(entry, pairs, f"{where}.{number}", about) if entry else [Row(f"{where}.{number}", about, entry, True)]
    elif section and hasattr(value, "items"):
        known = sections.inside(section, value)
        declared = {**known.keys, **{name: Key(sections.type_of(name, known, where), NEEDED, "")
                                     for name in value if name not in known.keys}}
        if own and not declared:
            yield Row(where, own, value, bool(value))
        for name, key in declared.items():
            at = f"{where}.{name}" if where else name
            if name in value or isinstance(key.type, dict):
                yield from rows(value.get(name, {}), key.type, at, key)
            else:
                yield Row(at, key, NEEDED, False)
    else:
        yield Row(where, own, value, not _same(value, "" if own.default is NEEDED else own.default, own.type))


def _same(value, default, kind):
    if kind == "duration":
        return str(value or 0) == str(default or 0)
    return _plain(value) == _plain(default) and isinstance(value, bool) == isinstance(default, bool)


def _plain(value):
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return {key: _plain(part) for key, part in value.items()} if hasattr(value, "items") else value


def explained(config: ConfigDict, key: str = "", about: str = "") -> str:
    """Text: the keys of a config at `key` and below, each with its value, type, default and meaning.

    Args:
      about: whose config it is, "" for the defaults.

    Raises:
      ValueError: there is no such key; the sentence has the nearest.
    """
    found = list(rows(config.to_dict(), BASE))
    if key:
        own = [row for row in found if row.key == key or row.key.startswith(f"{key}.")]
        if not own:
            overrides.check_key(config, key)
            own = [row for row in found if key.startswith(f"{row.key}.")]   # inside a value
        found = own
    lines = [f"What {about} sets (*), and what else could be set with --config.KEY=VALUE:" if about else
             "The defaults; --config=FILE shows those of a config, and --config.KEY=VALUE sets them:", ""]
    for row in found:
        lines += _lines(row)
    return "\n".join([*lines, *_others(key)])


def _lines(row):
    value = row.own.default if row.value is NEEDED else row.value
    left = f"{'*' if row.set else ' '} {row.key}" + ("" if value is NEEDED else f" = {shown(value)}")
    about = ", ".join(filter(None, [named(row.own.type), "" if row.own.default is NEEDED or not row.set else
                                    f"default {shown(row.own.default)}", "needed" if value is NEEDED else ""]))
    meaning = textwrap.wrap(row.own.meaning, _WIDTH - 6)
    return [f"{left}   ({about})", *(f"      {line}" for line in meaning)]


def _others(key):
    """A last line that names what there is to choose from, beside a section that is chosen by name."""
    place = next((place for place in _CHOICES if key in (place, f"{place}.name")), None)
    if place is None:
        return []
    return ["", f"There are {', '.join(plugins.known(_CHOICES[place][1]))}: `mcd-jax config {place}.NAME` explains one."]


def shown(value: Any, limit: int = 60) -> str:
    """A value in one short line."""
    text = f"dict({', '.join(f'{k}={v!r}' for k, v in value.items())})" if hasattr(value, "items") else repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def named(kind) -> str:
    """A type for people."""
    if isinstance(kind, dict):
        return "section"
    def one(part):
        inner = next((start for start in ("pairs of ", "map of ") if part.startswith(start)), "")
        if inner:
            return inner + named(part.removeprefix(inner))
        return "section" if part != "dict" and sections.section_of(part) else part
    return " or ".join(map(one, sections.kinds(kind)))


# ---- one module ----------------------------------------------------------------------------------------------------------------


def of_module(place: str, name: str) -> tuple[str, dict[str, Key]]:
    """(first line of its documentation, its keys) of a source, tower, evaluation, method or benchmark.

    Raises:
      ValueError: there is none of this name.
    """
    kind = _CHOICES[place][1]
    owner = method_section.find(name) if kind == "objective" else sections.module(kind, name)
    first = (owner.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    if kind == "objective":
        return first, {key: own for key, own in method_section.of_method(name, owner)[0].items() if key != "name"}
    if kind == "model":
        return first, sections.of_tower({}, owner, name).keys
    return first, sections.declared_by(owner)


def module_text(place: str, name: str) -> str:
    """Text: the keys of a module."""
    first, declared = of_module(place, name)
    lines = [f"{place}.{name}: {first}", ""]
    for key, own in declared.items():
        lines += _lines(Row(key, _flat(own), NEEDED, False))
    return "\n".join(lines)


def _flat(own):
    """A key whose type is a section of keys, with their defaults as its default."""
    return own._replace(default={name: key.default for name, key in own.type.items()}) if isinstance(own.type, dict) else own


# ---- documentation -------------------------------------------------------------------------------------------------------------

_HEAD = """# Every key of a config

<!-- Made by `mcd-jax config --markdown > docs/config.md` from what the code declares; a test compares them. -->

A config is a Python file with `get_config()`, which starts from `mcd_jax.config.default()` and changes what it needs. Each key can
be set on the command line of every command that takes `--config`, whether the file lists it or not:

| flag | |
|---|---|
| `--config.steps=500` | a string as it is, a number, true or false, None |
| `--config.model.image.widths=8,16` | a tuple |
| `--config.data.source='dict(name="parquet", path="x.parquet")'` | a section, in place of what the file says |
| `--config.data.source.name=parquet --config.data.source.path=x.parquet` | the same: another name begins its section afresh |
| `--config.optimizer.optimizers.b2=0.95` | inside the only (regex, value) pair of a list |
| `--config.optimizer.schedule.1.warmup='2 epochs'` | inside the second of several pairs |
| `--config.sharding='(("img/.*", "replicate"), (".*", "fsdp"))'` | a whole list |

Nothing of a value is run: it is read as Python's literals are, and `dict(...)` beside them. The order of the flags doesn't matter:
shorter keys are set before longer ones. A key that nothing declares, or a value that doesn't fit, ends the command with one
sentence that names the nearest right one.

`mcd-jax config --config=NAME [KEY]` prints these keys with the values of a config. In the tables, "pairs of X" is a list
of (regex over parameter paths, X), of which the first whole match wins, or one X for all parameters; "map of X" has names of your
own; "section" has keys that depend on what it names, in a table below; a duration is 200 (steps), "3 epochs", "1e6 examples" or
"10 percent" (of the run).
"""


def markdown() -> str:
    """docs/config.md."""
    towers = {name: Key(f"tower/{name}", {}, text) for name, text in base.TOWERS.items()}
    parts = [_HEAD, "## The keys that every config has\n", _table(_flattened(BASE)),
             "\n## config.model\n", _table({**towers, **base.MODEL}),
             "\n### A tower's experts\n", _table(keys.of_fields(sections.module("model", "moe").Options)),
             "\n## Optimizers\n\nOf `config.optimizer.optimizers`, beside `name`.\n"]
    for name, declared in base.OPTIMIZERS.items():
        parts += [f"\n### {name}\n", _table(declared)]
    parts += ["\n## Schedules\n\nOf `config.optimizer.schedule`.\n", _table(base.SCHEDULE)]
    for place, (heading, kind) in _CHOICES.items():
        parts.append(f"\n## {heading}\n")
        if place == "evals":
            parts += ["Each evaluation also has\n", _table(base.EVAL)]
        for name in plugins.known(kind):
            first, declared = of_module(place, name)
            parts += [f"\n### {place}: {name}\n\n{first}\n", _table({key: _flat(own) for key, own in declared.items()})]
    return "\n".join(parts).rstrip() + "\n"


def _flattened(declared, above=""):
    result = {}
    for name, own in declared.items():
        if isinstance(own.type, dict):
            result |= _flattened(own.type, f"{above}{name}.")
        else:
            result[f"{above}{name}"] = own
    return result


def _table(declared):
    def cell(text):
        return text.replace("|", "\\|").replace("\n", " ")
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, own in declared.items():
        default = "needed" if own.default is NEEDED else f"`{cell(shown(own.default, 90))}`"
        lines.append(f"| `{name}` | {cell(named(own.type))} | {default} | {cell(own.meaning)} |")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """The command; see the module."""
    parser = command.Parser(prog="mcd-jax config", description=__doc__)
    parser.add_argument("--config", help="a config's name or file; left out: the defaults; overrides as --config.key=value")
    parser.add_argument("--markdown", action="store_true", help="print docs/config.md")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="a dotted key, such as optimizer.lr or data.source")
    options, found = overrides.parsed(parser, args)
    with command.sentences():
        print(markdown() if options.markdown else answer(options.config, found, options.keys), end="")


def answer(path: str | None, found, asked: list[str]) -> str:
    """What the command prints for a config file (None: the defaults), overrides as (key, text), and the keys that are asked for.

    Raises:
      ValueError, OSError: of the file, an override or a key.
    """
    config, texts = of_command(path, found) if path else overrides.apply(base.default(), found), []
    for key in asked or [""]:
        key = key.removeprefix("--").removeprefix("config.")
        place, _, name = key.rpartition(".")
        place = {"model.image": "model", "model.text": "model"}.get(place, place)
        own = place in _CHOICES and name in plugins.known(_CHOICES[place][1])
        texts.append(module_text(place, name) if own else explained(config, key, path or ""))
    return "\n\n".join(texts) + "\n"
