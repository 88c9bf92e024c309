"""Runs the runs of a sweep, and tells from their folders how far they are.

A run's folder is what `mcd_jax.train` leaves there, and two files of the sweep: `log.txt` (all that its processes print) and
`sweep.json` (how the last of them ended).
"""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

from mcd_jax import duration, report, signals
from mcd_jax.data import sources
from mcd_jax.html import flat
from mcd_jax.run import atomic, checkpoint, small_files
from mcd_jax.run.preemption import PREEMPTED
from mcd_jax.sweep import plan

TRIES = 10   # starts of a run that ends as preempted
# what may differ between a run's config.json and the sweep's config without making it another run
_ASIDE = ("evals", "total_steps", "batch_shapes", "checkpoint", "log_every", "profile_steps", "tensorboard", "wandb",
          "data.workers", "data.prefetch", "data.cache", "data.max_bad")


# ---- what the folders say ------------------------------------------------------------------------------------------------------


def status(run):
    """(status, sentence) of a run: "finished", "running", "preempted", "stopped", "handed over", "failed" or "not started".

    Finished is a run whose process ended with 0, or whose files say that the last step is saved and evaluated (so that runs by hand
    or through a launcher count), as long as the evaluations that its config.json names are those asked for.
    """
    left = _record(run)
    state = left.get("status") or ("stopped" if (run.workdir / "config.json").exists() else "not started")
    if busy(run):
        return "running", ""
    if state == "finished" or complete(run):
        other = any(key.startswith("evals") for key in differences(run))
        return ("stopped", "its evaluations are not those of this sweep") if other else ("finished", "")
    return "stopped" if state == "running" else state, left.get("error") or ""


def complete(run):
    """Whether the last step is saved, and logged with a figure of every evaluation."""
    total = total_steps(run.config)
    lines = report.lines(run.workdir / "metrics.jsonl")
    if not total or not lines or lines[-1]["step"] != total:
        return False
    evals = [f"{module}/{name}/" for module, own in (run.config.get("evals") or {}).items()
             for name, settings in (own or {}).items() if settings is not None]
    return (all(any(key.startswith(prefix) for key in lines[-1]) for prefix in evals)
            and checkpoint.Checkpoints(run.workdir, read_only=True).latest() == total)


def total_steps(config):
    """The steps that `config.steps` means; 0 where it is in epochs of data that can't be opened here."""
    try:
        examples = len(sources.open(config["data"]["source"])) if "epoch" in str(config["steps"]) else 1
        return duration.steps(config["steps"], batch_size=config["batch_size"], examples=examples)
    except (ValueError, OSError, KeyError):
        return 0


def differences(run):
    """{key: (value in the folder's config.json, value asked for)}; empty where there is no config.json."""
    saved = small_files.read_or(run.workdir / "config.json", {}, fits=lambda found: isinstance(found.get("model"), dict))
    if not saved:
        return {}
    if "inputs" not in run.config["model"]:
        saved["model"].pop("inputs", None)   # train adds what the data decides
    was, asked = flat(saved), flat(run.config)
    return {key: (was.get(key), asked.get(key)) for key in sorted({*was, *asked}) if was.get(key) != asked.get(key)}


def refuse_others(runs):
    """Raises a ValueError where a folder belongs to a run of another config, or to one that another process is running now.

    A run is never continued with another config: its first steps would be of one and its last of the other, and a finished one
    would be shown as what it is not. Keys that don't reach the training are free; with other evaluations it is evaluated again.
    """
    for run in runs:
        for key, (was, asked) in differences(run).items():
            if not key.startswith(_ASIDE):
                raise ValueError(f"{run.workdir} holds a run with {key}={was!r}, and this sweep asks for {asked!r}: choose another "
                                 "--workdir, or delete that folder to run it anew")
        if busy(run):
            raise ValueError(f"{run.workdir} is in use: a process of an earlier sweep is still running it; end it, or wait for it")


def busy(run):
    """Whether a process holds the run's log: they inherit its lock, so it outlives a sweep that was killed."""
    try:
        with open(run.workdir / "log.txt", "rb") as log:
            return not _lock(log)
    except FileNotFoundError:
        return False


