"""Small data sets as people have them: `MAKERS[name](folder)` writes one of a few dozen pairs, for the tests of own data."""
import csv
import json

import cv2
import numpy as np
import stored

COUNT = 40
FAILED = (3, 17)
COLOURS = ("red", "green", "blue", "yellow")


def picture(number, size=40):
    """A JPEG of one of four colours, with a texture of its own."""
    colour = ((0, 0, 220), (0, 200, 0), (220, 0, 0), (0, 220, 220))[number % 4]
    noise = np.random.default_rng(number).integers(0, 30, (5, 6, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (size, size - 4)) + np.array(colour, np.uint8))[1].tobytes()


def caption(number):
    return f"a {COLOURS[number % 4]} picture, number {number}"


def about(number, ok=True):
    """What img2dataset knows of a row."""
    return {"caption": caption(number), "url": f"http://127.0.0.1/{number}.jpg", "key": f"{number:09d}",
            "status": "success" if ok else "failed_to_download", "error_message": None if ok else "HTTP Error 404: Not Found",
            "width": 40 if ok else None, "height": 36 if ok else None, "sha256": "f" * 64}


def _shards(folder, count):
    """[(number of the shard, numbers of its rows)], with img2dataset's files beside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_tmp").mkdir()
    for shard, start in enumerate(range(0, count, 20)):
        rows = range(start, min(start + 20, count))
        bad = sum(number in FAILED for number in rows)
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(
            {"count": len(rows), "successes": len(rows) - bad, "failed_to_download": bad, "failed_to_resize": 0}))
        yield shard, rows


def _table(path, rows, **more):
    """img2dataset's parquet of all rows, failed ones among them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    lines = [about(number, number not in FAILED) for number in rows]
    kinds = {"width": pa.int32(), "height": pa.int32()}
    columns = {name: pa.array([line[name] for line in lines], kinds.get(name, pa.string())) for name in lines[0]}
    pq.write_table(pa.table({**columns, **more}), path)


def _pair(number):
    return [(f"{number:09d}.jpg", picture(number)), (f"{number:09d}.txt", caption(number).encode()),
            (f"{number:09d}.json", json.dumps(about(number), indent=4).encode())]


def tars(folder, count=COUNT):
    for shard, rows in _shards(folder, count):
        members = [member for number in rows if number not in FAILED for member in _pair(number)]
        (folder / f"{shard:05d}.tar").write_bytes(stored.tar(members))
        _table(folder / f"{shard:05d}.parquet", rows)


def tfrecords(folder, count=COUNT):
    for shard, rows in _shards(folder, count):
        records = [stored.example(jpg=picture(number), caption=caption(number).encode(), key=f"{number:09d}".encode(), width=40)
                   for number in rows if number not in FAILED]
        (folder / f"{shard:05d}.tfrecord").write_bytes(stored.tfrecord(records))
        _table(folder / f"{shard:05d}.parquet", rows)


def parquet(folder, count=COUNT):
    for shard, rows in _shards(folder, count):
        _table(folder / f"{shard:05d}.parquet", rows, jpg=[None if number in FAILED else picture(number) for number in rows])


def files(folder, count=COUNT):
    for shard, rows in _shards(folder, count):
        (folder / f"{shard:05d}").mkdir()
        for number in rows:
            for name, data in _pair(number) if number not in FAILED else ():
                (folder / f"{shard:05d}" / name).write_bytes(data)
        _table(folder / f"{shard:05d}.parquet", rows)


def sidecars(folder, count=COUNT):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(caption(number))


def json_sidecars(folder, count=COUNT):
    """A .json beside each image; two say that the download failed."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.json").write_text(json.dumps(about(number, number not in FAILED)))


def csv_table(folder, count=COUNT):
    """Images in a folder of their own, a csv that names them."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "title", "likes"])
        for number in range(count):
            (folder / "images" / f"{number}.jpg").write_bytes(picture(number))
            writer.writerow([f"{number}.jpg", caption(number), number])


def five_captions(folder, count=COUNT):
    """Flickr8k's way: a row for each caption, five of them for each image."""
    (folder / "Images").mkdir(parents=True)
    with open(folder / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(count):
            (folder / "Images" / f"{number}.jpg").write_bytes(picture(number))
            writer.writerows([f"{number}.jpg", f"{caption(number)}, {word}"] for word in ("one", "two", "three", "four", "five"))


def tsv_table(folder, count=COUNT):
    """No header line."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "pairs.tsv").write_text("".join(f"{caption(n)}\t{n}.jpg\n" for n in range(count)))


def json_lines(folder, count=COUNT):
    """Hugging Face's image folder: metadata.jsonl with file_name."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    lines = [json.dumps({"file_name": f"{number}.jpg", "text": caption(number)}) for number in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def coco(folder, count=COUNT):
    (folder / "annotations").mkdir(parents=True)
    for part, rows in (("train", range(count * 3 // 4)), ("val", range(count * 3 // 4, count))):
        (folder / f"{part}2017").mkdir()
        for number in rows:
            (folder / f"{part}2017" / f"{number:012d}.jpg").write_bytes(picture(number))
        images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in rows]
        captions = [{"id": 10 * number + i, "image_id": number, "caption": f"{caption(number)}, {i}"}
                    for number in rows for i in (1, 2)]
        for name, annotations in (("captions", captions), ("instances", [{"bbox": [0]}])):
            text = json.dumps({"images": images, "annotations": annotations})
            (folder / "annotations" / f"{name}_{part}2017.json").write_text(text)


def karpathy(folder, count=COUNT):
    folder.mkdir(parents=True)
    images = []
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        split = "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"
        images.append({"filename": f"{number}.jpg", "split": split, "imgid": number,
                       "sentences": [{"raw": f"{caption(number)}, {i}"} for i in range(2)]})
    (folder / "dataset_mine.json").write_text(json.dumps({"images": images, "dataset": "mine"}))


def hugging_face(folder, count=COUNT):
    """image struct{bytes, path} and a list of captions, in files named by their parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    (folder / "data").mkdir(parents=True)
    for part, rows in (("train", range(count * 3 // 4)), ("validation", range(count * 3 // 4, count))):
        images = [{"bytes": picture(number), "path": f"{number}.jpg"} for number in rows]
        pq.write_table(pa.table({"image": images, "caption": [[caption(number), "a picture"] for number in rows]}),
                       folder / "data" / f"{part}-00000-of-00001.parquet")


def class_folders(folder, count=COUNT):
    for number in range(count):
        place = folder / f"{COLOURS[number % 4]}_things"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.JPG").write_bytes(picture(number))


def class_parts(folder, count=COUNT):
    class_folders(folder / "train", count)
    for number in range(count, count + 8):
        place = folder / "val" / f"{COLOURS[number % 4]}_things"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.JPG").write_bytes(picture(number))


MAKERS = {function.__name__: function for function in (
    tars, tfrecords, parquet, files, sidecars, json_sidecars, csv_table, five_captions, tsv_table, json_lines, coco, karpathy,
    hugging_face, class_folders, class_parts)}
