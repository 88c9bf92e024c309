"""Checkpoints: asynchronous, atomic, verified, restored on any topology.

One checkpoint is `<workdir>/checkpoints/<step>/`: the state, and a manifest with every leaf's shape, dtype and fingerprint.
"""
import contextlib
import gc
import hashlib
import io
import json
import logging as stdlib_logging
import math
import os
import re
import time

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mcd_jax import fingerprint

_COMMITTED = "commit_success.txt"  # orbax writes it last; without it a step doesn't count


class MismatchError(ValueError):
    """The checkpoint is whole, but it isn't the state of this config."""


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
        self.directory = epath.Path(workdir).resolve() / "checkpoints"
        self._every, self._keep, self._best, self._read_only = every, keep, best, read_only
        self._broken = {}  # step -> why it can't be read
        self._mine = set()  # steps that hold exactly the states of this run
        self._scores = {}  # step -> value of the best score, or None
        self._saving = None
        self._checkpointer = None

    def due(self, step):
        """Whether `every` asks for a checkpoint at this step."""
        return bool(self._every) and step % self._every == 0

    def steps(self):
        """The committed steps, sorted, without those that a restore found broken."""
        return [s for s in self._folders() if s not in self._broken and (self.directory / str(s) / _COMMITTED).exists()]

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
        manifest = {"leaves": _leaves(state), "fingerprints": fingerprint.fingerprints(state), "scores": scores}
        manifest = json.loads(json.dumps(manifest))  # what a reader will see
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state),
                                  manifest=ocp.args.JsonSave({**manifest, "sha256": _digest(manifest)}))
        self._saving = step
        self._attempt(self._checkpointer.save, self.directory / str(step), args=args, force=True)

    def check(self):
        """Raises OSError when the save under way has failed; call it every step (it costs nothing)."""
        if self._checkpointer is not None:
            self._attempt(self._checkpointer.check_for_errors)

    def wait(self):
        """Blocks until the save under way is committed, then deletes the checkpoints that needn't stay."""
        if self._checkpointer is None or self._saving is None:
            return
        self._attempt(self._checkpointer.wait_until_finished)
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
        """
        self.wait()
        while steps := [s for s in self._folders() if s not in self._broken and step in (None, s)]:
            newest = steps[-1]
            try:
                result = self._read(newest, abstract, part, without, besides)
            except (MismatchError, MemoryError):
                raise
            except Exception as error:
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
            saved, abstract = _set_aside(without, saved, abstract, part, path)
        for key in reversed(inside):
            abstract = {key: abstract}
        wanted = _leaves(abstract)
        _compare({k: v for k, v in saved.items() if k in wanted or not re.fullmatch(besides, k)}, wanted, path, part)
        state = _load(path / "state", abstract, partial=bool(part))
        now = fingerprint.fingerprints(state)
        wrong = sorted(k for k in now if now[k] != manifest["fingerprints"][k])
        if wrong:
            raise ValueError(f"{wrong[0]} doesn't hold the saved values" + _more(len(wrong)))
        for key in inside:
            state = state[key]
        return state

    def _manifest(self, step):
        path = self.directory / str(step)
        if not (path / _COMMITTED).exists():
            raise ValueError(f"it was never finished ({_COMMITTED} is missing)")
        manifest = json.loads((path / "manifest" / "metadata").read_text())
        if manifest.pop("sha256", None) != _digest(manifest):
            raise ValueError("its manifest is damaged")
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
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def _prune(self):
        if jax.process_index() == 0:
            steps = self.steps()
            for old in set(steps) - set(steps[-self._keep:]) - {self.best()}:
                (self.directory / str(old)).rmtree(missing_ok=True)

    def _clean(self):
        """Removes what a killed save left behind (once, before the first save)."""
        if self._read_only:
            raise ValueError(f"{self.directory} was opened read_only: nothing can be saved through it")
        if self._checkpointer is None and jax.process_index() == 0:
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

    def _attempt(self, function, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            step, self._saving = self._saving, None
            raise OSError(f"the checkpoint of step {step} in {self.directory} could not be saved: "
                          f"{_reason(error)}") from error


def restore_from(path, abstract, part="", without=(), besides=""):
    """The state, or `part` of it, of another run: `path` is its workdir, or one of its `checkpoints/<step>`.

    `without` and `besides` as `Checkpoints.restore` takes them.

    Raises:
      MismatchError, FileNotFoundError, OSError: as `Checkpoints.restore` does.
    """
    path = epath.Path(path)
    step = int(path.name) if path.name.isdigit() and path.parent.name == "checkpoints" else None
    workdir = path if step is None else path.parent.parent
    return Checkpoints(workdir, read_only=True).restore(abstract, step, part, without, besides)


def check_writable(workdir):
    """Creates the folder and tries a file in it.

    Raises:
      OSError: it can't be created or written; the sentence names it and says why.
    """
    try:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{time.time_ns()}"
        probe.write_text("")
        probe.unlink()
    except (OSError, ImportError) as error:
        raise OSError(f"--workdir={workdir} can't be written ({getattr(error, 'strerror', None) or error}): "
                      "name a folder that this user may create files in") from error


def checksum(params):
    """sha256 (hex) over the sorted paths, dtypes, shapes and bytes of a tree of arrays, wherever its shards are."""
    digest = hashlib.sha256()
    for path, x in sorted(fingerprint.flat(params).items()):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        whole = x.is_fully_addressable if isinstance(x, jax.Array) else True
        x = np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))
        digest.update(f"{path} {x.dtype} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def _load(path, abstract, partial):
    """The arrays of a checkpoint. When one can't be read, the tracebacks of the reads beside it are not printed.

    Raises:
      Exception: whatever orbax raised, on every process as soon as it happened on one.
    """
    args = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=partial)
    state, failed, chatter = None, None, stdlib_logging.getLogger("asyncio")
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler, contextlib.redirect_stderr(io.StringIO()):
        disabled, chatter.disabled = chatter.disabled, True
        try:
            state = handler.restore(path, args=args)
        except Exception as error:
            failed = error.with_traceback(None)
            time.sleep(0.1)
            gc.collect()
        chatter.disabled = disabled
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.int32(failed is not None)).any():
        failed = failed or OSError("another process can't read its part")
    if failed is not None:
        raise failed
    return state


def _set_aside(regexes, saved, abstract, part, path):
    """`saved` and `abstract` without the leaves of `part` whose path in it one of the regexes matches, which each of them must."""
    names = {k: k.removeprefix(f"{part}/") for k in saved.keys() | _leaves({part: abstract}).keys()}
    for regex in regexes:
        if not any(re.fullmatch(regex, name) for name in names.values()):
            raise MismatchError(f"config.init_fresh: {regex!r} matches no parameter of {path} or of this config")
    return {k: v for k, v in saved.items() if not any(re.fullmatch(r, names[k]) for r in regexes)}, _without(abstract, regexes)


def _without(tree, regexes, path=""):
    """A nested dict without the leaves whose path one of the regexes matches, and without what is empty then."""
    kept = {k: _without(v, regexes, f"{path}{k}/") if isinstance(v, dict) else v for k, v in tree.items()
            if isinstance(v, dict) or not any(re.fullmatch(regex, path + k) for regex in regexes)}
    return {k: v for k, v in kept.items() if v != {}}


def _leaves(tree):
    return {path: [list(x.shape), str(x.dtype)] for path, x in fingerprint.flat(tree).items()}


def _compare(saved, wanted, path, part):
    """Raises MismatchError unless both tables {path: [shape, dtype]} are the same."""
    wrong = [k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k)]
    if wrong:
        wrong.sort(key=lambda k: (not k.startswith("params/"), k))
        was, now = (f"{t[wrong[0]][1]} {tuple(t[wrong[0]][0])}" if wrong[0] in t else "absent" for t in (saved, wanted))
        advice = ("name what is not to be loaded in config.init_fresh, or make the model that of the run" if part else
                  "go on with the config of that run (its config.json), or choose another --workdir")
        raise MismatchError(f"{wrong[0]} is {was} in the checkpoint {path} and {now} in this config{_more(len(wrong))}: {advice}")


def _more(n):
    return f" (and {n - 1} more)" if n > 1 else ""


def _reason(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
