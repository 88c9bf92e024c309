"""Which format a folder or file of another library has, and its model."""
import json
import os
import pathlib

from mcd_jax.convert import formats


def is_workdir(path: str | os.PathLike) -> bool:
    """Whether `path` is the folder of a run of ours: its config.json says what was trained."""
    file = pathlib.Path(path) / "config.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (pathlib.Path(path) / "checkpoints").is_dir()
    return isinstance(stored, dict) and "model" in stored and "model_type" not in stored


def read(path: str | os.PathLike, format: str = "", name: str = "", tokenizer: str = ""):
    """The `runs.Imported` of a foreign checkpoint.

    Args:
      path: file or folder. format: "": found out by its files. name, tokenizer: as the format's `load` takes them.

    Raises:
      FileNotFoundError: nothing there. ValueError: no format reads it, or what it holds isn't both towers of a model.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no run, folder or file {path}")
    format = format or format_at(path)
    found = formats.named(format, "IMPORTS").load(path, name, tokenizer)
    if not hasattr(found, "inputs"):
        raise ValueError(f"{path} ({format}) holds a part of a model: `mcd-jax convert import` makes of it what "
                         "a run can start from")
    return found


def format_at(path: pathlib.Path) -> str:
    """The name of the format whose files these are.

    Raises:
      ValueError: none, or several.
    """
    modules = {name: formats.named(name, "IMPORTS") for name in formats.names("IMPORTS")}
    fitting = [name for name, module in modules.items() if hasattr(module, "fits") and module.fits(path)]
    if len(fitting) == 1:
        return fitting[0]
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{path} is an empty folder: give the workdir of a run, or a folder that `mcd-jax convert "
                         "export` wrote")
    what = f"its files could be of {' or '.join(fitting)}" if fitting else "its files are of no format that is known by them"
    raise ValueError(f"{path} is no workdir of a run, and {what}: say format=..., one of {', '.join(modules)}")
