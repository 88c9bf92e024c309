"""Two real processes over loopback, as two hosts of a pod: they agree with one, restore on other counts, and end together."""
import json
import re
import signal
import socket
import threading
import time

import numpy as np
from pair import CONFIG, Pair, free_port
import pytest

from mcd_jax.run import workdir
from mcd_jax.sharding import distributed


def command(workdir, *overrides):
    return ["-m", "mcd_jax.train", f"--config={CONFIG}", f"--workdir={workdir}", "--config.evals={}", "--config.steps=8 steps",
            *overrides]


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}   # those of evaluations have none


def checksum(result):
    status, out, err = result
    assert status == 0, err[-3000:]
    return re.search(r"params_checksum=([0-9a-f]{64})", out)[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """8 steps in 2 processes of 2 devices, saved every 4: (workdir, checksum)."""
    workdir = tmp_path_factory.mktemp("two")
    results = Pair(command(workdir)).wait()
    assert "4 cpu device(s) in 2 processes" in results[0][1] and "training" not in results[1][1]
    assert checksum(results[0]) == checksum(results[1])
    return workdir, checksum(results[0])


def test_two_processes_train_as_one(two, tmp_path):
    (one,) = Pair(command(tmp_path), count=1, devices=4).wait()
    checksum(one)
    want, got = losses(tmp_path), losses(two[0])
    assert want.keys() == got.keys() == {2, 4, 6, 8}
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), rtol=1e-5)


@pytest.mark.full
def test_restored_on_other_processes(two, tmp_path):
    """From step 4 of 2 x 2 on: 1 process of 4 devices, 1 of 1, and back to 2 x 2, where it is the straight run bit for bit."""
    workdir, digest = two
    resume = f"--config.resume_from={workdir}/checkpoints/4"
    for name, count, devices in (("1x4", 1, 4), ("1x1", 1, 1), ("2x2", 2, 2)):
        results = Pair(command(tmp_path / name, resume), count, devices).wait()
        same = checksum(results[0])
        assert "step 4" in results[0][1]
        np.testing.assert_allclose([losses(tmp_path / name)[s] for s in (6, 8)], [losses(workdir)[s] for s in (6, 8)], rtol=1e-5)
    assert same == digest


def started(pair, workdir, step):
    """Waits until the job has logged `step`."""
    end = time.time() + 200
    while time.time() < end:
        if (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= step:
            return
        assert all(p.poll() is None for p in pair.all), [p.communicate()[1][-2000:] for p in pair.all if p.poll() is not None]
        time.sleep(0.1)
    raise AssertionError("the job did not get going")


@pytest.mark.full
def test_sigterm_of_one_saves_everywhere(tmp_path):
    """The signal comes while the job evaluates, which it does after every step."""
    args = command(tmp_path, "--config.steps=4000 steps", "--config.checkpoint.every=100 percent")
    pair = Pair([a for a in args if "evals" not in a] + ["--config.evals.retrieval.validation.every=1 steps"])
    started(pair, tmp_path, 4)
    pair.all[1].send_signal(signal.SIGTERM)
    results = pair.wait()
    assert [r[0] for r in results] == [75, 75], [r[2][-1500:] for r in results]
    step = int(re.search(r"stopped by SIGTERM: step ([\d,]+)", results[0][1])[1].replace(",", ""))
    assert (tmp_path / "checkpoints" / str(step)).is_dir()


def test_a_killed_process_ends_the_others(tmp_path):
    pair = Pair(command(tmp_path, "--config.steps=4000 steps"))
    started(pair, tmp_path, 4)
    pair.all[1].kill()
    start = time.time()
    (status, _, err), _ = pair.wait()
    assert status == 1 and "process 1 of this job has died" in err, err[-2000:]
    assert time.time() - start < 30


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    results = Pair(command("run"), cwds=[tmp_path / "a", tmp_path / "b"]).wait()
    assert results[1][0] == 1 and "--workdir=run is not shared: process 1 doesn't see there what process 0 writes" in results[1][2]
    assert results[0][0] == 1 and "process 1 of this job has died" in results[0][2]


def called(count, present, timeout=2.0, **changes):
    """The outcome of `roll_call` for each process that is present: None, or its error."""
    address, outcomes = f"127.0.0.1:{free_port()}", {}

    def call(i):
        try:
            outcomes[i] = distributed.roll_call(address, changes.get(f"count{i}", count), changes.get(f"me{i}", i), timeout)
        except (OSError, ValueError) as error:
            outcomes[i] = error
    threads = [threading.Thread(target=call, args=(i,)) for i in present]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return outcomes


def test_the_roll_call_names_who_is_missing():
    assert called(3, [2, 0, 1]) == {0: None, 1: None, 2: None}
    for error in called(4, [0, 2]).values():
        assert isinstance(error, TimeoutError) and str(error) == "processes 1, 3 of 4 did not start within 2.0 s"
    (error,) = called(2, [1]).values()
    assert re.fullmatch(r"process 0 of 2, the coordinator at 127\.0\.0\.1:\d+, did not start within 2\.0 s", str(error))


def test_the_roll_call_refuses_what_does_not_fit():
    for error in called(3, [0, 1, 2], me2=1).values():
        assert isinstance(error, ValueError) and "two processes call themselves 1" in str(error)
    assert "expects 4 processes and process 0 2" in str(called(2, [0, 1], count1=4)[0])


def test_the_roll_call_ignores_strangers():
    address = f"127.0.0.1:{free_port()}"
    result = []
    lead = threading.Thread(target=lambda: result.append(distributed.roll_call(address, 2, 0, 5.0)))
    lead.start()
    for words in (b"GET / HTTP/1.1\r\n", b"mcd_jax -1 2\n", b"\xff" * 600):
        time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":")[-1]))) as stranger:
            stranger.sendall(words)
    distributed.roll_call(address, 2, 1, 5.0)
    lead.join()
    assert result == [None]


