"""Reading in processes of their own, for hosts with more cores than one interpreter can keep busy.

A worker process (`workers`) opens the source and the views anew, from what describes them, and sends back with the rows what its
Reader found. The process that trains counts it (`Reader.take`), so counts, log and the limit on bad examples are those of a
pipeline without workers. One that dies ends the run with its exit code, and the run goes on from its checkpoint.

Threads are the default because decoding, resizing and blurring are C code that releases the interpreter's lock: on two cores,
two threads make 1.6 to 1.9 times what one makes of photos, as do two processes. But a row holds the lock for some 0.2 ms, so the
threads of one interpreter make about 4,000 rows a second at most (small images, where little else is left to do, get there
with two cores). Beyond that, or beyond a dozen cores, take processes. Each opens the source: give shards their index first.
"""
from collections.abc import Callable

from mcd_jax.data import workers


def pieces(build: Callable, first: int, processes: int, threads: int, ahead: int) -> workers.Ordered:
    """Iterator over (rows, reports of `Reader.reports`) of the pieces from `first` on, of which each process makes `ahead` ahead.

    Args:
      build: () -> an object with `piece(number)` -> {key: array} and `reports()` -> list; it must be one that can be pickled.
    """
    return workers.Ordered(f"{__name__}:maker", (build,), first, processes, threads, ahead)


def maker(build: Callable) -> Callable:
    """number -> (rows, reports), in the worker."""
    built = build()
    return lambda number: (built.piece(number), built.reports())
