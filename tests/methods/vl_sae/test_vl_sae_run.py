"""Stored embeddings and what trains on them: the file, a run, its concepts and their page, classification and retrieval."""
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from mcd_jax import analyze, embed
from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax.data import sources
from mcd_jax.evals import building, retrieval
from mcd_jax.methods.vl_sae import concept_zeroshot_eval, concepts_eval, concepts_section
from mcd_jax.run import checkpoint
from tests.configs import toy

SPLIT = dict(name="emoji", split="openmoji_test", captions=("label",), languages=("en",))
LOCKED = ("image", "image/proj", "text", "text/proj")


def saved(config, folder, steps=0):
    """A run of so many steps with a checkpoint, as train leaves it: its job and state."""
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(9), *job_lib.initial(job.config, job.abstract))
        for step in range(steps):
            state, _ = job.step(state, job.pipeline.batch(step))
        saver = checkpoint.Checkpoints(folder)
        saver.save(steps, state)
        saver.close()
    config_lib.save(job.config, folder / "config.json")
    return job, state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained two-tower run, its embeddings of 185 drawings, and a sparse autoencoder trained on them for three steps."""
    folder = tmp_path_factory.mktemp("stored")
    config = toy.get_config()
    config.objective = config_lib.objective("clip")
    with config.unlocked():
        config.data.source, config.evals = SPLIT, {}
        config.data.views = dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')")
    (folder / "towers").mkdir()
    job, state = saved(config, folder / "towers")
    about = embed.store(folder / "towers", folder / "rows.array_record")
    (folder / "codes").mkdir()
    own_job, own = saved(stored_config(folder), folder / "codes", 3)
    yield types.SimpleNamespace(folder=folder, job=job, state=state, about=about, codes=own_job, own=own)
    job.pipeline.close()
    own_job.pipeline.close()


def stored_config(folder, method="vl_sae", proj="none", **options):
    config = config_lib.default()
    config.steps, config.batch_size, config.tensorboard = "6 steps", 32, False
    config.objective = config_lib.objective(method, **({"k": 8, **options} if method == "vl_sae" else options))
    source = dict(name="embeddings", path=str(folder / "rows.array_record"))
    config.data.source = source
    config.data.views = dict(image="column('image_embedding')", text="column('text_embedding')", group="column('group')")
    tower = dict(name="stored", width=16, proj=proj)
    config.model = dict(image=tower, text=tower, embed_dim=16)
    sets = dict(a=dict(source=source, label="concept_id", names=source), b=dict(source=source, label="group", names=source))
    config.evals = dict(concepts=dict(rows=dict(source=source, match="concept_id", without=dict(no_flags="flag"))),
                        concept_zeroshot=dict(all=dict(sets=sets, choose=("b",), alphas=(0.5, 2.0, 1e6))))
    return config


def test_the_file_holds_the_embeddings_captions_and_columns(run):
    source, original = sources.open(dict(name="embeddings", path=str(run.folder / "rows.array_record"))), sources.open(SPLIT)
    assert len(source) == len(original) == 185 == run.about["rows"] and run.about["bad"] == 0
    assert run.about["width"] == {"image_embedding": 16, "text_embedding": 16} and run.about["step"] == 0
    views = building.default_views(run.job.config)
    from mcd_jax.data import pipeline
    rows = [0, 90, 184]
    batch = next(pipeline.sequential(original, views, 3, indices=rows))
    with jax.set_mesh(run.job.mesh):
        want = jax.jit(run.job.objective.heads["embed"])(run.state.params, run.state.memory,
                                                         {k: batch[k] for k in ("image", "text")})
    for i, row in enumerate(rows):
        stored, whole = source[row], original[row]
        assert stored["key"] == whole["key"] and stored["index"] == row and stored["text"].decode() == whole["text"][0]
        assert [stored[k] for k in ("group", "subgroup", "concept_id", "flag")] == [whole[k] for k in
                                                                                     ("group", "subgroup", "concept_id", "flag")]
        for kind in ("image", "text"):
            np.testing.assert_allclose(stored[f"{kind}_embedding"], want[f"{kind}_raw"][i], atol=1e-5)


def test_the_same_command_gives_the_same_bytes_and_refuses_what_it_cannot_do(run, capsys):
    out = run.folder / "again.array_record"
    embed.main([f"--workdir={run.folder}/towers", f"--out={out}", "--source", "split=openmoji_test"])
    assert "185 rows, 0 bad" in capsys.readouterr().out
    assert out.read_bytes() == (run.folder / "rows.array_record").read_bytes()
    for words, said in (([], "exists: name a new file"), (["--weights_from", "memory/teacher"], "memory/teacher")):
        with pytest.raises(SystemExit, match=said):
            embed.main([f"--workdir={run.folder}/towers", f"--out={out if not words else run.folder / 'x'}", *words])
    data = pathlib.Path(sources.__file__).parents[1]
    drawings = data / "emoji/prepared/emoji/drawings/1.0.0/emoji-test.array_record-00000-of-00001"
    with pytest.raises(ValueError, match="has no column 'key'"):
        sources.open(dict(name="embeddings", path=str(drawings)))
    with pytest.raises(ValueError, match=r"model\.image\.width=15, but the rows of config\.data\.views\.image have 16 numbers"):
        config = stored_config(run.folder, "clip", "linear")
        config.model.image.width = 15
        config.evals = {}
        job_lib.build(config)


def test_batches_are_a_function_of_the_step_and_carry_labels(run):
    first, again = (run.codes.pipeline.batch(2) for _ in range(2))
    for key in ("image", "text", "group", "index"):
        np.testing.assert_array_equal(first[key], again[key])
    assert first["image"].dtype == np.float32 and first["image"].shape == (32, 16) and first["group"].dtype == np.int32


@pytest.mark.full
def test_any_objective_of_two_towers_trains_on_the_rows(run):
    config = stored_config(run.folder, "clip", "linear")
    config.evals = {}
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(0))
        before = jax.device_get(state.params["image"])
        state, report = job.step(state, job.pipeline.batch(0))
    assert np.isfinite(report["loss"]) and not np.array_equal(before["proj"]["kernel"], state.params["image"]["proj"]["kernel"])
    job.pipeline.close()


def test_towers_in_memory_give_the_codes_of_their_stored_embeddings(run):
    config = toy.get_config()
    config.objective = config_lib.objective("vl_sae", k=8)
    with config.unlocked():
        config.data.source, config.evals = SPLIT, {}
        config.data.views = dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')")
        config.model.locked, config.init_locked = LOCKED, dict(image=str(run.folder / "towers"), text=str(run.folder / "towers"))
    job = job_lib.build(config)
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(1), *job_lib.initial(job.config, job.abstract))
        params, batch = {**state.params, "sae": run.own.params["sae"]}, job.pipeline.batch(0)
        found = jax.jit(job.objective.heads["concepts"])(params, state.memory, {k: batch[k] for k in ("image", "text")})
    job.pipeline.close()
    source = sources.open(dict(name="embeddings", path=str(run.folder / "rows.array_record")))
    stored = {kind: np.array([source[int(i)][f"{kind}_embedding"] for i in batch["index"]]) for kind in ("image", "text")}
    with jax.set_mesh(run.codes.mesh):
        want = jax.jit(run.codes.objective.heads["concepts"])(run.own.params, run.own.memory, stored)
    for key, value in want.items():
        np.testing.assert_allclose(found[key], value, atol=1e-3, err_msg=key)


@pytest.fixture(scope="module")
def figures(run):
    built = building.build(run.codes.config, run.codes.objective, run.codes.durations, run.codes.abstract)
    with jax.set_mesh(run.codes.mesh):
        return building.run(built, run.own, 3, run.codes, run.folder / "codes")


@pytest.fixture(scope="module")
def analysed(run):
    """analysis/concepts.json and the page."""
    analyze.main(["concepts", "--workdir", str(run.folder / "codes"), "--pair", "7", "--pairs", "2", "--pictures", "5"])
    folder = run.folder / "codes" / "analysis"
    return json.loads((folder / "concepts.json").read_text()), (folder / "concepts.html").read_text()


def test_figures_of_concepts_and_their_limits(run, figures):
    own = {k.removeprefix("concepts/rows/"): v for k, v in figures.items() if k.startswith("concepts/rows/")}
    assert own["units"] == 128 and own["fires"] == 8 and 0 <= own["dead"] < 128 and own["intra"] > own["inter"] - 0.2
    with jax.set_mesh(run.codes.mesh):
        source = sources.open(run.codes.config.data.source)
        rows = {kind: np.array([source[i][f"{kind}_embedding"] for i in range(185)], np.float32) for kind in ("image", "text")}
        out = jax.device_get(jax.jit(run.codes.objective.heads["concepts"])(run.own.params, run.own.memory, rows))
    dead = sum(not (out["image_codes"][:, i] > 0).any() and not (out["text_codes"][:, i] > 0).any() for i in range(128))
    assert own["dead"] == dead
    np.testing.assert_allclose(own["mse/text"], np.mean((out["text_decoded"] - rows["text"]) ** 2), rtol=1e-4)
    # retrieval by codes, query by query: the rank of the best match among the images, ties as worst
    image, text = (out[f"{k}_codes"] / np.linalg.norm(out[f"{k}_codes"], axis=1, keepdims=True) for k in ("image", "text"))
    ids = np.array([source[i]["concept_id"] for i in range(185)])
    _, first = np.unique(ids, return_index=True)
    rank = retrieval.ranks(text[first], image, ids[first], ids)
    assert own["codes/text_to_image/R@5"] == pytest.approx(np.mean(rank <= 5), abs=0.02)


def test_classification_by_concepts_at_its_limits(run, figures):
    own = {k.removeprefix("concept_zeroshot/all/"): v for k, v in figures.items() if k.startswith("concept_zeroshot/all/")}
    source = sources.open(run.codes.config.data.source)
    rows = [source[i] for i in range(185)]
    image, text = (np.array([r[f"{k}_embedding"] for r in rows]) for k in ("image", "text"))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    groups = np.array([r["group"] for r in rows])
    _, once = np.unique([r["text"] for r in rows], return_index=True)     # a caption counts once
    classes = np.unique(groups)
    centres = unit(np.stack([unit(text[[i for i in once if groups[i] == c]]).mean(0) for c in classes]))
    plain = np.mean(classes[np.argmax(unit(image) @ centres.T, 1)] == groups)
    assert own["b/plain/top1"] == pytest.approx(plain, abs=0.006)                   # alpha 0: the embeddings alone
    assert own["b/oracle_per_set/top1"] >= max(own["b/plain/top1"], own["b/chosen/top1"])
    assert own["chosen_alpha"] == own["b/oracle_per_set/alpha"]                     # b chooses, so for b both are the same
    assert own["a/oracle_per_set/top1"] >= own["a/chosen/top1"]
    z, h = np.random.default_rng(0).normal(size=(2, 9, 5))
    far = concepts_eval.joined(z[:4], h[:4], 1e9) @ concepts_eval.joined(z[4:], h[4:], 1e9).T
    np.testing.assert_array_equal(far.argmax(1), (unit(h[:4]) @ unit(h[4:]).T).argmax(1))   # alpha without bound: codes alone
    assert concepts_eval.joined(z, h, 0) is z
    with pytest.raises(ValueError, match=r"choose=\('c',\) must name some of its sets: there are a, b"):
        concept_zeroshot_eval.make(dict(sets=dict(a={}, b={}), choose="c"), "x")


def test_similarities_and_explanations_by_hand():
    eye = np.eye(4, dtype=np.float32)
    rows = [np.array([0, 1]), np.array([2, 3])]
    same = concepts_eval.similarities(eye, 3 * eye, rows, rows)
    assert same["intra"] == pytest.approx(1) and same["inter"] == pytest.approx(0, abs=1e-7)
    image, text = np.array([[1.0, 0], [0, 1], [1, 1]]), np.array([[0.0, 1], [1, 1], [1, 0]])
    one = [np.array([i]) for i in range(3)]
    table = [[image[i] @ text[j] / np.linalg.norm(image[i]) / np.linalg.norm(text[j]) for j in range(3)] for i in range(3)]
    found = concepts_eval.similarities(image, text, one, one)
    assert found["inter_upper"] == pytest.approx((table[0][1] + table[0][2] + table[1][2]) / 3)
    assert found["inter"] == pytest.approx(sum(table[i][j] for i in range(3) for j in range(3) if i != j) / 6)
    x, y, mean = np.array([2.0, 0, 3, 1]), np.array([1.0, 5, 2, 1]), np.array([0.5, 1, 2, 0])
    assert concepts_eval.explain(x, y, mean) == [(0, 4.0), (2, 3.0)]          # a unit of mean 0 scores nothing
    assert concepts_eval.explain(x, None, mean) == [(0, 4.0), (2, 1.5)]
    codes = np.array([[0.0, 2], [3, 0], [1, 0]])
    assert [own.tolist() for own in concepts_eval.top_rows(codes, 2)] == [[1, 2], [0]]


def test_the_analysis_describes_units_and_pairs(run, analysed):
    result, html = analysed
    assert result["pairs"][0]["row"] == 7 and len(result["pairs"]) in (2, 3) and len(result["pictures"]) == 5
    unit = result["units"][0]
    assert unit["mean"] == max(u["mean"] for u in result["units"]) and len(unit["images"]) <= 10
    values = [code for _, code in unit["texts"]]
    assert values == sorted(values, reverse=True) and all(str(row) in result["captions"] for row, _ in unit["texts"])
    assert len({result["captions"][str(row)] for row, _ in unit["texts"]}) == len(unit["texts"])
    assert html.count("data:image/webp") == 5 and "<script>" in html
    section = "".join(map(str, concepts_section.section(result)))
    assert "The concepts that fire most" in section


def test_hostile_captions_stay_text(analysed):
    """In the page they are JSON without a single markup letter; the policy names the one script by its hash."""
    result, _ = analysed
    bad = "</script><img src=x onerror=alert(1)>\u2028\u202e&amp;"
    result = {**result, "captions": dict.fromkeys(result["captions"], bad), "pairs": [{**p, "text": bad} for p in result["pairs"]]}
    html = concepts_section.browser(result, bad)
    inside = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)[1]
    assert not set("<>&") & set(inside) and inside.isascii()
    assert json.loads(inside)["pairs"][0]["text"].startswith("</script><img src=x onerror=alert(1)>\u27e8U+2028\u27e9")
    assert html.count("<script") == 2 and "<img src=x" not in html and "<img src=x" not in "".join(map(str,
                                                                                                       concepts_section.section(result)))
    code = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    import base64
    import hashlib
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in html or f"script-src 'sha256-{digest}'" in html
    assert "innerHTML" not in code and "eval(" not in code
