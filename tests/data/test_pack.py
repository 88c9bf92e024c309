"""Packing: what a record keeps of an example, the same bytes from any number of workers, going on after a stop, verifying."""
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from mcd_jax.data import decode, pipeline, sources
from mcd_jax.data.storage.examples import parse_example
from mcd_jax.data.tools import encode, pack
from mcd_jax.run import atomic


def picture(width, height, seed=0):
    """Smooth random colours, PIL."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(drawing, kind="JPEG", **options):
    file = io.BytesIO()
    drawing.save(file, kind, **options)
    return file.getvalue()


def shares(size, parts):
    """(parts, size) weights of exact area averaging."""
    edges = np.linspace(0, size, parts + 1)
    share = np.clip(np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size)), 0, 1)
    return share / share.sum(1, keepdims=True)


def reference(pixels, size, quality):
    """The slow way: exact averages, and PIL's JPEG with 4:2:0 colours."""
    height, width = pixels.shape[:2]
    small = np.einsum("yh,xw,hwc->yxc", shares(height, size[1]), shares(width, size[0]), pixels, optimize=True)
    return np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(np.rint(small).astype(np.uint8)), quality=quality))), int)


EMOJI = {"name": "emoji", "split": "test", "captions": ["label", "tags"], "languages": ["en", "ja"]}
QUIET = {"say": lambda line: None}


def read(out):
    return sources.open({"name": "array_record", "path": f"{out}/*.array_record", "columns": {"key": "key"}})


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


# ---- what a record holds ----


def test_the_embedded_set_comes_back(tmp_path):
    manifest = pack.pack(EMOJI, tmp_path, short_side=24, quality=95, shard_examples=200, keep=("vendor",), **QUIET)
    source, packed = sources.open(EMOJI), read(tmp_path)
    assert manifest["complete"] and manifest["examples"] == len(packed) == len(source) == 555 and manifest["bad"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad_examples.jsonl", "manifest.json", *(
        f"pairs-{i:05d}-of-00003.array_record" for i in range(3))]
    assert manifest["left_out"] == ["concept", "concept_split", "family"]
    for index in (0, 199, 200, 333, 554):
        ours, theirs = packed[index], source[index]
        texts = ours["text"] if isinstance(ours["text"], list) else [ours["text"]]
        assert [text.decode() for text in texts] == theirs["text"] and ours["key"] == theirs["key"]
        assert ours["vendor"].decode() == theirs["vendor"] and ours["flag"] == theirs["flag"]
        assert all(ours[name] == theirs[name] for name in ("concept_id", "group", "subgroup"))
        large, small = decode.decode(theirs["image"]), decode.decode(ours["image"])
        assert min(small.shape[:2]) == 24 and ours["image"][:2] == b"\xff\xd8"
        assert np.abs(small - reference(large, small.shape[1::-1], 95)).mean() < 2
    views = {"image": "decode|crop(16,.5)", "text": "caption|tokenize(12,'emoji')", "label": "column('group')"}
    batch = pipeline.make({"source": {"name": "array_record", "path": f"{tmp_path}/*.array_record"}, "views": views}, 0, 8).batch(0)
    assert not batch["bad"].any() and batch["image"].shape == (8, 16, 16, 3)


@pytest.mark.parametrize("size, limit, expected", [
    ((100, 60), 30, (50, 30)), ((60, 100), 30, (30, 50)), ((101, 67), 40, (60, 40)), ((100, 60), 60, (100, 60)),
    ((20, 10), 30, (20, 10)), ((100, 60), 0, (100, 60)), ((3000, 3), 2, (2000, 2))])
def test_the_shorter_side_is_reduced_and_nothing_enlarged(size, limit, expected):
    drawing = picture(*size)
    small = encode.small_jpeg(encoded(drawing, "PNG"), limit, 95)
    assert decode.size(small) == expected[::-1]
    assert np.abs(decode.decode(small) - reference(np.asarray(drawing), expected, 95)).mean() < 2


