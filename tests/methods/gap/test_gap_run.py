"""`mcd-jax analyze gap` and `amend` on a tiny run, through checkpoints, evaluations and the report."""
import json
import types

import jax
from mcd_jax.configs.evals import gap_emoji
import numpy as np
import pytest
from untrained import untrained

from mcd_jax import analyze, report
from mcd_jax.configs import clip_emoji, temperature_emoji
from mcd_jax.evals import building
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.methods.gap import cone, fairness_eval, rotate_towers_analysis, shift
from mcd_jax.methods.gap import gap_analysis as gap_analysis
from mcd_jax.optim import optimizer
from mcd_jax.report import gallery, plots
from mcd_jax.run import checkpoint
from tests.configs import toy

VALIDATION = dict(name="emoji", split="openmoji_validation", captions=("label",), languages=("en",))
TEST = dict(VALIDATION, split="openmoji_test")
GROUPS = ("smiling face", "person", "skin tone", "animal", "food", "travel", "activity", "object", "symbol", "flag")


def get_config():
    config = toy.get_config()
    config.ema = 0.0
    config.model.logit_scale = float(np.log(20.0))
    views = config.evals.retrieval.validation.views.to_dict()
    names = dict(label="group", names=GROUPS, tokenizer="emoji", context=8)
    evals = dict(
        retrieval=dict(validation=dict(source=VALIDATION, views=views, match="concept_id", without=dict(no_flags="flag")),
                       test=dict(source=TEST, views=views, match="concept_id")),
        zeroshot=dict(groups=dict(source=TEST, views=views, **names)),
        fairness=dict(groups=dict(source=TEST, views=views, group="group", truth="group", watched=dict(animals=("3",)),
                                  prompts=tuple((str(i), name) for i, name in enumerate(GROUPS)), tokenizer="emoji", context=8)),
        gap=dict(untrained=dict(source=TEST, views=views, weights_from="init"), test=dict(source=TEST, views=views)))
    with config.unlocked():
        config.evals = evals
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = untrained(tmp_path_factory.mktemp("gap") / "toy", get_config())
    yield run
    run.job.pipeline.close()


@pytest.fixture(scope="module")
def result(run):
    analyze.main(["gap", "--workdir", str(run.folder), "--rows", "40", "--seeds", "2"])
    return json.loads((run.folder / "analysis" / "gap.json").read_text())


def test_gap_command_measures_what_the_evaluations_do(run, result):
    built = building.build(run.job.config, run.job.objective, run.job.durations, run.job.abstract)
    with jax.set_mesh(run.job.mesh):
        figures = building.run(built, run.state, 7, run.job, run.folder)
    assert result["pairs"] == "test" and result["rows"] == 185 and result["step"] == 7
    assert result["logit_scale"] == pytest.approx(20, rel=1e-5) and result["temperature"] == "learned"
    for name, value in result["figures"].items():
        assert figures[f"gap/test/{name}"] == pytest.approx(value, abs=1e-5), name
    for key in ("retrieval/validation", "retrieval/test", "zeroshot/groups"):   # no move: the figures of `evaluate`
        zero = result["curves"][key]["amount"].index(0.0)
        for name, values in result["curves"][key]["figures"].items():
            assert values[zero] == pytest.approx(figures[f"{key}/{name}"], abs=1e-5), (key, name)
        assert len(result["curves"][key]["gap"]) == len(result["curves"][key]["amount"])
    zero = result["fairness"]["fairness/groups"]["amount"].index(0.0)
    fair = result["fairness"]["fairness/groups"]["figures"]
    assert fair["3/animals"][zero] == pytest.approx(figures["fairness/groups/3/animals"], abs=1e-5)
    assert fair["accuracy"][zero] == pytest.approx(figures["fairness/groups/accuracy"], abs=1e-5)
    surface = result["landscape"]["test"]
    assert set(result["landscape"]) == {"test"} and surface["scales"] == [100, 50, 30, 20, 10, 1]   # 20 is the run's own
    assert surface["gap"][surface["amount"].index(0.0)] == pytest.approx(result["figures"]["distance"], abs=1e-5)


