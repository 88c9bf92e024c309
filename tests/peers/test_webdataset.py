"""Shards that webdataset's own TarWriter wrote open here, and hold what webdataset's own reader finds in them."""
import numpy as np
import pytest
import webdataset

from mcd_jax.data import sources
from mcd_jax.data.tools import index as index_tool


@pytest.mark.parametrize("prefix", ["", "train/", "very/" * 30])
def test_what_its_writer_wrote_opens_here(tmp_path, prefix):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as writer:
            for number in range(10 * shard, 10 * shard + 10):
                writer.write({
                    "__key__": f"{prefix}{number:05d}", "cls": number % 3, "txt": f"häuser {number}", "npy": np.arange(number),
                    "png": np.full((6, 5, 3), number * 3, np.uint8), "seg.png": np.zeros((2, 2, 3), np.uint8),
                    "json": {"caption": [f"one {number}", "zwei"], "similarity": number / 10, "width": 5}})
    path = str(tmp_path / "{00000..00001}.tar")
    assert index_tool.main([path, "--workers=1"]) == 0
    source = sources.open({"name": "webdataset", "path": path, "columns": {"text": "caption"}})
    theirs = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    assert len(source) == len(theirs) == 20
    for mine, other in zip(source, theirs):
        assert mine["key"] == other["__key__"] and mine["text"] == other["json"]["caption"] and mine["cls"] == other["cls"]
        assert mine["txt"].decode() == other["txt"] and mine["similarity"] == other["json"]["similarity"]
        np.testing.assert_array_equal(mine["npy"], other["npy"])
        assert mine["image"] == other["png"] and mine["seg.png"] == other["seg.png"]
    chosen = sources.open({"name": "webdataset", "path": path, "where": {"similarity": {"min": 1.5}}})
    assert [row["key"] for row in chosen] == [sample["__key__"] for sample in theirs if sample["json"]["similarity"] >= 1.5]
