"""A config made into the pieces of a run: data, objective, optimizer, mesh, and the state's shapes and places.

`train`, `evaluate` and the benchmarks build the same `Job`, so what one measures is what another runs.
"""
from collections.abc import Callable
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax import duration
from mcd_jax import step as step_lib
from mcd_jax.costs import count_flops
from mcd_jax.data import pipeline as pipeline_lib
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import compose, two_tower
from mcd_jax.optim import optimizer
from mcd_jax.run import checkpoint, fingerprint
from mcd_jax.sharding import constrain
from mcd_jax.sharding import mesh as mesh_lib


class Job(NamedTuple):
    config: Any             # resolved: config.model.inputs holds what the data decides
    mesh: Any               # jax.sharding.Mesh
    pipeline: Any           # data.pipeline.Pipeline of this process's rows
    batch: Any              # dict of jax.ShapeDtypeStruct: the global batch, with shardings
    objective: Any          # objectives.Objective
    tx: Any                 # the optimizer
    schedules: Any          # name -> fn(step), for the log
    total_steps: int
    abstract: Any           # State of jax.ShapeDtypeStruct, with shardings
    placement: str          # the table of parameters and where they live
    summary: str            # its totals, a line, and what is locked
    init: Callable          # (key, params=None, locked=None) -> State, on the mesh; see `initial`
    step: Callable          # jitted (State, batch) -> (State, metrics); the State is donated
    durations: Callable     # (name, value) -> steps
    flops: Callable         # () -> matmul and convolution FLOPs of one step over the global batch