def test_half_an_environment_is_refused():
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES set, but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        distributed.join({"JAX_NUM_PROCESSES": "2"})
    full = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}
    with pytest.raises(ValueError, match="JAX_PROCESS_ID=2 must lie from 0 to 1"):
        distributed.join(full)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two' must be a whole number"):
        distributed.join({**full, "JAX_NUM_PROCESSES": "two"})
    assert distributed.join({}) is None and distributed.join({**full, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


LATE = """
import sys, time
from mcd_jax.sharding import distributed
distributed.join()
import jax
distributed.barrier("lunch", 30)
try:
    if jax.process_index() == 0:
        distributed.barrier("dinner", 3)
except TimeoutError as error:
    print(error, flush=True)
distributed.barrier("bed", 30)
distributed.leave(0)
"""


def test_a_barrier_names_who_is_late():
    results = Pair(["-c", LATE]).wait(60)
    assert [r[0] for r in results] == [0, 0], results
    assert results[0][1].strip().splitlines()[-1] == "process 1 did not reach 'dinner' within 3 s of the others"


def test_a_bucket_holds_the_small_files(monkeypatch):
    """fsspec's memory file system stands for a bucket: what is there is fetched, what changes is copied."""
    import fsspec
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/run/metrics.jsonl", b"{}\n")
    fs.pipe("/bucket/run/checkpoints/4/state", b"large")
    with workdir.opened("memory://bucket/run") as place:
        assert place.name == "run" and (place.folder / "metrics.jsonl").read_bytes() == b"{}\n"
        assert not (place.folder / "checkpoints").exists()
        copies = []
        monkeypatch.setattr(place._fs, "put_file", lambda a, b, **_: copies.append(b) or type(fs).put_file(fs, a, b))
        (place.folder / "metrics.jsonl").write_text("{}\n{}\n")
        (place.folder / "tensorboard").mkdir()
        (place.folder / "tensorboard" / "events").write_text("x")
        place.push(soon=False)
        assert not copies
        place.push()
        place.push()
        assert len(copies) == 2
        folder = place.folder
    assert fs.cat("/bucket/run/metrics.jsonl") == b"{}\n{}\n" and fs.cat("/bucket/run/tensorboard/events") == b"x"
    assert not folder.exists()
    with workdir.opened("memory://bucket/run", write=False) as place:
        (place.folder / "metrics.jsonl").write_text("gone")
    assert fs.cat("/bucket/run/metrics.jsonl") == b"{}\n{}\n"
    with pytest.raises(OSError, match=r"nofs://x"):
        workdir.Workdir("nofs://x")
