"""Sweeps of the toy config shared by the tests: config files, scripts in place of training, and the files that training leaves."""
import json
import pathlib
import sys

from mcd_jax.sweep import plan

ROOT = pathlib.Path(__file__).resolve().parent.parent
MRR = "retrieval/validation/text_to_image/MRR"


def config(folder, body, base="toy.get_config()"):
    """A config file: the toy's config as `base` changes it, and `body` as its sweep(add)."""
    path = folder / "swept.py"
    lines = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", "from tests.configs import toy", "from mcd_jax.sweep import *",
             "def get_config():", f"    return {base}"]
    path.write_text("\n".join([*lines, *(["def sweep(add):", *[f"    {line}" for line in body.splitlines()]] if body else [])]))
    return str(path)


def planned(folder, body, shared=None, **more):
    return plan.plan(config(folder, body, **more), folder / "out", shared)


def fake(run, *script):
    """The run with a script of Python in place of training."""
    return run._replace(command=(sys.executable, "-S", "-c", "\n".join(["import os, sys, time, signal", *script])))


def leave(run, complete=False, mrr=0.1, loss=1.0, changes=None, figures=None):
    """The files of a training run, half way through or complete."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps({**run.config, **(changes or {})}))
    settings["model"]["inputs"] = {"vocab_size": 7}
    (run.workdir / "config.json").write_text(json.dumps(settings))
    lines = [{"step": s, "loss": loss * (12 / s), "loss/clip": loss, "seconds/train": s / 2, "seconds/stall": 1.0}
             for s in (6, 12, 24)]
    if not complete:
        lines.pop()
    done = {MRR: mrr, MRR.replace("MRR", "R@1"): 0.01, MRR.replace("MRR", "chance_R@1"): 0.5, **(figures or {})}
    lines[-1].update({k: v for k, v in done.items() if isinstance(v, float)})
    (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.workdir / "evals.json").write_text(json.dumps({"step": lines[-1]["step"], **done}))
    folder = run.workdir / "checkpoints" / str(lines[-1]["step"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commit_success.txt").write_text("")
