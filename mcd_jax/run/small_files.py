"""Small JSON files that are read back: one that is broken (cut, not UTF-8, of another kind) is named, or passed over."""
from collections.abc import Callable, Iterator
import contextlib
import fcntl
import json
import math
import os
import pathlib
import time
from typing import Any

from absl import logging


def read(path: str | os.PathLike, kind: type = dict) -> Any:
    """What a JSON file holds.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it isn't JSON in UTF-8, or holds no `kind`; the sentence names the file.
    """
    text = pathlib.Path(path).read_bytes()
    if not text.strip():
        raise ValueError(f"{path} is empty: it was cut while it was written; put the file back, or make it again")
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ValueError(f"{path} is not JSON ({why}): put the file back, or make it again") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds a {type(value).__name__} where a {kind.__name__} is needed: put the file back, or make it "
                         "again")
    return value


def read_or(path: str | os.PathLike, default: Any, kind: type = dict, fits: Callable[[Any], bool] = lambda value: True) -> Any:
    """As `read`, but `default` where there is no file, and with a warning where it is broken or doesn't fit."""
    try:
        value = read(path, kind)
        if fits(value):
            return value
        logging.warning("%s doesn't hold what this program writes there: it is passed over", path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (ValueError, OSError) as error:
        logging.warning("%s: it is passed over", error)
    return default


def lines(path: str | os.PathLike) -> list[dict]:
    """The objects of a file with one in each line, none where there is no file; a line that was cut or is no object is left out."""
    path, found = pathlib.Path(path), []
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def steps(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics.jsonl: a whole "step", and numbers or null; others are left out, and those that are out of order."""
    found = []
    for line in lines(path):
        values = [value for value in line.values() if value is not None]
        if type(line.get("step")) is int and all(type(value) in (int, float) for value in values) \
                and (not found or found[-1]["step"] <= line["step"]):
            found.append({key: value if value is None or math.isfinite(value) else None for key, value in line.items()})
    return found


@contextlib.contextmanager
def alone(folder: str | os.PathLike, wait: float = 10.0) -> Iterator[None]:
    """Context of reading, changing and writing a file of a folder: other processes and threads that ask for the same folder wait.

    The folder itself is locked, so that nothing is left in it. Where its file system has no locks, and after `wait` seconds (its
    holder was frozen), the block runs all the same.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + wait
        while time.monotonic() < end:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(held)


def set_aside(path: str | os.PathLike) -> pathlib.Path:
    """Renames a broken file to `<name>.broken`, in place of an older one; returns that path."""
    path = pathlib.Path(path)
    aside = path.with_name(f"{path.name}.broken")
    os.replace(path, aside)
    return aside
