"""A contrastive loss whose keys are a teacher's: those of the batch and a queue of earlier ones, with the teacher's soft targets.

A queue is an array (S, B, D): slot s holds the B rows of one step, and the next step overwrites the oldest slot. With its batch
axis split over the devices it is one global queue on every topology. Keys are ordered row by row, a row's own key and then its
column of the queue, so they stay on the device that holds the row; which key comes where changes no sum.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.objectives import bank

NOBODY = -100   # the id of keys that no row has: those that a queue starts with


class Rows(NamedTuple):
    """Per row (B,), float32, nats: cross-entropies with its own key, or with all that have its id alike, and with the teacher's
    distribution, and KL(teacher | student)."""
    hard: jax.Array
    soft: jax.Array
    kl: jax.Array


def start(key: jax.Array, size: int, batch: int, dim: int) -> jax.Array:
    """(size / batch, batch, dim): random directions, negatives until they are overwritten."""
    return bank.directions(key, (size // batch, batch, dim))


def write(queue: jax.Array, rows: jax.Array, at: jax.Array) -> jax.Array:
    """The queue (S, B, D) with `rows` (B, D) in slot `at`."""
    return jax.lax.dynamic_update_index_in_dim(queue, rows.astype(queue.dtype), at, 0)


def cross_entropies(x: jax.Array, teacher: jax.Array, own: jax.Array, queue: jax.Array | None, scale: jax.Array, group: int,
                    implementation: str = "auto", ids: tuple[jax.Array, jax.Array | None] | None = None) -> Rows:
    """The `Rows` of one direction.

    Row i's logits are scale * x_i . k for the keys k: `own` of the rows of its group, and the whole queue. The teacher's
    distribution is the softmax of scale * teacher_i . k over the same keys. Only x and scale get gradient; scale none through the
    teacher's distribution.

    Args:
      x: (B, D) the student's unit rows of one modality; teacher: (B, D) the teacher's of the same.
      own: (B, D) the teacher's of the other modality, row i the match of row i.
      queue: (S, B, D) earlier rows of `own`, or None.
      scale: () inverse temperature.
      group: rows of a group; B: the keys of the whole batch.
      ids: None, or int32 (B,) of the rows and (S, B) of the queue's (None without one). A row's target is then spread evenly over
        all keys that it reaches and whose id is its own, several captions of one image for example; its own key is one of them.

    Source: Li et al. 2021 (ALBEF, arXiv 2107.07651), equations 1, 2 and 6. Cross-entropy is linear in its target, so the loss with
    targets mixed by alpha is (1 - alpha) hard + alpha soft. Several positives: the published code's fine-tuning for retrieval.
    """
    teacher, own, queue = jax.lax.stop_gradient((teacher, own, queue))
    own = contrastive.seen(own, implementation)   # of the queue the sums themselves see what they round: nothing else reads it
    at = jnp.arange(len(own)) // group
    keys, reach = own[:, None], at[:, None]
    if queue is not None:
        keys = jnp.concatenate([keys, jnp.swapaxes(queue, 0, 1)], axis=1)
        reach = jnp.concatenate([reach, jnp.full(keys.shape[:1] + queue.shape[:1], -1)], axis=1)
    keys, reach = keys.reshape(-1, keys.shape[-1]), reach.reshape(-1)
    named = None if ids is None else ids[0][:, None]
    if named is not None and queue is not None:
        named = jnp.concatenate([named, ids[1].T], axis=1)

    def sums(x, scale, rows, keys_aux, target=None):
        return contrastive.sums(x, keys, scale, _reached, rows, keys_aux, columns=False, implementation=implementation,
                                target=target, own="y")

    still = jax.lax.stop_gradient(scale)
    rows, key_aux = {"group": at}, {"group": reach}
    below = sums(teacher, still, rows, key_aux).row_lse
    rows |= {"z": still * teacher.astype(jnp.float32), "lse": below}
    student = sums(x, scale, rows, key_aux, _teacher)
    entropy = below - sums(teacher, still, rows, key_aux, _teacher).row_target
    soft = student.row_lse - student.row_target
    positive = scale * contrastive.matching(x, own)
    if ids is not None:
        rows, key_aux = {"group": at, "id": ids[0]}, {"group": reach, "id": named.reshape(-1)}
        rows["count"] = jnp.exp(contrastive.sums(jnp.zeros((len(x), 1)), jnp.zeros((len(keys), 1)), still, _alike, rows, key_aux,
                                                 columns=False, implementation=implementation).row_lse)   # of as many equal logits
        positive = sums(x, scale, rows, key_aux, _evenly).row_target
    return Rows(student.row_lse - positive, soft, jax.lax.stop_gradient(soft - entropy))


def _reached(rows, keys, i, j):
    return (keys["group"] < 0)[None, :] | (keys["group"][None, :] == rows["group"][:, None])


def _alike(rows, keys, i, j):
    return _reached(rows, keys, i, j) & (keys["id"][None, :] == rows["id"][:, None])


def _evenly(rows, keys, i, j):
    weights = jnp.where(_alike(rows, keys, i, j), 1 / rows["count"][:, None], 0.0)
    return weights, jnp.zeros_like(weights)


def _teacher(rows, keys, i, j):
    logits = contrastive.similarity(rows["z"], keys["y"])
    weights = jnp.where(_reached(rows, keys, i, j), jnp.exp(logits - rows["lse"][:, None]), 0.0)
    return weights, jnp.zeros_like(weights)
