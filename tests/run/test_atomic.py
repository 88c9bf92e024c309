"""Small files: whole or not at all when written, named or done without when they come back broken."""
import concurrent.futures
import errno
import json
import os
import pathlib

from absl import logging
import numpy as np
import pytest

from mcd_jax import command, config, report
from mcd_jax.run import atomic, means, metrics, results, small_files
from mcd_jax.search import index

BROKEN = {"not UTF-8": b'{"step": 1, "a": "\xff\xfe"}', "a list": b"[1, 2]", "cut": b'{"step": 1, "a": 0.', "empty": b"",
          "deep": b"[" * 100_000, "text": b'"x"'}


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    return said


def test_a_file_is_written_whole_by_the_umask_and_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.json").symlink_to(tmp_path / "real/a.json")
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "a.json", "é\n")
        atomic.write_text(tmp_path / ("x" * 250 + ".md"), "y")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").is_symlink() and (tmp_path / "real/a.json").read_bytes() == "é\n".encode()
    assert (tmp_path / "real/a.json").stat().st_mode & 0o777 == 0o640
    assert len(os.listdir(tmp_path)) == 3 and os.listdir(tmp_path / "real") == ["a.json"]
    atomic.write_text("/dev/null", "x")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
                                   RuntimeError("INTERNAL: ... File too large [os_error_code='27']")])
def test_a_full_disk_leaves_the_file_before_and_is_one_sentence(tmp_path, monkeypatch, error):
    path = tmp_path / "evals.json"
    atomic.write_text(path, "old")
    monkeypatch.setattr(atomic, "free", lambda folder: 123)
    with pytest.raises(atomic.Full) as caught, atomic.writing(path) as part:
        part.write_text("new, half")
        raise error
    assert command.sentence(caught.value) == (f"{path} can't be written: {atomic.is_full(error)} in {tmp_path} (123 bytes are "
                                              "free): make room there, or name a folder on another disk")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["evals.json"]


def test_every_writer_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")
    writers = {"evals.json": lambda path: results.write(path.parent, {"a/b/c": 1.0}, 3),
               "config.json": lambda path: config.save(config.default(), path),
               "metrics.jsonl": lambda path: metrics.Writer(path.parent, tensorboard=False),
               "table.json": lambda path: means.store(path, [], [], [])}
    for name, write in writers.items():
        write(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with monkeypatch.context() as patch, pytest.raises(atomic.Full, match=f"{name} can't be written: No space left"):
            patch.setattr(os, "fsync", full)
            write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(writers)


def test_a_folder_that_is_not_there_is_named_as_the_user_did(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_text(tmp_path / "no/a.html", "x")
    assert command.sentence(caught.value) == f"{tmp_path}/no/a.html: No such file or directory"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_evals_json_is_set_aside_and_the_run_goes_on(tmp_path, warnings, kind):
    path = tmp_path / "evals.json"
    path.write_bytes(BROKEN[kind])
    assert results.latest(tmp_path) == {} and path.exists() and "evals.json" in warnings[0]
    results.write(tmp_path, {"a/b/R@1": 0.5}, 7)
    assert json.loads(path.read_text()) == {"step": 7, "a/b/R@1": 0.5}
    assert (tmp_path / "evals.json.broken").read_bytes() == BROKEN[kind]
    assert any("evals.json.broken" in text for text in warnings)


def test_figures_that_several_write_at_once_all_stay(tmp_path):
    """`mcd-jax evaluate` beside a run that trains: each reads, adds its own and writes."""
    def write(module):
        for instance in range(20):
            results.write(tmp_path, {f"{module}/i{instance}/x": 1.0}, 5)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert len(results.latest(tmp_path)) == 1 + 4 * 20
    assert [path.name for path in tmp_path.iterdir()] == ["evals.json"]


def test_who_froze_while_writing_a_small_file_holds_nobody_up(tmp_path):
    with small_files.alone(tmp_path), small_files.alone(tmp_path, wait=0.05):
        pass


@pytest.mark.parametrize("text", ['{"step": 3, "a": "x"}',
                                  '{"step": "3"}', '{"a": 1.0}', '{"step": 3, "a": {"b": 1}}', '{"step": 3, "a": true}'])
def test_evals_of_wrong_types_are_broken_too(tmp_path, warnings, text):
    (tmp_path / "evals.json").write_text(text)
    results.write(tmp_path, {"a/b/R@1": 0.5}, 7)
    assert results.latest(tmp_path) == {"step": 7, "a/b/R@1": 0.5} and (tmp_path / "evals.json.broken").read_text() == text


def test_a_metrics_file_that_was_cut_or_changed_keeps_its_whole_lines(tmp_path):
    good = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    bad = [b'{"step": "3", "loss": 1}', b'{"step": 3, "loss": "x"}', b'{"step": true}', b"[1]", b"\xff", b'{"step": 1, "loss": 9}',
           b'{"step": 3, "lo']
    lines = [json.dumps(line).encode() for line in good]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], lines[1], *bad]))
    assert report.lines(tmp_path / "metrics.jsonl") == good
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"step": 3, "loss": NaN}', *bad]))
    writer = metrics.Writer(tmp_path, first_step=5, tensorboard=False)
    writer.write(5, {"loss": 1.0})
    writer.close()
    assert small_files.steps(tmp_path / "metrics.jsonl") == [*good, {"step": 3, "loss": None}, {"step": 5, "loss": 1.0}]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_config_or_table_is_named(tmp_path, kind):
    for name, read in (("config.json", config.read), ("table.json", means.read_table), ("x.json", small_files.read)):
        (tmp_path / name).write_bytes(BROKEN[kind])
        with pytest.raises(ValueError, match=rf"{name} (is empty|is not JSON|holds a (list|str))"):
            read(tmp_path / name)


