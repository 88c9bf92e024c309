"""Universal retrieval: ranks against loops, nine combinations with answers known beforehand, fusion, protocol facts, the report."""
import math

import jax
import jax.numpy as jnp
from mcd_jax.configs.evals import universal as config_file
import numpy as np
import pytest

from mcd_jax.evals import benchmarks, entries, rows, search, universal
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals.benchmarks import MODALITIES, Benchmark, Entry, Task, mbeir
from mcd_jax.objectives.objective import Objective
from mcd_jax.report import tables
from mcd_jax.step import State
from tests import universal_toy as toy


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


# ---- ranks ---------------------------------------------------------------------------------------------------------------------


def slow_rank(query, candidates, relevant, limit, excluded=(), pool=None):
    """By loops over Python floats: what ties with the best relevant candidate is nearer; what is excluded is behind all others."""
    pool = range(len(candidates)) if pool is None else pool
    score = {j: -10.0 if j in excluded else math.fsum(float(a) * float(b) for a, b in zip(query, candidates[j])) for j in pool}
    best = max(score[j] for j in relevant)
    return min(1 + sum(score[j] >= best for j in pool if j not in relevant), limit + 1)


@pytest.mark.parametrize("limit", [1, 3, 10, 40])
@pytest.mark.parametrize("kind", ["plain", "excluded", "pools"])
def test_universal_ranks_match_a_slow_search(limit, kind):
    rng = np.random.default_rng(limit)
    queries, candidates = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (25, 40))   # small integers: many ties
    relevant = [rng.choice(40, rng.integers(1, 4), replace=False) for _ in queries]
    pools = [np.union1d(own, rng.choice(40, 12, replace=False)) for own in relevant] if kind == "pools" else None
    excluded = [rng.choice(40, rng.integers(0, 4), replace=False) for _ in queries] if kind == "excluded" else None
    want = [slow_rank(q, candidates, relevant[i].tolist(), limit, () if excluded is None else excluded[i].tolist(),
                      None if pools is None else pools[i].tolist()) for i, q in enumerate(queries)]
    found = search.ranks(queries, search.Index(candidates, "exact"), relevant, limit, excluded, pools)
    assert found.tolist() == want and (limit < 10 or len(set(want)) > 1)


def test_universal_nearly_equal_scores_are_ranked_exactly():
    """Differences far below float32's products: the shortlist can't tell them apart, the exact scores must."""
    rng = np.random.default_rng(0)
    queries = unit(rng.normal(size=(6, 64)))
    candidates = np.concatenate([unit(queries[:1] + 1e-7 * rng.normal(size=(300, 64))), unit(rng.normal(size=(300, 64)))])
    relevant = [np.array([5 * i]) for i in range(6)]
    want = [slow_rank(q, candidates, own.tolist(), 250) for q, own in zip(queries, relevant)]
    assert search.ranks(queries, search.Index(candidates, "exact"), relevant, 250).tolist() == want and 1 < want[0] < 251


def test_universal_ties_and_broken_embeddings_count_against_a_query():
    same = unit(np.ones((50, 4)))
    first = [np.array([0])] * 50   # a list that begins with the right candidate must not help a collapsed network
    assert search.ranks(same, search.Index(same, "exact"), first, 10).tolist() == [11] * 50
    assert search.ranks(same, search.Index(same, "exact"), first, 10, pools=[np.arange(50)] * 50).tolist() == [11] * 50
    one = np.eye(4, dtype=np.float32)
    broken = one.copy()
    broken[2] = np.nan
    right = [np.array([i]) for i in range(4)]
    assert search.ranks(one, search.Index(broken, "exact"), right, 4).tolist() == [2, 2, 4, 2]    # NaN is nearer than any
    assert search.ranks(broken, search.Index(one, "exact"), right, 4).tolist() == [1, 1, 5, 1]
    with pytest.raises(ValueError, match="search='quick' must be one of faiss, exact"):
        search.backend("quick")


