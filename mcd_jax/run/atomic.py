"""Files that appear whole or not at all: everything that this package writes, but for logs that grow line by line.

A file is written beside its place under a name with a dot, and then moved there. Where the disk is full nothing is left behind, and
the error says which disk, and what room there is.
"""
from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil
import threading

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


class Full(OSError):
    """There is no room for a file; the sentence names the folder and what is free."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, durably.

    Raises:
      Full: the disk has no room. OSError: the folder isn't there or can't be written.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """As `write_text`, of bytes."""
    with writing(path) as part, open(part, "wb") as file:
        file.write(data)
        file.flush()
        if part.is_file():
            os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Context: the place to write a file to; at the end of the block it becomes `path`. A block that fails leaves nothing.

    A link is followed, so that it stays one. What is no file (/dev/stdout) is given as it is.

    Raises:
      Full: the disk has no room.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    place = pathlib.Path(os.path.realpath(path))
    part = place.with_name(f".{place.name[:80]}.{os.getpid()}.{threading.get_ident() % 10 ** 6}.part")
    try:
        with room_for(path):
            if place.parent.is_dir():   # a folder that may not be written is said before any work, by the system
                part.touch()
                part.unlink()
            yield part
            os.replace(part, place)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(part):   # the name that the user knows
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def room_for(path: str | os.PathLike) -> Iterator[None]:
    """Context of writing `path` by whatever means.

    Raises:
      Full: where what is raised inside says that the disk is full.
    """
    try:
        yield
    except Full:
        raise
    except Exception as error:
        if not (said := is_full(error)):
            raise
        raise Full(f"{path} can't be written: {full(pathlib.Path(path).parent, said)}") from error


def is_full(error: BaseException) -> str:
    """What the system says where an error, or its cause, is a disk, a quota or a limit of the file size that is reached; or ""."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL:
            return os.strerror(error.errno)
        if words := next((words for words in _WORDS if words in str(error)), ""):
            return words
        error = error.__cause__ or error.__context__
    return ""


def full(folder: str | os.PathLike, said: str = "No space left on device", need: int = 0, beside: str = "") -> str:
    """The sentence on a full disk: its folder, the bytes that are needed (`beside` what), where known, and those that are free."""
    left = free(folder)
    parts = ([f"{size(need)} are needed{beside}"] if need else []) + ([] if left is None else [f"{size(left)} are free"])
    return f"{said} in {folder}" + f" ({', '.join(parts)})" * bool(parts) + ": make room there, or name a folder on another disk"


def free(folder: str | os.PathLike) -> int | None:
    """Bytes that this user may still write in a folder, or in the nearest above it that there is; None where nobody knows."""
    folder = pathlib.Path(os.path.abspath(folder))
    for place in (folder, *folder.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            try:
                return shutil.disk_usage(place).free
            except FileNotFoundError:
                raise
            except OSError:
                return None
    return None


def size(count: int) -> str:
    """Bytes for people: "3.2 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,} bytes"
