"""What a sweep will run: what is expanded, refused, passed on to train and named."""
import json
import pathlib
import random
import subprocess
import sys

import pytest
from sweeps import MRR, ROOT, config, planned

from mcd_jax import sweep
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
    assert found[1].command[1:] == ("-m", "mcd_jax.train", f"--config={tmp_path}/swept.py", f"--workdir={tmp_path}/out/seed=1",
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


def test_the_example_sweeps_weights_over_seeds(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = plan.plan("configs/mcd_emoji.py", "runs/weights")
    assert len(found) == 9 and found[8].name == "weights.misalignment=5.0,seed=2"


# ---- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body, words", [
    ("", "defines no sweep"),
    ("pass", "adds no run"),
    ("add(sede=1)", "config.sede can't be overridden: the config has no such key; did you mean 'seed'"),
    ("add(lr=1)", "did you mean 'optimizer.lr'"),
    ("add({'model.imag.widths': (1,)})", "did you mean 'model.image.widths'"),
    ("add({3: 1})", "no such key"),
    ("add(seed='x')", "--config.seed=.*invalid literal"),
    ("add(seed=0.5)", "invalid literal.*seed=0"),
    ("add(seed=True)", "invalid literal"),
    ("add({'data.cache': 1})", "would read True"),
    ("add({'optimizer.lr': '0.1'})", "could not convert"),
    ("add({'optimizer.lr': None})", "could not convert string to float: 'None'"),
    ("add({'optimizer.lr': float('nan')})", "would read nan"),
    ("add({'resume_from': None})", "would read 'None'"),
    ("add(steps=12)", "would read '12'"),
    ("add({'model.image.widths': 8})", "would read"),
    ("add({'model.image': 'vit'})", "Failed to parse"),
    ("add({'profile_steps': (float('inf'),)})", "would read"),
    ("add({'data.source.captions': 'label'})", "NoneType.*not supported"),
    ("add({'resume_from': 'a' + chr(0)})", "can't be passed on a command line"),
    ("add(seed=object())", "can't be passed on a command line"),
    ("add(batch_size=0)", "config.batch_size=0 must be a whole number"),
    ("add({'model.embed_dim': 8, 'model': {'embed_dim': 16}})", "will overwrite the value"),
])
def test_what_no_run_could_be_started_with_is_refused(body, words, tmp_path):
    base = "(lambda c: (c.data.source.update(captions=None), c)[1])(toy.get_config())"
    with pytest.raises(ValueError, match=words):
        planned(tmp_path, body, base=base)


def test_a_key_that_is_swept_and_given_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.seed is swept over: sweep\(add\) gives it 1, the command line 5"):
        planned(tmp_path, "add(seed=1)", {"seed": 5})
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        planned(tmp_path, "add(seed=1)", {"sed": 5})


def test_a_metric_of_no_evaluation_is_refused(tmp_path):
    found = planned(tmp_path, "add(seed=1)")
    for known in ("loss", "loss/clip", MRR):
        assert plan.check_metric(known, found) is None
    with pytest.raises(ValueError, match="'retrieval/validatoin'; did you mean 'retrieval/validation'"):
        plan.check_metric(MRR.replace("validation", "validatoin"), found)


# ---- the command line ----------------------------------------------------------------------------------------------------------

READER = """
import json, sys
from absl import app, flags
from ml_collections import config_flags
C = config_flags.DEFINE_config_file("config", None, "")
flags.DEFINE_string("workdir", None, "")
app.run(lambda argv: print(json.dumps([argv[1:], flags.FLAGS.workdir, repr(sorted(C.value.to_dict().items()))])))
"""


def test_values_survive_the_command_line_as_a_program_with_config_flags_reads_it(tmp_path):
    path = tmp_path / "kinds.py"
    path.write_text("from ml_collections import ConfigDict, config_dict\ndef get_config():\n    return ConfigDict(dict("
                    "text='', number=1.0, count=1, on=True, tuple=(1,), sub=dict(a=1), any=config_dict.placeholder(object)))\n")
    texts = ("", " ", "a b", "--config.count=5", "it's \"quoted\" $HOME `x` \\ \n", "None", "1", "ü*?{}")
    cases = [{"text": text} for text in texts]
    cases += [{"number": n} for n in (1e-12, -0.0, 3, float("inf"))] + [{"count": -7}, {"on": False}, {"on": True}]
    cases += [{"tuple": t} for t in ((), (1,), ("a, b",), ("x", None, True, 0.1), (("r.*", {"lr": 1e-3, "n": None}),), [1, [2]])]
    cases += [{"sub": {}}, {"sub": {"b": {"c": (1, "'")}}}, {"any": None}, {"any": "1"}, {"any": 1}, {"any": (1, {"a": "true"})},
              {"any": "true"}, {"any": False}]
    base, checked = plan.read(str(path), ()), []
    for overrides in cases:
        (key, value), = overrides.items()
        value = plan.plain(key, value)
        given = f"--config.{key}={plan.encode(value, base.get_type(key))}"
        assert plan.same(plan.read(str(path), (given,))[key], value), overrides
        checked.append((key, value, given))
    last = {}   # one process reads the hardest of each key as train would
    for key, value, given in checked:
        if len(given) > len(last.get(key, ("", ""))[1]):
            last[key] = value, given
    done = subprocess.run([sys.executable, "-c", READER, f"--config={path}", "--workdir=a b", *[g for _, g in last.values()]],
                          capture_output=True, text=True, timeout=60)
    want = sorted({"any": None, "on": True, **{key: value for key, (value, _) in last.items()}}.items())
    assert json.loads(done.stdout or "0") == [[], "a b", repr(want)], done.stderr[-2000:]


def test_same_knows_types():
    assert plan.same(1.0, 1) and plan.same({"a": (1,)}, {"a": (1,)})
    for got, want in ((1, True), (True, 1), (1, 1.0), ("1", 1), ((1, 2), (1,)), ({"a": 1}, {"b": 1}), ((1,), [1])):
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
    run, = planned(tmp_path, "add(steps='3 steps; rm -rf $HOME')")
    assert plan.launch("srun -J {name} {command}", run) == ["srun", "-J", run.name, *run.command]
    argv = plan.launch("sbatch -o {workdir}/out '--wrap=exec {command}'", run)
    assert argv[:3] == ["sbatch", "-o", f"{run.workdir}/out"] and argv[3].endswith("'--config.steps=3 steps; rm -rf $HOME'")
    assert plan.launch("run.sh {overrides}", run) == ["run.sh", "--config.steps=3 steps; rm -rf $HOME"]
    for template, words in (("srun {comand}", "did you mean 'command'"), ("srun {name}", "would start every run alike"),
                            ("srun '{command}", "can't be split")):
        with pytest.raises(ValueError, match=words):
            plan.launch(template, run)
