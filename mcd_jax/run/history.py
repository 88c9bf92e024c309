"""What a run has been: `<workdir>/history.jsonl` has one entry for each session, that is for each start of `mcd-jax train`.

An entry says at which step the session began and when, how many examples the run had seen by then, what decides the order of its
data ("order": batch size, seed, source, number of examples, some keys), how the config differs from that of the session before
("changes": setting -> [was, is]; the newest config is config.json), which software ran, and on what.

A resumed session is compared with the run so far. What changes the order of the data is refused: row j of step s is position
s * batch_size + j of a shuffled stream, so that another batch size or source would pass over examples and show others twice. With
`--resume=allow` it goes on where the examples that were really seen end: position = examples seen + what this session has taken.
Everything else may change (learning rate, length, weights); it is said in a line and kept.
"""
from collections.abc import Mapping, Sequence
import datetime
import json
import os
import pathlib
import re
import socket

import jax

import mcd_jax
from mcd_jax import config as config_lib
from mcd_jax.run import agreement, atomic, small_files, software
from mcd_jax.run import workdir as workdir_lib

NAME = "history.jsonl"
STRICT, ALLOW = "strict", "allow"
_DERIVED = ("config.total_steps", "config.batch_shapes", "config.model.inputs")   # made of the others
_QUIET = ("config.evals", "config.checkpoint", "config.log_every", "config.profile_steps", "config.tensorboard", "config.wandb",
          *agreement.OWN)   # reach no parameter
_PLACE = re.compile(r"config\.data\.source\.(.*\.)?(path|table|images|cache|\w+_mib)(\.\d+)?")   # where data lies, not what it is
_MOST = 4


def read(folder: str | os.PathLike) -> list[dict]:
    """The entries, oldest first; lines that can't be read are passed over."""
    return [entry for entry in small_files.lines(pathlib.Path(folder) / NAME)
            if all(isinstance(entry.get(key), int) for key in ("step", "seen", "batch_size"))
            and all(isinstance(entry.get(key, {}), dict) for key in ("order", "software"))]


def examples_seen(entries: Sequence[Mapping], step: int, batch_size: int) -> int:
    """How many examples the steps up to `step` have seen, of the sessions that the checkpoint of that step rests on.

    batch_size: of a run that has no history.
    """
    for entry in reversed(entries):   # a later session replaces what an earlier one did after its first step
        if entry["step"] <= step:
            return entry["seen"] + (step - entry["step"]) * entry["batch_size"]
    return step * batch_size


def examples_seen_in(workdir: str, step: int, batch_size: int) -> int:
    """The same of the run in `workdir`, a folder or bucket path. batch_size: where neither its history nor its config says it."""
    with workdir_lib.opened(workdir, write=False) as small:
        stored = _stored(small.folder) or {}
        return examples_seen(read(small.folder), step, stored.get("config.batch_size", batch_size))


