"""Distillation of a whole alignment matrix from a teacher's embeddings to a student's."""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive


def alignment_kl(teacher_x, teacher_y, student_x, student_y, teacher_scale, student_scale):
    """KL(teacher || student) of softmaxed logits, mean over rows and over both directions, () float32, nats.

    The logits are scale * x_i . y_j, (B, B). x -> y is a softmax over the columns, y -> x over the rows. No
    gradient reaches the teacher. Where the student's text must not learn from it either (ECLIPSE), stop the
    gradient of `student_y`.

    Args:
      teacher_x, teacher_y, student_x, student_y: (B, D) unit rows; the two sides may differ in D.
      teacher_scale, student_scale: () inverse temperatures.

    Source: Li et al. 2021 (ALBEF), equation 6; Kim et al. 2024 (ECLIPSE). Here a KL for both directions.
    """
    teacher_BB = jax.lax.stop_gradient(teacher_scale * contrastive.similarity(teacher_x, teacher_y))
    student_BB = student_scale * contrastive.similarity(student_x, student_y)
    return 0.5 * (_kl(teacher_BB, student_BB, 1) + _kl(teacher_BB, student_BB, 0))


def _kl(teacher_BB, student_BB, axis):
    log_p, log_q = jax.nn.log_softmax(teacher_BB, axis), jax.nn.log_softmax(student_BB, axis)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis))
