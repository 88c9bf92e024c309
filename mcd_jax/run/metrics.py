"""What a run tells about itself: metrics.jsonl, TensorBoard, the progress bar; where its time goes; how fast it is."""
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import pathlib
import time

import jax
import numpy as np
import tensorboardX

from mcd_jax.costs import matmul
from mcd_jax.run import atomic, console, small_files

_SHOWN = (("loss", "loss", ".3f"), ("examples_per_sec", "examples/s", ".0f"), ("input_stall", "stall", ".0%"))
STALL, STALL_SECONDS = 0.3, 10.0   # share of the time waiting for input that is too much, measured over so long


class Writer:
    """Writes scalars to `<workdir>/metrics.jsonl`, TensorBoard and stderr. Only the lead process writes anything.

    metrics.jsonl has one line per logged step: a JSON object whose first key is "step", the others sorted; a value that
    isn't finite is null. A second `write` of the newest step adds to its line. When a run resumes at `first_step`, the
    lines of later steps (and a line cut short by a crash) are dropped, so that the file reads like that of a run that never
    stopped; `last` is then the newest line that stays, and `spent` the newest with what a clock has counted.
    """

    def __init__(self, workdir, is_lead=True, total_steps=None, first_step=0, tensorboard=True, wandb="", config=None):
        """
        Args:
          workdir: an existing folder.
          is_lead: False makes every method do nothing.
          total_steps: where the progress bar ends.
          first_step: the restored step, 0 for a new run.
          tensorboard: whether to write event files too, in `<workdir>/tensorboard`.
          wandb: a Weights & Biases project; needs the package. "": none.
          config: a mapping that Weights & Biases shows beside the run.

        Raises:
          ValueError: `wandb` is given but the package isn't installed.
        """
        self.last, self.spent, self._is_lead = {}, {}, is_lead
        self._tensorboard = self._wandb = None
        if not is_lead:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        lines = _kept(path, first_step)
        self.last = lines[-1] if lines else {}
        self.spent = next((line for line in reversed(lines) if "seconds/train" in line), {})
        self._file = _replace(path, lines)
        self._newest = self._file.tell() - (len(_line(lines[-1])) if lines else 0)  # where the newest line begins
        if tensorboard:
            self._tensorboard = _tensorboard(path.parent / "tensorboard", first_step)
        if wandb:
            self._wandb = _wandb(path.parent, wandb, config)
        self._progress = console.Progress(total_steps, unit="step", first=first_step, keep=True)

    def write(self, step, values):
        """Logs {name: number} for `step`, at once and durably; None and non-finite numbers become null.

        Raises:
          ValueError: `step` is older than the newest line.
        """
        if not self._is_lead:
            return
        step, values = int(step), {k: _number(v) for k, v in values.items()}
        if step < self.last.get("step", 0):
            raise ValueError(f"metrics of step {step} come after those of step {self.last['step']}")
        if step == self.last.get("step"):
            self._file.seek(self._newest)
            self._file.truncate()
        else:
            self.last = {}
        self.last = {"step": step, **self.last, **values}
        self._newest = self._file.tell()
        with atomic.room_for(self._file.name):
            self._file.write(_line(self.last))
            self._file.flush()
        finite = {k: v for k, v in values.items() if v is not None}
        for name, value in finite.items() if self._tensorboard else ():
            self._tensorboard.add_scalar(name.replace("@", "_at_"), value, step)
        if self._wandb:
            self._wandb.log(finite, step=step)
        shown = ", ".join(f"{label} {self.last[key]:{form}}" for key, label, form in _SHOWN if self.last.get(key) is not None)
        self._progress.show(step, shown if "loss" in values else None)

    def advance(self, step):
        """Moves the progress to `step`."""
        if not self._is_lead:
            return
        self._progress.reach(step)

    def say(self, text):
        """Prints a line to stderr without breaking the progress bar."""
        if self._is_lead:
            console.say(text)

    def close(self):
        if self._is_lead:
            for sink in (self._file, self._tensorboard, self._progress):
                if sink is not None:
                    sink.close()
            if self._wandb:
                self._wandb.finish()


