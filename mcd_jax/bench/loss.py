"""Memory, time and error of the contrastive losses, form by form: one JSON line per (form, batch).

python -m mcd_jax.bench.loss [--devices=8] [--batches=4096,16384,131072] [--losses=softmax,sigmoid] [--forms=...] [--dim=512]
python -m mcd_jax.bench.loss --topology=v5e:16x16 --batches=1048576 --losses=softmax --forms=ring     # needs libtpu, compiles only

Forms: `dense` (one B x B product, the compiler places it), `gather_local` (every device gathers all embeddings and scores its own
rows and keys against them), `plain_ring` (embeddings travel, automatic derivatives), `ring` (`mcd_jax.sharding.ring`).
`temp_bytes` is what the compiled loss with its gradient needs per device beside arguments and results. `seconds` is the best of
three calls, taken in turn with the other forms; `max_rel_grad_error` the largest relative error (norm) of the gradients against
float64. From 65,536 rows on the losses are only compiled, and both are null. `collectives` says what travels, how much of it is
asynchronous, and how much of that has a matmul between its start and its end (`hlo.collectives`; TPU programs only).
"""
from functools import partial
import json
import time

from absl import app, flags
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from mcd_jax import compile as compile_lib
from mcd_jax.costs import hlo
from mcd_jax.losses import contrastive

_DEVICES = flags.DEFINE_integer("devices", 8, "fake CPU devices")
_BATCHES = flags.DEFINE_list("batches", ["4096", "16384", "65536", "131072"], "global batches")
_LOSSES = flags.DEFINE_list("losses", ["softmax", "sigmoid"], "losses")
_FORMS = flags.DEFINE_list("forms", ["dense", "gather_local", "plain_ring", "ring"], "forms")
_DIM = flags.DEFINE_integer("dim", 512, "width of an embedding")
_TOPOLOGY = flags.DEFINE_string("topology", "", "compile for this TPU topology, such as v5e:16x16, instead of running")
COMPILE_ONLY = 65536
SCALE, BIAS = 20.0, -10.0
AXIS = "data"


def dense(loss, x, y, scale, bias):
    if loss == "softmax":
        return contrastive.softmax(x, y, scale, implementation="gather")
    return contrastive.sigmoid(x, y, scale, bias, implementation="gather")


def ring(loss, x, y, scale, bias):
    if loss == "softmax":
        return contrastive.softmax(x, y, scale, implementation="ring")
    return contrastive.sigmoid(x, y, scale, bias, implementation="ring")


def gather_local(loss, x, y, scale, bias):
    size = len(x)

    @jax.checkpoint   # one direction's logits at a time
    def softmax(rows, keys):
        return jnp.sum(jax.nn.logsumexp(scale * contrastive.similarity(rows, jax.lax.all_gather(keys, AXIS, tiled=True)), axis=1))

    def local(x, y):
        positive = scale * jnp.sum(x * y, axis=1)
        if loss == "softmax":
            return jax.lax.psum(0.5 * (softmax(x, y) + softmax(y, x)) - jnp.sum(positive), AXIS) / size
        logits = scale * contrastive.similarity(x, jax.lax.all_gather(y, AXIS, tiled=True)) + bias
        total = jnp.sum(jax.nn.softplus(logits)) - jnp.sum(positive + bias)   # softplus(-l) = softplus(l) - l
        return jax.lax.psum(total, AXIS) / size
    return jax.shard_map(local, in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS)), out_specs=PartitionSpec())(x, y)


def plain_ring(loss, x, y, scale, bias):
    size = len(x)

    def sums(x, keys):
        """Per row log-sum-exp (softmax) or sum of pair losses, the keys travelling."""
        devices = jax.lax.axis_size(AXIS)
        send = lambda a: jax.lax.ppermute(a, AXIS, [(i, (i + 1) % devices) for i in range(devices)])

        total = 0.0 * x[:, 0] - (jnp.inf if loss == "softmax" else 0.0)
        for hop in range(devices):
            logits = scale * contrastive.similarity(x, keys) + (bias if loss == "sigmoid" else 0.0)
            if loss == "softmax":
                total = jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=1))
            else:
                match = jnp.eye(*logits.shape, dtype=bool) if hop == 0 else False
                total = total - jnp.sum(jax.nn.log_sigmoid(jnp.where(match, logits, -logits)), axis=1)
            keys = send(keys)
        return total

    def local(x, y):
        if loss == "sigmoid":
            return jax.lax.psum(jnp.sum(sums(x, y)), AXIS) / size
        positive = scale * jnp.sum(x * y, axis=1)
        return jax.lax.psum(jnp.sum(0.5 * (sums(x, y) + sums(y, x)) - positive), AXIS) / size
    return jax.shard_map(local, in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS)), out_specs=PartitionSpec())(x, y)


