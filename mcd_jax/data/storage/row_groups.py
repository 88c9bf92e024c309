"""Row groups of Parquet files: read in few requests, decoded once, the latest kept in memory."""
import collections
import io
import threading

import pyarrow.parquet as pq

from mcd_jax.data.decode import Bad

_GAP = 2 ** 20  # bytes between two columns that are rather read along than left out by another request
_FOOTERS = 2 ** 27  # bytes of footers that are kept


def footer(file):
    """The pyarrow FileMetaData of a `files.File`.

    Raises:
      ValueError: the file is no Parquet file, or was not written to its end.
      OSError: it can't be read.
    """
    window = _Window(file)
    try:
        return pq.read_metadata(window)
    except Exception as error:
        if window.failure:
            raise window.failure from error
        raise ValueError(f"{file.url} is no complete Parquet file: its footer, which is written last, can't be read "
                         f"({_first_line(error)}); write it again or take it out") from error


class RowGroups:
    """The row groups of some files. Safe from any number of threads; two that want the same group wait for one."""

    def __init__(self, opened, columns, room):
        """
        Args:
          opened: list of `files.File`.
          columns: names of the top-level columns that are decoded.
          room: bytes of decoded groups that are kept; those used longest ago go first.
        """
        self._files, self._columns, self._room = opened, columns, room
        self._groups = _Latest(room)
        self._footers = _Latest(_FOOTERS)

    def __reduce__(self):
        return RowGroups, (self._files, self._columns, self._room)

    def table(self, number, group):
        """The pyarrow Table of group `group` of file `number`.

        Raises:
          Bad: its bytes are not what its checksums or its encoding say.
          OSError: the file can't be read, or is no longer the one that was opened.
        """
        found = self._groups.get((number, group), lambda: self._decode(number, group))
        if isinstance(found, Bad):
            raise Bad(found.cause, found.detail)
        return found

    def _decode(self, number, group):
        """(Table or Bad, bytes that it takes)."""
        about = self._footers.get(number, lambda: _sized(footer(self._files[number])))
        try:
            table = read(self._files[number], about, [group], self._columns)
        except Bad as bad:
            return bad, 0
        return table, table.nbytes


def read(file, about, groups, columns):
    """The pyarrow Table of some columns of some row groups of a `files.File` whose footer is `about`. Raises as `table`."""
    window = _Window(file)
    try:
        window.fetch([place for group in groups for place in _places(about.row_group(group), columns)])
        with pq.ParquetFile(window, metadata=about, pre_buffer=False, page_checksum_verification=True) as opened:
            table = opened.read_row_groups(groups, columns=columns, use_threads=False)
        table.validate()
    except Exception as error:
        if window.failure:
            raise window.failure from error
        which = ", ".join(map(str, groups[:3])) + ", ..." * (len(groups) > 3)
        raise Bad("corrupt row group", f"row group {which} of {file.url}: {_first_line(error)}") from error
    return table


def _sized(about):
    return about, about.serialized_size


def decoded_bytes(group, columns):
    """The bytes that the columns of a row group (pyarrow RowGroupMetaData) take when they are decompressed."""
    return sum(column.total_uncompressed_size for column in _chunks(group, columns))


def _chunks(group, columns):
    wanted = set(columns)
    for number in range(group.num_columns):
        column = group.column(number)
        name = column.path_in_schema
        if name in wanted or any(name.startswith(f"{one}.") for one in wanted):
            yield column


def _places(group, columns):
    """[(start, end)] of the bytes of the columns of a row group; neighbours in one."""
    places = []
    for column in _chunks(group, columns):
        first = [place for place in (column.dictionary_page_offset, column.data_page_offset) if place]
        places.append((min(first), min(first) + column.total_compressed_size))
    joined = []
    for start, end in sorted(places):
        if joined and start - joined[-1][1] <= _GAP:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


class _Window(io.RawIOBase):
    """A `files.File` as a Python file, some parts of it read ahead. `failure` is the error of a read, if there was one."""

    def __init__(self, file):
        super().__init__()
        self._file, self._place, self._pieces, self.failure = file, 0, [], None

    def fetch(self, places):
        self._pieces = [(start, self._bytes(start, end - start)) for start, end in places]

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._place

    def seek(self, offset, whence=io.SEEK_SET):
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        return self._place

    def read(self, size=-1):
        start = self._place
        left = max(0, self._file.size - start)
        size = left if size is None or size < 0 else min(size, left)
        self._place += size
        for first, piece in self._pieces:
            if first <= start and start + size <= first + len(piece):
                return memoryview(piece)[start - first:start - first + size]
        return self._bytes(start, size)

    def _bytes(self, start, size):
        try:
            return self._file.read(start, size)
        except OSError as error:
            self.failure = error
            raise


class _Latest:
    """A bounded memory: what was used longest ago goes first. The latest stays, however large it is."""

    def __init__(self, room):
        self._room, self._used = room, 0
        self._kept = collections.OrderedDict()  # key -> (value, bytes)
        self._making = {}
        self._lock = threading.Lock()

    def get(self, key, make):
        """The value of `key`, if necessary of make() -> (value, bytes), which runs in one thread while others wait."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key][0]
            value, size = make()
            with self._lock:
                self._used -= self._kept.pop(key, (None, 0))[1]   # thrown out while this thread waited, and made by another
                self._kept[key] = value, size
                self._used += size
                while self._used > self._room and len(self._kept) > 1:
                    self._used -= self._kept.popitem(last=False)[1][1]
                self._making.pop(key, None)
        return value


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]
