"""What a sweep will run: what is expanded, refused, passed on to train and named."""
import pathlib
import random

import pytest
from sweeps import MRR, ROOT, config, planned

from mcd_jax import sweep
from mcd_jax.config import overrides as overrides_lib
from mcd_jax.sweep import plan

# ---- expansion -----------------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_the_last_key_fastest():
    found = list(sweep.grid({"a": [1, 2], "seed": range(2), "fixed": "xy"}))
    assert found == [{"a": a, "seed": s, "fixed": "xy"} for a in (1, 2) for s in (0, 1)]
    with pytest.raises(ValueError, match="'a' has no values"):
        sweep.grid({"a": []})


def test_samples_depend_on_seed_number_and_key_alone():
    space = {"lr": sweep.log_uniform(1e-4, 1e-2), "size": [1, 2, 3], "keep": sweep.uniform(0.5, 1)}
    ten = list(sweep.sample(10, 0, space))
    assert ten == list(sweep.sample(10, 0, space)) and ten[:4] == list(sweep.sample(4, 0, space))
    assert [run["lr"] for run in ten] == [run["lr"] for run in sweep.sample(10, 0, {"more": [1, 2], "lr": space["lr"]})]
    assert ten != list(sweep.sample(10, 1, space)) and len({run["lr"] for run in ten}) == 10
    for run in ten:
        assert 1e-4 <= run["lr"] <= 1e-2 and float(f"{run['lr']:.3g}") == run["lr"] and run["size"] in (1, 2, 3)
    logs = [sweep.log_uniform(1e-4, 1e-2)(random.Random(i)) for i in range(400)]
    assert 0.4 < sum(lr < 1e-3 for lr in logs) / 400 < 0.6 and sweep.uniform(2.0, 2.0)(random.Random(0)) == 2.0
    for wrong in (lambda: sweep.log_uniform(0, 1), lambda: sweep.uniform(2, 1)):
        with pytest.raises(ValueError, match="in order"):
            wrong()


def test_a_list_sweep_keeps_its_order_and_merges_runs_of_one_config(tmp_path):
    found = planned(tmp_path, "add()\nadd(seed=1)\nadd({'optimizer.lr': 0.01, 'seed': 1})\nadd({'seed': 0})\nadd({}, seed=2)")
    assert [run.name for run in found] == ["base", "seed=1", "seed=2"]   # lr=0.01 and seed=0 are what the config says
    assert [run.overrides for run in found] == [{}, {"seed": 1}, {"seed": 2}]
    assert found[1].command[1:] == ("-m", "mcd_jax", "train", f"--config={tmp_path}/swept.py", f"--workdir={tmp_path}/out/seed=1",
                                    "--config.seed=1")


def test_what_the_command_line_overrides_reaches_every_run(tmp_path):
    found = planned(tmp_path, "add(seed=1)\nadd(seed=2)", {"steps": "3 steps", "model.image.widths": (4, 4)})
    for run in found:
        assert run.flags[:2] == ("--config.steps=3 steps", "--config.model.image.widths=(4, 4)")
        assert run.config["steps"] == "3 steps" and run.config["model"]["image"]["widths"] == [4, 4]
    assert [run.name for run in found] == ["seed=1", "seed=2"]


def test_a_config_file_may_take_an_argument(tmp_path):
    path = pathlib.Path(config(tmp_path, "add(seed=1)"))
    path.write_text(path.read_text().replace("get_config():", "get_config(which):").replace(
        "return toy.get_config()", "c = toy.get_config(); c.steps = which; return c"))
    run, = plan.plan(f"{path}:7 steps", tmp_path)
    assert run.config["steps"] == "7 steps" and f"--config={path}:7 steps" in run.command


