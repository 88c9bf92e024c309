"""TFRecord shards of tf.train.Example, as img2dataset writes them, with random access and without TensorFlow.

    dict(name="tfrecord", path="/data/cc3m/{00000..00331}.tfrecord")

The columns are the features; one of a single value comes as that value, else as a list. By default the image is the first of
jpg;jpeg;png;webp;gif;bmp;image;image/encoded that the example has, the text of caption;text;txt, the key is the feature "key".
`where` is over the numbers, as in mcd_jax.data.sources.webdataset. Each shard needs an index (`python -m
mcd_jax.data.tools.index`); one that is missing is made first.

What is not as it should be, by rule:
  a length whose crc32c is wrong   what precedes it is used, the rest of that shard is lost; counted as "broken record header"
  a half-written shard             the record that the file's end cuts is dropped; "truncated record"
  data whose crc32c is wrong       left out when the shard is indexed, and bad ("corrupt record") if it breaks later; needs the
                                   package google-crc32c, without which only lengths are checked
  no tf.train.Example              left out; counted
  no image or caption              the example is bad: "missing image", "no caption" ("empty caption" where img2dataset stored ""
                                   because there was none)
  a shard that changes             files.Changed names it, and the run stops
"""
from google.protobuf.message import DecodeError

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import COLUMNS, WHERE, key_name
from mcd_jax.data.sources.shards import Shards
from mcd_jax.data.storage import files, records
from mcd_jax.data.storage.examples import parse_example
from mcd_jax.data.storage.tar import IMAGES

KEYS = {
    "path": Key("str | tuple", NEEDED, "files, urls, patterns or folders, one or several"),
    "index": Key("str | None", None, "folder of the indexes; left out: beside the shards"),
    "where": WHERE,
    "columns": COLUMNS,
}
_ROLES = {"image": f"{IMAGES};image;image/encoded", "text": "caption;text;txt", "key": "key"}


def make(spec):
    """Opens the source.

    Raises:
      FileNotFoundError: no shard fits a path.
      ValueError: an unknown key or column, a file that is no TFRecord, or nothing left by `where`.
    """
    return TFRecords(spec)


class TFRecords(Shards):
    def __init__(self, spec):
        super().__init__(spec, "tfrecord", _ROLES, KEYS)
        self.check(self._features)

    def __getitem__(self, number):
        row = self._features(number)
        value = {role: next((row[name] for name in names if row.get(name) not in (None, [])), None)
                 for role, names in self.roles.items()}
        key = key_name(value["key"], number)
        if value["image"] is None:
            raise Bad("missing image", key)
        row["image"], row["key"] = value["image"], key
        if self.roles["text"]:
            if value["text"] is None:
                raise Bad("no caption", key)
            row["text"] = value["text"]
        return row

    def keys(self):
        """The name of every example, list of str: its file and its number there, for which no record is read."""
        return self.chosen([f"{files.basename(file.url)}/{row}" for file, found in zip(self._files, self._indexes)
                            for row in range(len(found))])

    def _features(self, number):
        file, found, entry = self.find(number)
        (_, offset, size), = found.where(entry)
        data = file.read(offset, size + records.TAIL)
        try:
            if records.intact(data[:size], data[size:]) is False:
                raise DecodeError("its crc32c is wrong")
            stored = parse_example(data[:size])
        except DecodeError as error:
            raise Bad("corrupt record", f"{file.url}, byte {offset}: {error}") from error
        return {name: value[0] if len(value) == 1 else value for name, value in stored.items()}
