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

from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax import trained as trained_lib
from mcd_jax.convert import positions, tables
from mcd_jax.data import tokenizers
from mcd_jax.data.ops import text_ops as text_ops
from mcd_jax.evals import building
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.models import towers as towers_lib
from mcd_jax.run import checkpoint, history, results
from mcd_jax.run import workdir as workdir_lib

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
    """What is exported. config: the resolved config.json, a ConfigDict; params: numpy tree of TOWERS; left_out: (path, reason);
    seen: examples up to the step over all sessions of the run, None where nobody counted."""
    workdir: str
    config: ConfigDict
    model: dict
    inputs: dict
    params: dict
    tokens: Tokens
    view: View
    step: int
    weights_from: str
    figures: dict
    left_out: list
    seen: int | None = None


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
    positions: str = "antialiased"   # how its own code interpolates them for another image size: a name of `positions.WAYS`
    notes: tuple = ()   # sentences for the user


# ---- a run of ours ---------------------------------------------------------------------------------------------------------------

def open_run(workdir, weights_from="params", step=None):
    """The `Run` at a checkpoint of a workdir.

    Args:
      workdir: folder or bucket path of a run.
      weights_from: "params", or "memory/<path>" such as "memory/teacher" or "memory/ema".
      step: which checkpoint; None: the newest.

    Raises:
      FileNotFoundError: no config.json or no checkpoint.
      ValueError: no such step or `weights_from`, no text view to take the tokenizer from, or one tower for both modalities.
    """
    with workdir_lib.opened(workdir, write=False) as small:
        config, figures = config_lib.read(small.folder / "config.json"), results.latest(small.folder)
        sessions = history.read(small.folder)
    if "shared" in config.model:
        raise ValueError(f"{workdir}: one tower for both modalities (config.model.shared) has no counterpart in other libraries; "
                         "`mcd-jax embed` stores what it makes of your data")
    objective = job_lib.objective_of(config)
    if not objective.pooled:
        raise ValueError(f"{workdir}: {config_lib.title(config.objective)} trained no pooled embeddings, and other libraries have "
                         "nothing else: give a term of them a weight in config.objective.weights, or compose it with a method that "
                         "trains them")
    if behind := objective.behind:
        raise ValueError(f"{workdir}: {config_lib.title(config.objective)} embeds the {' and the '.join(behind)} by a head behind "
                         "the tower, which other libraries don't have: train without it, where config.objective has an option "
                         "for that, or store embeddings with `mcd-jax embed`")
    _, state = trained_lib.open_run(workdir, step, jax.local_devices(backend="cpu")[:1])
    chosen = jax.tree.map(np.asarray, embedder_lib.parameters(state, weights_from))
    rest = [(path, "of the training method, not of the towers") for path in tables.flat(chosen) if path.split("/")[0] not in TOWERS]
    model = config.model.to_dict()
    inputs = model.pop("inputs")
    model.pop("locked", None)   # its towers are in their places
    params = {k: v for k, v in chosen.items() if k in TOWERS}
    if spare := model["text"].pop("spare_ids", 0):
        params["text"] = {**params["text"], "token": params["text"]["token"][:inputs["vocab_size"]]}
        rest.append((f"text/token[{inputs['vocab_size']}:]", f"{spare} rows of ids that no tokenizer gives"))
    return Run(str(workdir), config, towers_lib.plain(model), inputs, params,
               tokens_of(config), view_of(config), int(state.step), weights_from, figures, rest,
               history.examples_seen(sessions, int(state.step), config.batch_size))


def tokens_of(config):
    """The `Tokens` of a config's text view."""
    pipe = building.default_views(config).get("text", "")
    call = _last_call(pipe)
    if call is None or ast.unparse(call.func) != "tokenize":
        raise ValueError("config.data.views has no text view that ends in tokenize(...): which tokenizer does the text tower read?")
    bound = _arguments(call, text_ops.tokenize)
    name = bound.get("name", "clip")
    more = dict(name) if isinstance(name, dict) else {}
    return Tokens(bound["context"], **{**{k: v for k, v in bound.items() if k != "context"}, **more})


