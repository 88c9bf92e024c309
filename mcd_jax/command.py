"""How every command reads its flags, and how it ends.

What is wrong with a command line, a config, a file or the machine is one sentence on stderr with exit status 1: the flag, key or
file, the cause, and what would be right. A traceback means a fault of this package. MCD_JAX_TRACEBACK=1 shows it for sentences too.
"""
import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import difflib
import os
import re
import sys
import traceback
import unicodedata

from mcd_jax import signals, streams

FAULTS = (ValueError, OSError, RuntimeError, MemoryError)   # RuntimeError: what JAX raises when a device fails


def printable(text: str) -> str:
    """Text as it can be printed: bytes that aren't UTF-8 as \\\\xff, and so what controls a terminal or turns the writing round."""
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf") and not _in_emoji(c) else c for c in text)


def _in_emoji(c):
    """Whether an invisible character is part of emoji: a joiner, or a letter of a flag's tag."""
    return c == "\u200d" or "\U000e0020" <= c <= "\U000e007f"


def sentence(error: BaseException) -> str:
    """What an error says, in one line: files relative to the current folder, with the notes that were added to it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:   # by the system: "[Errno 2] No such"
        said = f"{os.fsdecode(error.filename)}: {error.strerror}"
    else:
        said = str(error) or type(error).__name__
        if said == "can't start new thread":   # of Python's
            said += ": a limit of memory (ulimit -v), of processes (ulimit -u) or of the container is reached"
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]   # those of JAX have several lines
    return printable(relative(" ".join("; ".join([said, *notes]).split())))


def relative(text: str) -> str:
    """Text whose files in the current folder are named from there."""
    with contextlib.suppress(OSError):   # of a folder that is gone
        here = os.getcwd()
        return re.sub(rf"(?<![\w./-]){re.escape(here)}/(?=[^\s/])", "", text) if here != "/" else text
    return text


def tell(error: BaseException) -> None:
    """Prints an error on stderr: one of FAULTS as a sentence, another with its traceback."""
    ours = isinstance(error, FAULTS) and not isinstance(error, (NotImplementedError, RecursionError))
    if not ours or os.environ.get("MCD_JAX_TRACEBACK"):
        traceback.print_exception(error)
    if ours:
        print(f"error: {sentence(error)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def sentences(printed: bool = True) -> Iterator[None]:
    """Context of a command's work: one of FAULTS ends the process with a sentence and status 1; signals end it as `signals` says.

    Args:
      printed: whether the result of the command is what it prints, so that it has failed where stdout can't be written.

    Raises:
      SystemExit: with the sentence.
    """
    _in_utf8()
    streams.prepare()
    try:
        with signals.stoppable():
            yield
            if printed and (error := streams.lost()):
                raise OSError(f"what this command prints could not be written to its stdout: {error.strerror}")
    except (NotImplementedError, RecursionError):
        raise
    except FAULTS as error:
        if os.environ.get("MCD_JAX_TRACEBACK"):
            traceback.print_exception(error)
        sys.exit(f"error: {sentence(error)}")


def summary(doc: str | None) -> str:
    """The first line of a docstring; "" where `python -OO` has left them out."""
    return (doc or "").partition("\n")[0]


def hint(word: str, known: Sequence[str], flag: str = "") -> str:
    """What to say after a word that isn't one of `known`: the nearest of them, or all."""
    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f"did you mean {flag}{near[0]}?" if near else f"there are {', '.join(f'{flag}{name}' for name in known)}"


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The `type` of a flag that takes a whole number from `least` to `most`."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def number(text):
        with contextlib.suppress(ValueError):
            if least <= int(text) and (most is None or int(text) <= most):
                return int(text)
        raise argparse.ArgumentTypeError(f"={text} must be a whole number {bounds}")
    return number


def path(text: str) -> str:
    """The `type` of a flag that names a file or folder: not empty, which would be the current folder; "~" is the home folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("= is empty: name a file or folder, . for the current one")
    try:
        return at_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--path")) from error


def local_path(text: str) -> str:
    """The `type` of a flag that names a file or folder to write: as `path`, and on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"={text} is in a bucket, and this command writes to a disk of this machine: name a path "
                                         "there, and copy what it holds")
    return path(text)


def at_home(text: str, flag: str = "--path") -> str:
    """A path with "~" made the home folder.

    Raises:
      ValueError: nobody knows the home folder, so that a folder "~" would be made.
    """
    path = os.path.expanduser(text)
    if path == "~" or path.startswith("~/"):
        raise ValueError(f"{flag}={text}: the home folder isn't known (HOME is not set): write the whole path")
    return path


def _in_utf8():
    """`streams.in_utf8` where the process was started as `python -m mcd_jax.COMMAND`: `cli` has done it for the others."""
    if getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", "").startswith("mcd_jax"):
        streams.in_utf8()


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one sentence that names the flag and the nearest right one.

    Flags are never abbreviated, and the description is printed as it stands.
    """

    def __init__(self, *args, **kwargs):
        streams.prepare()
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """The flags; a flag or word that isn't declared is refused with the nearest.

        Raises:
          SystemExit: with the sentence.
        """
        words = list(sys.argv[1:] if args is None else args)
        flags = {flag for action in self._all() for flag in action.option_strings}
        for word in words[:words.index("--") if "--" in words else None]:   # before what is missing: it may be what was meant
            if word.startswith("--") and (flag := word.partition("=")[0]) not in flags:
                self.error(f"unknown flag {flag}; " + hint(flag[2:], sorted(name[2:] for name in flags if name[:2] == "--"), "--"))
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]!r}: flags begin with --")
        return found

    def _all(self):
        """The flags of this parser and of all of its commands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._all()
            yield action

    def error(self, message):
        """Ends the command with `message` in one sentence.

        Raises:
          SystemExit: always.
        """
        if lacking := re.match(r"the following arguments are required: ([^,/]+)", message):
            action = next(a for a in self._actions if lacking[1] in (*a.option_strings, a.metavar, a.dest))
            what = f"there are {', '.join(action.choices)}" if action.choices else action.help
            message = f"{lacking[1]} is missing" + (f" ({what})" if what else f"; {self.prog} --help says more")
        elif wrong := re.match(r"argument ([^:]+): invalid (?:int|float) value: (.+)", message):
            message = f"{wrong[1].split('/')[0]}={wrong[2]} must be a number"
        elif wrong := re.match(r"argument ([^:]+): =(.*)", message, re.DOTALL):   # of `whole` and `path`
            message = f"{wrong[1].split('/')[0]}={wrong[2]}"
        elif choice := re.match(r"argument ([^:]+): invalid choice: '(.*)' \(choose from (.+)\)", message):
            known = [name.strip(" '") for name in choice[3].split(",")]
            message = f"{choice[1].split('/')[0]} '{choice[2]}' is unknown; {hint(choice[2], known)}"
        elif no := re.match(r"argument (.+): expected (?:one|at least one) argument", message):
            message = f"{no[1].split('/')[0]} has no value"
        sys.exit(f"error: {printable(message)}")
