"""Sparse autoencoders in the released form of VL-SAE: a torch state dict of one autoencoder, by itself.

Names by ssfgunner/VL-SAE at 2d4a6754a5ee1769899870cc8edad8d7a7ab4b5d, cvlms/sae_trainer/sae_model.py (VL_SAE, SAE_D, SAE_V) and
lvlms/sae_trainer/sae_model.py (AuxiliaryAE). A released file (openclip_<model>_VL_SAE_256_8_best.pth, llava_aux_best.pt) holds them
as they are; of a released state with "model_state_dict", give that dict alone. Written is model.safetensors, which torch reads
through the safetensors package. The number of activations kept is in no file: it is an option of the objective, 256 as released.
"""
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax.convert import files, tables
from mcd_jax.convert.tables import row, transpose
from mcd_jax.run import checkpoint

EXPORTS, IMPORTS = True, True
MODELS = {
    "VL_SAE": dict(encoder="distance", shared_encoder=True, shared_decoder=False),
    "SAE_D": dict(encoder="linear", shared_encoder=False, shared_decoder=False),
    "SAE_V": dict(encoder="linear", shared_encoder=True, shared_decoder=True),
}


def names():
    """What a file may hold."""
    return [("VL_SAE", "distance encoder, two decoders"), ("SAE_D", "linear, two encoders and decoders"),
            ("SAE_V", "linear, one of each"), ("AuxiliaryAE", "the autoencoder in front, for representations that are not aligned")]


def _affine(ours, theirs):
    return row(f"{ours}/kernel", f"{theirs}.weight", transpose), row(f"{ours}/bias", f"{theirs}.bias")


def _linear(ours, theirs):
    """An encoder's kernel is (units, width) on both sides."""
    return row(f"{ours}/kernel", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")


ROWS = {
    "VL_SAE": (row("sae/encoder/kernel", "encoder"), *_affine("sae/decoder/image", "vision_decoder"),
               *_affine("sae/decoder/text", "text_decoder")),
    "SAE_D": (*_linear("sae/encoder/image", "v_encoder"), *_linear("sae/encoder/text", "t_encoder"),
              *_affine("sae/decoder/image", "vision_decoder.0"), *_affine("sae/decoder/text", "text_decoder.0")),
    "SAE_V": (*_linear("sae/encoder", "encoder"), *_affine("sae/decoder", "decoder.0")),
    "AuxiliaryAE": (*_affine("aux/image/encode", "vision_projection"), *_affine("aux/text/encode", "text_projection"),
                    *_affine("aux/image/decode", "vision_decoder"), *_affine("aux/text/decode", "text_decoder")),
}


def kind_of(leaves, where):
    """Which of ROWS an array of names, theirs or ours, is.

    Raises:
      ValueError: none, with the names that there are.
    """
    known = set(leaves)
    for kind, lines in ROWS.items():
        if known in ({name for line in lines for name in line.theirs}, {path for line in lines for path in line.ours}):
            return kind
    raise ValueError(f"{where} is none of {', '.join(ROWS)}: it holds {', '.join(sorted(known)[:8])}")


def to_ours(arrays, where="the checkpoint"):
    """(kind, our parameters {"sae": ...} or {"aux": ...}) of name -> numpy array.

    Raises:
      ValueError: names or shapes that don't fit.
    """
    kind = kind_of(arrays, where)
    shapes = {}
    for line in ROWS[kind]:
        found = np.asarray(arrays[line.theirs[0]])
        if found.ndim not in (1, 2):
            raise ValueError(f"{where}: {line.theirs[0]} is {found.shape}, it should have one or two axes")
        shapes[line.ours[0]] = np.broadcast_to(np.int8(0), line.transform.ours(np.broadcast_to(np.int8(0), found.shape))[0].shape)
    return kind, tables.read(ROWS[kind], arrays, _consistent(tables.nested(shapes), where), where)


def to_theirs(params, dtype="float32", where="this run"):
    """(kind, name -> numpy array) of our parameters; whatever is not of the autoencoder is left aside.

    Raises:
      ValueError: there is none, or it is of a form that was not released (a distance encoder with one decoder).
    """
    own = {key: params[key] for key in ("sae",) if key in params} or {key: params[key] for key in ("aux",) if key in params}
    if not own:
        raise ValueError(f"{where} holds no sparse autoencoder: its parameters are {', '.join(sorted(params))}")
    own = jax.tree.map(np.asarray, own)
    kind = kind_of(tables.flat(own), where)
    return kind, tables.write(ROWS[kind], own, dtype)


def load(checkpoint_file, model="", tokenizer=""):
    """A file as a `Released`, which `convert import` writes as a workdir for config.init_from.

    Raises:
      FileNotFoundError, ValueError: no such file, or it doesn't fit.
    """
    path = pathlib.Path(checkpoint_file)
    path = files.find(path, ("model.safetensors",)) if path.is_dir() else path
    kind, params = to_ours(files.load(path), str(path))
    return Released(kind, params, str(path))


class Released:
    """An imported autoencoder: `kind` out of ROWS, `params` a numpy tree, `origin` its file."""

    def __init__(self, kind, params, origin):
        self.kind, self.params, self.origin = kind, params, origin

    def width(self):
        """(D, H) of a sparse autoencoder, (D, inner) of the auxiliary one."""
        if self.kind == "AuxiliaryAE":
            return self.params["aux"]["image"]["encode"]["kernel"].shape
        encoder = self.params["sae"]["encoder"]
        return (encoder.get("image", encoder)["kernel"]).shape[::-1]

    def write(self, workdir):
        """Writes config.json (the objective's options) and a checkpoint of step 0; returns notes for the user.

        Raises:
          ValueError: the workdir has a checkpoint, or units that are no multiple of the width.
        """
        width, units = self.width()
        saver = checkpoint.Checkpoints(workdir)
        if saver.steps():
            raise ValueError(f"--out={workdir} holds checkpoints already: name a new folder")
        options = dict(auxiliary=True, aux_width=units) if self.kind == "AuxiliaryAE" else dict(ratio=_ratio(width, units),
                                                                                              **MODELS[self.kind])
        fresh = 'config.init_fresh = ("sae/.*",)' if self.kind == "AuxiliaryAE" else ""
        usage = [f"config.objective = config_lib.objective('vl_sae', {', '.join(f'{k}={v!r}' for k, v in options.items())})",
                 f'config.init_from = "{workdir}"', *filter(None, [fresh])]
        config = {"objective": config_lib.objective("vl_sae", **options).to_dict(), "model": {"embed_dim": int(width)},
                  "origin": self.origin, "usage": "\n".join(usage)}
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        files.save_json(pathlib.Path(workdir) / "config.json", config)   # first: a checkpoint without one is of no use to anybody
        saver.save(0, {"params": jax.tree.map(jax.numpy.asarray, self.params)})
        saver.close()
        return [f"a {self.kind} of width {width} with {units} units; config.objective.k is not in the file, 256 as released"]


class Run(NamedTuple):
    """What is exported: the parameters of a run as numpy arrays, and where they come from."""
    workdir: str
    step: int
    weights_from: str
    params: dict
    left_out: list


def open_run(workdir, weights_from="params", step=None):
    """The autoencoder of a run's checkpoint, the newest or that of `step`; neither data nor encoders are needed.

    Raises:
      FileNotFoundError, ValueError: no checkpoint, or none of the autoencoder in it.
    """
    saver = checkpoint.Checkpoints(workdir, read_only=True)
    number = step if step is not None else max(saver.steps(), default=None)
    if number is None or number not in saver.steps():
        raise FileNotFoundError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}")
    leaves = {path.removeprefix(f"{weights_from}/"): shape for path, shape in saver.leaves(number).items()
              if path.startswith(f"{weights_from}/")}
    params = {}
    for part in ("sae", "aux"):
        own = {path.removeprefix(f"{part}/"): jax.ShapeDtypeStruct(shape, np.dtype(dtype))
               for path, (shape, dtype) in leaves.items() if path.startswith(f"{part}/")}
        if own:
            params[part] = jax.tree.map(np.asarray, saver.restore(tables.nested(own), number, f"{weights_from}/{part}"))
    if not params:
        raise ValueError(f"{workdir} holds no sparse autoencoder under {weights_from}: it has "
                         f"{', '.join(sorted(leaves)[:5]) or 'nothing'}")
    left = [(path, "not of the autoencoder") for path in leaves if path.split("/")[0] not in ("sae", "aux")]
    return Run(str(workdir), number, weights_from, params, left)


