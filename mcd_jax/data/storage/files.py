"""Files wherever they are: patterns, ranged reads and a bounded local cache, for local paths and any fsspec url.

A local file is read with `os.pread`. http(s) is read with requests and needs a server that answers byte ranges. Every
other url (gs://, s3://, memory://, ...) goes through fsspec, which may want one more package (gcsfs, s3fs, ...).

What was opened must stay what it was: a file that vanished or changed since then raises `Changed`. Local files and http
tell on every read; other stores are asked at most once a minute, and whenever a read comes short or fails.
"""
import concurrent.futures
import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import os
import re
import threading
import time
import urllib.parse

from mcd_jax.data.storage.braces import braces
from mcd_jax.data.storage.stores import is_local, path, store

PAUSES = (0.2, 1.0)  # seconds before the second and before the third try
CHECK = 60.0  # seconds after which a store that does not tell on its own is asked again
CACHE = "~/.cache/mcd_jax/files"
CACHE_MIB = 16_384
_BLOCK = 8 * 2 ** 20  # bytes that `local` asks for at a time
_CACHED = re.compile(r"[0-9a-f]{16}-.*")


class Changed(OSError):
    """A file is no longer the one that was opened. The sentence names it."""


def expand(patterns, name="data.source.path", inside=()):
    """The files that `patterns` stand for.

    Args:
      patterns: a path or url, or a list of them. "{00..12}" counts (leading zeros are kept), "{a,b}" lists, and what has
        *, ? or [...] is looked up; http(s) has no listing, so there only braces work. "~" is the home folder.
      name: what to call the patterns in messages.
      inside: patterns of the files that a folder of this machine stands for.

    Returns:
      list of str in the order of the patterns; what one * stands for is sorted by name.

    Raises:
      FileNotFoundError: nothing fits a pattern, or a file that it names is not there.
      ValueError: braces that can't be read.
    """
    found, named = [], []
    patterns = [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(one, (str, os.PathLike)) for one in patterns):
        raise ValueError(f"{name}={patterns!r} must be a path, url or pattern, or a list of them")
    for pattern in map(os.fspath, patterns):
        if is_local(pattern) and os.path.isfile(path(pattern)):
            found.append(path(pattern))
            continue
        if is_local(pattern) and os.path.isdir(path(pattern)):
            found += _inside(path(pattern), inside, name)
            continue
        for one in braces(pattern):
            if any(sign in one for sign in ("*" if one.startswith("http") else "*?[")):  # a web address may have a ?query
                some = _retried(functools.partial(store(one).find, path(one)), ValueError, ImportError)
                if not some:
                    raise FileNotFoundError(f"{name}: no file fits {one!r}")
                found += some
            else:
                found.append(path(one))
                named.append((path(one), pattern))
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for (url, pattern), there in zip(named, pool.map(lambda pair: _exists(pair[0]), named)):
            if not there:
                raise FileNotFoundError(f"{name}: no file fits {pattern!r}" + f" (there is no {url})" * (url != pattern))
    return found


def _inside(folder, patterns, name):
    """The files in a folder whose names fit one of the patterns, sorted."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    found = [os.path.join(folder, one) for one in names if any(fnmatch.fnmatchcase(one, pattern) for pattern in patterns)]
    if not found:
        seen = f"it holds {len(names):,} files, the first is {names[0]}" if names else "it holds no files"
        what = f"with no file called {' or '.join(patterns)}" if patterns else "and no file"
        raise FileNotFoundError(f"{name}: {folder} is a folder {what}: {seen}; name the files by a pattern")
    return found


class File:
    """One file for ranged reads. Safe from any number of threads; may be pickled.

    Attributes:
      url: str.
      size: bytes.
      stamp: str that changes when the file's contents do: its size with its time of change or etag.
    """

    def __init__(self, url):
        """Raises FileNotFoundError if there is none, ImportError if the url's store needs a package."""
        self.url = path(url)
        self.size, self.stamp = self._info()
        self._checked = time.monotonic()

    def read(self, offset, size):
        """`size` bytes from `offset`, tried three times.

        Raises:
          ValueError: the range is not inside the file.
          Changed: the file changed or vanished since it was opened.
          OSError: the third try failed too; the sentence names the file.
        """
        if not 0 <= offset <= offset + size <= self.size:
            raise ValueError(f"{self.url} has {self.size} bytes: there is no range of {size} from {offset}")
        if not size:
            return b""
        try:
            return _retried(functools.partial(self._once, offset, size), Changed)
        except Changed:
            raise
        except FileNotFoundError as error:
            raise Changed(f"{self.url} vanished while it was in use") from error
        except Exception as error:
            raise OSError(f"{self.url}: {size} bytes from {offset} can't be read, tried {len(PAUSES) + 1} times "
                          f"({type(error).__name__}: {error})") from error

    def check(self):
        """Raises Changed if the file is no longer the one that was opened."""
        try:
            now = self._info()
        except FileNotFoundError as error:
            raise Changed(f"{self.url} vanished while it was in use") from error
        self._same(now)
        self._checked = time.monotonic()

    def _info(self):
        return _retried(functools.partial(store(self.url).info, self.url), FileNotFoundError, ImportError)

    def _once(self, offset, size):
        data, now = store(self.url).read(self.url, offset, size)
        if now is not None:
            self._same(now)
        elif len(data) != size or time.monotonic() - self._checked > CHECK:
            self.check()
        if len(data) != size:
            raise OSError(f"only {len(data)} bytes came")
        return data

    def _same(self, now):
        if now != (self.size, self.stamp):
            raise Changed(f"{self.url} changed while it was in use: it was {self.stamp}, now it is {now[1]}; "
                          "files must stay as they are while a job reads them")