FORMS = {"dense": dense, "gather_local": gather_local, "plain_ring": plain_ring, "ring": ring}


def embeddings(batch, dim):
    """Two sets of unit rows (batch, dim), float32, of which row i resembles row i."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, dim), np.float32)
    y = x + 3.0 * rng.standard_normal((batch, dim), np.float32)   # not yet solved: no tiny differences of large sums
    return tuple(a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))


def exact(loss, x, y, block=2048):
    """Gradients in x, y, scale (and bias) in float64, block by block."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    size, starts = len(x), range(0, len(x), block)
    logits = lambda a: SCALE * x[a:a + block] @ y.T + (BIAS if loss == "sigmoid" else 0.0)
    columns = np.zeros(size)
    for a in starts if loss == "softmax" else ():
        columns += np.sum(np.exp(logits(a) - SCALE), axis=0)
    dx, dy, scale, bias = np.zeros_like(x), np.zeros_like(y), 0.0, 0.0
    for a in starts:
        score = logits(a)
        rows = np.arange(len(score))
        if loss == "softmax":
            e = np.exp(score - SCALE)
            d = 0.5 * (e / np.sum(e, axis=1, keepdims=True) + e / columns)
        else:
            d = 1.0 / (1.0 + np.exp(-score))
        d[rows, a + rows] -= 1.0
        d /= size
        dx[a:a + block] = SCALE * d @ y
        dy += SCALE * d.T @ x[a:a + block]
        scale, bias = scale + np.sum(d * (x[a:a + block] @ y.T)), bias + np.sum(d)
    return (dx, dy, scale) if loss == "softmax" else (dx, dy, scale, bias)


def relative(got, want):
    """Norm of the difference over the norm of `want`."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


def main(argv):
    del argv
    if _TOPOLOGY.value:
        devices = compile_lib.devices_of(_TOPOLOGY.value)
    else:
        devices = jax.devices()
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    for loss in _LOSSES.value:
        for batch in map(int, _BATCHES.value):
            measure(loss, batch, mesh, rows, whole)


def measure(loss, batch, mesh, rows, whole):
    """Prints the lines of one loss and batch."""
    numbers = (0, 1, 2) if loss == "softmax" else (0, 1, 2, 3)
    run = batch < COMPILE_ONLY and not _TOPOLOGY.value
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=p)
              for s, p in (((batch, _DIM.value), rows), ((batch, _DIM.value), rows), ((), whole), ((), whole))]
    compiled, temporary, seconds, errors = {}, {}, {}, {}
    with jax.set_mesh(mesh):
        for name in _FORMS.value:
            step = jax.jit(jax.value_and_grad(partial(FORMS[name], loss), argnums=numbers), in_shardings=(rows, rows, whole, whole),
                           out_shardings=(whole, (rows, rows, whole, whole)[:len(numbers)]))
            compiled[name] = step.lower(*shapes).compile()
            temporary[name] = compiled[name].memory_analysis().temp_size_in_bytes
        if run:
            x, y = embeddings(batch, _DIM.value)
            want = exact(loss, x, y)
            arrays = jax.device_put((x, y, np.float32(SCALE), np.float32(BIAS)), (rows, rows, whole, whole))
            for _ in range(4):
                for name, f in compiled.items():
                    start = time.perf_counter()
                    _, gradients = jax.block_until_ready(f(*arrays))
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                    errors[name] = max(map(relative, gradients, want))
    for name in compiled:
        print(json.dumps(dict(
            implementation=name, loss=loss, batch=batch, dim=_DIM.value, devices=mesh.size, platform=_TOPOLOGY.value or "cpu",
            temp_bytes=temporary[name], seconds=round(min(seconds[name][1:]), 4) if run else None,
            max_rel_grad_error=float(f"{errors[name]:.2g}") if run else None,
            collectives=hlo.collectives(compiled[name].as_text()))), flush=True)


def start(argv):
    """Sets the fake devices before the backend starts."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    jax.config.update("jax_cpu_enable_async_dispatch", False)   # many fake devices on few cores: keep collectives in step
    main(argv)


if __name__ == "__main__":
    app.run(start)
