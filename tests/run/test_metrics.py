"""The log of a run, its clock, late metrics, and the step benchmark."""
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
import tiny

from mcd_jax import config as config_lib
from mcd_jax.bench import step as bench_step
from mcd_jax.configs import emoji
from mcd_jax.costs import matmul
from mcd_jax.run import metrics


def lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")
    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_curve_of_a_run_whose_checkpoints_are_gone_is_kept(tmp_path):
    assert metrics.begin_anew(tmp_path) == ""
    writer = metrics.Writer(tmp_path, tensorboard=False)
    writer.write(2, {"loss": 1.0, "seconds/checkpoint": 0.0})
    assert metrics.begin_anew(tmp_path) == ""   # it was stopped before its first checkpoint
    writer.write(4, {"loss": 0.5, "seconds/checkpoint": 0.1})
    writer.close()
    logged = lines(tmp_path)
    said = metrics.begin_anew(tmp_path)
    assert said == f"the run of 4 steps in {tmp_path} has no checkpoint: it begins anew; what it logged is kept in metrics-4.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics-4.jsonl"]
    assert [json.loads(line) for line in (tmp_path / "metrics-4.jsonl").read_text().splitlines()] == logged
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "seconds/checkpoint": 1}')   # and lost once more
    assert metrics.begin_anew(tmp_path).endswith("is kept in metrics-4-2.jsonl")
    assert [json.loads(line) for line in (tmp_path / "metrics-4.jsonl").read_text().splitlines()] == logged


def test_one_line_per_step_with_step_first_and_valid_json(tmp_path):
    writer = metrics.Writer(tmp_path, total_steps=3, tensorboard=False)
    writer.write(1, {"loss": jnp.float32(2.5), "a": np.int64(3), "bad": float("nan"), "worse": -np.inf, "none": None})
    writer.write(2, {"loss": 1.0})
    assert len(lines(tmp_path)) == 2, "lines are on disk at once"
    writer.write(2, {"retrieval/R@1": 0.5, "loss": 0.9})
    writer.write(3, {"loss": 0.1})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "a": 3, "bad": None, "loss": 2.5, "none": None, "worse": None},
                               {"step": 2, "loss": 0.9, "retrieval/R@1": 0.5}, {"step": 3, "loss": 0.1}]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[0].startswith('{"step": 1, "a": 3, "bad": null')
    with pytest.raises(ValueError, match="step 2 come after those of step 3"):
        metrics.Writer(tmp_path, tensorboard=False, first_step=3).write(2, {})


def test_a_resumed_run_leaves_the_log_of_one_that_never_stopped(tmp_path):
    def run(first, last, workdir):
        writer = metrics.Writer(workdir, total_steps=9, first_step=first, tensorboard=False)
        assert writer.last.get("step", 0) == first
        for step in range(first + 1, last + 1):
            writer.write(step, {"loss": 1 / step})
        return writer

    (tmp_path / "straight").mkdir()
    (tmp_path / "stopped").mkdir()
    run(0, 9, tmp_path / "straight").close()
    run(0, 7, tmp_path / "stopped")  # killed: never closed
    with (tmp_path / "stopped/metrics.jsonl").open("a") as f:
        f.write('{"step": 8, "lo')
    run(4, 9, tmp_path / "stopped").close()
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (tmp_path / "straight/metrics.jsonl").read_bytes()
    writer = metrics.Writer(tmp_path / "stopped", tensorboard=False)
    writer.close()
    assert lines(tmp_path / "stopped") == [] and writer.last == {}, "a fresh start drops an old log"


def test_tensorboard_gets_the_finite_values(tmp_path):
    for first in (0, 5):
        writer = metrics.Writer(tmp_path, first_step=first)
        writer.write(first + 1, {"loss": 0.5, "bad": float("inf")})
        writer.close()
    data, seen = b"".join(p.read_bytes() for p in sorted((tmp_path / "tensorboard").iterdir())), []
    while data:  # a record: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        seen.append(event_pb2.Event.FromString(data[12:12 + size]))
        data = data[16 + size:]
    assert [(e.step, v.tag, v.simple_value) for e in seen for v in e.summary.value] == [(1, "loss", 0.5), (6, "loss", 0.5)]
    assert [e.step for e in seen if e.session_log.status == event_pb2.SessionLog.START] == [6], "later steps are purged"


def test_a_machine_without_semaphores_trains_without_tensorboard(tmp_path, monkeypatch, capsys):
    def no_semaphore(*_, **__):
        raise OSError(30, "Read-only file system")   # of sem_open, which has no file name
    monkeypatch.setattr(metrics.tensorboardX, "SummaryWriter", no_semaphore)
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"loss": 2.0})
    writer.close()
    assert "no usable /dev/shm (Read-only file system); config.tensorboard=False" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


