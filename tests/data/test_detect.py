"""What lies at a path: every form that people's pairs have, read without being described, and a sentence for what can't be."""
import json
import pathlib
import re

import fsspec
import own_data
import pytest

from mcd_jax.data import sources
from mcd_jax.data.detect.detect import detect
from mcd_jax.data.detect.found import parts
from mcd_jax.data.sources.image_folder import prettified

KINDS = {   # maker -> (source, rows, rows that the data set keeps apart, words of the kind, words of a note)
    "tars": ("webdataset", 38, 0, "2 tar shards", "got 38 of 40"),
    "tfrecords": ("tfrecord", 38, 0, "2 TFRecord shards", "got 38 of 40"),
    "parquet": ("parquet", 38, 0, "2 Parquet files of img2dataset", "got 38 of 40"),
    "files": ("sidecars", 38, 0, "38 images with .json and .txt", "got 38 of 40"),
    "sidecars": ("sidecars", 40, 0, "40 images with .txt beside", ""),
    "json_sidecars": ("sidecars", 38, 0, "40 images with .json beside", ""),
    "csv_table": ("folder", 40, 0, "captions.csv of 40 rows, images in images", ""),
    "five_captions": ("folder", 40, 0, "captions.csv of 200 rows", "200 rows name 40 images"),
    "tsv_table": ("folder", 40, 0, "pairs.tsv of 40 rows", ""),
    "json_lines": ("folder", 40, 0, "metadata.jsonl of 40 rows", ""),
    "coco": ("folder", 30, 10, "COCO captions of 30", "called validation"),
    "karpathy": ("karpathy", 24, 8, "40 images (8 test, 8 val, 24 train)", "split val is held out"),
    "hugging_face": ("parquet", 30, 10, "2 Parquet files", "called validation"),
    "class_folders": ("image_folder", 40, 0, "40 images in 4 class folders", "names of the classes stand for them"),
    "class_parts": ("image_folder", 40, 8, "48 images in 4 class folders", "the folder val is held out"),
}


def texts(row):
    return [text.decode() if isinstance(text, bytes) else text for text in
            (row["text"] if isinstance(row["text"], list) else [row["text"]])]


@pytest.mark.parametrize("name", own_data.MAKERS)
def test_every_form_is_read_as_it_is(name, tmp_path):
    own_data.MAKERS[name](tmp_path / "mine")
    kind, count, kept, words, note = KINDS[name]
    found = detect(tmp_path / "mine")
    assert found.spec["name"] == kind and words in found.kind and (not note or any(note in own for own in found.notes))
    json.dumps(found.spec)
    source = sources.open(found.spec)
    assert len(source) == count and bool(found.held_out) == bool(kept)
    numbers = set()
    for row in source:
        assert row["image"][:2] == b"\xff\xd8" and row["key"]
        if found.classes:
            assert texts(row) == [prettified(row["class_name"])] and found.classes[row["label"]] == texts(row)[0]
        else:
            number = int(re.search(r"number (\d+)", texts(row)[0])[1])
            assert row["image"] == own_data.picture(number)
            numbers.add(number)
    assert found.classes or (len(numbers) == count and (kept or count == 40 or not numbers & set(own_data.FAILED)))
    if kept:
        assert len(sources.open(found.held_out)) == kept
    assert found.several == (len(texts(source[0])) > 1)


def test_five_rows_of_an_image_are_one_example(tmp_path):
    own_data.five_captions(tmp_path / "mine", 3)
    source = sources.open(detect(tmp_path / "mine").spec)
    assert [len(row["text"]) for row in source] == [5, 5, 5] and source[1]["text"][4] == own_data.caption(1) + ", five"


def test_single_files_patterns_and_urls(tmp_path):
    own_data.tars(tmp_path / "tars")
    own_data.csv_table(tmp_path / "table")
    assert detect(tmp_path / "tars/00001.tar").spec["path"] == str(tmp_path / "tars/00001.tar")
    assert detect(tmp_path / "tars").spec["path"] == str(tmp_path / "tars/*.tar")
    assert len(sources.open(detect(f"{tmp_path}/tars/{{00000..00001}}.tar").spec)) == 38
    assert detect(tmp_path / "table/captions.csv").spec == detect(tmp_path / "table").spec
    memory = fsspec.filesystem("memory")
    try:
        for file in (tmp_path / "tars").glob("*.*"):
            memory.pipe_file(f"/own/{file.name}", file.read_bytes())
        for url in ("memory://own", "memory://own/*.tar"):
            assert len(sources.open(detect(url).spec)) == 38
    finally:
        memory.rm("/own", recursive=True)


