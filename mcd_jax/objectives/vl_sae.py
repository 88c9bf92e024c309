"""VL-SAE: one list of concepts for images and texts, sparse codes of the embeddings of a frozen encoder.

Shen, Sun, Huang and Wang, NeurIPS 2025, arXiv 2510.21323. After the released code (ssfgunner/VL-SAE at 2d4a675), which differs from
the paper in places that `Options` names; of the paper itself the abstract was available to us. Its zero-shot evaluation was not
released, and a public attempt at its figures did not get them (issue 7 there).

    a_i(x) = 2 - || x / |x| - w_i / |w_i| ||,  h = the k largest a_i,  xhat = decoder of the modality (h),  loss = MSE + MSE

x are the embeddings before normalisation. Where they come from:
  stored embeddings     config.model.image.name = "stored" (models/stored.py): what `python -m mcd_jax.embed` wrote
  towers in memory      config.model.locked = ("image", "image/proj", "text", "text/proj"), config.init_locked: a run's towers

Models in the paper's terms: VL-SAE (the default); SAE-D: encoder="linear", shared_encoder=False; SAE-V, called SAE-S in the paper
[inference]: encoder="linear", shared_decoder=True; its "+ distance encoder": shared_decoder=True.

Representations that are not aligned (hidden states of a language model) first go through an auxiliary autoencoder, trained before
by the terms align, align_image and align_text: `auxiliary=True` and weights image=0, text=0. The second run starts from the first
(config.init_from, config.init_fresh=("sae/.*",)), freezes "aux/.*" by a schedule of None, and has the default weights. The sparse
autoencoder sends no gradient into it.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcd_jax import config as config_lib
from mcd_jax.losses import contrastive, sparse
from mcd_jax.models import sae as sae_lib
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import nothing, pair


class Options(NamedTuple):
    """The released values for CLIP; confidence in each is in brackets."""
    image: str = "image"
    text: str = "text"
    ratio: int = 8                   # units per dimension of the embedding [code: train.sh; its parser's default is 32]
    k: int = 256                     # activations kept [code: train.sh; 128 by default]
    encoder: str = "distance"        # "distance" | "linear" (ReLU; the ablations) [code]
    shared_encoder: bool = True      # one encoder for both modalities [code]
    shared_decoder: bool = False     # a decoder for each [code]
    normalize: bool = False          # reconstruct unit vectors [code: no; a re-implementation by others: yes]
    center: bool = False             # take off each modality's mean before encoding: an extension, not part of the method
    auxiliary: bool = False          # the auxiliary autoencoder in front, for representations that are not aligned [code: LVLMs]
    aux_width: int = 0               # of its inner layer; 0: as the input [code: 4096 of 4096]
    aux_normalize: bool = False      # cosines in its contrastive loss [paper; the code has raw inner products]
    aux_temperature: float = 0.07    # [code]
    form: str = "auto"               # of its contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"image": 1.0, "text": 1.0, "align": 0.0, "align_image": 0.0, "align_text": 0.0}
KINDS = sae_lib.MODALITIES


def make(config):
    """The `Objective`; terms: image, text (reconstruction), align, align_image, align_text. Heads: also `concepts`.

    Raises:
      ValueError: an option outside its choices, a tower that would be trained, or terms of an autoencoder that isn't there.
    """
    opts = config_lib.options(Options, config.objective)
    contrastive.check_form(opts.form)
    towers, width = pair.towers_of(config), config.model.embed_dim
    _check_frozen(towers, config.model.get("locked", ()))
    if not opts.auxiliary and pair.live(config, "align", "align_image", "align_text"):
        raise ValueError("config.objective.weights: align, align_image and align_text train the auxiliary autoencoder: set "
                         "config.objective.auxiliary=True")
    inner = (opts.aux_width or width) if opts.auxiliary else width
    with_codes = pair.live(config, "image", "text")
    sae = sae_lib.make(inner, opts.ratio * inner, opts.k, opts.encoder, opts.shared_encoder, opts.shared_decoder)
    aligner = sae_lib.make_aligner(width, inner) if opts.auxiliary else None

    def init(key, batch):
        params = {kind: tree for kind, tree in towers.init(key).items() if kind in KINDS}
        if with_codes:
            params["sae"] = sae.init(jax.random.fold_in(key, 1))
        return {**params, "aux": aligner.init(jax.random.fold_in(key, 2))} if aligner else params

    def start(key, params, batch):
        return {"mean": {kind: jnp.zeros(inner) for kind in KINDS}, "seen": jnp.float32(0)} if opts.center else {}

    def explicit(params, kind, raw):
        """x^e: what the sparse autoencoder is given."""
        x = jax.lax.stop_gradient(raw.astype(jnp.float32))
        if aligner:
            x = jax.lax.stop_gradient(aligner.encode(params["aux"], kind, x))
        return sparse.normalised(x) if opts.normalize else x

    def codes(params, memory, kind, x):
        return sae.encode(params["sae"], kind, x - memory["mean"][kind][None] if opts.center else x)

    def finish(out, params, memory, batch, key, step):
        found = {}
        for kind in KINDS:
            raw = jax.lax.stop_gradient(out[kind])
            if aligner:
                encoded = aligner.encode(params["aux"], kind, raw)
                found |= {f"aux/{kind}": encoded, f"aux/{kind}/target": raw,
                          f"aux/{kind}/decoded": aligner.decode(params["aux"], kind, encoded)}
            found[kind] = explicit(params, kind, raw)
            if with_codes:
                found[f"{kind}/codes"] = codes(params, memory, kind, found[kind])
                found[f"{kind}/decoded"] = sae.decode(params["sae"], kind, found[f"{kind}/codes"])
        if opts.center:
            found["keep"] = {kind: jnp.mean(found[kind], axis=0) for kind in KINDS}
        return found

    def remember(memory, params, keep, step):
        if not opts.center:
            return memory
        seen = memory["seen"] + 1   # the mean over all batches so far
        return {**memory, "seen": seen, "mean": jax.tree.map(lambda old, new: old + (new - old) / seen, memory["mean"], keep)}

    def concepts(params, memory, batch):
        """{kind}_codes (B, H) and {kind}_decoded, {kind}_target (B, D) of the modalities in the batch, by their views or by
        embeddings that are there already: image_raw, text_raw (B, D)."""
        found = {}
        for kind in KINDS:
            if f"{kind}_raw" in batch or kind in batch:
                raw = batch[f"{kind}_raw"] if f"{kind}_raw" in batch else getattr(towers, kind)(params, batch[kind])["raw"]
                x = explicit(params, kind, raw)
                h = codes(params, memory, kind, x)
                found |= {f"{kind}_codes": h, f"{kind}_decoded": sae.decode(params["sae"], kind, h), f"{kind}_target": x}
        return found

    def term(kind, prefix=""):
        after = f"{prefix}{kind}"
        target = after if not prefix else f"{after}/target"
        return lambda out: sparse.reconstruction(out[f"{after}/decoded"], out[target])

    return pair.objective(
        config, towers,
        pair.Parts({"image": pair.View("image", opts.image), "text": pair.View("text", opts.text)},
                   rows=lambda params, encoded: {name: one["raw"] for name, one in encoded.items()}, finish=finish),
        init=init, start=start if opts.center else nothing, remember=remember,
        terms={"image": term("image"), "text": term("text"),
               "align": lambda out: sparse.alignment(out["aux/image"], out["aux/text"], opts.aux_temperature, opts.aux_normalize,
                                                     opts.form),
               "align_image": term("image", "aux/"), "align_text": term("text", "aux/")},
        metrics=_metrics() if with_codes else {},
        heads={"concepts": concepts} if with_codes else {},
    )


def _metrics():
    """Of the batch: share of units that fire, pairs' cosine of codes, activations per row, share of the variance explained."""
    def used(kind):
        return lambda out: jnp.mean(jnp.any(out[f"{kind}/codes"] > 0, axis=0).astype(jnp.float32))

    def explained(kind):
        def share(out):
            x = out[kind]
            return 1 - sparse.reconstruction(out[f"{kind}/decoded"], x) / jnp.mean(jnp.square(x - jnp.mean(x, 0, keepdims=True)))
        return share

    return {"pair_cosine": lambda out: jnp.mean(sparse.cosine(out["image/codes"], out["text/codes"])),
            "active": lambda out: jnp.mean(jnp.sum((out["image/codes"] > 0).astype(jnp.float32), axis=1)),
            **{f"used/{kind}": used(kind) for kind in KINDS}, **{f"explained/{kind}": explained(kind) for kind in KINDS}}


def _check_frozen(towers, locked):
    """Raises ValueError if a tower has parameters that `locked` doesn't hold."""
    trained, _ = towers_lib.split(jax.eval_shape(towers.init, jax.random.key(0)), locked)
    loose = [kind for kind in KINDS if jax.tree.leaves(trained[kind])]
    if loose:
        raise ValueError(f"this method reads frozen encoders, and the {loose[0]} tower would be trained: set config.model.locked="
                         f"('image', 'image/proj', 'text', 'text/proj') with config.init_locked, or read stored embeddings "
                         "(config.model.image.name='stored')")
