"""The forms in which a table may come: separators, encodings, headers with blanks, odd names, quotes; each is right or refused."""
import os

import cv2
import numpy as np
import pytest

from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

ROWS = [(f"{i}.png", f"caption, number {i}") for i in range(4)]


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(cv2.imencode(".png", np.full((6, 6, 3), i, np.uint8))[1].tobytes())
    return tmp_path


def opened(root, table, data, **more):
    (root / table).write_bytes(data if isinstance(data, bytes) else data.encode())
    return sources.open({"name": "folder", "path": str(root), "table": table, **more})


def lines(separator, head="image{}text", quote='"', end="\n"):
    return end.join([head.replace("{}", separator), *(f"{name}{separator}{quote}{text}{quote}" for name, text in ROWS), ""])


@pytest.mark.parametrize("table, text, more", [
    ("a.csv", lines(","), {}), ("a.csv", lines(";"), {}), ("a.csv", lines("\t"), {}), ("a.csv", lines("|", quote=""), {}),
    ("a.tsv", lines("\t", quote=""), {}), ("a.tsv", lines(","), {}), ("a.csv", lines(", "), {}),
    ("a.csv", lines(",", " image {} text "), {}),
    ("a.csv", lines(",", end="\r\n"), {}), ("a.csv", lines(";", end="\r"), {}), ("a.csv", "\ufeff" + lines(","), {}),
    ("a.csv", lines("\t").encode("utf-16"), {}), ("a.tsv", lines("\t").encode("utf-16-be").join([b"\xfe\xff", b""]), {}),
    ("a.csv", lines("\t", quote="").partition("\n")[2].replace(",", ""), {"header": ("image", "text")}),
    ("a.csv", lines(",").partition("\n")[2], {"header": ("image", "text")})])
def test_separators_and_encodings(folder, table, text, more):
    source = opened(folder, table, text, **more)
    assert [(row["key"], row["text"].replace("caption number", "caption, number")) for row in source] == ROWS
    assert source.keys() == [name for name, _ in ROWS]


@pytest.mark.parametrize("table, text, sentence", [
    ("a.csv", "image,text,text\n0.png,a,b\n", "a.csv has more than one column 'text'; names must be different; of a file without"),
    ("a.tsv", "image\timage \ttext\n0.png\t1.png\tb\n", "more than one column 'image'"),
    ("a.csv", 'image,text\n0.png,"a dog\n1.png,a cat\n2.png,"two"\n', "expected after"),
    ("a.csv", 'image,text\n0.png,"a dog\n1.png,a cat\n2.png,x"\n3.png,y\n', "row 1: its text has several lines.* the image 1.png"),
    ("a.csv", "image,text\n", "data.source: the folder source has no examples: .*/a.csv is empty"),
    ("a.csv", "", "the folder source has no examples"), ("a.jsonl", "\n", "the folder source has no examples"),
    ("a.csv", b"image,text\n0.png,a\0b\n", "line 2 holds a zero byte")])
def test_what_would_lose_rows_or_columns_is_refused(folder, table, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(folder, table, text)


def test_a_caption_of_several_lines_is_kept_whole(folder):
    text = 'image,text\n0.png,"a dog, sitting\nby a fence, v. 1.2\n"\n1.png,x\n'
    assert [row["text"] for row in opened(folder, "a.csv", text)] == ["a dog, sitting\nby a fence, v. 1.2\n", "x"]


def test_json_lines_may_leave_keys_out(folder):
    text = '{"image": "0.png", "text": "a"}\n{"image": "1.png", "text": "b", "lang": "en"}\n{"image": "2.png"}\n'
    source = opened(folder, "a.jsonl", text)
    assert [(row["text"], row["lang"]) for row in source] == [("a", None), ("b", "en"), (None, None)]
    data = Pipeline(source, Views({"image": "decode|resize(4)", "text": "caption|tokenize(8)"}), 0, 3, workers=0)
    assert sorted(data.batch(0)["index"].tolist()) == [0, 0, 1] and data.stats == {"missing text": 1}


@pytest.mark.parametrize("name", ["a b.png", "100%.png", "#1.png", "[x]*.png", "\U0001f600.png", "a\nb.png", "a,b.png", 'a"b.png',
                                  "a;b.png", os.fsdecode(b"caf\xe9.png")])
def test_odd_names_of_images(folder, name):
    os.rename(folder / "0.png", folder / name)
    quoted = name.replace('"', '""')
    source = opened(folder, "a.csv", os.fsencode(f'image,text\n"{quoted}",x\n1.png,y\n'))
    assert len(source) == 2 and source[0]["image"][:4] == b"\x89PNG" and source[0]["text"] == "x"
    assert source.keys() == [row["key"] for row in source] and source[0]["key"].encode()


def test_long_fields_and_many_columns(folder):
    long = "word " * 400_000
    source = opened(folder, "a.csv", f"image,text,{','.join(f'c{i}' for i in range(50))}\n0.png,{long}{',7' * 50}\n")
    assert source[0]["text"] == long and source[0]["c49"] == 7
    assert opened(folder, "b.csv", "image\n0.png\n", columns={"text": "image"})[0]["text"] == "0.png"
