"""Records of tf.train.Example, without TensorFlow."""
from typing import Any

from mcd_jax.data.decode import Bad


def parse_example(record: bytes) -> dict[str, list]:
    """A serialised tf.train.Example as {feature: list of bytes, int or float}, without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    kinds = {key: value.WhichOneof("kind") for key, value in features.items()}
    return {key: list(getattr(features[key], kind).value) if kind else [] for key, kind in kinds.items()}


def record(records: Any, index: int) -> Any:
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