def _lock(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass   # a file system without locks
    return True


def _record(run):
    return small_files.read_or(run.workdir / "sweep.json", {}, fits=lambda found: isinstance(found.get("status", ""), str))


def _note(run, state, error=""):
    atomic.write_text(run.workdir / "sweep.json",
                      json.dumps({"status": state, "error": error, "overrides": run.overrides}, indent=1) + "\n")


# ---- running -------------------------------------------------------------------------------------------------------------------


def execute(runs, parallel=1, launcher="", relaunch=False, say=print, tries=TRIES, stop=None):
    """Runs what isn't finished, `parallel` at a time; a run that fails doesn't end the others.

    Args:
      runs: of `plan`. parallel: processes at a time. launcher: a template of `plan.launch`, or "" to run here.
      relaunch: also start what was handed to a launcher earlier and isn't finished: it may still be waiting there.
      say: called with a line when a run begins or ends.
      tries: starts of a run whose process says that it was preempted.
      stop: of `interruptible`: once it has an element, nothing new is started and the children get SIGTERM; SIGKILL for a second
        SIGINT.

    Returns:
      {name: (status, sentence)} of all runs.
    """
    stop = [] if stop is None else stop
    states = {run.name: status(run) for run in runs}
    skip = ("finished",) if relaunch else ("finished", "handed over")
    waiting = [(run, 1) for run in runs if states[run.name][0] not in skip]
    for run in runs:
        if states[run.name][0] in skip:
            say(f"{run.name}: {states[run.name][0]} already")
    running, sent = [], 0
    try:
        while running or (waiting and not stop):
            while waiting and len(running) < parallel and not stop:
                run, attempt = waiting.pop(0)
                try:
                    running.append((run, attempt, time.monotonic(), *_start(run, attempt, launcher)))
                    say(f"{run.name}: start {attempt}, {run.workdir}/log.txt")
                except OSError as error:
                    states[run.name] = "failed", f"could not be started: {error}"
                    say(f"{run.name}: {' '.join(states[run.name])}")
            while sent < len(stop):   # each signal that the sweep got, once
                sent += 1
                _signal(running, signal.SIGKILL if _hard(stop[:sent]) else signal.SIGTERM)
            done = [item for item in running if item[3].poll() is not None]
            running = [item for item in running if item not in done]
            for run, attempt, began, process, offset in done:
                state, error = outcome(process.returncode, _tail(run, offset), bool(stop), attempt >= tries)
                if state == "again":
                    state = "preempted"
                    waiting.insert(0, (run, attempt + 1))
                elif state == "finished" and launcher and not complete(run):
                    state = "handed over"
                _note(run, state, error)
                states[run.name] = state, error
                say(f"{run.name}: {state} after {time.monotonic() - began:.0f} s" + (f": {error}" if error else ""))
            if not done:
                time.sleep(0.1)
    finally:   # only an error of the sweep itself leaves children behind
        _signal(running, signal.SIGTERM)
    return states


def outcome(code, text, stopping, last):
    """(status, sentence) of a process that ended with `code` and printed `text`; "again" asks for another start."""
    if code == 0:
        return "finished", ""
    if code == PREEMPTED:
        return ("stopped", "") if stopping else ("preempted", "again and again; no further try") if last else ("again", "")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    said = complaint(text)
    return "stopped" if stopping else "failed", f"{said} ({how})" if said else how


def complaint(text):
    """The sentence in which a process says why it failed: the last one that begins with "error", or else its last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    own = [line for line in lines if re.match(r"error\b", line)]
    return (own or lines or [""])[-1][:500]


def _signal(running, number):
    for process in [item[3] for item in running]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _hard(asked):
    """Whether the newest of the signals asked for an end at once."""
    return len(asked) > 1 and asked[-1] == signal.SIGINT


def _start(run, attempt, launcher):
    """(process, where its output begins in log.txt). Its group is its own: Ctrl-C reaches the sweep alone, which passes it on."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    argv = plan.launch(launcher, run) if launcher else run.command
    with open(run.workdir / "log.txt", "ab") as log:
        if not any(_lock(log) or time.sleep(0.2) for _ in range(5)):   # whoever only looks lets go at once
            raise OSError("another process is running it")
        log.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} start {attempt}: {shlex.join(argv)}\n".encode())
        log.flush()
        _note(run, "running")
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "PYTHONUNBUFFERED": "1"})   # lines in the order in which they were printed
        return process, log.tell()


def _tail(run, offset):
    with open(run.workdir / "log.txt", "rb") as log:
        log.seek(max(offset, log.seek(0, os.SEEK_END) - 20_000))
        return log.read().decode(errors="replace")


@contextlib.contextmanager
def interruptible(say=print):
    """Context: a list that gets an element for each SIGINT, SIGTERM or SIGHUP, instead of what these do."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        say(f"{signals.NAMES[number]}: the runs are {'killed' if _hard(asked) else 'asked to save and end'}")
    with signals.handled(ask):
        yield asked


def names_left(workdir, runs):
    """Folders of earlier runs in `workdir` that this sweep doesn't have, sorted by name."""
    known = {run.name for run in runs}
    return sorted(path.parent.name for path in pathlib.Path(workdir).glob("*/sweep.json") if path.parent.name not in known)
