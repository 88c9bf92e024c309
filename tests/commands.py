"""Commands run in this process, as `mcd-jax NAME WORDS` would be, for the tests of what they say."""
import contextlib
import io
import os
import sys
from typing import NamedTuple
from unittest import mock

from absl import app, flags

from mcd_jax import cli


class Ended(NamedTuple):
    """How a command ended: its exit status, and what it printed."""
    status: int
    out: str
    err: str


@contextlib.contextmanager
def own_flags():
    """Context in which absl knows no flags of any command: two commands have a --config each; put back at the end."""
    taken = {name: flags.FLAGS[name] for name in flags.FLAGS
             if flags.FLAGS.find_module_defining_flag(name, "mcd_jax").partition(".")[0] in ("mcd_jax", "__main__")}
    before, environment, path = set(flags.FLAGS), dict(os.environ), list(sys.path)
    for name in taken:
        delattr(flags.FLAGS, name)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before | (set(taken) & set(flags.FLAGS)):
            delattr(flags.FLAGS, name)
        for name, flag in taken.items():
            flags.FLAGS[name] = flag
        flags.FLAGS.unparse_flags()
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path


def ended(words):
    """Runs a command line to its end. An exception that the command lets pass is a fault, and passes."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = list(sys.argv)
    with own_flags(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(app, "run", _run):
        try:
            cli.main(list(words))
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                err.write(f"{status}\n")
                status = 1
        finally:
            sys.argv = argv
    return Ended(status or 0, out.getvalue(), err.getvalue())


def _run(main, flags_parser):
    main(flags_parser(sys.argv))