def test_a_small_jpeg_keeps_its_bytes_and_quality_is_obeyed():
    data = encoded(picture(40, 30), quality=70, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    assert encode.small_jpeg(data, 30, 90) == encode.small_jpeg(data, 0, 90) == data
    assert encode.small_jpeg(data, 29, 90) != data
    with pytest.raises(decode.Bad, match="corrupt image"):
        encode.small_jpeg(data[:-60], 30, 90)   # kept bytes are decoded too
    sizes = [len(encode.small_jpeg(encoded(picture(300, 300), "PNG"), 256, quality)) for quality in (30, 60, 95)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    tables = Image.open(io.BytesIO(encode.small_jpeg(encoded(picture(64, 64), "PNG"), 32, 90))).quantization
    assert tables == Image.open(io.BytesIO(encoded(picture(8, 8), quality=90))).quantization   # libjpeg's tables at 90
    assert simplejpeg.decode_jpeg_header(encode.small_jpeg(encoded(picture(64, 64), "PNG"), 32, 90))[3] == "420"


def test_transparent_parts_become_white_and_too_long_a_picture_is_bad():
    drawing = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    assert (decode.decode(encode.small_jpeg(encoded(drawing, "PNG"), 8, 95)) >= 254).all()
    with pytest.raises(decode.Bad, match="giant image: 66000x1 is too long for a JPEG"):
        encode.small_jpeg(encoded(Image.new("RGB", (66000, 1)), "PNG"), 8, 90)


def parsed(**columns):
    data, left_out = encode.record({"image": encoded(picture(8, 8)), "text": "t", "key": "k", **columns}, 8, 90)
    return parse_example(data), left_out


def test_columns_of_numbers_are_kept_by_kind():
    stored, left_out = parsed(
        label=3, big=2 ** 62, flag=True, score=0.25, numpy=np.int16(-2), half=np.float16(0.5), yes=np.bool_(True), many=[1, 2, 3],
        array=np.array([0.5, 1.5], np.float32), mixed=[1, 0.5], none=None, empty=[], word="w", raw=b"b", words=["a"],
        matrix=np.zeros((2, 2)), deep={"a": 1})
    assert {k: stored[k] for k in stored if k not in ("image", "text", "key")} == {
        "label": [3], "big": [2 ** 62], "flag": [1], "score": [0.25], "numpy": [-2], "half": [0.5], "yes": [1], "many": [1, 2, 3],
        "array": [0.5, 1.5], "mixed": [1.0, 0.5], "none": [], "empty": []}
    assert left_out == {"word", "raw", "words", "matrix", "deep"}
    with pytest.raises(ValueError, match="column 'huge': 18446744073709551615 does not fit into 64 bits"):
        parsed(huge=2 ** 64 - 1)


# ---- a folder of hostile files ----


@pytest.mark.parametrize("image", [[b"one", b"two"], [], 7, None])
def test_an_image_that_is_no_file_is_bad(image):
    with pytest.raises(decode.Bad, match=r"image not bytes: column 'image' holds (list|int|NoneType)"):
        encode.record({"image": image, "text": "t", "key": "k"}, 8, 90)   # 7 would be seven zero bytes


@pytest.fixture
def hostile(tmp_path):
    """(spec, expected causes by index): 24 rows, of which 7 can't be used."""
    root = tmp_path / "pictures"
    root.mkdir()
    good = encoded(picture(40, 30), quality=80)
    bad = {3: (b"", "empty image"), 5: (b"GIF is no picture", "corrupt image"), 9: (good[:-50], "corrupt image"),
           10: (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + bytes(9), "giant image"),
           11: (b"\xff\xd8\xff", "corrupt image")}
    texts = {6: " \n", 15: ["", " "], 7: "\ud800 lone", 8: "<b>&amp;</b>\0", 12: ["one", "", "two"], 13: "x" * 10_000}
    causes = {index: cause for index, (_, cause) in bad.items()} | {6: "empty caption", 15: "empty caption"}
    with (root / "t.jsonl").open("w") as table:
        for i in range(24):
            data = bad[i][0] if i in bad else encoded(picture(90, 60, i), "PNG") if i % 2 else good
            (root / f"{i}.bin").write_bytes(data)
            table.write(json.dumps({"file": f"{i}.bin", "title": texts.get(i, f"caption {i}"), "n": i, "x": i / 2}) + "\n")
    columns = {"image": "file", "text": "title"}
    return {"name": "folder", "path": str(root), "table": "t.jsonl", "columns": columns}, causes


def test_bad_examples_are_left_out_counted_and_named(tmp_path, hostile):
    spec, causes = hostile
    said = []
    manifest = pack.pack(spec, tmp_path / "out", short_side=48, shard_examples=3, say=said.append)
    assert manifest["bad"] == {"corrupt image": 3, "empty caption": 2, "empty image": 1, "giant image": 1}
    lines = list(map(json.loads, (tmp_path / "out" / "bad_examples.jsonl").read_text().splitlines()))
    assert [(line["index"], line["key"], line["cause"]) for line in lines] == [
        (i, f"{i}.bin", causes[i]) for i in sorted(causes)]
    assert "60000x60000" in lines[4]["detail"]
    packed, source = read(tmp_path / "out"), sources.open(spec)
    kept = [i for i in range(24) if i not in causes]
    assert [(packed[j]["n"], packed[j]["x"]) for j in range(len(packed))] == [(i, i / 2) for i in kept]
    for j, i in enumerate(kept):
        stored = source[i]["text"]
        texts = packed[j]["text"] if isinstance(stored, list) else [packed[j]["text"]]
        assert [text.decode("utf-8", "surrogatepass") for text in texts] == [
            text.decode("utf-8", "surrogatepass") if isinstance(text, bytes) else text
            for text in (stored if isinstance(stored, list) else [stored])]
        assert decode.size(packed[j]["image"]) == ((48, 72) if i % 2 else (30, 40))
        assert i % 2 or packed[j]["image"] == source[i]["image"]
    shards = {line["file"]: line for line in manifest["shards"]}
    empty = shards["pairs-00003-of-00008.array_record"]    # examples 9, 10, 11
    assert empty["examples"] == 0 and empty["bad"] == 3 and not (tmp_path / "out" / empty["file"]).exists()
    assert said[3].startswith("pairs-00003-of-00008.array_record: 0 examples, 3 bad") and not pack.verify(tmp_path / "out")


# ---- determinism and going on ----


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, hostile):
    spec, _ = hostile
    for workers in (1, 3):
        pack.pack(spec, tmp_path / str(workers), short_side=48, shard_examples=5, workers=workers, **QUIET)
    assert files(tmp_path / "1") == files(tmp_path / "3") and len(files(tmp_path / "1")) == 7


def test_a_stopped_packing_goes_on(tmp_path, hostile, monkeypatch):
    spec, _ = hostile
    straight, out = tmp_path / "straight", tmp_path / "out"
    pack.pack(spec, straight, shard_examples=6, **QUIET)
    inside, calls = encode.record, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 14:   # in the third shard
            raise OSError("the disk is gone")
        return inside(*args)
    monkeypatch.setattr(encode, "record", dies)
    with pytest.raises(OSError, match="the disk is gone") as error:
        pack.pack(spec, out, shard_examples=6, **QUIET)
    assert error.value.__notes__ == ["while packing example 13 of 24"]
    monkeypatch.setattr(encode, "record", inside)
    assert "pairs-00001-of-00004.array_record" in files(out) and not [name for name in files(out) if name.endswith(".part")]
    (out / ".pairs-00002-of-00004.array_record.7.part").write_bytes(b"of one that was killed")
    assert not json.loads((out / "manifest.json").read_text())["complete"] and "is not complete" in pack.verify(out)[0]
    before = {i: os.stat(out / pack.shard_name(i, 4)).st_mtime_ns for i in (0, 1)}
    said = []
    pack.pack(spec, out, shard_examples=6, say=said.append)
    assert said[0] == "2 of 4 shards are finished already" and len(said) == 3
    assert before == {i: os.stat(out / pack.shard_name(i, 4)).st_mtime_ns for i in (0, 1)}
    assert files(out) == files(straight)
    # a shard that is missing or half as long is made again, and nothing else
    (out / pack.shard_name(0, 4)).unlink()
    (out / pack.shard_name(3, 4)).write_bytes(b"half")
    said.clear()
    pack.pack(spec, out, shard_examples=6, say=said.append)
    assert [line[:11] for line in said] == ["2 of 4 shar", "pairs-00000", "pairs-00003"] and files(out) == files(straight)


def test_a_killed_packing_leaves_no_worker_behind_and_goes_on(tmp_path, hostile):
    spec, _ = hostile
    (tmp_path / "slow").mkdir()
    slow = tmp_path / "slow" / "pairs.py"   # waits in its second half, so that the workers are busy when they are killed
    slow.write_text("import os, time\nfrom mcd_jax.data import sources\nclass Slow:\n    def __init__(self, spec):\n"
                    "        self.inner = sources.open(spec['inner'])\n    def __len__(self):\n        return len(self.inner)\n"
                    "    def __getitem__(self, i):\n        if i >= 12 and not os.path.exists(os.environ['FAST']):\n"
                    "            open(os.environ['PIDS'] + f'/{os.getpid()}', 'w').close()\n            time.sleep(60)\n"
                    "        return self.inner[i]\nmake = Slow\n")
    (tmp_path / "pids").mkdir()
    out, fast = tmp_path / "out", tmp_path / "fast"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.getcwd())), "FAST": str(fast),
           "PIDS": str(tmp_path / "pids")}
    command = [sys.executable, "-m", "mcd_jax.data.tools.pack", "--source=name=slow.pairs", f"--source=inner={spec!r}",
               f"--out={out}", "--shard_examples=6", "--workers=2"]
    run = subprocess.Popen(command, env=env)
    manifest = out / "manifest.json"
    wait(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    wait(lambda: manifest.exists() and len(json.loads(manifest.read_text())["shards"]) == 2)
    run.kill()
    run.wait()
    wait(lambda: not any(alive(int(path.name)) for path in (tmp_path / "pids").iterdir()))
    fast.touch()
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert "2 of 4 shards are finished already" in done and not pack.verify(out)
    pack.pack(spec, tmp_path / "straight", shard_examples=6, **QUIET)
    ours, theirs = files(out), files(tmp_path / "straight")
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours if name != "manifest.json")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_bytes()   # ended, and not yet collected by init