class Late:
    """Holds the device metrics of one step until the next one has been dispatched, so that reading them stalls nothing.

    Flush before a checkpoint is saved: the run that resumes from it logs nothing older.
    """

    def __init__(self):
        self._held = []

    def push(self, step, metrics):
        """Takes {name: device scalar} of `step`; returns [(step, {name: number})] of the one pushed before it."""
        jax.tree.map(lambda x: x.copy_to_host_async() if isinstance(x, jax.Array) else None, metrics)
        done = self.flush()
        self._held = [(step, metrics)]
        return done

    def flush(self):
        """What is still held, as `push` returns it; blocks until that step is done."""
        held, self._held = self._held, []
        return [(step, {k: np.asarray(v).item() for k, v in jax.device_get(metrics).items()}) for step, metrics in held]


class Clock:
    """Where the seconds of a run go, and how fast it is.

    Parts: "start" (until the first step has compiled and was dispatched), "train", "stall" (waiting for input), "eval" and
    "checkpoint". Time counts for the innermost open part, and as train where none is open. The totals go on after a resume
    when the clock begins with the newest line of the log that has them, so they are the cost of the run's surviving steps: write
    `seconds` with every checkpoint.
    """

    PARTS = ("start", "train", "stall", "eval", "checkpoint")

    def __init__(self, batch_size, flops_per_example=None, peak=None, previous=None, now=time.perf_counter, since=None):
        """
        Args:
          batch_size: examples in one step, over all devices.
          flops_per_example: FLOPs that one example costs the model in training, for the MFU.
          peak: FLOP/s of all devices together, see `peak_flops`.
          previous: a line of the log that `read` or `seconds` went into: Writer.spent.
          now: the time source, in seconds.
          since: when the run began, of `now`; None: right now.
        """
        self._seconds = {part: float((previous or {}).get(f"seconds/{part}") or 0.0) for part in self.PARTS}
        self._batch_size, self._flops, self._peak = batch_size, flops_per_example, peak
        self._now, self._open, self._since = now, ["start"], now() if since is None else since
        self._steps, self._mark, self._looked, self._warned = 0, dict(self._seconds), dict(self._seconds), False

    @contextlib.contextmanager
    def train(self):
        """Context: dispatching one step. The first one, which compiles, belongs to the start and to no rate."""
        first = self._open[0] == "start"
        with self._in("start" if first else "train"):
            yield
        if first:
            self._open[0] = "train"
            self._mark, self._looked = dict(self._seconds), dict(self._seconds)
        else:
            self._steps += 1

    def stall(self):
        """Context: waiting for input. Before the first step it is part of the start."""
        return self._in("start" if self._open[0] == "start" else "stall")

    def eval(self):
        """Context: evaluating. Let the last step finish first, or its time counts here."""
        return self._in("eval")

    def checkpoint(self):
        """Context: blocked by a checkpoint."""
        return self._in("checkpoint")

    def total(self, part="train"):
        """Seconds of the whole run, over restarts; "train" includes the stalls within it."""
        self._book()
        return self._seconds[part] + (self._seconds["stall"] if part == "train" else 0.0)

    def read(self):
        """Rates since the last read, and totals.

        Returns:
          "examples_per_sec" and "input_stall" (share) of train and stall time, "mfu" (share of `peak` that the model's own
          FLOPs use), each None where unknown, and "seconds/<part>" of the whole run.
        """
        self._book()
        loop, stall = self._loop_since(self._mark)
        steps = self._steps
        self._mark, self._steps = dict(self._seconds), 0
        rate = steps * self._batch_size / loop if steps and loop > 0 else None
        known = rate is not None and self._flops and self._peak
        return {"examples_per_sec": rate, "input_stall": None if rate is None else stall / loop,
                "mfu": rate * self._flops / self._peak if known else None,
                **self.seconds()}

    def seconds(self):
        """{"seconds/<part>": of the whole run until now}."""
        self._book()
        return {f"seconds/{part}": seconds for part, seconds in self._seconds.items()}

    def stalling(self):
        """The share of waiting for input in the last STALL_SECONDS or more if it is over STALL, once in a clock's life; or None."""
        self._book()
        loop, stall = self._loop_since(self._looked)
        if self._open[0] == "start" or loop < STALL_SECONDS:
            return None
        self._looked = dict(self._seconds)
        if self._warned or stall <= STALL * loop:
            return None
        self._warned = True
        return stall / loop

    def _loop_since(self, mark):
        """(seconds of training and waiting, those of waiting) since `mark`."""
        train, stall = (self._seconds[part] - mark[part] for part in ("train", "stall"))
        return train + stall, stall

    @contextlib.contextmanager
    def _in(self, part):
        self._book()
        self._open.append(part)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self):
        now = self._now()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


