"""Hash codes are ranked and counted right: golden values, slow versions, and what must not change a ranking."""
import importlib.util
import itertools

import numpy as np
import pytest

from mcd_jax.evals import hamming
from mcd_jax.methods.hashing import hashing_eval

# The toy at the end of DCMH's and DCHMT's metric files (kalenforn/DCHMT, utils/calc_utils.py at 9e6030d): 4 queries, 6 items
QB = np.array([[1, -1, 1, 1], [-1, -1, -1, 1], [1, 1, -1, 1], [1, 1, 1, -1]])
RB = np.array([[1, -1, 1, -1], [-1, -1, 1, -1], [-1, -1, 1, -1], [1, 1, -1, -1], [-1, 1, -1, -1], [1, 1, -1, 1]])
QL = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]])
RL = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
FAR, RIGHT = (4 - QB @ RB.T) // 2, QL @ RL.T > 0


def counted(qb, rb, ql, rl):
    return hashing_eval.count(hamming.pack(qb), hamming.pack(rb), qb.shape[1], ql, rl)


def ap(right, k=None):
    """Average precision of one order, as a loop: over the first k ranks, by the smaller of k and the relevant items."""
    hits, total = 0, 0.0
    for rank, hit in enumerate(right[:k], 1):
        if hit:
            hits += 1
            total += hits / rank
    relevant = int(np.sum(right)) if k is None else min(k, int(np.sum(right)))
    return total / relevant if relevant else 0.0


def every_order(far, right):
    """All orders of one query's items that are sorted by distance: lists of relevance."""
    groups = [np.flatnonzero(far == d) for d in np.unique(far)]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield right[np.concatenate(orders).astype(int)]


def test_hashing_map_of_the_published_toy():
    """The reference's values: stable order, best and worst order of ties, and the exact expectation."""
    counts = counted(QB, RB, QL, RL)
    assert np.mean(hashing_eval.expected_ap(counts)) == pytest.approx(0.601302, abs=5e-7)
    assert np.mean(hashing_eval.ranked_ap(FAR, RIGHT)) == pytest.approx(0.704167, abs=5e-7)
    best = np.mean([max(map(ap, every_order(*row))) for row in zip(FAR, RIGHT)])
    worst = np.mean([min(map(ap, every_order(*row))) for row in zip(FAR, RIGHT)])
    assert best == pytest.approx(0.704167, abs=5e-7) and worst == pytest.approx(0.493403, abs=5e-7)
    assert np.mean(hashing_eval.ranked_ap(2 * FAR - RIGHT, RIGHT)) == pytest.approx(0.704167, abs=5e-7)    # relevant first
    assert np.mean(hashing_eval.ranked_ap(2 * FAR + RIGHT, RIGHT)) == pytest.approx(0.493403, abs=5e-7)    # relevant last
    assert np.mean(hashing_eval.ranked_ap(FAR, RIGHT, 1, "relevant")) == pytest.approx(0.708, abs=5e-4)   # what the files call
                                                                                                          # mAP@1
    assert np.mean(hashing_eval.ranked_ap(FAR, RIGHT, 1)) == 0.5                                           # the standard AP@1


def test_hashing_expectation_is_the_mean_over_all_orders_of_ties():
    counts = counted(QB, RB, QL, RL)
    orders = [list(every_order(*row)) for row in zip(FAR, RIGHT)]
    for k in (None, 1, 2, 3, 5, 6, 9):
        slow = [np.mean([ap(order, k) for order in of_query]) for of_query in orders]
        np.testing.assert_allclose(hashing_eval.expected_ap(counts, k), slow, rtol=1e-12, err_msg=f"AP@{k}")
    for k in (1, 2, 4, 6, 9):
        slow = [np.mean([np.mean(order[:k]) for order in of_query]) for of_query in orders]
        np.testing.assert_allclose(hashing_eval.expected_precision(counts, k), slow, rtol=1e-12, err_msg=f"P@{k}")


def toy(seed=0, queries=7, items=60, bits=9, classes=4):
    rng = np.random.default_rng(seed)
    qb, rb = (rng.choice([-1, 1], (n, bits)) for n in (queries, items))
    ql, rl = ((rng.random((n, classes)) < 0.3).astype(int) for n in (queries, items))
    ql[0] = 0   # a query that nothing answers
    return qb, rb, ql, rl


def test_hashing_expectation_against_random_orders_and_a_slow_radius_curve():
    qb, rb, ql, rl = toy()
    counts, rng = counted(qb, rb, ql, rl), np.random.default_rng(1)
    far, right = (9 - qb @ rb.T) // 2, ql @ rl.T > 0
    assert counts.items.tolist() == [[int(np.sum(row == d)) for d in range(10)] for row in far]
    assert counts.relevant.tolist() == [[int(np.sum(hit & (row == d))) for d in range(10)] for row, hit in zip(far, right)]
    sampled = []
    for _ in range(400):
        order = rng.permutation(60)
        sampled.append(hashing_eval.ranked_ap(far[:, order], right[:, order]))
    error = np.std(sampled, axis=0) / 20
    assert np.all(np.abs(np.mean(sampled, axis=0) - hashing_eval.expected_ap(counts)) <= 4 * error + 1e-9)
    assert hashing_eval.expected_ap(counts)[0] == 0                             # no NaN, and it stays in the mean
    precision, recall = hashing_eval.radius(counts)
    for r in range(10):
        inside = far <= r
        assert precision[r] == pytest.approx(np.sum(right & inside) / max(1, np.sum(inside)))
        assert recall[r] == pytest.approx(np.sum(right & inside) / np.sum(right))
    assert recall[-1] == 1 and np.all(np.diff(recall) >= 0)


