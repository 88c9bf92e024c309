"""The signals that ask a run to save its state and stop."""
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit status of a run that saved its state and wants to be started again (EX_TEMPFAIL)


class Preemption:
    """Whether this run was asked to stop: SIGTERM or SIGINT in one process, jax's preemption service in several.

    The second SIGINT interrupts at once. `close()` puts the previous handlers back.
    """

    def __init__(self):
        self._asked, self._polls, self._previous = False, 0, {}
        self._together = jax.distributed.is_initialized()  # its service owns SIGTERM and tells every process
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._interrupt} | ({} if self._together else {signal.SIGTERM: self._ask})
            self._previous = {s: signal.signal(s, handler) for s, handler in handlers.items()}

    def reached(self):
        """True from the moment at which all processes agreed to stop. With several processes, each must poll equally often."""
        if self._together and not self._asked:
            self._polls += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._polls)
        return self._asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number, frame):
        self._asked = True

    def _interrupt(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked = True
