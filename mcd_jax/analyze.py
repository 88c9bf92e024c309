"""Looks into trained runs: `mcd-jax analyze gap --workdir=runs/clip_emoji`; the first word names an analysis of a method.

Results go to `<workdir>/analysis/<name>.json`, and `mcd-jax report` draws what it finds there.
"""
import json
import math

from mcd_jax import command, plugins
from mcd_jax.run import atomic, small_files
from mcd_jax.run import workdir as workdir_lib


def names():
    """The analyses that there are, sorted."""
    return plugins.names("analysis")


def write(workdir, name, result, page=None):
    """Writes an analysis into a run's folder, whole or not at all; numbers get six digits, those that aren't finite become null.

    page: name of the run -> HTML, which then stands beside it. Returns where: "<workdir>/analysis/<name>.json[ and <name>.html]".
    """
    with workdir_lib.opened(workdir) as small:
        texts = {"json": json.dumps(plain(result)) + "\n", **({"html": page(small.name)} if page else {})}
        folder = small.folder / "analysis"
        folder.mkdir(exist_ok=True)
        for kind, text in texts.items():
            atomic.write_text(folder / f"{name}.{kind}", text)
    return f"{str(workdir).rstrip('/')}/analysis/{name}.json" + (f" and {name}.html" if page else "")


def read(folder):
    """{name: result} of the analyses in the folder of a run (pathlib.Path); a file that can't be read is left out."""
    found = {}
    for name in names():
        result = small_files.read_or(folder / "analysis" / f"{name}.json", None)
        if result is not None:
            found[name] = result
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
    parser = command.Parser(prog="mcd-jax analyze", description=command.summary(__doc__))
    commands = parser.add_subparsers(dest="analysis", required=True, metavar="analysis")
    former = plugins.former_names("analysis")
    for name in names():
        module = plugins.load("analysis", name)
        title = command.summary(module.__doc__)
        aliases = [old for old, new in former.items() if new == name]
        module.arguments(commands.add_parser(name, aliases=aliases, help=title, description=title))
    args = parser.parse_args(args)
    with command.sentences():
        plugins.load("analysis", args.analysis).run(args)


if __name__ == "__main__":
    main()
