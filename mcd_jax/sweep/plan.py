"""What a sweep will run: overrides checked against the config, command lines that train reads back unchanged, folder names.

Nothing is started or written here, and no device is touched: a sweep must leave the accelerator to its runs.
"""
import difflib
import hashlib
import importlib.util
import json
import pathlib
import re
import shlex
import sys
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from mcd_jax import config as config_lib

_LONGEST = 100   # letters of a folder name
_FIELDS = ("command", "overrides", "workdir", "name")
read = config_lib.from_file


class Run(NamedTuple):
    name: str
    overrides: dict         # key -> value, as sweep(add) gave them
    flags: tuple            # --config.key=value, with those that all runs share
    workdir: pathlib.Path
    command: tuple          # the argv of the training command
    config: Any             # what train will read: a dict as JSON keeps it


def plan(path, workdir, shared=None):
    """The runs of a config file's `sweep(add)`, in its order. Runs whose config is the same are merged into the first of them.

    Args:
      path: the config file, with `:args` where its `get_config` takes them.
      workdir: folder of the sweep.
      shared: overrides of all runs, key -> value.

    Returns:
      [Run]; every one has a name of its own.

    Raises:
      ValueError: no sweep(add), no runs, an unknown key, a value of another type than the config's or that a command line can't
        carry, or what `config.check` refuses. OSError: the file can't be read.
    """
    base, shared = read(path, ()), {key: plain(key, value) for key, value in (shared or {}).items()}
    paths = list(_paths(base))
    found = {}
    for key in shared:
        _check_key(key, paths)
    for overrides in collect(path):
        for key in overrides:
            _check_key(key, paths)
        overrides = {key: plain(key, value) for key, value in overrides.items()}
        for key in overrides:
            if key in shared:
                raise ValueError(f"config.{key} is swept over: sweep(add) gives it {overrides[key]!r}, the command line "
                                 f"{shared[key]!r}; leave one of them out")
        given, config = _flags(path, base, {**shared, **overrides})
        found.setdefault(json.dumps(config, sort_keys=True), (overrides, given, config))
    runs = []
    for name, (overrides, given, config) in zip(names([run[0] for run in found.values()], paths), found.values()):
        folder = pathlib.Path(workdir) / name
        command = (sys.executable, "-m", "mcd_jax.train", f"--config={path}", f"--workdir={folder}", *given)
        runs.append(Run(name, overrides, given, folder, command, config))
    return runs


def collect(path):
    """The overrides that the file's `sweep(add)` adds, as a list of dicts; ValueError where it has none."""
    path = path.partition(":")[0]
    spec = importlib.util.spec_from_file_location("swept_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "sweep", None)):
        raise ValueError(f"{path} defines no sweep(add), a function that calls add({{'seed': 1, ...}}) once for each run")
    found = []

    def add(overrides=None, /, **more):
        found.append({**(overrides or {}), **more})
    module.sweep(add)
    if not found:
        raise ValueError(f"sweep(add) in {path} adds no run")
    return found


def plain(key, value):
    """An override's value made of what a command line can carry; lists become tuples, numpy's numbers Python's.

    Raises:
      ValueError: it can't be one.
    """
    if isinstance(value, np.generic):
        return plain(key, value.item())
    if isinstance(value, (list, tuple)):
        return tuple(plain(key, part) for part in value)
    if isinstance(value, (dict, ConfigDict)):
        return {name: plain(key, part) for name, part in value.items()}
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and "\0" not in value):
        return value
    raise ValueError(f"config.{key}={value!r} can't be passed on a command line: use None, a bool, a number, a string, or a tuple "
                     "or dict of these")


def encode(value, kind):
    """`value` as the text after `--config.key=`, for a field whose type is `kind`."""
    return value if isinstance(value, str) and kind is str else repr(value)


def same(got, want):
    """Whether what train reads is what was asked for: equal and of the same type, but a whole number may become a float."""
    if isinstance(got, ConfigDict):
        got = got.to_dict()
    if type(want) is int and type(got) is float:
        return got == want
    if type(got) is not type(want):
        return False
    if isinstance(want, tuple):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key]) for key in want)
    return got == want


def check_metric(metric, planned):
    """Raises a ValueError where `metric` belongs to an evaluation that a run doesn't have."""
    for run in planned:
        known = [f"{module}/{name}" for module, own in (run.config.get("evals") or {}).items() for name in own or {}]
        if metric.count("/") > 1 and not metric.startswith(tuple(f"{name}/" for name in known)):
            config_lib.refuse_unknown("/".join(metric.split("/")[:2]), known, f"evaluation in --metric={metric}")


