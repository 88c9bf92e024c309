"""Indexes of shards: where tarfile and TensorBoard's writer put things, what broken shards give, and a command that goes on."""
import io
import json
import os
import random
import struct
import sys
import tarfile
import types

import numpy as np
import pytest
from stored import example, example_row, row, rows, served, tar, tfrecord
from tensorboardX import crc32c

from mcd_jax.data.storage import files, index, records
from mcd_jax.data.storage import tar as tars
from mcd_jax.data.tools import index as index_tool


def scan(data, piece=700):
    """(members, problems) of the bytes of an archive."""
    class InMemory:
        size = len(data)

        def read(self, offset, size):
            assert 0 <= offset <= offset + size <= len(data)
            return data[offset:offset + size]
    problems = []
    found = list(tars.members(tars.Window(InMemory(), piece), len(data), lambda cause, detail: problems.append((cause, detail))))
    return found, problems


def theirs(data):
    """What tarfile finds."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(member.name.encode(), member.offset_data, member.size) for member in archive if member.isreg()]


def info(name, kind, **more):
    result = tarfile.TarInfo(name)
    result.type = kind
    for key, value in more.items():
        setattr(result, key, value)
    return result


# ---- headers ----

NAMES = ["a.jpg", "train/0001.txt", "d" * 60 + "/" + "e" * 60 + "/f.json", "long" * 60 + ".jpg", "ü/Ω.png", "/etc/x.txt",
         "../../y.txt", "./z.txt", "empty.txt"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("piece", [1, 700, 10 ** 6])
def test_members_are_where_tarfile_finds_them(form, piece):
    names = [name for name in NAMES if form != tarfile.USTAR_FORMAT or not name.startswith("long")]
    others = [info("folder", tarfile.DIRTYPE), info("link.jpg", tarfile.SYMTYPE, linkname="a.jpg", size=700),  # no data follows
              info("hard.jpg", tarfile.LNKTYPE, linkname="k" * (150 if form != tarfile.USTAR_FORMAT else 50))]
    data = tar([*others, *((name, bytes([n]) * (n * 300 % 1100)) for n, name in enumerate(names)), others[0]], form)
    found, problems = scan(data, piece)
    assert found == theirs(data) and len(found) == len(names)
    assert problems == [("link", "link.jpg"), ("link", "hard.jpg")]


def test_headers_of_old_programs_and_of_large_files():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        large = info("large.bin", tarfile.REGTYPE, size=2 ** 33 + 5)  # 8 GiB and more: the size is not octal
        archive.addfile(large)
    head = bytearray(file.getvalue()[:512])
    assert head[124] == 0x80
    assert scan(bytes(head))[1] == [("truncated member", "large.bin")]
    old = bytearray(tar([("a.txt", b"hello")], tarfile.USTAR_FORMAT))
    old[257:512] = bytes(255)  # before ustar: neither magic nor prefix
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 256 + sum(old[156:512]))
    old[156] = 0
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 256 + sum(old[156:512]))
    assert scan(bytes(old)) == ([(b"a.txt", 512, 5)], [])
    signed = bytearray(tar([("ü.txt", b"hello")], tarfile.GNU_FORMAT))
    rest = signed[:148] + signed[156:512]
    signed[148:156] = b"%06o\0 " % (256 + sum(byte - 256 * (byte > 127) for byte in rest))
    assert scan(bytes(signed)) == ([("ü.txt".encode(), 512, 5)], [])


@pytest.mark.parametrize("where, text", [
    (124, b"-0000001000\0"), (124, b"\xff" * 12), (512, b"14 size=-1024\n\0"), (512, b"9999 size=1\n"), (512, b"-3 size=1\n"),
    (512, b"nonsense\n"), (512, b"12 size=1.5\n\0")])
def test_sizes_that_lead_back_or_nowhere_end_the_archive(where, text):
    data = bytearray(tar([("a.txt", b"hello"), info("ü.txt", tarfile.REGTYPE)]))
    assert data[1024 + 156:1024 + 157] == b"x"
    data[1024 + where:1024 + where + len(text)] = text
    data[1024 + 148:1024 + 156] = b"%06o\0 " % (sum(data[1024:1024 + 148]) + 256 + sum(data[1024 + 156:1536]))
    assert scan(bytes(data)) == ([(b"a.txt", 512, 5)], [("broken header", "at byte 1024; the rest of the shard is lost")])


GOOD = tar(rows(0, 3))
THIRD = GOOD.index(b"000000001.jpg") // 512 * 512  # where the second example begins


@pytest.mark.parametrize("data, count, problem", [
    (GOOD, 9, None), (GOOD[:len(GOOD) // 10240 * 10240], 9, None), (tar([]), 0, None),
    (GOOD[:THIRD] + b"\xff" * 512 + GOOD[THIRD + 512:], 3, ("broken header", f"at byte {THIRD}; the rest of the shard is lost")),
    (GOOD[:THIRD] + b"<html>" + GOOD[THIRD + 6:], 3, ("broken header", f"at byte {THIRD}; the rest of the shard is lost")),
    (GOOD[:THIRD] + GOOD[THIRD:THIRD + 512].replace(b"\x0000000", b"\x0077777", 1) + GOOD[THIRD + 512:], 3, None),
    (GOOD[:THIRD + 600], 3, ("truncated member", "000000001.jpg")),
    (GOOD[:THIRD + 100], 3, ("truncated member", f"header at byte {THIRD}")),
    (GOOD[:THIRD], 3, ("no end of the archive", f"at byte {THIRD}")),
    (GOOD + GOOD, 9, ("data after the end", None))])
def test_broken_archives_give_what_precedes_the_break(data, count, problem):
    found, problems = scan(data)
    if problem is None and count == 3:  # one digit of a header changed
        assert [cause for cause, _ in problems] == ["broken header"]
    else:
        assert [cause for cause, _ in problems] == ([problem[0]] if problem else [])
        assert problem is None or problem[1] in (None, problems[0][1])
    assert found == theirs(GOOD)[:count]


def test_damage_anywhere_neither_hangs_nor_reaches_outside():
    long = tar([("n" * 300 + ".jpg", b"x" * 700), *rows(0, 2), ("ü.txt", b"y")], tarfile.PAX_FORMAT)
    gnu = tar([("n" * 300 + ".jpg", b"x" * 700), *rows(0, 2)], tarfile.GNU_FORMAT)
    generator, seen = random.Random(0), set()
    for data in (long, gnu):
        heads = [at for at in range(0, len(data), 512) if data[at + 257:at + 262] == b"ustar"]
        for trial in range(400):
            broken = bytearray(data)
            for _ in range(generator.randint(1, 3)):
                at = generator.choice(heads) + generator.randrange(1200) if trial % 4 else generator.randrange(len(data))
                broken[min(at, len(data) - 1)] = generator.randrange(256)
            if trial % 3 == 0:  # as if it were meant: the checksums are right
                for at in heads:
                    total = sum(broken[at:at + 148]) + 256 + sum(broken[at + 156:at + 512])
                    broken[at + 148:at + 156] = b"%06o\0 " % total
            unit = 512 if trial % 2 else 1
            end = len(data) if trial % 5 else generator.randrange(len(data)) // unit * unit
            found, problems = scan(bytes(broken[:end]))
            assert all(0 <= offset <= offset + size <= len(data) for _, offset, size in found)
            seen |= {cause for cause, _ in problems}
    assert {"broken header", "truncated member", "no end of the archive"} <= seen


@pytest.mark.parametrize("name, parts", [
    ("0001.jpg", ("0001", "jpg")), ("a/b.c/001.Seg.PNG", ("a/b.c/001", "seg.png")), ("./x.txt", ("./x", "txt")),
    ("/etc/passwd.txt", ("/etc/passwd", "txt")), ("../up.txt", ("../up", "txt")), ("README", None), (".hidden", None),
    ("a/._001.jpg", None), ("a.b/README", None), ("end.", None)])
def test_names_are_split_at_the_first_dot_of_the_last_part(name, parts):
    assert tars.split(name.encode()) == (parts and tuple(part.encode() for part in parts))


# ---- TFRecord ----


def test_records_are_where_the_writer_put_them():
    assert records.crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    data = tfrecord([b"one", b"", b"three" * 1000])
    assert scan_records(data) == ([(12, 3), (31, 0), (47, 5000)], [])
    assert [data[a:a + n] for a, n in scan_records(data)[0]] == [b"one", b"", b"three" * 1000]
    for cut in (19, 20, 31, 34, 300):
        found, problems = scan_records(data[:cut])
        assert found == [place for place in ((12, 3), (31, 0)) if sum(place) + 4 <= cut]
        assert [cause for cause, _ in problems] == ["truncated record"] * (cut > 19)
    for at in (19, 26, 27, 30):
        broken = bytearray(data)
        broken[at] ^= 1
        assert scan_records(bytes(broken)) == ([(12, 3)], [("broken record header", "at byte 19; the rest of the shard is lost")])


def scan_records(data):
    class InMemory:
        size = len(data)

        def read(self, offset, size):
            return data[offset:offset + size]
    problems = []
    return list(records.records(tars.Window(InMemory(), 50), len(data), lambda *problem: problems.append(problem))), problems


def test_data_is_checked_where_a_fast_package_is_there(tmp_path, monkeypatch):
    data = bytearray(tfrecord([example_row(number) for number in range(3)]))
    data[data.index(b"number 1") + 3] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    monkeypatch.setitem(sys.modules, "google_crc32c", None)  # not installed
    records.fast_crc.cache_clear()
    assert len(index.build(tmp_path / "a.tfrecord")) == 3
    monkeypatch.setitem(sys.modules, "google_crc32c", types.SimpleNamespace(value=crc32c.crc32c))
    records.fast_crc.cache_clear()
    found = index.build(tmp_path / "a.tfrecord")
    assert len(found) == 2 and found.problems["corrupt record"][0] == 1 and found.columns["width"].tolist() == [20, 20]
    monkeypatch.undo()
    records.fast_crc.cache_clear()


# ---- one shard ----


def test_an_index_knows_members_keys_and_numbers(tmp_path):
    (tmp_path / "a.tar").write_bytes(data := tar(rows(0, 7)))
    built = index.build(tmp_path / "a.tar")
    files.write(tmp_path / "a.tar.index", built.dump())
    for found in (built, index.Index.load(tmp_path / "a.tar.index", None)):
        assert len(found) == 7 and found.kind == "tar" and not found.problems
        assert found.stamp == files.File(tmp_path / "a.tar").stamp
        for number in range(7):
            assert found.key(number) == f"{number:09d}".encode()
            assert [(found.key(number).decode() + "." + kind, data[a:a + n]) for kind, a, n in found.where(number)] == row(number)
        assert sorted(found.columns) == ["height", "nsfw", "similarity", "watermark", "width"]  # numbers and flags, no str
        assert found.columns["width"].tolist() == [20] * 7 and found.columns["width"].dtype == np.uint32
        assert found.columns["similarity"].tolist() == [number / 100 for number in range(7)]
        assert found.columns["nsfw"].tolist() == [1, 0, 0, 1, 0, 0, 1]
        np.testing.assert_array_equal(found.columns["watermark"], [np.nan, .25, .25, .25, .25, np.nan, .25])
    assert list(index.Index.load(tmp_path / "a.tar.index", ["width", "no"]).columns) == ["width"]
    assert found.places.nbytes + found.sizes.nbytes == 7 * 3 * 8


def test_columns_that_are_missing_odd_or_too_many(tmp_path):
    odd = [{"n": 1, "big": 2 ** 70, "text": "1", "list": [1], "nan": float("nan"), "minus": -3}, {"n": 1.5, "big": 1, "minus": -4},
           ["no object"], {"n": None, **{f"c{number}": number for number in range(300)}, "big": 10 ** 400, "minus": 0}]
    (tmp_path / "a.tar").write_bytes(tar([*((f"{n}.json", json.dumps(value).encode()) for n, value in enumerate(odd)),
                                          ("4.json", b"{broken"), ("5.jpg", b"")]))
    found = index.build(tmp_path / "a.tar")
    np.testing.assert_array_equal(found.columns["n"], [1, 1.5] + [np.nan] * 4)
    np.testing.assert_array_equal(found.columns["big"], [float(2 ** 70), 1] + [np.nan] * 4)
    np.testing.assert_array_equal(found.columns["minus"], [-3, -4, np.nan, 0, np.nan, np.nan])
    assert not {"text", "list"} & found.columns.keys() and len(found.columns) == 256
    assert {cause: count for cause, (count, _) in found.problems.items()} == {"broken json": 2, "too many columns": 48}
    assert list(index.build(tmp_path / "a.tar", ["minus", "absent"]).columns) == ["absent", "minus"]
    assert index.build(tmp_path / "a.tar", ()).columns == {}


def test_keys_that_come_twice_or_apart_and_kinds_without_end(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("a.jpg", b"4"), ("b.txt", b"5"),
                                          ("a.txt", b"6"), ("x/a.jpg", b"7")]))
    found = index.build(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert [(found.key(n), {kind: data[a:a + size] for kind, a, size in found.where(n)}) for n in range(len(found))] == [
        (b"a", {"jpg": b"1", "txt": b"3"}), (b"b", {"jpg": b"2", "txt": b"5"}), (b"a", {"jpg": b"4", "txt": b"6"}),
        (b"x/a", {"jpg": b"7"})]
    assert found.problems == {"duplicated key": [1, "a"]}
    (tmp_path / "b.tar").write_bytes(tar([(f"IMG.{number}.jpg", b"") for number in range(100)]))
    found = index.build(tmp_path / "b.tar")
    assert len(found.members) == 64 and found.problems["too many kinds of members"] == [36, "IMG.64.jpg"]


@pytest.mark.parametrize("data, words", [
    (b"\x1f\x8b\x08" + b"x" * 600, r"a.tar is compressed by gzip, .*gunzip"), (b"\x28\xb5\x2f\xfd" + b"x" * 600, "by zstd"),
    (b"BZh9", "by bzip2"), (b"", "a.tar is empty"), (b"<!DOCTYPE html>" * 50, "neither a tar archive nor a TFRecord.*DOCTYPE")])
def test_what_is_no_shard_is_refused(tmp_path, data, words):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        index.build(tmp_path / "a.tar")


def test_an_index_that_does_not_fit_counts_as_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(GOOD)
    good = index.make(tmp_path / "a.tar").dump()
    place = tmp_path / "a.tar.index"
    file = files.File(tmp_path / "a.tar")
    assert index.find(file) is not None

    def store(**changed):
        stored = dict(np.load(io.BytesIO(good)))
        np.savez(out := io.BytesIO(), **{**stored, **changed})
        place.write_bytes(out.getvalue())
    about = json.loads(np.load(io.BytesIO(good))["about"].tobytes())
    packed = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
    store()
    assert index.find(file) is not None
    for changed in ({"about": packed({**about, "version": 0})}, {"about": packed({**about, "stamp": "other"})},
                    {"about": packed([])}, {"places": np.zeros((5, 3), np.uint32)}, {"text": np.array([print], object)}):
        store(**changed)
        assert index.find(file) is None
    for data in (b"", b"PK", good[:100], good[:-30]):
        place.write_bytes(data)
        assert index.find(file) is None
        with pytest.raises(ValueError, match=r"a.tar.index is no index of version 1"):
            index.Index.load(place)


# ---- the command ----


def command(capsys, *arguments):
    try:
        status, refused = index_tool.main([*map(str, arguments)]), ""
    except SystemExit as end:
        status, refused = 1, end.code
    said = capsys.readouterr()
    return status, said.out, said.err + refused


@pytest.fixture
def shards(tmp_path):
    for shard in range(4):
        (tmp_path / f"{shard:05d}.tar").write_bytes(tar(rows(10 * shard, 10 * shard + 10)))
    (tmp_path / "00004.tfrecord").write_bytes(tfrecord([example_row(number) for number in range(5)]))
    return tmp_path


def test_the_command_goes_on_where_it_stopped(shards, capsys):
    status, out, err = command(capsys, shards / "{00000..00003}.tar", shards / "*.tfrecord", "--workers", 2)
    assert (status, err) == (0, "") and out.startswith("45 examples in 5 of 5 shards: 5 indexed in")
    assert len(list(shards.iterdir())) == 10
    before = {path: path.stat().st_mtime_ns for path in shards.glob("*.index")}
    (shards / "00002.tar.index").unlink()
    os.utime(shards / "00003.tar", ns=(7, 7))
    status, out, _ = command(capsys, shards / "0*", "--workers", 1)
    assert status == 0 and "2 indexed in" in out and "3 had an index, 0 failed" in out
    assert {path.name for path, time in before.items() if path.stat().st_mtime_ns != time} == {"00002.tar.index", "00003.tar.index"}
    assert index.find(files.File(shards / "00003.tar")) is not None


def test_other_columns_are_indexed_when_they_are_asked_for(shards, capsys):
    urls = [shards / "00000.tar", shards / "00004.tfrecord", "--workers", 1]
    for columns, done in (("width,no", 2), ("width", 0), ("", 0), ("similarity", 2), (None, 2), ("width", 0)):
        status, out, _ = command(capsys, *urls, *(["--columns", columns] if columns is not None else []))
        assert status == 0 and f"{done} indexed in" in out, columns
    for name in ("00000.tar", "00004.tfrecord"):
        found = index.Index.load(shards / (name + ".index"), None)
        assert {"similarity", "width"} <= found.columns.keys() and "caption" not in found.columns


def test_a_folder_for_indexes(shards, tmp_path, capsys):
    status, _, _ = command(capsys, shards / "0000[01].tar", "--out", tmp_path / "deep" / "out", "--workers", 1)
    assert status == 0 and sorted(os.listdir(tmp_path / "deep" / "out")) == ["00000.tar.index", "00001.tar.index"]
    assert not list(shards.glob("*.index"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00000.tar").write_bytes(GOOD)
    status, _, err = command(capsys, shards / "00000.tar", tmp_path / "other" / "*", "--out", tmp_path / "out")
    assert status == 1 and "00000.tar comes more than once in SHARDS" in err
    with served(shards) as server:
        status, out, err = command(capsys, server.url + "/{00000..00002}.tar?key=1", "--out", tmp_path / "web", "--workers", 2)
        assert status == 0 and "30 examples in 3 of 3" in out and len(os.listdir(tmp_path / "web")) == 3
        status, out, err = command(capsys, server.url + "/00000.tar", "--workers", 1)
        assert status == 1 and "nothing can be written to a web server" in err


def test_problems_are_counted_and_failures_do_not_stop_the_others(shards, capsys):
    twice = tar([*rows(0, 2), *rows(1, 2)])
    (shards / "00001.tar").write_bytes(twice[:twice.rindex(b"000000001.txt") + 515])
    (shards / "00002.tar").write_bytes(GOOD[:THIRD + 600])
    (shards / "00003.tar").write_bytes(b"\x1f\x8b" + b"z" * 1000)
    (shards / "00005.tar").write_bytes(tar([]))
    for workers in (1, 2):
        for made in shards.glob("*.index"):
            made.unlink()
        status, out, err = command(capsys, shards / "*.tar", "--workers", workers)
        assert status == 1 and "compressed by gzip" in err and err.count("\n") == 1
        assert "in 4 of 5 shards: 4 indexed" in out and "1 failed" in out
        assert "  2 x truncated member (the first: 0000" in out and "1 x duplicated key (the first: 00001.tar, 000000001)" in out
    status, out, err = command(capsys, shards / "none*")
    assert status == 1 and "SHARDS: no file fits" in err


def test_a_shard_that_changes_meanwhile_gets_no_index(shards, monkeypatch, capsys):
    def late(*arguments):
        os.utime(shards / "00000.tar", ns=(9, 9))
        return right(*arguments)
    right = tars.split
    monkeypatch.setattr(tars, "split", late)
    status, _, err = command(capsys, shards / "00000.tar")
    assert status == 1 and "00000.tar changed while it was in use" in err and not list(shards.glob("*.index"))


def test_no_tf_train_example(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(tfrecord([example(width=3), b"\xff\xff\xff", example(width=[3, 4]), example(width=5.5)]))
    found = index.build(tmp_path / "a.tfrecord")
    assert len(found) == 3 and found.problems == {"not a tf.train.Example": [1, f"at byte {28 + len(example(width=3))}"]}
    np.testing.assert_array_equal(found.columns["width"], [3, np.nan, 5.5])
    data = (tmp_path / "a.tfrecord").read_bytes()
    for (_, offset, size), in map(found.where, range(3)):
        assert struct.unpack("<Q", data[offset - 12:offset - 4]) == (size,)
