"""Checkpoint files as dicts of numpy arrays: safetensors, npz, and torch's pickles by torch with weights_only=True."""
import json
import pathlib
import pickle

import numpy as np

from mcd_jax.run import atomic

PICKLES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", ".npz", *PICKLES)


def load(path):
    """name -> numpy array of a checkpoint file; nothing in it is executed.

    Args:
      path: *.safetensors, *.npz (without pickled arrays), or *.pt, *.pth, *.bin, which need torch and hold a dict of tensors, or
        one under "state_dict" or "model"; names that all begin with "module." lose that.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown suffix, a damaged or truncated file, a pickle with other objects in it, or no torch for it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a checkpoint file ends in {', '.join(SUFFIXES)}")
    reader = {".safetensors": _safetensors, ".npz": _npz}.get(path.suffix, _pickle)
    arrays = reader(path)
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): x for name, x in arrays.items()}
    return arrays


def save(path, arrays, metadata=None):
    """Writes name -> numpy array as safetensors; `metadata` is a dict of strings. The file appears whole or not at all.

    Raises:
      ValueError: the safetensors package is missing.
    """
    save_file = _safetensors_package().save_file
    path = pathlib.Path(path)
    with atomic.writing(path) as part:
        save_file(dict(arrays), part, {"format": "pt", **(metadata or {})})


def save_json(path, value):
    """Writes JSON with a final newline."""
    atomic.write_text(path, json.dumps(value, indent=2) + "\n")


def find(folder, names):
    """The first of `names` that exists in `folder`, as a path.

    Raises:
      FileNotFoundError: none of them does.
    """
    folder = pathlib.Path(folder)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds none of {', '.join(names)}")


def _safetensors_package():
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ValueError("reading and writing safetensors needs the safetensors package: pip install safetensors") from error
    return safetensors.numpy


def _safetensors(path):
    package = _safetensors_package()
    try:
        return package.load_file(path)
    except Exception as error:   # the package's own error class, or one of numpy's, by what is damaged
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def _npz(path):
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:
        raise ValueError(f"{path} is no whole npz file of plain arrays: {error}") from error


def _pickle(path):
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: to read a pickle safely takes torch; or convert it to safetensors") from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} can't be read as plain tensors (weights_only=True): {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(isinstance(x, torch.Tensor) for x in stored.values()):
        raise ValueError(f"{path} holds no dict of tensors")
    return {name: _numpy(x) for name, x in stored.items()}


def _numpy(tensor):
    import ml_dtypes
    import torch
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