def test_gap_move_is_chosen_on_validation_only(result):
    assert set(result["choice"]) == {"retrieval/validation"} and set(result["judge"].values()) == {"retrieval/validation"}
    choice, curve = result["choice"]["retrieval/validation"], result["curves"]["retrieval/validation"]
    both = np.mean([curve["figures"][f"{side}/MRR"] for side in ("text_to_image", "image_to_text")], axis=0)
    assert both[choice["place"]] == both.max() and choice["amount"] == curve["amount"][choice["place"]]
    assert not [name for name in curve["figures"] if "no_flags" in name or "chance" in name or "queries" in name]
    for key, figures in result["moved"].items():
        for name, v in figures.items():
            values = result["curves"][key]["figures"][name]
            assert v["chosen"] == values[choice["place"]] and v["oracle"] == max(values) >= v["default"]


def test_gap_vector_and_judges():
    rng = np.random.default_rng(0)
    cloud = lambda away: shift.unit(rng.normal(size=(30, 4)) + np.array([away]))
    score = lambda x, y: {"top1": float(np.sum(x[:, 0]) - np.sum(y[:, 0])), "top5": 1.0, "images": 30.0}
    retrieved = lambda x, y: {"a/MRR": -abs(float(shift.distance(x, y))), "b/MRR": 0.0, "a/chance_R@1": 0.1}
    found = {"zeroshot/labels_validation": ("zeroshot", cloud([3, 0, 0, 0]), cloud([-3, 0, 0, 0]), score),
             "zeroshot/groups_validation": ("zeroshot", cloud([0, 3, 0, 0]), cloud([0, -3, 0, 0]), score),
             "zeroshot/groups_test": ("zeroshot", cloud([0, 3, 0, 0]), cloud([0, -3, 0, 0]), score),
             "retrieval/test": ("retrieval", cloud([0, 0, 3, 0]), cloud([0, 0, -3, 0]), retrieved)}
    out = gap_analysis.along_the_gap(found, amounts=(-0.5, 0.0, 0.5))
    assert out["judge"]["zeroshot/groups_test"] == "zeroshot/groups_validation"
    assert out["judge"]["retrieval/test"] == "zeroshot/labels_validation"   # nothing of its own kind chooses
    assert list(out["curves"]["retrieval/test"]["figures"]) == ["a/MRR", "b/MRR"]
    across = out["curves"]["retrieval/test"]["gap"]   # moved along another's gap vector, its own hardly shrinks
    assert min(np.abs(across)) > 0.5
    own = gap_analysis.along_the_gap(found, vector="own", amounts=(-0.5, 0.0, 0.5))
    assert min(np.abs(own["curves"]["retrieval/test"]["gap"])) < 0.3
    chosen = gap_analysis.along_the_gap(found, ["retrieval/test"], vector="own", amounts=(-0.5, 0.0, 0.5))
    assert chosen["choice"]["retrieval/test"]["amount"] == 0.5 and len(chosen["choice"]) == 1
    assert gap_analysis.along_the_gap({"retrieval/test": found["retrieval/test"]}, amounts=(0.0, 0.5))["moved"] == {}
    with pytest.raises(ValueError, match="--choose=retrieval/x: there are zeroshot/labels_validation"):
        gap_analysis.along_the_gap(found, ["retrieval/x"])
    with pytest.raises(ValueError, match="--metric=R@1: retrieval/test gives a/MRR, b/MRR"):
        gap_analysis.along_the_gap(found, ["retrieval/test"], "R@1", amounts=(0.0,))


