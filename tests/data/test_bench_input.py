"""The input benchmark: what it prints, and that its photos and shards are what they say."""
import io
import json
import tarfile

import numpy as np
from PIL import Image
import pytest

from mcd_jax.bench import input as bench
from mcd_jax.bench import photos
from mcd_jax.data import sources


def test_it_prints_a_json_line_for_each_source(capsys):
    lines = bench.main(["--seconds=0.01", "--batch_size=16", "--photos=8", "--sources", "emoji", "500x375", "--workers", "0",
                        "1", "--processes", "1",
                        "--view=mine=decode|resize(32)"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    assert [(line["source"], line["pixels"]) for line in lines] == [("emoji", 64), ("500x375", 224)]
    for line in lines:
        assert set(line["per_second_per_core"]) == {
            "read", "decode", "image", "augmented", "text", "mine", "crop", "flip", "jitter", "gray", "blur", "tokenize", "batch",
            "batch_cached"}
        assert set(line["total"]) == {"0_threads", "1_threads", "1_processes"} and min(line["per_second_per_core"].values()) > 0
    assert "overhead" not in lines[0] and 0 < lines[1]["overhead"] < 0.6


@pytest.mark.parametrize("size, kilobytes", [("500x375", 49), ("1000x750", 117)])
def test_photos_come_from_their_seed_and_weigh_what_those_of_the_web_do(tmp_path, size, kilobytes):
    assert photos.write(tmp_path, size, 10) / 1000 == pytest.approx(kilobytes, rel=0.15)
    source = sources.open({"name": "array_record", "path": str(tmp_path / "photos.array_record")})
    with tarfile.open(tmp_path / "photos.tar") as archive:
        stored = {member.name: archive.extractfile(member).read() for member in archive}
    assert len(source) == 10 and len(stored) == 20
    for number, (data, caption) in enumerate(photos.examples(size, 10)):
        assert source[number]["image"] == stored[f"{number:06d}.jpg"] == data
        assert source[number]["text"] == stored[f"{number:06d}.txt"] == caption.encode()
        assert Image.open(io.BytesIO(data)).size == tuple(map(int, size.split("x")))
    assert len({row["image"] for row in map(source.__getitem__, range(10))}) == 10
    assert np.std([photos.photo(seed, 75, 100, 3.0).mean() for seed in range(10)]) > 5
