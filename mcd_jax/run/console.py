"""What a person who waits for a command sees on stderr: a bar with the time left, or a line now and then; a word before silence."""
from collections.abc import Iterator
import contextlib
import sys
import threading
import time

import jax
import tqdm

from mcd_jax import command

EVERY = 30.0   # seconds between two lines where there is no terminal
LONG = 2.0     # seconds of silence after which `waiting` speaks


def say(text: str) -> None:
    """A line on stderr, from the lead process only; bars stay whole."""
    if text and jax.process_index() == 0:
        tqdm.tqdm.write("\n".join(map(command.printable, text.split("\n"))), file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Context: says `what` is being done, if it takes longer than LONG seconds."""
    timer = threading.Timer(LONG, say, (f"{what} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Progress:
    """How far `total` steps, rows or files are: on a terminal a bar with the time left, elsewhere a line every EVERY seconds.

    A line without a terminal comes at the end too, if it has figures. Nothing is shown by other processes than the lead.
    """

    def __init__(self, total, what="", unit="row", first=0, keep=False, show=True):
        """
        Args:
          total: where it ends; None: unknown.
          what: in front of the count.
          unit: what is counted, in the singular.
          first: where it begins.
          keep: whether the bar stays on the screen at its end.
          show: False: nothing is shown.
        """
        self._total, self._what, self._unit, self._at, self._first = total, what, unit, first, first
        self._shown, self._of, self._bar = "", first, None
        self._on = show and jax.process_index() == 0
        self._began = self._said = time.monotonic()
        self._begun, self._soon = False, True   # soon: the first figures are shown at once
        if self._on and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total, initial=first, desc=what or None, unit=unit, dynamic_ncols=True, leave=keep)

    def step(self, count=1):
        """`count` more are done, see `reach`."""
        self.reach(self._at + count)

    def reach(self, count):
        """`count` are done. How long the first call took to come says nothing of the time left: it compiled."""
        if not self._begun:
            self._begun, self._began, self._first = True, time.monotonic(), count
            if self._bar is not None:
                self._bar.unpause()
        self.show(count)

    def show(self, count, figures=None):
        """`count` are done; `figures`, a text, are theirs and shown until others come, with the count that they are of."""
        self._at = max(self._at, count)
        if figures is not None:
            self._shown, self._of = figures, count
        if not self._on:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures(), refresh=self._at == self._total)
            self._bar.update(self._at - self._bar.n)
            return
        due = (figures and self._soon) or time.monotonic() - self._said > EVERY
        if figures if self._at == self._total else due:   # the last line waits for its own figures
            self._said, self._soon = time.monotonic(), self._soon and not figures
            print(self._line(), file=sys.stderr, flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.close()

    def _figures(self):
        return self._shown if not self._shown or self._of == self._at else f"{self._shown} at {self._unit} {self._of:,}"

    def _line(self):
        what = f"{self._what}: " if self._what else ""
        total = f"/{self._total}" if self._total else ""
        parts = [part for part in (self._figures(), self._left()) if part]
        return f"{what}{self._unit} {self._at}{total}" + (f": {', '.join(parts)}" if parts else "")

    def _left(self):
        """The time left, as text; "" where nothing tells it."""
        if not self._total or not self._first < self._at < self._total:
            return ""
        seconds = (time.monotonic() - self._began) / (self._at - self._first) * (self._total - self._at)
        return f"{tqdm.tqdm.format_interval(seconds)} left"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
