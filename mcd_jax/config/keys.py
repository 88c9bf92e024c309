"""Keys of a config as modules declare them: their type, default and meaning; what fits a type, and how a command line writes it.

A module that takes settings has `KEYS = {"path": Key("str | tuple", NEEDED, "files, urls or patterns"), ...}`; a tuple of `Options`
or a module of flax has fields, whose comments are their meanings (`of_fields`). A type is one of these, or several joined by " | ":

  int, float, bool, str, tuple, dict, None; "any" for whatever a Python literal can write
  duration     200, "3 epochs", "10 percent", "1e6 examples"; None and 0 are never
  pairs of X   a tuple of (regex over parameter paths, X), or one X for all of them
  map of X     any names with an X each
  source, tower, eval/retrieval, ...   a section, whose keys depend on what it names: `config_keys.inside`
"""
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import textwrap
import tokenize
from typing import Any, NamedTuple

from mcd_jax import duration

NEEDED = type("Needed", (), {"__repr__": lambda self: "needed"})()   # the default of a key that has none
_WORDS = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "a string", "tuple": "a tuple",
          "None": "None", "dict": "a dict", "any": "a value",
          "duration": "a duration: write 200, '3 epochs', '1e6 examples' or '10 percent'"}
_TRUTH = {**dict.fromkeys(("true", "t", "1", "yes", "on"), True), **dict.fromkeys(("false", "f", "0", "no", "off"), False)}
_OTHERS = {"epochs": "steps", "num_epochs": "steps", "max_steps": "steps", "num_steps": "steps", "iterations": "steps",
           "form": "implementation", "keep": "keep_share", "read": "weights_from"}   # the last three: former names


class Key(NamedTuple):
    type: str       # see the module
    default: Any    # NEEDED where there is none
    meaning: str


# ---- declarations --------------------------------------------------------------------------------------------------------------


@functools.cache
def of_fields(cls: type, without: tuple = ()) -> dict[str, Key]:
    """The keys that the fields of a NamedTuple or dataclass declare; their meaning is the comment beside them."""
    meanings = _comments(cls)
    if dataclasses.is_dataclass(cls):
        fields = {f.name: (f.type, NEEDED if f.default is dataclasses.MISSING else f.default) for f in dataclasses.fields(cls)}
    else:
        fields = {name: (kind, cls._field_defaults.get(name, NEEDED)) for name, kind in cls.__annotations__.items()}
    return {name: Key(_annotated(kind), default, meanings.get(name, ""))
            for name, (kind, default) in fields.items() if name not in ("parent", "name", *without)}


def _annotated(kind):
    """The type that an annotation stands for; "any" for one that isn't among those of this module, such as Optional[int]."""
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "any")
    return kind if set(kind.split(" | ")) <= _WORDS.keys() else "any"


def _comments(cls):
    """{field: the comment at the end of its line, and those alone on the lines after it}."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):   # typed into an interpreter
        return {}
    comments = {token.start: token.string.lstrip("# ") for token in tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
                if token.type == tokenize.COMMENT}
    alone = {line: text for (line, column), text in comments.items() if not source.splitlines()[line - 1][:column].strip()}
    beside = {line: text for (line, _), text in comments.items() if line not in alone}
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and node.end_lineno in beside:
            line, parts = node.end_lineno + 1, [beside[node.end_lineno]]
            while line in alone:
                parts, line = [*parts, alone[line]], line + 1
            found[node.target.id] = " ".join(parts)
    return found


# ---- values --------------------------------------------------------------------------------------------------------------------


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of the type `kind`, which names no section; a list is a tuple, a whole number is a number.

    Numbers are finite: where one may be left out, None says so.
    """
    return any(_fits(part, value) for part in kind.split(" | "))


def _fits(kind, value):
    if kind == "duration":
        return value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool) and duration.readable(value))
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "dict":
        return hasattr(value, "items") and finite(value)
    if kind != "any" and not isinstance(value, {"bool": bool, "str": str, "tuple": (tuple, list), "None": type(None)}[kind]):
        return False
    return finite(value)


def finite(value: Any) -> bool:
    """Whether no number in a value, at any depth, is infinite or nan."""
    if isinstance(value, (tuple, list)):
        return all(map(finite, value))
    if hasattr(value, "values"):
        return all(map(finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def said(kind: str, default: Any = NEEDED) -> str:
    """What a value of that type is, for a sentence: "a whole number, such as 256"."""
    words = " or ".join(_WORDS.get(part, part) for part in kind.split(" | "))
    example = default not in (NEEDED, None, "", (), 0) and kind != "duration" and not isinstance(default, bool)
    return words + (f", such as {default!r}" if example else ", such as ('a', 'b')" if kind == "tuple" else "")


def read(kind: str, text: str) -> Any:
    """The value that the text after `--config.key=` stands for.

    A string stands there as it is, without quotes; a tuple, list, dict or `dict(name=..., ...)` as Python writes it.

    Raises:
      ValueError: it can't be read as `kind`; the sentence is that of Python's literals, where there is one.
    """
    kinds, plain = kind.split(" | "), text.strip()
    if plain == "None" and {"None", "duration", "any"} & set(kinds):
        return None
    if "bool" in kinds and plain.lower() in _TRUTH and not (plain.isdigit() and {"int", "float"} & set(kinds)):
        return _TRUTH[plain.lower()]
    for part, make in (("int", _whole), ("float", float)):
        if part in kinds:
            try:
                return make(plain)
            except ValueError:
                pass
    is_text = {"str", "duration"} & set(kinds)
    if (structured := {"tuple", "dict", "any"} & set(kinds)) or not is_text:
        try:
            value = literal(plain)
        except ValueError:
            if not is_text and "any" not in kinds:
                raise
            return text
        if "any" in kinds or not is_text or any(_fits(part, value) for part in structured):
            return value
    return text


def _whole(text):
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(f"{text} is not a whole number") from None
        return int(number)


def literal(text: str) -> Any:
    """A Python literal; `dict(name=..., ...)` may stand for {"name": ..., ...}, and lists become tuples. Nothing is run.

    Raises:
      ValueError: it isn't one; the sentence says which part.
    """
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not written as Python writes a value: {getattr(error, 'msg', 'too deep')}") from error


def _literal(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(map(_literal, node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args and all(w.arg for w in node.keywords):
        return {word.arg: _literal(word.value) for word in node.keywords}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"{ast.unparse(node)!r} is no value: numbers, quoted strings, True, False, None, (...), [...], {{...}} and "
                     "dict(key=value) are")


# ---- the nearest right key -----------------------------------------------------------------------------------------------------


def near(key: str, known) -> str:
    """The one of `known` that `key` was probably meant to be, or "": nearly the same letters, an abbreviation, another word."""
    known, low = [str(name) for name in known], str(key).lower()
    plain = {re.sub(r"[-_ ]", "", name.lower()): name for name in reversed(known)}
    if (same := re.sub(r"[-_ ]", "", low)) in plain:
        return plain[same]
    if _OTHERS.get(low) in known:
        return _OTHERS[low]
    initials = {"".join(word[0] for word in re.split(r"[-_ ]+", name) if word): name for name in reversed(known) if "_" in name}
    if low in initials:
        return initials[low]
    if "_" in low and (short := "".join(word[0] for word in low.split("_") if word)) in known:
        return short
    if found := difflib.get_close_matches(low, lower := {name.lower(): name for name in reversed(known)}, 1):
        return lower[found[0]]
    within = [name for name in known if low in name.split("_") or (name in low.split("_") and len(name) > 2)]
    return within[0] if within else ""