def build(config, bad_examples=None, devices=None):
    """The `Job` of a config. Nothing is compiled yet, and nothing is written.

    Args:
      config: ConfigDict, unresolved or as `config.json` holds it.
      bad_examples: path of the log of replaced examples, or None.
      devices: to lay the mesh over, such as those of a topology that isn't there (`compile`); None: all that are.

    Raises:
      ValueError: what doesn't fit, with the key's name: an unknown key, a missing view, a batch that doesn't divide, ...
    """
    config = config_lib.resolved(config)
    size = config.batch_size

    # ---- mesh and data ---------------------------------------------------------------------------------------------------------
    mesh = mesh_lib.make(config.mesh, devices)
    mesh_lib.check_batch(size, mesh, config.microbatches, two_tower.group_size(config))
    held = mesh_lib.local_rows(size, mesh) if devices is None else [0]
    pipeline = pipeline_lib.make(config.data, config.seed, size, rows=held, bad_log=bad_examples)
    rows = mesh_lib.batch_sharding(mesh)
    batch = {k: jax.ShapeDtypeStruct((size, *shape[1:]), dtype, sharding=rows) for k, (shape, dtype) in pipeline.shapes.items()}
    config.model.inputs = inputs(config, pipeline)
    config.batch_shapes = {key: (shape[1:], str(jnp.dtype(dtype))) for key, (shape, dtype) in pipeline.shapes.items()}

    def durations(name, value, total=None):
        return duration.steps(value, batch_size=size, examples=pipeline.examples, total_steps=total, name=f"config.{name}")

    total = durations("steps", config.steps)
    if total < 1:
        raise ValueError(f"config.steps={config.steps!r} gives no step at all")

    config.total_steps = total

    # ---- objective -------------------------------------------------------------------------------------------------------------
    objective = objective_of(config)
    missing = [key for key in objective.needs if key not in batch]
    if missing:
        raise ValueError(f"objective {config_lib.title(config.objective)!r} needs the batch key {missing[0]!r}, which "
                         f"config.data.views does not make: it makes {', '.join(sorted(batch))}")
    _check_misalignments(objective, pipeline.views)
    if config.ema:
        objective = step_lib.with_average(objective, config.ema)
    weights = term_weights(config, lambda name, value: durations(name, value, total))

    # ---- optimizer, state and where it lives -----------------------------------------------------------------------------------
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    tx, schedules = optimizer.make(config.optimizer, shapes, total_steps=total, batch_size=size, examples=pipeline.examples)

    def init(key, batch, params=None, locked=None):
        state = step_lib.init_state(objective, tx, key, batch, params)
        return state._replace(memory={**state.memory, "locked": locked}) if locked else state

    state = jax.eval_shape(init, jax.random.key(0), batch)
    shardings = mesh_lib.shardings(state, config.sharding, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    step = jax.jit(step_lib.make_step(objective, tx, weights), donate_argnums=0, out_shardings=(shardings, None))
    start = jax.jit(lambda key, params, locked: init(key, zeros(batch), params, locked), out_shardings=shardings)
    table, summary = mesh_lib.table(abstract.params, config.sharding, mesh)
    return Job(config, mesh, pipeline, batch, objective, tx, schedules, total, abstract,
               table, summary + locked_line(abstract),
               lambda key, params=None, locked=None: start(key, params, locked), step,
               lambda name, value: durations(name, value, total),
               lambda: model_flops(config, tx, weights, state, batch))


def _check_misalignments(objective, views):
    """Refuses an objective that compares what one view's caption lost with how strong another's augmentation is."""
    read = [name for name in views.images if f"{name}/misalignment" in objective.needs]
    true = [name for name in read if views.true(name)]
    if true and len(true) < len(read):
        other = next(name for name in read if name not in true)
        raise ValueError(f"config.data.views.{true[0]} reports what its caption lost, by decode(content=...), and {other} how "
                         "strong its augmentation is: the objective compares the two, so let both views begin alike")


def objective_of(config):
    """The `Objective` of a resolved config, with the towers of config.model.locked in its memory, placed by config.sharding."""
    objective = two_tower.lock(compose.objective(config), config.model.get("locked", ()))
    ruled = functools.partial(constrain.under_rules, config.sharding)
    return objective._replace(forward=ruled(objective.forward), heads={name: ruled(fn) for name, fn in objective.heads.items()})


def initial(config, abstract):
    """What config.init_from and config.init_locked hold for a new run: (parameters or None, locked towers), for `Job.init`.

    init_from gives every parameter, those of locked towers too, except the towers that init_locked names. What it has under another
    name is named by init_copies.

    Args:
      abstract: the `Job`'s State of shapes.

    Raises:
      MismatchError, FileNotFoundError, OSError: as `checkpoint.restore_from` does.
      ValueError: a locked tower for which neither key gives weights.
    """
    names, shapes = config.model.get("locked", ()), abstract.memory.get("locked", {})
    folders = {kind: folder for kind, folder in config.get("init_locked", {}).items() if folder}
    towers = {kind: checkpoint.restore_from(folder, shapes[kind], f"params/{kind}", besides=f"params/{kind}/proj/.*")
              for kind, folder in folders.items()}
    params = None
    if config.init_from:
        rest = {kind: tower for kind, tower in shapes.items() if kind not in folders}
        wanted = two_tower.merge_locked(abstract.params, {"locked": rest})
        copies = copied(config, wanted)
        fresh = (*config.get("init_fresh", ()), *map(re.escape, copies))
        try:
            stored = checkpoint.restore_from(config.init_from, wanted, "params", fresh,
                                             besides="|".join(f"params/{kind}/.*" for kind in folders))
        except checkpoint.MismatchError as error:
            if advice := _other_size(config):
                raise checkpoint.MismatchError(f"{str(error).rpartition(': ')[0]}: {advice}") from error
            raise
        stored = _with(stored, wanted, copies, config.init_from)
        params, locked = towers_lib.split(stored, [name for name in names if name.split("/")[0] not in folders])
        towers |= locked
    for kind in shapes:
        if kind not in towers:
            raise ValueError(f"config.model.locked={names!r}: the locked {kind} tower needs trained weights, and there are none: "
                             f"set config.init_locked.{kind} to a workdir that has them, or config.init_from to a whole model's")
    return params, towers


def _other_size(config):
    """What to do where config.init_from's run has images of another size than this one; "" where it hasn't, or can't be read."""
    try:
        stored = config_lib.read(pathlib.Path(config.init_from) / "config.json")
        theirs, ours = stored.model.inputs.image_size, config.model.inputs.image_size
    except (OSError, ValueError, AttributeError, KeyError):
        return ""
    if theirs == ours or not theirs or not ours:
        return ""
    return (f"config.init_from={config.init_from} has images of {theirs} px, config.data.views makes {ours}: give the views "
            f"{theirs}, or make it a run of {ours} px, with its position embeddings interpolated: `mcd-jax convert export` to a "
            f"folder, then `mcd-jax convert import --image_size={ours}` of that")


def copied(config, wanted):
    """What config.init_copies says of the parameters `wanted`: path -> the path in config.init_from's run that it starts as.

    The first pair whose regex matches a whole path counts.

    Raises:
      ValueError: a regex matches no parameter.
    """
    paths, found = list(fingerprint.flat(wanted)), {}
    for regex, other in config.get("init_copies", ()):
        own = [path for path in paths if re.fullmatch(regex, path)]
        if not own:
            raise ValueError(f"config.init_copies: {regex!r} matches no parameter of this config")
        found = {**{path: re.sub(regex, other, path) for path in own}, **found}
    return found


def _with(params, wanted, copies, folder):
    """Nested `params` and, at the paths of `copies`, other parameters of the run in `folder`."""
    if not copies:
        return params
    leaves, others = fingerprint.flat(wanted), {}
    for path, other in copies.items():
        _put(others, other, leaves[path])
    others = fingerprint.flat(checkpoint.restore_from(folder, others, "params", besides=".*"))
    params = jax.tree.map(lambda x: x, params)
    for path, other in copies.items():
        _put(params, path, jnp.copy(others[other]))   # an array of its own: the step donates it
    return params


def _put(tree, path, leaf):
    """Sets a leaf of a nested dict."""
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf


def locked_line(abstract):
    """Text: what is locked in memory, as a line for the table of placements."""
    return "".join(f"\nmemory/locked/{kind}: {len(leaves)} arrays, {sum(x.size * x.dtype.itemsize for x in leaves):,} bytes, locked"
                   for kind, tower in abstract.memory.get("locked", {}).items() for leaves in [jax.tree.leaves(tower)])


def model_flops(config, tx, weights, state, batch):
    """FLOPs of one step over the global batch, without what microbatching and rematerialisation compute twice."""
    config = ConfigDict(config.to_dict())
    config.microbatches = 1
    for tower in (config.model[name] for name in ("image", "text", "shared") if "remat" in config.model.get(name, {})):
        tower.remat = "none"
    objective = objective_of(config)
    memory = {k: v for k, v in state.memory.items() if k != "ema" or not config.ema}
    return count_flops.count(step_lib.make_step(objective, tx, weights), state._replace(memory=memory), batch)


def zeros(batch):
    """A batch of zeros of the given shapes, for initialisation; traced, never stored."""
    return {k: jnp.zeros(v.shape, v.dtype) for k, v in batch.items()}


def inputs(config, pipeline):
    """What the model must know of its data: vocabulary, context, end-of-text id, image size, and padding if it isn't 0.

    The image size is 0 where the image view is a row of stored numbers, which a tower of such rows reads.

    Raises:
      ValueError: a square image view or a tokenized view is needed and there is none, or stored rows of another width than the
        tower that reads them.
    """
    sizes = {k: shape[1:] for k, (shape, dtype) in pipeline.shapes.items() if len(shape) == 4}
    name = next(iter(config_lib.methods(config.objective).values())).get("image", "image")
    padding = dict(pad=pipeline.pad) if pipeline.pad else {}
    if len(pipeline.shapes.get(name, ((),))[0]) == 2:
        for kind, view in (("image", name), ("text", "text")):
            tower, (shape, _) = config.model[kind], pipeline.shapes.get(view, ((), None))
            if tower.name == "stored" and len(shape) == 2 and shape[1] != tower.get("width", shape[1]):
                raise ValueError(f"config.model.{kind}.width={tower.width}, but the rows of config.data.views.{view} have "
                                 f"{shape[1]} numbers: set it to that")
        return dict(vocab_size=pipeline.vocab_size, context=pipeline.context, eot=pipeline.eot, image_size=0, **padding)
    if name not in sizes:
        raise ValueError(f"config.data.views has no image view {name!r}: it makes {', '.join(sorted(pipeline.shapes))}")
    height, width, _ = sizes[name]
    if height != width:
        raise ValueError(f"config.data.views.{name} makes {height} x {width} images: the towers take square ones")
    return dict(vocab_size=pipeline.vocab_size, context=pipeline.context, eot=pipeline.eot, image_size=height, **padding)


def term_weights(config, durations):
    """term -> weight: a number, or a function of the step where `config.objective.warmup` ramps it linearly from zero or
    `config.objective.decay` divides it by 1 + the number of such durations that have passed.

    Terms of composed methods are "<method>/<term>".
    """
    def curve(weight, warmup, decay):
        def of_step(step):
            rise = jnp.minimum(1.0, step.astype(jnp.float32) / warmup) if warmup else 1.0
            return weight * rise / (1 + step // decay if decay else 1.0)
        return of_step

    result = {}
    for method, section in config_lib.methods(config.objective).items():
        where = ".".join(filter(None, ("objective", method)))
        for term, weight in section.weights.items():
            warmup, decay = (durations(f"{where}.{key}.{term}", section.get(key, {}).get(term, 0)) for key in ("warmup", "decay"))
            name = "/".join(filter(None, (method, term)))
            result[name] = curve(weight, warmup, decay) if weight and (warmup or decay) else weight
    return result
