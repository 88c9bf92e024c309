"""What a source leaves out is counted and named when it is opened, and by `mcd-jax index`."""
import json
import logging
import os

from absl import logging as absl_logging
import cv2
import numpy as np
import pytest
import stored

from mcd_jax.data import decode, sources
from mcd_jax.data.tools import index as index_tool

IMAGE = cv2.imencode(".jpg", np.full((6, 6, 3), 99, np.uint8))[1].tobytes()


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def pairs(*keys, ending="jpg"):
    return [member for key in keys for member in ((f"{key}.{ending}", IMAGE), (f"{key}.txt", b"a text"))]


DOTS = "image with a dot in its name, where the key ends"


@pytest.mark.parametrize("members, count, told", [
    (pairs("0", "1.5", "2", "3.5", "photo 2020.01.31"), 2, f"3 x {DOTS} (the first: a.tar, 1.5.jpg)"),
    (pairs("0", "0.5", "0.7"), 1, f"2 x {DOTS} (the first: a.tar, 0.5.jpg)"),          # three examples under one key
    (pairs("0", "1") + pairs("2", "3", ending="tiff"), 2, "2 x no image (the first: a.tar, 2 with txt, tiff)"),
    ([*pairs("0"), ("1.txt", b"failed"), ("1.json", b"{}")], 1, "1 x no image (the first: a.tar, 1 with txt, json)"),
    ([*pairs("0"), ("0.seg.png", IMAGE), ("0.depth.png", IMAGE)], 1, ""),               # parts of the example
    ([*pairs("v1.2/0"), ("._0.jpg", b"x"), (".DS_Store", b"x")], 1, ""),
    ([*pairs("0"), ("README", b"x"), ("img1", IMAGE)], 1, "2 x name without an ending (the first: a.tar, README)")])
def test_members_of_a_tar_that_make_no_example(tmp_path, warned, capsys, members, count, told):
    (tmp_path / "a.tar").write_bytes(stored.tar(members))
    assert index_tool.main([str(tmp_path / "a.tar")]) == 0
    printed = capsys.readouterr().out
    for _ in range(2):
        source = sources.open({"name": "webdataset", "path": str(tmp_path / "a.tar")})
        assert len(source) == count and all(row["text"] == b"a text" for row in source)
        assert told in warned.text and told in printed
        if not told:
            assert "left out" not in warned.text and " x " not in printed
        warned.clear()


def test_a_tar_of_dotted_names_alone_says_what_they_are_read_as(tmp_path):
    (tmp_path / "a.tar").write_bytes(stored.tar(pairs(*(f"2020.01.{day:02d}" for day in range(20)))))
    with pytest.raises(ValueError, match=r"the members are 01.00.jpg, .* and 28 more \(20 x image with a dot in its name"):
        sources.open({"name": "webdataset", "path": str(tmp_path / "a.tar")})


def test_where_on_a_tar_says_which_numbers_there_are(tmp_path):
    members = [*pairs("0"), ("0.json", json.dumps({"width": 3, "status": "success", "height": 4}).encode())]
    (tmp_path / "a.tar").write_bytes(stored.tar(members))
    for name in ("status", "widht"):
        with pytest.raises(ValueError, match=f"no shard has a field '{name}' of numbers, .* there are height, width"):
            sources.open({"name": "webdataset", "path": str(tmp_path), "where": {name: 3}})
    (tmp_path / "a.tar").write_bytes(stored.tar(pairs("0")))
    with pytest.raises(ValueError, match="there is none"):
        sources.open({"name": "webdataset", "path": str(tmp_path), "where": {"width": 3}})


@pytest.mark.parametrize("path", [5, b"a.tar", [["a.tar"]], {"a": 1}])
def test_a_path_that_is_none_is_refused(path):
    for name in ("webdataset", "parquet"):
        with pytest.raises(ValueError, match=r"data.source.path=.* must be a path, url or pattern, or a list of them"):
            sources.open({"name": name, "path": path})


def test_a_caption_that_is_not_a_number_is_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(stored.tar([*pairs("0"), ("1.jpg", IMAGE), ("1.json", b'{"caption": NaN}')]))
    with pytest.raises(decode.Bad, match="no caption"):
        sources.open({"name": "webdataset", "path": str(tmp_path)})[1]


def test_a_folder_stands_for_its_shards(tmp_path):
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).write_bytes(stored.tar(pairs(name[0])))
    (tmp_path / "a_stats.json").write_text("{}")
    for _ in range(2):   # then with indexes
        source = sources.open({"name": "webdataset", "path": str(tmp_path)})
        assert source.keys() == ["a", "b"]
    with pytest.raises(FileNotFoundError, match=r"with no file called \*.parquet: it holds 5 files, the first is a.tar;"):
        sources.open({"name": "parquet", "path": str(tmp_path)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it holds no files"):
        sources.open({"name": "webdataset", "path": str(tmp_path / "empty")})


def test_files_that_a_folder_of_classes_leaves_out(tmp_path, warned):
    for name in ("cat/a.jpg", "cat/b.tiff", "cat/deep/c.heic", "dog/d.PNG", "loose.jpg", "notes.txt", "cat/.hidden", "eel/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE)
    spec = {"name": "image_folder", "path": str(tmp_path)}
    source = sources.open(spec)
    assert [row["key"] for row in source] == ["cat/a.jpg", "dog/d.PNG"] and source.classes == ["cat", "dog", "eel"]
    expected = {"image beside the classes' folders": 1, "no image by its ending": 3, "class without an image": 1}
    assert source.left_out == expected
    assert "1 x image beside the classes' folders (the first: loose.jpg), 3 x no image by its ending (the f" in warned.text
    part = sources.open({"name": "hold_out", "source": spec, "part": "train", "share": 0.5})
    assert part.left_out == expected and part.classes == source.classes and os.listdir(tmp_path)


def test_a_part_of_a_source_knows_its_keys(tmp_path):
    (tmp_path / "a.tar").write_bytes(stored.tar(pairs(*map(str, range(20)))))
    whole = {"name": "webdataset", "path": str(tmp_path)}
    halves = [sources.open({"name": "hold_out", "source": whole, "part": part, "share": 0.5}) for part in ("train", "held_out")]
    for half in halves:
        assert half.keys() == [row["key"] for row in half]
    quarter = sources.open({"name": "hold_out", "source": {"name": "hold_out", "source": whole, "part": "train", "share": 0.2},
                            "part": "train", "share": 0.5})
    assert set(quarter.keys()) == set(halves[0].keys())
    assert sorted(halves[0].keys() + halves[1].keys()) == sorted(map(str, range(20)))
