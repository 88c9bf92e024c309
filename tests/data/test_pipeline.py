"""batch(seed, step) is a pure function: the same rows for any hosts, workers and restarts, and bad examples move nothing."""
import json
import threading

import cv2
import ml_collections
import numpy as np
import pytest

from mcd_jax.data import order, pipeline, tokenizers
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.reader import Unusable
from mcd_jax.data.views import Views

VIEWS = {"image": "decode|crop(16,0.5)", "augmented": "decode|crop(16,0.08)|flip|jitter(.4,.4,.4,.1)|gray(.2)|blur(.5)",
             "text": "caption|tokenize(8)", "label": "column('label')"}


class Drawings:
    """In-memory source: small PNGs of one colour each, two captions, an integer label."""

    def __init__(self, count=23, **replaced):
        self.rows = []
        for i in range(count):
            pixels = np.full((20, 24, 3), 7 * i % 256, np.uint8)
            pixels[4:12, 6:18] = (i * 37 % 256, i * 91 % 256, 255)
            self.rows.append({"image": cv2.imencode(".png", pixels)[1].tobytes(), "key": f"drawing/{i}",
                              "text": [f"number {i}", f"drawing {i} of many"], "label": i})
        for column, values in replaced.items():
            for i, value in values.items():
                self.rows[i][column] = value

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


def make(source=None, rows=None, batch_size=8, seed=3, views=VIEWS, **options):
    return Pipeline(source or Drawings(), Views(views), seed, batch_size, rows, **options)


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_batch_has_the_documented_keys_shapes_and_types():
    data = make()
    batch = data.batch(0)
    assert set(batch) == data.views.keys == {
        "image", "image/params", "image/misalignment", "augmented", "augmented/params", "augmented/misalignment", "text",
        "label", "index", "bad"}
    assert data.shapes == {key: (value.shape, value.dtype) for key, value in batch.items()}
    kinds = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert kinds["image"] == ("uint8", (8, 16, 16, 3)) and kinds["text"] == ("int32", (8, 8))
    assert kinds["augmented/params"] == ("float32", (8, 12)) and kinds["augmented/misalignment"] == ("float32", (8,))
    assert kinds["index"] == ("int32", (8,)) and kinds["bad"] == ("bool", (8,)) and kinds["label"] == ("int32", (8,))
    np.testing.assert_array_equal(batch["label"], batch["index"])
    assert (data.examples, data.vocab_size, data.context, data.eot) == (23, 49408, 8, 49407)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_sees_the_same_global_batch_row_for_row(hosts):
    everything = make()
    size = 8 // hosts
    blocks = [make(rows=slice(h * size, (h + 1) * size)) for h in range(hosts)]
    strided = [make(rows=np.arange(h, 8, hosts)) for h in range(hosts)]
    for step in (0, 2, 3, 57):
        whole = everything.batch(step)
        equal(whole, joined([host.batch(step) for host in blocks]))
        for h, host in enumerate(strided):
            equal({key: value[h::hosts] for key, value in whole.items()}, host.batch(step))


