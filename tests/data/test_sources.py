"""Sources: what each kind reads, and the sentence that refuses what it can't."""
import concurrent.futures
import io
import json
import os
import pickle
import subprocess
import sys

from PIL import Image
import pytest

from mcd_jax.data import sources
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji

DRAWINGS = os.path.join(emoji_names.PREPARED, "emoji", "drawings", "1.0.0")


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder with three images and, beside it, one that its tables must not reach."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        (root / name).write_bytes(picture(number))
    (tmp_path / "secret.png").write_bytes(b"outside")
    return root


def read(root, table, text, **more):
    (root / table).write_bytes(text if isinstance(text, bytes) else text.encode())
    return sources.open({"name": "folder", "path": str(root), "table": table, **more})


# --- open ---

def test_emoji_is_opened_by_name():
    source = sources.open({"name": "emoji", "split": "openmoji_test"})
    assert len(source) == 185
    assert {"image", "text", "key", "vendor", "concept_id", "flag"} <= source[0].keys()


@pytest.mark.parametrize("spec, sentence", [
    ({}, "data.source.name must be one of array_record, .*emoji, folder, .*tfds"),
    ({"name": "emojii"}, "'emojii' is unknown: it is one of array_record, .*emoji.*dotted path"),
    ({"name": "no_such_lab.pairs"}, "'no_such_lab.pairs': there is no such module"),
    ({"name": "json.decoder"}, "has no make"),
    ({"name": "folder", "path": "/tmp"}, "data.source.table is missing"),
    ({"name": "folder", "path": "/tmp", "tabel": "x"}, "no key 'tabel' for the folder source; it has name, path, table"),
    ({"name": "array_record", "path": "x", "columns": {"img": "y"}}, "columns has no 'img'.*image, text, key"),
    ({"name": "tfds", "split": "train"}, "either dataset or directory"),
    ({"name": "tfds", "dataset": "mnist"}, "data.source.split is missing"),
])
def test_a_wrong_spec_is_refused_by_name(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        sources.open(spec)


def test_a_module_of_ones_own_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "my_lab_pairs").mkdir()
    (tmp_path / "my_lab_pairs" / "pairs.py").write_text(
        "def make(spec):\n    return [{'image': b'', 'text': 'x', 'key': spec['word']}] * 3\n")
    (tmp_path / "my_lab_pairs" / "wrong.py").write_text("def make(spec):\n    return 7\n")
    (tmp_path / "my_lab_pairs" / "broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = sources.open({"name": "my_lab_pairs.pairs", "word": "hello"})
    assert len(source) == 3 and source[2]["key"] == "hello"
    with pytest.raises(ValueError, match="returned a int without len"):
        sources.open({"name": "my_lab_pairs.wrong"})
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        sources.open({"name": "my_lab_pairs.broken"})


def test_reading_needs_neither_jax_nor_tensorflow():
    code = ("import sys\nfrom mcd_jax.data import sources\n"
            f"sources.open(dict(name='tfds', directory={DRAWINGS!r}, split='test', columns=dict(text='concept')))[0]\n"
            "sources.open(dict(name='emoji', split='openmoji_test'))[0]\n"
            "print(sorted({'jax', 'tensorflow', 'torch'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


# --- folder ---

def test_csv_columns_and_numbers(folder):
    source = read(folder, "t.csv", '\ufefffile,caption,label,weight,note\na.png,"one, two",3,0.5,7\n'
                                   'deep/c.png,"say ""hi""\nthere",4,1,x\n',
                  columns={"image": "file", "text": "caption"})
    assert len(source) == 2
    assert source[0] == {"file": "a.png", "caption": "one, two", "label": 3, "weight": 0.5, "note": "7",
                         "image": picture(0), "text": "one, two", "key": "a.png"}
    row = source[-1]
    assert row["text"] == 'say "hi"\nthere' and row["image"] == picture(2) and row["key"] == "deep/c.png"
    assert isinstance(row["weight"], float) and row["note"] == "x"
    with pytest.raises(IndexError, match="index 2 is outside a source of 2"):
        source[2]


def test_tsv_and_a_caption_that_looks_like_a_number(folder):
    source = read(folder, "t.tsv", "image\ttext\tid\na.png\t1234\tn0\nb.png\t5\tn1\n", columns={"key": "id"})
    assert [row["text"] for row in source] == ["1234", "5"]
    assert [row["key"] for row in source] == ["n0", "n1"]


def test_jsonl_keeps_lists_and_numbers(folder):
    rows = [{"image": "a.png", "text": ["one", "eins"], "box": [1, 2]}, {"image": "b.png", "text": "two", "box": []}]
    source = read(folder, "t.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert source[0]["text"] == ["one", "eins"] and source[0]["box"] == [1, 2]
    assert source[1]["text"] == "two" and len(source) == 2


def test_captions_that_are_long_empty_or_not_unicode_are_passed_on(folder):
    source = read(folder, "t.csv", b"image,text\na.png,caf\xe9\nb.png," + b"x" * 300_000 + b"\nb.png,\na.png,caf\xc3\xa9\n")
    with pytest.raises(UnicodeDecodeError):
        source[0]["text"].decode()
    assert source[0]["text"].startswith(b"caf")
    assert len(source[1]["text"]) == 300_000 and source[2]["text"] == "" and source[3]["text"] == "café"
    source = read(folder, "t.jsonl", '{"image": "a.png", "text": ["fine", "half \\ud83d"]}\n')
    assert source[0]["text"][0] == "fine" and isinstance(source[0]["text"][1], bytes)


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "/etc/passwd", "link.png", "linked/secret.png"])
def test_no_path_leads_out_of_the_folder(folder, name):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "linked").symlink_to(folder.parent)
    with pytest.raises(ValueError, match=r"row 2: the path .* leads out of"):
        read(folder, "t.csv", f"image,text\na.png,x\n{name},y\n")


