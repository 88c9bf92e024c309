"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a command; docs/signals.md has the table.

Three rules. While a command starts it ends at once. While it works, what it does is unwound, so that nothing half-written stays,
and it ends within GRACE seconds. While a run trains it saves (`run.preemption`). Each says one line and has exit status 128 + the
signal's number, or 75 where a run is saved; the second Ctrl-C ends any of them at once. A signal that is ignored when the command
starts (nohup) stays ignored.

It imports nothing that takes long, and does nothing outside of the main thread.
"""
from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import socket
import sys
import threading

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
GRACE = 5.0   # seconds for unwinding, which waits for code that no signal interrupts: a compile, a read


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {NAMES[number]}")
        self.number = number


def leave(status: int, line: str = "") -> None:
    """Ends the process now, with a line on stderr: it waits for no thread that reads, and compiled code isn't torn down."""
    for name in ("stdout", "stderr"):
        with contextlib.suppress(Exception):   # the terminal may be gone
            getattr(sys, name).flush()
    with contextlib.suppress(OSError):   # print would refuse where the signal came in the middle of another print
        os.write(2, f"{_fresh()}{line}\n".encode() if line else b"")
    os._exit(status)


def _fresh():
    """What begins a line of its own after a bar, or after the ^C of a terminal."""
    return "\r\033[K" if os.isatty(2) else ""


def end(number: int, frame=None) -> None:
    """A signal's handler: the command ends at once."""
    leave(128 + number, f"stopped by {NAMES[number]}")


@contextlib.contextmanager
def handled(handler: Callable, second: Callable[[], str] | None = None, numbers=tuple(NAMES), grace: float | None = None
            ) -> Iterator[None]:
    """Context in which `handler(number, frame)` is what signals do, as soon as the main thread runs Python.

    Args:
      second: if given, a second Ctrl-C ends the process at once; what is left then, added to the line that says so.
      grace: seconds after which the process ends in any case; needs `second`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno() if second else -1, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours, second, grace), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, old in before.items():
            signal.signal(number, old)
        theirs.close()


def _listen(ours, second, grace):
    """Hears of signals at once, in a thread of its own: the main thread may be in compiled code for minutes."""
    numbers = []
    with ours:
        while True:
            try:
                data = ours.recv(64)
            except TimeoutError:
                end(numbers[0])
            if not data:
                return
            numbers += [number for number in data if number in NAMES]
            if numbers.count(signal.SIGINT) > 1:
                left = ""
                with contextlib.suppress(Exception):
                    left = second()
                leave(128 + signal.SIGINT, f"stopped at once by a second Ctrl-C{left}")
            if numbers:
                ours.settimeout(grace)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Context of a command's work: a signal unwinds it and ends the process with its line and status."""
    asked = []

    def unwind(number, frame):
        asked.append(number)
        if len(asked) == 1:
            raise Stopped(number)
    with handled(unwind, str, grace=GRACE):
        try:
            yield
        except BaseException as error:
            if asked or isinstance(error, KeyboardInterrupt):   # also what a library made of it
                end(asked[0] if asked else getattr(error, "number", signal.SIGINT))
            raise
        if asked:   # where a library swallowed it
            end(asked[0])
