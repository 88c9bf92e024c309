"""One process writes a workdir: the lock that a second `mcd-jax train` of the same folder meets.

`<workdir>/lock.json` says which process of which machine holds it and since when. It is taken by process 0 of a job before anything
is written, rewritten every BEAT seconds while the run goes on, and removed at its end. Who finds one that was left takes over:

* of this machine (the same boot and the same process namespace, so not of another container): at once if the process is gone, or
  if another process has its number by now; the kernel says when each began;
* of any other: when it has not been rewritten for SILENT seconds while we watched, by our own clock; at once if it is LONG_AGO old.

It is an ordinary file, made only if there is none, so it works in a bucket too. Two that take over at the same moment do it one
after the other in a folder, and read it once more after a pause: one of them finds the other's name and gives way. Commands that
only read a run, and those that put single files of their own beside it (evaluate, report, analyze), take no lock.
"""
from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid

from mcd_jax.run import small_files
from mcd_jax.run import workdir as workdir_lib

NAME = "lock.json"
BEAT = 15.0           # seconds between two signs of life
SILENT = 60.0         # seconds without one after which a process of another machine counts as gone
LONG_AGO = 900.0      # seconds by the clocks of both machines, which may differ by minutes
PAUSES = 0.5, 2.0     # seconds before the second look after a take-over: folder, bucket


class Held(OSError):
    """Another process writes this workdir; the sentence says which."""


@contextlib.contextmanager
def held(workdir: str | os.PathLike, say: Callable[[str], None] | None = None, silent: float = SILENT, beat: float = BEAT,
         flag: str = "--workdir") -> Iterator[None]:
    """Holds the lock of a workdir for the time of the block; a folder that isn't there is made, and goes if it stays empty.

    Args:
      say: gets a line before a wait; None: on stderr.
      silent, beat: seconds, see the module.
      flag: that gave the workdir.

    Raises:
      Held: another process holds it. OSError: it can't be written.
    """
    file = _File(workdir)
    new = file.make_folder()
    mine = {**machine(), "pid": os.getpid(), "began": began(os.getpid()), "token": uuid.uuid4().hex, "since": time.time()}
    _take(file, mine, f"{flag}={workdir}", say or (lambda text: print(text, file=sys.stderr, flush=True)), silent)
    over = threading.Event()
    thread = threading.Thread(target=_beats, args=(file, mine, over, beat), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=30)   # a bucket that hangs must not keep the run from its end
        with contextlib.suppress(OSError):
            if (there := file.read()) and there.get("token") == mine["token"]:
                file.remove()
            if new:
                file.remove_folder()


def _take(file, mine, what, say, silent):
    there = file.read()
    if there is None and file.create(_signed(mine)):
        return
    there = file.read() or {}
    if _lives(file, there, say, silent):
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(there.get("since", 0)))
        raise Held(f"{what} is in use: {_who(there)} has been writing it since {since}; wait for it or end it, "
                   "or choose another folder")
    with file.alone():   # or one that was slow here would remove the lock of one that has just taken over
        now = file.read()
        if now is not None and now.get("token") == there.get("token"):
            file.remove()
        file.create(_signed(mine))
    time.sleep(PAUSES[file.remote])
    winner = file.read() or {}
    if winner.get("token") != mine["token"]:
        raise Held(f"{what} is in use: {_who(winner)} has begun to write it at this very moment; "
                   "choose another folder")


def _who(there):
    return f"process {there.get('pid', '?')} on {there.get('host', 'another machine')}"


def _lives(file, there, say, silent):
    """Whether the process that wrote the lock `there` still goes on."""
    here = machine()
    if here["boot"] and {key: there.get(key) for key in here} == here:
        return there.get("began") == began(there.get("pid", -1)) is not None
    if not here["boot"] and there.get("host") == here["host"]:   # no /proc
        return _exists(there.get("pid", -1))
    if there.get("beat", time.time()) < time.time() - LONG_AGO:
        return False
    say(f"{file.path} is of {_who(there)}: waiting up to {silent:.0f} s to see whether it still runs")
    end = time.monotonic() + silent
    while time.monotonic() < end:
        time.sleep(min(1.0, silent / 20))
        now = file.read()
        if now is None:
            return False   # it has just ended
        if now != there and now:
            there |= now
            return True
    return False


def _beats(file, mine, over, beat):
    while not over.wait(beat):
        with contextlib.suppress(OSError):   # a bucket out of reach for a while
            there = file.read()
            if there and there.get("token") != mine["token"]:
                print(f"warning: {_who(there)} has taken {file.path} over: two processes write this workdir, end one of them",
                      file=sys.stderr, flush=True)
                return
            file.write(_signed(mine))


def _signed(mine):
    return {**mine, "beat": time.time()}


# ---- which process ---------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What tells this machine from others, and its containers apart: host, boot and process namespace ("" where unknown)."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def began(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot; None where there is none, or no /proc."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] in "ZX" else int(stat[19])   # a zombie writes nothing


def _exists(pid):
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


# ---- the file --------------------------------------------------------------------------------------------------------------------


class _File:
    """The lock's file, in a folder or a bucket."""

    def __init__(self, workdir):
        self.remote = workdir_lib.is_remote(workdir)
        self.path = f"{str(workdir).rstrip('/')}/{NAME}"
        if self.remote:
            import fsspec
            self._fs, self._place = fsspec.core.url_to_fs(self.path)
        else:
            self._place = pathlib.Path(workdir) / NAME

    def make_folder(self):
        """Whether there was none; a bucket needs none."""
        new = not self.remote and not self._place.parent.exists()
        if new:
            self._place.parent.mkdir(parents=True, exist_ok=True)
        return new

    def remove_folder(self):
        """Removes it if it is empty."""
        with contextlib.suppress(OSError):
            self._place.parent.rmdir()

    def alone(self):
        """Context in which no other process takes over, where the file system has locks; a bucket has none."""
        return contextlib.nullcontext() if self.remote else small_files.alone(self._place.parent)

    def read(self):
        """The dict, {} of a file that can't be read (being written right now, or foreign), None where there is none."""
        try:
            if self.remote:
                self._fs.invalidate_cache()
                text = self._fs.cat_file(self._place)
            else:
                text = self._place.read_bytes()
            found = json.loads(text)
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            return {}
        whole = isinstance(found, dict) and all(type(found.get(key, 0)) in (int, float) for key in ("since", "beat"))
        return found if whole else {}

    def create(self, content):
        """Whether there was no file, and there is one now."""
        data = json.dumps(content).encode()
        try:
            if self.remote:
                self._fs.pipe_file(self._place, data, mode="create")
            else:
                with open(self._place, "xb") as file:
                    file.write(data)
        except FileExistsError:
            return False
        return True

    def write(self, content):
        data = json.dumps(content).encode()
        if self.remote:
            self._fs.pipe_file(self._place, data)
        else:
            self._place.write_bytes(data)

    def remove(self):
        with contextlib.suppress(FileNotFoundError):
            if self.remote:
                self._fs.rm_file(self._place)
            else:
                self._place.unlink()
