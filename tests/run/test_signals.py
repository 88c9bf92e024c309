"""The table of docs/signals.md: {signal} x {to the process, to its group} x {phase} x {threads, worker processes}.

Which cells run: every phase with every signal. Whether the group gets it matters only where there are other processes: both ways
are run with workers, and with threads only the process's own. SIGTERM and SIGHUP share every line of code with SIGINT but their
name and number, so a phase that needs seconds to reach takes one of them. Two Ctrl-C are told apart from one only where the first
takes long: while compiled code runs, and while a save waits.
"""
import contextlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from mcd_jax import signals
from mcd_jax.run import atomic, checkpoint

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INT, TERM, HUP, KILL, TWICE = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, "twice"
TRAIN = ["train", f"--config={HERE}/held/config.py", "--workdir=run"]


@pytest.fixture(scope="module")
def forks():
    """Starts commands as `forks.py` says: (asked) -> answer."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    with subprocess.Popen([sys.executable, HERE / "forks.py"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          cwd=ROOT) as process:
        def ask(**asked):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        yield ask
        process.stdin.close()


@pytest.fixture
def cell(forks, tmp_path):
    """(argv, held, sent, group=False, **env) -> (status, what it printed), with what is true of every cell checked."""
    def run(argv, held, sent, group=False, patch="", reached=lambda: True, mark=tmp_path / "mark", **env):
        out = tmp_path / "out.txt"
        pid = forks(argv=argv, cwd=str(tmp_path), out=str(out), patch=patch,
                    env={"HELD": held, "HELD_MARK": str(mark), **env})
        until(lambda: mark.exists() and reached(), lambda: out.read_text()[-3000:], lambda: forks(pid=pid))
        time.sleep(0.2)
        assert not named(pid), "something in /dev/shm has a name"
        for number in ([INT, INT] if sent == TWICE else [sent]):
            (os.killpg if group else os.kill)(pid, number)
            time.sleep(0.3)
        status = until(lambda: forks(pid=pid), lambda: out.read_text()[-3000:])
        said = out.read_text()
        for word in ("Traceback", "Error", "leaked", "Exception", "Fatal", "egmentation"):
            assert word not in said, said[-3000:]
        assert len(re.findall("^stopped (?:by|at once)", said, re.M)) == (sent != KILL), said[-3000:]
        until(lambda: not session(pid), lambda: f"{session(pid)} are left")
        return status, said
    return run


def until(true, why, ended=lambda: None, seconds=120):
    stop = time.monotonic() + seconds
    while (value := true()) is None or value is False or value == []:   # 0 is an exit status
        status = ended()
        assert status is None, f"it ended with {status}: {why()}"
        assert time.monotonic() < stop, why()
        time.sleep(0.05)
    return value


def session(leader):
    """The processes of a session that live."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, sid = path.read_text().rsplit(")", 1)[1].split()[:4]
            if int(sid) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def named(leader):
    """What the processes of a session have in /dev/shm: it would stay when all of them are killed."""
    found = set()
    for pid in session(leader):
        with contextlib.suppress(OSError):
            maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
            found |= {line.split(None, 5)[5] for line in maps.splitlines() if "/dev/shm/" in line}
        with contextlib.suppress(OSError):
            found |= {link for fd in os.scandir(f"/proc/{pid}/fd") if (link := os.readlink(fd.path)).startswith("/dev/shm/")}
    return {path for path in found if not path.endswith("(deleted)")}


def check_ended(sent, status, said):
    """The rule of commands that have nothing to save, and of a run without a state."""
    number = INT if sent == TWICE else sent
    assert status == (-KILL if sent == KILL else 128 + number)
    if sent != KILL:
        line = "stopped at once by a second Ctrl-C" if sent == TWICE else f"stopped by {signals.NAMES[number]}"
        assert said.splitlines()[-1].startswith(line)


def steps(workdir):
    return checkpoint.Checkpoints(workdir, read_only=True).steps()


# ---- training ------------------------------------------------------------------------------------------------------------------


def check_saved(sent, status, said, workdir, least):
    """The rule of a run that has a state."""
    if sent == KILL:
        assert status == -KILL
    elif sent == TWICE:
        assert status == 130
        newest = max(steps(workdir), default=None)
        left = "no checkpoint was saved" if newest is None else f"the newest checkpoint is of step {newest}"
        assert said.splitlines()[-1] == f"stopped at once by a second Ctrl-C; {left}"
    else:
        assert status == 75
        step = re.search(rf"stopped by {signals.NAMES[sent]}: step (\d+) of 1,000 is saved in run; start the same command", said)
        assert max(steps(workdir)) == int(step[1]) >= least
    for step in steps(workdir):   # what counts is whole
        checkpoint.Checkpoints(workdir, read_only=True).leaves(step)


