"""The configs of the package, and how the name of one becomes a file: `--config=mcd_emoji:ARGUMENTS`, `--evals=zeroshot:ARGUMENTS`.

A name stands for a file of the package: `configs/` in a checkout, `mcd_jax/configs` where it is installed. A path stands for the
file at that path. Both places are imported as `mcd_jax.configs` ("from mcd_jax.configs import emoji"), which works in a checkout,
in an installed package and in config files anywhere, and leaves the name `configs` to whoever has such a folder.
"""
import difflib
import pathlib
import re

_HERE = pathlib.Path(__file__).resolve().parent
FOLDER = next(folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir())
FUNCTIONS = {"config": "get_config", "evals": "get_evals"}   # what a file of each kind defines
__path__ = [str(FOLDER)]   # so that the files of the folder are modules of this one


def names(kind: str = "config") -> dict[str, pathlib.Path]:
    """{name: file} of the package's configs (kind "config") or evaluations ("evals"), sorted; files of shared parts are neither.

    A name is that of the file. Where two folders have a file of the same name, it is "folder/name".
    """
    defines = re.compile(rf"^(def )?{FUNCTIONS[kind]}\b", re.MULTILINE)
    files = [file for file in sorted(FOLDER.rglob("*.py")) if defines.search(file.read_text(encoding="utf-8"))]
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else _inside(file): file for file in files}


def resolve(spec: str, kind: str = "config", flag: str | None = None) -> str:
    """The file that "NAME[:ARGUMENTS]" or "FILE[:ARGUMENTS]" names, as "FILE[:ARGUMENTS]".

    Args:
      kind: "config" or "evals".
      flag: what the user wrote it after, for the message; default: --config or --evals.

    Raises:
      FileNotFoundError: there is neither such a file nor such a name; the sentence has the nearest names.
    """
    name, colon, arguments = str(spec).partition(":")
    if pathlib.Path(name).is_file():
        return str(spec)
    known = names(kind)
    path = known.get(name) or {_inside(file): file for file in known.values()}.get(name)
    if path is None:
        raise FileNotFoundError(_missing(name, known, flag or f"--{kind}", spec))
    return f"{path}{colon}{arguments}"


def _inside(file):
    return file.relative_to(FOLDER).with_suffix("").as_posix()


def _missing(name, known, flag, spec):
    """The sentence about a name that stands for nothing."""
    stem = pathlib.PurePath(name).stem
    if name.endswith(".py") or "/" in name or "\\" in name:
        hint = f"; the package has one of that name: {flag}={stem}" if stem in known else ""
        return f"{flag}={spec}: there is no file {name}{hint}"
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"
    return f"{flag}={spec}: the package has no {name!r}; {hint} (a file of your own is named by its path, such as my/config.py)"
