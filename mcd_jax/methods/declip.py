"""DeCLIP: CLIP on two views of image and text, image self-supervision, masked words, and a neighbour's caption as a positive.

"Supervision Exists Everywhere" (Li et al., ICLR 2022, arXiv 2110.05208), as the released code has it (Sense-GVT/DeCLIP,
model/declip.py and solver/declip_solver.py), with I and J two views of an image, t its caption and u the caption changed by the op
`eda`, C the symmetric loss of CLIP and CE its half from image to text:

    clip     mean of C(I, t), C(I, u), C(J, t), C(J, u)
    nn       mean of CE(I, n(t)), CE(I, n(u)), CE(J, n(t)), CE(J, n(u)); n: the nearest text embedding in a bank of earlier steps
    simsiam  between the embeddings of I and J before they are normalised
    mlm      words of t that were masked, read off the text tower's tokens; t is embedded from the masked words too

The paper writes the pairs otherwise: C(I, t) weighs what is left, the mean of the other three 0.2. These are the terms `first_pair`
and `other_pairs`: weights=PAPER. DeFILIP's fifth term is one of another method composed with this one, or in `extra_terms`; the
masked caption is the batch key "text/masked" for it.

Where it differs from the released code: the bank is one for all devices, in checkpoints, and a full ring, where each process there
has its own, not saved, and leaves out the rest of a batch that passes the end. The heads' batch normalisation is that of the
global batch, not of a device's part, so results don't depend on devices, and keeps no averages, for no evaluation reads it;
norm="layer" is the projector's of SLIP here. Random words are never the end of the text, where a causal tower pools. Bound the
temperature as there by config.optimizer.bounds=(("logit_scale", (3.0, 4.605)),).
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcd_jax.losses import contrastive, mlm, ssl
from mcd_jax.models import projector
from mcd_jax.models import towers as towers_lib
from mcd_jax.objectives import bank as bank_lib
from mcd_jax.objectives import two_tower
from mcd_jax.objectives.objective import Objective, apart
from mcd_jax.objectives.two_tower import Term, TowerPass
from mcd_jax.sharding.microbatch import microbatched


class Options(NamedTuple):
    """Defaults are those of the released code."""
    image: str = "image"                    # the first image view
    augmented: str = "augmented"            # the second
    text: str = "text"
    augmented_text: str = "augmented_text"  # batch key of the caption changed by `eda`
    bank: int = 65536                       # text embeddings of earlier steps, at least a batch
    nn_direction: str = "image"             # of nn: "image" (to text alone) | "both"
    hidden: int = 1024                      # width of the projector, and of what it gives
    bottleneck: int = 512                   # of the predictor
    norm: str = "batch"                     # in both: "batch" (the global one) | "layer"
    mask_id: int = -1                       # id of the mask; must be given
    start_id: int = -1                      # id that texts begin with, never masked nor drawn; -1: they begin with a word
    mask_rate: float = 0.15                 # share of words that are masked
    mlm_feeds_clip: bool = True             # the caption is embedded from its masked words; False: from all, in one more pass
    implementation: str = "auto"            # of losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {"clip": 0.4, "nn": 0.2, "simsiam": 0.2, "mlm": 0.2, "first_pair": 0.0, "other_pairs": 0.0}
PAPER = {**WEIGHTS, "clip": 0.0, "first_pair": 0.4, "other_pairs": 0.2}
IMAGES, TEXTS = ("image", "augmented"), ("text", "augmented_text")   # names of views
PAIRS = tuple((image, text) for image in IMAGES for text in TEXTS)
MASKED, CHOSEN = "text/masked", "text/chosen"   # batch keys that are drawn


class Pieces(NamedTuple):
    """What the parts of the forward pass are made of."""
    config: ConfigDict
    opts: Options
    towers: towers_lib.Towers
    heads: Mapping[str, projector.Projector]   # of what is live: projector, predictor, mlm
    live: two_tower.Live                       # heads: "simsiam", "words", "bank"
    words: str                                 # the view that reads masked words


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: clip or first_pair and other_pairs, nn, simsiam, mlm. memory: bank, of unit text embeddings.

    Raises:
      ValueError: an option outside its range, or no id of the mask.
    """
    opts, towers = two_tower.prepare(config, Options)
    words = "text" if opts.mlm_feeds_clip else "masked"
    terms = {**_terms(opts, words), **extra_terms}
    live = two_tower.live(config, terms)
    _check(opts, config, live)
    pieces = Pieces(config, opts, towers, _heads(config, opts, towers, live), live, words)
    masked = "words" in live.heads
    always, optional = _views(opts, MASKED if masked and opts.mlm_feeds_clip else opts.text)

    def init(key, batch):
        own = {name: head.init(apart(key, i)) for i, (name, head) in enumerate(pieces.heads.items())}
        return {**towers.init(key), **({"declip": own} if own else {})}

    def init_memory(key, params, batch):
        return {"bank": bank_lib.start(key, opts.bank, config.model.embed_dim)} if "bank" in live.heads else {}

    def update_memory(memory, params, for_memory, step):
        bank = memory.get("bank")
        for rows in for_memory if bank else ():
            bank = bank_lib.push(bank, rows)
        return {**memory, **({"bank": bank} if bank else {})}

    return two_tower.objective(
        config, towers,
        two_tower.ForwardPass(always, lambda params, encoded: _rows(pieces, encoded),
                              lambda out, params, memory, batch, key, step: _on_batch(pieces, out, params, memory, batch),
                              draw=lambda batch, key: _masked_words(pieces, batch[opts.text], key) if masked else {},
                              optional=optional, drawn_keys=(MASKED, CHOSEN) if masked else ()),
        needs=(opts.image, opts.text, *(optional[name].key for name in ("augmented", "augmented_text") if name in live.views)),
        init=init,
        init_memory=init_memory,
        terms=terms,
        metrics=_metrics(opts, words),
        update_memory=update_memory,
    )


