"""One imported tower as a workdir, for config.init_locked: its config and weights, and beside them its tokenizer."""
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np

from mcd_jax.convert import files, tables
from mcd_jax.models import towers as towers_lib
from mcd_jax.models import transformer
from mcd_jax.run import checkpoint, small_files


class Tower(NamedTuple):
    """What the import of a single tower gives.

    kind: "image" or "text". options: of config.model.<kind>, a plain dict. params: numpy tree of the tower, without a projection.
    model: what else config.model needs for it, such as mean and std. tokenizer: path of a tokenizer.json, or "".
    left_out: [(name, reason)]. origin: the file of the weights.
    """
    kind: str
    options: dict
    params: dict
    model: dict
    tokenizer: str
    left_out: list
    origin: str


def read(rows, arrays, kind, options, where, **inputs):
    """The parameter tree of a tower out of a foreign checkpoint's arrays, checked against its config.

    Args:
      rows: the table, whose paths of ours begin with the kind. arrays: name -> numpy array. inputs: as `towers.tower` takes.

    Raises:
      ValueError: what doesn't fit, as `tables.read`.
    """
    config = {"embed_dim": 1, "image": {}, "text": {}, kind: {**options, "proj": "none"}}
    _, module, _ = towers_lib.tower(config, kind, **inputs)
    dummy = (np.zeros((1, inputs["image_size"], inputs["image_size"], 3), np.float32) if kind == "image" else
             np.zeros((1, inputs["context"]), np.int32))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), dummy))["params"]
    return tables.read(rows, arrays, {kind: shapes}, where)[kind]


def write_workdir(tower, workdir, scan=False):
    """Writes config.json (config.model of this tower alone), a checkpoint of step 0 and tokenizer.json; returns notes for the user.

    Raises:
      ValueError: the workdir has a checkpoint, or a tower without blocks is to be stacked.
    """
    workdir = pathlib.Path(workdir)
    saver = checkpoint.Checkpoints(workdir)
    if saver.steps():
        raise ValueError(f"--out={workdir} holds checkpoints already: name a new folder")
    options, params = tower.options, tower.params
    if scan:
        if not any(name.startswith("block_") for name in params) or tower.kind == "image":
            raise ValueError("scan=True stacks equal blocks, which this tower doesn't have")
        options, params = {**options, "scan": True}, transformer.stacked(params)
    workdir.mkdir(parents=True, exist_ok=True)
    config = {"model": {tower.kind: options, **tower.model}, "origin": tower.origin}
    files.save_json(workdir / "config.json", config)   # first: a checkpoint without one is of no use to anybody
    if tower.tokenizer:
        shutil.copyfile(tower.tokenizer, workdir / "tokenizer.json")
    saver.save(0, {"params": {tower.kind: jax.tree.map(jax.numpy.asarray, params)}})
    saver.close()
    return [f"left out: {name}, {why}" for name, why in dict(tower.left_out).items()]


def usage(workdir):
    """Lines of a config that train beside the tower in a workdir, or "" where the workdir holds a whole model."""
    stored = small_files.read(pathlib.Path(workdir) / "config.json")
    model = stored["model"]
    if "usage" in stored:
        return stored["usage"]
    kinds = [kind for kind in ("image", "text") if kind in model]
    if len(kinds) != 1:
        return ""
    kind, tokenizer = kinds[0], pathlib.Path(workdir) / "tokenizer.json"
    tokens = [f'config.data.views.text = "caption(\'random\')|tokenize(CONTEXT, \'{tokenizer}\')"'] if tokenizer.is_file() else []
    return "\n".join([*(f"config.model.{key} = {value!r}" for key, value in model.items()), f"config.model.locked = {(kind,)!r}",
                      f'config.init_locked.{kind} = "{workdir}"', *tokens])
