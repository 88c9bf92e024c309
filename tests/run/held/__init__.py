"""What test_signals.py holds a command by: each phase says that it is reached, and then lasts.

The phase is HELD=<name> of the environment; it writes the file HELD_MARK. `sleep` is what a signal can interrupt (a read that never
ends); `compute` is what it can't (compiled code), and takes HELD_SECONDS.
"""
import hashlib
import os
import pathlib
import time


def sleep(phase):
    if _reached(phase):
        time.sleep(3600)


def compute(phase):
    begin = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10 ** 5)
    each = (time.monotonic() - begin) / 10 ** 5
    if _reached(phase):
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(float(os.environ.get("HELD_SECONDS", "1.5")) / each))


def _reached(phase):
    if os.environ.get("HELD") != phase:
        return False
    pathlib.Path(os.environ["HELD_MARK"]).write_text(str(os.getpid()))
    return True