def test_a_path_that_stays_inside_is_read(folder):
    (folder / "again.png").symlink_to(folder / "b.png")
    source = read(folder, "t.csv", "image,text\ndeep/../a.png,x\nagain.png,y\n")
    assert [row["image"] for row in source] == [picture(0), picture(1)]


@pytest.mark.parametrize("table, text, sentence", [
    ("t.csv", "image,text\na.png\n", "line 2 does not have the 2 fields of its header: image, text"),
    ("t.csv", "image,text\na.png,x,y\n", "line 2 does not have the 2 fields"),
    ("t.csv", 'image,text\na.png,"x\n', "after line 1: unexpected end of data"),
    ("t.csv", "file,text\na.png,x\n", "no column 'image' for image; it has file, text; set data.source.columns.image"),
    ("t.csv", "image,text\n,x\n", "row 1: '' is not the path of an image"),
    ("t.jsonl", '{"image": "a.png", "text": "x"}\n{"image": \n', "line 2 is not JSON"),
    ("t.jsonl", '["a.png", "x"]\n', "line 1 is not a JSON object"),
    ("t.jsonl", '{"image": "a.png", "text": "x"}\n{"text": "b"}\n', "row 2: None is not the path of an image"),
    ("t.jsonl", '{"image": "a.png", "text": "x", "text": "y"}\n', "t.jsonl, line 1: the key 'text' comes twice in an object"),
    ("t.jsonl", '{"image": 3, "text": "x"}\n', "row 1: 3 is not the path"),
    ("t.txt", "image,text\n", "must end in .csv, .tsv or .jsonl"),
])
def test_a_malformed_table_is_refused_with_its_line(folder, table, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(folder, table, text)


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images that .*t.csv names do not exist.*gone.png"):
        read(folder, "t.csv", "image,text\na.png,x\ngone.png,y\n")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.csv"):
        sources.open({"name": "folder", "path": str(folder), "table": "none.csv"})
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        sources.open({"name": "folder", "path": str(folder / "nowhere"), "table": "t.csv"})


# --- array_record ---

@pytest.fixture
def shards(tmp_path):
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2
    for shard in range(2):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / f"p-{shard}.array_record"), "group_size:1")
        for number in range(5 * shard, 5 * shard + 5):
            feature = tf_example_pb2.Example().features.feature
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["jpg"].bytes_list.value.append(picture(number))
            feature["text"].bytes_list.value.extend([b"number", str(number).encode()][:1 + number % 2])
            feature["label"].int64_list.value.append(number)
            feature["box"].float_list.value.extend([0.5, number])
            feature["id"].bytes_list.value.append(f"id{number}".encode())
            writer.write(example.SerializeToString())
        writer.close()
    return tmp_path