def test_universal_chance_is_what_random_orders_give():
    found = universal.chance(np.array([1, 2, 2]), np.array([10, 10, 4]), (1, 3, 5))
    slow = {k: np.mean([1 - math.comb(n - m, k) / math.comb(n, k) if k <= n else 1 for m, n in ((1, 10), (2, 10), (2, 4))])
            for k in (1, 3, 5)}
    assert found == {f"chance_R@{k}": pytest.approx(value) for k, value in slow.items()}
    rng, x = np.random.default_rng(0), unit(np.random.default_rng(1).normal(size=(200, 16)))
    index, right = search.Index(x, "exact"), [np.array([i, (i + 1) % 200]) for i in range(200)]
    hits = np.mean([search.ranks(unit(rng.normal(size=(200, 16))), index, right, 10) <= 10 for _ in range(10)])
    want = universal.chance(np.full(200, 2), np.full(200, 200), (10,))["chance_R@10"]
    assert abs(hits - want) < 4 * math.sqrt(want * (1 - want) / 2000)


# ---- nine combinations with known answers --------------------------------------------------------------------------------------


N, GAP = 6, 3.0


def vectors(kind, concepts=N):
    """Raw embeddings with a modality gap: concept i is axis 2 + i, images lie along axis 0, texts along axis 1."""
    content = np.eye(concepts, concepts + 2, 2, dtype=np.float32)
    content[:, {"image": 0, "text": 1}[kind]] = GAP
    return content


def pool_of_three():
    candidates = [Entry(f"{m}{i}", m, (i,), "x") for m in MODALITIES for i in range(N)]
    queries = [Entry(f"{m}{i}", m, (i,), "x") for m in MODALITIES for i in range(N)]
    relevant = [[f"{m}{i}" for m in MODALITIES] for _ in MODALITIES for i in range(N)]
    image, text = vectors("image"), vectors("text")
    return Task("", queries, relevant), candidates, np.concatenate([unit(image), unit(text), unit(image + text)])


def test_universal_ranks_of_a_space_with_a_gap():
    """A text's neighbours: its own text, all other texts, its own pair, all pairs, its own image. A pair's: pairs, then image or
    text, which tie. So the global rank is 1 within a modality, N + 1 for the pair, 2 N + 1 for the other, and N + 2 from a pair."""
    task, candidates, x = pool_of_three()
    ks = (1, N, N + 1, N + 2, 2 * N, 2 * N + 1)
    found = universal.Candidates(candidates, x, np.ones(3 * N, bool), "exact").search(task, x, np.ones(3 * N, bool), ks)
    assert set(found) == {"local", "global"} and all(len(own) == 9 for own in found.values())
    for group, own in found["local"].items():
        assert [own[f"R@{k}"] for k in ks] == [1] * 6 and own["candidates"] == N and own["queries"] == N, group
        assert own["chance_R@1"] == pytest.approx(1 / N)
    want = {(q, c): 1 if q == c else N + 2 if q == "fused" else N + 1 if c == "fused" else 2 * N + 1
            for q in MODALITIES for c in MODALITIES}
    for (q, c), rank in want.items():
        own = found["global"][f"{q}_to_{c}"]
        assert [own[f"R@{k}"] for k in ks] == [float(rank <= k) for k in ks], (q, c)
        assert own["candidates"] == 3 * N and own["chance_R@1"] == pytest.approx(1 / (3 * N))
    means = universal.means({pool: {"": own} for pool, own in found.items()}, Benchmark(None, candidates, [task]))
    assert means["global"]["R@1"] == pytest.approx(3 / 9) and means["global"][f"R@{N + 2}"] == pytest.approx(7 / 9)
    assert means["local"]["R@1"] == 1 and means["global"]["chance_R@1"] == pytest.approx(1 / (3 * N))


def test_universal_what_cannot_be_used_neither_asks_nor_answers():
    task, candidates, x = pool_of_three()
    usable, asks = np.ones(3 * N, bool), np.ones(3 * N, bool)
    usable[[0, N + 1]] = False     # the image of concept 0, the text of concept 1
    asks[2] = False                # the image of concept 2 doesn't ask
    found = universal.Candidates(candidates, x, usable, "exact").search(task, x, asks, (1, 2 * N - 1))
    sizes = {key: (own["queries"], own["candidates"]) for key, own in found["global"].items()}
    assert sizes == {f"{q}_to_{c}": (N - (q == "image") - (c != "fused"), 3 * N - 2) for q in MODALITIES for c in MODALITIES}
    assert {own["candidates"] for key, own in found["local"].items() if not key.endswith("fused")} == {N - 1}
    assert found["global"]["text_to_image"]["R@1"] == 0   # 5 texts and 6 pairs are nearer than the image
    assert found["global"]["text_to_image"][f"R@{2 * N - 1}"] == 0 and found["global"]["image_to_text"][f"R@{2 * N - 1}"] == 0


