"""Parquet columns of odd types and values: what nobody reads never matters, what can't be told in Python is None."""
import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.sources import hold_out
from mcd_jax.data.views import Views

IMAGES = [b"\x89PNG" + bytes(4) + bytes([i]) for i in range(6)]
TEXTS = [f"caption {i}" for i in range(6)]


def six(value, kind):
    return pa.array([value] * 6, kind)


def broken(kind=None):
    """Six strings, the third of which is not UTF-8."""
    text = pa.Array.from_buffers(pa.string(), 6, pa.array([b"a", b"b", b"\xff", b"d", b"e", b"f"]).buffers())
    return text if kind is None else text.cast(kind)


def opened(folder, **columns):
    columns = {"image": IMAGES, "text": TEXTS, **columns}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return sources.open({"name": "parquet", "path": str(folder / "a.parquet")})


@pytest.mark.parametrize("column, value", [
    (six(2 ** 60, pa.timestamp("us")), None), (six(-2 ** 58, pa.timestamp("us")), None), (six(2 ** 55, pa.timestamp("ms")), None),
    (six(2 ** 30, pa.date32()), None), (six(1, pa.time64("ns")), None), (six(1, pa.timestamp("us", tz="Nowhere/City")), None),
    (six(1, pa.timestamp("ns")), None), (pa.nulls(6), None),
    (six(datetime.date(2020, 1, 1), pa.date32()), datetime.date(2020, 1, 1)),
    (six(decimal.Decimal("1.5"), pa.decimal128(4, 2)), decimal.Decimal("1.5")), (six(2 ** 63, pa.uint64()), 2 ** 63),
    (pa.StructArray.from_arrays([six(2 ** 60, pa.timestamp("us")), six(7, pa.int8())], ["at", "size"]), {"at": None, "size": 7}),
    (pa.array([[2 ** 60, 0]] * 6, pa.list_(pa.timestamp("us"))), [None, datetime.datetime(1970, 1, 1)]),
    (broken(), b"\xff"), (pa.MapArray.from_arrays(range(7), broken(), pa.array(range(6))), [(b"\xff", 2)])])
def test_what_python_has_no_value_for_is_none_and_stops_nothing(tmp_path, column, value):
    source = opened(tmp_path, odd=column)
    row = source[2]
    assert row["text"] == "caption 2" and row["image"] == IMAGES[2]
    assert row["odd"] == value or (column.type == pa.timestamp("ns") and row["odd"] is not None)   # with pandas a Timestamp


def test_a_text_or_key_that_is_not_utf8_is_repaired_and_one_that_has_no_value_is_missing(tmp_path):
    source = opened(tmp_path, text=broken(), key=broken())
    assert source[2]["text"] == b"\xff" and source[2]["key"] == "\\xff" == source.keys()[2]
    dates = opened(tmp_path, key=six(2 ** 60, pa.timestamp("us")))
    assert len(hold_out.keys(dates)) == 6


@pytest.mark.parametrize("kinds", [(pa.large_string(), pa.large_binary()), (pa.string_view(), pa.binary_view()),
                                   (pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.binary()))])
def test_however_texts_and_images_are_stored_they_are_the_same_also_beside_others(tmp_path, kinds):
    text, image = (pa.array(values).cast(kind) for values, kind in zip((TEXTS, IMAGES), kinds))
    pq.write_table(pa.table({"image": IMAGES, "text": TEXTS}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": image, "text": text}), tmp_path / "b.parquet")
    for name, count in (("b", 6), ("*", 12)):
        source = sources.open({"name": "parquet", "path": str(tmp_path / f"{name}.parquet")})
        assert len(source) == count and [source[i]["text"] for i in range(-6, 0)] == TEXTS
        assert [source[i]["image"] for i in range(-6, 0)] == IMAGES


def test_a_column_that_comes_twice_is_refused_in_any_file(tmp_path):
    twice = pa.Table.from_arrays([pa.array(IMAGES), pa.array(TEXTS), pa.array(TEXTS)], ["image", "text", "text"])
    pq.write_table(pa.table({"image": IMAGES, "text": TEXTS}), tmp_path / "a.parquet")
    pq.write_table(twice, tmp_path / "b.parquet")
    for name in ("b", "*"):
        with pytest.raises(ValueError, match=r"b\.parquet has more than one column 'text'; names must be different"):
            sources.open({"name": "parquet", "path": str(tmp_path / f"{name}.parquet")})


def test_a_run_over_such_columns_counts_nothing(tmp_path):
    import cv2
    image = [cv2.imencode(".png", np.full((8, 8, 3), 40 * i, np.uint8))[1].tobytes() for i in range(6)]
    source = opened(tmp_path, image=image, odd=six(2 ** 60, pa.timestamp("us")), odder=broken())
    data = Pipeline(source, Views({"image": "decode|resize(8)", "text": "caption|tokenize(8)"}), 0, 6, workers=0)
    assert not data.batch(0)["bad"].any() and data.counts() == {"bad_examples": 0}
