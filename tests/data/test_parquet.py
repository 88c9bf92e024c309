"""Parquet: what img2dataset and Hugging Face datasets write, read row by row; what is refused; the order by windows."""
import concurrent.futures
import json
import pickle
import threading

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcd_jax.data import order, sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.storage import files, row_groups
from mcd_jax.data.storage.windows import Windows
from mcd_jax.data.views import Views


def picture(number):
    return cv2.imencode(".png", np.full((6, 6, 3), number % 256, np.uint8))[1].tobytes()


def img2dataset(path, numbers, failed=(), every=10):
    """As its BufferedParquetWriter does: a table of some rows at a time, its columns in its order."""
    schema = pa.schema([("url", pa.string()), ("key", pa.string()), ("status", pa.string()), ("error_message", pa.string()),
                        ("width", pa.int32()), ("height", pa.int32()), ("exif", pa.string()), ("similarity", pa.float64()),
                        ("caption", pa.string()), ("jpg", pa.binary())])
    rows = [{"url": f"https://x.org/{n}", "key": f"{n:09d}", "status": "failed_to_download" if n in failed else "success",
             "error_message": "HTTP Error 404" if n in failed else None, "width": None if n in failed else 100 + n,
             "height": None if n in failed else 50, "exif": "{}", "similarity": n / 100, "caption": f"number {n}",
             "jpg": None if n in failed else picture(n)} for n in numbers]
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), every):
            writer.write_table(pa.Table.from_pylist(rows[start:start + every], schema))


FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"},
            "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}}


