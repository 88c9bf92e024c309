"""Parquet files, as img2dataset and Hugging Face datasets write them (see mcd_jax.data.sources).

    dict(name="parquet", path="/data/cc3m/{00000..00331}.parquet", where=dict(status="success"))          img2dataset
    dict(name="parquet", path="hf/train-*.parquet", columns=dict(text="captions", key="image_id"))        datasets

An example is a row; its columns are those of the file. `columns` names one of them for image, text and key ("a/b" is b
inside the struct a). By default the image is the first there is of image, jpg, jpeg, png, webp, the text that of text,
caption, txt, the key that of key, __key__, else the file and the row in it ("a.parquet/7"). A struct {bytes, path} that
serves as image is its bytes. Texts may be lists; a class label that serves as text is given by its name. A missing image, as
in rows that img2dataset could not download, makes the example bad: where=dict(status="success") leaves such rows out.

A row is read with its whole row group. Decoded groups stay in memory up to `memory_mib` (1,024): a data set that fits is
decoded once and then gives 7,000 examples/s per core (50 kB images, local files). A larger one in random order costs a group
per example: 200 examples/s per core with 100 rows in a group, 13 with 1,000. What helps: `shuffle_groups=N`, N groups are
shuffled together (see `windows`) and each is decoded once per epoch on every host, so 7,000 again; `read=[...]`, only these
columns beside image, text and key; or to write the examples anew so that each is read alone (`mcd-jax pack`).
A group that does not fit into `memory_mib` is refused.

At the start every footer is read: two small requests per file. Files must have the same columns.
"""
import concurrent.futures
import copy
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import COLUMNS, WHERE, check_columns, check_names, check_spec, keep_rows, key_name, position
from mcd_jax.data.storage import files
from mcd_jax.data.storage.row_groups import RowGroups, decoded_bytes, footer, read
from mcd_jax.data.storage.windows import Windows

KEYS = {
    "path": Key("str | tuple", NEEDED, "files, urls, patterns or folders, one or several"),
    "where": WHERE,
    "columns": COLUMNS,
    "read": Key("tuple | None", None, "only these columns beside image, text and key; left out: all"),
    "memory_mib": Key("int | float", 1024, "MiB of decoded row groups that stay in memory"),
    "shuffle_groups": Key("int | None", None, "so many row groups are shuffled together; left out: all of them"),
}
USUAL = {"image": ("image", "jpg", "jpeg", "png", "webp"), "text": ("text", "caption", "txt"), "key": ("key", "__key__")}
_THREADS = 16


def make(spec):
    """Opens the source.

    spec: path (paths, urls or patterns), columns, where ({column: value, values or {min, max}}, see `columns.keep_rows`),
      read (further columns that examples have; default all), memory_mib, shuffle_groups.

    Raises:
      FileNotFoundError: no file fits a path.
      ValueError: an unknown key or column, a file that is no complete Parquet file, files with different columns, a row group
        that is too large, or nothing left by `where`.
    """
    source = Parquet(spec)
    return Shuffled(source, spec["shuffle_groups"]) if spec.get("shuffle_groups") is not None else source