def _flags(path, base, overrides):
    """The flags of one run and the config that train makes of them: each value is read back and compared."""
    given = tuple(f"--config.{key}={encode(value, _field(base, key)[1])}" for key, value in overrides.items())
    try:
        config = read(path, given)
        for key, value in overrides.items():
            got = _field(config, key)[0]
            if not same(got, value):
                raise ValueError(f"train would read {got!r}")
    except ValueError as error:
        raise ValueError(f"sweep(add): the run {overrides} can't be started: {error}. The config has "
                         + ", ".join(f"{key}={_shown(_field(base, key)[0])}" for key in overrides)) from error
    try:
        config_lib.check(config)
    except ValueError as error:
        raise ValueError(f"sweep(add): the run {overrides} can't be started: {error}") from error
    return given, json.loads(json.dumps(config.to_dict(), default=str))


def _field(config, key):
    """Value and declared type of a dotted key."""
    *above, last = key.split(".")
    for name in above:
        config = config[name]
    return config[last], config.get_type(last)


def _shown(value):
    text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _paths(config, above=""):
    """Every dotted key of a config, inner ones included."""
    for key, value in config.items():
        yield f"{above}{key}"
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{above}{key}.")


def _check_key(key, paths):
    if key not in paths:
        near = [p for p in paths if p.endswith(f".{key}")] or difflib.get_close_matches(str(key), paths, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config.{key} can't be overridden: the config has no such key{hint}")


# ---- names ---------------------------------------------------------------------------------------------------------------------


def names(all_overrides, paths):
    """A folder name for each run, from its overrides alone: "lr=0.001,seed=0", where a key is the shortest end of its path that no
    other key of the config has. What can't be written that way, or is too long, gets a hash; so do names that would be the same.

    Args:
      all_overrides: the overrides of each run, no two equal.
      paths: every key of the config.
    """
    readable = [name(overrides, paths) for overrides in all_overrides]
    folded = [text.casefold() for text in readable]
    return [_hashed(text, overrides) if folded.count(text.casefold()) > 1 else text
            for text, overrides in zip(readable, all_overrides)]


def name(overrides, paths):
    """The name of one run, see `names`; "base" without overrides."""
    written = ",".join(f"{short(key, paths)}={_text(value)}" for key, value in overrides.items()) or "base"
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", written.replace(" ", "_"))
    return safe if safe == written.replace(" ", "_") and len(safe) <= _LONGEST else _hashed(safe, overrides)


def _text(value):
    if isinstance(value, dict) or (isinstance(value, tuple) and any(isinstance(part, (tuple, dict)) for part in value)):
        return "{}"   # not for a name: the hash tells them apart
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short(key, paths):
    """The shortest end of a dotted key that no other of `paths` has; the whole key where there is none."""
    parts = key.split(".")
    for i in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[i:])
        if sum(p == end or p.endswith(f".{end}") for p in paths) == 1:
            return end
    return key


def _hashed(text, overrides):
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8]
    return f"{text[:_LONGEST - 9].strip('-')}-{digest}"


# ---- launchers -----------------------------------------------------------------------------------------------------------------


def launch(template, run):
    """The argv that hands `run` to a launcher; no shell reads it here.

    Args:
      template: words as a shell would split them, with {command} (the training command), {overrides} (its flags alone),
        {workdir} and {name}. A word that is only {command} or {overrides} becomes that many arguments; inside a longer word they
        are quoted for the shell that the launcher will start, as in 'sbatch "--wrap=exec {command}"'.

    Raises:
      ValueError: quotes that don't match, an unknown field, or neither {command} nor {overrides}.
    """
    lists = {"command": run.command, "overrides": run.flags}
    texts = {"command": shlex.join(run.command), "overrides": shlex.join(run.flags), "workdir": str(run.workdir), "name": run.name}
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ValueError(f"--launcher={template!r} can't be split into words: {error}") from error
    fields = re.findall(r"\{(\w+)\}", " ".join(words))
    for field in fields:
        config_lib.refuse_unknown(field, _FIELDS, "field of --launcher")
    if not {"command", "overrides"} & set(fields):
        raise ValueError(f"--launcher={template!r} has neither {{command}} nor {{overrides}}: it would start every run alike")
    argv = []
    for word in words:
        argv += lists.get(word[1:-1], [word]) if word[:1] + word[-1:] == "{}" and word[1:-1] in lists else [
            re.sub(r"\{(\w+)\}", lambda match: texts[match[1]], word)]
    return argv
