"""Bad input, nothing lost: what is broken is replaced, counted and named, and the rest comes out as if nothing had happened."""
import io
import json
import os
import pathlib
import threading

import numpy as np
from PIL import Image
import pytest
import shards

from mcd_jax.data import reader, sources, tokenizers
from mcd_jax.data.decode import Bad
from mcd_jax.data.ops.augmented import Op
from mcd_jax.data.pipeline import Pipeline, sequential
from mcd_jax.data.reader import Reader, Unusable
from mcd_jax.data.views import Views

VIEWS = {"image": "decode|crop(8,0.3)|flip", "text": "caption|tokenize(12)", "label": "column('label')"}


class Pairs:
    """The examples of `shards.rows`, some columns replaced: {column: {index: value}}. What a function returns is raised."""

    def __init__(self, count=24, **replaced):
        self.stored = [{**row, "key": f"key{i}"} for i, row in enumerate(shards.rows(count))]
        self.reads = []
        for column, values in replaced.items():
            for i, value in values.items():
                self.stored[i][column] = value

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, index):
        self.reads.append(index)
        for value in self.stored[index].values():
            if callable(value):
                raise value()
        return {name: value for name, value in self.stored[index].items() if value != "left out"}


def make(source, batch_size=8, seed=3, rows=None, views=VIEWS, **options):
    return Pipeline(source, Views(views), seed, batch_size, rows, **options)


def equal(a, b, rows=slice(None)):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key][rows], b[key][rows], err_msg=key)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(reader, "_PAUSES", (0.0, 0.0))


# ---- images, through the whole pipeline ----


def saved(format, mode="RGB", size=(30, 20), **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], len(mode) if mode in ("RGB", "CMYK") else 1), np.uint8)
    image = Image.fromarray(pixels.squeeze(), mode="CMYK" if mode == "CMYK" else None).convert(mode)
    image.save(file, format, **options)
    return file.getvalue()


def still(format, count):
    frames = [Image.new("RGB", (12, 10), (60 * i, 0, 0)) for i in range(count)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], duration=50)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif)


def deep():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 2 ** 16, (10, 12), np.uint16)).save(file, "PNG")
    return file.getvalue()