class Parquet:
    """See `make`."""

    def __init__(self, spec):
        check_spec(spec, KEYS)
        room = spec.get("memory_mib", 1024)
        if isinstance(room, bool) or not isinstance(room, (int, float)) or room <= 0:
            raise ValueError(f"data.source.memory_mib={room!r} must be a positive number of MiB")
        self.room = room * 2 ** 20
        urls = files.expand(spec["path"], inside=("*.parquet",))
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            opened = list(pool.map(files.File, urls))
            first = footer(opened[0]).schema.to_arrow_schema()
            self._find_columns(first, dict(spec.get("columns") or {}), spec.get("read"), urls[0])
            shapes = list(pool.map(lambda file: self._look(file, first, urls[0]), opened))
        self._groups = RowGroups(opened, self._columns, self.room)
        self._urls = urls
        self.places = np.array([(number, group) for number, shape in enumerate(shapes) for group in range(len(shape))],
                               np.int32).reshape(-1, 2)
        counts = np.array([rows for shape in shapes for rows, _ in shape], np.int64)
        self._firsts = np.concatenate([np.cumsum([0, *(rows for rows, _ in shape)])[:-1] for shape in shapes])   # row in its file
        self.sizes = np.array([size for shape in shapes for _, size in shape], np.int64)
        self._opened, self._all = opened, counts
        self._kept = self._rows = None  # of the kept examples: their rows in all files, and inside their groups
        self.counts, self._ends = counts, np.cumsum(counts)
        if spec.get("where"):
            self._choose(self._keep(opened, dict(spec["where"])))

    def _find_columns(self, schema, columns, extra, url):
        """Sets the path of each role inside a row, the names of class labels, and the columns that are read."""
        check_names(schema.names, url)
        self._roles, self._names = {}, None
        for role, usual in USUAL.items():
            there = [name for name in usual if name in schema.names]
            name = columns.get(role, there[0] if there else None)
            if name is not None:
                self._roles[role] = _path(name, schema, f"{url} has no column {name!r} for {role}; set data.source.columns.{role}")
            elif role not in columns and role != "key":
                check_columns({role: " or ".join(usual)}, schema.names, url)
        if "image" not in self._roles:
            raise ValueError("data.source.columns.image: the parquet source needs an image column")
        self._check_image(schema, url)
        if "text" in self._roles:
            self._check_text(schema, url)
        if extra is not None:
            if isinstance(extra, str) or not set(extra) <= set(schema.names):
                raise ValueError(f"data.source.read={extra!r} must be a list of columns of {url}: {', '.join(schema.names)}")
            extra = {*extra, *(path[0] for path in self._roles.values())}
        self._columns = [name for name in schema.names if extra is None or name in extra]

    def _check_image(self, schema, url):
        kind = _inside(schema, self._roles["image"])
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            self._roles["image"] += ("bytes",)
            kind = kind.field("bytes").type
        if not _is_bytes(kind):
            raise ValueError(f"{url}: column {'/'.join(self._roles['image'])!r} holds {kind}; as image it must hold encoded image "
                             "files: binary, or a struct with bytes" + _is_text(kind) * (
                                 "; urls are fetched ahead, for example by img2dataset, and files in folders are read by the "
                                 "folder source"))

    def _check_text(self, schema, url):
        path = self._roles["text"]
        kind = _inside(schema, path)
        while _is_list(kind) or pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_integer(kind):
            self._names = _class_names(schema, path)
        if not (_is_text(kind) or _is_bytes(kind) or self._names):
            raise ValueError(f"{url}: column {'/'.join(path)!r} holds {kind}, not text; set data.source.columns.text")

    def _look(self, file, first, url):
        """[(rows, bytes when decoded)] of the row groups of a file, after its columns were compared with the first file's."""
        about = footer(file)
        schema = about.schema.to_arrow_schema()
        check_names(schema.names, file.url)
        for name in self._columns:
            kinds = [_kind(one.field(name).type) if name in one.names else None for one in (first, schema)]
            if kinds[0] != kinds[1]:
                here = f"holds {kinds[1]} in {file.url}" if kinds[1] else f"is missing in {file.url}"
                raise ValueError(f"data.source.path: column {name!r} {here}, but holds {kinds[0]} in {url}; files of one source "
                                 "have the same columns: open them as sources of a mixture, or leave the column out by "
                                 "data.source.read, which lists those to read")
        shape = []
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            size = group.total_byte_size
            if size > self.room and (size := decoded_bytes(group, self._columns)) > self.room:
                raise ValueError(f"{file.url}: row group {number} has {group.num_rows:,} rows, {size / 2 ** 20:,.1f} MiB together, "
                                 "which would all be read for each example, and data.source.memory_mib is "
                                 f"{self.room / 2 ** 20:,.1f}; write the file with smaller row groups (about 100 images), or the "
                                 "examples by mcd-jax pack")
            shape.append((group.num_rows, size))
        return shape

    def _keep(self, opened, where):
        """Which rows of all files `where` keeps."""
        place = self._urls[0] + (len(opened) > 1) * f" and {len(opened) - 1:,} more"
        schema = footer(opened[0]).schema.to_arrow_schema()
        paths = {name: _path(name, schema, f"data.source.where: {place} has no column {name!r}") for name in where}
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            parts = list(pool.map(lambda file: _values(file, paths), opened))
        return keep_rows({name: np.concatenate([part[name] for part in parts]) for name in paths}, where, place)

    def keys(self):
        """The name of every example, list of str: its key, or without a key column its file and its row there; no image is read."""
        about = [footer(file) for file in self._opened]
        if "key" in self._roles:
            path = {"key": self._roles["key"]}
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                parts = [part["key"].tolist() for part in pool.map(lambda file: _values(file, path), self._opened)]
        else:
            parts = [[None] * one.num_rows for one in about]
        names = [f"{files.basename(url)}/{row}" if key is None else key_name(key, row)
                 for url, part in zip(self._urls, parts) for row, key in enumerate(part)]
        return names if self._kept is None else [names[row] for row in self._kept.tolist()]

    def only(self, numbers):
        """The source of the examples whose numbers are given, increasing; their row groups stay together."""
        part = copy.copy(self)
        kept = np.arange(len(self)) if self._kept is None else self._kept
        part._choose(kept[np.asarray(numbers)])
        return part

    def _choose(self, rows):
        """Keeps the rows of all files whose numbers are given, increasing."""
        ends = np.cumsum(self._all)
        group = np.searchsorted(ends, rows, side="right")
        self._kept, self._rows = rows, (rows - (ends - self._all)[group]).astype(np.int32)
        self.counts = np.bincount(group, minlength=len(self._all))
        self._ends = np.cumsum(self.counts)

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index):
        index = position(index, len(self))
        place = int(np.searchsorted(self._ends, index, side="right"))
        row = int(self._rows[index]) if self._rows is not None else int(index - self._ends[place] + self.counts[place])
        number, group = self.places[place].tolist()
        table = self._groups.table(number, group)
        example = {name: _python(table.column(name)[row]) for name in self._columns}
        found = {role: _dig(example, path) for role, path in self._roles.items()}
        if not found["image"]:
            raise Bad("no image", f"row {row} of row group {group} of {self._urls[number]}" + self._why(example))
        if "text" in found:
            found["text"] = _captions(found["text"], self._names)
        name = f"{files.basename(self._urls[number])}/{self._firsts[place] + row}"   # as `keys` has it
        return {**example, **found, "key": key_name(found.get("key"), name)}

    def _why(self, example):
        """What a row without an image says about it."""
        path = self._roles["image"]
        holder = _dig(example, path[:-1]) if len(path) > 1 else None
        if isinstance(holder, dict) and holder.get("path"):
            return (f": it has only the path {holder['path']!r}, and files outside are not read; write the data set with the "
                    "images embedded, or read the folder of images by the folder source")
        if example.get("status") not in (None, "success"):
            return f": its status is {example['status']!r}; data.source.where=dict(status='success') leaves such rows out"
        return ""