def test_gap_cones_of_untrained_networks_and_noise(run, result):
    inputs = gap_analysis.random_inputs(run.job.config.model, 50)
    normal = (inputs["image"] / 255 - 0.5) / 0.5
    assert abs(normal.mean()) < 0.02 and normal.std() == pytest.approx(1, abs=0.02) and inputs["image"].shape == (50, 16, 16, 3)
    assert inputs["text"].min() >= 0 and len(np.unique(inputs["text"])) > 100 and set(inputs["text"][:, -1]) == {
        run.job.config.model.inputs.eot}
    with jax.set_mesh(run.job.mesh):
        embed = embedder_lib.make_embed(run.job.objective, "init", 40)
        first = run.job.init(jax.random.key(run.job.config.seed))
        noise = embed(first, gap_analysis.random_inputs(run.job.config.model, 40))
    for key in ("image", "text"):
        assert result["cone"]["noise"][key]["mean"] == pytest.approx(cone.mean(noise[key]), abs=1e-4)
        assert result["cone"]["untrained"][key]["mean"] != pytest.approx(result["cone"]["trained"][key]["mean"], abs=1e-3)
        assert result["seeds"][key]["separated"] > 0.9 and result["seeds"][key]["inside"] > result["seeds"][key]["across"]
    assert result["start"]["rotated"] < 0.3 * result["start"]["distance"]


