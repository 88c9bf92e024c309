"""What is said to a training that waits for its input: only what applies."""
import numpy as np
import pytest

from mcd_jax.data import advice

SMALL, LARGE = [(100, 100)] * 4, [(1000, 750)] * 4
GB = 2 ** 30


@pytest.mark.parametrize("data, given, wanted, unwanted", [
    ({}, dict(cores=8), ["config.data.workers=8", "(now 2 threads)"], ["processes", "cache", "pack"]),
    ({"workers": 8}, dict(cores=8), ["nothing to gain", "more cores or cheaper views"], ["workers"]),
    ({"workers": 8}, dict(cores=8, shares_cores=True), ["runs on the same cores"], ["workers"]),
    ({}, dict(cores=8, sizes=SMALL, free=GB), ["config.data.cache=32 keeps all 1,000", "workers"], ["pack"]),
    ({"cache": True}, dict(cores=8, sizes=SMALL, free=GB), ["workers"], ["data.cache"]),
    ({}, dict(cores=8, sizes=LARGE, free=GB, view=224), ["mcd-jax pack", "750 x 1000", "workers"], ["data.cache"]),
    ({}, dict(cores=8, sizes=LARGE, view=512), ["workers"], ["pack"]),
    ({"workers": 4, "cache": 100}, dict(cores=64), ["config.data.processes=16 with config.data.cache=False"], ["workers="]),
    ({"workers": 4, "processes": 2}, dict(cores=64), ["config.data.processes=16", "now 8 threads"], ["cache"]),
    ({"workers": 1, "source": {"path": "gs://b/x.tar"}}, dict(cores=1), ["spares the network"], ["nothing"]),
])
def test_the_tips_are_those_that_apply(data, given, wanted, unwanted):
    given = {"sizes": [], **given}
    text = advice.advice({"source": {}, **data}, 1000, **given)
    for piece in wanted:
        assert piece in text, text
    for piece in unwanted:
        assert piece not in text, text


def test_sizes_are_read_off_headers_and_odd_rows_left_out():
    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return [{"image": b"no image"}, {"text": "none"}, {"image": np.zeros((5, 7, 3))}][index]
    assert set(advice.image_sizes(Source())) == {(5, 7)}
    assert advice.cores() >= 1 and advice.free_memory() >= 0
