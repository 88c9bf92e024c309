"""The lock of a workdir: one writer, stale locks taken over, nothing left behind; in a folder and in a bucket."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid

from pair import CONFIG, ROOT
import pytest

from mcd_jax.run import lock


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch):
    """(workdir, read() -> what lock.json holds or None, write(dict))."""
    monkeypatch.setattr(lock, "PAUSES", (0.05, 0.05))
    if request.param == "folder":
        workdir = str(tmp_path)
    else:
        workdir = f"memory://{uuid.uuid4().hex}/run"
    file = lock._File(workdir)
    return workdir, file.read, file.write


def other(**changes):
    """The lock of a process of another machine."""
    return {"host": "elsewhere", "boot": "b", "space": "s", "pid": 1, "began": 5, "token": "t", "since": 0.0, "beat": time.time(),
            **changes}


def test_a_second_writer_is_told_who_writes(place):
    workdir, read, _ = place
    with lock.held(workdir):
        was = read()
        assert was["pid"] == os.getpid() and was["host"] == lock.machine()["host"]
        sentence = (rf"--workdir={workdir} is in use: process {os.getpid()} on {was['host']} has been writing it since "
                    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait for it or end it, or choose another folder")
        with pytest.raises(lock.Held, match=sentence), lock.held(workdir):
            raise AssertionError
        assert read() == was
    assert read() is None
    with pytest.raises(ZeroDivisionError), lock.held(workdir):
        1 / 0   # noqa: B018
    assert read() is None


def test_a_process_of_this_machine_that_is_gone_holds_nothing(place):
    workdir, read, write = place
    child = subprocess.Popen(["sleep", "100"])
    mine = {**other(), **lock.machine()}
    try:
        began = lock.began(child.pid)
        write({**mine, "pid": child.pid, "began": began})
        with pytest.raises(lock.Held, match=f"process {child.pid} "), lock.held(workdir):
            raise AssertionError
        write({**mine, "pid": child.pid, "began": began - 1})   # another process had this number
        with lock.held(workdir):
            assert read()["pid"] == os.getpid()
    finally:
        child.kill()
    while lock.began(child.pid) is not None:
        time.sleep(0.01)
    write({**mine, "pid": child.pid, "began": began})   # a zombie
    with lock.held(workdir):
        pass
    child.wait()
    write({**mine, "pid": child.pid, "began": began})
    with lock.held(workdir):
        pass


def test_a_process_of_another_machine_is_watched(place):
    workdir, read, write = place
    lines = []
    write(other())
    with lock.held(workdir, lines.append, silent=0.3):   # the pod that was moved here: its old lock is silent
        assert read()["pid"] == os.getpid()
    assert len(lines) == 1 and "is of process 1 on elsewhere: waiting up to 0 s to see whether it still runs" in lines[0]
    write(other(beat=time.time() - 2 * lock.LONG_AGO))
    with lock.held(workdir, lines.append):
        pass
    assert len(lines) == 1   # no wait
    write({})   # cut short
    with lock.held(workdir, lines.append, silent=0.3):
        pass
    write(other())
    timer = threading.Timer(0.1, write, (other(beat=time.time() + 1),))
    timer.start()
    with pytest.raises(lock.Held, match="process 1 on elsewhere"), lock.held(workdir, lines.append, silent=5.0):
        raise AssertionError
    timer.join()
    assert read()["host"] == "elsewhere"   # nothing touched


@pytest.mark.parametrize("text", ["", "null", '{"beat": "x"}', '{"since": "x"}'])
def test_a_file_that_no_run_wrote_is_watched_and_taken(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(tmp_path, lambda text: None, silent=0.1):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_signs_of_life(place, capsys):
    workdir, read, write = place
    with lock.held(workdir, beat=0.05):
        first = read()
        time.sleep(0.3)
        assert read()["beat"] > first["beat"] and read()["token"] == first["token"]
        write(other())
        time.sleep(0.3)
    assert read() == pytest.approx(read()) and read()["host"] == "elsewhere"   # the other's is left
    assert "two processes write this workdir" in capsys.readouterr().err


def test_of_many_at_once_one_gets_it(place):
    workdir, read, write = place
    write({**other(), **lock.machine(), "pid": 2 ** 22 + 1})   # a stale one: all of them take over
    got, refused, ready, end = [], [], threading.Barrier(8), threading.Event()

    def one(me):
        ready.wait()
        try:
            with lock.held(workdir):
                got.append(me)
                end.wait(10)
        except lock.Held:
            refused.append(me)
            if len(refused) == 7:
                end.set()
    threads = [threading.Thread(target=one, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7 and read() is None


def test_one_that_is_slow_to_take_over_removes_no_new_lock(tmp_path, monkeypatch):
    file, held, taken, remove = lock._File(tmp_path), [], threading.Event(), lock._File.remove
    file.write({**other(), **lock.machine(), "pid": 2 ** 22 + 1})

    def slow(self):   # between its look at the stale lock and the removal
        if threading.current_thread() is thread:
            looked.set()
            taken.wait(0.5)
        remove(self)

    def take():
        with contextlib.suppress(lock.Held), lock.held(tmp_path):
            held.append(threading.current_thread().name)
            taken.set()
            time.sleep(1.0)
    monkeypatch.setattr(lock, "PAUSES", (0.05, 0.05))
    monkeypatch.setattr(lock._File, "remove", slow)
    looked, thread = threading.Event(), threading.Thread(target=take)
    thread.start()
    assert looked.wait(10)
    take()
    thread.join()
    assert len(held) == 1


def test_a_killed_holder_leaves_a_lock_that_stops_nobody(tmp_path):
    code = f"import os\nfrom mcd_jax.run import lock\nwith lock.held({str(tmp_path)!r}):\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert json.loads((tmp_path / "lock.json").read_text())["pid"]
    with lock.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.full
def test_the_same_training_twice_at_once(tmp_path):
    """The second one ends with a sentence and touches nothing; after SIGTERM and after SIGKILL the next one goes on."""
    command = [sys.executable, "-m", "mcd_jax.train", f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.evals={}",
               "--config.steps=4000 steps"]
    settings = dict(cwd=ROOT, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def started(step):
        process, end = subprocess.Popen(command, **settings), time.time() + 120
        metrics = tmp_path / "metrics.jsonl"
        while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
            assert process.poll() is None and time.time() < end, process.communicate()
            time.sleep(0.1)
        return process
    first = started(4)
    second = subprocess.run([*command, "--config.seed=1"], timeout=120, **settings)
    assert second.returncode == 1 and re.search(
        rf"error: --workdir=\S+ is in use: process {first.pid} on \S+ has been writing it since \S+ \S+ UTC; ", second.stderr)
    assert "Traceback" not in second.stderr and json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 75 and not (tmp_path / "lock.json").exists()
    reached = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    third = started(reached + 2 - reached % 2)
    third.kill()
    third.communicate(timeout=60)
    assert (tmp_path / "lock.json").exists()
    last = subprocess.run([*command, "--config.steps=2 steps"], timeout=120, **settings)
    assert last.returncode == 0 and "of which none is left at step" in last.stdout, last.stderr
    assert not (tmp_path / "lock.json").exists()