def test_only_the_lead_writes(tmp_path):
    writer = metrics.Writer(tmp_path, is_lead=False)
    writer.write(1, {"loss": 1})
    writer.advance(1)
    writer.say("unheard")
    writer.close()
    assert not list(tmp_path.iterdir())


def test_progress_is_a_line_now_and_then_without_a_terminal_and_a_bar_on_one(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    writer = metrics.Writer(tmp_path, total_steps=90, tensorboard=False)
    for step in range(1, 91):
        now[0] += 1
        writer.write(step, {"loss": step / 10, "examples_per_sec": 123.4, "input_stall": 0.05})
    writer.close()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 1/90: loss 0.100, examples/s 123, stall 5%, 01:29 left"
    assert said[-1] == "step 90/90: loss 9.000, examples/s 123, stall 5%"
    assert len(said) == 4

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    writer = metrics.Writer(tmp_path, total_steps=90, first_step=40, tensorboard=False)
    writer.write(45, {"loss": 0.5})
    writer.say("a line")
    writer.close()
    shown = capsys.readouterr().err
    assert "45/90" in shown and "loss 0.500" in shown and "a line\n" in shown


def test_wandb_runs_under_the_same_name_after_a_restart_and_its_absence_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"config.wandb='mcd' needs .*pip install wandb"):
        metrics.Writer(tmp_path, tensorboard=False, wandb="mcd")
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: calls.append(options) or run))
    for _ in range(2):
        writer = metrics.Writer(tmp_path, tensorboard=False, wandb="mcd", config={"seed": 1})
        writer.write(1, {"loss": 1.0, "bad": float("nan")})
        writer.close()
    assert calls[:3] == calls[3:] and calls[1:3] == [(1, {"loss": 1.0}), "finish"]
    assert calls[0]["project"] == "mcd" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"seed": 1}


def test_late_gives_the_step_before():
    late = metrics.Late()
    assert late.push(1, {"loss": jnp.float32(1.5), "skipped": jnp.int32(2)}) == []
    assert late.push(2, {"loss": jnp.float32(2.5)}) == [(1, {"loss": 1.5, "skipped": 2})]
    assert late.flush() == [(2, {"loss": 2.5})] and late.flush() == []


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def spend(self, context, seconds):
        with context:
            self.now += seconds


def test_clock_keeps_the_parts_apart():
    time = FakeTime()
    clock = metrics.Clock(batch_size=10, flops_per_example=6.0, peak=50.0, now=time)
    time.now += 3  # setting up
    time.spend(clock.stall(), 2)  # the first batch
    time.spend(clock.train(), 20)  # compiles
    assert clock.read()["examples_per_sec"] is None and clock.read()["mfu"] is None
    for _ in range(4):
        time.spend(clock.stall(), 0.5)
        time.spend(clock.train(), 1.25)
        time.now += 0.25  # the rest of the loop
    with clock.eval():
        time.now += 7
        time.spend(clock.stall(), 1)  # its own input counts as stall
    time.spend(clock.checkpoint(), 5)
    got = clock.read()
    assert got == {"examples_per_sec": 40 / 9, "input_stall": 3 / 9, "mfu": pytest.approx(40 / 9 * 6 / 50), "seconds/start": 25,
                   "seconds/train": 6, "seconds/stall": 3, "seconds/eval": 7, "seconds/checkpoint": 5}
    assert clock.total() == 9 and clock.total("eval") == 7
    time.spend(clock.train(), 2)
    assert clock.read()["examples_per_sec"] == 5, "rates are since the last read"

    again = metrics.Clock(batch_size=10, previous=got, now=time)
    time.spend(again.train(), 30)
    time.spend(again.train(), 1)
    assert again.total() == 10 and again.total("start") == 55
    assert again.read() | {"mfu": 0} == again.read() | {"examples_per_sec": 10, "input_stall": 0, "mfu": 0}


def test_seconds_add_up_over_a_resume_from_a_step_that_was_not_logged(tmp_path):
    """Steps are logged by tens; the checkpoint is of step 15, where an evaluation has left a line of figures."""
    time = FakeTime()

    def session(first, last, crash=False):
        writer = metrics.Writer(tmp_path, total_steps=20, first_step=first, tensorboard=False)
        began = time.now
        time.now += 4   # data, checkpoint
        clock = metrics.Clock(1, previous=writer.spent, now=time, since=began)
        for step in range(first + 1, last + 1):
            time.spend(clock.stall(), 1)
            time.spend(clock.train(), 2)
            if step % 10 == 0:
                writer.write(step, {"loss": 1.0, **clock.read()})
        if crash:
            return
        time.spend(clock.eval(), 5)
        writer.write(last, {"retrieval/R@1": 0.5})
        time.spend(clock.checkpoint(), 3)
        writer.write(last, clock.seconds())
        writer.write(last, {"misalignment/ordered": 0.5})
        writer.close()

    session(0, 15)
    spent = time.now - 100
    session(15, 18, crash=True)   # lost: not a second of it counts
    time.now = 1000
    session(15, 20)
    newest = lines(tmp_path)[-1]
    seconds = {part: newest[f"seconds/{part}"] for part in metrics.Clock.PARTS}
    assert sum(seconds.values()) == spent + time.now - 1000
    assert seconds == {"start": 2 * (4 + 3), "train": 2 * 18, "stall": 18, "eval": 10, "checkpoint": 6}


