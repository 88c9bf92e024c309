"""The standard streams and the encoding of a command: a log, a pipe or a terminal that goes away costs no work.

It imports nothing that takes long.
"""
import errno
import io
import os
import select
import sys

STANDARD = ("stdin", "stdout", "stderr")


def prepare() -> None:
    """Makes stdin, stdout and stderr of this process fit to be used without a thought; again and again is the same as once.

    * One that was closed (`>&-`, a daemon) is the null device: else the next file that is opened would get its number, and what
      libraries print.
    * What can't be written to stdout or stderr any more (a full disk, a reader that has ended, a terminal that is gone) is dropped;
      see `lost`.
    * What their encoding lacks is printed as \\u2764.
    """
    for number, name in enumerate(STANDARD):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)   # gets the lowest number that is free
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)   # not `number`, which may be a library's socket by now
            stream = io.TextIOWrapper(io.BufferedRandom(io.FileIO(null, "r+", closefd=False)), encoding="utf-8")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for name in STANDARD[1:]:
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper and not isinstance(_raw(stream), _Raw):
            stream.flush()
            setattr(sys, name, _kept(stream))
            setattr(sys, f"__{name}__", getattr(sys, name))
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Raw(io.FileIO):
    """A file descriptor whose writes never fail; `lost` is the first error that there was."""

    lost = None

    def write(self, data):
        try:
            while (written := super().write(data)) is None:   # full, and some other program made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def _raw(stream):
    return getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))


def _kept(stream):
    """A text stream like `stream`, on its file descriptor, whose writes never fail."""
    raw = _Raw(stream.fileno(), "wb", closefd=False)
    buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)   # python -u
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


def lost() -> OSError | None:
    """Why a part of what was printed on stdout is nowhere; None where nothing is lost, or its reader had enough (`| head`)."""
    sys.stdout.flush()
    error = getattr(_raw(sys.stdout), "lost", None)
    return None if error is None or error.errno == errno.EPIPE else error


def in_utf8() -> None:
    """Starts this process anew in Python's UTF-8 mode where the locale has another encoding; does nothing elsewhere.

    Names of files, and so the keys of examples and the part that is held out, are then the same on every machine; libraries in C++
    take no other names. What is printed is UTF-8 too, unless PYTHONIOENCODING says otherwise. A program that Python reads from
    stdin (`python -`) can't be read again, and goes on as it is.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1" and sys.executable \
            and "-" not in sys.orig_argv:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
