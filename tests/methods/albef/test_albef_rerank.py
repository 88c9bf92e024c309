"""Retrieval in two stages: ranks by slow loops, and a head whose order is known."""
import numpy as np
import pytest

from mcd_jax.methods.albef import rerank_eval


def test_ranks_of_reranked_candidates_equal_a_slow_sort():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    ids, other_ids, every = rng.integers(0, 4, 7), np.arange(9) % 4, rng.normal(size=(7, 9))
    for k in (1, 3, 9):
        chosen = rerank_eval.nearest(queries, candidates, k)
        first, want = [], []
        for q in range(7):
            order = np.argsort(-(candidates @ queries[q]), kind="stable")
            np.testing.assert_array_equal(chosen[q], order[:k])
            first.append(1 + next(i for i, c in enumerate(order) if other_ids[c] == ids[q]))
            final = [*sorted(order[:k], key=lambda c: -every[q, c]), *order[k:]]
            want.append(1 + next(i for i, c in enumerate(final) if other_ids[c] == ids[q]))
        got = rerank_eval.reranked(np.take_along_axis(every, chosen, 1), np.asarray(first), ids, other_ids, chosen)
        np.testing.assert_array_equal(got, want)
    ties = rerank_eval.reranked(np.zeros((1, 3)), np.asarray([1]), np.asarray([5]), np.asarray([5, 6, 7]), np.asarray([[0, 1, 2]]))
    assert ties.tolist() == [3]   # a head that can't tell answers nothing


class Embed:
    """Embeddings that say nothing beside a head that knows: the token after the first is the image's brightness."""

    def __call__(self, state, batch):
        return {key: np.tile(np.float32([0.6, 0.8]), (len(value), 1)) + 1e-4 * np.arange(len(value))[:, None].astype(np.float32)
                for key, value in batch.items()}

    def head(self, name):
        return {"states": lambda state, batch: {f"{key}_states": value.reshape(len(value), -1).astype(np.float32)
                                                for key, value in batch.items()},
                "match": lambda state, batch: {"score": -np.abs(batch["image_states"].mean(1) - 10 * batch["text"][:, 1])}}[name]


class Source:
    """Rows whose image has the brightness 10 i and whose text is the word i."""

    def __len__(self):
        return 6


def test_a_head_that_knows_answers_every_query(monkeypatch):
    table = {"ids": np.arange(6), "asks": np.ones(6, bool), "image": np.arange(6), "text": np.arange(6), "without": {}, "bad": 0}
    images = np.tile(10 * np.arange(6)[:, None, None, None], (1, 2, 2, 3)).astype(np.uint8)
    words = np.stack([np.full(6, 1), np.arange(6), np.full(6, 2)], 1).astype(np.int32)

    def encode(embed, state, source, views, names, size, indices=None, together=False):
        whole = {"image": images, "text": words}[names[0]]
        return embed(state, {names[0]: whole[indices]}), np.ones(len(indices), bool)

    def collect(embed, state):
        found = embed(state, {"image": images, "text": words})
        return found["image"], found["text"], table

    monkeypatch.setattr(rerank_eval.rows, "open_source", lambda *_: Source())
    monkeypatch.setattr(rerank_eval.rows, "pick", lambda *_: None)
    monkeypatch.setattr(rerank_eval.rows, "encode", encode)
    monkeypatch.setattr(rerank_eval.retrieval, "parts", lambda config, name: (collect, lambda *_: {"text_to_image/R@1": 0.0}))
    settings = dict(source={}, views={}, k=6, ks=(1,), batch_size=4)
    figures = rerank_eval.make(settings, "planted")(Embed(), None)
    assert figures["text_to_image/R@1"] == figures["image_to_text/R@1"] == figures["text_to_image/within_k"] == 1
    assert figures["second/pairs"] == 72 and figures["second/bytes"] == images.size * 4 + words.size * 4
    assert rerank_eval.make({**settings, "k": 1}, "planted")(Embed(), None)["text_to_image/R@1"] < 1
    with pytest.raises(ValueError, match=r"config\.evals\.rerank\.planted\.k=0 must be a whole number"):
        rerank_eval.make({**settings, "k": 0}, "planted")