# ---- the forward pass ------------------------------------------------------------------------------------------------------------


def _views(opts, text):
    """(what is always encoded, what terms may need besides); text: the batch key of the caption that is embedded."""
    return ({"image": TowerPass("image", opts.image), "text": TowerPass("text", text)},
            {"augmented": TowerPass("image", opts.augmented), "augmented_text": TowerPass("text", opts.augmented_text),
             "masked": TowerPass("text", MASKED)})


def _masked_words(pieces, tokens, key):
    """The batch keys MASKED and CHOSEN, int32 and bool (B, L)."""
    opts, ids = pieces.opts, _ids(pieces.config)
    ends = (ids["pad"], ids["eot"], opts.start_id)
    open_ = ~jnp.isin(tokens, jnp.asarray(ends))
    masked, chosen = mlm.mask(key, tokens, open_, opts.mask_rate, opts.mask_id, ids["vocab_size"], (*ends, opts.mask_id))
    return {MASKED: masked, CHOSEN: chosen}


def _rows(pieces, encoded):
    """Unit embeddings f32 (b, D) of views, "raw/*" of images before that, and "states" (b, L, W) of masked words."""
    out = {name: encoded[name]["z"] for name in (*IMAGES, *TEXTS) if name in encoded}
    if "simsiam" in pieces.live.heads:
        out |= {f"raw/{name}": encoded[name]["raw"] for name in IMAGES}
    if "words" in pieces.live.heads:
        out["states"] = encoded[pieces.words]["tokens"]
    return out


def _on_batch(pieces, out, params, memory, batch):
    """Neighbours, the heads of self-supervision, and sums over masked words in microbatches."""
    opts, heads, live, own = pieces.opts, pieces.heads, pieces.live.heads, params.get("declip", {})
    result = {**{name: x for name, x in out.items() if name != "states"}, "scale": pieces.towers.scale(params)}
    if "bank" in live:
        result |= {f"nn/{text}": bank_lib.nearest(memory["bank"], out[text], opts.implementation) for text in TEXTS}
        result["for_memory"] = jax.lax.stop_gradient((out["augmented_text"], out["text"]))   # in this order, as released
    if "simsiam" in live:
        for name in IMAGES:
            result[f"projected/{name}"] = heads["projector"].apply(own["projector"], out[f"raw/{name}"])
            result[f"predicted/{name}"] = heads["predictor"].apply(own["predictor"], result[f"projected/{name}"])
    if "words" in live:
        def sums(own, _, x, __):
            return {"rows": mlm.row_sums(heads["mlm"].apply(own, x["states"]), x["labels"], x["chosen"])}
        rows = {"states": out["states"], "labels": batch[opts.text], "chosen": batch[CHOSEN]}
        counted = microbatched(sums, pieces.config.microbatches)(own["mlm"], {}, rows)["rows"]
        result |= {f"mlm/{name}": value for name, value in counted.items()}
    return result


# ---- terms and metrics -----------------------------------------------------------------------------------------------------------