@pytest.mark.full
@pytest.mark.parametrize("held, sent, seconds", [("open", INT, 1), ("open", TERM, 1), ("open", HUP, 1), ("open", KILL, 1),
                                                 ("init", INT, 1), ("init", TWICE, 5), ("init", TERM, 60), ("init", KILL, 1)])
def test_a_run_without_a_state_ends_with_a_line(cell, tmp_path, held, sent, seconds):
    began = time.monotonic()
    check_ended(sent, *cell(TRAIN, held, sent, patch="held.training:hold", HELD_SECONDS=str(seconds)))
    assert time.monotonic() - began < 40   # also while compiled code runs for a minute
    assert not steps(tmp_path / "run")


@pytest.mark.full
@pytest.mark.parametrize("held, sent, processes, group", [
    ("compile", INT, 0, False), ("compile", TWICE, 0, False), ("step", TERM, 0, False), ("step", TWICE, 0, False),
    ("save", HUP, 0, False), ("save", INT, 0, False), ("save", TWICE, 0, False), ("save", KILL, 0, False),
    ("compile", INT, 1, True), ("step", TERM, 1, True), ("save", HUP, 1, True), ("save", TWICE, 1, True), ("save", KILL, 1, True),
    ("save", KILL, 1, False)])
def test_a_run_with_a_state_saves_it(cell, tmp_path, held, sent, processes, group):
    argv = [*TRAIN, f"--config.data.processes={processes}"]
    check_saved(sent, *cell(argv, held, sent, group, "held.training:hold"), tmp_path / "run", 1)


@pytest.mark.full
@pytest.mark.parametrize("sent, processes, group", [
    (INT, 0, False), (TERM, 0, False), (HUP, 0, False), (KILL, 0, False),
    (INT, 1, True), (INT, 2, True), (TERM, 2, True), (HUP, 1, True), (KILL, 1, True), (KILL, 2, False)])
def test_a_run_that_waits_for_input_saves(cell, tmp_path, sent, processes, group):
    # one thread each: several would begin more batches than `good` rows complete
    argv = [*TRAIN, f"--config.data.processes={processes}", "--config.data.workers=1", "--config.data.source.good=60"]
    reached = lambda: steps(tmp_path / "run")
    check_saved(sent, *cell(argv, "input", sent, group, "held.training:hold", reached), tmp_path / "run", 1)


@pytest.mark.full
@pytest.mark.parametrize("sent, processes", [(INT, 1), (TERM, 0), (HUP, 0), (KILL, 1)])
def test_a_run_that_evaluates_saves(cell, tmp_path, sent, processes):
    argv = [*TRAIN, f"--config.data.processes={processes}"]
    check_saved(sent, *cell(argv, "evaluation", sent, True, "held.training:hold"), tmp_path / "run", 2)
    assert not (tmp_path / "run/evals.json").exists()


# ---- other commands ------------------------------------------------------------------------------------------------------------


