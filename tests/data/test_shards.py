"""Sources over shards: img2dataset's layout with nothing but a path, the same from every store, and what bad shards give."""
import concurrent.futures
import io
import json
import logging
import os
import pickle

import fsspec
import numpy as np
import pytest
from stored import example, example_row, picture, places, row, rows, served, tar, tfrecord

from mcd_jax.data import pipeline, sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.storage import files
from mcd_jax.data.tools import index as index_tool


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.001))


@pytest.fixture
def shards(tmp_path):
    """Three tar and three TFRecord shards of ten examples each, with indexes."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        (folder / f"{shard:05d}.tar").write_bytes(tar(rows(10 * shard, 10 * shard + 10)))
        (folder / f"{shard:05d}.tfrecord").write_bytes(tfrecord([example_row(n) for n in range(10 * shard, 10 * shard + 10)]))
    assert index_tool.main([str(folder / "*"), "--workers=1"]) == 0
    return folder


NAME = {"webdataset": "{00000..00002}.tar", "tfrecord": "{00000..00002}.tfrecord"}


def opened(folder, members, name="a.tar", **spec):
    """A webdataset source of one archive of (name, bytes)."""
    (folder / name).write_bytes(members if isinstance(members, bytes) else tar(members))
    return sources.open({"name": "webdataset", "path": str(folder / name), **spec})


# ---- what is read ----


def test_img2datasets_tar_needs_only_a_path(shards):
    source = sources.open({"name": "webdataset", "path": str(shards / NAME["webdataset"])})
    assert len(source) == 30
    for number in (0, 9, 10, 17, -1):
        number %= 30
        jpg, about, text = (data for _, data in row(number))
        got = source[number]
        assert got["image"] == got["jpg"] == jpg and got["text"] == got["txt"] == text and got["key"] == f"{number:09d}"
        assert got["similarity"] == number / 100 and got["width"] == 20 and got["json"] == about and got["status"] == "success"
    with pytest.raises(IndexError, match="index 30 is outside a source of 30 examples"):
        source[30]


def test_img2datasets_tfrecord_needs_only_a_path(shards):
    source = sources.open({"name": "tfrecord", "path": str(shards / "*.tfrecord")})
    assert len(source) == 30
    for number in (0, 9, 10, 29):
        got = source[number]
        assert got["image"] == picture(number) and got["text"] == f"number {number}".encode() and got["key"] == f"{number:09d}"
        assert got["width"] == 20 and got["similarity"] == pytest.approx(number / 100)


@pytest.mark.parametrize("name", ["webdataset", "tfrecord"])
def test_every_store_and_every_thread_gives_the_same(shards, name):
    with places(shards, "test_shards") as bases:
        found = {store: sources.open({"name": name, "path": f"{base}/{NAME[name]}"}) for store, base in bases.items()}
        numbers = [*range(30)] * 4
        expected = [found["local"][number] for number in numbers]
        for source in found.values():
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                assert list(pool.map(source.__getitem__, numbers)) == expected
            assert pickle.loads(pickle.dumps(source))[3] == expected[3]


def test_an_example_is_one_read(shards, monkeypatch):
    source = sources.open({"name": "webdataset", "path": str(shards / "00000.tar")})
    right, reads = files.File.read, []
    monkeypatch.setattr(files.File, "read", lambda *place: reads.append(place) or right(*place))
    for number in range(10):
        assert source[number]["text"] == f"number {number}".encode()
    assert len(reads) == 10


def test_members_that_lie_apart_are_read_one_by_one(tmp_path, monkeypatch):
    far = [("big.bin", b"x" * 200_000)]
    source = opened(tmp_path, [("a.jpg", b"A"), ("b.jpg", b"B"), *far, ("b.txt", b"2"), ("a.txt", b"1")])
    right, sizes = files.File.read, []
    monkeypatch.setattr(files.File, "read", lambda file, offset, size: sizes.append(size) or right(file, offset, size))
    assert [(r["key"], r["image"], r["text"]) for r in source] == [("a", b"A", b"1"), ("b", b"B", b"2")]
    assert sizes == [1] * 4  # not what lies between


def test_columns_may_be_members_or_fields_and_have_alternatives(tmp_path):
    np.save(vector := io.BytesIO(), np.arange(3, dtype=np.float32))
    np.save(objects := io.BytesIO(), np.array([print], object), allow_pickle=True)
    about = {"caption": ["one", "eins", 1], "deep": {"title": "inside"}, "label": 7, "id": "x"}
    members = [("a.seg.PNG", b"S"), ("a.png", b"P"), ("a.jpg", b"J"), ("a.json", json.dumps(about).encode()), ("a.cls", b"12\n"),
               ("a.npy", vector.getvalue()), ("a.bad.npy", objects.getvalue()), ("a.md", b"notes")]
    got = opened(tmp_path, members)[0]
    assert (got["image"], got["text"], got["cls"], got["label"]) == (b"J", ["one", "eins"], 12, 7)
    assert got["npy"].tolist() == [0, 1, 2] and got["bad.npy"] is None and got["md"] == b"notes" and got["id"] == "x"
    for columns, image, text, key in (
            ({"image": "webp;png;jpg", "text": "deep/title"}, b"P", "inside", "a"),
            ({"image": "seg.png", "key": "id"}, b"S", ["one", "eins"], "x"),
            ({"text": "md;caption", "key": "none;label"}, b"J", b"notes", "7"),
            ({"text": "label"}, b"J", "7", "a")):
        got = opened(tmp_path, members, columns=columns)[0]
        assert (got["image"], got["text"], got["key"]) == (image, text, key)
    assert "text" not in opened(tmp_path, members, columns={"text": None})[0]


def test_lines_may_be_captions(tmp_path):
    members = [("a.jpg", b"J"), ("a.txt", b"one\ntwo\r\nthree\n"), ("b.jpg", b"J"), ("b.txt", b"only")]
    assert [r["text"] for r in opened(tmp_path, members, caption_lines=True)] == [[b"one", b"two", b"three"], [b"only"]]
    assert opened(tmp_path, members)[0]["text"] == b"one\ntwo\r\nthree\n"


@pytest.mark.parametrize("name", ["webdataset", "tfrecord"])
@pytest.mark.parametrize("where, numbers", [
    ({"similarity": {"min": 0.05, "max": 0.121}}, range(5, 13)), ({"similarity": {"min": 0.195}, "width": 20}, range(20, 30)),
    ({"width": [20, 30]}, range(30))])
def test_where_chooses_by_numbers(shards, name, where, numbers):
    source = sources.open({"name": name, "path": str(shards / NAME[name]), "where": where})
    assert [got["key"] for got in source] == [f"{number:09d}" for number in numbers]


def test_where_that_can_not_be_answered_is_refused(shards):
    spec = {"name": "webdataset", "path": str(shards / "*.tar")}
    for where, words in (({"nonsense": 1}, "no shard has a field 'nonsense'"),
                         ({"width": 21}, "no row of .*0.tar and the other shards"),
                         ({"watermark": {"least": 1}}, "bounds are min, max or both")):
        with pytest.raises(ValueError, match=words):
            sources.open({**spec, "where": where})
    assert [got["key"][-2:] for got in sources.open({**spec, "where": {"watermark": .25, "nsfw": [True]}})] == [
        f"{n:02d}" for n in range(30) if n % 5 and n % 3 == 0]  # a null is not kept
    (shards / "00001.tar.index").unlink()
    assert index_tool.main([str(shards / "00001.tar"), "--columns=width"]) == 0
    with pytest.raises(ValueError, match=r"index of .*00001.tar was made for \['width'\]; make it again with --columns similarity"):
        sources.open({**spec, "where": {"similarity": {"min": 0}}})
    assert len(sources.open({**spec, "where": {"width": 20}})) == 30


# ---- indexes that are missing ----


def test_a_missing_index_is_made_and_kept_where_that_is_possible(shards, tmp_path, caplog):
    def said(spec, count=30):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(sources.open({"name": "webdataset", **spec})) == count
        return caplog.text
    spec = {"path": str(shards / NAME["webdataset"])}
    assert said(spec) == ""
    (shards / "00001.tar.index").unlink()
    os.utime(shards / "00002.tar", ns=(3, 3))
    text = said(spec)
    assert "2 of 3 shards have no index that fits them, the first is" in text and "00001.tar;" in text
    assert "mcd-jax index '" + spec["path"] + "'" in text and "could not be kept" not in text
    assert said(spec) == ""
    text = said({**spec, "index": str(tmp_path / "none")})
    assert "--out " + str(tmp_path / "none") in text and "3 indexes could not be kept" in text and "data.source.index names" in text
    (tmp_path / "none").mkdir()
    said({**spec, "index": str(tmp_path / "none")})
    assert len(os.listdir(tmp_path / "none")) == 3 and said({**spec, "index": str(tmp_path / "none")}) == ""
    (shards / "00000.tar.index").unlink()
    with served(shards) as server:
        text = said({"path": server.url + "/00000.tar?key=1"}, 10)
        assert "1 indexes could not be kept" in text and "nothing can be written to a web server" in text


# ---- bad input ----


def test_examples_without_image_or_caption(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, [
            ("stats.json", b"{}"), *row(3), ("x.jpg", b"J"), ("y.txt", b"no image"), ("z.jpg", b"J"), ("z.json", b"[1]"),
            ("u.jpg", b"J"), ("u.json", b'{"caption": null, "width": 2}'), ("v.jpg", b"J"), ("v.txt", b""),
            ("w.jpg", b"J"), ("w.txt", b""), ("w.json", b'{"caption": "from json"}')])
    assert len(source) == 6 and source[0]["text"] == b"number 3"  # stats and y have no image
    for number, key in ((1, "x"), (2, "z"), (3, "u")):
        with pytest.raises(Bad, match=f"no caption: {key}: neither of txt, caption"):
            source[number]
    assert source[4]["text"] == b"" and source[5]["text"] == "from json"
    assert "1 x broken json (the first: a.tar, z.json)" in caplog.text


def test_a_broken_shard_gives_what_precedes_the_break(tmp_path, caplog):
    data = bytearray(tar(rows(0, 5)))
    at = data.index(b"000000003.json")
    data[at + 100] ^= 0x55
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, bytes(data))
    assert len(source) == 4 and source[2]["text"] == b"number 2"
    with pytest.raises(Bad, match="no caption"):
        source[3]  # its image came before
    assert f"1 x broken header (the first: a.tar, at byte {at}; the rest of the shard is lost)" in caplog.text
    whole = tar(rows(0, 5))
    source = opened(tmp_path, whole[:whole.index(b"000000004.jpg") + 700], "b.tar")
    assert len(source) == 4 and [got["text"] for got in source] == [f"number {n}".encode() for n in range(4)]


def test_names_are_never_paths_and_keys_may_repeat(tmp_path):
    source = opened(tmp_path, [
        ("/etc/passwd.jpg", b"1"), ("/etc/passwd.txt", b"a"), ("../../up.jpg", b"2"), ("../../up.txt", b"b"), ("k.jpg", b"3"),
        ("k.txt", b"c"), ("k.jpg", b"4"), ("k.txt", b"d"), (".hidden.jpg", b"5"), ("README", b"")])
    assert [(got["key"], got["image"], got["text"]) for got in source] == [
        ("/etc/passwd", b"1", b"a"), ("../../up", b"2", b"b"), ("k", b"3", b"c"), ("k", b"4", b"d")]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.index"]


@pytest.mark.parametrize("spec, words", [
    ({"path": "x.tar", "colums": {}}, "no key 'colums' for the webdataset source; it has name, path, index, where, columns"),
    ({}, "data.source.path is missing"), ({"columns": {"caption": "x"}, "path": "x"}, "columns has no 'caption'"),
    ({"columns": {"image": "tiff"}}, r"no example of .*0.tar \(3 shards\) has an image; the members are jpg, json, txt; set"),
    ({"columns": {"text": "title;alt"}}, "no column title or alt for text; it has .*caption.*; set data.source.columns.text"),
    ({"path": "*.tfrecord"}, "00000.tfrecord is a tfrecord file; the webdataset source reads tar files")])
def test_a_wrong_spec_is_refused(shards, spec, words):
    spec = {"path": NAME["webdataset"], **spec} if spec else spec
    spec |= {"path": str(shards / spec["path"])} if spec else {}
    with pytest.raises(ValueError, match=words):
        sources.open({"name": "webdataset", **spec})


def test_what_is_no_shard_is_refused_before_the_run(shards):
    with pytest.raises(FileNotFoundError, match=r"no file fits .*\{00000..00003\}.tar' \(there is no .*00003.tar\)"):
        sources.open({"name": "webdataset", "path": str(shards / "{00000..00003}.tar")})
    (shards / "00003.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ValueError, match=r"00003.tar is compressed by gzip.*gunzip"):
        sources.open({"name": "webdataset", "path": str(shards / "*.tar")})
    with pytest.raises(ValueError, match="has no column title for text; it has caption, jpg, key, similarity, width"):
        sources.open({"name": "tfrecord", "path": str(shards / "*.tfrecord"), "columns": {"text": "title"}})
    with pytest.raises(FileNotFoundError, match="fits nothing but index files"):
        sources.open({"name": "tfrecord", "path": str(shards / "*.index")})


@pytest.mark.parametrize("store", ["local", "memory", "http"])
@pytest.mark.parametrize("name", ["webdataset", "tfrecord"])
def test_a_shard_that_changes_or_vanishes_stops_the_run_by_name(shards, monkeypatch, name, store):
    if store == "memory":  # the others tell on every read
        monkeypatch.setattr(files, "CHECK", 0.0)
    victim = NAME[name].replace("{00000..00002}", "00001")
    with places(shards, "test_changes") as bases:
        source = sources.open({"name": name, "path": f"{bases[store]}/{NAME[name]}"})
        memory, data = fsspec.filesystem("memory"), (shards / victim).read_bytes()
        memory.pipe_file(f"/test_changes/{victim}", data)
        os.utime(shards / victim, ns=(1, 1))
        with pytest.raises(files.Changed, match=f"{victim} changed while it was in use"):
            source[15]
        memory.rm(f"/test_changes/{victim}")
        (shards / victim).unlink()
        with pytest.raises(files.Changed, match=f"{victim} vanished while it was in use"):
            source[15]
        assert source[5]["key"] == "000000005" and source[25]["key"] == "000000025"


def test_records_without_image_caption_or_a_right_checksum(tmp_path, monkeypatch):
    from mcd_jax.data.storage import records
    data = tfrecord([example_row(0), example(caption=b"x", key=b"k1"), example(png=picture(1), key=b"k2"),
                     example(jpg=picture(2), text=[b"a", b"b"])])
    (tmp_path / "a.tfrecord").write_bytes(data[:-30])
    source = sources.open({"name": "tfrecord", "path": str(tmp_path / "a.tfrecord")})
    assert len(source) == 3
    (tmp_path / "b.tfrecord").write_bytes(data)
    source = sources.open({"name": "tfrecord", "path": str(tmp_path / "b.tfrecord")})
    assert source[3]["text"] == [b"a", b"b"] and source[3]["key"] == "3"
    for number, words in ((1, "missing image: k1"), (2, "no caption: k2")):
        with pytest.raises(Bad, match=words):
            source[number]
    monkeypatch.setattr(records, "fast_crc", lambda: lambda data: 0)
    with pytest.raises(Bad, match=r"corrupt record: .*b.tfrecord, byte 12"):
        source[0]


# ---- through the pipeline ----

VIEWS = {"image": "decode|crop(8,0.5)", "text": "caption|tokenize(6)", "width": "column('width')"}


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("name", ["webdataset", "tfrecord"])
def test_any_number_of_hosts_sees_the_same_global_batch(shards, name, hosts):
    if name == "webdataset":  # a corrupt image moves nothing
        members = rows(0, 10)
        members[12] = (members[12][0], b"<html>")
        (shards / "00000.tar").write_bytes(tar(members))
    config = {"source": {"name": name, "path": str(shards / NAME[name])}, "views": VIEWS, "workers": 2}
    whole, size = pipeline.make(config, 3, 8), 8 // hosts
    parts = [pipeline.make(config, 3, 8, slice(h * size, (h + 1) * size)) for h in range(hosts)]
    seen = set()
    for step in (0, 2, 3, 11):
        expected = whole.batch(step)
        ahead = [part.iterate(step) for part in parts]
        found = [next(batches) for batches in ahead]
        for key, value in expected.items():
            np.testing.assert_array_equal(value, np.concatenate([batch[key] for batch in found]), err_msg=key)
        seen |= set(expected["index"].tolist())
        assert not expected["bad"].any() or name == "webdataset"
        for part in parts:
            part.close()
    assert len(seen) > 20 and (4 not in seen or name != "webdataset")


# ---- array_record behind a url ----


def test_array_record_is_copied_from_a_url(tmp_path):
    from array_record.python import array_record_module
    folder = tmp_path / "there"
    folder.mkdir()
    for shard in range(2):
        writer = array_record_module.ArrayRecordWriter(str(folder / f"p-{shard}.array_record"), "group_size:1")
        for number in range(5 * shard, 5 * shard + 5):
            writer.write(example_row(number))
        writer.close()
    more = {"name": "array_record", "columns": {"image": "jpg", "text": "caption"}, "cache": str(tmp_path / "cache")}
    with places(folder, "test_array_record") as bases:
        found = {store: sources.open({**more, "path": base + "/p-{0..1}.array_record"}) for store, base in bases.items()}
        assert len(os.listdir(tmp_path / "cache")) == 1 + 4
        with pytest.raises(ValueError, match=r"cache_mib=0.0001: the 2 shards \(http://.*p-0.array_record, ...\) take 0.2 MiB"):
            sources.open({**more, "path": bases["http"] + "/p-{0..1}.array_record", "cache_mib": 0.0001})
    assert [len(source) for source in found.values()] == [10, 10, 10]
    assert all(list(source) == list(found["local"]) for source in found.values())
    assert found["http"][7]["image"] == picture(7)
