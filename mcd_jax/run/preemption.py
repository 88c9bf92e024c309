"""The signals that ask a run to save its state and stop."""
from collections.abc import Callable
import contextlib
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from mcd_jax import signals

PREEMPTED = 75  # exit status of a run that saved its state and wants to be started again (EX_TEMPFAIL)


class Preemption:
    """Whether this run was asked to stop: by SIGINT, SIGTERM or SIGHUP in one process, by jax's preemption service in several.

    The second SIGINT ends the process at once. `close()` puts the previous handlers back.

    Attributes:
      reason: what asked, such as "Ctrl-C".
    """

    def __init__(self, newest: Callable[[], int | None] = lambda: None):
        """
        Args:
          newest: the step of the newest checkpoint, which is what a second SIGINT leaves.
        """
        self.reason, self._asked, self._polls, self._armed = signals.NAMES[signal.SIGTERM], False, 0, False
        self._together = jax.distributed.is_initialized()  # its service owns SIGTERM and tells every process
        self._main, self._stack = threading.current_thread() is threading.main_thread(), contextlib.ExitStack()
        numbers = [n for n in signals.NAMES if not (self._together and n == signal.SIGTERM)]
        self._stack.enter_context(signals.handled(self._ask, lambda: _left(newest()), numbers))

    def reached(self) -> bool:
        """True from the moment at which all processes agreed to stop. With several processes, each must poll equally often."""
        if self._together and not self._asked:
            self._polls += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._polls)
        return self._asked

    def unless_asked(self, function: Callable, *arguments) -> Any:
        """function(*arguments), or None where the signal came first; a signal ends its waiting and computing.

        Several processes have to stop at one step, so with them it is not ended.
        """
        try:
            try:
                self._armed = self._main and not self._together
                return None if self._asked and self._armed else function(*arguments)
            finally:
                self._armed = False
        except signals.Stopped:   # around the other: `_ask` may still raise when the function has returned
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._stack.close()

    def _ask(self, number, frame):
        if self._together:
            self.reason = signals.NAMES[number]
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not self._asked:
            self._asked, self.reason = True, signals.NAMES[number]
        if self._armed:
            self._armed = False
            raise signals.Stopped(number)


def _left(step):
    return "; no checkpoint was saved" if step is None else f"; the newest checkpoint is of step {step:,}"
