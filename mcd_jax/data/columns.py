"""What every source shares: which stored column serves as image, text and key, and sentences for what does not fit."""

import operator

ROLES = ("image", "text", "key")


def check_spec(spec, needed, optional=()):
    """Refuses unknown and missing keys of a source's spec; returns the column of each role, {role: column}."""
    kind = spec["name"]
    allowed = ("name", *needed, *optional, "columns")
    for key in spec:
        if key not in allowed:
            raise ValueError(f"data.source has no key {key!r} for the {kind} source; it has {', '.join(allowed)}")
    for key in needed:
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
