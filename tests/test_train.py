"""The whole program as a user runs it: it learns, it survives a kill, and what doesn't fit is refused with a sentence."""
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

from PIL import Image
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests" / "configs" / "toy.py"


def command(workdir, *overrides, config=CONFIG):
    return [sys.executable, "-m", "mcd_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides]


def environment(devices=1):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


def train(workdir, *overrides, devices=1, config=CONFIG):
    return subprocess.run(command(workdir, *overrides, config=config), env=environment(devices), cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


def checksum(done):
    assert done.returncode == 0, done.stderr[-2000:]
    return re.fullmatch(r"params_checksum=([0-9a-f]{64})", done.stdout.strip().splitlines()[-1])[1]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped: (workdir, checksum, stdout and then stderr)."""
    workdir = tmp_path_factory.mktemp("straight")
    done = train(workdir)
    return workdir, checksum(done), done.stdout + done.stderr


def test_it_learns_and_leaves_what_others_rely_on(straight):
    workdir, _, stdout = straight
    assert stdout.startswith("training clip on emoji: 276 examples, 24 steps of 16")
    log = lines(workdir)
    assert [line["step"] for line in log] == list(range(2, 25, 2))
    for key in ("loss", "loss/clip", "grad_norm", "examples_per_sec", "input_stall", "mfu", "skipped_updates",
                "bad_examples", "logit_scale", "lr", "memory_bytes"):
        assert key in log[-1], key
    assert log[-1]["loss/clip"] < log[0]["loss/clip"]
    evals = json.loads((workdir / "evals.json").read_text())
    assert 0 <= evals["retrieval/validation/text_to_image/R@1"] <= 1 and evals["step"] == 24
    assert "retrieval/validation/no_flags/text_to_image/R@10" in evals
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["inputs"]["image_size"] == 16 and config["seed"] == 0
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())[-1] == 24


def test_what_it_says_is_what_it_logs(straight):
    workdir, _, said = straight
    last = lines(workdir)[-1]
    assert "compiling the training step" in said
    final = re.findall(r"^step 24/24: loss ([\d.]+), ", said, re.M)
    assert final == [f"{last['loss']:.3f}"]
    seconds = [last[f"seconds/{part}"] for part in ("train", "stall", "start", "eval", "checkpoint")]
    spent = re.search(r"finished 24 steps in (\d+) s of training, (\d+) s in all", said)
    assert spent.groups() == (f"{sum(seconds[:2]):.0f}", f"{sum(seconds):.0f}")
    table = (workdir / "parameters.txt").read_text()
    assert "image/proj/kernel" in table and "image/proj/kernel" not in said
    assert table.splitlines()[-1] in said and f"each one's place is in {workdir}/parameters.txt" in said


def test_a_short_training_run_learns_its_drawings(tmp_path):
    """Well above chance on what it saw: R@10 of 276 drawings is 3.6 % at random, and here about a third."""
    done = train(tmp_path, "--config.steps=300 steps", "--config.batch_size=32", "--config.checkpoint.every=100 percent",
                 "--config.log_every=50")
    checksum(done)
    evals = json.loads((tmp_path / "evals.json").read_text())
    figure = "retrieval/validation/text_to_image/"
    assert evals[figure + "R@10"] > 4 * evals[figure + "chance_R@10"], evals[figure + "R@10"]


def test_killed_at_random_steps_and_resumed_equals_the_straight_run_bit_for_bit(straight, tmp_path):
    workdir, want, _ = straight
    rng = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(command(tmp_path), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        before, stop = newest(tmp_path), time.time() + 120
        while newest(tmp_path) <= before and time.time() < stop and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)   # anywhere: between two saves, or in the middle of one
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = train(tmp_path)
    assert checksum(done) == want
    drop = lambda line: {k: v for k, v in line.items()
                         if not k.startswith(("seconds", "examples_per", "input_stall", "mfu", "memory"))}
    assert [drop(a) for a in lines(tmp_path)] == [drop(b) for b in lines(workdir)]


def newest(workdir):
    folder = pathlib.Path(workdir) / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def test_sigterm_saves_and_exits_75(tmp_path):
    process = subprocess.Popen(command(tmp_path, "--config.steps=100000 steps"), env=environment(), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stop = time.time() + 120
    while newest(tmp_path) < 1 and time.time() < stop:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err[-2000:]
    step = int(re.search(r"stopped by SIGTERM: step ([\d,]+) of 100,000 is saved", out)[1].replace(",", ""))
    assert newest(tmp_path) == step


@pytest.mark.full
def test_data_that_goes_away_costs_no_step(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(32):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"picture {number}")
    source = [f"--config.data.source={dict(name='sidecars', path=str(data))!r}", "--config.data.cache=False", "--config.evals={}"]
    words = [*source, "--config.steps=100000 steps", "--config.checkpoint.every=100000 steps"]
    process = subprocess.Popen(command(tmp_path / "run", *words), env=environment(), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stop, metrics = time.time() + 120, tmp_path / "run" / "metrics.jsonl"
    while time.time() < stop and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    data.rename(tmp_path / "away")
    _, err = process.communicate(timeout=120)
    step = re.search(r"error: .*data/.*: No such file .*; step ([\d,]+) of 100,000 is saved: start the same command to go on", err)
    assert step and process.returncode == 1, err[-2000:]
    assert newest(tmp_path / "run") == int(step[1].replace(",", "")) > 0


@pytest.mark.full
def test_four_devices_and_microbatches_give_the_loss_of_one(straight, tmp_path):
    workdir, _, _ = straight
    done = train(tmp_path, "--config.microbatches=2", devices=4)
    assert done.returncode == 0, done.stderr[-2000:]
    for a, b in zip(lines(workdir)[:3], lines(tmp_path)[:3]):
        assert abs(a["loss"] - b["loss"]) <= 1e-4 * a["loss"]


def test_finished_runs_evaluate_and_report_again(straight):
    workdir, _, _ = straight
    for module in ("evaluate", "report"):
        done = subprocess.run([sys.executable, "-m", f"mcd_jax.{module}", f"--workdir={workdir}"], env=environment(), cwd=ROOT,
                              text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    page = (workdir / "report.html").read_text()
    assert "loss/clip" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("override, words", [
    ("--config.objective.imagee=x", "did you mean config.objective.image?"),
    ("--config.data.views.image=decode|krop(16,0.5)", "krop"),
    ("--config.objective.image=other", "has no image view 'other'"),
    ("--config.mesh.data=3", "there are 1 devices"),
    ("--config.data.source.split=trian", "trian"),
    ("--config.evals.retrieval.validation.weights_from=memory/emma", "memory/ema"),
])
def test_what_does_not_fit_is_refused_before_the_first_compile(override, words, tmp_path):
    done = train(tmp_path / "run", override)
    assert done.returncode not in (0, 75) and words in done.stderr, done.stderr[-1500:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_model_in_the_same_workdir_is_refused_and_spoils_nothing(straight):
    workdir, _, _ = straight
    before = (workdir / "config.json").read_text()
    done = train(workdir, "--config.model.embed_dim=8")
    assert done.returncode == 1 and "proj/kernel" in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert (workdir / "config.json").read_text() == before and newest(workdir) == 24


def test_a_batch_that_the_devices_do_not_divide_names_what_would_fit(tmp_path):
    done = train(tmp_path, "--config.batch_size=18", devices=4)
    assert done.returncode == 1 and "16 or 20 would fit" in done.stderr


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = train(tmp_path / "file" / "run")
    assert done.returncode == 1 and "can't be written" in done.stderr
