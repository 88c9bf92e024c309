"""Files of array_record with records of tf.train.Example (see mcd_jax.data.sources)."""
import concurrent.futures
import os

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import COLUMNS, check_columns, check_spec, key_name, position
from mcd_jax.data.storage import files
from mcd_jax.data.storage.examples import parse_example, record

KEYS = {
    "path": Key("str | tuple", NEEDED, "files, urls, patterns or folders, one or several"),
    "columns": COLUMNS,
    "cache_mib": Key("int | float", files.CACHE_MIB, "MiB that copies of shards behind a url may take"),
    "cache": Key("str", files.CACHE, "folder of these copies"),
}


class ArrayRecords:
    """array_record files of tf.train.Example; a feature of one value comes back as that value, else as a list.

    The library that reads them needs files of this machine. Shards behind a url are therefore copied whole into a cache
    (`files.local`) before the first example is read, and all of them have to fit: with random access each is needed all
    the time. The webdataset and tfrecord sources read from a bucket without copies.
    """

    def __init__(self, spec):
        """spec: path (a file, url or pattern, or a list of them), columns, and for urls cache_mib (default 16,384), the
        MiB that the copies may take, and cache (default ~/.cache/mcd_jax/files), their folder.

        Raises:
          FileNotFoundError: no file fits a path.
          ValueError: a key or column that does not exist, or shards that don't fit into the cache.
        """
        from array_record.python import array_record_data_source

        self._roles = check_spec(spec, KEYS)
        urls = files.expand(spec["path"], inside=("*.array_record*", "*.arrayrecord*"))
        paths = _copies(urls, spec.get("cache_mib", files.CACHE_MIB), spec.get("cache", files.CACHE))
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
            self._sizes = {path: os.path.getsize(path) for path in paths}
            first = self._first()
        except Exception as error:
            raise ValueError(f"data.source.path: {', '.join(urls[:3])} can't be read as array_record files of "
                             f"tf.train.Example ({str(error) or 'they are cut or broken'})") from error
        if first is not None:
            check_columns(self._roles, first, urls[0])

    def __len__(self):
        return len(self._records)

    def _first(self):
        """The first record that can be read, of the first hundred; None if there is no record."""
        for index in range(reach := min(len(self), 100)):
            try:
                return self._stored(index)
            except Bad:
                if index == reach - 1:
                    raise

    def _stored(self, index):
        found = record(self._records, index)
        changed = [file for file, size in self._sizes.items() if os.path.getsize(file) != size] if not found else ()
        if changed:
            raise OSError(f"record {index} is gone: {changed[0]} had {self._sizes[changed[0]]:,} bytes when it was opened, "
                          f"and has {os.path.getsize(changed[0]):,} now")
        try:
            return parse_example(found)
        except Exception as error:   # protobuf's DecodeError
            raise Bad("corrupt record", f"record {index} is no tf.train.Example: {error}") from error

    def __getitem__(self, index):
        index = position(index, len(self))
        stored = self._stored(index)
        row = {name: value[0] if len(value) == 1 else value for name, value in stored.items()}
        roles = {role: row.get(column, []) for role, column in self._roles.items() if column is not None}
        return {**row, **roles, "key": key_name(roles.get("key"), index)}


def _copies(urls, cache_mib, folder):
    """Paths of this machine for all urls."""
    if all(map(files.is_local, urls)):
        return urls
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        size = sum(file.size for file in pool.map(files.File, urls) if not files.is_local(file.url)) / 2 ** 20
        if size > cache_mib:
            raise ValueError(f"data.source.cache_mib={cache_mib}: the {len(urls)} shards ({urls[0]}, ...) take {size:,.1f} MiB "
                             "and must all fit into the cache; raise it, or mount the bucket (gcsfuse) and give that path")
        return list(pool.map(lambda url: files.local(url, cache_mib, folder), urls))


def make(spec):
    """The source of dict(name="array_record", path=...)."""
    return ArrayRecords(spec)
