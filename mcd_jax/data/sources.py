"""Where examples come from: random access to image-text pairs.

A source has `len(source)` and `source[i]`, a dict with at least image (encoded bytes), text (str, bytes or a list of
them) and key (str), plus the other stored columns. Reading is safe from any number of threads. `open` takes the
mapping of `config.data.source`; its `name` says which kind, the other keys are that kind's own:

    dict(name="emoji", split="train")                                        the embedded data set (mcd_jax.data.emoji)
    dict(name="tfds", dataset="coco", split="train[:10%]", columns=...)      prepared by TFDS as array_record
    dict(name="webdataset", path="gs://bucket/cc3m/{00000..00331}.tar")      tar shards, as img2dataset writes them
    dict(name="tfrecord", path="/data/cc3m/*.tfrecord")                      the same as TFRecord
    dict(name="array_record", path="/data/pairs-*.array_record")             files of tf.train.Example records
    dict(name="parquet", path="/data/laion/{00000..00331}.parquet")          img2dataset's and Hugging Face's Parquet files
    dict(name="folder", path="/data/pictures", table="captions.csv")         image files and a csv, tsv, jsonl or COCO table
    dict(name="image_folder", path="/data/food101/test")                     a folder of images for each class
    dict(name="karpathy", path="/data/coco", table="dataset_coco.json")      captions of COCO and Flickr30k
    dict(name="hashing", path="/data/flickr25k", protocol="mith_mirflickr25k", ...)   sets as distributed for hashing
    dict(name="embeddings", path="runs/x/train.array_record")                what python -m mcd_jax.embed wrote
    dict(name="mixture", sources=dict(a=dict(...), b=dict(...)), weights=dict(a=1, b=3))
    dict(name="mosaic", source=dict(...), label="concept_id")                several images of a source on one canvas, with boxes
    dict(name="questions", split="train")                                    questions about the embedded data set, with answers
    dict(name="vqa", path="/data", tables=("vqa_train.json", "vg_qa.json"))  questions and answers of VQA v2 and Visual Genome
    dict(name="judged", set="snli_ve", path="/data", table="ve_train.json")  SNLI-VE and NLVR2: texts judged on images
    dict(name="my_lab.pairs", ...)                                           a module with make(spec) -> source

`columns=dict(image="jpg", text="caption")` tells which stored column serves as image, text and key ("a/b": b inside a).
"""

import concurrent.futures
import contextlib
import os

from mcd_jax.data import files
from mcd_jax.data.columns import check_columns, check_spec, key_name, position
from mcd_jax.data.folder import Folder
from mcd_jax.data.image import Bad
from mcd_jax.load import load

KINDS = ("emoji", "tfds", "array_record", "webdataset", "tfrecord", "parquet", "folder", "image_folder", "karpathy", "embeddings",
         "hashing", "mixture", "mosaic", "questions", "vqa", "judged")


def open(spec):
    """Opens the source of `config.data.source`.

    Raises:
      ValueError: an unknown name, key, split or column; the sentence says what there is.
      FileNotFoundError: a file or folder that the spec names does not exist.
    """
    spec = dict(spec)
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"data.source.name must be one of {', '.join(KINDS)} or a module path, not {name!r}")
    if name == "tfds":
        return Tfds(spec)
    if name == "array_record":
        return ArrayRecords(spec)
    if name == "folder":
        return Folder(spec)
    if name not in KINDS and "." not in name:
        raise ValueError(f"data.source.name {name!r} is unknown: it is one of {', '.join(KINDS)}; "
                         "a module of your own is named by its dotted path")
    try:
        module = load("data", name)
    except ValueError as error:
        raise ValueError(f"data.source.name {name!r}: there is no such module to import") from error
    if not callable(getattr(module, "make", None)):
        raise ValueError(f"data.source.name {name!r}: the module has no make(spec) that returns a source")
    source = module.make(spec)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(f"data.source.name {name!r}: make(spec) returned a {type(source).__name__} "
                         "without len() and [index]")
    return source


def parse_example(record):
    """A serialised tf.train.Example as {feature: list of bytes, int or float}, without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    kinds = {key: value.WhichOneof("kind") for key, value in features.items()}
    return {key: list(getattr(features[key], kind).value) if kind else [] for key, kind in kinds.items()}


def _record(records, index):
    """records[index] of an array_record reader. Its RuntimeError is a wrong checksum (the record is bad) or a failed read.

    The library was given 2,000 damaged files (tests/test_fuzz.py): it neither crashed nor gave a record that was never
    written. It does crash in a process forked from one that used it, and gives empty records for a file cut while open.
    """
    try:
        return records[index]
    except RuntimeError as error:
        if "Corrupted" in str(error):
            raise Bad("corrupt record", f"record {index}: {error}") from error
        raise OSError(f"record {index} can't be read: {error}") from error


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

        self._roles = check_spec(spec, ("path",), ("cache_mib", "cache"))
        urls = files.expand(spec["path"])
        paths = _copies(urls, spec.get("cache_mib", files.CACHE_MIB), spec.get("cache", files.CACHE))
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
            self._sizes = {path: os.path.getsize(path) for path in paths}
            first = self._first()
        except Exception as error:
            raise ValueError(f"data.source.path: {', '.join(urls[:3])} can't be read as array_record files of "
                             f"tf.train.Example ({error})") from error
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
        record = _record(self._records, index)
        changed = [file for file, size in self._sizes.items() if os.path.getsize(file) != size] if not record else ()
        if changed:
            raise OSError(f"record {index} is gone: {changed[0]} had {self._sizes[changed[0]]:,} bytes when it was opened, "
                          f"and has {os.path.getsize(changed[0]):,} now")
        try:
            return parse_example(record)
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

        self._roles = check_spec(spec, ("split",), ("dataset", "data_dir", "directory"))
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
        row = _record(self._records, index)
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
