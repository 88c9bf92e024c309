"""A run as something to export, and an imported model as a run.

Export reads config.json and a checkpoint's parameters and nothing else: neither the data nor the devices of the run are needed.
"""
import ast
import inspect
import pathlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from mcd_jax import checkpoint, evaluate
from mcd_jax import config as config_lib
from mcd_jax import embed as embed_lib
from mcd_jax import job as job_lib
from mcd_jax import workdir as workdir_lib
from mcd_jax.convert import tables
from mcd_jax.data import text as text_ops
from mcd_jax.data import tokenizers
from mcd_jax.models import towers as towers_lib

TOWERS = ("image", "text", "logit_scale", "logit_bias")


class Tokens(NamedTuple):
    """How texts become rows: the arguments of the op `tokenize`."""
    context: int
    name: str = "clip"
    clean: str = ""
    pad: int = 0
    end: bool = True

    @property
    def cleaning(self):
        return self.clean or ("lower" if self.name == "clip" else "plain")

    def pipe(self):
        return f"tokenize({self.context}, {self.name!r}, {self.clean!r}, {self.pad}{'' if self.end else ', False'})"

    def make(self):
        """The `data.tokenizers.Tokenizer`."""
        return tokenizers.make(self.name, self.clean, self.pad, self.end)


class View(NamedTuple):
    """How an image becomes pixels: op is "center" or "resize", method "area" or "bicubic"."""
    op: str = "center"
    method: str = "bicubic"

    def pipe(self, size):
        return f"decode|{self.op}({size}, {self.method!r})"


class Run(NamedTuple):
    """What is exported. config: the resolved config.json, a ConfigDict; params: numpy tree of TOWERS; left_out: (path, reason)."""
    workdir: str
    config: ConfigDict
    model: dict
    inputs: dict
    params: dict
    tokens: Tokens
    view: View
    step: int
    read: str
    figures: dict
    left_out: list


class Imported(NamedTuple):
    """What an import makes a run of. params: numpy tree of TOWERS; inputs: vocab_size, context, eot, image_size, pad unless 0."""
    model: dict
    inputs: dict
    params: dict
    tokens: Tokens
    view: View
    left_out: list
    origin: str
    objective: object = None   # config.objective of a model that is more than two towers, whose parameters `params` has too


# ---- a run of ours ---------------------------------------------------------------------------------------------------------------

def open_run(workdir, read="params", step=None):
    """The `Run` at a checkpoint of a workdir.

    Args:
      workdir: folder or bucket path of a run.
      read: "params", or "memory/<path>" such as "memory/teacher" or "memory/ema".
      step: which checkpoint; None: the newest.

    Raises:
      FileNotFoundError: no config.json or no checkpoint.
      ValueError: no such step or `read`, no text view to take the tokenizer from, or one tower for both modalities.
    """
    with workdir_lib.opened(workdir, write=False) as small:
        config = config_lib.read(small.folder / "config.json")
        figures = evaluate.latest(small.folder)
    if "shared" in config.model:
        raise ValueError(f"{workdir}: one tower for both modalities (config.model.shared) has no counterpart in other libraries; "
                         "`python -m mcd_jax.embed` stores what it makes of your data")
    saver = checkpoint.Checkpoints(workdir, read_only=True)
    step = saver.latest() if step is None else step
    if step not in saver.steps():
        raise ValueError(f"{workdir} has no checkpoint of step {step}: there are {', '.join(map(str, saver.steps())) or 'none'}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

    def part(name):
        shapes = {path: jax.ShapeDtypeStruct(shape, dtype, sharding=here) for path, (shape, dtype) in saver.leaves(step).items()
                  if path.startswith(f"{name}/")}
        tree = tables.nested({path.removeprefix(f"{name}/"): shape for path, shape in shapes.items()})
        return saver.restore(tree, step, name) if shapes else {}

    memory = part("memory") if read.startswith("memory/") else {"locked": part("memory/locked")}
    state = _Parts(part("params"), memory)
    chosen = jax.tree.map(np.asarray, embed_lib.parameters(state, read))
    rest = [(path, "of the training method, not of the towers") for path in tables.flat(chosen) if path.split("/")[0] not in TOWERS]
    model = config.model.to_dict()
    inputs = model.pop("inputs")
    model.pop("locked", None)   # its towers are in their places
    return Run(str(workdir), config, towers_lib.plain(model), inputs, {k: v for k, v in chosen.items() if k in TOWERS},
               tokens_of(config), view_of(config), step, read, figures, rest)


class _Parts(NamedTuple):
    params: dict
    memory: dict


def tokens_of(config):
    """The `Tokens` of a config's text view."""
    pipe = evaluate.default_views(config).get("text", "")
    call = _last_call(pipe)
    if call is None or ast.unparse(call.func) != "tokenize":
        raise ValueError("config.data.views has no text view that ends in tokenize(...): which tokenizer does the text tower read?")
    bound = _arguments(call, text_ops.tokenize)
    name = bound.get("name", "clip")
    more = dict(name) if isinstance(name, dict) else {}
    return Tokens(bound["context"], **{**{k: v for k, v in bound.items() if k != "context"}, **more})


def view_of(config):
    """The `View` of a config's evaluations: that of the first instance that has an image view, else the default."""
    for instances in config.evals.to_dict().values():
        for settings in instances.values():
            found = _view((settings.get("views") or {}).get("image", ""))
            if found:
                return found
    return _view(evaluate.default_views(config).get("image", "")) or View("center", "area")


def _view(pipe):
    call = _last_call(pipe)
    if call is None or not pipe.strip().startswith("decode") or pipe.count("|") != 1:
        return None
    if ast.unparse(call.func) not in ("center", "resize"):
        return None
    arguments = [ast.literal_eval(x) for x in call.args] + [ast.literal_eval(k.value) for k in call.keywords]
    return View(call.func.id, next((x for x in arguments if isinstance(x, str)), "area"))


def _last_call(pipe):
    if not pipe.strip():
        return None
    node = ast.parse(pipe.strip(), mode="eval").body
    node = node.right if isinstance(node, ast.BinOp) else node
    return node if isinstance(node, ast.Call) else None


def _arguments(call, function):
    values = [ast.literal_eval(x) for x in call.args]
    named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    return inspect.signature(function).bind(*values, **named).arguments


# ---- an imported model as a run --------------------------------------------------------------------------------------------------

def abstract(model, inputs):
    """Our parameter tree of shapes for a `config.model` and its inputs."""
    towers = towers_lib.make(model, **inputs)
    return jax.eval_shape(towers.init, jax.random.key(0))


def resized(imported, image_size):
    """`imported` for images of another size: position embeddings are interpolated (bicubic, antialiased), all else stays.

    Raises:
      ValueError: the size doesn't fit the patches, or the tower has no position embeddings to interpolate.
    """
    old = imported.inputs["image_size"]
    if image_size == old:
        return imported
    inputs = {**imported.inputs, "image_size": image_size}
    want, params = tables.flat(abstract(imported.model, inputs)), tables.flat(imported.params)
    for path, shape in want.items():
        if path in params and params[path].shape != shape.shape:
            params[path] = interpolated(params[path], shape.shape[0])
    return imported._replace(inputs=inputs, params=tables.nested(params))


def interpolated(position, count):
    """Position embeddings (prefix + g * g, W) of a square grid as (count, W) of another; that of a class token stays as it is."""
    prefix = 0 if round(len(position) ** 0.5) ** 2 == len(position) else 1
    old, new = round((len(position) - prefix) ** 0.5), round((count - prefix) ** 0.5)
    if old * old + prefix != len(position) or new * new + prefix != count:
        raise ValueError(f"{len(position)} position embeddings are no square grid that could become {count}")
    grid = position[prefix:].reshape(old, old, -1)
    grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True))
    return np.concatenate([position[:prefix], grid.reshape(new * new, -1)])


