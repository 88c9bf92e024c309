"""The numbers of checkpoints, as their folders' names have them: `<workdir>/checkpoints/<step>`."""
import os

from etils import epath

from mcd_jax.run import workdir as workdir_lib


def number(name: str) -> int | None:
    """The step whose checkpoint a folder of this name holds, or None: 7 for "7", None for "0007" and "7.broken"."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else None


def split(path: str | os.PathLike) -> tuple[epath.Path, int | None]:
    """(workdir, step) of a run's folder or its `checkpoints` (step None), or of one of its `checkpoints/<step>`.

    Raises:
      ValueError: a folder of checkpoints that is no step's.
    """
    path = epath.Path(workdir_lib.named(path, "a run to start from"))
    if path.name == workdir_lib.CHECKPOINTS and not (path / workdir_lib.CHECKPOINTS).exists():   # all of a run's checkpoints
        path = path.parent
    if path.parent.name != workdir_lib.CHECKPOINTS or (path / workdir_lib.CHECKPOINTS).exists():
        return path, None
    step = number(path.name)
    if step is None:
        known = sorted(s for s in (number(p.name) for p in path.parent.iterdir()) if s is not None) if path.parent.exists() else []
        raise ValueError(f"{path} is no checkpoint: a checkpoint's folder is named by its step alone, as in {path.parent}/"
                         f"{known[-1] if known else 1000}")
    return path.parent.parent, step
