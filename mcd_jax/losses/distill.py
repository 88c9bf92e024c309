"""Distillation of a whole alignment matrix from a teacher's embeddings to a student's."""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive
from mcd_jax.sharding import ring


def alignment_kl(teacher_x: jax.Array, teacher_y: jax.Array, student_x: jax.Array, student_y: jax.Array, teacher_scale: jax.Array,
                 student_scale: jax.Array, implementation: str = "auto") -> jax.Array:
    """KL(teacher || student) of softmaxed logits, mean over rows and over both directions, () float32, nats.

    The logits are scale * x_i . y_j, (B, B). x -> y is a softmax over the columns, y -> x over the rows. No
    gradient reaches the teacher. Where the student's text must not learn from it either (ECLIPSE), stop the
    gradient of `student_y`.

    Args:
      teacher_x, teacher_y, student_x, student_y: (B, D) unit rows; the two sides may differ in D.
      teacher_scale, student_scale: () inverse temperatures.

    Source: Li et al. 2021 (ALBEF), equation 6; Kim et al. 2024 (ECLIPSE). Here a KL for both directions.
    """
    teacher_x, teacher_y, teacher_scale = jax.lax.stop_gradient((teacher_x, teacher_y, teacher_scale))
    if contrastive.picks_ring(len(student_x), len(student_y), implementation):
        teacher_x, teacher_y = teacher_scale * teacher_x.astype(jnp.float32), teacher_y.astype(jnp.float32)
        return _ring(teacher_x, teacher_y, student_x, student_y, student_scale, contrastive.transport(implementation))
    teacher_BB = teacher_scale * contrastive.similarity(teacher_x, teacher_y)
    student_BB = student_scale * contrastive.similarity(student_x, student_y)
    return 0.5 * (_kl(teacher_BB, student_BB, 1) + _kl(teacher_BB, student_BB, 0))


def _kl(teacher_BB, student_BB, axis):
    log_p, log_q = jax.nn.log_softmax(teacher_BB, axis), jax.nn.log_softmax(student_BB, axis)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis))


def _ring(teacher_x, teacher_y, student_x, student_y, student_scale, transport):
    """sum_j p (log p - log q) = sum_j p t - lse(t) - sum_j p s + lse(s), for logits t and s and p = exp(t - lse(t))."""
    plain = ring.lse(teacher_x, teacher_y, 1.0)
    rows, keys = dict(z=teacher_x, lse=plain.row_lse), dict(z=teacher_y, lse=plain.key_lse)
    teacher = jax.lax.stop_gradient(ring.lse(teacher_x, teacher_y, 1.0, 0.0, rows, keys, target=_teacher))
    student = ring.lse(student_x, student_y, student_scale, 0.0, rows, keys, target=_teacher, transport=transport)
    of_rows = jnp.mean(teacher.row_target - teacher.row_lse - student.row_target + student.row_lse)
    of_keys = jnp.mean(teacher.key_target - teacher.key_lse - student.key_target + student.key_lse)
    return 0.5 * (of_rows + of_keys)


def _teacher(rows, keys, i, j):
    logits = contrastive.similarity(rows["z"], keys["z"])
    return jnp.exp(logits - rows["lse"][:, None]), jnp.exp(logits - keys["lse"][None, :])