def test_universal_local_pools_of_tasks_and_of_queries():
    task, candidates, x = pool_of_three()
    everything = universal.Candidates(candidates, x, np.ones(3 * N, bool), "exact")
    ask = np.ones(3 * N, bool)
    named = everything.search(task._replace(local=[f"text{i}" for i in range(N)] + ["image0", "image1"]), x, ask, (1, N + 1))
    own = named["local"]["text_to_image"]    # only images 0 and 1 are there, behind all texts: ranks N + 1
    assert own["candidates"] == N + 2 and own["R@1"] == 0 and own[f"R@{N + 1}"] == pytest.approx(2 / N)
    assert named["global"]["text_to_text"]["R@1"] == 1
    pools = [[f"image{i % N}", f"text{(i + 1) % N}", f"image{(i + 2) % N}"] for i in range(3 * N)]
    mine = universal.Candidates(candidates, x, np.ones(3 * N, bool), "exact").search(task._replace(pools=pools), x, ask, (1, 2))
    assert set(mine) == {"local"} and {v["candidates"] for v in mine["local"].values()} == {3}
    assert mine["local"]["image_to_image"]["R@1"] == 1
    assert mine["local"]["text_to_image"]["R@1"] == 0 and mine["local"]["text_to_image"]["R@2"] == 1   # the wrong text is nearer
    assert mine["local"]["text_to_image"]["chance_R@1"] == pytest.approx(1 / 3)


def test_universal_hit_at_k_needs_one_of_the_relevant_candidates():
    """UniIR counts a query as answered by any relevant id; the share of them that is found is not asked (TIGER-AI-Lab/UniIR
    src/common/mbeir_retriever.py at 1104db5, compute_recall_at_k)."""
    x = np.eye(4, dtype=np.float32)
    queries, candidates = [Entry("q", "text", (), "q")], [Entry(str(i), "text", (), str(i)) for i in range(4)]
    task = Task("", queries, [["0", "2", "3"]])
    found = universal.Candidates(candidates, x, np.ones(4, bool), "exact").search(task, x[:1], np.ones(1, bool), (1,))
    assert found == {"local": {"text_to_text": {"R@1": 1.0, "chance_R@1": pytest.approx(0.75), "queries": 1.0, "candidates": 4.0}}}


# ---- through the pipeline ------------------------------------------------------------------------------------------------------


VIEWS = dict(image="decode|resize(4)", text="caption('first')|tokenize(8, 'clip')")
TOY = dict(name="tests.universal_toy", concepts=7)


def raw(image, text, scale=1.0):
    """Raw embeddings of concept numbers, either may be None."""
    out = {}
    if image is not None:
        out["image_raw"] = vectors("image", 8)[image]
    if text is not None:
        out["text_raw"] = scale * vectors("text", 8)[text]
    return out | {key[:-4]: unit(value) for key, value in out.items()}


def oracle(state, batch, scale=1.0):
    return raw(toy.seen(batch["image"]) if "image" in batch else None, toy.read(batch["text"]) if "text" in batch else None, scale)


def test_universal_module_reports_the_known_answers_and_batches_do_not_matter():
    settings = dict(benchmark=TOY, views=VIEWS, ks=(1, 8, 10, 15), search="exact")
    found = universal.make({**settings, "batch_size": 256}, "x")(oracle, None)
    assert found == universal.make({**settings, "batch_size": 3}, "x")(oracle, None)
    assert {key.rsplit("/", 1)[0] for key in found} == {
        f"{p}/{own}" for p in ("local", "global") for own in ("mean", *(f"{q}_to_{c}" for q in MODALITIES for c in MODALITIES))}
    assert found["global/text_to_fused/R@1"] == 0 and found["global/text_to_fused/R@8"] == 1      # N + 1 = 8
    assert found["global/text_to_image/R@10"] == 0 and found["global/text_to_image/R@15"] == 1    # 2 N + 1 = 15
    assert found["global/mean/R@1"] == pytest.approx(3 / 9) and found["local/mean/R@1"] == 1
    assert found["local/text_to_image/queries"] == 7 and found["global/text_to_image/candidates"] == 21