def _mean(fn, pairs):
    return jnp.mean(jnp.stack([fn(image, text) for image, text in pairs]))


def _terms(opts, words):
    """Each with what it needs: the views of pairs, the bank, the heads of self-supervision, masked words."""
    nn_loss = contrastive.softmax if opts.nn_direction == "both" else contrastive.one_way

    def of_pairs(pairs):
        return lambda out: _mean(lambda image, text: contrastive.softmax(out[image], out[text], out["scale"], opts.implementation),
                                 pairs)

    def nn(out):
        return _mean(lambda image, text: nn_loss(out[image], out[f"nn/{text}"], out["scale"], opts.implementation), PAIRS)

    def simsiam(out):
        return ssl.simsiam(*(tuple(out[f"{kind}/{name}"] for name in IMAGES) for kind in ("predicted", "projected")))

    both = ("augmented", "augmented_text")
    return {"clip": Term(of_pairs(PAIRS), views=both),
            "nn": Term(nn, views=both, heads=("bank",)),
            "simsiam": Term(simsiam, views=("augmented",), heads=("simsiam",)),
            "mlm": Term(lambda out: mlm.mean(out["mlm/hard"], out["mlm/count"], len(out["mlm/count"])),
                        views=(words,), heads=("words",)),
            "first_pair": of_pairs(PAIRS[:1]),
            "other_pairs": Term(of_pairs(PAIRS[1:]), views=both)}


def _metrics(opts, words):
    def right_words(out):
        return jnp.sum(out["mlm/right"]) / jnp.maximum(jnp.sum(out["mlm/count"]), 1.0)

    return {**two_tower.metrics(opts.implementation),
            "nn/cosine": Term(lambda out: jnp.mean(contrastive.matching(out["text"], out["nn/text"])),
                              views=("augmented", "augmented_text"), heads=("bank",)),
            "simsiam/spread": Term(lambda out: ssl.spread(out["projected/image"]), views=("augmented",), heads=("simsiam",)),
            "mlm/accuracy": Term(right_words, views=(words,), heads=("words",))}


# ---- what a config must have -----------------------------------------------------------------------------------------------------


def _ids(config):
    """vocab_size, eot and pad of the tokenizer, and how many "ids" the text tower knows."""
    inputs = {"pad": 0, **config.model.inputs.to_dict()}
    spare = (config.model.get("text") or {}).get("spare_ids", 0)
    return {**inputs, "ids": inputs["vocab_size"] + spare}


def _heads(config, opts, towers, live):
    """name -> `Projector` of what is live."""
    heads, dim = {}, config.model.embed_dim
    if "simsiam" in live.heads:
        heads["projector"] = projector.make(dim, opts.hidden, opts.hidden, norm=opts.norm, last_norm=True)
        heads["predictor"] = projector.make(opts.hidden, opts.bottleneck, opts.hidden, 2, opts.norm, last_bias=True)
    if "words" in live.heads:
        ids = _ids(config)
        params = jax.eval_shape(towers.init, jax.random.key(0))
        tokens = jax.eval_shape(towers.text, params, jax.ShapeDtypeStruct((1, ids["context"]), jnp.int32))["tokens"]
        heads["mlm"] = projector.make(tokens.shape[-1], 0, ids["ids"], 1, last_bias=True)
    return heads


def _check(opts, config, live):
    for name, known in (("nn_direction", ("image", "both")), ("norm", projector.NORMS)):
        if getattr(opts, name) not in known:
            raise ValueError(f"config.objective.{name}={getattr(opts, name)!r} must be {' or '.join(map(repr, known))}")
    if not 0 <= opts.mask_rate <= 1:
        raise ValueError(f"config.objective.mask_rate={opts.mask_rate} must lie in [0, 1]")
    if "bank" in live.heads and opts.bank < config.batch_size:
        raise ValueError(f"config.objective.bank={opts.bank} must hold a batch, config.batch_size={config.batch_size} rows")
    ids = _ids(config)
    if "words" in live.heads and (not 0 <= opts.mask_id < ids["ids"] or opts.mask_id in (ids["pad"], ids["eot"])):
        raise ValueError(
            f"config.objective.mask_id={opts.mask_id} must be the id of the mask, one of the {ids['ids']} ids of the text tower, "
            f"neither padding nor end of text; for a tokenizer without one set config.model.text.spare_ids=1 and "
            f"mask_id={ids['vocab_size']}, the first id beyond it")
