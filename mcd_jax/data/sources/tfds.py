"""Data sets that tensorflow_datasets prepared as array_record (see mcd_jax.data.sources)."""
import contextlib

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import COLUMNS, check_columns, check_spec, key_name, position
from mcd_jax.data.storage.examples import record

KEYS = {
    "split": Key("str", NEEDED, "as TFDS writes it, \"train[:10%]\""),
    "dataset": Key("str | None", None, "\"coco/2014:1.1.0\""),
    "data_dir": Key("str | None", None, "where TFDS has prepared it; left out: TFDS's own place"),
    "directory": Key("str | None", None, "in place of dataset: the folder with features.json"),
    "columns": COLUMNS,
}


class Tfds:
    """A data set prepared by TFDS with file_format="array_record". Neither TensorFlow nor the network is used."""

    def __init__(self, spec):
        """spec: split (TFDS's slicing works), and dataset ("coco/2014:1.1.0") with data_dir (default: TFDS's own) or
        directory (the folder with features.json); columns. A class label that serves as text is given by its name.

        Raises:
          FileNotFoundError: no prepared data set is there.
          ValueError: a split, key or column that does not exist, or another file format.
        """
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        self._roles = check_spec(spec, KEYS)
        if bool(spec.get("dataset")) == bool(spec.get("directory")):
            raise ValueError("data.source needs either dataset or directory for the tfds source")
        place = spec.get("directory") or spec["dataset"]
        try:
            if spec.get("directory"):
                builder = tfds.builder_from_directory(spec["directory"])
            else:
                where = {"data_dir": spec["data_dir"]} if spec.get("data_dir") else {}
                builder = read_only_builder.builder_from_files(spec["dataset"], **where)
        except (tfds.core.DatasetNotFoundError, OSError, AssertionError, RuntimeError) as error:
            raise FileNotFoundError(f"no data set prepared by TFDS is found as {place!r} "
                                    f"(data_dir {spec.get('data_dir')!r}): {error}") from error
        self._features = builder.info.features
        where = f"{builder.info.full_name} (TFDS)"
        for role, column in self._roles.items():
            feature = self._features
            for name in column.split("/") if column else ():
                inside = feature.keys() if hasattr(feature, "keys") else ()
                check_columns({role: name}, inside, where)
                feature = feature[name]
            if role == "text" and isinstance(feature, tfds.features.ClassLabel):
                self._label_name = feature.int2str
        decoders = tfds.decode.SkipDecoding()
        for name in reversed(self._roles["image"].split("/")):
            decoders = {name: decoders}
        try:
            self._records = builder.as_data_source(split=spec["split"], decoders=decoders)
            if len(self._records):
                with contextlib.suppress(Bad):
                    self[0]
        except (ValueError, NotImplementedError, AssertionError, OSError) as error:
            raise ValueError(f"split {spec['split']!r} of {where} can't be read: {error}; its splits are "
                             f"{', '.join(builder.info.splits)}, its file format must be array_record") from error

    _label_name = None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        index = position(index, len(self))
        row = record(self._records, index)
        roles = {}
        for role, column in self._roles.items():
            value = row
            for name in column.split("/") if column else ():
                value = value[name]
            roles[role] = value if column else None
        if roles["image"] is None:
            raise OSError(f"record {index} is empty: was a file of the data set cut since it was opened?")
        if self._label_name:
            roles["text"] = self._label_name(int(roles["text"]))
        elif not isinstance(roles["text"], (str, bytes)):
            roles["text"] = list(roles["text"])
        return {**row, **roles, "key": key_name(roles["key"], index)}


def make(spec):
    """The source of dict(name="tfds", dataset=..., split=...)."""
    return Tfds(spec)
