"""A trained run without its training: what `config.json` and a checkpoint hold, and nothing else.

Every command that looks at a run opens it here: `evaluate`, `search`, `embed`, `analyze`, `report`, `convert` and `mcd_jax.load`.
Neither the training data nor the number of devices that trained are needed. The run's own mesh is taken where it fits the devices
that there are; else all of them share the rows, and every one holds all parameters.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax import job as job_lib
from mcd_jax import step as step_lib
from mcd_jax.evals import building
from mcd_jax.objectives.objective import Objective
from mcd_jax.run import checkpoint, console, fingerprint
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.sharding import mesh as mesh_lib


class Trained(NamedTuple):
    """A network that was trained, on the devices of this machine."""
    workdir: str
    config: ConfigDict        # resolved, as config.json has it
    mesh: jax.sharding.Mesh
    objective: Objective
    init: Callable            # (key, params=None, locked=None) -> State of an untrained network; see `untrained`


def open_run(workdir: str, step: int | None = None, devices: Sequence[jax.Device] | None = None) -> tuple[Trained, step_lib.State]:
    """The network of a run, and its state: step, params and memory (no optimizer state, no key) on the mesh.

    Args:
      workdir: folder or bucket path of a run. It is only read.
      step: which checkpoint; None: the newest that can be read.
      devices: to lay the mesh over; None: all of every process.

    Raises:
      FileNotFoundError: no config.json, or no checkpoint yet.
      ValueError: `step` has no checkpoint, or the checkpoint isn't that of the config. OSError: it can't be read.
    """
    workdir = workdir_lib.named(workdir)
    with workdir_lib.opened(workdir, write=False) as small:
        config = config_lib.read(small.folder / "config.json")
    if not config.objective.name or not config.model.get("inputs"):
        raise ValueError(f"{workdir} holds no whole model: config.init_locked or config.init_from of a run takes what it has")
    with console.waiting(f"opening {workdir}"):
        mesh, objective = mesh_of(config, devices), job_lib.objective_of(config)
        number, params, memory = _restored(checkpoint.Checkpoints(workdir, read_only=True), workdir, step, config, mesh)
        params = _checked(workdir, config, objective, params)
    return (Trained(str(workdir), config, mesh, objective, untrained(config, objective, mesh)),
            step_lib.State(jnp.int32(number), params, {}, memory, None))


@contextlib.contextmanager
def opened(workdir: str, step: int | None = None, evals: Sequence[str] = ()) -> Iterator[tuple[Trained, step_lib.State, dict]]:
    """`open_run` for a while, in its mesh: gives (Trained, State, `building.evaluations` of its config or of the files `evals`)."""
    chosen = building.read_evals(evals) if evals else None
    trained, state = open_run(workdir, step)
    with jax.set_mesh(trained.mesh):
        yield trained, state, building.evaluations(trained.config, chosen)


def mesh_of(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh that the run trained on, if it fits these devices; else one whose axis `data` has all of them."""
    try:
        return mesh_lib.make(config.mesh, devices)
    except ValueError:
        return mesh_lib.make({"data": -1}, devices)


def on_mesh(config: ConfigDict, mesh: jax.sharding.Mesh, params: Mapping, memory: Mapping) -> tuple[dict, dict]:
    """Trees of arrays or shapes as shapes that say where config.sharding places them on the mesh."""
    state = step_lib.State(None, params, {}, memory, None)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state,
                          mesh_lib.shardings(state, config.sharding, mesh))
    return shapes.params, shapes.memory


def untrained(config: ConfigDict, objective: Objective, mesh: jax.sharding.Mesh) -> Callable:
    """init(key, params=None, locked=None) -> State at step 0 as training starts from it, without an optimizer, on the mesh.

    Raises:
      ValueError: a run of an older version, whose parameters have shapes that follow from data which it didn't store.
    """
    def model(key, params=None, locked=None):
        params, memory, key = step_lib.init_model(objective, key, job_lib.zeros(batch_of(config)), params)
        return step_lib.State(jnp.int32(0), params, {}, {**memory, "locked": locked} if locked else memory, key)

    @functools.cache
    def compiled():
        try:
            shapes = jax.eval_shape(model, jax.random.key(0))
        except KeyError as error:
            raise ValueError(f"this run was stored without config.batch_shapes, and its untrained network depends on the batch key "
                             f"{error.args[0]!r}: it can't be made again here") from error
        return jax.jit(model, out_shardings=mesh_lib.shardings(shapes, config.sharding, mesh))

    return lambda key, params=None, locked=None: compiled()(key, params, locked)


def batch_of(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that the run trains on (config.batch_shapes); of an older run only images and texts, by config.data.views."""
    if config.get("batch_shapes"):
        shapes = {key: (tuple(shape), dtype) for key, (shape, dtype) in config.batch_shapes.items()}
    else:
        pixels, tokens = ((config.model.inputs.image_size,) * 2 + (3,), "uint8"), ((config.model.inputs.context,), "int32")
        shapes = {key: pixels if spec.strip().startswith("decode") else tokens for key, spec in config.data.views.items()
                  if spec.strip().startswith("decode") or "tokenize(" in spec}
    return {key: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype) for key, (shape, dtype) in shapes.items()}


def _restored(saver, workdir, step, config, mesh):
    """(number, params, memory) of the newest checkpoint that can be read, or of that of `step`."""
    failed = {}
    while steps := [s for s in saver.steps() if s not in failed and step in (None, s)]:
        number = steps[-1]
        try:
            return number, *_parts(saver, number, config, mesh)
        except PermissionError:
            raise
        except OSError as error:   # damaged, or the run that writes here has just deleted it
            failed[number] = error
            logging.warning("%s", error)
    if failed:
        raise next(iter(failed.values()))
    there = ", ".join(map(str, saver.steps()))
    if step is not None and there:
        raise ValueError(f"{workdir} has no checkpoint of step {step}: there are {there}")
    raise FileNotFoundError(f"{workdir} has no checkpoint yet: let `mcd-jax train` reach its first")


def _parts(saver, number, config, mesh):
    leaves = saver.leaves(number)
    shapes = {part: _nested({path.removeprefix(f"{part}/"): jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
                             for path, (shape, dtype) in leaves.items() if path.startswith(f"{part}/")})
              for part in ("params", "memory")}
    shapes["params"], shapes["memory"] = on_mesh(config, mesh, **shapes)
    return [saver.restore(tree, number, part) if tree else {} for part, tree in shapes.items()]


def _nested(flat):
    """{"a/b": leaf} -> {"a": {"b": leaf}}."""
    tree = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def _checked(workdir, config, objective, params):
    """The parameters, with the towers that have none (of stored embeddings), which a checkpoint leaves out.

    Raises:
      MismatchError: they aren't those of the config.
    """
    try:
        wanted = jax.eval_shape(objective.init, jax.random.key(0), batch_of(config))
    except KeyError:   # an older run whose method asks the batch for a shape
        return params
    was, now = (fingerprint.flat(tree) for tree in (params, wanted))
    for path in sorted({*was, *now}):
        shapes = [tree[path].shape if path in tree else "absent" for tree in (was, now)]
        if shapes[0] != shapes[1]:
            raise checkpoint.MismatchError(f"params/{path} is {shapes[0]} in the checkpoint of {workdir} and {shapes[1]} by its "
                                           "config.json: put the file back that the run wrote")
    return {**{name: tree for name, tree in wanted.items() if not jax.tree.leaves(tree)}, **params}