def test_rows_are_positions_of_one_stream_and_an_epoch_is_a_permutation():
    index = np.concatenate([make(batch_size=8).batch(step)["index"] for step in range(23)])
    np.testing.assert_array_equal(index, np.concatenate([make(batch_size=4).batch(s)["index"] for s in range(46)]))
    epochs = index.reshape(8, 23)
    assert (np.sort(epochs, axis=1) == np.arange(23)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert (make(seed=4).batch(0)["index"] != make(seed=3).batch(0)["index"]).any()


def test_a_source_too_large_for_a_table_is_permuted_too(monkeypatch):
    monkeypatch.setattr(order, "_TABLE", 0)
    index = np.concatenate([make().batch(step)["index"] for step in range(23)]).reshape(8, 23)
    assert (np.sort(index, axis=1) == np.arange(23)).all() and len({tuple(epoch) for epoch in index}) == 8


def test_an_example_is_augmented_anew_each_epoch():
    data = make(batch_size=23)
    first, second = (data.batch(step) for step in (0, 1))
    a, b = (batch["augmented/params"][np.argsort(batch["index"])] for batch in (first, second))
    assert (a != b).any(axis=1).all()


@pytest.mark.parametrize("workers, prefetch, piece, cache", [
    (0, 1, 256, False), (1, 2, 256, True), (2, 4, 3, False), (4, 1, 3, True)])
def test_workers_prefetching_pieces_and_cache_change_nothing(monkeypatch, workers, prefetch, piece, cache):
    monkeypatch.setattr(pipeline, "_PIECE", piece)
    expected = make()
    data = make(workers=workers, prefetch=prefetch, cache=cache)
    for first in (0, 5, 3):  # a restart at any step equals the straight run
        batches = data.iterate(first)
        for step in range(first, first + 4):
            equal(expected.batch(step), next(batches))
    data.close()


def test_one_row_is_a_pure_function_of_seed_and_index():
    views, source = Views(VIEWS), Drawings()
    batch = next(pipeline.sequential(source, views, 23, seed=5))
    for index in (0, 9, 22):
        equal({key: value[index] for key, value in batch.items()}, pipeline.example(views, source, index, 5))
    other = pipeline.example(views, source, 9, 6)
    assert (other["augmented/params"] != batch["augmented/params"][9]).any()


def test_sequential_goes_through_in_order_and_ends_short():
    batches = list(pipeline.sequential(Drawings(), VIEWS, 10))
    assert [len(batch["index"]) for batch in batches] == [10, 10, 3]
    np.testing.assert_array_equal(joined(batches)["index"], np.arange(23))
    some = list(pipeline.sequential(Drawings(), VIEWS, 2, indices=[20, 4, 4]))
    equal(joined(some), {key: value[[20, 4, 4]] for key, value in joined(batches).items()})


def test_a_view_keeps_its_random_numbers_when_others_come_and_go():
    alone = make(views={"augmented": VIEWS["augmented"]}).batch(4)
    equal(alone, {key: value for key, value in make().batch(4).items() if key in alone})


@pytest.mark.parametrize("piece", [256, 3])
def test_close_ends_the_workers(monkeypatch, piece):
    monkeypatch.setattr(pipeline, "_PIECE", piece)
    before = set(threading.enumerate())
    data = make(workers=2)
    next(data.iterate(0))
    workers = set(threading.enumerate()) - before
    data.close()
    for worker in workers:
        worker.join(5)
    assert workers and not any(worker.is_alive() for worker in workers)


# ---- bad examples ----

GIANT = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60000).to_bytes(4, "big") * 2 + bytes(9)
CORRUPT = {5: b"", 6: b"not an image", 11: Drawings().rows[11]["image"][:-40], 22: GIANT}


def test_corrupt_images_are_replaced_by_the_next_good_one_and_move_nothing(tmp_path):
    log = tmp_path / "bad_examples.jsonl"
    good, data = make(batch_size=23), make(Drawings(image=CORRUPT), batch_size=23, bad_log=log)
    for step in range(3):
        expected, batch = good.batch(step), data.batch(step)
        assert sorted(expected["index"][batch["bad"]]) == sorted(CORRUPT)
        equal({key: value[~batch["bad"]] for key, value in expected.items()},
              {key: value[~batch["bad"]] for key, value in batch.items()})
        stand_in = dict(zip(expected["index"].tolist(), batch["index"].tolist()))
        assert {i: stand_in[i] for i in CORRUPT} == {5: 7, 6: 7, 11: 12, 22: 0}
    assert data.stats == {"empty image": 1, "corrupt image": 2, "giant image": 1}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["index"], line["key"], line["cause"]) for line in lines} == {
        (5, "drawing/5", "empty image"), (6, "drawing/6", "corrupt image"), (11, "drawing/11", "corrupt image"),
        (22, "drawing/22", "giant image")}
    assert "60000x60000" in {line["index"]: line["detail"] for line in lines}[22]
    make(Drawings(image=CORRUPT), batch_size=23, bad_log=log).batch(0)  # a restart does not log them again
    assert len(log.read_text().splitlines()) == 4


def test_hosts_agree_on_replacements():
    whole = make(Drawings(image=CORRUPT)).batch(2)
    halves = [make(Drawings(image=CORRUPT), rows=rows).batch(2) for rows in (slice(0, 4), slice(4, 8))]
    equal(whole, joined(halves))