def test_universal_takes_the_embedding_that_the_head_fuses():
    """A head that gives "fused" gets image and text of a row together; without one raw_sum and unit_sum weigh them differently."""
    asked = []

    def fusing(state, batch):
        asked.append(tuple(sorted(batch)))
        out = oracle(state, batch)
        return out | ({"fused": unit(np.roll(out["image_raw"] + out["text_raw"], 1, axis=1))} if len(batch) == 2 else {})

    settings = dict(benchmark=TOY, views=VIEWS, ks=(1, 9, 15), search="exact", batch_size=4)
    found = universal.make(settings, "x")(fusing, None)
    assert found["local/fused_to_fused/R@1"] == 1 and found["local/fused_to_image/R@1"] < 1    # rolled: apart from the others
    assert ("image", "text") in asked
    long = lambda state, batch: oracle(state, batch, scale=100.0)   # the text outweighs the image in a raw sum
    plain, unequal, equal = (universal.make({**settings, "fuse": mode}, "x")(head, None) for mode, head in (
        ("raw_sum", oracle), ("raw_sum", long), ("unit_sum", long)))
    assert unequal["global/fused_to_image/R@9"] == 0 and plain["global/fused_to_image/R@9"] == 1      # ranks 2 N + 1 and N + 2
    assert equal == universal.make({**settings, "fuse": "unit_sum"}, "x")(oracle, None)        # scale does not matter to unit_sum
    with pytest.raises(ValueError, match="fuse='raw_sum' needs a head 'embed' that gives image_raw and text_raw"):
        universal.make(settings, "x")(lambda s, b: {k: v for k, v in oracle(s, b).items() if "raw" not in k}, None)


def test_universal_asks_a_compiled_head_what_it_gives_without_compiling():
    traced = []

    def head(params, memory, batch):
        traced.append(tuple(sorted(batch)))
        names = (*batch, *(["fused"] if len(batch) == 2 else []))
        return {name: jnp.ones((4, 3)) for name in names}

    objective = Objective(needs=(), init=None, init_memory=None, forward=None, terms={}, metrics={}, heads={"embed": head},
                          update_memory=None)
    embed = embedder_lib.make_embed(objective, batch_size=4)
    state = State(jnp.int32(0), {}, {}, {}, jax.random.key(0))
    batch = {"image": np.zeros((1, 4, 4, 3), np.uint8), "text": np.zeros((1, 5), np.int32)}
    assert embed.gives(state, batch) == {"image", "text", "fused"} and embed.gives(state, {"text": batch["text"]}) == {"text"}
    assert traced == [("image", "text"), ("text",)]
    out, good = rows.encode(embed, state, toy.Images(6), rows.pick(dict(VIEWS, text="caption('first')|tokenize(5, 'clip')"),
                                                                  ["image", "text"], "x"), ["image", "text"], 4, together=True)
    assert out["fused"].shape == (6, 3) and good.all()


def test_universal_fusion_has_the_reference_values():
    """Golden inputs with tau 0.07: the terms of (image, fused) and (fused, text) of the loss over all modalities, self masked."""
    n, d = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    image, text = np.sin(0.7 * (6 * n + d) + 0.3), 2 * np.sin(0.9 * (6 * n + d) + 1.1)
    listed = [Entry(str(i), "fused", (i,), f"word{i}") for i in range(4)]
    views = {"image": rows.pick(VIEWS, ["image"], "x"), "text": rows.pick(VIEWS, ["text"], "x"),
             "both": rows.pick(VIEWS, ["image", "text"], "x")}

    def golden(state, batch):
        out = {}
        if "image" in batch:
            out |= {"image_raw": image[toy.seen(batch["image"])], "image": unit(image)[toy.seen(batch["image"])]}
        if "text" in batch:
            out |= {"text_raw": text[toy.read(batch["text"])], "text": unit(text)[toy.read(batch["text"])]}
        return out

    for mode, terms in (("raw_sum", (11.321873, 1.061546)), ("unit_sum", (4.714261, 5.575795))):
        fused, good = entries.Encoder(golden, None, toy.Images(4), listed, views, mode, 3)(listed)
        assert good.all()
        e = {"i": unit(image).astype(float), "t": unit(text).astype(float), "it": fused.astype(float)}
        for (a, b), want in zip((("i", "it"), ("it", "t")), terms):
            total = 0.0
            for j in range(4):
                below = sum(math.exp(e[a][j] @ e[m][k] / 0.07) for m in e for k in range(4) if (m, k) != (a, j))
                total -= math.log(math.exp(e[a][j] @ e[b][j] / 0.07) / below)
            assert total / 4 == pytest.approx(want, abs=2e-4)