def basename(url):
    """The last part of the path, without an http query."""
    return os.path.basename(url if is_local(url) else urllib.parse.urlsplit(url).path)


def write(url, data):
    """Writes bytes so that nobody ever sees half of them. Raises OSError where that is not allowed."""
    store(url).write(path(url), data)


def _exists(url):
    try:
        File(url)
    except FileNotFoundError:
        return False
    return True


def _retried(work, *final):
    """work(), and again after a pause when it raises anything but `final`."""
    for pause in (*PAUSES, None):
        try:
            return work()
        except final:
            raise
        except Exception:
            if pause is None:
                raise
            time.sleep(pause)


# ---- the cache: who uses a file holds a shared lock on it, who writes one an exclusive lock; `.lock` guards the folder ----

_held = {}  # path -> (inode, descriptor that holds the lock)
_holding = threading.Lock()


def local(url, cache_mib=CACHE_MIB, folder=CACHE):
    """The path of a whole file on this machine: `url` itself if it is local, else a copy in a bounded cache.

    The copy is made once for all threads and processes of the machine. When it doesn't fit, those used longest ago go
    first; a file that was given to a living process stays until that process ends.

    Args:
      cache_mib: MiB that the copies in `folder` may take.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it doesn't fit beside the files that are in use.
    """
    file = File(url)
    if is_local(url):
        return file.url
    folder = os.path.expanduser(folder)
    os.makedirs(folder, exist_ok=True)
    name = hashlib.sha256(f"{file.url} {file.stamp}".encode()).hexdigest()[:16] + "-" + basename(file.url)[-100:]
    copy = os.path.join(folder, name)
    while not _hold(copy):
        with _locked(folder):
            part = None if os.path.exists(copy) else _start(copy + ".part", file, folder, cache_mib * 2 ** 20)
        if part is None:  # somebody else is at it
            time.sleep(0.02)
            continue
        done = False
        try:
            for offset in range(0, file.size, _BLOCK):
                os.pwrite(part, file.read(offset, min(_BLOCK, file.size - offset)), offset)
            done = True
        finally:
            with _locked(folder):
                os.replace(copy + ".part", copy) if done else os.remove(copy + ".part")
            os.close(part)
    return copy


def _hold(copy):
    """Marks a copy as used by this process until it ends; False if there is none."""
    with _holding:
        if copy in _held and _inode(copy) == _held[copy][0]:
            os.utime(copy)
            return True
        try:
            fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        fcntl.flock(fd, fcntl.LOCK_SH)
        if _inode(copy) != os.fstat(fd).st_ino:  # it was thrown out before we had the lock
            os.close(fd)
            return False
        os.utime(copy)
        if copy in _held:
            os.close(_held[copy][1])
        _held[copy] = os.fstat(fd).st_ino, fd
        return True


def _inode(name):
    try:
        return os.stat(name).st_ino
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _locked(folder):
    fd = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _start(part, file, folder, room):
    """Descriptor of a locked new file that has its final size already, or None if somebody is writing it."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    try:
        _make_room(part, file, folder, room)
        os.truncate(fd, file.size)
    except BaseException:
        os.remove(part)
        os.close(fd)
        raise
    return fd


def _make_room(part, file, folder, room):
    others = [entry for entry in os.scandir(folder) if _CACHED.fullmatch(entry.name) and entry.path != part]
    used = sum(entry.stat().st_size for entry in others)
    for entry in sorted(others, key=lambda entry: entry.stat().st_mtime):
        if used + file.size <= room:
            break
        fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(entry.path)
            used -= entry.stat().st_size
        os.close(fd)
    if used + file.size > room:
        raise OSError(f"{file.url} ({file.size / 2 ** 20:,.1f} MiB) doesn't fit into the cache {folder}: "
                      f"{used / 2 ** 20:,.1f} of its {room / 2 ** 20:,.1f} MiB are in use; raise cache_mib")