def test_captions_empty_giant_or_not_utf8():
    texts = {2: "", 3: [" ", b"\n", ""], 4: ["", "number 4"], 7: "word " * 2000, 9: b"caf\xe9 \xff bar",
             10: "caf bar", 12: "x" * 10_000}
    views = dict(VIEWS, text="caption('first')|tokenize(8)")
    data = make(Drawings(text=texts), batch_size=23, views=views)
    batch = data.batch(0)
    order = np.argsort(np.where(batch["bad"], 100, batch["index"]))
    assert batch["bad"].sum() == 2 and data.stats == {"empty caption": 2, "caption cut": 2, "caption not UTF-8": 1}
    row = {int(batch["index"][j]): batch["text"][j].tolist() for j in order[:21]}
    assert row[9] == row[10] and row[7].count(row[7][1]) == 6 and row[7][-1] == 49407 and row[12][-1] == 49407
    np.testing.assert_array_equal(row[4], tokenizers.make("clip").encode(["number 4"], 8)[0])


def test_nothing_but_bad_examples_is_an_error_that_says_so(tmp_path):
    source = Drawings(image=dict.fromkeys(range(23), b"zero"))
    with pytest.raises(Unusable, match=r"23 in a row from index .* are bad .23 x corrupt image.*bad.jsonl names them"):
        make(source, bad_log=tmp_path / "bad.jsonl")


def test_an_error_in_a_worker_is_raised_at_its_step_and_names_the_example():
    class Broken(Drawings):
        def __getitem__(self, index):
            if index == broken:
                raise OSError("the disk is gone")
            return super().__getitem__(index)
    broken = None
    expected = make(batch_size=4)
    broken = int(expected.batch(3)["index"][2])
    data = make(Broken(), batch_size=4)
    batches = data.iterate(0)
    for step in range(3):
        equal(expected.batch(step), next(batches))
    with pytest.raises(OSError, match="the disk is gone") as error:
        next(batches)
    assert error.value.__notes__[:2] == ["3 tries to read it failed", f"at example {broken} of 23"]
    data.close()


# ---- from a config ----


def test_the_embedded_data_set_feeds_slips_recipes():
    config = ml_collections.ConfigDict({
        "source": {"name": "emoji", "split": "train"}, "workers": 1, "cache": 8,
        "views": {**VIEWS, "text": "caption|tokenize(16,'emoji')", "label": "column('group')"}})
    data = pipeline.make(config, 0, 32)
    batch, again = data.batch(1), next(data.iterate(1))
    data.close()
    equal(batch, again)
    assert data.examples > 4000 and data.context == 16 and not batch["bad"].any() and data.stats == {}
    assert ((batch["text"] == data.eot).sum(1) == 1).all() and (batch["text"] < data.vocab_size).all()
    assert batch["augmented/misalignment"].mean() > batch["image/misalignment"].mean() > 1
    assert batch["image"].std() > 20 and set(batch["label"]) <= set(range(10)) and len(set(batch["label"])) > 3


# ---- refusals ----


@pytest.mark.parametrize("views, words", [
    ({}, "data.views is empty"),
    ({"image": "decode('photo')|crop(16,.5)"}, r"view 'image' .* reads column 'photo'; the source has image, key, label, text"),
    ({"image": "decode"}, "rows differ in shape"),
    ({"key": "column('key')"}, "column 'key' holds str: a batch carries only numbers")])
def test_views_that_do_not_fit_the_source_are_refused(views, words):
    source = Drawings(image={3: cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()})
    with pytest.raises((ValueError, TypeError), match=words):
        make(source, views=views, batch_size=23).batch(0)


@pytest.mark.parametrize("options, words", [
    ({"workers": -1}, "workers=-1 must be an integer of at least 0"),
    ({"prefetch": 0}, "prefetch=0 must be an integer of at least 1"),
    ({"batch_size": 0}, "batch_size=0 must be"), ({"seed": -1}, "seed=-1 must be"),
    ({"rows": slice(8, 9)}, "leaves this process none of the 8 rows")])
def test_bad_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_an_unknown_key_of_config_data_is_refused():
    with pytest.raises(ValueError, match=r"config\.data has no worker: its keys are source, views, workers"):
        pipeline.make({"source": {"name": "emoji"}, "views": VIEWS, "worker": 2}, 0, 8)