def test_a_stall_is_told_once_and_only_if_it_lasts():
    time = FakeTime()
    clock = metrics.Clock(batch_size=1, now=time)

    def steps(count, stall):
        for _ in range(count):
            time.spend(clock.stall(), stall)
            time.spend(clock.train(), 1)
        return clock.stalling()
    assert steps(1, 60) is None, "the first batch belongs to the start"
    assert steps(2, 3) is None, "too short to tell"
    assert steps(20, 0.1) is None
    assert steps(10, 0.2) is None
    assert steps(10, 1.0) == 0.5
    assert steps(10, 1.0) is None, "once"


def test_a_failing_step_leaves_the_clock_usable():
    time = FakeTime()
    clock = metrics.Clock(batch_size=1, now=time)
    with pytest.raises(KeyError), clock.eval():
        time.now += 2
        raise KeyError
    time.now += 3
    assert clock.total("eval") == 2 and clock.total("start") == 3


def test_profile_traces_the_configured_steps(tmp_path):
    profile = metrics.Profile((1, 2), tmp_path)
    for step in range(4):
        profile.step(step, jnp.ones(()))
        assert profile._on == (step in (1, 2))
        jax.block_until_ready(jnp.ones((4,)) * step)
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    metrics.Profile((), tmp_path).step(0)
    with pytest.raises(ValueError, match=r"profile_steps=\(3,\)"):
        metrics.Profile((3,), tmp_path)


def test_memory_and_peak():
    assert metrics.device_memory() > 1e7 and abs(metrics.device_memory() - metrics.host_memory()) < 1e9
    assert 1e8 < matmul.measure(size=128) < 1e16


def test_bench_matmul_prints_one_json_line():
    out = subprocess.run([sys.executable, "-m", "mcd_jax.costs.matmul", "128"], capture_output=True, text=True, check=True).stdout
    assert out.count("\n") == 1 and json.loads(out)["float32_flops_per_sec"] > 1e8


def test_bench_step_figures_agree_with_each_other(monkeypatch):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(matmul, "measure", lambda: 1e12)
    monkeypatch.setattr(bench_step.mesh_lib, "to_global", lambda batch, mesh: batch)
    monkeypatch.setattr(bench_step, "parameters", lambda job: {})
    monkeypatch.setattr(bench_step.job_lib, "build", lambda config: types.SimpleNamespace(
        mesh=mesh, pipeline=types.SimpleNamespace(batch=lambda step: {"x": jnp.ones((8,))}, close=lambda: None),
        init=lambda key: jnp.zeros(()), step=jax.jit(lambda s, b: (s + 1, {"loss": s + b["x"][0]}), donate_argnums=0),
        flops=lambda: 3e6, config=config))
    config = types.SimpleNamespace(objective=types.SimpleNamespace(name="any"), batch_size=8, seed=0)
    check_figures(bench_step.measure(config, steps=2), "any", loss=3)


@pytest.mark.full
def test_bench_step_on_the_embedded_data(monkeypatch):
    monkeypatch.setattr(matmul, "measure", lambda: 1e12)
    config = emoji.base("1 epochs", {"image": "decode|resize(16)"})
    config.batch_size, config.data.cache = 8, False
    config.model.image, config.model.text = tiny.IMAGE, tiny.TEXT
    config.objective = config_lib.objective("clip")
    got = bench_step.measure(config, steps=2)
    check_figures(got, "clip", loss=got["loss"])


def check_figures(got, objective, loss):
    assert got["objective"] == objective and got["steps"] == 2 and got["loss"] == loss and np.isfinite(loss)
    assert got["examples_per_sec"] == pytest.approx(8 / got["step_seconds"])
    assert got["flops_per_sec"] == pytest.approx(got["flops_per_step"] / got["step_seconds"]) and got["flops_per_step"] > 1e6
    assert got["peak_flops_per_sec"] == 1e12 and got["peak_share"] == pytest.approx(got["flops_per_sec"] / 1e12)
    assert got["compile_seconds"] > 0 and json.loads(json.dumps(got)) == got