class History:
    """The sessions of the run in a folder, and the one that begins now.

    Attributes:
      entries: of the sessions before.
    """

    def __init__(self, folder, job):
        """
        Args:
          folder: of the run's small files. job: the `Job` of this session.
        """
        self._folder, self._job = pathlib.Path(folder), job
        self.entries, self._config = read(folder), _stored(folder)
        self._order = _order(job)
        if not self.entries and self._config:   # a run from before there was a history
            was = {key: self._config[key] for key in self._config if key in _KEYS or key.startswith(_SOURCE)}
            self.entries = [{"step": 0, "seen": 0, "batch_size": self._config.get("config.batch_size", job.config.batch_size),
                             "order": was}]

    def check(self, step, resume=STRICT):
        """Compares this session with the run, whose newest checkpoint is of `step`. Returns a line to say, or "".

        Args:
          resume: STRICT refuses what changes the order of the data, ALLOW says it.

        Raises:
          ValueError: it is refused; what differs, from what to what. Or there is no run, but the config.json of something else.
        """
        if not step:   # nothing has been trained
            _refuse_foreign(self._folder)
            return ""
        trained = next((entry for entry in reversed(self.entries) if entry["step"] < step), None)
        broken = _broken(trained.get("order", {}), self._order) if trained else []
        if broken and resume != ALLOW:
            raise ValueError(f"going on at step {step:,} would change the order of the data: {_listed(broken)}; go back to what "
                             f"the run had, or give --resume=allow to go on with example {self.seen(step):,} of the new order")
        lines = [f"the order of the data changes: {_listed(broken)}; it goes on with example {self.seen(step):,} of the new order, "
                 "and durations in epochs or examples count all steps as if they were of the new size"] if broken else []
        named = {key for key, _, _ in broken}
        course = [change for change in self._changes() if not change[0].startswith(_QUIET) and change[0] not in named]
        before = (self.entries[-1].get("software") or {}) if self.entries else {}
        course += [(name, before[name], now) for name, now in _software(self._job.config).items()
                   if name in before and before[name] != now]
        return "; ".join([*lines, *([f"changed at step {step:,}: {_listed(course)}"] if course else [])])

    def seen(self, step):
        """How many examples the run has seen at `step`, in the sessions before this one."""
        origin = self._job.config.resume_from
        if not self.entries and step and origin:
            workdir = re.sub(rf"/{workdir_lib.CHECKPOINTS}/\d+/?$", "", str(origin))
            return examples_seen_in(workdir, step, self._job.config.batch_size)
        return examples_seen(self.entries, step, self._job.config.batch_size)

    def begin(self, first):
        """Writes the entry of this session, which begins at step `first`, and then config.json."""
        job = self._job
        entry = {"step": first, "seen": self.seen(first), "batch_size": job.config.batch_size,
                 "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "total_steps": job.total_steps,
                 "changes": {key: [was, now] for key, was, now in self._changes()} if self._config else {},
                 "host": socket.gethostname(), "processes": jax.process_count(), "devices": job.mesh.size,
                 "platform": jax.devices()[0].platform, "software": _software(job.config), "commit": software.commit(),
                 "order": self._order}
        lines = [json.dumps(e, default=str) for e in (*(e for e in self.entries if first or "began" in e), entry)]
        atomic.write_text(self._folder / NAME, "\n".join(lines) + "\n")
        config_lib.save(job.config, self._folder / "config.json")

    def _changes(self):
        """[(setting, was, is)] of the config."""
        now, was = _plain(self._job.config), self._config
        return [(key, was.get(key), now.get(key)) for key in sorted({*was, *now})
                if was.get(key) != now.get(key) and not key.startswith(_DERIVED)] if was else []


# ---- comparing -------------------------------------------------------------------------------------------------------------------

_KEYS, _SOURCE = ("config.batch_size", "config.seed"), "config.data.source"


def _order(job):
    """{name: value} of what decides the order of the data."""
    config = _plain(job.config)
    settings = {key: value for key, value in config.items() if key in _KEYS or key.startswith(_SOURCE)}
    return json.loads(json.dumps({**settings, **agreement.examples(job.pipeline)}))


def _broken(was, now):
    """[(name, was, is)] of what changes the order; a source that only lies elsewhere and gives the same keys changes nothing."""
    wrong = [(key, was.get(key), now.get(key)) for key in dict.fromkeys([*now, *was]) if was.get(key) != now.get(key)]
    wrong = [change for change in wrong if change[0].startswith("config.") or None not in change[1:]]
    seen = any(not key.startswith("config.") for key in was)
    if seen and all(key.startswith("config.") for key, _, _ in wrong):
        wrong = [change for change in wrong if not _PLACE.fullmatch(change[0])]
    return wrong


def _listed(changes):
    shown = [f"{key} was {_value(was)} and is {_value(now)}" for key, was, now in changes[:_MOST]]
    return ", ".join(shown) + (f", and {len(changes) - _MOST} more" if len(changes) > _MOST else "")


def _value(value):
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _plain(config):
    """A ConfigDict as {"config.key": value}, as JSON keeps it."""
    return agreement.flat(json.loads(json.dumps(config.to_dict(), default=str)), "config")


def _stored(folder):
    """config.json as {"config.key": value}; None where there is none, or none that can be read."""
    try:
        return _plain(config_lib.read(pathlib.Path(folder) / "config.json"))
    except (OSError, ValueError, AttributeError, KeyError):
        return None


def _refuse_foreign(folder):
    """Raises a ValueError where the config.json of a folder is of an exported model, say, which training would replace."""
    path = folder / "config.json"
    try:
        found = small_files.read(path)
    except (OSError, ValueError):   # none, or one that was cut
        return
    if not config_lib.is_of_run(found):
        raise ValueError(f"{path} is not of a run (of an exported model?), and training would replace it: choose another --workdir")


def _software(config):
    return {"mcd_jax": mcd_jax.__version__, "source of mcd_jax": software.source(), **software.versions(software.COMPUTING),
            **software.own(json.dumps(config.to_dict(), default=str))}