def write_workdir(imported, workdir):
    """Writes config.json and a checkpoint of step 0 with which `config.init_from`, `evaluate` and `export` work.

    Its data are the embedded set's, so that it can be evaluated as it is; `--evals` gives others. Its optimizer is one without
    moments, so the checkpoint holds little beside the parameters.

    Raises:
      ValueError: the workdir has a checkpoint, or the tokenizer isn't the model's.
    """
    workdir = pathlib.Path(workdir)
    if checkpoint.Checkpoints(workdir, read_only=True).steps():
        raise ValueError(f"--out={workdir} holds checkpoints already: name a new folder")
    config = config_of(imported)
    job = job_lib.build(config)
    found = {k: job.config.model.inputs.get(k, 0) for k in ("vocab_size", "context", "eot", "image_size", "pad")}
    wanted = {**found, "pad": 0, **imported.inputs}
    wrong = [f"{key} is {found[key]}, the checkpoint has {wanted[key]}" for key in found if found[key] != wanted[key]]
    if wrong:
        job.pipeline.close()
        raise ValueError(f"the tokenizer {imported.tokens.name!r} isn't this model's: {'; '.join(wrong)}")
    workdir.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(0), jax.tree.map(lambda x, like: jax.device_put(x, like.sharding),
                                                         imported.params, job.abstract.params))
        saver = checkpoint.Checkpoints(workdir)
        saver.save(0, state)
        saver.close()
    job.pipeline.close()
    config_lib.save(job.config, workdir / "config.json")


def config_of(imported):
    """The ConfigDict of an imported model."""
    config = config_lib.default()
    config.steps, config.batch_size = "1 step", jax.device_count() * (2 if imported.objective else 1)   # negatives need two rows
    name = "siglip" if imported.model.get("logit_bias") is not None else "clip"
    config.objective = imported.objective or config_lib.objective(name)
    config.model = ConfigDict(imported.model)
    config.data.source = dict(name="emoji", split="test", captions=("label",), languages=("en",))
    config.data.views = dict(image=imported.view.pipe(imported.inputs["image_size"]),
                             text=f"caption('first')|{imported.tokens.pipe()}")
    config.data.workers = 1
    config.optimizer.optimizers = ((".*", dict(name="sgd")),)   # keeps no moments
    return config


def scanned(imported):
    """`imported` for towers with scan=True: the same arrays, stacked."""
    model, params = dict(imported.model), dict(imported.params)
    for kind in ("image", "text"):
        if model[kind]["name"] in ("vit", "text", "bert"):
            model[kind] = {**model[kind], "scan": True}
            params[kind] = tables.stacked(params[kind])
    if model["text"].get("scan") and "fusion" in params:   # layers that continue the text tower
        params["fusion"] = tables.stacked(params["fusion"])
    return imported._replace(model=model, params=params)
