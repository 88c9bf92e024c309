"""The folder of a run, which may be a bucket: `runs/mcd`, or `gs://bucket/runs/mcd` through fsspec (`pip install gcsfs`).

Checkpoints go to a bucket directly (orbax). Everything else is small and grows line by line, which objects in a bucket can't: it is
written to a local folder and copied to the bucket when it has changed.
"""
import contextlib
import pathlib
import shutil
import tempfile
import time

from mcd_jax import distributed

CHECKPOINTS = "checkpoints"


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
def opened(workdir, write=True):
    """A `Workdir` that is closed at the end of the block."""
    with contextlib.closing(Workdir(workdir, write)) as result:
        yield result


def is_remote(workdir):
    """Whether a path is one of a bucket rather than of the file system."""
    return "://" in str(workdir)


def check_shared(workdir):
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
        raise OSError(f"--workdir={workdir} is not shared: process {jax.process_index()} doesn't see there what process 0 writes. "
                      "Give a folder that every host mounts, or a bucket (gs://...)")


def _stamp(path):
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
