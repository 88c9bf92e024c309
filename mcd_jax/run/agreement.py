"""All processes of a job say what they are about to run, and go on only if it is the same.

Processes with another learning rate, another copy of the data or other code would train apart without a word, or wait for each
other in a step that only some of them take. So they compare it before anything compiles, through the key-value store of JAX's
coordinator; no device is involved. Process 0 leaves its record and a digest of it. Every other process reads the digest, and only
one that has another reads the record and leaves what differs, so that a thousand processes that agree exchange a few dozen bytes
each. At a barrier all have done so; process 0 then gives one verdict, which all read: they go on together or end with the same
sentence.
"""
import collections
from collections.abc import Iterable, Mapping
import hashlib
import json
import time
from typing import Any

import jax

import mcd_jax
from mcd_jax.run import software
from mcd_jax.sharding import distributed

COMMAND, CODE, DATA = ("start all with the same command and config", "run the same code and packages on every host",
                       "give every host the same data")
SHARED = "the workdir must be the same shared folder on every host"
OWN = ("config.data.workers", "config.data.processes", "config.data.prefetch", "config.data.cache")   # a host's own affair
_MOST = 3          # differences, and groups of processes, that the sentence names
_LONGEST = 80      # characters of a value in it
_JAX = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
_STAGES = collections.Counter()   # how often each has been reached: the keys of the store are used once


class Disagreement(ValueError):
    """The processes of this job are about to run different things; the sentence names process and setting."""


def agree(stage: str, said: Mapping[str, Mapping[str, Any]], timeout: int = 600) -> None:
    """Returns once every process has said the same. With one process it returns at once.

    Args:
      stage: its name, for the sentence about who is late.
      said: what would help where they differ (`COMMAND`, `CODE`, `DATA`) -> {setting: value as JSON has it}.
      timeout: seconds to wait for the others.

    Raises:
      Disagreement: on every process, with the same sentence.
      TimeoutError: names the processes that did not come.
    """
    client = distributed.coordinator()
    if client is None:
        return
    _STAGES[stage] += 1
    place, me = f"mcd_jax/agreement/{stage}/{_STAGES[stage]}", jax.process_index()
    texts = [[key, json.dumps(value, sort_keys=True, default=str), advice]
             for advice, settings in said.items() for key, value in settings.items()]
    digest = hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()
    if me == 0:
        client.key_value_set(f"{place}/record", json.dumps(texts))
        client.key_value_set(f"{place}/digest", digest)
    elif _wait_for_lead(client, f"{place}/digest", stage, timeout) != digest:
        lead = json.loads(client.blocking_key_value_get(f"{place}/record", distributed.TIMEOUT * 1000))
        client.key_value_set(f"{place}/differs/{me}", json.dumps(differences(lead, texts)[:_MOST + 1]))
    distributed.barrier(stage, timeout)
    if me == 0:
        found = {int(key.rpartition("/")[2]): json.loads(text) for key, text in client.key_value_dir_get(f"{place}/differs/")}
        client.key_value_set(f"{place}/verdict", sentence(found) or "same")
    verdict = client.blocking_key_value_get(f"{place}/verdict", distributed.TIMEOUT * 1000)
    if verdict != "same":
        distributed.barrier(f"{stage}, the end")   # all have read it
        distributed.dissolve()
        if me == 0:
            time.sleep(1.0)   # the coordinator goes last: a process that loses it is aborted by JAX
        raise Disagreement(verdict)


def _wait_for_lead(client, key, stage, timeout):
    try:
        return client.blocking_key_value_get(key, timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(f"process 0 did not reach {stage!r} within {timeout} s of the others") from error


def differences(lead: Iterable, own: Iterable) -> list[list]:
    """[[setting, value here or None, value in process 0 or None, advice]] where two records of (setting, text, advice) differ.

    What stands first in a record comes first.
    """
    lead, own = ({key: (text, advice) for key, text, advice in record} for record in (lead, own))
    return [[key, own.get(key, (None,))[0], lead.get(key, (None,))[0], (own.get(key) or lead[key])[1]]
            for key in dict.fromkeys([*own, *lead]) if own.get(key) != lead.get(key)]


def sentence(found: Mapping[int, list[list]]) -> str:
    """What is to be said of {process: `differences`}; "" where there are none. Processes with equal differences are one group."""
    groups = {}
    for process in sorted(found):
        groups.setdefault(json.dumps(found[process]), []).append(process)
    if not groups:
        return ""
    parts = []
    for text, processes in list(groups.items())[:_MOST]:
        wrong = json.loads(text)
        who, have = (f"process {processes[0]}", "has") if len(processes) == 1 else (f"processes {_ranges(processes)}", "have")
        named = [f"{key}={_shown(own)}, process 0 has {_shown(lead)}" if own is not None else
                 f"no {key}, process 0 has {_shown(lead)}" for key, own, lead, _ in wrong[:_MOST]]
        parts.append(f"{who} {have} {' and '.join(named)}" + (", and more differs" if len(wrong) > _MOST else ""))
    if len(groups) > _MOST:
        parts.append(f"{sum(map(len, list(groups.values())[_MOST:]))} other processes differ too")
    return f"{'; '.join(parts)}: {json.loads(next(iter(groups)))[0][3]}"


def _shown(text):
    return "none" if text is None else text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _ranges(numbers):
    """[1, 2, 3, 7] as "1-3, 7", at most eight parts."""
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts[:8])
    return shown + (", ..." if len(parts) > 8 else "")


# ---- what is said ----------------------------------------------------------------------------------------------------------------


def command(config: Any = None, **given: Any) -> dict[str, dict[str, Any]]:
    """What every command says first: its flags `given`, the settings of its config, and the code that will run, the user's too.

    Settings that a host may have for itself (`OWN`) are left out.
    """
    settings = {key: value for key, value in flat(config or {}, "config").items() if not key.startswith(OWN)}
    flags = {f"--{name}": value for name, value in given.items()}
    numerics = {name: getattr(jax.config, name, None) for name in _JAX}
    code = {"mcd_jax": f"{mcd_jax.__version__}, source {software.source()}", **software.versions(software.COMPUTING)}
    named = software.own(json.dumps([settings, flags], default=str))
    return {COMMAND: {**flags, **settings}, CODE: {**code, **named, **numerics}}


def data(job: Any, newest: int | None, seen: int) -> dict[str, dict[str, Any]]:
    """What training says once its data is open: how many examples there are, in which order, and how far the run is.

    Args:
      job: a `Job`.
      newest: the step of the newest checkpoint in sight, or None; seen: examples up to it.
    """
    if distributed.coordinator() is None:
        return {}
    return {DATA: {**examples(job.pipeline), "config.total_steps": job.total_steps},
            CODE: software.own(json.dumps(job.config.to_dict(), default=str)),   # by now its operations are imported too
            SHARED: {"newest checkpoint": newest, "examples seen": seen}}


def examples(pipeline: Any) -> dict[str, Any]:
    """How many examples a `Pipeline` reads, and the keys of some, by their places in the first epoch."""
    return {"number of training examples": pipeline.examples,
            **{f"example {place} of the epoch": key for place, key in pipeline.keys().items()}}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {"path.to.0.key": leaf}; an empty one is a leaf."""
    if hasattr(value, "items") and len(value):
        items = value.items()
    elif isinstance(value, (list, tuple)) and len(value):
        items = enumerate(value)
    else:
        return {path: {} if hasattr(value, "items") else list(value) if isinstance(value, tuple) else value}
    return {key: leaf for name, part in items for key, leaf in flat(part, f"{path}.{name}" if path else str(name)).items()}
