"""Checkpoints: asynchronous, atomic, verified, restored on any topology.

One checkpoint is `<workdir>/checkpoints/<step>/`: the state, and a manifest with every leaf's shape, dtype and fingerprint.
"""
import errno
import hashlib
import json
import math
import os
import re

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mcd_jax.run import arrays_on_disk, atomic, fingerprint, leaves, steps
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.run.leaves import MismatchError as MismatchError
from mcd_jax.run.leaves import checksum as checksum
from mcd_jax.sharding import distributed

_COMMITTED = "commit_success.txt"  # orbax writes it last; without it a step doesn't count


class Checkpoints:
    """The checkpoints of one run, written by one `train` and read by any number of others at the same time.

    Built on orbax's AsyncCheckpointer: its CheckpointManager polls jax's preemption sync point with its own counter (from
    a background thread too), which breaks whoever polls it during evaluation, and the v1 API is experimental and reports
    every mismatch as "incompatible handler". Which steps to keep and to trust is therefore decided here.
    """

    def __init__(self, workdir, every=0, keep=2, best=None, read_only=False):
        """
        Args:
          workdir: folder or bucket path of the run.
          every: `due(step)` is true every so many steps; 0 never.
          keep: how many of the newest checkpoints stay; older ones go when the next save has been committed.
          best: name of a score; the checkpoint with its largest value stays too ("-name": the smallest).
          read_only: never move, delete or write anything (a reader beside a run).

        Raises:
          ValueError: `keep` is less than 1.
        """
        if keep < 1:
            raise ValueError(f"config.checkpoint.keep={keep}: at least 1 checkpoint has to stay")
        folder = epath.Path(workdir)   # resolve() would make a bucket's path one of this machine
        self.directory = (folder if workdir_lib.is_remote(workdir) else folder.expanduser().resolve()) / workdir_lib.CHECKPOINTS
        self._every, self._keep, self._best, self._read_only = every, keep, best, read_only
        self._broken = {}  # step -> why it can't be read
        self._mine = set()  # steps that hold exactly the states of this run
        self._scores = {}  # step -> value of the best score, or None
        self._saving, self._number, self._need = None, None, 0   # the step that is being saved, the newest that was, its bytes
        self._checkpointer = None

    def due(self, step):
        """Whether `every` asks for a checkpoint at this step."""
        return bool(self._every) and step % self._every == 0

    def steps(self):
        """The committed steps, sorted, without those that a restore found broken.

        Raises:
          PermissionError: the folder of one may not be read; an older one would be taken without a word.
        """
        return [s for s in self._folders() if s not in self._broken and _is_file(self.directory / str(s) / _COMMITTED)]

    def check_room(self, state, step=None):
        """Compares the bytes of `state` (arrays or shapes) with what the disk has left; called by every process.

        Raises:
          atomic.Full: there is not enough.
        """
        if workdir_lib.is_remote(self.directory):
            return
        need, left = leaves.size(state), atomic.free(self.directory)
        left = int(distributed.together("-1" if left is None else str(left), f"room for the checkpoint of step {step}"))
        if 0 <= left < need:
            which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise atomic.Full(f"{which} can't be saved: {self._full(need)}")

    def _full(self, need, said="No space left on device"):
        there = self.steps()
        beside = (f" beside step{'s' * (len(there) > 1)} {', '.join(map(str, there))}: with config.checkpoint.keep={self._keep} "
                  "a new one has to be whole before an older one goes" if there else "")
        return atomic.full(self.directory.parent, said, need, beside)

    def latest(self):
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def best(self):
        """The committed step with the best score, or None where no checkpoint has one (the newest of equals)."""
        scored = [(self._score(s), s) for s in self.steps()]
        return max(((v, s) for v, s in scored if v is not None), default=(None, None))[1]

    def save(self, step, state, scores=None):
        """Starts to save `state` as `step`; returns when the arrays may be donated. A step already saved is left alone.

        Waits for the save before it, whose error it raises. Called by every process.
        """
        self.wait()
        step = int(step)
        if step in self._mine:
            return
        self._clean()
        if self._checkpointer is None:
            self._checkpointer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(),
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False))
        scores = {k: float(v) for k, v in (scores or {}).items() if v is not None and math.isfinite(v)}
        if self._best and scores and self._best.removeprefix("-") not in scores:
            logging.warning("config.checkpoint.best=%r is none of the scores at step %d: %s",
                            self._best, step, ", ".join(scores))
        manifest = {"leaves": leaves.table(state), "fingerprints": fingerprint.fingerprints(state), "scores": scores}
        manifest = json.loads(json.dumps(manifest))  # what a reader will see
        self.check_room(state, step)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state),
                                  manifest=ocp.args.JsonSave({**manifest, "sha256": _digest(manifest)}))
        self._saving = self._number = step
        self._need = leaves.size(state)
        self._attempt(self._checkpointer.save, self.directory / str(step), args=args, force=True)

    def check(self):
        """Raises OSError when the save under way has failed; call it every step (it costs nothing)."""
        if self._checkpointer is not None:
            self._attempt(self._checkpointer.check_for_errors)

    def wait(self):
        """Blocks until the save under way is committed and has been opened, then deletes the checkpoints that needn't stay."""
        if self._checkpointer is None or self._saving is None:
            return
        self._attempt(self._checkpointer.wait_until_finished)
        if jax.process_index() == 0:
            self._attempt(self._open)
        self._mine.add(self._saving)
        self._scores.pop(self._saving, None)
        self._saving = None
        self._prune()

    def close(self):
        """Waits, then frees the background threads."""
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def restore(self, abstract, step=None, part="", without=(), besides=""):
        """The newest readable state, or exactly that of `step`.

        A checkpoint that is unfinished, damaged or whose arrays differ from the fingerprints taken when it was saved is
        passed over with a warning, and set aside as `<step>.broken` unless `read_only`.

        Args:
          abstract: jax.ShapeDtypeStructs with shardings (another mesh than the saved one is fine): the state, or only the
            part of it that `part` names ("params", "params/text"), and then nothing else is read.
          without: regexes of leaves of that part that are left aside on both sides and are not in the result.
          besides: regex of saved paths that `abstract` may lack ("params/text/proj/.*").

        Raises:
          MismatchError: a leaf is missing, new, or of another shape or dtype; the message names it with both shapes.
          FileNotFoundError: there is no checkpoint, or not this one.  OSError: there are some, but none is readable.
          PermissionError: this user may not read it, which says nothing of what it holds.
        """
        self.wait()
        while steps := [s for s in self._folders() if s not in self._broken and step in (None, s)]:
            newest = steps[-1]
            try:
                result = self._read(newest, abstract, part, without, besides)
            except (MismatchError, MemoryError, PermissionError):
                raise
            except Exception as error:
                if "permission denied" in str(error).lower().replace("_", " "):   # as libraries say it
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.directory / str(newest))) from error
                if not (self.directory / str(newest)).exists():
                    continue  # the run that writes here has just deleted it
                self._broken[newest] = _reason(error)
                logging.warning("the checkpoint of step %d in %s can't be used, falling back to the one before it: %s",
                                newest, self.directory, self._broken[newest])
            else:
                self._mine = set() if part else {newest}
                self._set_aside()
                return result
        if self._broken:
            why = "; ".join(f"step {s}: {reason}" for s, reason in sorted(self._broken.items()))
            raise OSError(f"no checkpoint in {self.directory} can be read ({why}): "
                          "put a copy back, or delete the folder to start from scratch")
        there = ", ".join(map(str, self.steps())) or "none"
        raise FileNotFoundError(f"no checkpoint of {f'step {step}' if step is not None else 'any step'} "
                                f"in {self.directory}: there is {there}")

    def leaves(self, step):
        """{path: (shape, dtype name)} of the arrays of a step's checkpoint, with paths such as "params/image/block_0/ln1/scale".

        Raises:
          OSError: the checkpoint can't be read.
        """
        try:
            return {path: (tuple(shape), dtype) for path, (shape, dtype) in self._manifest(step)["leaves"].items()}
        except (ValueError, KeyError) as error:
            raise OSError(f"the checkpoint of step {step} in {self.directory} can't be used: {_reason(error)}") from error

    def _read(self, step, abstract, part, without, besides):
        path, inside = self.directory / str(step), part.split("/") if part else []
        manifest = self._manifest(step)
        saved = {k: v for k, v in manifest["leaves"].items() if k.startswith(part and f"{part}/")}
        if without:
            saved, abstract = leaves.without(without, saved, abstract, part, path)
        for key in reversed(inside):
            abstract = {key: abstract}
        wanted = leaves.table(abstract)
        leaves.compare({k: v for k, v in saved.items() if k in wanted or not re.fullmatch(besides, k)}, wanted, path, part)
        state = arrays_on_disk.read(path / "state", abstract, partial=bool(part))
        now = fingerprint.fingerprints(state)
        wrong = sorted(k for k in now if now[k] != manifest["fingerprints"][k])
        if wrong:
            raise ValueError(f"{wrong[0]} doesn't hold the saved values" + leaves.more(len(wrong)))
        for key in inside:
            state = state[key]
        return state

    def _manifest(self, step):
        path = self.directory / str(step)
        if not _is_file(path / _COMMITTED):
            raise ValueError(f"it was never finished ({_COMMITTED} is missing)")
        manifest = json.loads((path / "manifest" / "metadata").read_text(encoding="utf-8"))
        if manifest.pop("sha256", None) != _digest(manifest):
            raise ValueError("its manifest is damaged")
        if manifest["leaves"].get("step") == [[], "int32"] and manifest["fingerprints"]["step"] != _of_step(step):
            raise ValueError("it holds another step than its folder's name says: give the folder its own number back")
        return manifest

    def _score(self, step):
        if self._best and step not in self._scores:
            try:
                value = self._manifest(step)["scores"].get(self._best.removeprefix("-"))
            except Exception as error:  # a checkpoint whose score can't be read competes with none
                logging.warning("the scores of the checkpoint of step %d can't be read: %s", step, _reason(error))
                value = None
            self._scores[step] = -value if value is not None and self._best.startswith("-") else value
        return self._scores.get(step)

    def _folders(self):
        if not self.directory.exists():
            return []
        return sorted(step for p in self.directory.iterdir() if (step := steps.number(p.name)) is not None)

    def _prune(self):
        if jax.process_index() == 0:
            steps = self.steps()
            for old in set(steps) - set(steps[-self._keep:]) - {self.best()}:
                (self.directory / str(old)).rmtree(missing_ok=True)

    def _clean(self, again=False):
        """Removes what a killed save left behind (once, before the first save, and `again` after one that failed)."""
        if self._read_only:
            raise ValueError(f"{self.directory} was opened read_only: nothing can be saved through it")
        if (again or self._checkpointer is None) and jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                path.rmtree(missing_ok=True)

    def _set_aside(self):
        if not self._read_only and jax.process_index() == 0:
            for step in [s for s in self._broken if (self.directory / str(s)).exists()]:
                aside = self.directory / f"{step}.broken"
                aside.rmtree(missing_ok=True)
                (self.directory / str(step)).rename(aside)
        if not self._read_only:
            self._broken.clear()

    def _open(self):
        """Opens what was just saved: the manifest, and every array."""
        self._manifest(self._saving)
        arrays_on_disk.check(self.directory / str(self._saving) / "state")

    def _attempt(self, function, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            step, self._saving = self._number, None
            if not (said := atomic.is_full(error)):
                raise OSError(f"the checkpoint of step {step} in {self.directory} could not be saved: {_reason(error)}") from error
            failed = atomic.Full(f"the checkpoint of step {step} can't be saved: {self._full(self._need, said)}")
        self._clean(again=True)   # what was written of it takes room
        raise failed


def restore_from(path, abstract, part="", without=(), besides=""):
    """The state, or `part` of it, of another run: `path` is its workdir, or one of its `checkpoints/<step>`.

    `without` and `besides` as `Checkpoints.restore` takes them.

    Raises:
      MismatchError, FileNotFoundError, OSError: as `Checkpoints.restore` does.
    """
    workdir, step = steps.split(path)
    return Checkpoints(workdir, read_only=True).restore(abstract, step, part, without, besides)


def _is_file(path):
    """Whether there is such a file; `exists` of a path would also be False where its folder may not be read."""
    if workdir_lib.is_remote(path):
        return path.exists()
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _reason(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _of_step(step):
    """The fingerprint of a state's own "step"; None of a number that none has."""
    return fingerprint.fingerprints({"step": jnp.int32(step)})["step"] if step < 2 ** 31 else None


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
