"""Files: what patterns stand for, the same bytes from every store, failures that pass or are named, and the bounded cache."""
import concurrent.futures
import os
import pathlib
import pickle
import random
import subprocess
import sys

import fsspec
import pytest
from stored import places, served

from mcd_jax.data.storage import files, stores
from mcd_jax.data.storage.braces import braces


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    assert len(files.PAUSES) == 2 and sum(files.PAUSES) < 2
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.001))


@pytest.fixture
def bases(tmp_path):
    random.seed(1)
    (tmp_path / "a.bin").write_bytes(random.randbytes(100_000))
    (tmp_path / "b.bin").write_bytes(b"b" * 10)
    (tmp_path / "empty.bin").write_bytes(b"")
    with places(tmp_path, "test_files") as found:
        yield found


# ---- patterns ----


@pytest.mark.parametrize("pattern, names", [
    ("a", ["a"]), ("{00..03}.tar", ["00.tar", "01.tar", "02.tar", "03.tar"]), ("{9..11}", ["9", "10", "11"]),
    ("{08..010}", ["008", "009", "010"]), ("{2..0}", ["2", "1", "0"]), ("x{,y}", ["x", "xy"]),
    ("{a,b}{1..2}x", ["a1x", "a2x", "b1x", "b2x"]),
    ("s://b/{train,test}-{0..1}.tar", ["s://b/train-0.tar", "s://b/train-1.tar", "s://b/test-0.tar", "s://b/test-1.tar"])])
def test_braces_stand_for_what_they_do_in_a_shell(pattern, names):
    assert braces(pattern) == names


@pytest.mark.parametrize("pattern, words", [
    ("{}", "neither a range"), ("{x}", "neither a range"), ("{1..2", "can't be read"), ("1..2}", "can't be read"),
    ("{a,{b,c}}", "not nested"), ("{0..99999999}", "more than 10,000,000"), ("{0..9999}" * 2, "more than 10,000,000")])
def test_braces_that_can_not_be_read_are_refused(pattern, words):
    with pytest.raises(ValueError, match=words):
        braces(pattern)


def test_patterns_are_looked_up_in_order(tmp_path, monkeypatch):
    for name in ("s-10.tar", "s-9.tar", "t.tar", "{odd}.tar"):
        (tmp_path / name).touch()
    (tmp_path / "s-folder.tar").mkdir()
    at = lambda name: str(tmp_path / name)
    assert files.expand(at("s-*.tar")) == [at("s-10.tar"), at("s-9.tar")]
    assert files.expand([at("t.tar"), tmp_path / "s-{9..10}.tar"]) == [at("t.tar"), at("s-9.tar"), at("s-10.tar")]
    assert files.expand(at("{odd}.tar")) == [at("{odd}.tar")] and files.expand("file://" + at("t.tar")) == [at("t.tar")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expand("~/t.ta?") == [at("t.tar")]


def test_patterns_that_fit_nothing_are_named(bases):
    for store, base in bases.items():
        assert files.expand(base + "/{a,b}.bin") == [base + "/a.bin", base + "/b.bin"]
        with pytest.raises(FileNotFoundError, match=r"no file fits '.*\{a,c\}.bin' \(there is no .*/c.bin\)"):
            files.expand(base + "/{a,c}.bin")
        with pytest.raises(FileNotFoundError, match=r"no file fits '.*none.bin'"):
            files.expand(base + "/none.bin")
        if store == "http":
            with pytest.raises(ValueError, match="web servers can't list files; name them with braces"):
                files.expand(base + "/*.bin")
            continue
        found = [url.replace("memory:///", "memory://") for url in files.expand(base + "/[ab].bin")]
        assert found == [base + "/a.bin", base + "/b.bin"]
        with pytest.raises(FileNotFoundError, match=r"SHARDS: no file fits '.*/c\*'"):
            files.expand([base + "/a.bin", base + "/c*"], "SHARDS")


# ---- ranged reads ----


def test_every_store_gives_the_same_bytes_to_many_threads(bases, tmp_path):
    whole = (tmp_path / "a.bin").read_bytes()
    ranges = [(start, random.randint(0, len(whole) - start)) for start in random.choices(range(len(whole)), k=100)] + [(0, 100_000)]
    for base in bases.values():
        file = pickle.loads(pickle.dumps(files.File(base + "/a.bin")))
        assert file.size == 100_000 and file.url == base + "/a.bin"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda place: file.read(*place), ranges)) == [whole[a:a + n] for a, n in ranges]
        with pytest.raises(ValueError, match=r"a.bin has 100000 bytes: there is no range of 2 from 99999"):
            file.read(99_999, 2)
        assert files.File(base + "/empty.bin").size == 0 and files.File(base + "/empty.bin").read(0, 0) == b""
        with pytest.raises(FileNotFoundError):
            files.File(base + "/none.bin")
    with pytest.raises(FileNotFoundError):
        files.File(tmp_path)


