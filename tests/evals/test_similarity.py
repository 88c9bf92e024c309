"""Evaluations that compare tokens (FILIP): scores in blocks, classes of several prompts, and who compares what by default."""
import types

import numpy as np
import pytest

from mcd_jax.evals import misalignment, retrieval, similarity, zeroshot


def draw(count, length, seed=0, most=None):
    """`Tokens` of texts of different lengths, in no order; most: of images, all tokens."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, length, 4)).astype(np.float32)
    found = np.arange(length)[None] < (rng.integers(1, length + 1, count) if most is None else np.full(count, most))[:, None]
    weight = found / found.sum(1, keepdims=True, dtype=np.float32)
    return similarity.Tokens(x / np.linalg.norm(x, axis=-1, keepdims=True), weight, found)


def slow(queries, candidates):
    out = np.zeros((len(queries), len(candidates)))
    for i, j in np.ndindex(*out.shape):
        best = [max(a @ b for b in candidates.tokens[j][candidates.found[j]]) for a in queries.tokens[i].astype(np.float64)]
        out[i, j] = np.dot(best, queries.weight[i])
    return out


@pytest.mark.parametrize("floats", [1, 9 * 5 * 7, 2 ** 22])
def test_filip_scores_in_blocks_of_any_size(floats, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_FLOATS", floats)
    images, texts = draw(6, 5, 1, most=5), draw(11, 7, 2)
    for queries, candidates in ((images, texts), (texts, images)):
        np.testing.assert_allclose(similarity.scores(queries, candidates), slow(queries, candidates), atol=1e-6)
    assert abs(similarity.scores(images, texts) - similarity.scores(texts, images).T).max() > 0.1   # two directions


def test_filip_classes_are_the_mean_of_their_prompts_similarities():
    images, prompts, owner = draw(9, 5, 1, most=5), draw(7, 6, 2), np.array([2, 0, 1, 1, 2, 0, 2])
    each = slow(images, prompts)
    want = np.stack([each[:, owner == c].mean(1) for c in range(3)], 1)
    np.testing.assert_allclose(similarity.grouped(images, prompts, owner, chunk=4), want, atol=1e-6)
    labels, ids = np.argmax(want, 1), np.arange(3)
    assert zeroshot.accuracy(images, zeroshot.Prompts(prompts, owner), labels, ids)["top1"] == 1


def test_filip_ranks_by_the_querys_own_tokens():
    images, texts, ids = draw(20, 5, 1, most=5), draw(20, 6, 2), np.arange(20)
    for queries, candidates in ((images, texts), (texts, images)):
        scores = slow(queries, candidates)
        want = [1 + np.sum(row >= row[i]) - 1 for i, row in enumerate(scores)]
        assert retrieval.ranks(queries, candidates, ids, ids, chunk=7).tolist() == want
    both = retrieval.both_ways(*(retrieval.Side(side, ids, ids >= 0) for side in (images, texts)), (1,))
    assert both["text_to_image/R@1"] == np.mean(np.argmax(slow(texts, images), 1) == ids)


def test_filip_misalignment_adds_both_directions():
    texts, looks = draw(3, 6, 1), draw(12, 5, 2, most=5)
    heads = {"image": looks, "text": texts}

    def embed(state, batch):
        kind = next(iter(batch))
        own = heads[kind]
        return {f"{kind}_tokens": own.tokens, f"{kind}_weight": own.weight, f"{kind}_found": own.found.astype(np.float32)}
    distance = [[2 - slow(texts, looks)[i, 4 * i + v] - slow(looks, texts)[4 * i + v, i] for v in range(4)] for i in range(3)]
    want = np.log(np.array(distance)[:, 1:]) - np.log(np.array(distance)[:, :1])
    got = misalignment.log_ratios(embed, None, np.zeros((3, 6), np.int32), np.zeros((3, 4, 2, 2, 3), np.uint8), 0.0)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_filip_is_compared_by_tokens_and_others_are_not():
    def embed(state, batch):
        return {}
    head = lambda name: f"the head {name}"
    with_both = types.SimpleNamespace(pooled=True, heads=frozenset({"embed", "token_wise"}), head=head)
    tokens_only = types.SimpleNamespace(pooled=False, heads=frozenset({"embed", "token_wise"}), head=head)
    assert similarity.using(embed, "auto", "retrieval.x") is embed and similarity.using(with_both, "auto", "x") is with_both
    assert similarity.using(with_both, "token_wise", "x") == similarity.using(tokens_only, "auto", "x") == "the head token_wise"
    assert similarity.using(tokens_only, "pooled", "x") is tokens_only
    with pytest.raises(ValueError, match=r"config.evals.retrieval.x.similarity='token_wise' needs an objective with the head"):
        similarity.using(embed, "token_wise", "retrieval.x")
    with pytest.raises(ValueError, match="similarity='tokens' must be one of auto, pooled, token_wise"):
        similarity.check("tokens", "retrieval.x")


def test_filip_padding_that_all_rows_have_is_left_out():
    found = {"text_tokens": np.ones((2, 5, 3), np.float32), "text_weight": np.float32([[1, 0, 0, 0, 0], [.5, .5, 0, 0, 0]]),
             "text_found": np.float32([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])}
    assert similarity.rows_of(found, "text").tokens.shape == (2, 2, 3)
    assert similarity.rows_of({**found, "text_found": np.ones((2, 5))}, "text").tokens.shape == (2, 5, 3)
    assert similarity.rows_of({"image": np.eye(3)}, "image").shape == (3, 3)