def hugging_face(path, count=12, rows=5, replaced=None, image_type=None, **columns):
    """As Dataset.to_parquet does: images as struct {bytes, path}, the features as JSON beside the schema."""
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(count)]
    for n, value in (replaced or {}).items():
        images[n] = value
    table = pa.table({"image": pa.array(images, image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                      "captions": [[f"number {n}", f"no. {n}"][:1 + n % 2] for n in range(count)],
                      "label": pa.array([n % 3 for n in range(count)], pa.int64()), **columns})
    about = json.dumps({"info": {"features": FEATURES}})
    pq.write_table(table.replace_schema_metadata({b"huggingface": about.encode()}), path, row_group_size=rows)


def parquet(path, **more):
    return sources.open({"name": "parquet", "path": str(path), **more})


# ---- what is read ----

def test_img2dataset_shards_open_without_naming_columns(tmp_path):
    img2dataset(tmp_path / "00000.parquet", range(25))
    img2dataset(tmp_path / "00001.parquet", range(25, 40))
    source = parquet(tmp_path / "{00000..00001}.parquet")
    assert len(source) == 40
    assert source[31] == {"url": "https://x.org/31", "key": "000000031", "status": "success", "error_message": None, "width": 131,
                          "height": 50, "exif": "{}", "similarity": 0.31, "caption": "number 31", "jpg": picture(31),
                          "image": picture(31), "text": "number 31"}
    assert source[-1]["key"] == "000000039" and [source[n]["width"] for n in range(40)] == list(range(100, 140))
    with pytest.raises(IndexError, match="index 40 is outside a source of 40"):
        source[40]
    assert parquet(tmp_path / "*.parquet", read=["width"])[3].keys() == {"key", "width", "caption", "jpg", "image", "text"}


def test_rows_that_img2dataset_could_not_download(tmp_path):
    img2dataset(tmp_path / "00000.parquet", range(30), failed={0, 4, 17, 29})
    with pytest.raises(Bad, match=r"no image: row 7 of row group 1 .*'failed_to_download'; .*where=dict.status='success'."):
        parquet(tmp_path / "*.parquet")[17]
    source = parquet(tmp_path / "*.parquet", where={"status": "success"})
    left = [n for n in range(30) if n not in (0, 4, 17, 29)]
    assert len(source) == 26 and [source[i]["similarity"] for i in range(26)] == [n / 100 for n in left]
    data = Pipeline(parquet(tmp_path / "*.parquet"), Views({"image": "decode|resize(4)"}), 0, 30, max_bad=1.0)
    batch = data.batch(0)
    assert sorted(batch["index"][batch["bad"]].tolist()) == [1, 1, 5, 18] and data.stats == {"no image": 4}


def test_hugging_face_images_lists_of_captions_and_class_names(tmp_path):
    hugging_face(tmp_path / "train-0.parquet", image_id=list(range(100, 112)))
    source = parquet(tmp_path / "train-0.parquet", columns={"text": "captions", "key": "image_id"})
    row = source[7]
    assert row["image"] == picture(7) and row["text"] == ["number 7", "no. 7"] and row["key"] == "107" and row["label"] == 1
    assert source[6]["text"] == ["number 6"] and source[11]["image"] == picture(11)
    by_name = parquet(tmp_path / "train-0.parquet", columns={"text": "label", "image": "image/bytes"})
    assert [by_name[n]["text"] for n in range(4)] == ["cat", "dog", "eel", "cat"] and by_name[2]["key"] == "train-0.parquet/2"
    views = Views({"image": "decode|resize(4)", "text": "caption|tokenize(8)", "label": "column('label')"})
    batch = Pipeline(source, views, 0, 12).batch(0)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


def test_an_image_that_is_only_a_path_is_bad_with_a_sentence(tmp_path):
    hugging_face(tmp_path / "a.parquet", replaced={3: {"bytes": None, "path": "/home/me/3.png"}, 4: None,
                                                   5: {"bytes": b"", "path": None}})
    source = parquet(tmp_path / "a.parquet", columns={"text": "captions"})
    with pytest.raises(Bad, match=r"row 3 of row group 0 of .*a.parquet: it has only the path '/home/me/3.png'.*embed"):
        source[3]
    for index in (4, 5):
        with pytest.raises(Bad, match="no image"):
            source[index]
    assert source[6]["image"] == picture(6)


def test_columns_inside_structs_and_lists_of_structs(tmp_path):
    table = pa.table({"pic": [{"data": picture(n), "size": {"w": n}} for n in range(4)],
                      "sentences": [[{"raw": f"a {n}", "id": n}, {"raw": None, "id": 0}] for n in range(4)],
                      "a/b": ["slash"] * 4, "tags": [[["x", "y"], ["z"]]] * 4,
                      "kind": pa.array(["p", "q"] * 2).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    source = parquet(tmp_path / "a.parquet", columns={"image": "pic/data", "text": "sentences/raw", "key": "pic/size/w"})
    assert source[2]["image"] == picture(2) and source[2]["text"] == ["a 2"] and source[2]["key"] == "2"
    assert source[2]["pic"]["size"] == {"w": 2}
    texts = {name: parquet(tmp_path / "a.parquet", columns={"image": "pic/data", "text": name})[1]["text"]
             for name in ("a/b", "tags", "kind")}
    assert texts == {"a/b": "slash", "tags": ["x", "y", "z"], "kind": "q"}
    some = parquet(tmp_path / "a.parquet", columns={"image": "pic/data", "text": "kind"}, where={"pic/size/w": {"min": 2}})
    assert len(some) == 2 and some[0]["pic"]["size"]["w"] == 2
    without = parquet(tmp_path / "a.parquet", columns={"image": "pic/data", "text": None})
    assert "text" not in without[0]


def test_text_that_is_not_utf8_stays_bytes(tmp_path):
    words = pa.array([b"caf\xe9", b"fine"]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2], words)
    pq.write_table(pa.table({"image": [picture(0)] * 2, "text": words, "more": lists}), tmp_path / "a.parquet")
    source = parquet(tmp_path / "a.parquet")
    assert source[0]["text"] == b"caf\xe9" and source[0]["more"] == [b"caf\xe9"] and source[1]["text"] == "fine"


def test_any_access_equals_the_table_and_threads_do_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    for number, (rows, compression) in enumerate([(7, "snappy"), (64, "zstd"), (1, "none"), (3, "gzip")]):
        images = [rng.bytes(rng.integers(1, 3000)) for _ in range(64)]
        table = pa.table({"image": images, "text": [f"{number} {i}" for i in range(64)]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=rows, compression=compression,
                       data_page_size=2000, use_dictionary=number % 2 == 0)
    expected = pa.concat_tables([pq.read_table(tmp_path / f"{n}.parquet") for n in range(4)]).to_pylist()
    source = parquet(tmp_path / "*.parquet", memory_mib=0.1)
    indices = rng.integers(0, 256, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(source.__getitem__, indices))
    assert [(row["image"], row["text"]) for row in rows] == [(expected[i]["image"], expected[i]["text"]) for i in indices]
    assert pickle.loads(pickle.dumps(source))[200]["image"] == expected[200]["image"]


def test_remote_files(tmp_path):
    img2dataset(tmp_path / "a.parquet", range(20))
    system = fsspec.filesystem("memory")
    system.pipe_file("/shards/00.parquet", (tmp_path / "a.parquet").read_bytes())
    source = parquet("memory://shards/*.parquet", where={"width": {"min": 110}})
    assert len(source) == 10 and source[0]["text"] == "number 10"
    system.rm("/shards", recursive=True)


# ---- where ----

@pytest.mark.parametrize("where, keep", [
    ({"similarity": {"min": 0.07}}, lambda n: n >= 7),
    ({"width": {"min": 104, "max": 118}}, lambda n: 4 <= n <= 18 and n not in (5, 12)),
    ({"caption": ["number 3", "number 11"], "height": 50}, lambda n: n in (3, 11)),
    ({"status": "failed_to_download"}, lambda n: n in (5, 12))])
def test_where_keeps_rows_by_stored_columns(tmp_path, where, keep):
    for shard in range(3):
        img2dataset(tmp_path / f"{shard}.parquet", range(7 * shard, 7 * shard + 7), failed={5, 12}, every=3)
    source = parquet(tmp_path / "*.parquet", where=where, read=["similarity"])
    found = []
    for index in range(len(source)):
        try:
            found.append(round(100 * source[index]["similarity"]))
        except Bad:
            found.append(5 if index == 0 else 12)
    assert found == [n for n in range(21) if keep(n)]


def test_where_reads_only_its_columns(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(50_000) for _ in range(40)], "text": ["x"] * 40, "n": range(40)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    sizes, read = [], files.File.read
    monkeypatch.setattr(files.File, "read", lambda self, offset, size: sizes.append(size) or read(self, offset, size))
    source = parquet(tmp_path / "a.parquet", where={"n": {"max": 12}})
    assert len(source) == 13 and sum(sizes) < 300_000 and max(sizes) < 2 ** 17
    sizes.clear()
    assert source[12]["n"] == 12 and len(sizes) == 2  # the footer, and the row group in one piece
    source[11], source[10]
    assert len(sizes) == 2


# ---- what is refused ----

@pytest.mark.parametrize("cut", ["half", "footer", "other", "empty"])
def test_a_half_written_or_foreign_file_is_named(tmp_path, cut):
    img2dataset(tmp_path / "0.parquet", range(30))
    whole = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes({"half": whole[:len(whole) // 2], "footer": whole[:-60] + whole[-8:],
                                          "other": b"url\ttext\n" * 50, "empty": b""}[cut])
    with pytest.raises(ValueError, match=r"1.parquet is no complete Parquet file: its footer, which is written last"):
        parquet(tmp_path / "*.parquet")


def test_a_corrupt_row_group_is_bad_and_leaves_the_others(tmp_path):
    img2dataset(tmp_path / "0.parquet", range(30))
    path = tmp_path / "0.parquet"
    place = pq.read_metadata(path).row_group(1).column(9)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset:place.data_page_offset + 8] = bytes(8)
    path.write_bytes(data)
    source = parquet(path)
    for _ in range(2):
        with pytest.raises(Bad, match=r"corrupt row group: row group 1 of .*0.parquet"):
            source[15]
    assert source[9]["image"] == picture(9) and source[20]["image"] == picture(20)


def test_checksums_are_looked_at(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(5000) for _ in range(20)], "text": ["x"] * 20})
    pq.write_table(table, tmp_path / "a.parquet", write_page_checksum=True, compression="none", use_dictionary=False,
                   row_group_size=10)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[data.index(table["image"][13].as_py()) + 77] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    source = parquet(tmp_path / "a.parquet")
    assert source[3]["image"] == table["image"][3].as_py()
    with pytest.raises(Bad, match=r"corrupt row group.*[Cc][Rr][Cc]|corrupt row group.*checksum"):
        source[12]


def test_a_file_that_changes_or_vanishes_stops_the_run(tmp_path):
    img2dataset(tmp_path / "0.parquet", range(30))
    source, other = parquet(tmp_path / "0.parquet"), parquet(tmp_path / "0.parquet")
    assert other[0]["text"] == "number 0"
    img2dataset(tmp_path / "0.parquet", range(31))
    with pytest.raises(files.Changed, match=r"0.parquet changed while it was in use"):
        other[20]  # the footer is known, the row group is not
    with pytest.raises(files.Changed, match=r"0.parquet changed while it was in use"):
        source[0]
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(files.Changed, match=r"0.parquet vanished"):
        source[0]


def test_files_with_different_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"], "n": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"], "n": ["1"]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"column 'n' holds string in .*1.parquet, but holds int64 in .*0.parquet"):
        parquet(tmp_path / "*.parquet")
    assert len(parquet(tmp_path / "*.parquet", read=[])) == 2
    pq.write_table(pa.table({"text": pa.array(["a"], pa.large_string()), "image": pa.array([b"y"], pa.large_binary()), "n": [3]}),
                   tmp_path / "1.parquet")
    assert parquet(tmp_path / "*.parquet")[1]["n"] == 3  # in another order, with longer offsets: the same
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"column 'n' is missing in .*1.parquet"):
        parquet(tmp_path / "*.parquet")