def test_universal_frames_are_averaged_as_unit_vectors():
    x = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 4]], np.float32)
    views = {"image": rows.pick(VIEWS, ["image"], "x"), "text": rows.pick(VIEWS, ["text"], "x"),
             "both": rows.pick(VIEWS, ["image", "text"], "x")}
    listed = [Entry("a", "image", (0, 1)), Entry("b", "image", (2,)), Entry("c", "image", (benchmarks.MISSING,)),
              Entry("d", "fused", (1,), "word0")]
    embed = lambda state, batch: ({"image_raw": x[toy.seen(batch["image"])], "image": unit(x)[toy.seen(batch["image"])]}
                                  if "image" in batch else {"text": unit(x)[toy.read(batch["text"])]})
    found, good = entries.Encoder(embed, None, toy.Images(3), listed, views, "unit_sum", 8)(listed)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(found, [[half, half, 0], [0, 0, 1], [0, 0, 0], [half, half, 0]], atol=1e-6)
    assert good.tolist() == [True, True, False, True]


@pytest.mark.parametrize("change, message", [
    (dict(fuse="sum"), "config.evals.universal.x.fuse='sum' must be one of raw_sum, unit_sum"),
    (dict(ks=(0,)), "config.evals.universal.x.ks"), (dict(search="annoy"), "config.evals.universal.x.search='annoy'"),
    (dict(views=dict(image=VIEWS["image"])), "views needs a pipe for 'text'"),
    (dict(benchmark=dict(name="mbier")), "no benchmark module 'mbier': the package has covr, mbeir, mmeb, pairs"),
    (dict(benchmark=dict(name="pairs", match="x")), "benchmark.queries is missing"),
    (dict(benchmark=dict(TOY, wrong=True)), "1 of 21 queries have no relevant candidate")])
def test_universal_refuses_a_wrong_config_before_running(change, message):
    with pytest.raises(ValueError, match=message):
        universal.make({**dict(benchmark=TOY, views=VIEWS), **change}, "x")


# ---- protocol facts ------------------------------------------------------------------------------------------------------------


# M-BEIR, global pool, R@50 of the 16 rows and their printed average, from the table of arXiv 2509.25638
GLOBAL = {
    "VISTA": ([5.36, 2.72, 0, 97.07, 25.15, 14.22, 1.35, 12.90, 0.02, 76.60, 5.06, 2.94, 6.66, 23.62, 34.31, 30.95], 21.18),
    "VISTA triplet": ([1.64, 5.60, 0, 96.90, 44.37, 80.88, 0.08, 0.50, 0, 83.07, 1.78, 4.80, 16.41, 43.81, 9.67, 14.94], 25.28),
    "VISTA pairwise": ([9.29, 14.42, 0, 96.86, 36.90, 31.74, 1.18, 26.82, 0, 79.39, 3.10, 1.70, 6.10, 24.27, 32.83, 29.82], 24.65),
    "VISTA last": ([16.64, 38.85, 4.25, 96.25, 49.06, 64, 4.71, 60.32, .72, 82.50, 8.72, 9.07, 10.88, 31.13, 32.92, 34.97], 34.06),
    "CLIP last": ([6.70, 3.25, 0, 60.24, 54.43, 40.62, 2.48, 24.84, 0.16, 85.09, 3.63, 1.86, 4.25, 21.25, 19.47, 21.89], 21.89)}


def test_universal_average_of_mbeir_is_the_plain_mean_of_sixteen_rows():
    assert len(mbeir.TASKS) == 16
    for values, printed in GLOBAL.values():
        found = {"global": {task: {"x_to_y": {"R@50": value}} for task, value in zip(mbeir.TASKS, values, strict=True)}}
        assert universal.means(found, Benchmark(None, [], []))["global"]["R@50"] == pytest.approx(printed, abs=0.0101)


