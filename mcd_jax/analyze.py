"""Looks into trained runs: `python -m mcd_jax.analyze gap --workdir=runs/clip_emoji`; the first word is a module of `analyses/`.

Results go to `<workdir>/analysis/<name>.json`, and `python -m mcd_jax.report` draws what it finds there.
"""
import argparse
import json
import math
import os
import pkgutil
import sys

from mcd_jax import analyses
from mcd_jax import workdir as workdir_lib
from mcd_jax.load import load


def names():
    """The analyses that there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(analyses.__path__))


def write(workdir, name, result, page=None):
    """Writes an analysis into a run's folder, whole or not at all; numbers get six digits, those that aren't finite become null.

    page: name of the run -> HTML, which then stands beside it. Returns where: "<workdir>/analysis/<name>.json[ and <name>.html]".
    """
    with workdir_lib.opened(workdir) as small:
        texts = {"json": json.dumps(plain(result)) + "\n", **({"html": page(small.name)} if page else {})}
        folder = small.folder / "analysis"
        folder.mkdir(exist_ok=True)
        for kind, text in texts.items():
            part = folder / f".{name}.{os.getpid()}.{kind}"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / f"{name}.{kind}")
    return f"{str(workdir).rstrip('/')}/analysis/{name}.json" + (f" and {name}.html" if page else "")


def read(folder):
    """{name: result} of the analyses in the folder of a run (pathlib.Path); a file that can't be read is left out."""
    found = {}
    for name in names():
        try:
            found[name] = json.loads((folder / "analysis" / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
    return found


def plain(value):
    """A result as it is written: keys as text, numbers with six digits, those that aren't finite as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def main(args=None):
    parser = argparse.ArgumentParser(prog="python -m mcd_jax.analyze", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="analysis", required=True, metavar="analysis")
    for name in names():
        module = load("analyses", name)
        title = module.__doc__.splitlines()[0]
        module.arguments(commands.add_parser(name, help=title, description=title))
    args = parser.parse_args(args)
    try:
        load("analyses", args.analysis).run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