def card(run, module, name, folder, dtype, licence, notes):
    """README.md of an exported folder."""
    title = f"# Sparse autoencoder of {pathlib.Path(run.workdir).name}"
    about = f"Step {run.step:,}, {run.weights_from}, {dtype}; exported by mcd_jax to {name}."
    return "\n".join(["---", f"license: {licence or 'unknown'}", "---", "", title, "", about, "", "```python",
                      module.usage(folder), "```", "", *(f"* {note}." for note in notes), ""])


def save(run, out, dtype="float32"):
    """Writes the autoencoder of a run as model.safetensors; returns notes for the user."""
    kind, arrays = to_theirs(run.params, dtype)
    files.save(pathlib.Path(out) / "model.safetensors", arrays)
    return [f"a {kind}; the encoders that it reads are exported by another format"]


def usage(out):
    """Lines that load what `save` wrote beside the released code."""
    return (f"from safetensors.torch import load_file\nsae = VL_SAE(input_dim, hidden_dim, topk)   # or SAE_D, SAE_V\n"
            f'sae.load_state_dict(load_file("{out}/model.safetensors"))')


def _ratio(width, units):
    if units % width:
        raise ValueError(f"{units} units are no multiple of the width {width}")
    return int(units // width)


def _consistent(tree, where):
    """`tree` of shapes, if every decoder and encoder has the same width and units; else a ValueError."""
    flat = tables.flat(tree)
    sizes = {path: sorted(leaf.shape) for path, leaf in flat.items() if leaf.ndim == 2}
    if len({tuple(size) for size in sizes.values()}) > 1:
        raise ValueError(f"{where}: its parts differ in size: " + ", ".join(f"{path} {size}" for path, size in sizes.items()))
    return tree
