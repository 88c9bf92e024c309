"""The same examples written as every kind of source that keeps them in files: used by tests/fuzzing.py and tests/test_robust.py.

`WRITERS[kind](folder, rows)` writes rows ({"image": bytes, "text": str or bytes, "label": int}) under `folder` and returns the spec
for `sources.open`. A further kind is one function and one line.
"""
import csv
import json

import cv2
import numpy as np
import stored

COUNT = 24
GROUP = {"parquet": 6}  # examples that are stored together, where it is more than one: damage to one may reach them all
INDEXED = ("webdataset", "tfrecord")  # an index knows where the examples were; if it is made after the damage, it leaves out


def rows(count=COUNT):
    """Small PNG and JPEG files with a caption and a label; no two share any bytes that a search could mix up."""
    random = np.random.default_rng(5)
    result = []
    for i in range(count):
        pixels = cv2.resize(random.integers(0, 256, (5, 6, 3), np.uint8), (18, 14))
        image = cv2.imencode(".jpg" if i % 2 else ".png", pixels)[1].tobytes()
        result.append({"image": image, "text": f"picture <{i:04d}> of many", "label": i})
    return result


def example(row):
    return stored.example(image=row["image"], text=encoded(row["text"]), label=row["label"])


def array_record(folder, rows):
    from array_record.python import array_record_module
    writer = array_record_module.ArrayRecordWriter(str(folder / "pairs.array_record"), "group_size:1,uncompressed")
    for row in rows:
        writer.write(example(row))
    writer.close()
    return {"name": "array_record", "path": str(folder / "pairs.array_record")}


def tfrecord(folder, rows):
    (folder / "pairs.tfrecord").write_bytes(stored.tfrecord([example(row) for row in rows]))
    return {"name": "tfrecord", "path": str(folder / "pairs.tfrecord")}


def webdataset(folder, rows):
    members = []
    for row in rows:
        name = f"{row['label']:04d}"
        members += [(f"{name}.{'jpg' if row['label'] % 2 else 'png'}", row["image"]), (f"{name}.txt", encoded(row["text"])),
                    (f"{name}.json", json.dumps({"label": row["label"]}).encode())]
    (folder / "pairs.tar").write_bytes(stored.tar(members))
    return {"name": "webdataset", "path": str(folder / "pairs.tar")}


def parquet(folder, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq
    table = pa.table({"image": [row["image"] for row in rows], "label": [row["label"] for row in rows],
                      "text": pa.array([encoded(row["text"]) for row in rows], pa.binary())})
    pq.write_table(table, folder / "pairs.parquet", GROUP["parquet"], compression="none", use_dictionary=False)
    return {"name": "parquet", "path": str(folder / "pairs.parquet")}


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
    "webdataset": webdataset,
    "tfrecord": tfrecord,
    "parquet": parquet,
    "csv": table("pairs.csv", ","),
    "tsv": table("pairs.tsv", "\t"),
    "jsonl": json_lines,
}
