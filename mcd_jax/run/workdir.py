"""The folder of a run, which may be a bucket: `runs/mcd`, or `gs://bucket/runs/mcd` through fsspec (the extra [gcs]).

Checkpoints go to a bucket directly (orbax). Everything else is small and grows line by line, which objects in a bucket can't: it is
written to a local folder and copied to the bucket when it has changed.
"""
from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import tempfile
import time
import unicodedata

from etils import epath

from mcd_jax import command
from mcd_jax.sharding import distributed

CHECKPOINTS = "checkpoints"


def named(workdir: str | os.PathLike, flag: str = "--workdir") -> str:
    """A workdir as it was typed, "~" made the home folder; `flag` is its name in messages.

    Raises:
      ValueError: it is empty, which would be the current folder, has a control character or one by which a bucket's files are
        looked up, or its whole path has one that checkpoints can't be written to.
    """
    text = os.fspath(workdir or "")
    if not text.strip():
        raise ValueError(f"{flag}= is empty: name the folder of the run, such as {flag}=runs/mcd_emoji")
    if not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text):
        raise ValueError(f"{flag}={text!r} has a character that can't be printed: name another folder")
    if is_remote(text) and (signs := [c for c in "*?[]" if c in text]):
        raise ValueError(f"{flag}={text}: {signs[0]!r} in a bucket's path is read as a pattern of names: choose another name")
    path = command.at_home(text, flag)
    for part in (path if is_remote(path) else os.path.realpath(path)).split("/"):
        if "\\" in part and not is_remote(path):
            raise ValueError(f"{flag}={text}: checkpoints can't be written below a folder with a backslash in its name, {part}: "
                             "name another folder")
        if any(unicodedata.category(c) == "Cs" for c in part):
            raise ValueError(f"{flag}={text}: checkpoints can't be written below a folder whose name is not UTF-8, {part}: name "
                             "another folder")
    return path


class Workdir:
    """The small files of a run.

    Attributes:
      folder: pathlib.Path, the workdir itself or a local copy of the bucket's.
      name: its last part.
    """

    def __init__(self, workdir, write=True, period=60.0):
        """
        Args:
          workdir: folder or bucket path.
          write: False never copies anything to the bucket.
          period: seconds between two copies by `push(soon=False)`.

        Raises:
          OSError: the bucket can't be read, or the package for its kind of path isn't installed.
        """
        workdir = named(workdir)
        self._fs, self._sent, self._write, self._period, self._last = None, {}, write, period, time.monotonic()
        if not is_remote(workdir):
            self.folder = pathlib.Path(workdir)
            self.name = self.folder.resolve().name
            return
        self.name = str(workdir).rstrip("/").rpartition("/")[2]
        import fsspec
        try:
            self._fs, self._root = fsspec.core.url_to_fs(str(workdir))
            files = self._fs.find(self._root) if self._fs.exists(self._root) else []
        except ImportError as error:
            raise OSError(f"--workdir={workdir} needs a package that isn't installed: {error}") from error
        except Exception as error:
            raise OSError(f"--workdir={workdir} can't be read: {error}") from error
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mcd_jax_"))
        for file in files:
            name = file.removeprefix(self._root).lstrip("/")
            local = (self.folder / name).resolve()
            if not name.startswith(f"{CHECKPOINTS}/") and local.is_relative_to(self.folder.resolve()):
                local.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(file, str(local))
                self._sent[local] = _stamp(local)

    def push(self, soon=True):
        """Copies to the bucket what has changed since the last time; with soon=False at most once in `period` seconds."""
        if self._fs is None or not self._write or (not soon and time.monotonic() - self._last < self._period):
            return
        self._last = time.monotonic()
        for local in sorted(p for p in self.folder.resolve().rglob("*") if p.is_file()):
            stamp = _stamp(local)
            if self._sent.get(local) != stamp:
                self._fs.put_file(str(local), f"{self._root}/{local.relative_to(self.folder.resolve()).as_posix()}")
                self._sent[local] = stamp

    def close(self):
        """Copies what is left, and removes the local copy."""
        self.push()
        if self._fs is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def opened(workdir: str | os.PathLike, write: bool = True) -> Iterator[Workdir]:
    """A `Workdir` that is closed at the end of the block."""
    with contextlib.closing(Workdir(workdir, write)) as result:
        yield result


def is_remote(workdir: str | os.PathLike) -> bool:
    """Whether a path is one of a bucket rather than of the file system."""
    return "://" in str(workdir)


def check_writable(workdir):
    """Creates the folder and tries a file in it.

    Raises:
      OSError: it can't be created or written; the sentence names it and says why.
    """
    for place in () if is_remote(workdir) else (pathlib.Path(workdir), pathlib.Path(workdir) / CHECKPOINTS):
        if place.is_symlink() and not place.exists():
            raise OSError(f"--workdir={workdir}: {place} is a link to {os.readlink(place)}, which is not there: is its disk "
                          "mounted?")
    try:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{time.time_ns()}"
        probe.write_text("")
        probe.unlink()
    except ImportError as error:
        raise OSError(f"--workdir={workdir} needs a package that isn't installed: {error} (pip install 'mcd_jax[gcs]', "
                      "or -e '.[gcs]' in a checkout, for gs://)") from error
    except KeyError as error:
        raise OSError(f"--workdir={workdir}: checkpoints go to a folder or to gs://, s3:// or az://, not to "
                      f"{error.args[0]}") from error
    except OSError as error:
        raise OSError(f"--workdir={workdir} can't be written ({getattr(error, 'strerror', None) or error}): "
                      "name a folder that this user may create files in") from error


@contextlib.contextmanager
def nothing_left(workdir: str | os.PathLike) -> Iterator[None]:
    """Context of a run's start: where it fails, the folders that it made and left empty are removed again."""
    path = pathlib.Path(os.path.expanduser(workdir or ""))
    new = [] if is_remote(workdir or "") else [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_shared(workdir: str | os.PathLike) -> None:
    """Refuses a local folder that not all processes of the job see.

    Raises:
      OSError: names the process that doesn't see what process 0 wrote.
    """
    import jax
    if jax.process_count() == 1 or is_remote(workdir):
        return
    probe = pathlib.Path(workdir) / f".shared-{distributed.together(str(time.time_ns()), 'check_shared')}"
    if jax.process_index() == 0:
        probe.write_text("")
    distributed.barrier("the probe of the workdir is written", distributed.TIMEOUT)
    seen = probe.exists()
    distributed.barrier("the probe of the workdir is looked for", distributed.TIMEOUT)
    if jax.process_index() == 0:
        probe.unlink(missing_ok=True)
    if not seen:
        raise OSError(f"--workdir={workdir} is not shared: process {jax.process_index()} doesn't see there what process 0 writes; "
                      "give a folder that every host mounts, or a bucket (gs://...)")


def _stamp(path):
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