def giant(header):
    if header == "png":
        return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (40_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(400)
    jpeg = bytearray(saved("JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5:place + 9] = b"\xff\xdc\xff\xdc"   # 65,500 x 65,500
    return bytes(jpeg)


BROKEN = {1: b"", 2: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", 3: saved("JPEG", size=(99, 80))[:-900],
          4: saved("PNG")[:-30], 5: giant("png"), 6: giant("jpeg"), 7: b"\xff\xd8\xff", 8: saved("WEBP")[:60], 9: b"\0" * 5000}
CAUSES = {1: "empty image", 2: "corrupt image", 3: "corrupt image", 4: "corrupt image", 5: "giant image", 6: "giant image",
          7: "corrupt image", 8: "corrupt image", 9: "corrupt image"}
STRANGE = {11: saved("JPEG", "CMYK"), 12: deep(), 13: still("GIF", 3), 14: saved("PNG", "P"), 15: turned(), 16: saved("PNG", "LA"),
           17: saved("PNG", "1"), 18: saved("GIF", "P"), 19: saved("WEBP"), 20: saved("BMP")}


def test_broken_images_are_replaced_counted_and_named_and_strange_ones_are_used(tmp_path):
    log = tmp_path / "bad_examples.jsonl"
    good, data = make(Pairs(image=STRANGE), 24), make(Pairs(image=STRANGE | BROKEN), 24, bad_log=log, max_bad=1.0)
    for step in range(2):
        expected, batch = good.batch(step), data.batch(step)
        assert not expected["bad"].any()
        assert sorted(expected["index"][batch["bad"]]) == sorted(BROKEN)
        equal({k: v for k, v in expected.items() if k != "bad"}, {k: v for k, v in batch.items() if k != "bad"}, ~batch["bad"])
        assert set(batch["index"][batch["bad"]].tolist()) == {10}   # the next good one
    assert data.counts() == {"bad_examples": 9, "bad_examples/empty_image": 1, "bad_examples/corrupt_image": 6,
                             "bad_examples/giant_image": 2}
    assert {(line["index"], line["key"], line["cause"]) for line in lines(log)} == {(i, f"key{i}", c) for i, c in CAUSES.items()}
    assert len(lines(log)) == 9


# ---- captions and columns ----


def test_captions_that_are_no_captions(tmp_path):
    texts = {1: "", 2: [], 3: None, 4: "left out", 5: 7, 6: ["fine", None], 7: [" ", "\n"], 8: b"\xff\xfe",
             9: "word " * 400_000, 10: b"caf\xe9", 11: ["", "fine"], 12: "\ud83d half a pair", 13: "a\0b", 17: "&nbsp;",
             18: b"\xef\xbb\xbf", 19: ["\u200b", "\x07"]}
    log = tmp_path / "bad.jsonl"
    data = make(Pairs(text=texts, label={14: "three", 15: None, 16: []}), 24, bad_log=log)
    batch = data.batch(0)
    causes = {line["index"]: line["cause"] for line in lines(log)}
    repaired = {9: "caption cut", 10: "caption not UTF-8"}
    assert causes == {1: "empty caption", 2: "missing text", 3: "missing text", 4: "missing text", 5: "caption not text",
                      6: "caption not text", 7: "empty caption", 8: "empty caption", 14: "column not a number",
                      15: "missing label", 16: "missing label", 17: "empty caption", 18: "empty caption", 19: "empty caption",
                      **repaired}
    assert batch["bad"].sum() == 14 and data.counts()["bad_examples"] == 14
    assert data.counts()["repaired_examples/caption_cut"] == 1 == data.counts()["repaired_examples/caption_not_UTF-8"]
    good = make(Pairs(), 24).batch(0)
    untouched = np.isin(good["index"], [0, *range(20, 24)])
    equal(good, batch, untouched)


def test_an_example_that_the_source_calls_bad_is_replaced(tmp_path):
    bad = {5: lambda: Bad("no image", "key5"), 6: lambda: Bad("no caption"), 23: lambda: Bad("no image"),
           0: lambda: Bad("no caption")}
    log = tmp_path / "bad.jsonl"
    good, data = make(Pairs(), 24), make(Pairs(image=bad), 24, bad_log=log)
    expected, batch = good.batch(1), data.batch(1)
    equal({k: v for k, v in expected.items() if k != "bad"}, {k: v for k, v in batch.items() if k != "bad"}, ~batch["bad"])
    found = dict(zip(expected["index"].tolist(), batch["index"].tolist()))
    assert found == {i: {5: 7, 6: 7, 23: 1, 0: 1}.get(i, i) for i in range(24)}
    assert data.counts() == {"bad_examples": 4, "bad_examples/no_image": 2, "bad_examples/no_caption": 2}
    assert {line["index"]: line["detail"] for line in lines(log)} == {5: "key5", 6: "", 23: "", 0: ""}


def test_a_source_may_say_what_comes_next():
    class Parts(Pairs):
        def next(self, index):   # two parts of twelve, each a circle
            return index // 12 * 12 + (index + 1) % 12
    batch = make(Parts(image=dict.fromkeys((11, 22, 23), b"")), 24).batch(0)
    found = dict(zip(make(Pairs(), 24).batch(0)["index"].tolist(), batch["index"].tolist()))
    assert {i: found[i] for i in (11, 22, 23)} == {11: 0, 22: 12, 23: 12}
    with pytest.raises(Unusable, match=r"12 in a row from index 5 are bad"):   # the other part does not step in
        Reader(Parts(image=dict.fromkeys(range(12), b"")), Views(VIEWS)).row(5, Views(VIEWS).draws(0, [5]))


# ---- what was seen before makes no difference ----


def fickle():
    """A view's operation that can't use three pictures of ten, others at each place."""
    def run(augmented, draws):
        if (draws[0] + augmented.pixels.mean()) % 1 < 0.3:
            raise Bad("a whim")
        return augmented
    return Op(run, "image", "image", draws=1)


def test_the_replacement_does_not_depend_on_what_was_seen_before():
    views = {"image": "decode|test_robust.fickle()|resize(8)"}
    seen = make(Pairs(), 24, views=views, max_bad=1.0)
    for step in range(4):
        seen.batch(step)
    for step in (4, 2):
        equal(make(Pairs(), 24, views=views).batch(step), seen.batch(step))
    halves = [make(Pairs(), 24, views=views, rows=rows).batch(5) for rows in (slice(0, 12), slice(12, 24))]
    whole = seen.batch(5)
    assert whole["bad"].any()
    equal(whole, {key: np.concatenate([half[key] for half in halves]) for key in whole})


@pytest.mark.parametrize("kind", shards.WRITERS)
def test_workers_restarts_and_bad_examples_change_nothing_for_any_source(kind, tmp_path):
    rows = shards.rows()
    for i, image in ((3, b""), (4, b"<html>"), (17, rows[17]["image"][:-20])):
        rows[i]["image"] = image
    rows[9]["text"] = ""
    source = sources.open(shards.WRITERS[kind](tmp_path, rows))
    straight = make(source, 7)
    expected = [straight.batch(step) for step in range(9)]
    assert {int(i) for batch in expected for i in batch["index"]} == set(range(24)) - {3, 4, 9, 17}
    assert {int(i) for batch in expected for i in batch["index"][batch["bad"]]} == {5, 10, 18}
    for workers in (0, 1, 4):
        data = make(sources.open(shards.WRITERS[kind](tmp_path, rows)), 7, workers=workers, prefetch=3)
        for first in (0, 5):   # the second is a restart in the middle
            batches = data.iterate(first)
            for step in range(first, first + 4):
                equal(expected[step], next(batches))
        data.close()


# ---- reads that fail, workers that die ----


def test_a_read_that_works_the_third_time_is_counted_and_changes_nothing(quick, tmp_path):
    class Flaky(Pairs):
        def __getitem__(self, index):
            self.reads.append(index)
            if index == 9 and self.reads.count(9) < 3:
                raise TimeoutError("the disk sleeps")
            return super().__getitem__(index)
    log = tmp_path / "bad.jsonl"
    data = make(Flaky(), 24, bad_log=log)
    equal(make(Pairs(), 24).batch(0), data.batch(0))
    assert data.counts() == {"bad_examples": 0, "repaired_examples/read_retried": 1}
    assert lines(log) == [{"index": 9, "key": "key9", "cause": "read retried", "detail": "the disk sleeps"}]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("error, notes", [
    (OSError("/data/pairs-3.tar is gone"), ["3 tries to read it failed", "at example {i} of 24"]),
    (ZeroDivisionError("a bug"), ["at example {i} of 24"])])
def test_an_error_in_a_worker_is_raised_at_its_step_with_its_example(quick, workers, error, notes):
    order = np.concatenate([make(Pairs(), 4).batch(step)["index"] for step in range(6)]).tolist()
    source = Pairs(image={order[14]: lambda: type(error)(*error.args)})
    data = make(source, 4, workers=workers)
    batches = data.iterate(0)
    for step in range(3):
        equal(make(Pairs(), 4).batch(step), next(batches))
    with pytest.raises(type(error), match=str(error)) as raised:
        next(batches)
    assert [n for n in raised.value.__notes__ if "\n" not in n] == [note.format(i=order[14]) for note in notes]
    data.close()
    if not workers:
        assert source.reads.count(order[14]) == (3 if isinstance(error, OSError) else 1)


def test_an_error_in_a_view_names_the_key():
    def broken(*_):
        raise KeyError("a bug in a view")
    data = make(Pairs(), 24)
    data.views._pipes["label"][-1] = data.views._pipes["label"][-1]._replace(run=broken)
    with pytest.raises(KeyError) as raised:
        data.batch(0)
    first = int(make(Pairs(), 24).batch(0)["index"][0])
    assert raised.value.__notes__ == [f"at example {first} of 24, key 'key{first}'"]


def test_files_that_vanish_stop_the_run_with_their_name(quick, tmp_path):
    source = sources.open(shards.WRITERS["csv"](tmp_path, shards.rows()))
    data = make(source, 24)
    (tmp_path / "0007.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"0007\.img") as raised:
        data.batch(0)
    assert raised.value.__notes__ == ["3 tries to read it failed", "at example 7 of 24"]


@pytest.mark.parametrize("kind", ["array_record", "webdataset", "tfrecord"])
def test_a_shard_that_is_cut_while_it_is_read_stops_the_run(quick, kind, tmp_path):
    spec = shards.WRITERS[kind](tmp_path, shards.rows())
    data = make(sources.open(spec), 24)
    data.batch(0)
    os.truncate(spec["path"], 100)
    with pytest.raises(OSError, match=rf"{pathlib.Path(spec['path']).name}.* bytes") as raised:
        data.batch(1)
    assert raised.value.__notes__[0] == "3 tries to read it failed"


# ---- too many bad examples ----


def test_too_many_bad_examples_stop_the_run_with_counts(tmp_path):
    count = 1500
    rows = Pairs(1)
    rows.stored = [dict(rows.stored[0], key=str(i)) for i in range(count)]
    for i in range(0, count, 4):
        rows.stored[i]["image"] = b"" if i % 3 else b"<html>"
    log = tmp_path / "bad.jsonl"
    data = make(rows, 100, bad_log=log, workers=2)
    batches = data.iterate(0)
    sentence = (r"2\d\.\d% of the [\d,]+ examples looked at so far are bad \(\d+ x corrupt image, \d+ x empty image\), more than "
                r"config\.data\.max_bad=0\.1: .*bad\.jsonl names them")
    good = []
    with pytest.raises(Unusable, match=sentence):
        good.extend(next(batches)["index"][0] for _ in range(15))
    data.close()
    assert 4 <= len(good) <= 10   # nothing is judged before a thousand were looked at, here by both workers
    for allowed in (0.3, 1):
        resolution_needed = make(rows, 100, max_bad=allowed, workers=0)
        for step in range(15):
            resolution_needed.batch(step)
        assert resolution_needed.counts() == {"bad_examples": 375, "bad_examples/empty_image": 250,
                                              "bad_examples/corrupt_image": 125}


def test_a_small_source_is_judged_after_a_thousand_rows_and_repairs_do_not_count():
    cut = dict.fromkeys(range(2, 12), "word " * 2000)
    few, many = Pairs(image={1: b""}, text=cut), Pairs(image=dict.fromkeys((1, 2, 3), b""))
    with pytest.raises(Unusable, match=r"12\.5% of the 24 examples .* \(3 x empty image\)"):
        for step in range(60):
            make_once(many).batch(step)
    assert step == 1000 // (24 * 1.25)   # each bad one is followed by a look at the next
    for step in range(60):
        make_once(few).batch(step)
    assert make_once(few).counts() == {"bad_examples": 1, "bad_examples/empty_image": 1, "repaired_examples/caption_cut": 10}


_made = {}


def make_once(source):
    return _made.setdefault(id(source), make(source, 24))


@pytest.mark.parametrize("share", [-0.1, 1.5, "a tenth", True, None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"max_bad=.* must be a share of the examples, from 0 to 1"):
        make(Pairs(), max_bad=share)


def test_nothing_usable_is_an_error_with_the_last_cause():
    with pytest.raises(Unusable, match=r"24 in a row from index \d+ are bad \(24 x image not bytes\), the last: .*holds int"):
        make(Pairs(image=dict.fromkeys(range(24), 3)))
    with pytest.raises(Unusable, match="the first 24 are bad, the last: no image"):
        make(Pairs(image=dict.fromkeys(range(24), lambda: Bad("no image"))))
    with pytest.raises(ValueError, match="the source is empty"):
        list(sequential(Pairs(0), VIEWS, 4))


# ---- the log ----


def test_the_log_goes_on_after_a_crash_and_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(reader, "_NAMED", 3)
    log = tmp_path / "bad.jsonl"
    log.write_text('{"index": 1, "key": "key1", "cause": "empty image", "detail": ""}\n[1]\n{"index": 2, "key": "k')
    source = Pairs(image=dict.fromkeys(range(1, 7), b""))
    for _ in range(2):
        data = make(source, 24, bad_log=log)
        data.batch(0)
        assert data.counts()["bad_examples"] == 6
    text = log.read_text().splitlines()
    assert len(text) == 5 and text[2] == '{"index": 2, "key": "k'
    assert len({json.loads(line)["index"] for line in text[3:]} - {1}) == 2


def test_counting_from_many_threads_loses_nothing():
    source = Pairs(image=dict.fromkeys(range(1, 20, 3), b""), text=dict.fromkeys(range(0, 20, 3), "word " * 2000))
    data = make(source, 24, max_bad=1.0)
    threads = [threading.Thread(target=lambda: [data.batch(step) for step in range(20)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        data.counts(), data.stats
    assert data.counts() == {"bad_examples": 7, "bad_examples/empty_image": 7, "repaired_examples/caption_cut": 7}


def test_what_is_remembered_of_captions_is_bounded():
    tokenizer = tokenizers.make("clip")
    before = tokenizer._remembered.cache_info().currsize
    for i in range(50):
        assert (tokenizer.row(f"{i} word " * 400, 8) == tokenizer.row(f"{i} word " * 400, 8)).all()
    assert tokenizer._remembered.cache_info().currsize == before
    tokenizer.row("a caption of a length that is remembered", 8)
    assert tokenizer._remembered.cache_info().currsize == before + 1
