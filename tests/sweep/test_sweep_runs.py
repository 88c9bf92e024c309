"""What becomes of a sweep's runs: those that fail, end early, are done already or belong to another; and the command itself."""
import csv
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from sweeps import MRR, ROOT, config, fake, leave, planned

from mcd_jax.sweep import runs

# ---- running -------------------------------------------------------------------------------------------------------------------


def test_a_failing_run_does_not_end_the_others_and_finished_ones_are_not_run_again(tmp_path):
    good, bad, crash, late, never, gone = planned(tmp_path, "for s in range(6): add(seed=s)")
    once = f"p = {str(tmp_path / 'tries')!r}; n = os.path.exists(p) and os.path.getsize(p) or 0; open(p, 'a').write('x')"
    fakes = [fake(good, "print('fine')"),
             fake(bad, "print('step 1')", "print('error after 3 s: no <data>', file=sys.stderr)", "print('bye')", "sys.exit(1)"),
             fake(crash, "os.kill(os.getpid(), signal.SIGKILL)"), fake(late, once, "sys.exit(75 if n < 2 else 0)"),
             fake(never, "sys.exit(75)"), gone._replace(command=("/no/such/program",))]
    said = []
    states = runs.execute(fakes, parallel=3, say=said.append, tries=3)
    assert states == {"seed=0": ("finished", ""), "seed=1": ("failed", "error after 3 s: no <data> (exit status 1)"),
                      "seed=2": ("failed", states["seed=2"][1]), "seed=3": ("finished", ""),
                      "seed=4": ("preempted", "again and again; no further try"), "seed=5": ("failed", states["seed=5"][1])}
    assert "killed by SIGKILL" in states["seed=2"][1] and "No such file" in states["seed=5"][1]
    assert (tmp_path / "tries").read_text() == "xxx" and (never.workdir / "log.txt").read_text().count("--- ") == 3
    assert {run.name: runs.status(run)[0] for run in fakes[:5]} == {name: states[name][0] for name in list(states)[:5]}
    assert "step 1\nerror after 3 s: no <data>\nbye\n" in (bad.workdir / "log.txt").read_text()
    assert runs.execute([*fakes[:1], fake(bad), *fakes[3:4]], say=said.append) == {f"seed={s}": ("finished", "") for s in (0, 1, 3)}
    assert (good.workdir / "log.txt").read_text().count("--- ") == 1 and (tmp_path / "tries").read_text() == "xxx"
    assert (bad.workdir / "log.txt").read_text().count("--- ") == 2 and "seed=0: finished already" in said


def test_the_last_words_of_a_failure():
    assert runs.complaint("error after 1 s: a\n  \nb\n") == "error after 1 s: a"
    assert runs.complaint("Traceback:\n 10%|#\r 20%|##\nKeyError: 'x'\n\n") == "KeyError: 'x'" and runs.complaint(" \n") == ""
    assert runs.outcome(-11, "", False, False) == ("failed", "killed by SIGSEGV")
    assert runs.outcome(75, "x", True, False) == ("stopped", "") and runs.outcome(-15, "", True, False)[0] == "stopped"


def test_as_many_run_at_a_time_as_asked(tmp_path):
    mark = f"open({str(tmp_path / 'log')!r}, 'a').write"
    found = [fake(run, f"{mark}('+')", "time.sleep(0.4)", f"{mark}('-')")
             for run in planned(tmp_path, "for s in range(4): add(seed=s)")]
    runs.execute(found, parallel=2, say=str)
    level, most = 0, 0
    for sign in (tmp_path / "log").read_text():
        level += 1 if sign == "+" else -1
        most = max(most, level)
    assert most == 2 and level == 0


