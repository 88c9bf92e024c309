"""Decoding that leans a language model's words on the concepts of the image, by VL-SAE (arXiv 2510.21323), as released code has it.

(ssfgunner/VL-SAE, lvlms/VCD/experiments/eval/inference_vlsae_llava_pope.py and vcd_utils/vlsae_sample.py.) The model runs twice for
a token: as it is, and with `shift` added to the hidden states after the image's at one layer; `mixed_logits` of both are sampled
from. Pure functions: whoever owns the language model calls them. The paper's equation 11, as quoted, adds the image's codes to the
text's in place of the convex mixture here, which is the code's.
"""
import jax.numpy as jnp


def shift(text, image, encode, decode, alpha=0.8, beta=0.9):
    """What every hidden state after the image gains: t' - t, t' = (1 - alpha) t + alpha decode((1 - beta) h_t + beta h_v).

    Args:
      text, image: (B, D) mean hidden states of the tokens after the image, and of the image's.
      encode: ("image" | "text", (B, D)) -> codes (B, H), by the auxiliary encoder and the shared one.
      decode: codes (B, H) -> (B, D), by the text's decoder and the auxiliary one.
      alpha, beta: in [0, 1]; released: 0.8 and 0.9 (0.7 and 0.9 for captions).

    Returns:
      (B, D).

    Raises:
      ValueError: a share outside [0, 1].
    """
    _share(alpha=alpha, beta=beta)
    codes = (1 - beta) * encode("text", text) + beta * encode("image", image)
    return alpha * (decode(codes) - text)


def mixed_logits(plain, modified, gamma=0.6, cutoff=0.8):
    """(1 - gamma) plain + gamma modified, -inf for tokens that the plain model finds much less likely than its best.

    Args:
      plain, modified: (..., V) logits of the same next token.
      gamma: in [0, 1]. cutoff: in [0, 1], the least share of the best token's plain probability; 0 keeps all.

    Returns:
      (..., V) float32, to sample from.

    Raises:
      ValueError: a share outside [0, 1].
    """
    _share(gamma=gamma, cutoff=cutoff)
    plain, modified = (jnp.asarray(x, jnp.float32) for x in (plain, modified))
    mixed = (1 - gamma) * plain + gamma * modified if 0 < gamma < 1 else modified if gamma else plain
    if cutoff == 0:
        return mixed
    return jnp.where(plain < jnp.max(plain, axis=-1, keepdims=True) + jnp.log(jnp.float32(cutoff)), -jnp.inf, mixed)


def _share(**given):
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie in [0, 1]")
