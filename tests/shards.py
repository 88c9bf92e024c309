"""The same examples written as every kind of source that keeps them in files: used by tests/fuzzing.py and tests/test_robust.py.

`WRITERS[kind](folder, rows)` writes rows ({"image": bytes, "text": str or bytes, "label": int}) under `folder` and returns the spec
for `sources.open`. A further kind is one function and one line.
"""
import csv
import json

import cv2
import numpy as np

COUNT = 24
GROUP = {"parquet": 6}  # examples that are stored together, where it is more than one: damage to one may reach them all


def rows(count=COUNT):
    """Small PNG and JPEG files with a caption and a label; no two share any bytes that a search could mix up."""
    random = np.random.default_rng(5)
    result = []
    for i in range(count):
        pixels = cv2.resize(random.integers(0, 256, (5, 6, 3), np.uint8), (18, 14))
        image = cv2.imencode(".jpg" if i % 2 else ".png", pixels)[1].tobytes()
        result.append({"image": image, "text": f"picture <{i:04d}> of many", "label": i})
    return result


def array_record(folder, rows):
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2
    writer = array_record_module.ArrayRecordWriter(str(folder / "pairs.array_record"), "group_size:1,uncompressed")
    for row in rows:
        writer.write(serialised(row, tf_example_pb2.Example()))
    writer.close()
    return {"name": "array_record", "path": str(folder / "pairs.array_record")}


def serialised(row, example):
    """A tf.train.Example of one row, as bytes."""
    feature = example.features.feature
    feature["image"].bytes_list.value.append(row["image"])
    feature["text"].bytes_list.value.append(encoded(row["text"]))
    feature["label"].int64_list.value.append(row["label"])
    return example.SerializeToString(deterministic=True)


def encoded(text):
    return text if isinstance(text, bytes) else text.encode()


def files(folder, rows):
    """The image files of a folder source; yields (file name, caption as str, label)."""
    for row in rows:
        name = f"{row['label']:04d}.img"
        (folder / name).write_bytes(row["image"])
        yield name, encoded(row["text"]).decode(errors="surrogateescape"), row["label"]


def table(name, delimiter):
    def write(folder, rows):
        with open(folder / name, "w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("image", "text", "label"), *files(folder, rows)])
        return {"name": "folder", "path": str(folder), "table": name}
    return write


def json_lines(folder, rows):
    lines = [json.dumps(dict(zip(("image", "text", "label"), row))) for row in files(folder, rows)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": "folder", "path": str(folder), "table": "pairs.jsonl"}


WRITERS = {
    "array_record": array_record,
    "csv": table("pairs.csv", ","),
    "tsv": table("pairs.tsv", "\t"),
    "jsonl": json_lines,
}