def test_array_record_reads_columns_across_files(shards):
    source = sources.open({"name": "array_record", "path": str(shards / "p-*.array_record"),
                           "columns": {"image": "jpg", "key": "id"}})
    assert len(source) == 10
    row = source[7]
    assert row["image"] == picture(7) and row["label"] == 7 and row["key"] == "id7" and row["box"] == [0.5, 7.0]
    assert row["text"] == [b"number", b"7"] and source[6]["text"] == b"number"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [row["label"] for row in pool.map(source.__getitem__, list(range(10)) * 20)] == list(range(10)) * 20
    with pytest.raises(IndexError, match="outside a source of 10"):
        source[10]


def test_array_record_refusals(shards, folder):
    with pytest.raises(FileNotFoundError, match=r"no file fits '.*q-"):
        sources.open({"name": "array_record", "path": [str(shards / "p-0.array_record"), str(shards / "q-*")]})
    with pytest.raises(ValueError, match="no column 'image' for image; it has box, id, jpg"):
        sources.open({"name": "array_record", "path": str(shards / "p-0.array_record")})
    with pytest.raises(ValueError, match="can't be read as array_record files"):
        sources.open({"name": "array_record", "path": str(folder / "a.png")})


# --- tfds ---

def test_tfds_reads_encoded_images_slices_and_label_names():
    spec = {"name": "tfds", "dataset": "emoji/drawings", "data_dir": emoji_names.PREPARED, "split": "openmoji_test[:50%]",
            "columns": {"text": "vendor", "key": "concept"}}
    source = sources.open(spec)
    own = sources.open({"name": "emoji", "split": "openmoji_test"})
    assert len(source) == 92
    for index in (0, 91, -1):
        assert source[index]["image"] == own[index % 92]["image"]
        assert source[index]["key"] == own[index % 92]["concept"]
    assert source[5]["text"] == "openmoji" and source[5]["vendor"] == 3
    same = sources.open({**{k: v for k, v in spec.items() if k not in ("dataset", "data_dir")}, "directory": DRAWINGS})
    assert same[5]["image"] == source[5]["image"]


def test_tfds_finds_columns_inside_columns():
    source = sources.open({"name": "tfds", "dataset": "emoji/concepts", "data_dir": emoji_names.PREPARED, "split": "test",
                           "columns": {"image": "labels/de", "text": "tags/en"}})
    concept = next(row for row in emoji.concepts() if row["split"] == "test")
    assert source[0]["text"] == [tag.encode() for tag in concept["tags"]["en"]]
    assert source[0]["image"] == concept["labels"]["de"].encode() and source[0]["key"] == "0"


@pytest.mark.parametrize("error, more, sentence", [
    (FileNotFoundError, {"dataset": "cifar10"}, "no data set prepared by TFDS is found as 'cifar10'"),
    (FileNotFoundError, {"dataset": None, "directory": "/nowhere", "data_dir": None}, "found as '/nowhere'"),
    (ValueError, {"split": "trane"}, "'trane'.*its splits are train, openmoji_train"),
    (ValueError, {"columns": {"text": "caption"}}, "no column 'caption' for text; it has concept, image, vendor"),
    (ValueError, {"columns": {"text": "concept/x"}}, "no column 'x' for text"),
])
def test_tfds_refusals(error, more, sentence):
    spec = {"name": "tfds", "dataset": "emoji/drawings", "data_dir": emoji_names.PREPARED, "split": "test",
            "columns": {"text": "concept"}}
    with pytest.raises(error, match=sentence):
        sources.open({**spec, **more})


def test_sources_travel_to_worker_processes(folder):
    for source in (sources.open({"name": "emoji", "split": "openmoji_validation"}),
                   sources.open({"name": "tfds", "directory": DRAWINGS, "split": "openmoji_validation",
                                 "columns": {"text": "vendor"}}),
                   read(folder, "t.csv", "image,text\na.png,x\n")):
        assert pickle.loads(pickle.dumps(source))[0]["image"] == source[0]["image"]
