"""What a sweep will run: overrides checked against the config, command lines that train reads back unchanged, folder names.

Nothing is started or written here, and no device is touched: a sweep must leave the accelerator to its runs.
"""
from collections.abc import Mapping
import hashlib
import json
import pathlib
import re
import shlex
import sys
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax.config import keys
from mcd_jax.config import overrides as overrides_lib
from mcd_jax.run import workdir as workdir_lib

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
      path: name or file of the config, with `:args` where its `get_config` takes them.
      workdir: folder of the sweep.
      shared: overrides of all runs, key -> value.

    Returns:
      [Run]; every one has a name of its own.

    Raises:
      ValueError: no sweep(add), no runs, an unknown key, a value of another type than the config's or that a command line can't
        carry, or what `config.check` refuses; a bucket. OSError: the file can't be read.
    """
    if workdir_lib.is_remote(workdir):
        raise ValueError(f"--workdir={workdir}: the folder of a sweep has locks and logs that grow line by line, which a "
                         "bucket can't keep: name a local or shared folder")
    base = read(path)
    shared = {key: plain(key, value) for key, value in (shared or {}).items()}
    paths = list(_paths(base))
    found = {}
    for key in shared:
        overrides_lib.check_key(base, key)
    for overrides in collect(path):
        for key in overrides:
            overrides_lib.check_key(base, key)
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
        command = (sys.executable, "-m", "mcd_jax", "train", f"--config={path}", f"--workdir={folder}", *given)
        runs.append(Run(name, overrides, given, folder, command, config))
    return runs


def collect(path):
    """The overrides that the file's `sweep(add)` adds, as a list of dicts; ValueError where it has none."""
    path = overrides_lib.locate(path).partition(":")[0]
    module = overrides_lib.imported(path)
    if not callable(getattr(module, "sweep", None)):
        raise ValueError(f"{path} defines no sweep(add), a function that calls add({{'seed': 1, ...}}) once for each run")
    found = []

    def add(overrides=None, /, **more):
        if not isinstance(overrides or {}, Mapping):
            raise ValueError(f"sweep(add): add({overrides!r}) takes a dict of keys and values, such as add({{'seed': 1}})")
        found.append({**(overrides or {}), **more})
    overrides_lib.called(path, module.sweep, add)
    if not found:
        raise ValueError(f"sweep(add) in {path} adds no run")
    return found


def values(path, texts):
    """{key: value} of the overrides of a command line, (key, text) each; a ValueError where one doesn't fit the file's config."""
    config = read(path)
    config = overrides_lib.apply(config, texts) if texts else config
    return {key: overrides_lib.field(config, key) for key, _ in texts}


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


def same(got, want):
    """Whether what train reads is what was asked for: equal and of the same type, but a whole number may become a float."""
    if isinstance(got, ConfigDict):
        got = got.to_dict()
    if type(want) is int and type(got) is float:
        return got == want
    if type(got) is str and type(want) in (int, float):   # a duration
        return got == str(want)
    if want is None:
        return got in (None, "", ())
    if type(got) is not type(want):
        return False
    if isinstance(want, tuple):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return all(key in got and same(got[key], want[key]) for key in want)   # what a section leaves out has its default
    return got == want


def check_metric(metric, planned):
    """Raises a ValueError where `metric` belongs to an evaluation or a term that a run doesn't have."""
    for run in planned:
        evals = run.config.get("evals") or {}
        if metric.count("/") > 1 or metric.split("/")[0] in evals:
            config_lib.check_metric(metric, evals, "--metric")
        losses = _losses(run.config)
        if metric.startswith("loss") or keys.near(metric, losses):   # other values of metrics.jsonl are known when they are logged
            config_lib.refuse_unknown(metric, losses, "value in --metric")


def _losses(config):
    """The names under which the loss and its terms are logged."""
    objective = config["objective"]
    sections = {"": objective} if "weights" in objective else {f"{name}/": own for name, own in objective.items() if name != "name"}
    return ["loss", *(f"loss/{method}{term}" for method, own in sections.items() for term in own.get("weights") or ())]


def _flags(path, base, overrides):
    """The flags of one run and the config that train makes of them: each value is read back and compared."""
    given = tuple(f"--config.{key}={overrides_lib.encode(base, key, value)}" for key, value in overrides.items())
    try:
        config = read(path, given)
        for key, value in overrides.items():
            got = overrides_lib.field(config, key)
            if not same(got, value):
                raise ValueError(f"train would read {got!r}")
    except ValueError as error:
        raise ValueError(f"sweep(add): the run {overrides} can't be started: {error}; the config has "
                         + ", ".join(f"{key}={_shown(base, key)}" for key in overrides)) from error
    try:
        config_lib.check(config)
    except ValueError as error:
        raise ValueError(f"sweep(add): the run {overrides} can't be started: {error}") from error
    return given, json.loads(json.dumps(config.to_dict(), default=str))


def _shown(config, key):
    try:
        text = repr(overrides_lib.field(config, key))
    except KeyError:
        return "its default"
    return text if len(text) <= 60 else text[:57] + "..."


def _paths(config, above=""):
    """Every dotted key of a config, inner ones included."""
    for key, value in config.items():
        yield f"{above}{key}"
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{above}{key}.")


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
        if sum(p == end or p.endswith(f".{end}") for p in {*paths, key}) == 1:
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
