"""DeFILIP: DeCLIP's four terms, and FILIP's of the first image view and the caption (Sense-GVT/DeCLIP, model/defilip.py).

The two methods composed, with the weights of the released code, which sum to 1.2. As there, the tokens of the caption are those of
its masked words, each method has a temperature of its own, and evaluations compare pooled embeddings. To compose it with a third
method compose its parts: name = ("declip", "filip", "mcd"). What differs from the released code is said in `declip` and `filip`.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mcd_jax import config as config_lib
from mcd_jax.methods import declip, filip
from mcd_jax.objectives import compose
from mcd_jax.objectives.objective import Objective


class Options(NamedTuple):
    """Those of the two methods."""
    image: str = "image"                    # the first image view, whose patches are compared with words
    augmented: str = "augmented"            # the second
    text: str = "text"
    augmented_text: str = "augmented_text"  # batch key of the caption changed by `eda`
    bank: int = 65536                       # text embeddings of earlier steps, at least a batch
    nn_direction: str = "image"             # of nn: "image" (to text alone) | "both"
    hidden: int = 1024                      # width of SimSiam's projector
    bottleneck: int = 512                   # of its predictor
    norm: str = "batch"                     # in both: "batch" (the global one) | "layer"
    mask_id: int = -1                       # id of the mask; must be given
    start_id: int = -1                      # id that texts begin with, never masked nor drawn; -1: they begin with a word
    mask_rate: float = 0.15                 # share of words that are masked
    mlm_feeds_clip: bool = True             # the caption is embedded from its masked words; False: from all, in one more pass
    token_width: int = 256                  # of the tokens that are compared
    pads: str = "counted"                   # what a text's padding does: "masked" | "zero" | "counted"
    select: int = 16                        # tokens of each image and text that others see; 0: all
    implementation: str = "auto"            # of losses over all pairs: "gather" | "ring" | "ring_bf16" | "auto" by size


WEIGHTS = {**declip.WEIGHTS, "filip": 0.2}


def make(config: ConfigDict, extra_terms: Mapping[str, Callable] = {}) -> Objective:
    """The `Objective`; terms: those of `declip`, and filip. memory: bank.

    Raises:
      ValueError: as the two methods do.
    """
    given, weights = config.objective.to_dict(), dict(config.objective.weights)
    words = declip.MASKED if given["mlm_feeds_clip"] and weights["mlm"] else given["text"]
    token_weights = {"filip": weights.pop("filip"), "clip": 0.0}
    sections = {
        "declip": dict(weights=weights, **{key: given[key] for key in declip.Options._fields}),
        "filip": dict(weights=token_weights, text=words, **{key: given[key] for key in filip.Options._fields if key != "text"})}
    both = ConfigDict({**config.to_dict(), "objective": config_lib.objective(tuple(sections), **sections).to_dict()})
    composed = compose.objective(both)
    return composed._replace(terms={**_flat(composed.terms), **extra_terms}, metrics=_flat(composed.metrics))


def _flat(functions):
    """Under the names that the two methods give them; the clip of pooled embeddings and its metrics are DeCLIP's."""
    return {name.partition("/")[2]: fn for name, fn in sorted(functions.items(), reverse=True)}
