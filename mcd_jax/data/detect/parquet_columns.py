"""What Parquet files hold (see `detect`): img2dataset's, Hugging Face's, or any with encoded images and texts."""
from collections.abc import Mapping, Sequence

import pyarrow as pa

from mcd_jax.data.detect.found import Found, joined
from mcd_jax.data.detect.table_columns import TEXT
from mcd_jax.data.sources import parquet
from mcd_jax.data.sources.columns import check_names
from mcd_jax.data.storage import files
from mcd_jax.data.storage.row_groups import footer

_IMG2DATASET = {"status", "key", "url"}   # columns that its files have
_GROUPS = 16   # row groups that are shuffled together where not all fit into memory


def found(train: Sequence[str], held_out: Sequence[str], given: Mapping[str, str], path: str) -> Found:
    """The `Found` of Parquet files.

    Args:
      train, held_out: their urls; held_out may be empty. given: {role: column}. path: what the user named, for messages.

    Raises:
      ValueError: no column of encoded images, or none of texts; a file that is none.
    """
    schema, name = footer(files.File(train[0])).schema.to_arrow_schema(), files.basename(train[0])
    names, there = schema.names, ", ".join(schema.names)
    check_names(names, f"data={path}: {name}")
    image = given.get("image") or next((n for n in parquet.USUAL["image"] if n in names), None) or _only(schema, _is_image)
    if image is None:
        urls = ", ".join(column for column in names if "url" in column.lower())
        cure = (f", only where they are ({urls}): fetch them once, for example by img2dataset, and name its output folder"
                if urls else "; say image=COLUMN if one of them does")
        raise ValueError(f"data={path}: the columns of {name} ({there}) hold no encoded images{cure}")
    label = _class_column(schema)
    usual = (n for n in (*parquet.USUAL["text"], *TEXT) if n in names and _is_text(schema, n))
    text = given.get("text") or next(usual, None)
    text = text or _only(schema, _is_captions, {image, *_IMG2DATASET}) or label
    if text is None:
        raise ValueError(f"data={path}: which column of {name} ({there}) holds the captions can't be told; say text=COLUMN")
    default = {role: next((n for n in usual if n in names), None) for role, usual in parquet.USUAL.items()}
    columns = {role: column for role, column in {"image": image, "text": text, **given}.items() if column != default[role]}
    spec = {"name": "parquet", "path": joined(train), "read": [], **({"columns": columns} if columns else {})}
    theirs = set(names) >= _IMG2DATASET
    if theirs:
        spec["where"] = {"status": "success"}
    spec |= _windows(spec)
    key = given.get("key") or default["key"] or "the file and the row"
    classes = tuple(parquet.class_names(schema, label)) if label and text == label else ()
    notes = ("there are no captions: the names of the classes stand for them",) if classes else ()
    return Found(f"{len(train) + len(held_out):,} Parquet files" + " of img2dataset" * theirs, spec,
                 {**spec, "path": joined(held_out)} if held_out else None, f"image {image}, text {text}, key {key}",
                 pa.types.is_list(schema.field(text.split("/")[0]).type), classes, label or "", notes)


def _windows(spec):
    """The keys of the order by windows where the row groups don't all fit into memory."""
    whole = parquet.make(spec)
    if whole.sizes.sum() <= whole.room:
        return {}
    return {"shuffle_groups": max(1, min(_GROUPS, int(whole.room / 2 / whole.sizes.mean())))}


def _only(schema, fits, without=()):
    names = [field.name for field in schema if field.name not in without and fits(field.type)]
    return names[0] if len(names) == 1 else None


def _is_image(kind):
    with_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return with_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_captions(kind):
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text(schema, name):
    kind = schema.field(name).type
    return _is_captions(kind) or pa.types.is_binary(kind)


def _class_column(schema):
    """The column of class labels with names, as Hugging Face writes them, or None."""
    numbers = (field.name for field in schema if pa.types.is_integer(field.type))
    return next((name for name in numbers if parquet.class_names(schema, name)), None)
