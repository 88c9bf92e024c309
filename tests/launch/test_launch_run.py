"""launch/ for real: local.sh, worker.sh as on a TPU VM, and the resume loop of tpu.sh with a stand-in for gcloud."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "GKE_", "MCD_", "JAX_", "XLA_"))}

# Behaviours of the stub jobs, by the first letter of the argument for this process: an exit status, or s: sleep until SIGTERM, then
# 75; S: the same, but deaf to SIGTERM.
STUB = textwrap.dedent("""
    import os, signal, sys, time
    kind = sys.argv[1 + int(os.environ.get("JAX_PROCESS_ID", 0))]
    if kind == "s":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    if kind == "S":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID", "NUM_CPU_DEVICES", "DISTRIBUTED")
    print("up", *(os.environ.get(f"JAX_{name}") for name in names), flush=True)
    time.sleep(60) if kind in "sS" else sys.exit(int(kind))
""")


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return [sys.executable, str(path)]


def until(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ================================================================================================================================
# local.sh
# ================================================================================================================================

def local(tmp_path, *arguments, **options):
    """Starts local.sh as a terminal would: bash cannot trap a SIGINT that it was started to ignore, as are the children of these
    tests where they run in the background of a shell."""
    return subprocess.Popen(["env", "--default-signal=INT", ROOT / "launch/local.sh", *arguments], env=ENV, cwd=tmp_path, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_processes_get_their_places_and_a_log_each(tmp_path, stub):
    out, _ = (job := local(tmp_path, "2", "--devices=3", "--", *stub, "0", "0")).communicate(timeout=30)
    assert job.returncode == 0
    lines = sorted(out.splitlines())
    addresses = {line.split()[2] for line in lines}
    assert len(addresses) == 1 and addresses.pop().startswith("127.0.0.1:")
    assert [line.split()[:2] + line.split()[3:6] for line in lines] == [["[0]", "up", "2", "0", "3"], ["[1]", "up", "2", "1", "3"]]
    for i, line in enumerate(lines):
        assert (tmp_path / f"runs/local/{i}.log").read_text().strip() == line.removeprefix(f"[{i}] ")


@pytest.mark.parametrize("kinds, status", [("s7", 7), ("S7", 7), ("75 0", 75), ("75 s", 75), ("75 3", 3), ("0 0", 0)])
def test_exit_status_and_the_end_of_the_others(tmp_path, stub, kinds, status):
    """75 when one was preempted and none failed; a failure wins, whatever the others say after they were told to end."""
    kinds = kinds.split() if " " in kinds else list(kinds)
    start = time.monotonic()
    job = local(tmp_path, "2", "--grace=1", "--logs=logs", "--", *stub, *kinds)
    out, err = job.communicate(timeout=30)
    assert job.returncode == status, err
    assert out.count("up") == 2
    assert (time.monotonic() - start > 0.9) == bool({"s", "S"} & set(kinds))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_pass_through(tmp_path, number):
    code = "import signal,sys,time\nfor s in (2, 15): signal.signal(s, lambda s, _: (print('got', s, flush=True), sys.exit(75)))\n"
    job = local(tmp_path, "2", "--logs=logs", "--", sys.executable, "-c", code + "print('up', flush=True); time.sleep(60)")
    logs = [tmp_path / f"logs/{i}.log" for i in range(2)]
    until(lambda: all(log.exists() and "up" in log.read_text() for log in logs))
    job.send_signal(number)
    out, err = job.communicate(timeout=30)
    assert job.returncode == 75, err
    assert sorted(line for line in out.splitlines() if "got" in line) == [f"[{i}] got {number.value}" for i in range(2)]


# ================================================================================================================================
# worker.sh
# ================================================================================================================================

@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    yield home
    end(home)


def end(home):
    """Kills the job of a home without a word, as the end of its machine would."""
    pid = home / "mcd_job/pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)


def worker(home, *arguments):
    env = {**ENV, "HOME": str(home), "MCD_LOCKFILE": str(home / "lock"), "MCD_STOP_GRACE": "1"}
    return subprocess.run([ROOT / "launch/worker.sh", *arguments], env=env, capture_output=True, text=True, timeout=30, cwd=home)


def state(home):
    return worker(home, "status").stdout.split()[2:4]


def test_worker_runs_a_job_detached_and_tells_its_end(home, stub):
    assert state(home) == ["none", "0"]
    assert worker(home, "start", "a", *stub, "3").returncode == 0
    done = worker(home, "follow", "100")
    assert done.returncode == 3 and "up None None None None auto" in done.stdout and "exit status 3" in done.stdout
    assert state(home) == ["exited", "3"]


def test_start_ends_the_previous_job_and_clears_the_lock(home, stub):
    log = home / "mcd_job/log"
    worker(home, "start", "a", *stub, "s")
    until(lambda: "up" in log.read_text())
    (home / "lock").touch()
    assert worker(home, "start", "a", *stub, "s").stderr.strip().endswith("a is started already")   # an ssh that was repeated
    assert (home / "lock").exists() and log.read_text().count("up") == 1
    worker(home, "start", "b", *stub, "s")
    assert not (home / "lock").exists() and "exit status 75" in log.read_text()
    until(lambda: log.read_text().count("up") == 2)
    assert state(home) == ["running", "0"]
    worker(home, "stop")
    assert state(home) == ["exited", "75"]


def test_a_job_that_is_deaf_or_vanished(home, stub):
    worker(home, "start", "a", *stub, "S")
    until(lambda: "up" in (home / "mcd_job/log").read_text())
    assert worker(home, "stop").returncode == 0
    until(lambda: state(home) == ["lost", "0"])
    assert worker(home, "follow", "5").returncode == 1


# ================================================================================================================================
# tpu.sh watch
# ================================================================================================================================

# One worker in $FAKE/home; the state of the resource is the text of $FAKE/state, and no file means there is none.
GCLOUD = textwrap.dedent("""
    import os, pathlib, shutil, signal, subprocess, sys
    fake, verb = pathlib.Path(os.environ["FAKE"]), sys.argv[4]
    home, state = fake / "home", fake / "state"
    flags = dict(a.split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
    text = state.read_text() if state.exists() else ""
    with open(fake / "calls", "a") as log:
        print(verb, *flags.get("--command", "").split()[1:3], file=log)
    if verb == "describe":
        sys.exit(print(text) if text else "ERROR: NOT_FOUND: no such resource")
    if verb == "create":
        if (fake / "refuse").exists():
            sys.exit("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has been exceeded")
        home.mkdir()
        state.write_text("READY")
    if verb == "delete":
        try:
            os.killpg(int((home / "mcd_job/pid").read_text().split()[0]), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        shutil.rmtree(home)
        state.unlink()
    if verb == "scp":
        shutil.copy(sys.argv[5], home / "mcd_jax.tar.gz")
    if verb == "ssh":
        if "worker.sh setup" in flags["--command"]:
            sys.exit(print("mcd_packages here 1"))
        sys.exit(subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env={**os.environ, "HOME": str(home)}).returncode)
""")

# The job of the n-th start does what the n-th word says.
JOB = textwrap.dedent("""
    import os, pathlib, sys, time
    fake = pathlib.Path(os.environ["FAKE"])
    kind = sys.argv[1:][len((fake / "starts").read_text()) if (fake / "starts").exists() else 0]
    with open(fake / "starts", "a") as log:
        log.write("x")
    if kind == "preempted":
        (fake / "state").write_text("PREEMPTED")
    if kind in ("preempted", "hangs"):
        time.sleep(60)
    sys.exit(int(kind))
""")


@pytest.fixture
def watch(tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "job.py").write_text(JOB)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcloud").write_text(f"#!{sys.executable}\n{GCLOUD}")
    (tmp_path / "bin/gcloud").chmod(0o755)
    env = {**ENV, "FAKE": str(tmp_path), "PATH": f"{tmp_path}/bin:{ENV['PATH']}", "MCD_LOCKFILE": f"{tmp_path}/lock",
           "MCD_STOP_GRACE": "1"}

    def watch(*kinds, flags=()):
        command = [checkout / "launch/tpu.sh", "watch", "--name=mcd", "--zone=z", "--project=p", "--accelerator=v5e-8", "--poll=0"]
        done = subprocess.run([*command, *flags, "--", sys.executable, "job.py", *kinds], env=env, capture_output=True, text=True,
                              timeout=60, cwd=tmp_path)
        calls = (tmp_path / "calls").read_text().splitlines()
        starts = len((tmp_path / "starts").read_text()) if (tmp_path / "starts").exists() else 0
        return done, calls, starts

    yield watch
    end(tmp_path / "home")


def test_watch_brings_a_job_through_preemption_and_75_to_its_end(watch):
    done, calls, starts = watch("preempted", "75", "0")
    assert done.returncode == 0, done.stderr
    assert starts == 3 and "the job has finished" in done.stderr
    steps = [c for c in calls if c not in ("describe", "ssh [ -f")]
    deploy = ["scp", "ssh -rf mcd_jax.new", "ssh mcd_jax/launch/worker.sh setup", "ssh mcd_jax/launch/worker.sh start"]
    stop = ["ssh mcd_jax/launch/worker.sh stop"]
    assert steps == ["create", *deploy, "delete", "create", *deploy, *stop, *deploy], done.stderr


def test_watch_gives_up_after_some_failures_with_the_status_of_the_job(watch):
    done, calls, starts = watch("4", "5", "0", flags=["--tries=2"])
    assert (done.returncode, starts) == (5, 2)
    assert "status 4 (1 of 2)" in done.stderr and "exit status 5" in done.stderr and "delete" not in calls


def test_watch_starts_a_job_again_that_says_nothing(watch):
    done, _, starts = watch("hangs", "0", flags=["--stall=2"])
    assert (done.returncode, starts) == (0, 2) and "no output for 2 s" in done.stderr


def test_watch_does_not_wait_for_quota(watch, tmp_path):
    (tmp_path / "refuse").touch()
    done, calls, _ = watch("0")
    assert done.returncode == 2 and "quota" in done.stderr and calls == ["describe", "create"]