def view_of(config):
    """The `View` that the run's evaluations look through (`building.default_views`)."""
    return _view(building.default_views(config).get("image", "")) or View("center", "area")


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
    """`imported` for images of another size: position embeddings are interpolated as its own code does, all else stays.

    Pixels that fill no patch are left out, as by the convolutions of all formats. The notes say what was done.

    Raises:
      ValueError: the size doesn't fit the tower, or it has no position embeddings to interpolate.
    """
    old = imported.inputs["image_size"]
    if image_size == old:
        return imported
    inputs, model = {**imported.inputs, "image_size": image_size}, patched(imported.model, image_size)
    want, params, notes = tables.flat(abstract(model, inputs)), tables.flat(imported.params), list(imported.notes)
    for path, shape in want.items():
        if path in params and params[path].shape != shape.shape:
            params[path] = positions.interpolated(params[path], shape.shape[0], imported.positions)
            notes.append(f"{path} was interpolated from {old} to {image_size} px: {positions.WAYS[imported.positions]}")
    if model["image"].get("cut_rest"):
        rest = image_size % model["image"]["patch_size"]
        notes.append(f"the last {rest} rows and columns of pixels fill no patch and are left out, as by "
                     "the checkpoint's own code (config.model.image.cut_rest)")
    return imported._replace(model=model, inputs=inputs, params=tables.nested(params), notes=tuple(notes))


def patched(model, image_size):
    """`config.model` whose ViT leaves out what fills no patch of images of this size: `cut_rest` is set only where it matters."""
    image = {key: value for key, value in model["image"].items() if key != "cut_rest"}
    rest = image["name"] == "vit" and image_size % image["patch_size"]
    return {**model, "image": {**image, **(dict(cut_rest=True) if rest else {})}}


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
    config_lib.save(job.config, workdir / "config.json")   # first: a checkpoint without one is of no use to anybody
    with jax.set_mesh(job.mesh):
        state = job.init(jax.random.key(0), jax.tree.map(lambda x, like: jax.device_put(x, like.sharding),
                                                         imported.params, job.abstract.params))
        saver = checkpoint.Checkpoints(workdir)
        saver.save(0, state)
        saver.close()
    job.pipeline.close()


def config_of(imported):
    """The ConfigDict of an imported model."""
    config = config_lib.default()
    config.steps, config.batch_size = "1 step", jax.device_count() * 2   # negatives need two rows
    name = "siglip" if imported.model.get("logit_bias") is not None else "clip"
    config.objective = imported.objective or config_lib.objective(name)
    config.model = ConfigDict(imported.model)
    config.data.source = dict(name="emoji", split="test", captions=("label",), languages=("en",))
    config.data.views = dict(image=imported.view.pipe(imported.inputs["image_size"]),
                             text=f"caption('first')|{imported.tokens.pipe()}")
    config.data.workers = 1
    config.optimizer.optimizers = ((".*", dict(name="sgd")),)   # keeps no moments
    if not keeps_scale(imported.params):
        config.optimizer.max_logit_scale = None
    return config


def keeps_scale(params):
    """Whether a run with the default config.optimizer.max_logit_scale leaves the checkpoint's logit scale as it is."""
    scale = params.get("logit_scale")
    return scale is None or 0 <= float(scale) <= config_lib.default().optimizer.max_logit_scale + 1e-6


def usage(workdir):
    """Lines of a config that starts from an imported workdir."""
    stored = config_lib.read(pathlib.Path(workdir) / "config.json")
    free = ["config.optimizer.max_logit_scale = None"] if stored.optimizer.max_logit_scale is None else []
    return "\n".join([f'config.model = config_lib.read("{workdir}/config.json").model', f'config.init_from = "{workdir}"', *free])


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
