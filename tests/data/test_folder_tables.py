"""Tables of the folder source beyond a plain csv: COCO captions, no header line, filters, missing images, urls."""
import json
import logging

from absl import logging as absl_logging
import cv2
import numpy as np
import pytest

from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views


def picture(number):
    return cv2.imencode(".png", np.full((6, 6, 3), number, np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in range(6):
        (tmp_path / "val2017" / f"{number:012d}.jpg").write_bytes(picture(number))
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def read(root, table, text, **more):
    (root / table).write_text(text)
    return sources.open({"name": "folder", "path": str(root), "table": table, **more})


# ---- COCO captions ----

IMAGES = [{"license": 4, "file_name": f"{n:012d}.jpg", "coco_url": "http://x.org", "height": 4 + n, "width": 6, "id": n}
          for n in (3, 0, 5, 1)]
CAPTIONS = [{"image_id": image, "id": number, "caption": f"caption {number} of {image}"}
            for number, image in [(77, 3), (12, 0), (5, 3), (40, 1), (6, 3), (13, 0)]]


def coco(root, images=IMAGES, annotations=CAPTIONS, **more):
    text = json.dumps({"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations})
    return read(root, "annotations/captions_val2017.json", text, **{"images": "val2017", **more})


def test_coco_gives_an_example_per_image_with_all_of_its_captions(folder):
    source = coco(folder)
    assert [row["key"] for row in source] == ["0", "1", "3", "5"]
    assert source[2] == {"license": 4, "file_name": "000000000003.jpg", "coco_url": "http://x.org", "height": 7, "width": 6,
                         "id": 3, "captions": ["caption 5 of 3", "caption 6 of 3", "caption 77 of 3"], "image": picture(3),
                         "key": "3", "text": ["caption 5 of 3", "caption 6 of 3", "caption 77 of 3"]}
    assert source[0]["text"] == ["caption 12 of 0", "caption 13 of 0"] and source[3]["text"] == []
    few = coco(folder, where={"height": {"max": 6}}, columns={"key": "file_name"})
    assert [row["key"] for row in few] == ["000000000000.jpg", "000000000001.jpg"]


def test_coco_feeds_the_pipeline_and_an_image_without_captions_is_bad(folder):
    views = Views({"image": "decode|resize(4)", "text": "caption('random')|tokenize(8)", "number": "column('id')"})
    data = Pipeline(coco(folder), views, 0, 4, max_bad=1.0)
    batches = [data.batch(step) for step in range(12)]
    for batch in batches:
        assert sorted(batch["number"].tolist()) == [0, 0, 1, 3]  # 5 has none, 0 comes after it
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["number"])
    texts = {tuple(row) for batch in batches for row, number in zip(batch["text"], batch["number"]) if number == 3}
    assert len(texts) == 3  # each of the three captions was drawn


@pytest.mark.parametrize("images, annotations, sentence", [
    (None, CAPTIONS, "is not a COCO captions file: it has no list 'images'"),
    (IMAGES, [{"id": 1, "image_id": 0, "bbox": [1, 2, 3, 4]}], "entry 0 of 'annotations' has no caption; a captions file such as"),
    (IMAGES, [{"id": 1, "image_id": 8, "caption": "x"}], "annotation 1 is of image 8, which is not among the images"),
    ([*IMAGES, IMAGES[1]], CAPTIONS, "image id 0 comes twice"),
    ([{"id": 3}], [], "entry 0 of 'images' has no file_name"),
    ([{"id": "3", "file_name": "x"}], [], "entry 0 of 'images': ids must be integers"),
    (IMAGES, [], "has images but no captions"),
    ([{"id": 3, "file_name": "../../secret.jpg"}], [{"id": 1, "image_id": 3, "caption": "x"}], "leads out of"),
])
def test_what_is_no_coco_captions_file_is_refused(folder, images, annotations, sentence):
    with pytest.raises(ValueError, match=sentence):
        coco(folder, images, annotations)
    with pytest.raises(ValueError, match=r"captions.json is not JSON: .*JSON lines end in .jsonl"):
        read(folder, "captions.json", '{"image": 1}\n{"image": 2}\n')


# ---- tables without a header line ----

def test_columns_of_a_table_without_header_line(folder):
    source = read(folder, "t.tsv", "a cat\t0.png\t7\na dog\t3.png\t8\n", header=("text", "image", "age"))
    assert [(row["text"], row["image"], row["age"], row["key"]) for row in source] == [
        ("a cat", picture(0), 7, "0.png"), ("a dog", picture(3), 8, "3.png")]
    source = read(folder, "t.csv", '"one, two",2.png\n', header=["caption", "file"], columns={"image": "file", "text": "caption"})
    assert source[0]["text"] == "one, two" and source[0]["image"] == picture(2)


def test_quotes_that_are_letters(folder):
    text = '"A" is a letter\t0.png\n'
    with pytest.raises(ValueError, match=r"quotes are letters like others: data.source.quoted=False"):
        read(folder, "t.tsv", text, header=("text", "image"))
    assert read(folder, "t.tsv", text, header=("text", "image"), quoted=False)[0]["text"] == '"A" is a letter'


@pytest.mark.parametrize("table, text, more, sentence", [
    ("t.tsv", "a cat\t0.png\n", {"header": ("image", "text", "n")}, "line 1 does not have the 3 fields of data.source.header"),
    ("t.tsv", "a cat\t0.png\n", {"header": "text image"}, "header='text image' must be a list of different names"),
    ("t.tsv", "a cat\t0.png\n", {"header": ["a", "a"]}, "must be a list of different names"),
    ("t.tsv", "a cat\t0.png\n", {"header": ["text", "file"]}, "no column 'image' for image; it has file, text"),
    ("t.jsonl", "{}\n", {"header": ["text", "image"]}, "names the columns of a csv or tsv file without a header line"),
    ("Train_GCC-training.tsv", "a very typical bus station\thttp://lh6.ggpht.com/x.jpg\n", {"header": ("text", "image")},
     "row 1: 'http://lh6.ggpht.com/x.jpg' is a url.*img2dataset"),
    ("t.csv", "image,text\n0.png,x\nhttps://x.org/1.jpg,y\n", {"missing": "drop"}, "row 2: 'https://x.org/1.jpg' is a url"),
])
def test_tables_that_are_refused(folder, table, text, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(folder, table, text, **more)


# ---- where ----

ROWS = "image,text,age,kind\n" + "".join(f"{n}.png,number {n},{n / 2},{'ab'[n % 2]}\n" for n in range(6))


@pytest.mark.parametrize("where, left", [
    ({"age": {"min": 1}}, [2, 3, 4, 5]), ({"kind": "b"}, [1, 3, 5]), ({"kind": "b", "age": {"max": 1.5}}, [1, 3]),
    ({"text": ["number 4", "number 0"]}, [0, 4])])
def test_where_keeps_rows(folder, where, left):
    source = read(folder, "t.csv", ROWS, where=where)
    assert [row["key"] for row in source] == [f"{n}.png" for n in left]


def test_rows_that_where_leaves_out_are_not_looked_for_and_rows_keep_their_numbers(folder):
    text = "image,text,age\ngone.png,x,1\n0.png,y,2\n../out.png,z,3\n"
    assert read(folder, "t.csv", text, where={"age": 2})[0]["text"] == "y"
    with pytest.raises(ValueError, match=r"row 3: the path '../out.png' leads out"):
        read(folder, "t.csv", text, where={"age": {"min": 2}})
    with pytest.raises(ValueError, match=r"t.csv has no column 'size'; it has age, image, text"):
        read(folder, "t.csv", text, where={"size": 2})
    with pytest.raises(ValueError, match=r"no row of .*t.csv is left by age=9"):
        read(folder, "t.csv", text, where={"age": 9})


# ---- missing images ----

def test_missing_images_are_refused_or_dropped_and_counted(folder, caplog, monkeypatch):
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    text = "image,text\ngone.png,x\n1.png,y\nlost.png,z\n4.png,w\n"
    with pytest.raises(FileNotFoundError, match=r"2 of the 4 images that .*t.csv names do not exist.*gone.png; .*'drop'"):
        read(folder, "t.csv", text)
    with caplog.at_level(logging.WARNING):
        source = read(folder, "t.csv", text, missing="drop")
    assert "2 of the 4 images" in caplog.text and "their rows are dropped, 2 are left" in caplog.text
    assert source.missing == 2 and [(row["text"], row["image"]) for row in source] == [("y", picture(1)), ("w", picture(4))]
    with pytest.raises(FileNotFoundError, match=r"4 of the 4 images .* nothing is left: is data.source.images the folder"):
        read(folder, "t.csv", text, missing="drop", images="annotations")
    assert read(folder, "u.csv", "image,text\n1.png,y\n", missing="drop").missing == 0
    with pytest.raises(ValueError, match=r"data.source.missing='skip' must be 'refuse' or 'drop'"):
        read(folder, "t.csv", text, missing="skip")
    with pytest.raises(FileNotFoundError, match=r"data.source.images 'nowhere' is not a folder in"):
        read(folder, "t.csv", text, images="nowhere")