@pytest.mark.parametrize("more, sentence", [
    ({"columns": {"image": "photo"}}, r"no column 'photo' for image; set data.source.columns.image; it has image, captions"),
    ({"columns": {"image": "image/data"}}, r"no column 'image/data' for image; .*; image has bytes, path"),
    ({"columns": {"text": "captions/raw"}}, r"no column 'captions/raw' for text; .*; captions has no parts, it is string"),
    ({}, r"no column 'text or caption or txt' for text; it has"),
    ({"columns": {"text": "note"}}, r"column 'note' holds int64, not text; set data.source.columns.text"),
    ({"columns": {"text": "captions", "image": "where"}}, r"'where' holds string; as image it must hold.*img2dataset"),
    ({"columns": {"text": "captions", "image": "label"}}, r"'label' holds int64; as image it must hold encoded"),
    ({"columns": {"text": "captions", "image": None}}, "needs an image column"),
    ({"columns": {"text": "captions"}, "read": ["widht"]}, r"read=\['widht'\] must be a list of columns of .*: image, capt"),
    ({"columns": {"text": "captions"}, "read": "label"}, r"data.source.read='label' must be a list"),
    ({"columns": {"text": "captions"}, "where": {"size": 3}}, r"data.source.where: .*has no column 'size'; it has image"),
    ({"columns": {"text": "captions"}, "where": {"label": 7}}, r"no row of .*a.parquet is left by label=7"),
    ({"columns": {"text": "captions"}, "memory_mib": 0}, "memory_mib=0 must be a positive number"),
    ({"columns": {"text": "captions"}, "memory_mib": 0.001}, r"row group 0 has 12 rows, 0.0 MiB together.*mcd-jax pack"),
    ({"columns": {"text": "captions"}, "shuffle_groups": 0}, "shuffle_groups=0 must be a positive number of row groups"),
    ({"columns": {"text": "captions"}, "shuffle_groups": 500, "memory_mib": 0.1}, r"500 row groups take .* MiB, but .* is 0.1"),
    ({"colums": {}}, "no key 'colums' for the parquet source"),
])
def test_a_wrong_spec_is_refused_by_name(tmp_path, more, sentence):
    hugging_face(tmp_path / "a.parquet", rows=100, note=list(range(12)), where=["https://x.org/1.jpg"] * 12)
    with pytest.raises(ValueError, match=sentence):
        parquet(tmp_path / "a.parquet", **more)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source.path: no file fits .*x-\*.parquet"):
        parquet(tmp_path / "x-*.parquet")