def test_universal_average_of_the_local_pools_takes_ten_for_the_two_fashion_sets():
    ks = {task: 10 if task.split("_")[0] in ("fashion200k", "fashioniq") else 5 for task in mbeir.TASKS}
    assert sum(k == 10 for k in ks.values()) == 3
    found = {"local": {task: {"x_to_y": {"R@5": 0.2, "R@10": 0.6}} for task in mbeir.TASKS}}
    means = universal.means(found, Benchmark(None, [], [], averages={"local": {"R@5|10": ks}}))
    assert means["local"]["R@5|10"] == pytest.approx((13 * 0.2 + 3 * 0.6) / 16) and means["local"]["R@5"] == pytest.approx(0.2)


# ---- the embedded set ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", "seen=twitter,caption=de"])
def test_universal_emoji_share_no_image_and_no_text(arguments):
    instances = config_file.get_evals(arguments)["universal"]
    assert list(instances) == ["heldout_asks", "heldout_found", "heldout_concepts"]
    for name, settings in instances.items():
        found = benchmarks.open(settings["benchmark"])
        task = found.tasks[0]
        kinds = {m: {e.id.split()[1]: e for e in found.candidates if e.modality == m} for m in MODALITIES}
        assert len({len(own) for own in kinds.values()}) == 1 and len(found.candidates) > 4000
        used = {row: found.images[row] for e in (*found.candidates, *task.queries) for row in e.images}
        vendors = {side: {used[row]["vendor"] for e in own for row in e.images} for side, own in
                   (("queries", task.queries), ("candidates", found.candidates))}
        seen = {arguments[5:12] or "google"}
        assert (vendors["queries"], vendors["candidates"]) == (
            (seen, {"openmoji"}) if name == "heldout_found" else ({"openmoji"}, seen))
        images = {side: {used[row]["image"] for e in own for row in e.images} for side, own in
                  (("queries", task.queries), ("candidates", found.candidates))}
        assert not images["queries"] & images["candidates"]
        part = "test" if name == "heldout_concepts" else "train"
        for query, ids in zip(task.queries, task.relevant):
            thing = query.id.split()[1]
            assert ids == tuple(f"{m} {thing}" for m in MODALITIES)
            if query.text:
                assert query.text != kinds["text"][thing].text == kinds["fused"][thing].text
            for row in query.images:
                assert used[row]["concept_split"] == part
                assert used[row]["concept_id"] == used[kinds["image"][thing].images[0]]["concept_id"] == int(thing)


# ---- report --------------------------------------------------------------------------------------------------------------------


def test_universal_report_shows_a_square_for_each_pool_and_lists_the_rest():
    figures = {"step": 5, "universal/nine/missing": 3.0}
    for pool in ("local", "global"):
        for i, (q, c) in enumerate((q, c) for q in MODALITIES for c in MODALITIES):
            figures |= {f"universal/nine/{pool}/{q}_to_{c}/{k}": v for k, v in {
                "R@1": 0.01 * i, "R@10": 0.1 * i, "chance_R@10": 0.004, "queries": 30.0, "candidates": 1234.0}.items()}
        figures[f"universal/nine/{pool}/mean/R@10"] = 0.4
    for task in ("a_task0", "b_task1"):
        figures |= {f"universal/many/local/{task}/text_to_image/{k}": v for k, v in {"R@5": 0.777, "queries": 3.0}.items()}
    run = {"evals": figures, "config": {}, "name": "one"}
    text = "".join(map(str, tables.evaluations(run, {**run, "name": "two"})))
    squares = [part.split("</table>")[0] for part in text.split('class="square"')[1:]]
    assert len(squares) == 2 and "nine, global pool: R@10 among 1,234 candidates, mean 40.0%" in squares[0]
    first, *lines = squares[0].split("<tr>")[1:]
    assert [cell.split("<")[0] for cell in first.split("<th>")[2:]] == ["image", "text", "fused"]
    assert [line.split("</th>")[0] for line in lines] == ["<th>image", "<th>text", "<th>fused"]
    values = [[cell.split(">", 1)[1].split("<")[0] for cell in line.split("<td")[1:]] for line in lines]
    assert values == [["0.00%", "10.0%", "20.0%"], ["30.0%", "40.0%", "50.0%"], ["60.0%", "70.0%", "80.0%"]]
    assert "<small>R@1 8.00%</small><small>chance 0.40%</small>" in squares[1] and '<span class="two">80.0%</span>' in squares[1]
    assert "3 image files are missing." in text and text.count("77.7%") == 4 and "a task0" in text
