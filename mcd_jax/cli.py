"""The console command `mcd-jax COMMAND ...`: what `python -m` does with the command's module; no other is imported."""
import difflib
import os
import runpy
import signal
import sys

from mcd_jax import signals, streams

COMMANDS = {   # command: its module, and what it does
    "train": ("mcd_jax.train", "train a config, or go on where its run stopped"),
    "evaluate": ("mcd_jax.evaluate", "the evaluations of a run, or others, on a checkpoint of it"),
    "report": ("mcd_jax.report", "a run as one HTML page: curves, figures, pictures"),
    "results": ("mcd_jax.results", "tables of means and deviations over runs"),
    "search": ("mcd_jax.search", "find images of a folder by text or by image"),
    "embed": ("mcd_jax.embed", "write a run's embeddings of a data set into a file"),
    "analyze": ("mcd_jax.analyze", "look into a trained run: modality gap, concepts, attention, ..."),
    "convert": ("mcd_jax.convert", "import and export open_clip, Hugging Face, OpenAI and big_vision weights"),
    "sweep": ("mcd_jax.sweep", "train the many runs that a config's sweep(add) lists"),
    "compile": ("mcd_jax.compile", "what a config needs on a TPU topology that isn't here"),
    "config": ("mcd_jax.config", "explain the keys of a config"),
    "index": ("mcd_jax.data.tools.index", "index tar and TFRecord shards for random access"),
    "pack": ("mcd_jax.data.tools.pack", "pack a data set into array_record shards"),
    "inspect": ("mcd_jax.data.tools.inspect", "a page with the rows of a config's batch, as the model sees them"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(["usage: mcd-jax COMMAND ...", "", *(f"  {name.ljust(width)}  {text}" for name, (_, text) in COMMANDS.items()),
                      "", "mcd-jax COMMAND --help says more about one; mcd-jax --version prints the version."])


def main(words: list[str] | None = None) -> None:
    """Runs a command line, that of the process unless `words` are given; ends with the command's exit status."""
    if words is None:
        streams.in_utf8()
    streams.prepare()
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name == "--version":
        import mcd_jax
        print(f"mcd-jax {mcd_jax.__version__}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: mcd-jax has no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(1)
    else:
        run(name, rest)


def run(name: str, words: list[str]) -> None:
    """Runs the module of a command as the main module of this process, with `words` as its arguments."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        sys.exit("error: the current folder does not exist any more: cd into one that does")
    if here not in sys.path:
        sys.path.append(here)   # modules of one's own, by their dotted path in a config; as the last, so that none is shadowed
    sys.argv = [f"mcd-jax {name}", *words]
    for number in signals.NAMES:   # while it imports; then `command.sentences` takes over
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signals.end)
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