@pytest.mark.parametrize("store, kind", [("local", "Local"), ("memory", "Bucket"), ("http", "Http")])
def test_a_read_that_fails_twice_works_and_one_that_fails_again_is_named(bases, monkeypatch, store, kind):
    file, right = files.File(bases[store] + "/b.bin"), getattr(stores, kind).read
    failures = [TimeoutError("slow"), ConnectionResetError("gone"), RuntimeError("third")]

    def read(*place):
        if failures:
            raise failures.pop()
        return right(*place)
    monkeypatch.setattr(getattr(stores, kind), "read", staticmethod(read))
    failures.pop()
    assert file.read(2, 3) == b"bbb" and not failures
    failures += [TimeoutError("slow")] * 3
    with pytest.raises(OSError, match=r"/b.bin: 3 bytes from 2 can't be read, tried 3 times \(TimeoutError: slow\)"):
        file.read(2, 3)
    monkeypatch.setattr(getattr(stores, kind), "read", staticmethod(lambda *_: (b"b", None)))
    with pytest.raises(OSError, match="only 1 bytes came"):
        file.read(2, 3)


def test_a_server_that_fails_twice_is_asked_again(tmp_path):
    (tmp_path / "b.bin").write_bytes(b"0123456789")
    with served(tmp_path) as server:
        server.fail = 2
        file = files.File(server.url + "/b.bin?token=1")
        server.fail = 2
        assert file.read(3, 4) == b"3456" and len(server.asked) == 6
        server.fail = 3
        with pytest.raises(OSError, match=r"tried 3 times .*503"):
            file.read(3, 4)
        server.ranges = False
        with pytest.raises(OSError, match="the server doesn't answer byte ranges"):
            files.File(server.url + "/b.bin")


@pytest.mark.parametrize("store", ["local", "memory", "http"])
def test_a_file_that_changed_or_vanished_is_named(bases, monkeypatch, tmp_path, store):
    if store == "memory":  # the others tell on every read
        monkeypatch.setattr(files, "CHECK", 0.0)
    url = bases[store] + "/b.bin"
    memory = fsspec.filesystem("memory")
    for new in (b"B" * 10, b"b" * 11, b"b" * 4, b""):
        file = files.File(url)
        assert store != "local" or file.size == os.path.getsize(url)
        memory.pipe_file("/test_files/b.bin", new)
        (tmp_path / "b.bin").write_bytes(new)
        os.utime(tmp_path / "b.bin", ns=(1, len(new) + new.count(b"B")))
        size = min(4, file.size)
        for act in (lambda: file.read(0, size), file.check):
            with pytest.raises(files.Changed, match=r"/b.bin changed while it was in use: it was \d+ bytes of"):
                act() if size else file.check()
        memory.pipe_file("/test_files/b.bin", b"b" * 10)
        (tmp_path / "b.bin").write_bytes(b"b" * 10)
    file = files.File(url)
    memory.rm("/test_files/b.bin")
    (tmp_path / "b.bin").unlink()
    for act in (lambda: file.read(0, 4), file.check):
        with pytest.raises(files.Changed, match=r"/b.bin vanished while it was in use"):
            act()