def test_pack_takes_a_path_and_what_it_wrote_is_read_again(tmp_path):
    from mcd_jax.data.tools import pack
    own_data.files(tmp_path / "mine")
    assert pack.read_source([str(tmp_path / "mine")]) == detect(tmp_path / "mine").spec
    pack.pack(pack.read_source([str(tmp_path / "mine")]), tmp_path / "packed", workers=1, say=lambda line: None)
    (tmp_path / "packed" / "bad_examples.jsonl").touch()
    found = detect(tmp_path / "packed")
    assert found.kind == "1 array_record shards" and sources.open(found.spec)[0]["key"] == "00000/000000000"
    own_data.karpathy(tmp_path / "k")
    with pytest.raises(ValueError, match="keeps a part for validation"):
        pack.read_source([str(tmp_path / "k")])


def test_columns_that_have_no_usual_name(tmp_path):
    own_data.csv_table(tmp_path)
    table = (tmp_path / "captions.csv").read_text().replace("filename,title,likes", "where,what,likes")
    (tmp_path / "captions.csv").write_text(table)
    assert detect(tmp_path).spec["columns"] == {"image": "where", "text": "what"}   # the one of files, the only other text
    (tmp_path / "captions.csv").write_text("where,what,who\n0.jpg,a picture,me\n1.jpg,another,you\n")
    with pytest.raises(ValueError, match=r"where, what, who\) holds the captions can't be told; say text=COLUMN"):
        detect(tmp_path)
    assert detect(tmp_path, text="who").spec["columns"] == {"image": "where", "text": "who"}
    with pytest.raises(ValueError, match="has no column 'whom' for text; it has where, what, who"):
        detect(tmp_path, text="whom")


@pytest.mark.parametrize("header, found", [
    ("image,Image,text,TEXT", ("image", "text")), ("Image,image,TEXT,text", ("image", "text")),   # not the last of them
    ("image,text,Caption,caption", ("image", "caption")), ("Image,x,Caption,CAPTION", None), ("Image,IMAGE,text,x", None)])
def test_columns_that_differ_by_case_alone(tmp_path, header, found):
    own_data.sidecars(tmp_path / "a", 4)
    for file in (tmp_path / "a").glob("*.txt"):
        file.unlink()
    (tmp_path / "a/a.csv").write_text(f"{header}\n" + "".join(f"{i}.jpg,{3 - i}.jpg,text {i},text {3 - i}\n" for i in range(4)))
    if found:
        assert detect(tmp_path / "a").spec["columns"] == dict(zip(("image", "text"), found))
    else:
        with pytest.raises(ValueError, match=r"say (image|text)=COLUMN"):
            detect(tmp_path / "a")


def test_an_image_that_is_written_in_two_ways_is_one_example(tmp_path):
    own_data.csv_table(tmp_path, 6)
    table = tmp_path / "captions.csv"
    table.write_text(table.read_text() + "".join(f"./{i}.jpg,again {i},0\n" for i in range(6)))
    source = sources.open(detect(tmp_path).spec)
    assert len(source) == 6 and [row["text"][1] for row in source] == [f"again {i}" for i in range(6)]


