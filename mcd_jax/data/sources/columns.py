"""What every source shares: which stored column serves as image, text and key, and sentences for what does not fit."""
import collections
import operator

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad

ROLES = ("image", "text", "key")


COLUMNS = Key("dict", {}, "which stored column serves as image, text and key: dict(text=\"caption\"); \"a/b\" is b inside a")
WHERE = Key("dict | None", None, "rows that are kept: {column: a value, several, or {\"min\": x, \"max\": y}}")


def check_spec(spec, declared, optional=()):
    """Refuses unknown and missing keys of a source's spec; returns the column of each role, {role: column}.

    declared: {key: keys.Key}, beside the name and the columns; or the names of those that are needed, and then optional ones.
    """
    kind = spec["name"]
    if not isinstance(declared, dict):
        declared = {key: Key("any", NEEDED if key in declared else None, "") for key in (*declared, *optional)}
    allowed = dict.fromkeys(("name", *declared, "columns"))
    for key in spec:
        if key not in allowed:
            raise ValueError(f"data.source has no key {key!r} for the {kind} source; it has {', '.join(allowed)}")
    for key in (key for key, own in declared.items() if own.default is NEEDED):
        if not spec.get(key):
            raise ValueError(f"data.source.{key} is missing: the {kind} source needs it")
    columns = dict(spec.get("columns") or {})
    for role in columns:
        if role not in ROLES:
            raise ValueError(f"data.source.columns has no {role!r}; it maps {', '.join(ROLES)} to stored columns")
    return {"image": "image", "text": "text", "key": None, **columns}


def check_columns(roles, present, where):
    """Refuses roles whose column is not among the names `present`."""
    for role, column in roles.items():
        if column is not None and column not in present:
            raise ValueError(f"{where} has no column {column!r} for {role}; it has {', '.join(sorted(present))}; "
                             f"set data.source.columns.{role}")


def check_names(names, where, advice=""):
    """Refuses columns of which two have one name: which is meant can't be told. advice: what to say behind it."""
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{where} has more than one column {', '.join(map(repr, twice))}; names must be different{advice}")


def keep_rows(table, where, place):
    """The rows that a source's `where` keeps.

    Args:
      table: {column: (n,) array or list} of the stored columns that `where` names.
      where: {column: a value, a list of values, or {"min": x, "max": y} (either may be left out; both count as inside)}.
        Bounds do not keep a row whose value is missing (None, NaN).
      place: what the columns belong to, for messages.

    Returns:
      int64 array of row numbers, increasing.

    Raises:
      ValueError: a column that isn't there, bounds of a column that holds no numbers, an unknown bound, or no row is left.
    """
    keep = None
    for name, wanted in dict(where).items():
        if name not in table:
            raise ValueError(f"data.source.where: {place} has no column {name!r}; it has {', '.join(sorted(table)) or 'none'}")
        values = np.asarray(table[name])
        if hasattr(wanted, "keys"):
            fits = _within(values, dict(wanted), name, place)
        else:
            fits = np.isin(values, list(wanted) if isinstance(wanted, (list, tuple)) else [wanted])
        keep = fits if keep is None else keep & fits
        if not keep.any():
            raise ValueError(f"data.source.where: no row of {place} is left by {name}={wanted!r}")
    return np.flatnonzero(keep)


def _within(values, bounds, name, place):
    if not bounds or bounds.keys() - {"min", "max"}:
        raise ValueError(f"data.source.where.{name}={bounds!r}: bounds are min, max or both")
    try:
        values = values.astype(np.float64)   # None becomes NaN, which no comparison keeps
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.source.where.{name}: column {name!r} of {place} holds {values.tolist()[0]!r}, "
                         "which is no number") from error
    low, high = bounds.get("min", -np.inf), bounds.get("max", np.inf)
    return (values >= low) & (values <= high)


def first_value(row, names):
    """The value of the first of `names` that the row has and that is not empty; else an empty one, else None.

    Args:
      names: columns; "a/b" is b inside the field a.
    """
    empty = None
    for name in names:
        value = _inside(row, name)
        if value is not None and (not isinstance(value, (str, bytes, list)) or len(value)):
            return value
        empty = value if empty is None else empty
    return empty


def _inside(row, name):
    value = row.get(name)
    if value is None and "/" in name:
        value = row
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def captions(value, lines, key, names):
    """The text column of an example out of the stored value: a str, bytes or a list of them.

    Args:
      lines: whether every line of a text is a caption of its own.
      key, names: of the example and of the columns that were asked, for the message.

    Raises:
      Bad: there is no text.
    """
    if isinstance(value, (int, float)):
        value = str(value) if value == value else None   # NaN is what tables have where there is nothing
    if isinstance(value, (str, bytes)):
        if not lines:
            return value
        value = value.splitlines()
    texts = [text for text in value if isinstance(text, (str, bytes))] if isinstance(value, list) else []
    if not texts:
        raise Bad("no caption", f"{key}: neither of {', '.join(names)}")
    return texts


def position(index, size):
    """`index` as an int in [0, size); raises IndexError, as a list does."""
    number = operator.index(index)
    if not -size <= number < size:
        raise IndexError(f"index {number} is outside a source of {size} examples")
    return number % size


def key_name(value, index):
    """The name of an example as a str: its key column, or its index where there is none."""
    value = index if value is None else value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