def test_a_store_without_its_package_is_named(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ImportError, match=r"gs://bucket/a.tar can't be read: Please install gcsfs"):
        files.expand("gs://bucket/a.tar")


def test_writing_leaves_nothing_half_done(bases, tmp_path, monkeypatch):
    for store in ("local", "memory"):
        files.write(bases[store] + "/new.bin", b"new")
        assert files.File(bases[store] + "/new.bin").read(0, 3) == b"new"
    with pytest.raises(OSError, match="nothing can be written to a web server"):
        files.write(bases["http"] + "/new.bin", b"new")
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write(tmp_path / "new.bin", b"other")
    assert (tmp_path / "new.bin").read_bytes() == b"new" and not list(tmp_path.glob("*.part"))


# ---- the cache ----

FETCH = """
import sys
from mcd_jax.data.storage import files
for url in sys.argv[3:]:
    print(files.local(url, float(sys.argv[2]), sys.argv[1]))
"""


def fetched(folder, mib, *urls):
    """A process of its own that asks for `urls` and ends."""
    return subprocess.Popen([sys.executable, "-c", FETCH, str(folder), str(mib), *urls], stdout=subprocess.PIPE, text=True)


def test_a_copy_is_made_once_for_all_threads_and_processes(tmp_path):
    cache, data = tmp_path / "cache", random.randbytes(3_000_000)
    (tmp_path / "a.tar").write_bytes(data)
    assert files.local(tmp_path / "a.tar", 1, cache) == str(tmp_path / "a.tar") and not cache.exists()
    with served(tmp_path) as server:
        url = server.url + "/a.tar?x=1"
        processes = [fetched(cache, 10, url) for _ in range(2)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            paths = set(pool.map(lambda _: files.local(url, 10, cache), range(8)))
        paths |= {process.communicate(timeout=60)[0].strip() for process in processes}
        path, = paths
        assert pathlib.Path(path).read_bytes() == data and path.endswith("-a.tar")
        assert len(server.asked) == 8 + 2 + 1  # each asks for the size, one for the bytes
        os.utime(tmp_path / "a.tar", ns=(5, 5))
        assert files.local(url, 10, cache) != path  # it changed: another copy
    assert sorted(os.listdir(cache)) == sorted([".lock", *(name for name in os.listdir(cache) if name.endswith("-a.tar"))])


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(tmp_path):
    cache = tmp_path / "cache"
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode() * 2 ** 20)
    with served(tmp_path) as server:
        a, b, c, d = (f"{server.url}/{name}" for name in "abcd")
        names = lambda: sorted(name[17:] for name in os.listdir(cache) if name != ".lock")
        fetched(cache, 3, a, b, c, a).communicate(timeout=60)  # a was used last, and nobody uses any of them now
        (cache / "mine.txt").write_text("not of the cache")
        held = files.local(d, 3, cache)
        assert names() == sorted(["", "a", "c", "d"])
        (cache / ("0" * 16 + "-e.part")).write_bytes(b"e" * 2 ** 20)  # left by a process that died
        os.utime(cache / ("0" * 16 + "-e.part"), (0, 0))
        files.local(c, 3, cache)
        files.local(b, 3, cache)
        assert names() == sorted(["", "b", "c", "d"])
        with pytest.raises(OSError, match=r"/a \(1.0 MiB\) doesn't fit into .*: 3.0 of its 3.0 MiB are in use; raise cache_mib"):
            files.local(a, 3, cache)
        assert pathlib.Path(held).read_text() == "d" * 2 ** 20 and names() == sorted(["", "b", "c", "d"])


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a" * 1000)
    with served(tmp_path) as server:
        monkeypatch.setattr(files.File, "read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            files.local(server.url + "/a", 3, tmp_path / "cache")
        monkeypatch.undo()
        assert os.listdir(tmp_path / "cache") == [".lock"]
        assert pathlib.Path(files.local(server.url + "/a", 3, tmp_path / "cache")).read_text() == "a" * 1000
