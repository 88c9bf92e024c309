"""Sparse codes of embeddings: activations by distance, the k largest of them, and the losses of the autoencoders around them.

After VL-SAE (arXiv 2510.21323) and its released code (ssfgunner/VL-SAE at 2d4a675, cvlms/sae_trainer/sae_model.py, train.py,
lvlms/sae_trainer/train_aux.py). Where the paper's text and the code differ, the functions say which they follow.
"""
import jax
import jax.numpy as jnp

from mcd_jax.losses import contrastive


def normalised(x: jax.Array) -> jax.Array:
    """Rows of x (..., D) over max(their length, 1e-12), float32; a zero row stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 1e-24, jax.lax.rsqrt(jnp.where(square > 1e-24, square, 1.0)), 1e12)


def closeness(x: jax.Array, weights: jax.Array) -> jax.Array:
    """a_i(x) = 2 - || n(x) - n(w_i) || = 2 - sqrt(2 - 2 cos(x, w_i)), float32 (B, H) in [0, 2].

    Args:
      x: (B, D); weights: (H, D), one row per unit. Neither's length matters.

    The product is at the highest precision: bfloat16 would change which units are the largest. A unit that x lies on has a gradient
    of 0, as torch.cdist gives; the plain formula's would not be finite. |a_i(x) - a_i(y)| <= ||n(x) - n(y)||, by the triangle.
    """
    cosine = jnp.einsum("bd,hd->bh", normalised(x), normalised(weights), precision="highest")
    square = jnp.maximum(2.0 - 2.0 * cosine, 0.0)
    apart = square > 1e-12
    return 2.0 - jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def top(activations: jax.Array, k: int) -> jax.Array:
    """The activations (B, H) with all but the k largest magnitudes of each row set to 0.

    Exactly k are kept, of equal ones the first; the code keeps what is strictly above the (k+1)-th, which is fewer in a tie. The
    choice is constant for the gradient.
    """
    _, places = jax.lax.top_k(jax.lax.stop_gradient(jnp.abs(activations)), k)
    rows = jnp.arange(len(activations))[:, None]
    kept = jnp.zeros(activations.shape, activations.dtype).at[rows, places].set(1.0)
    return activations * kept


def reconstruction(decoded: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over rows and dimensions of the squared difference, () float32; the code's mean, the paper writes a squared norm."""
    return jnp.mean(jnp.square(decoded.astype(jnp.float32) - target.astype(jnp.float32)))


def alignment(image: jax.Array, text: jax.Array, temperature: float | jax.Array = 0.07, normalize: bool = False,
              implementation: str = "auto") -> jax.Array:
    """Contrastive loss between the auxiliary encodings of pairs (B, D), () float32, nats.

    Args:
      normalize: False: inner products of the encodings as they are, as the code has it (its normalisation is commented out); True:
        cosines, as the paper says.
    """
    if normalize:
        image, text = normalised(image), normalised(text)
    return contrastive.softmax(image, text, jnp.float32(1.0 / temperature), implementation)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosine between the rows of x and of y, (B,) float32."""
    return jnp.sum(normalised(x) * normalised(y), axis=-1)