# ---- memory ----

def test_decoded_groups_stay_within_bounds_and_are_decoded_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(10_000) for _ in range(100)], "text": ["x"] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    decoded, together, read = [], threading.Barrier(4), row_groups.read
    monkeypatch.setattr(row_groups, "read", lambda file, about, groups, columns: decoded.extend(groups) or read(
        file, about, groups, columns))
    source = parquet(tmp_path / "a.parquet", memory_mib=0.35)  # room for three groups
    kept = source._groups._groups

    def work(_):
        together.wait()
        return [source[index]["image"] for index in range(100)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(found == table["image"].to_pylist() for found in pool.map(work, range(4)))
    assert kept._used == sum(size for _, size in kept._kept.values()) <= 0.35 * 2 ** 20 and len(kept._kept) == 3
    for index in (70, 80, 90):   # which groups the threads left, and in which order, is theirs to say
        source[index]
    decoded.clear()
    assert [source[index]["text"] for index in (99, 85, 71, 92, 70)] == ["x"] * 5 and decoded == []
    source[0], source[99], source[85], source[75]
    assert decoded == [0, 8, 7]  # 0 takes the room of 8, which was used longest ago; then 8 that of 7


# ---- windows ----

@pytest.mark.parametrize("counts, groups", [([10] * 12, 3), ([1, 7, 30, 2, 2, 9, 1], 2), ([5], 4), ([3, 4], 1)])
def test_windows_are_a_permutation_that_opens_each_group_once(counts, groups):
    window = Windows(counts, groups)
    group_of = np.repeat(np.arange(len(counts)), counts)
    total, seen = sum(counts), []
    for epoch in range(4):
        drawn = [window.draw(5, epoch, place) for place in range(total)]
        assert sorted(drawn) == list(range(total))
        seen.append(drawn)
        spans = [np.flatnonzero(group_of[drawn] == g) for g in range(len(counts))]
        opened = np.array([sum(span[0] <= place <= span[-1] for span in spans) for place in range(total)])
        assert opened.max() <= groups  # at no place are more groups in use
    if len(counts) == 12:
        by_group = group_of[seen]
        assert (by_group[:, 1:] == by_group[:, :-1]).mean() < 0.5  # the groups of a window are mixed, 0.31 is expected
        assert len({tuple(sorted(set(epoch[:30]))) for epoch in by_group.tolist()}) == 4  # and are others in every epoch
    assert len(set(map(tuple, seen))) == 4 or total < 8
    again = Windows(counts, groups)
    assert [again.draw(5, 2, place) for place in reversed(range(total))] == seen[2][::-1]
    assert total < 20 or [window.draw(6, 2, place) for place in range(total)] != seen[2]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_batches_of_shuffled_groups_are_pure_and_read_each_group_once(tmp_path, monkeypatch, hosts):
    for shard in range(4):
        img2dataset(tmp_path / f"{shard}.parquet", range(30 * shard, 30 * shard + 30), failed={7, 8, 50}, every=6)
    spec = {"where": {"status": "success"}, "read": ["width"], "shuffle_groups": 5}
    views = Views({"image": "decode|resize(4)", "text": "caption|tokenize(8)", "width": "column('width')"})
    make = lambda rows=None: Pipeline(parquet(tmp_path / "*.parquet", **spec), views, 3, 12, rows)
    whole = make()
    assert whole.examples == 117
    seen = np.concatenate([whole.batch(step)["width"] for step in range(39)]).reshape(4, 117)  # 39 steps are 4 epochs
    assert (np.sort(seen, axis=1) == [100 + n for n in range(120) if n not in (7, 8, 50)]).all()
    parts = [make(slice(h * 12 // hosts, (h + 1) * 12 // hosts)) for h in range(hosts)]
    for step in (0, 9, 10, 200):
        expected = whole.batch(step)
        for key, value in expected.items():
            np.testing.assert_array_equal(value, np.concatenate([part.batch(step)[key] for part in parts]), err_msg=key)
    decoded, read = [], row_groups.read
    monkeypatch.setattr(row_groups, "read", lambda file, about, groups, columns: decoded.append((file.url, *groups)) or read(
        file, about, groups, columns))
    source = parquet(tmp_path / "*.parquet", memory_mib=0.02, **{**spec, "where": None})
    for place in range(120):
        try:
            source[order.draw(source, 3, place)]
        except Bad:
            continue
    assert len(decoded) == len(set(decoded)) == 20