def wait(until, seconds=180):
    for _ in range(20 * seconds):
        if until():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def test_verify_names_what_is_not_as_packed(tmp_path, capsys):
    pack.main(["--source", "name=emoji", "split=validation", f"--out={tmp_path}", "--short_side=8", "--shard_examples=100",
               "--workers=1"])
    shown = capsys.readouterr().out
    assert "packed 276 examples" in shown and "left out 0 bad and the columns concept, concept_split" in shown
    with pytest.raises(SystemExit) as stop:
        pack.main([f"--out={tmp_path}", "--verify"])
    assert stop.value.code == 0 and "every shard is what was packed" in capsys.readouterr().out
    name = tmp_path / "pairs-00001-of-00003.array_record"
    data = bytearray(name.read_bytes())
    data[70_000] ^= 1
    name.write_bytes(data)
    (tmp_path / "pairs-00002-of-00003.array_record").unlink()
    with pytest.raises(SystemExit) as stop:
        pack.main([f"--out={tmp_path}", "--verify"])
    shown = capsys.readouterr().out
    assert stop.value.code == 1 and "00001-of-00003.array_record isn't what was packed" in shown
    assert "00002-of-00003.array_record is missing" in shown and "00000" not in shown


# ---- refusals ----


def test_a_full_disk_is_said_by_the_shards_name(tmp_path, hostile, monkeypatch):
    def full(*_):
        raise RuntimeError("write() failed: No space left on device; writing out/.pairs-00000.17.part; at byte 40960")
    monkeypatch.setattr(pack.encode, "record", full)   # as array_record says it
    with pytest.raises(atomic.Full, match=r"pairs-00000-of-.* can't be written: No space left on device in .* free\)"):
        pack.pack(hostile[0], tmp_path / "out", **QUIET)
    assert not list((tmp_path / "out").glob(".*.part"))


