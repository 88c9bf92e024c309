"""A starting point made from a run: its texts rotated onto its images, or another temperature, for config.init_from.

The rotation is the paper's amended initialisation (Liang et al., NeurIPS 2022, section 4, "initialisation vs optimisation"): the
orthogonal W that brings the text embeddings nearest to the image embeddings of the same pairs, here of training batches. The
paper multiplies every text embedding by W while it trains; here W goes into the text projection, which gives the same embeddings
and needs nothing new in the network. An optimizer that treats coordinates apart (Adam) sees rotated ones.
"""
import contextlib
import math

import jax
import numpy as np

from mcd_jax import command, trained
from mcd_jax import config as config_lib
from mcd_jax.data import pipeline
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.methods.gap import shift
from mcd_jax.run import checkpoint
from mcd_jax.run import workdir as workdir_lib


def arguments(parser):
    parser.add_argument("--workdir", type=command.path, required=True, help="folder of a run with a checkpoint")
    parser.add_argument("--out", type=command.path, required=True, help="folder to write, for --config.init_from of another run")
    parser.add_argument("--step", type=command.whole(0), help="which checkpoint; the newest when left out")
    parser.add_argument("--trained", action="store_true", help="amend the trained parameters, not the untrained ones of the seed")
    parser.add_argument("--rotate", action="store_true", help="rotate the texts onto the images")
    parser.add_argument("--rows", type=command.whole(1), default=2048, help="training pairs that the rotation is made from")
    parser.add_argument("--scale", type=float, help="1 / temperature to start from")


def run(args):
    """Writes a checkpoint of step 0 and the config into --out; prints the gap before and after.

    Raises:
      ValueError: nothing to amend, a scale that is no temperature, a --out that holds a run, or a network without text projection.
    """
    if not args.rotate and args.scale is None:
        raise ValueError("say what to amend: --rotate, --scale=..., or both")
    if args.scale is not None and not 0 < args.scale < math.inf:
        raise ValueError(f"--scale={args.scale} must be a positive number: 1 / temperature")
    if checkpoint.Checkpoints(args.out, read_only=True).latest() is not None:
        raise ValueError(f"--out={args.out} holds a run already: name another folder")
    workdir_lib.check_writable(args.out)
    saver = checkpoint.Checkpoints(args.out, keep=1)
    with trained.opened(args.workdir, args.step) as (run, state, _), contextlib.closing(saver):
        key = jax.random.key(run.config.seed)
        state = state if args.trained else run.init(key)
        params = dict(state.params)
        if args.scale is not None:
            params["logit_scale"] = _like(params, "logit_scale", math.log(args.scale))
        if args.rotate:
            image, text = pairs(run, state, args.rows)
            turn = shift.rotation(image, text)
            params["text"] = {**params["text"], "proj": rotated(params["text"], turn)}
            print(f"gap of {len(image):,} training pairs: {shift.distance(image, text):.4f}, rotated "
                  f"{shift.distance(image, text @ turn.T):.4f}")
        with workdir_lib.opened(args.out) as small:   # first: a checkpoint without config.json is of no use to anybody
            config_lib.save(run.config, small.folder / "config.json")
        saver.save(0, run.init(key, params))
        saver.wait()
    print(f"wrote {args.out}: train with --config.init_from={args.out}", flush=True)


def pairs(run, state, count):
    """Unit image and text rows (n, D) of the run's first training batches, n at least `count`."""
    config = run.config
    keys = {name: config.objective.get(name, name) for name in ("image", "text")}
    embed = embedder_lib.on_mesh(run, batch_size=config.batch_size)
    parts, data = [], pipeline.make(config.data, config.seed, config.batch_size)
    for step in range(-(-count // config.batch_size)):
        batch = data.batch(step)
        parts.append(embed(state, {name: batch[key] for name, key in keys.items()}))
    return tuple(shift.unit(np.concatenate([part[name] for part in parts])) for name in keys)


def rotated(text, turn):
    """The "proj" of a text tower's parameters whose embeddings are those of `text` times turn.T (D, D).

    Raises:
      ValueError: the tower has no projection.
    """
    if "proj" not in text:
        raise ValueError("the text tower has no projection to rotate (config.model.text.proj='none')")
    return {name: _like(text["proj"], name, np.asarray(value, np.float64) @ turn.T) for name, value in text["proj"].items()}


def _like(params, name, value):
    """`value` with the type and the place of the parameter that it replaces."""
    if name not in params:
        raise ValueError(f"this network has no parameter {name!r}")
    return jax.device_put(np.asarray(value, params[name].dtype), params[name].sharding)