def parts(folder):
    return [path.name for path in folder.rglob("*.part")]


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(signals.Stopped), atomic.writing(tmp_path / "x") as part:
        part.write_text("half")
        raise signals.Stopped(INT)
    assert not list(tmp_path.iterdir())
    with atomic.writing(tmp_path / "x") as part:
        part.write_text("whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_a_signal_while_a_command_imports_is_one_line(tmp_path):
    (tmp_path / "jax.py").write_text("import pathlib, time\npathlib.Path(__file__).with_suffix('.mark').touch()\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for number in signals.NAMES:
        process = subprocess.Popen([sys.executable, "-m", "mcd_jax", "train"], cwd=tmp_path, env=env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until((tmp_path / "jax.mark").exists, str, process.poll)
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
        assert (process.returncode, said) == (128 + number, f"stopped by {signals.NAMES[number]}\n")
        (tmp_path / "jax.mark").unlink()


@pytest.mark.full
@pytest.mark.parametrize("sent, workers, group", [
    (INT, 1, False), (TERM, 1, False), (KILL, 1, False), (INT, 2, True), (HUP, 2, True), (TERM, 2, False), (KILL, 2, True),
    (KILL, 2, False)])
def test_packing_leaves_whole_shards(cell, tmp_path, sent, workers, group):
    out = tmp_path / "packed"
    argv = ["pack", "--source", "name=held.rows", "good=20", "--out=packed", "--shard_examples=8", f"--workers={workers}"]
    check_ended(sent, *cell(argv, "input", sent, group, reached=(out / "manifest.json").exists))
    assert sent == KILL or not parts(out)
    done = {shard["file"]: shard["bytes"] for shard in json.loads((out / "manifest.json").read_text())["shards"]}
    assert {path.name: path.stat().st_size for path in out.glob("*.array_record")} == done


@pytest.mark.full
@pytest.mark.parametrize("sent, workers, group", [
    (INT, 1, False), (KILL, 1, False), (INT, 2, True), (TERM, 2, False), (HUP, 2, True), (KILL, 2, False)])
def test_indexing_leaves_no_half_index(cell, tmp_path, sent, workers, group):
    mark, over = tmp_path / "mark", threading.Event()

    class Hangs(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Range"] == "bytes=0-0":   # whether it is there
                self.send_response(206)
                self.send_header("Content-Range", "bytes 0-0/4096")
                self.send_header("Content-Length", "1")
                self.end_headers()
                self.wfile.write(b"x")
            else:
                mark.touch()
                over.wait(120)

        def log_message(self, *_):
            pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards = [f"http://127.0.0.1:{server.server_port}/{name}.tar" for name in "ab"]
        check_ended(sent, *cell(["index", *shards, "--out=indexed", f"--workers={workers}"], "", sent, group, mark=mark))
        over.set()
        server.shutdown()
    assert not list((tmp_path / "indexed").iterdir())


@pytest.fixture(scope="module")
def trained(forks, tmp_path_factory):
    """The workdir of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    pid = forks(argv=[*TRAIN, "--config.steps=1 steps"], cwd=str(folder), out=str(folder / "out"), patch="held.training:hold",
                env={})
    assert until(lambda: forks(pid=pid), lambda: (folder / "out").read_text()) == 0, (folder / "out").read_text()
    return folder / "run"


@pytest.mark.full
@pytest.mark.parametrize("sent", [INT, TERM, HUP, KILL])
def test_embedding_leaves_no_half_file(cell, trained, tmp_path, sent):
    argv = ["embed", f"--workdir={trained}", "--out=rows.array_record", "--source", "name=held.rows", "good=110", "--n=50"]
    check_ended(sent, *cell(argv, "input", sent, True))   # image and text of its 50 are read, and ten are written
    assert not (tmp_path / "rows.array_record").exists() and len(parts(tmp_path)) == (sent == KILL)


@pytest.mark.full
def test_evaluating_keeps_the_figures_that_there_were(cell, trained):
    before = (trained / "evals.json").read_text()
    check_ended(INT, *cell(["evaluate", f"--workdir={trained}"], "evaluation", INT, patch="held.training:hold"))
    assert (trained / "evals.json").read_text() == before and not parts(trained)


@pytest.mark.full
def test_a_search_that_serves_ends_with_a_line(cell, trained, tmp_path):
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures/a.png"), np.zeros((16, 16, 3), np.uint8))
    argv = ["search", f"--workdir={trained}", "--images=pictures", "--index=index.npz", "--serve", "--port=0"]
    reached = lambda: "Ctrl-C ends it" in (tmp_path / "out.txt").read_text()
    check_ended(INT, *cell(argv, "", INT, reached=reached, mark=tmp_path / "out.txt"))


@pytest.mark.full
@pytest.mark.parametrize("sent, group", [(INT, True), (TERM, False), (HUP, True), (TWICE, True), (KILL, False)])
def test_a_sweep_ends_its_runs_and_says_how_to_go_on(cell, tmp_path, sent, group):
    polite = "lambda *_: sys.exit(75)" if sent != TWICE else "signal.SIG_IGN"
    (tmp_path / "run.py").write_text(f"import os, signal, sys, time\nsignal.signal(signal.SIGTERM, {polite})\n"
                                     "open('mark', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    (tmp_path / "swept.py").write_text("from held.config import get_config\n\ndef sweep(add):\n    add(seed=1)\n    add(seed=2)\n")
    argv = ["sweep", "--config=swept.py", "--workdir=swept", f"--launcher={sys.executable} -S run.py {{command}}"]
    status, said = cell(argv, "", sent, group)
    run = int((tmp_path / "mark").read_text())
    alive = pathlib.Path(f"/proc/{run}").exists() and run in session(run)
    if sent == KILL:   # its runs are processes of their own and go on; the sweep says so when it is started again
        assert status == -KILL and alive
        os.kill(run, KILL)
        return
    name = signals.NAMES[INT if sent == TWICE else sent]
    assert status == 75 and not alive
    assert said.splitlines()[-1] == f"stopped by {name}: start the same command to go on with the runs that aren't finished"