def test_hashing_extremes_and_invariances():
    rng = np.random.default_rng(2)
    labels = np.arange(40) % 4
    codes = np.array([[1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1], [-1, -1, 1, 1, -1, -1], [-1, 1, -1, 1, -1, 1]])
    perfect = codes[labels]
    counts = counted(perfect, perfect, labels, labels)
    found = hashing_eval.figures(counts, (5,), "all")
    assert found["mAP"] == found["AP@5"] == found["P@5"] == found["P@r<=0"] == found["R@r<=0"] == pytest.approx(1)
    assert found["P@r<=6"] == pytest.approx(0.25) and found["R@r<=6"] == 1
    same = counted(np.ones((40, 6)), np.ones((40, 6)), labels, labels)
    shuffled = np.mean([ap(rng.permutation(labels == 0)) for _ in range(4000)])
    assert np.mean(hashing_eval.expected_ap(same)) == pytest.approx(shuffled, abs=0.01)      # 0.25 and a bit: the prevalence
    assert found["chance_mAP"] == pytest.approx(np.mean(hashing_eval.expected_ap(same)))
    assert hashing_eval.figures(same, (5,), ())["P@5"] == pytest.approx(0.25)
    two = np.where(labels < 2, 1, -1)[:, None] * np.ones((1, 6))
    opposite = counted(two, -two, labels // 2, labels // 2)                  # all irrelevant items first
    assert np.mean(hashing_eval.expected_ap(opposite)) == pytest.approx(np.mean([ap([0] * 20 + [1] * 20)]))
    qb, rb, ql, rl = toy(3)
    base = hashing_eval.figures(counted(qb, rb, ql, rl), (5,), "all")
    flip, turn = rng.choice([-1, 1], (1, 9)), rng.permutation(9)
    for q, r in ((qb * flip, rb * flip), (qb[:, turn], rb[:, turn])):
        assert hashing_eval.figures(counted(q, r, ql, rl), (5,), "all") == base
    order = rng.permutation(60)
    assert hashing_eval.figures(counted(qb, rb[order], ql, rl[order]), (5,), "all") == base


def test_hashing_labels_are_integers_or_vectors():
    assert hashing_eval.relevance(np.array([0, 2]), np.array([2, 1, 0])).tolist() == [[False, False, True], [True, False, False]]
    assert hashing_eval.relevance(QL, RL).tolist() == RIGHT.tolist()


def test_hashing_codes_by_chance_keep_neighbours():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32))
    near, other = x + 0.05 * rng.normal(size=x.shape), rng.normal(size=(200, 32))
    code = lambda rows, bits=48: hashing_eval.rotated(rows, x, bits, seed=5) >= 0
    assert np.mean(code(x) == code(near)) > 0.95 > 0.6 > np.mean(code(x) == code(other))
    assert np.array_equal(code(x)[:, :16], code(x, 16)) and abs(np.mean(code(x)) - 0.5) < 0.05


# ---- packed codes and their search ---------------------------------------------------------------------------------------------

BACKENDS = ["exact", *(["faiss"] if importlib.util.find_spec("faiss") else [])]


@pytest.mark.parametrize("bits", [4, 12, 16, 33, 64, 128])
def test_hamming_packing_and_distances(bits):
    rng = np.random.default_rng(bits)
    q, r = rng.normal(size=(5, bits)), rng.normal(size=(17, bits))
    q[0, 0] = 0.0                                                            # a bit is on at 0: a code is never 0
    packed = hamming.pack(q), hamming.pack(r)
    assert packed[1].dtype == np.uint8 and packed[1].shape == (17, -(-bits // 8))
    signs = [np.where(x >= 0, 1, -1) for x in (q, r)]
    assert hamming.unpack(packed[0], bits).tolist() == signs[0].tolist() and hamming.unpack(packed[0], bits)[0, 0] == 1
    assert hamming.distances(*packed).tolist() == [[int(np.sum(a != b)) for b in signs[1]] for a in signs[0]]


@pytest.mark.parametrize("name", BACKENDS)
def test_hamming_search_against_a_full_sort(name):
    rng = np.random.default_rng(0)
    packed = hamming.pack(rng.normal(size=(500, 16)))                       # 16 bits: many ties, at the edge too
    queries = hamming.pack(rng.normal(size=(9, 16)))
    index, far = hamming.Index(packed, name), hamming.distances(queries, packed)
    for k in (1, 10, 100, 500, 900):
        near, found = index.search(queries, k)
        order = np.argsort(far, axis=1, kind="stable")[:, :k]
        assert found.tolist() == order.tolist() and near.tolist() == np.take_along_axis(far, order, axis=1).tolist()


def test_hamming_what_cannot_be_a_code_is_refused():
    with pytest.raises(ValueError, match="1 of 3 codes are not finite, row 1 first"):
        hamming.pack(np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match="rows of numbers, not an array of shape"):
        hamming.pack(np.ones(3))
    with pytest.raises(ValueError, match="search='quick' must be one of faiss, exact"):
        hamming.backend("quick")
    with pytest.raises(ValueError, match=r"cut='ranks' must be"):
        hashing_eval.ranked_ap(FAR, RIGHT, 1, "ranks")
