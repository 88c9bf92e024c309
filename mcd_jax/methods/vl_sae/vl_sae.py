"""VL-SAE: one list of concepts for images and texts, sparse codes of the embeddings of a frozen encoder.

Shen, Sun, Huang and Wang, NeurIPS 2025, arXiv 2510.21323. After the released code (ssfgunner/VL-SAE at 2d4a675), which differs from
the paper in places that `Options` names; of the paper itself the abstract was available to us. Its zero-shot evaluation was not
released, and a public attempt at its figures did not get them (issue 7 there).

    a_i(x) = 2 - || x / |x| - w_i / |w_i| ||,  h = the k largest a_i,  xhat = decoder of the modality (h),  loss = MSE + MSE

x are the embeddings before normalisation. Where they come from:
  stored embeddings     config.model.image.name = "stored" (models/stored.py): what `mcd-jax embed` wrote
  towers in memory      config.model.locked = ("image", "image/proj", "text", "text/proj"), config.init_locked: a run's towers

Models in the paper's terms: VL-SAE (the default); SAE-D: encoder="linear", shared_encoder=False; SAE-V, called SAE-S in the paper
[inference]: encoder="linear", shared_decoder=True; its "+ distance encoder": shared_decoder=True.

Representations that are not aligned (hidden states of a language model) first go through an auxiliary autoencoder, trained before
by the terms align, align_image and align_text: `auxiliary=True` and weights image=0, text=0. The second run starts from the first
(config.init_from, config.init_fresh=("sae/.*",)), freezes "aux/.*" by a schedule of None, and has the default weights. The sparse
autoencoder sends no gradient into it.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.methods.vl_sae import sae as sae_lib
from mcd_jax.methods.vl_sae import sparse
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, Tree, nothing
from mcd_jax.objectives.two_tower import Term


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
    implementation: str = "auto"     # of its contrastive loss: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"image": 1.0, "text": 1.0, "align": 0.0, "align_image": 0.0, "align_text": 0.0}
KINDS = sae_lib.MODALITIES


class Autoencoders(NamedTuple):
    """The sparse autoencoder and the auxiliary one in front of it, as the options want them."""
    opts: Options
    sae: sae_lib.Sae
    aligner: sae_lib.Aligner | None

    def explicit(self, params: Tree, kind: str, raw: jax.Array) -> jax.Array:
        """x^e (B, D): what the sparse autoencoder is given."""
        x = jax.lax.stop_gradient(raw.astype(jnp.float32))
        if self.aligner:
            x = jax.lax.stop_gradient(self.aligner.encode(params["aux"], kind, x))
        return sparse.normalised(x) if self.opts.normalize else x

    def codes(self, params: Tree, memory: Tree, kind: str, x: jax.Array) -> jax.Array:
        """h (B, H) of x^e."""
        return self.sae.encode(params["sae"], kind, x - memory["mean"][kind][None] if self.opts.center else x)

    def decode(self, params: Tree, kind: str, h: jax.Array) -> jax.Array:
        return self.sae.decode(params["sae"], kind, h)


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: image, text (reconstruction), align, align_image, align_text. Heads: also `concepts`.

    Raises:
      ValueError: an option outside its choices, a tower that would be trained, or terms of an autoencoder that isn't there.
    """
    opts, towers = two_tower.prepare(config, Options)
    width = config.model.embed_dim
    _check_frozen(towers, config.model.get("locked", ()))
    terms = {**_terms(opts), **extra_terms}
    live = two_tower.live(config, terms)
    if not opts.auxiliary and "aux" in live.heads:
        raise ValueError("config.objective.weights: align, align_image and align_text train the auxiliary autoencoder: set "
                         "config.objective.auxiliary=True")
    with_codes = "codes" in live.heads
    inner = (opts.aux_width or width) if opts.auxiliary else width
    sae = sae_lib.make(inner, opts.ratio * inner, opts.k, opts.encoder, opts.shared_encoder, opts.shared_decoder)
    aligner = sae_lib.make_aligner(width, inner) if opts.auxiliary else None
    model = Autoencoders(opts, sae, aligner)

    def init(key, batch):
        params = {kind: tree for kind, tree in towers.init(key).items() if kind in KINDS}
        if with_codes:
            params["sae"] = sae.init(jax.random.fold_in(key, 1))
        return {**params, "aux": aligner.init(jax.random.fold_in(key, 2))} if aligner else params

    def init_memory(key, params, batch):
        return {"mean": {kind: jnp.zeros(inner) for kind in KINDS}, "seen": jnp.float32(0)} if opts.center else {}

    def on_batch(out, params, memory, batch, key, step):
        result = {}
        for kind in KINDS:
            raw = jax.lax.stop_gradient(out[kind])
            if aligner:
                encoded = aligner.encode(params["aux"], kind, raw)
                result |= {f"aux/{kind}": encoded, f"aux/{kind}/target": raw,
                           f"aux/{kind}/decoded": aligner.decode(params["aux"], kind, encoded)}
            result[kind] = model.explicit(params, kind, raw)
            if with_codes:
                result[f"{kind}/codes"] = model.codes(params, memory, kind, result[kind])
                result[f"{kind}/decoded"] = model.decode(params, kind, result[f"{kind}/codes"])
        if opts.center:
            result["for_memory"] = {kind: jnp.mean(result[kind], axis=0) for kind in KINDS}
        return result

    def update_memory(memory, params, for_memory, step):
        if not opts.center:
            return memory
        seen = memory["seen"] + 1   # the mean over all batches so far
        return {**memory, "seen": seen, "mean": jax.tree.map(lambda old, new: old + (new - old) / seen, memory["mean"], for_memory)}

    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass({"image": two_tower.TowerPass("image", opts.image), "text": two_tower.TowerPass("text", opts.text)},
                              rows=lambda params, encoded: {name: one["raw"] for name, one in encoded.items()}, on_batch=on_batch),
        init=init, init_memory=init_memory if opts.center else nothing, update_memory=update_memory,
        terms=terms,
        metrics=_metrics(),
        heads={"concepts": _concepts_head(model, towers)} if with_codes else {},
    )