@pytest.mark.parametrize("change", [dict(rows=None), dict(rows=[{}]), dict(columns=[{}]), dict(rows=[{"labels": {}, "runs": [{}]}]),
                                    dict(rows=[{"labels": {}, "seeds": 1, "published": {"a": {}}}]), dict(rows=[3])])
def test_a_table_edited_by_hand_is_a_sentence(tmp_path, change):
    table = {"format": means.FORMAT, "columns": [{"figure": "a"}], "rows": [], **change}
    (tmp_path / "t.json").write_text(json.dumps({k: v for k, v in table.items() if v is not None}))
    with pytest.raises(ValueError, match=r"t.json can't be read as stored results: .*; `mcd-jax results --store=FILE`"):
        means.read_table(tmp_path / "t.json")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:len(data) // 2], lambda data: b"PK\x03\x04" + b"x" * 50,
                                    lambda data: data[:200] + bytes(b ^ 255 for b in data[200:260]) + data[260:]])
def test_a_broken_search_index_is_made_anew(tmp_path, damage):
    path, made = tmp_path / "i.npz", index.Index(np.ones((2, 3), np.float32), np.ones(2, bool), {})
    index.save(path, "s", [("a", 1, 2), ("b", 1, 2)], made)
    assert len(index.load(path, "s")[0]) == 2
    path.write_bytes(damage(path.read_bytes()))
    assert index.load(path, "s") == ({}, {})


def test_a_search_in_a_folder_that_cannot_be_written_answers_all_the_same(tmp_path, warnings):
    class Folder:
        files = (("a", 1, 2),)

        def __len__(self):
            return 1
    (tmp_path / "file").write_text("")
    found, new = index.refresh(pathlib.Path(tmp_path / "file/search/i.npz"), "s", Folder(),
                               lambda rows: ({"image": np.ones((1, 3), np.float32)}, np.ones(1, bool)))
    assert new == 1 and found.image.shape == (1, 3) and "--index=FILE" in warnings[0]
