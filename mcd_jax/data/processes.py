"""Reading in processes of their own, for hosts with more cores than one interpreter can keep busy.

A `Remote` makes rows in a worker process: there it opens the source and the views anew, from what describes them, and sends back
with the rows what its Reader found. The process that trains counts it (`Reader.take`), so counts, log and the limit on
bad examples are those of a pipeline without workers. grain starts the processes and carries arrays through shared memory; one
that dies ends the run with its exit code, and the run goes on from its checkpoint.

Threads are the default because decoding, resizing and blurring are C code that releases the interpreter's lock: on two cores,
two threads make 1.6 to 1.9 times what one makes of photos, as do two processes. But a row holds the lock for some 0.2 ms, so the
threads of one interpreter make about 4,000 rows a second at most (small images, where little else is left to do, get there
with two cores). Beyond that, or beyond a dozen cores, take processes. Each opens the source: give shards their index first.
"""
import json
import threading

from absl import flags
import grain
import numpy as np

from mcd_jax.data.follow import follow_parent


class Remote:
    """number -> ({key: array}, reports), see `Reader.reports`; may be sent to another process.

    Args:
      build: () -> an object with `piece(number)` -> {key: array} and `reports()` -> list; it must be one that can be pickled.
    """

    def __init__(self, build):
        self._build, self._lock, self._built = build, threading.Lock(), None

    def __call__(self, number):
        with self._lock:
            if self._built is None:
                self._built = self._build()
        rows = self._built.piece(number)
        return rows, np.frombuffer(json.dumps(self._built.reports()).encode(), np.uint8)

    def __reduce__(self):
        return Remote, (self._build,)


def spread(data, processes, buffer):
    """The elements of `data` (a grain IterDataset) in their order, made by so many processes, `buffer` ahead in each."""
    if not flags.FLAGS.is_parsed():   # of a program without absl's app; grain asks for a flag of its own
        flags.FLAGS.mark_as_parsed()
    return data.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=buffer),
                            worker_init_fn=_begin)


def read_reports(array):
    """The reports that a `Remote` sent."""
    return json.loads(array.tobytes())


def _begin(number, count):
    follow_parent()