class Profile:
    """A jax.profiler trace of the steps first..last (numbered from 0) in `<workdir>/profile`."""

    def __init__(self, steps, workdir):
        """
        Args:
          steps: () for no trace, or (first, last).
          workdir: an existing folder.

        Raises:
          ValueError: not two steps in order.
        """
        if len(steps) not in (0, 2) or list(steps) != sorted(steps):
            raise ValueError(f"config.profile_steps={tuple(steps)}: write (first, last), or () for no trace")
        self._first, self._last = steps or (math.inf, math.inf)
        self._folder, self._on = str(pathlib.Path(workdir) / "profile"), False

    def step(self, step, state=None):
        """Called before `step` is dispatched, with the state that it starts from: a trace that ends here waits for it."""
        if self._on and step > self._last:
            self.close(state)
        elif not self._on and self._first <= step <= self._last:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def close(self, state=None):
        """Ends an open trace, when what is in `state` is done."""
        if self._on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._on = False


def device_memory() -> int | None:
    """Bytes in use on this process's first device; on CPU the resident memory of the process."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_in_use"] if stats else host_memory()


def host_memory() -> int | None:
    """Resident bytes of this process (Linux; None elsewhere)."""
    path = pathlib.Path("/proc/self/statm")
    return int(path.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def peak_flops() -> float | None:
    """FLOP/s that all devices together can reach: the table of chips, or on CPU a measured float32 matmul. None: unknown."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return matmul.measure() * jax.process_count()
    from mcd_jax.costs import flops
    peak = flops.peak(device.device_kind)
    return peak and peak * jax.device_count()


def _number(value):
    if value is None:
        return None
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None


def _line(values):
    rest = sorted(k for k in values if k != "step")
    return json.dumps({k: values[k] for k in ["step", *rest]}, allow_nan=False) + "\n"


def begin_anew(workdir: str | os.PathLike) -> str:
    """Before a run begins at step 0 though it had saved checkpoints, which are gone: keeps its curve as `metrics-<step>.jsonl`
    (`metrics-<step>-2.jsonl` and so on where there is one).

    Returns a line that says so, or "" where it had saved none.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = small_files.steps(path)
    if not any(line.get("seconds/checkpoint") for line in lines):
        return ""
    names = (f"metrics-{lines[-1]['step']}{f'-{number}' * (number > 1)}.jsonl" for number in itertools.count(1))
    kept = next(place for name in names if not (place := path.with_name(name)).exists())
    path.replace(kept)
    return (f"the run of {lines[-1]['step']:,} steps in {workdir} has no checkpoint: it begins anew; what it logged is kept "
            f"in {kept.name}")


def _kept(path, first_step):
    """The whole lines of an earlier run, up to `first_step`."""
    return [line for line in small_files.steps(path) if line["step"] <= first_step]


def _replace(path, lines):
    """Rewrites the file at once, and returns it open at its end."""
    atomic.write_text(path, "".join(_line(line) for line in lines))
    file = path.open("r+")
    file.seek(0, os.SEEK_END)
    return file


def _tensorboard(folder, first_step):
    """A writer of TensorBoard's files; None, and a line that says so, where the machine lacks the semaphores that it needs."""
    try:
        return tensorboardX.SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None,
                                          filename_suffix=f".{first_step}.{os.getpid()}")
    except OSError as error:
        if error.filename is not None or atomic.is_full(error):   # the folder itself
            raise
        console.say(f"note: no TensorBoard files are written, as this machine has no usable /dev/shm ({error.strerror}); "
                    "config.tensorboard=False leaves them out without this line")
        return None


def _wandb(workdir, project, config):
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ValueError(f"config.wandb={project!r} needs a package that is not installed: pip install wandb") from error
    name = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]  # the same run after a restart
    return wandb.init(project=project, id=name, resume="allow", dir=str(workdir), config=config)