def test_a_signal_reaches_the_runs_and_starts_no_other(tmp_path):
    wait = ("print('ready', flush=True)", "time.sleep(60)")
    first, second, third = planned(tmp_path, "for s in range(3): add(seed=s)")
    # a second signal while the interpreter ends would kill it: handlers in Python are gone by then
    polite = fake(first, "signal.signal(signal.SIGTERM, lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_IGN), sys.exit(75)))",
                  *wait)
    stubborn = fake(second, "signal.signal(signal.SIGTERM, signal.SIG_IGN)", *wait)
    stop = []

    def ask():   # one Ctrl-C and one SIGTERM, then a second Ctrl-C when the polite one has ended
        until(lambda: all(said(run, "log.txt", "\nready") for run in (first, second)))
        stop.extend([signal.SIGINT, signal.SIGTERM])
        until(lambda: said(first, "sweep.json", "stopped"))
        time.sleep(0.3)
        alive.append(runs.busy(second))
        stop.append(signal.SIGINT)
    alive, thread = [], threading.Thread(target=ask)
    thread.start()
    states = runs.execute([polite, stubborn, fake(third)], parallel=2, say=str, stop=stop)
    thread.join()
    assert states["seed=0"] == ("stopped", "") and states["seed=2"] == ("not started", "")
    assert alive == [True] and states["seed=1"][0] == "stopped" and "SIGKILL" in states["seed=1"][1]


def until(true):
    stop = time.time() + 60
    while not true() and time.time() < stop:
        time.sleep(0.02)


def said(run, file, words):
    return (run.workdir / file).exists() and words in (run.workdir / file).read_text()


def test_a_folder_in_use_is_left_alone(tmp_path):
    run, = planned(tmp_path, "add()")
    run.workdir.mkdir(parents=True)
    with open(run.workdir / "log.txt", "ab") as log:
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], stdout=log)
        assert runs._lock(log)
    try:   # the child of a sweep that was killed still holds the lock
        assert runs.status(run) == ("running", "")
        with pytest.raises(ValueError, match="is in use"):
            runs.refuse_others([run])
        assert "another process is running it" in runs.execute([fake(run)], say=str)["base"][1]
    finally:
        child.kill()
        child.wait()
    assert runs.status(run)[0] == "not started" and runs.refuse_others([run]) is None


def test_a_launcher_that_returns_early_hands_over_and_is_not_asked_twice(tmp_path):
    found = planned(tmp_path, "add(seed=1)")
    template = f"{sys.executable} -S -c 'import sys; print(sys.argv[-1])' {{command}}"
    for again, starts in ((False, 1), (False, 1), (True, 2)):
        assert runs.execute(found, launcher=template, relaunch=again, say=str) == {"seed=1": ("handed over", "")}
        log = (found[0].workdir / "log.txt").read_text()
        assert log.count("--- ") == log.count("\n--config.seed=1\n") == starts
    leave(found[0], complete=True)
    assert runs.execute(found, launcher=template, say=str)["seed=1"][0] == "finished"


# ---- what the folders say ------------------------------------------------------------------------------------------------------


def test_finished_is_the_last_step_saved_and_evaluated(tmp_path):
    run, = planned(tmp_path, "add(seed=1)")
    assert runs.status(run) == ("not started", "")
    leave(run)
    assert runs.status(run) == ("stopped", "")
    leave(run, complete=True)
    assert runs.status(run) == ("finished", "")
    (run.workdir / "checkpoints/24/commit_success.txt").unlink()   # killed while it saved
    assert runs.status(run)[0] == "stopped"
    leave(run, complete=True)
    lines = (run.workdir / "metrics.jsonl").read_text().replace(MRR.rpartition("/")[0], "retrieval/other/x")
    (run.workdir / "metrics.jsonl").write_text(lines)              # preempted before its last evaluation
    assert runs.status(run)[0] == "stopped"
    epochs, = planned(tmp_path, "add(seed=2, steps='2 epochs')")   # 276 examples in batches of 16
    assert runs.total_steps(epochs.config) == 34 and runs.total_steps({**epochs.config, "data": {"source": {"name": "x"}}}) == 0