def _concepts_head(model, towers):
    def concepts(params, memory, batch):
        """{kind}_codes (B, H) and {kind}_decoded, {kind}_target (B, D) of the modalities in the batch, by their views or by
        embeddings that are there already: image_raw, text_raw (B, D)."""
        result = {}
        for kind in KINDS:
            if f"{kind}_raw" in batch or kind in batch:
                raw = batch[f"{kind}_raw"] if f"{kind}_raw" in batch else getattr(towers, kind)(params, batch[kind])["raw"]
                x = model.explicit(params, kind, raw)
                h = model.codes(params, memory, kind, x)
                result |= {f"{kind}_codes": h, f"{kind}_decoded": model.decode(params, kind, h), f"{kind}_target": x}
        return result
    return concepts


def _terms(opts):
    """Each with the autoencoder that it trains: the sparse one ("codes") or the auxiliary one ("aux")."""
    def reconstruction(decoded, target, head):
        return Term(lambda out: sparse.reconstruction(out[decoded], out[target]), heads=(head,))

    def align(out):
        return sparse.alignment(out["aux/image"], out["aux/text"], opts.aux_temperature, opts.aux_normalize, opts.implementation)

    return {**{kind: reconstruction(f"{kind}/decoded", kind, "codes") for kind in KINDS},
            "align": Term(align, heads=("aux",)),
            **{f"align_{kind}": reconstruction(f"aux/{kind}/decoded", f"aux/{kind}/target", "aux") for kind in KINDS}}


def _metrics():
    """Of the batch: share of units that fire, pairs' cosine of codes, activations per row, share of the variance explained."""
    def used(kind):
        return lambda out: jnp.mean(jnp.any(out[f"{kind}/codes"] > 0, axis=0).astype(jnp.float32))

    def explained(kind):
        def share(out):
            x = out[kind]
            return 1 - sparse.reconstruction(out[f"{kind}/decoded"], x) / jnp.mean(jnp.square(x - jnp.mean(x, 0, keepdims=True)))
        return share

    metrics = {"pair_cosine": lambda out: jnp.mean(sparse.cosine(out["image/codes"], out["text/codes"])),
               "active": lambda out: jnp.mean(jnp.sum((out["image/codes"] > 0).astype(jnp.float32), axis=1)),
               **{f"used/{kind}": used(kind) for kind in KINDS}, **{f"explained/{kind}": explained(kind) for kind in KINDS}}
    return {name: Term(fn, heads=("codes",)) for name, fn in metrics.items()}


def _check_frozen(towers, locked):
    """Raises ValueError if a tower has parameters that `locked` doesn't hold."""
    trained, _ = towers_lib.split(jax.eval_shape(towers.init, jax.random.key(0)), locked)
    loose = [kind for kind in KINDS if jax.tree.leaves(trained[kind])]
    if loose:
        raise ValueError(f"this method reads frozen encoders, and the {loose[0]} tower would be trained: set config.model.locked="
                         f"('image', 'image/proj', 'text', 'text/proj') with config.init_locked, or read stored embeddings "
                         "(config.model.image.name='stored')")