def test_other_settings_another_process_or_foreign_files_are_refused(tmp_path, hostile):
    spec, _ = hostile
    out = tmp_path / "out"
    pack.pack(spec, out, shard_examples=6, **QUIET)
    before = files(out)
    for more, words in (({"short_side": 128}, "was packed with short_side=256, now it is 128"), ({"quality": 80}, "quality=90"),
                        ({"shard_examples": 7}, "shard_examples=6"), ({"keep": ("file",)}, r"keep=\[\]")):
        with pytest.raises(ValueError, match=words):
            pack.pack(spec, out, **{"shard_examples": 6, **more}, **QUIET)
    with pytest.raises(ValueError, match="was packed with source="):
        pack.pack(EMOJI, out, shard_examples=6, **QUIET)
    with pack._locked(out), pytest.raises(BlockingIOError, match="another process packs into"):
        pack.pack(spec, out, shard_examples=6, **QUIET)
    assert files(out) == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.array_record").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds a.array_record, which isn't of this packing"):
        pack.pack(spec, tmp_path / "foreign", **QUIET)


def test_a_data_set_is_not_packed_into_its_own_folder(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(own / f"{i}.png")
        (own / f"{i}.txt").write_text(f"number {i}")
    before = files(own)
    for source, out in ((dict(name="sidecars", path=str(own)), own), (dict(name="sidecars", path=str(own)), own / "packed"),
                        (dict(name="hold_out", source=dict(name="sidecars", path=f"{own}/"), part="train", share=0.5), own / ".")):
        with pytest.raises(ValueError, match="lies in the folder of the source"):
            pack.pack(source, out, **QUIET)
    assert files(own) == before
    pack.pack(dict(name="sidecars", path=str(own)), tmp_path / "own_packed", **QUIET)


@pytest.mark.parametrize("options, words", [
    ({"short_side": -1}, "short_side=-1 must be a whole number of at least 0"), ({"workers": 0}, "workers=0"),
    ({"quality": 101}, "quality=101 must be at most 100"), ({"shard_examples": 1.5}, "shard_examples=1.5"),
    ({"keep": ("nothing",)}, "--keep=nothing: the source has no such column"),
    ({"keep": ("group",)}, "--keep=group: the column holds int")])
def test_bad_values_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        pack.pack(EMOJI, tmp_path / "out", **options, **QUIET)


def test_nothing_good_is_an_error_that_names_the_causes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"none")
    (tmp_path / "t.csv").write_text("image,text\na.jpg,word\n")
    with pytest.raises(SystemExit, match=r"error: no example of the source is good: 1 x corrupt image; .*bad_examples.jsonl names"):
        pack.main(["--source", "name=folder", f"path={tmp_path}", "table=t.csv", f"--out={tmp_path / 'out'}"])


def test_where_the_source_comes_from(tmp_path):
    config = tmp_path / "my.py"
    config.write_text("from ml_collections import ConfigDict\ndef get_config(split='test'):\n"
                      "    return ConfigDict(dict(data=dict(source=dict(name='emoji', split=split, captions=('label',)))))\n")
    assert pack.read_source([str(config)]) == {"name": "emoji", "split": "test", "captions": ("label",)}
    assert pack.read_source([f"{config}:validation"])["split"] == "validation"
    assert pack.read_source(["name=folder", "path=/data/a=b", "columns.text=title", "captions=('a','b')", "n=3"]) == {
        "name": "folder", "path": "/data/a=b", "columns": {"text": "title"}, "captions": ("a", "b"), "n": 3}
    with pytest.raises(ValueError, match="write KEY=VALUE"):
        pack.read_source(["name=emoji", "validation"])
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.py: there is no file"):
        pack.main(["--source", str(tmp_path / "nowhere.py"), f"--out={tmp_path / 'out'}"])