def test_gap_tables_and_wrong_arguments(run, result, capsys):
    analyze.main(["gap", "--workdir", str(run.folder), "--workdir", f"{run.folder}/", "--only_table"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["objective", "seed", "step", "scale"]
    assert lines[1].split()[:5] == ["toy", "clip", "0", "7", "20.0"]
    assert f"{result['figures']['distance']:.3f}" in lines[1].split()
    for wrong, message in ((["--pairs", "x"], r"error: --pairs=x must be an instance of config.evals.gap.*: there is test"),
                           (["--step", "3"], "has no checkpoint of step 3")):
        with pytest.raises(SystemExit, match=message):
            analyze.main(["gap", "--workdir", str(run.folder), *wrong])
    with pytest.raises(SystemExit, match=r"has no analysis/gap.json yet"):
        analyze.main(["gap", "--workdir", str(run.folder.parent), "--only_table"])
    assert gap_analysis.temperature(types.SimpleNamespace(optimizer=types.SimpleNamespace(
        schedule=(("logit_scale", None), (".*", {"name": "cosine"}))))) == "fixed"


def test_gap_section_of_the_report(run, result, monkeypatch):
    monkeypatch.setattr(gallery, "gather", lambda *_: {})
    path, _ = report.write(str(run.folder))
    text = (run.folder / "report.html").read_text()
    assert path.endswith("report.html") and '<section id="gap"><h2>Modality gap</h2>' in text and 'href="#gap"' in text
    part = text[text.index('<section id="gap">'):]
    for piece in ("test · τ = 1/20 (this run", "retrieval · test · text → image", "cosine of two images",
                  "elevation of the texts", "gap after the move", "loss (nats)", "random layers", "no move", "oracle",
                  "Watched classes", "cosine inside a seed"):
        assert piece in part, piece
    assert part.count("<svg") >= 18 and "<script" not in text
    (run.folder / "analysis" / "gap.json").write_text("{")   # being written by somebody else: left out
    assert report.read(run.folder)["analyses"] == {}
    (run.folder / "analysis" / "gap.json").write_text(json.dumps(result))


def test_curves_can_be_exact_and_marked():
    x = np.linspace(0, 1, 60)
    noisy = plots.curves([("a", x, np.sin(90 * x))], legend=True)
    exact = plots.curves([("a", x, np.sin(90 * x))], legend=True, exact=True, ylabel="loss (nats)", at=[(0.5, "no move")])
    assert "opacity: 0.25" in noisy and "opacity: 0.25" not in exact
    assert "loss (nats)" in exact and "no move" in exact and "loss (nats)" not in noisy


def test_amend_turns_the_texts_and_sets_the_temperature(run, tmp_path, capsys):
    out = tmp_path / "start"
    analyze.main(["amend", "--workdir", str(run.folder), "--out", str(out), "--rotate", "--scale", "50", "--rows", "64"])
    assert "rotated" in capsys.readouterr().out
    job = run.job
    with jax.set_mesh(job.mesh):
        params = checkpoint.restore_from(str(out), job.abstract.params, "params")   # as config.init_from does
        before = job.init(jax.random.key(job.config.seed))
        after = job.init(jax.random.key(0), params)
        x, y = rotate_towers_analysis.pairs(job, before, 64)
        a, b = rotate_towers_analysis.pairs(job, after, 64)
        embed = embedder_lib.make_embed(job.objective, "params", 64)
        trained = embed(run.state, {"text": np.full((1, 8), 5, np.int32)})["text"]
    turn = shift.rotation(x, y)
    np.testing.assert_allclose(a, x, atol=1e-6)
    np.testing.assert_allclose(b, y @ turn.T, atol=1e-5)
    assert shift.distance(a, b) < 0.3 * shift.distance(x, y)
    assert float(np.exp(params["logit_scale"])) == pytest.approx(50, rel=1e-5)
    with pytest.raises(SystemExit, match="holds a run already"):
        analyze.main(["amend", "--workdir", str(run.folder), "--out", str(out), "--rotate"])
    second = tmp_path / "second"
    analyze.main(["amend", "--workdir", str(run.folder), "--out", str(second), "--trained", "--scale", "10"])
    with jax.set_mesh(job.mesh):
        kept = job.init(jax.random.key(0), checkpoint.restore_from(str(second), job.abstract.params, "params"))
        np.testing.assert_allclose(embed(kept, {"text": np.full((1, 8), 5, np.int32)})["text"], trained, atol=1e-6)
    for wrong, message in (([], "say what to amend"), (["--scale", "-1"], "must be a positive number")):
        with pytest.raises(SystemExit, match=message):
            analyze.main(["amend", "--workdir", str(run.folder), "--out", str(tmp_path / "third"), *wrong])
    with pytest.raises(ValueError, match="no projection to rotate"):
        rotate_towers_analysis.rotated({"token": None}, turn)


def test_fairness_instance_is_checked():
    views = dict(image="decode|resize(16)")
    settings = dict(source=TEST, views=views, group="group", prompts=(("a", "animal"),), watched=dict(x=("b",)),
                    tokenizer="emoji", context=8)
    with pytest.raises(ValueError, match=r"config.evals.fairness.f.watched: 'b' is no class of the prompts"):
        fairness_eval.make(settings, "f")
    with pytest.raises(ValueError, match="needs prompts"):
        fairness_eval.make({**settings, "prompts": ()}, "f")
    with pytest.raises(ValueError, match="reads column 'race'"):
        fairness_eval.make({**settings, "group": "race"}, "f")


def test_gap_configs_fix_the_temperature_and_choose_on_validation():
    config = temperature_emoji.get_config("20")
    assert config.model.logit_scale == pytest.approx(np.log(20)) and gap_analysis.temperature(config) == "fixed"
    assert gap_analysis.temperature(clip_emoji.get_config()) == "learned"
    for wrong in ("x", "0", "-1", "1e3", "nan"):
        with pytest.raises(ValueError, match=f"temperature_emoji:{wrong}: after the colon stands 1 / temperature"):
            temperature_emoji.get_config(wrong)
    added = []
    temperature_emoji.sweep(added.append)
    np.testing.assert_allclose(np.exp([run["model.logit_scale"] for run in added]), [100, 50, 30, 20, 10, 1], rtol=1e-3)
    shapes = {"image": {"w": np.zeros((2, 2), np.float32)}, "logit_scale": np.float32(3)}
    tx, _ = optimizer.make(config.optimizer, shapes, total_steps=4, batch_size=8, examples=32)
    moved = tx.update(jax.tree.map(np.ones_like, shapes), tx.init(shapes), shapes)[0]
    assert moved["logit_scale"] == 0 and np.all(moved["image"]["w"] != 0)
    evals = gap_emoji.get_evals()
    assert {key for module in evals.values() for key, own in module.items() if own["weights_from"] == "params"} >= {
        "labels_validation", "groups_validation", "validation", "training"}
    test = evals["zeroshot"]["groups_heldout_concepts"]
    assert evals["zeroshot"]["groups_validation"] == {**test, "source": {**test["source"], "split": "validation"}}