# ---- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body, words", [
    ("", "defines no sweep"),
    ("pass", "adds no run"),
    ("add(sede=1)", r"unknown key config\.sede; did you mean config\.seed\?"),
    ("add(lr=1)", r"did you mean config\.optimizer\.lr\?"),
    ("add({'model.imag.widths': (1,)})", r"did you mean config\.model\.image\?"),
    ("add('seed=1')", r"add\('seed=1'\) takes a dict of keys and values"),
    ("add({'seed': 1 / 0})", "swept.py, line [0-9]+: ZeroDivisionError"),
    ("add({3: 1})", r"unknown key config\.3"),
    ("add(seed='x')", r"config\.seed='x' must be a whole number"),
    ("add(seed=0.5)", r"config\.seed=0\.5 must be a whole number"),
    ("add(seed=True)", r"config\.seed=True must be a whole number"),
    ("add({'optimizer.lr': '0.1'})", r"train would read 0\.1"),
    ("add({'optimizer.lr': None})", r"config\.optimizer\.lr=None must be a number"),
    ("add({'optimizer.lr': float('nan')})", r"config\.optimizer\.lr=nan must be a finite number"),
    ("add({'resume_from': 'None'})", "train would read ''"),
    ("add({'model.image.widths': 8})", r"config\.model\.image\.widths=8 must be a tuple"),
    ("add({'model.image': 'vit'})", r"config\.model\.image='vit' must be a dict"),
    ("add({'profile_steps': (float('inf'),)})", "'inf' is no value"),
    ("add({'resume_from': 'a' + chr(0)})", "can't be passed on a command line"),
    ("add(seed=object())", "can't be passed on a command line"),
    ("add(batch_size=0)", r"config\.batch_size=0 must be a whole number"),
    ("add({'model.embed_dim': 8, 'model': {'embed_dim': 16}})", "train would read"),
])
def test_what_no_run_could_be_started_with_is_refused(body, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        planned(tmp_path, body)


def test_a_key_that_is_swept_and_given_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.seed is swept over: sweep\(add\) gives it 1, the command line 5"):
        planned(tmp_path, "add(seed=1)", {"seed": 5})
    with pytest.raises(ValueError, match=r"did you mean config\.seed\?"):
        planned(tmp_path, "add(seed=1)", {"sed": 5})


def test_a_metric_of_no_evaluation_is_refused(tmp_path):
    found = planned(tmp_path, "add(seed=1)")
    for known in ("loss", "loss/clip", MRR):
        assert plan.check_metric(known, found) is None
    for wrong, words in ((MRR.replace("validation", "validatoin"), "'retrieval/validatoin'; did you mean 'retrieval/validation'"),
                         (MRR.replace("MRR", "MR"), f"did you mean '{MRR}'"), ("los", "did you mean 'loss'"),
                         ("loss/clpi", "did you mean 'loss/clip'"), ("retrieval/validation", "none of its figures")):
        with pytest.raises(ValueError, match=words):
            plan.check_metric(wrong, found)


# ---- the command line ----------------------------------------------------------------------------------------------------------

def test_values_survive_the_command_line():
    path = str(ROOT / "tests" / "configs" / "toy.py")
    base, checked = plan.read(path), []
    texts = ("", " ", "a b", "--config.count=5", "it's \"quoted\" $HOME `x` \\ \n", "None", "1", "ü*?{}")
    cases = [{"data.views.more": text} for text in texts] + [{"wandb": text} for text in ("", "a b", "1")]
    cases += [{"optimizer.lr": n} for n in (1e-12, 0.0, 3)] + [{"seed": 7}, {"tensorboard": False}, {"tensorboard": True}]
    cases += [{"optimizer.bounds": t} for t in ((), (("r.*", (0, 1.5)),))]
    cases += [{"init_fresh": t} for t in ((), ("a, b",), ("x", "'"))]
    cases += [{"optimizer.schedule": (("r.*", {"name": "linear", "warmup": 3}), (".*", None))}, {"steps": 12},
              {"steps": "3 epochs"},
              {"checkpoint.every": None}, {"data.cache": 1}, {"data.cache": True}, {"resume_from": None}, {"evals": {}},
              {"optimizer.clip_norm": None}, {"data.source": {"name": "emoji", "captions": ("label", "tags")}},
              {"data.source.captions": "tags"}, {"evals.retrieval.validation.queries": {"flag": (True, None, 1, "'")}},
              {"evals.retrieval.validation.texts": 2}, {"model.text.act": "relu"}, {"optimizer.optimizers.b2": 0.95},
              {"objective.weights": {"clip": 5.0}}]
    for overrides in cases:
        (key, value), = overrides.items()
        value = plan.plain(key, value)
        flag = f"--config.{key}={overrides_lib.encode(base, key, value)}"
        got = overrides_lib.field(plan.read(path, (flag,)), key)
        assert plan.same(got, value), (overrides, flag, got)
        checked.append(flag)
    some = ("--config.seed", "--config.data.views", "--config.init_fresh")
    done = plan.read(path, [flag for flag in checked if flag.startswith(some)])
    assert done.data.views.more == texts[-1] and done.init_fresh == ("x", "'") and done.seed == 7


def test_same_knows_types():
    assert plan.same(1.0, 1) and plan.same({"a": (1,)}, {"a": (1,)})
    for got, want in ((1, True), (True, 1), (1, 1.0), ("1", 2), ((1, 2), (1,)), ({"a": 1}, {"b": 1}), ((1,), [1]), (0, None)):
        assert not plan.same(got, want), (got, want)


# ---- names ---------------------------------------------------------------------------------------------------------------------


def test_names_are_readable_safe_and_different():
    paths = ["seed", "steps", "optimizer", "optimizer.lr", "model.image.width", "model.text.width", "weights.clip", "warmup.clip",
             "x.seed"]
    assert plan.name({"optimizer.lr": 1e-3, "seed": 0}, paths) == "lr=0.001,seed=0"
    assert plan.name({"model.image.width": (8, 16), "weights.clip": -1.0}, paths) == "image.width=8x16,weights.clip=-1.0"
    assert plan.name({"steps": "3 epochs", "x.seed": None}, paths) == "steps=3_epochs,x.seed=None"
    assert plan.name({}, paths) == "base"
    hard = plan.name({"steps": "../../etc|crop(1, 'ü')\n"}, paths)
    assert hard.startswith("steps=..-..-etc-crop-1,_") and "/" not in hard and hard.isascii() and hard.isprintable()
    assert plan.name({"steps": "a/b"}, paths) != plan.name({"steps": "a|b"}, paths)
    assert len(plan.name({"steps": "x" * 500}, paths)) <= 100
    assert plan.name({"optimizer": {"lr": 1}}, paths) != plan.name({"optimizer": {"lr": 2}}, paths)
    three = plan.names([{"steps": "a b"}, {"steps": "A_b"}, {"seed": 1}], paths)
    assert len({name.casefold() for name in three}) == 3 and three[2] == "seed=1"


# ---- launchers -----------------------------------------------------------------------------------------------------------------


def test_a_launcher_gets_the_command_as_arguments_or_quoted(tmp_path):
    run, = planned(tmp_path, "add(wandb='3 steps; rm -rf $HOME')")
    assert plan.launch("srun -J {name} {command}", run) == ["srun", "-J", run.name, *run.command]
    argv = plan.launch("sbatch -o {workdir}/out '--wrap=exec {command}'", run)
    assert argv[:3] == ["sbatch", "-o", f"{run.workdir}/out"] and argv[3].endswith("'--config.wandb=3 steps; rm -rf $HOME'")
    assert plan.launch("run.sh {overrides}", run) == ["run.sh", "--config.wandb=3 steps; rm -rf $HOME"]
    for template, words in (("srun {comand}", "did you mean 'command'"), ("srun {name}", "would start every run alike"),
                            ("srun '{command}", "can't be split")):
        with pytest.raises(ValueError, match=words):
            plan.launch(template, run)