def test_class_labels_of_hugging_face(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": own_data.picture(n), "path": None} for n in range(4)], "label": [0, 1, 0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    found = detect(tmp_path)
    assert found.classes == ("cat", "dog") and found.label == "label"
    row = sources.open(found.spec)[1]
    assert row["text"] == "dog" and row["label"] == 1


@pytest.mark.parametrize("names, train, kept", [
    (["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"], 1, 1),
    (["captions_train2017.json", "captions_val2017.json"], 1, 1), (["train.csv", "test.csv"], 1, 1), (["training_a.tar"], 1, 0),
    (["train-0.tar", "val-0.tar", "extra.tar"], 3, 0),
    (["00000.tar", "00001.tar"], 2, 0), (["trainer.tar", "valid.tar"], 2, 0), (["train_0.tar", "train_1.tar", "val_0.tar"], 2, 1)])
def test_parts_by_name(names, train, kept):
    found = parts(names)
    assert (len(found[0]), len(found[1])) == (train, kept)


def _empty(root):
    pass


def _nothing(root):
    (root / "notes.doc").write_bytes(b"x")


def _no_captions(root):
    own_data.sidecars(root / "all")
    for file in (root / "all").glob("*.txt"):
        file.unlink()


def _few_captions(root):
    own_data.sidecars(root / "all")
    for number in range(30):
        (root / "all" / f"{number}.txt").unlink()


def _tar_and_images(root):
    own_data.tars(root / "tars")
    own_data.sidecars(root / "images")


def _table_and_sidecars(root):
    own_data.sidecars(root / "images")
    (root / "captions.csv").write_text("image,text\nimages/0.jpg,a\n")


def _two_tables(root):
    own_data.csv_table(root / "a")
    (root / "a" / "more.csv").write_text("filename,title\n0.jpg,a\n")


def _two_kinds(root):
    own_data.tars(root / "tars")
    own_data.tfrecords(root / "records")
    for file in root.glob("*/*.parquet"):
        file.unlink()


def _urls(root):
    (root / "list.tsv").write_text("caption\turl\na\thttp://x.org/1.jpg\n")


def _only_urls(root):
    import pyarrow as pa
    import pyarrow.parquet as pq
    pq.write_table(pa.table({"url": ["http://x.org/1.jpg"], "caption": ["a"]}), root / "a.parquet")


def _missing_images(root):
    own_data.csv_table(root / "a")
    for file in (root / "a" / "images").iterdir():
        file.unlink()


def _table_called_txt(root):
    own_data.five_captions(root / "a")
    (root / "a" / "captions.csv").rename(root / "a" / "captions.txt")


def _zip(root):
    (root / "all.zip").write_bytes(b"PK")


def _broken_parquet(root):
    (root / "a.parquet").write_bytes(b"PAR1 and no more")


def _two_columns_of_one_name(root):
    import pyarrow as pa
    import pyarrow.parquet as pq
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"]),
                   root / "a.parquet")


@pytest.mark.parametrize("make, message", [
    (_two_columns_of_one_name, "a.parquet has more than one column 'text'; names must be different"),
    (_empty, "holds no files"), (_nothing, "1 files, none of them an image, a shard or a table .the first is notes.doc"),
    (_no_captions, "40 images without captions: lay a text file beside each"),
    (_few_captions, "only 10 of 40 images have a caption"), (_tar_and_images, "40 loose images and 4 shards such as"),
    (_table_and_sidecars, "captions beside them and the table captions.csv"),
    (_two_tables, "holds 2 tables .captions.csv, more.csv.; name the one"),
    (_two_kinds, "2 webdataset; 2 tfrecord, where shards of one"),
    (_urls, "column 'url' holds urls.*img2dataset"), (_only_urls, "hold no encoded images, only where they are .url."),
    (_missing_images, "of the first 40 images that its column 'filename' names"),
    (_table_called_txt, "captions.txt looks like a table of the 40 images; call it captions.csv"),
    (_zip, "packed files .all.zip., which aren't read; unpack them"), (_broken_parquet, "is no complete Parquet file")])
def test_what_cannot_be_told_is_said_in_one_sentence(make, message, tmp_path):
    make(tmp_path)
    place = tmp_path / "a" if (tmp_path / "a").is_dir() else tmp_path
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        detect(place)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_there_or_no_data(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        detect(tmp_path / "gone")
    (tmp_path / "x.jpg").write_bytes(own_data.picture(0))
    with pytest.raises(ValueError, match="of single images name the folder"):
        detect(tmp_path / "x.jpg")
    (tmp_path / "in").mkdir()
    scandir = __import__("os").scandir

    def refused(path):
        if pathlib.Path(path).name == "in":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(OSError, match=r"can't be read: .*Permission denied"):
        detect(tmp_path)


@pytest.mark.parametrize("name, words", [
    ("golden_retriever", "golden retriever"), ("03.goldenRetriever", "golden retriever"), ("apple pie", "apple pie"),
    ("001.Black_footed_Albatross", "black footed albatross"), ("n01440764", "n01440764"), ("BMW", "BMW"), ("007", "007")])
def test_names_of_folders_become_words(name, words):
    assert prettified(name) == words
