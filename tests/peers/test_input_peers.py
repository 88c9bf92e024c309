"""The benchmark beside open_clip, PIL and torchvision runs: everybody makes the images that were asked for, and is timed."""
import json

from mcd_jax.bench import input as bench


def test_everybody_takes_turns_on_the_same_photos(capsys):
    lines = bench.main(["--peers", "--sources=500x375", "--photos=12", "--pixels=64", "--batch_size=6", "--rounds=2"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines and len(lines) == 1
    line = lines[0]
    assert 40 < line["kilobytes"] < 60 and line["examples"] == 12
    for views, peers in (("one_view", {"open_clip", "pil"}), ("three_views", {"slip_pil", "slip_torchvision"})):
        rates, times = line[views]["images_per_second_per_core"], line[views]["times_theirs"]
        assert set(rates) == {"ours", *peers} and set(times) == peers and min(rates.values()) > 0