def test_a_folder_of_another_config_is_refused_but_other_evaluations_are_made_up_for(tmp_path):
    run, = planned(tmp_path, "add(seed=1)")
    leave(run, complete=True, changes={"log_every": 7, "checkpoint": {"every": "1 step"}})
    assert runs.refuse_others([run]) is None and runs.status(run)[0] == "finished"
    leave(run, complete=True, changes={"evals": {"retrieval": {"validation": {"weights_from": "params"}}}})
    assert runs.refuse_others([run]) is None and runs.status(run) == ("stopped", "its evaluations are not those of this sweep")
    leave(run, changes={"optimizer": {**run.config["optimizer"], "lr": 0.5}})
    with pytest.raises(ValueError, match=r"seed=1 holds a run with optimizer.lr=0.5, and this sweep asks for 0.01: choose another"):
        runs.refuse_others([run])


# ---- the command ---------------------------------------------------------------------------------------------------------------


def command(path, workdir, *more, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT),
                   **environment}
    return dict(args=[sys.executable, "-m", "mcd_jax.sweep", f"--config={path}", f"--workdir={workdir}", *more], cwd=ROOT,
                env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(*args, **environment):
    return subprocess.run(**command(*args, **environment), timeout=300)


@pytest.mark.full
def test_a_sweep_of_real_runs_survives_a_failure_and_goes_on_where_it_stopped(tmp_path):
    """One run trains, one fails when its data is opened; the second time only that one is started. No device is touched by the
    sweep itself: with a platform that doesn't exist it still plans and tabulates."""
    path, out = config(tmp_path, "add({'data.source.split': 'trian'})\nadd({'optimizer.lr': 0.02})"), tmp_path / "out"
    short = ("--config.steps=4 steps", "--config.log_every=1")
    for starts in (1, 2):
        done = call(path, out, *short)
        assert done.returncode == 1, done.stderr[-2000:]
        lines = done.stdout.splitlines()
        assert len(lines) > 2 and "lr=0.02" in lines[-3] and "choose from train, validation" in lines[-2], done.stdout + done.stderr
        assert (out / "data.source.split=trian" / "log.txt").read_text().count("--- ") == starts
        log = (out / "lr=0.02" / "log.txt").read_text()
        assert log.count("--- ") == 1 and "params_checksum=" in log and ("finished already" in done.stdout) == (starts == 2)
        (out / "lr=0.02" / "sweep.json").unlink(missing_ok=True)   # what train leaves is enough
        if starts == 1:
            rows = list(csv.DictReader((out / "sweep.csv").open()))
            (out / "sweep.csv").unlink()
    assert [row["status"] for row in rows] == ["finished", "failed"] and 0 < float(rows[0][MRR]) < 1 and rows[0]["step"] == "4"
    for extra, status in (("--only_table", 1), ("--dry_run", 0)):
        done = call(path, out, *short, extra, JAX_PLATFORMS="none_such")
        assert done.returncode == status, done.stderr[-2000:]
    assert done.stdout.splitlines()[1] == "# lr=0.02 is finished" and "--config.data.source.split=trian" in done.stdout
    assert next(csv.DictReader((out / "sweep.csv").open()))["name"] == "lr=0.02"
    assert (out / "data.source.split=trian" / "log.txt").read_text().count("--- ") == 2   # neither started anything


def test_sigterm_to_the_command_ends_its_runs_writes_the_tables_and_exits_75(tmp_path):
    path, out = config(tmp_path, "add(seed=1)\nadd(seed=2)"), tmp_path / "out"
    script = tmp_path / "slow.py"
    script.write_text("import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
                      "print('ready')\ntime.sleep(90)")
    process = subprocess.Popen(**command(path, out, f"--launcher={sys.executable} -S {script} {{command}}"))
    stop, log = time.time() + 90, out / "seed=1" / "log.txt"
    while not (log.exists() and "\nready" in log.read_text()) and time.time() < stop and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 75, stderr[-2000:]
    assert stdout.splitlines()[-1] == "stopped by SIGTERM: start the same command to go on with the runs that aren't finished"
    assert [row["status"] for row in csv.DictReader((out / "sweep.csv").open())] == ["stopped", "not started"]


def test_a_launcher_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    done = call(config(tmp_path, "add(seed=1)"), tmp_path / "out", "--launcher=no_such_program {command}")
    assert done.returncode == 1 and done.stderr.strip() == "error: --launcher: there is no program 'no_such_program' here"
    assert not (tmp_path / "out").exists()
