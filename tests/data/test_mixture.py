"""Mixtures and the order of examples: exact shares, every part without replacement, the same for any hosts and restarts."""
import collections
import pickle
import sys

import cv2
import ml_collections
import numpy as np
import pytest

from mcd_jax.data import order, sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

VIEWS = {"image": "decode|crop(4,0.5)|flip", "text": "caption|tokenize(8)", "part": "column('part')"}
PICTURE = cv2.imencode(".png", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
MODULE = """
from mcd_jax.data.decode import Bad

class Part:
    def __init__(self, part, count, bad=(), extra=None):
        self.part, self.count, self.bad, self.extra = part, count, bad, extra

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise Bad("gone", f"number {index}")
        row = {"image": PICTURE, "text": [f"{index}", "two"], "key": f"k{index}", "part": self.part, "number": index}
        return {**row, self.extra: 1} if self.extra else row

def make(spec):
    spec = {key: value for key, value in spec.items() if key != "name"}
    return Part(**spec)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lab_of_parts")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "lab_of_parts").mkdir()
    (tmp_path / "lab_of_parts" / "parts.py").write_text(f"PICTURE = {PICTURE!r}\n{MODULE}")
    monkeypatch.syspath_prepend(tmp_path)


def part(number, count, **more):
    return {"name": "lab_of_parts.parts", "part": number, "count": count, **more}


def mixture(counts=(5, 12, 40), weights=(1, 3, 2.5), examples=None, bad=((), (), ()), **more):
    names = ("a", "b", "c")[:len(counts)]
    specs = {name: part(i, count, bad=some) for i, (name, count, some) in enumerate(zip(names, counts, bad))}
    return sources.open({"name": "mixture", "sources": specs, "weights": dict(zip(names, weights)), "examples": examples, **more})


# ---- the order of a single source ----

# as drawn before `order` was a module of its own: (examples, seed) -> the indices at some places
RECORDED = {
    (5, 0): [2, 4, 3, 1, 1, 4, 2, 0], (5, 7): [2, 0, 4, 3, 3, 0, 2, 3],
    (23, 0): [18, 4, 20, 15, 15, 19, 9, 6], (23, 7): [15, 4, 18, 11, 14, 10, 7, 18],
    (4725, 0): [4033, 3461, 1914, 607, 2587, 616, 4599, 1074], (4725, 7): [4342, 2901, 2601, 2699, 2688, 4085, 795, 415],
    (2 ** 20, 0): [994485, 190105, 881153, 164447, 960147, 495791, 135447, 18961],
    (12_423_374, 0): [10553787, 2504779, 8485301, 5049183, 7190712, 7865558, 12271380, 7709435],
    (12_423_374, 7): [4024774, 6291732, 6931401, 10082034, 10925324, 3384037, 4879753, 5641294]}


@pytest.mark.parametrize("n, seed", RECORDED)
def test_the_order_of_a_source_is_what_it_always_was(n, seed):
    places = (0, 1, 2, n - 1, n, n + 1, 3 * n + 2, 10 * n + n // 2)
    assert [order.draw(range(n), seed, place) for place in places] == RECORDED[n, seed]


@pytest.mark.parametrize("n", [1, 2, 4, 17, 1000, 4096, 2 ** 16, 2 ** 16 + 1])
def test_the_cipher_is_a_permutation_also_just_above_a_power_of_four(monkeypatch, n):
    monkeypatch.setattr(order, "_TABLE", 0)
    seen = np.bincount([order.shuffled(3, 1, place, n) for place in range(n)], minlength=n)
    assert seen.tolist() == [1] * n


# ---- shares and epochs ----

@pytest.mark.parametrize("counts, weights, examples, epoch, taken", [
    ((10, 10), (1, 3), None, 40, (10, 30)),             # 10 / (1/4): all of a once
    ((10, 100), (1, 3), None, 134, (34, 100)),          # 100 / (3/4) = 133.3: all of b once, a 33.5 -> 34
    ((5, 12, 40), (1, 1, 1), None, 120, (40, 40, 40)),
    ((5, 12, 40), None, None, 57, (5, 12, 40)),         # no weights: each example equally often
    ((7, 9), (0.1, 0.2), 30, 30, (10, 20)),             # a tenth is a tenth: no float in between
    ((7, 9), (1, 1), 7, 7, (4, 3)),                     # a tie goes to the first name
    ((3, 3, 3), (5, 3, 2), 7, 7, (4, 2, 1))])           # 3.5, 2.1, 1.4: the largest remainder gets the rest
def test_an_epoch_holds_each_share_exactly(counts, weights, examples, epoch, taken):
    source = mixture(counts, weights or (), examples) if weights else sources.open(
        {"name": "mixture", "sources": {name: part(i, n) for i, (name, n) in enumerate(zip("abc", counts))}})
    assert len(source) == sum(counts) and source.examples == epoch and tuple(source.counts.values()) == taken
    for e in (0, 1, 5):
        drawn = collections.Counter(source[source.draw(9, e, place)]["source"] for place in range(epoch))
        assert drawn == dict(zip("abc", taken))


def test_every_part_is_walked_through_without_replacement_over_epochs():
    source = mixture()
    assert source.examples == 104 and tuple(source.counts.values()) == (16, 48, 40)
    streams = collections.defaultdict(list)
    for position in range(30 * 104):
        row = source[order.draw(source, 4, position)]
        streams[row["source"]].append(row["number"])
    for name, size in zip("abc", (5, 12, 40)):
        own = [tuple(streams[name][i:i + size]) for i in range(0, len(streams[name]) - size + 1, size)]
        assert len(own) == 30 * source.counts[name] // size
        assert all(sorted(epoch) == list(range(size)) for epoch in own)
        assert len(set(own)) > len(own) // 2  # fresh permutations, not one again and again
    other = [source[order.draw(source, 5, place)]["key"] for place in range(104)]
    assert other != [source[order.draw(source, 4, place)]["key"] for place in range(104)]


def test_parts_that_are_the_same_data_have_orders_of_their_own():
    source = mixture((40, 40), (1, 1))
    numbers = [source[source.draw(0, 0, place)]["number"] for place in range(80)]
    assert sorted(numbers[::2]) == sorted(numbers[1::2]) and numbers[::2] != numbers[1::2]


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 3, 2.5), (1, 50, 7), (50, 1, 1)])
def test_any_run_of_places_holds_the_shares_to_within_the_number_of_parts(weights):
    source = mixture((50, 120, 400), weights)
    numbers = [source[order.draw(source, 1, p)]["part"] for p in range(min(source.examples + 300, 6000))]
    for which, count in enumerate(source.counts.values()):
        seen = np.concatenate([[0], np.cumsum(np.array(numbers) == which)])
        for run in (1, 7, 64, 256):
            assert np.abs(seen[run:] - seen[:-run] - run * count / source.examples).max() < 3


def test_a_mixture_of_mixtures():
    inner = {"name": "mixture", "sources": {"x": part(0, 4), "y": part(1, 8)}, "weights": {"x": 1, "y": 1}}
    source = sources.open({"name": "mixture", "sources": {"one": inner, "two": part(2, 6)}, "weights": {"one": 2, "two": 1}})
    assert len(source) == 18 and source.examples == 24  # the inner epoch is 16, all of it in two thirds of 24
    rows = [source[source.draw(0, 0, place)] for place in range(24)]
    assert collections.Counter(row["key"].rpartition("/")[0] for row in rows) == {"one/x": 8, "one/y": 8, "two": 8}
    assert {row["source"] for row in rows} == {"one", "two"}


# ---- rows ----

def test_indices_are_the_parts_one_after_another_by_name():
    specs = {"b": part(1, 3), "a": part(0, 2, extra="width")}
    source = sources.open({"name": "mixture", "sources": specs, "weights": {"b": 1, "a": 1}})
    assert [source[i]["key"] for i in range(5)] == ["a/k0", "a/k1", "b/k0", "b/k1", "b/k2"]
    assert source[0] == {"image": PICTURE, "text": ["0", "two"], "key": "a/k0", "part": 0, "number": 0, "source": "a"}
    assert source[-1]["key"] == "b/k2" and [source.next(i) for i in range(5)] == [1, 0, 3, 4, 2]
    with pytest.raises(IndexError, match="index 5 is outside a source of 5"):
        source[5]
    assert pickle.loads(pickle.dumps(source)).draw(1, 2, 3) == source.draw(1, 2, 3)
    config = ml_collections.ConfigDict({"name": "mixture", "sources": specs, "weights": {"a": 1, "b": 1}})
    assert sources.open(config).draw(1, 2, 3) == source.draw(1, 2, 3)  # the order of keys in a config means nothing


def test_a_bad_example_keeps_its_cause_and_names_its_part():
    source = mixture(bad=((), (0, 3), ()))
    with pytest.raises(Bad, match="gone: b: number 3") as bad:
        source[8]
    assert bad.value.cause == "gone" and source[6]["key"] == "b/k1"  # columns come from the first good example


# ---- in the pipeline ----

def make(source, rows=None, batch_size=8, **options):
    return Pipeline(source, Views(VIEWS), 3, batch_size, rows, **options)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_batches_are_pure_for_any_hosts_and_restarts(hosts):
    whole = make(mixture())
    assert whole.examples == 104
    size = 8 // hosts
    for step in (0, 12, 13, 200):  # 13 steps are an epoch
        expected = whole.batch(step)
        pieces = [make(mixture(), slice(h * size, (h + 1) * size)).batch(step) for h in range(hosts)]
        for key, value in expected.items():
            np.testing.assert_array_equal(value, np.concatenate([piece[key] for piece in pieces]), err_msg=key)
    straight, restarted = make(mixture(), workers=2), make(mixture(), workers=1)
    batches = straight.iterate(0)
    for _ in range(20):
        next(batches)
    again = restarted.iterate(20)
    for _ in range(3):
        expected, batch = next(batches), next(again)
        assert expected.keys() == batch.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(value, batch[key], err_msg=key)
    straight.close()
    restarted.close()


def test_a_bad_example_is_replaced_out_of_its_own_part():
    good, data = make(mixture(), batch_size=104), make(mixture(bad=((4,), (0, 11), (39,))), batch_size=104, max_bad=1.0)
    expected, batch = good.batch(0), data.batch(0)
    np.testing.assert_array_equal(batch["part"], expected["part"])
    stand_in = dict(zip(expected["index"].tolist(), batch["index"].tolist()))
    assert {i: used for i, used in stand_in.items() if i != used} == {4: 0, 5: 6, 16: 6, 56: 17}  # a: 0-4, b: 5-16, c: 17-56


# ---- refusals ----

@pytest.mark.parametrize("more, sentence", [
    ({"weights": {"a": 1}}, "weights names a; it must name each of the sources, a, b, and nothing else"),
    ({"weights": {"a": 1, "b": 1, "d": 1}}, "weights names a, b, d; it must name each of the sources, a, b"),
    ({"weights": {"a": 1, "b": 0}}, "weights.b=0 must be a positive number; to leave a source out"),
    ({"weights": {"a": -1, "b": 1}}, "weights.a=-1 must be a positive number"),
    ({"weights": {"a": "1", "b": 1}}, "weights.a='1' must be a positive number"),
    ({"weights": {"a": True, "b": 1}}, "weights.a=True must be"),
    ({"weights": {"a": float("nan"), "b": 1}}, "weights.a=nan must be"),
    ({"weights": {"a": float("inf"), "b": 1}}, "weights.a=inf must be"),
    ({"weights": [1, 2]}, r"data.source.weights must be \{name of a source: positive number\}, not \[1, 2\]"),
    ({"weights": {"a": 1, "b": 1000}, "examples": 10}, "weights.a: its share of the 10 examples of an epoch, 0.000999, is less"),
    ({"examples": 0}, "data.source.examples=0 must be a positive integer"),
    ({"examples": 2.5}, "data.source.examples=2.5 must be a positive integer"),
    ({"sources": {}}, "data.source.sources is missing"),
    ({"sources": ["a"]}, "data.source.sources must be the specs"),
    ({"sources": {"a": "x", "b": part(0, 1)}}, "data.source.sources.a must be the spec of a source"),
    ({"sources": {"a/b": part(0, 1)}}, "sources.a/b: a name may not hold a slash"),
    ({"sources": {"a": part(0, 0), "b": part(0, 1)}}, "data.source.sources.a: data.source: the .*parts source has no examples"),
    ({"sources": {"a": part(0, 2, bad=[0, 1]), "b": part(0, 1)}}, "sources.a: its first 2 examples are all bad, the last: gone"),
    ({"sources": {"a": {"name": "webdateset"}, "b": part(0, 1)}}, "sources.a: data.source.name 'webdateset' is unknown"),
    ({"columns": {"image": "jpg"}}, "a mixture has none; set columns of each of its sources"),
    ({"weigths": {}}, "no key 'weigths' for the mixture source; it has name, sources, weights, examples"),
])
def test_a_wrong_mixture_is_refused_by_name(more, sentence):
    with pytest.raises(ValueError, match=sentence):
        sources.open({"name": "mixture", "sources": {"a": part(0, 4), "b": part(1, 6)}, "weights": {"a": 1, "b": 1}, **more})


def test_a_missing_file_of_a_part_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source.sources.b: no file|data.source.sources.b: data.source.path"):
        sources.open({"name": "mixture", "sources": {"a": part(0, 4), "b": {"name": "array_record", "path": str(tmp_path / "x*")}}})