class Shuffled:
    """A Parquet source in the order of `windows`. Attributes: examples, the number of examples; draw, as `order` wants it."""

    def __init__(self, source, groups):
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"data.source.shuffle_groups={groups!r} must be a positive number of row groups")
        some = source.counts > 0
        need = groups * float(source.sizes[some].mean()) if some.any() else 0
        if need > source.room:
            raise ValueError(f"data.source.shuffle_groups={groups} row groups take {need / 2 ** 20:,.1f} MiB, but "
                             f"data.source.memory_mib is {source.room / 2 ** 20:,.1f}: raise it, or shuffle fewer groups together")
        self._source, self._groups, self.examples = source, groups, len(source)
        self.keys = source.keys
        self.draw = Windows(source.counts[some], groups).draw

    def only(self, numbers):
        """As `Parquet.only`, in an order of the same kind."""
        return Shuffled(self._source.only(numbers), self._groups)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]


# ---- types and values ----

def _path(name, schema, sentence):
    """("a", "b") of "a/b", or (name,) where a column is called so. Raises ValueError(sentence and what there is)."""
    path = (name,) if name in schema.names else tuple(name.split("/"))
    for depth in range(len(path)):
        kind = _inside(schema, path[:depth])
        while depth and _is_list(kind):
            kind = kind.value_type
        there = schema.names if not depth else [field.name for field in kind] if pa.types.is_struct(kind) else []
        if path[depth] not in there:
            raise ValueError(f"{sentence}; " + ("it has " if not depth else f"{'/'.join(path[:depth])} has ")
                             + (", ".join(there) or f"no parts, it is {kind}"))
    return path


