"""Contrastive losses between two sets of matching embeddings. Inputs of any float type; inside, float32.

Each has two forms, equal in value and gradient. "gather": one product of all pairs, of which a device computes its rows. "ring":
tiles, with embeddings that travel from device to device (`mcd_jax.losses.ring`); memory grows with the rows of a device, not with
rows x batch, for a third more matmul work. "ring_bf16": the same with keys rounded to bfloat16, half the traffic. "auto" takes the
ring where the logits of a device would exceed `GATHER_BYTES`.
"""
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mcd_jax import mesh as mesh_lib
from mcd_jax.losses import ring

FORMS = ("auto", "gather", "ring", "ring_bf16")
GATHER_BYTES = 128 * 2 ** 20   # of one matrix of logits: a loss keeps three or four, about 3 % of the smallest HBM in use (16 GB)


def check_form(form):
    """Raises ValueError unless `form` is one of FORMS."""
    if form not in FORMS:
        raise ValueError(f"config.objective.form={form!r}: the form of a contrastive loss is one of {', '.join(FORMS)}")


def picks_ring(rows, keys, form):
    """Whether a loss over rows x keys of the global batch runs as a ring. The rule of "auto": 4 bytes * rows * keys / devices."""
    check_form(form)
    return form.startswith("ring") or (form == "auto" and 4 * rows * keys / mesh_lib.ambient_batch_axes()[1] > GATHER_BYTES)


def transport(form):
    """The dtype in which keys travel, None for their own."""
    return jnp.bfloat16 if form == "ring_bf16" else None


def similarity(x, y):
    """Inner products (B, C) float32 of x (B, D) and y (C, D), at the highest matmul precision.

    An accelerator's default precision rounds to bfloat16: percents of gradient at a scale of 100.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _split(jnp.einsum("bd,cd->bc", x, y, precision=jax.lax.Precision.HIGHEST))


def lse(x, y, scale, allow=None, row_aux=(), key_aux=(), columns=True, form="auto", factor=None):
    """log(sum_j exp(scale * x_i . y_j)) over the keys j of each row and over the rows of each key, (B,) and (C,) float32.

    Args:
      x, y: (B, D), (C, D).
      scale: () inverse temperature.
      allow: None, or which pairs enter, as `ring.lse` takes it, with `row_aux` and `key_aux`, for example `ring.off_diagonal`.
      columns: False gives None for the keys and saves their work.
      factor: None, or by what the inner products are multiplied, as `ring.lse` takes it; no gradient.
    """
    out = sums(x, y, scale, allow, row_aux, key_aux, columns, form, factor)
    return out.row_lse, out.key_lse


def sums(x, y, scale, allow=None, row_aux=(), key_aux=(), columns=True, form="auto", factor=None, target=None):
    """The `ring.Sums` of `lse`'s arguments: log-sum-exps and, given `target` as `ring.lse` takes it, sums of weight * logit.

    Without `columns` those of the keys are None.
    """
    if picks_ring(len(x), len(y), form):
        out = ring.lse(x, y, scale, 0.0, row_aux, key_aux, allow=allow, columns=columns, factor=factor, target=target,
                       transport=transport(form))
        return out if columns else out._replace(key_lse=None, key_target=None)
    raw_BC, (row_aux, key_aux) = scale * similarity(x, y), jax.lax.stop_gradient((row_aux, key_aux))
    numbers = jnp.arange(len(x))[:, None], jnp.arange(len(y))[None, :]
    if factor is not None:
        raw_BC *= factor(row_aux, key_aux, *numbers)
    logits_BC = raw_BC if allow is None else jnp.where(allow(row_aux, key_aux, *numbers), raw_BC, ring.NEVER)
    of_rows, of_keys = (0.0, 0.0) if target is None else jax.lax.stop_gradient(target(row_aux, key_aux, *numbers))
    return ring.Sums(jax.nn.logsumexp(logits_BC, axis=1), jax.nn.logsumexp(logits_BC, axis=0) if columns else None,
                     jnp.sum(of_rows * raw_BC, axis=1), jnp.sum(of_keys * raw_BC, axis=0) if columns else None)


def softmax(x, y, scale, form="auto"):
    """Symmetric InfoNCE, mean of the cross-entropies x -> y and y -> x over the batch, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).

    Source: Radford et al. 2021 (CLIP), figure 3. Both sides of every pair of the global batch get gradient.
    """
    rows, columns = lse(x, y, scale, form=form)
    positive = scale * matching(x, y if transport(form) is None else y.astype(transport(form)))   # of the keys that `lse` saw
    return 0.5 * (jnp.mean(rows - positive) + jnp.mean(columns - positive))


def sigmoid(x, y, scale, bias, form="auto"):
    """Pairwise sigmoid loss: sum over all B * B pairs of -log sigmoid(+-logit), over B, () float32, nats.

    Args:
      x, y: (B, D) unit rows; row i of x matches row i of y and no other.
      scale: () inverse temperature, exp(logit_scale).
      bias: () added to every logit.

    Source: Zhai et al. 2023 (SigLIP), algorithm 1.
    """
    if picks_ring(len(x), len(y), form):
        shared = jnp.float32(scale), jnp.float32(bias)
        return ring.pair_sum(_sigmoid_pairs, x, y, shared, transport=transport(form)) / len(x)
    numbers = jnp.arange(len(x))
    return jnp.sum(_sigmoid_pairs(x, y, (scale, bias), (), (), numbers[:, None], numbers[None, :])) / len(x)


def _sigmoid_pairs(x, y, shared, row_aux, key_aux, i, j):
    scale, bias = shared
    logits = scale * similarity(x, y) + bias
    return jax.nn.softplus(jnp.where(i == j, -logits, logits))


def matching(x, y):
    """Inner product of row i of x (B, D) with row i of y (B, D), (B,) float32."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)


def accuracy(x, y, form="auto"):
    """Share of rows of x (B, D) whose nearest row of y (B, D) is their own, () float32 (a tie: the first)."""
    nearest = ring.nearest(x, y) if picks_ring(len(x), len(y), form) else jnp.argmax(similarity(x, y), axis=1)
    return jnp.mean((nearest == jnp.arange(x.shape[0])).astype(jnp.float32))


def _split(logits):
    """Each device keeps the rows of its part of the batch; where there are more keys than rows, the columns of its keys."""
    axes, devices = mesh_lib.ambient_batch_axes()
    side = int(logits.shape[1] > logits.shape[0])
    if not axes or logits.shape[side] % devices:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec(*[None] * side, axes))
