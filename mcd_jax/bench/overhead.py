"""What the pipeline costs beside the work that it is there for: views, draws, batches, reading, grain."""
import time
import unittest.mock

from mcd_jax.data import decode as decode_lib
from mcd_jax.data.ops import image_ops
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views


class Stopwatch:
    """Adds up the CPU time that threads spend inside functions."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*args, **kwargs):
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start
        return timed


_WATCH = Stopwatch()


def watched_crop(*args):
    """The operation crop, its time added up."""
    op = image_ops.crop(*args)
    return op._replace(run=_WATCH.around(op.run))


def overhead(source, pixels, batch_size, seconds):
    """Share of the CPU time, through one of grain's threads, that goes neither into decoding nor into cropping and resizing."""
    views = Views({"image": f"decode|{__name__}.watched_crop({pixels},0.9)"})
    with unittest.mock.patch.object(decode_lib, "decode", _WATCH.around(decode_lib.decode)):
        data = Pipeline(source, views, 0, batch_size, workers=1, prefetch=1)
        batches = data.iterate()
        next(batches)
        inside, whole, clock = _WATCH.seconds, time.process_time(), time.perf_counter()
        while time.perf_counter() - clock < seconds:
            next(batches)
        share = 1 - (_WATCH.seconds - inside) / (time.process_time() - whole)
        data.close()
    return share