def _inside(schema, path):
    """The type at the end of a path through structs, and through lists of structs."""
    kind = schema
    for depth, part in enumerate(path):
        kind = kind.field(part).type
        while depth < len(path) - 1 and _is_list(kind):
            kind = kind.value_type
    return kind


def _is_list(kind):
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind):
    return (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
            or pa.types.is_fixed_size_binary(kind))


def _kind(kind):
    """The name of a type; the same for the ways in which the same values are stored: other offsets, views, dictionaries."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind).replace("large_", "").replace("_view", "")


def class_names(schema, name):
    """The names that a column of class labels has beside the schema, as Hugging Face datasets keep them; None if there are none."""
    return _class_names(schema, (name,))


def _class_names(schema, path):
    """The names of a class label, as Hugging Face datasets keep them beside the schema; None if there are none."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        for part in path:
            found = found[part]
        return [str(name) for name in found["names"]] if found["_type"] == "ClassLabel" else None
    except (TypeError, KeyError, ValueError):
        return None


def _python(value):
    """A pyarrow scalar as Python has it; text that is not UTF-8 as bytes, what Python has no value for (a date of the year 59000, a
    nanosecond, an unknown time zone) as None."""
    try:
        return value.as_py()
    except (ValueError, ArithmeticError, LookupError, pa.ArrowException):
        kind = value.type
        if pa.types.is_struct(kind):
            return {name: _python(item) for name, item in value.items()}
        if pa.types.is_map(kind):
            return [(_python(item["key"]), _python(item["value"])) for item in value.values]
        if _is_list(kind):
            return [_python(item) for item in value.values]
        if pa.types.is_dictionary(kind):
            return _python(value.dictionary[value.index.as_py()])
        return value.as_buffer().to_pybytes() if _is_text(kind) else None


def _dig(value, path):
    for part in path:
        if isinstance(value, list):
            value = [item and item.get(part) for item in value]
        else:
            value = value and value.get(part)
    return value


def _captions(value, names):
    """A text, or the list of all texts of lists; class labels by their names, missing ones left out."""
    if isinstance(value, list):
        found = [_captions(item, names) for item in value]
        return [text for item in found if item is not None for text in (item if isinstance(item, list) else [item])]
    if names and value is not None:
        return names[value] if 0 <= value < len(names) else None
    return value


def _values(file, paths):
    """{name: (n,) array} of the columns at some paths of a whole file; what is missing is NaN or None.

    Raises:
      ValueError: they can't be decoded, or the file has other columns.
    """
    about = footer(file)
    schema = about.schema.to_arrow_schema()
    for name, path in paths.items():
        _path("/".join(path), schema, f"data.source.where: {file.url} has no column {name!r}")
    try:
        table = read(file, about, list(range(about.num_row_groups)), sorted({path[0] for path in paths.values()}))
    except Bad as bad:
        raise ValueError(f"data.source.where: {bad}") from bad
    values = {}
    for name, path in paths.items():
        column = table.column(path[0])
        for part in path[1:]:
            column = pc.struct_field(column, part)
        try:
            values[name] = column.to_numpy(zero_copy_only=False)
        except (ValueError, ArithmeticError, LookupError, pa.ArrowException):
            values[name] = np.fromiter(map(_python, column), object, len(column))
    return values
