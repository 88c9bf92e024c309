"""What orbax does with the arrays of a checkpoint: reading them quietly, and the look at what was just written.

orbax asks etils for files as `folder.glob(pattern)`, which takes the folder's own name for a pattern too: below a folder "[lr=0.1]"
it found nothing, and left a checkpoint that nobody could read. `glob` here takes it for a name.
"""
import contextlib
import gc
import glob as glob_lib
import io
import logging as stdlib_logging
import os
import time

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from mcd_jax.run import workdir as workdir_lib

_LOCAL = type(epath.Path("."))
_etils_glob = _LOCAL.glob


def glob(self, pattern):
    """`epath.Path.glob` that takes signs such as [ in the path itself as they stand; of a bucket it is etils'."""
    if workdir_lib.is_remote(os.fspath(self)):
        return _etils_glob(self, pattern)
    return (self / name for name in sorted(glob_lib.glob(pattern, root_dir=os.fspath(self))))


_LOCAL.glob = glob


def told_elsewhere(record):
    """Whether a log record is no traceback of orbax's threads: their errors are raised by `Checkpoints.wait`, in one sentence."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


stdlib_logging.getLogger("absl").addFilter(told_elsewhere)


def read(path, abstract, partial):
    """The arrays of a checkpoint. When one can't be read, the tracebacks of the reads beside it are not printed.

    Raises:
      Exception: whatever orbax raised, on every process as soon as it happened on one.
    """
    args = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=partial)
    state, failed = None, None
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler, quiet():
        try:
            state = handler.restore(path, args=args)
        except Exception as error:
            failed = error.with_traceback(None)
            time.sleep(0.1)
            gc.collect()
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.int32(failed is not None)).any():
        failed = failed or OSError("another process can't read its part")
    if failed is not None:
        raise failed
    return state


def check(path):
    """Opens every array of a checkpoint that was just written, without reading its values.

    Raises:
      Exception: whatever orbax raised.
    """
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler, quiet():
        handler.metadata(path)


@contextlib.contextmanager
def quiet():
    """Context: asyncio's words on tasks that failed beside another one are not printed, nor what is written to stderr."""
    chatter = stdlib_logging.getLogger("asyncio")
    with contextlib.redirect_stderr(io.StringIO()):
        disabled, chatter.disabled = chatter.disabled, True
        try:
            yield
        finally:
            chatter.disabled = disabled
