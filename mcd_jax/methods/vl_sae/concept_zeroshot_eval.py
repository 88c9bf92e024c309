"""Zero-shot classification with a concept-level term: score of class c = cos(x, x_c) + alpha * cos(h(x), h(x_c)).

VL-SAE's equation 10 (arXiv 2510.21323), h the codes of a head "concepts". The paper takes an alpha for each data set; one that is
chosen on the test images themselves is an upper bound, not a result, and is named so here. An instance of
`config.evals.concept_zeroshot` says:

  sets     {name: settings of `zeroshot`}
  choose   names of the sets, held out from the others, whose mean top1 chooses one alpha for all (the smallest of the best)
  alphas   those that are tried; 0, the embeddings alone, is always among them
  prompts  "mean": codes of the normalised mean of a class's prompts, as its embedding is; "average": the mean of its prompts' codes
  views    of all sets that have none

Figures: chosen_alpha; for each set <set>/plain/... (alpha 0), <set>/chosen/..., <set>/codes/top1 (codes alone), and
<set>/oracle_per_set/top1 with <set>/oracle_per_set/alpha: the best alpha for this very set.
"""
import numpy as np

from mcd_jax import config as config_lib
from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import zeroshot
from mcd_jax.methods.vl_sae import concepts_eval

HEADS = ("embed", "concepts")
KEYS = {
    "sets": Key("map of dict", NEEDED, "name of your own -> settings of the evaluation zeroshot"),
    "choose": Key("tuple", (), "names of the sets, held out from the others, whose mean top1 chooses one alpha for all"),
    "alphas": Key("tuple", (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0), "those that are tried; 0 always is"),
    "prompts": Key("str", "mean", "mean: codes of the normalised mean of a class's prompts | average: the mean of its prompts' "
                   "codes"),
    "views": Key("map of str", {}, "of all sets that have none"),
}
ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
PROMPTS = ("mean", "average")


def make(config, name):
    """fn(embed, state) -> figures; `config`: see the module.

    Raises:
      ValueError: no set, `choose` names none of them, a negative alpha, or what `zeroshot` refuses.
    """
    instance = f"concept_zeroshot.{name}"
    sets, how = dict(config["sets"]), config.get("prompts", "mean")
    judges = config.get("choose", ())
    judges = (judges,) if isinstance(judges, str) else tuple(judges)
    alphas = sorted({0.0, *map(float, config.get("alphas", ALPHAS))})
    if not sets or not judges or [key for key in judges if key not in sets]:
        raise ValueError(f"config.evals.{instance}.choose={judges!r} must name some of its sets: there are "
                         f"{', '.join(sets) or 'none'}")
    if how not in PROMPTS:
        raise ValueError(f"config.evals.{instance}.prompts={how!r} must be one of {', '.join(PROMPTS)}")
    if alphas[0] < 0:
        raise ValueError(f"config.evals.{instance}.alphas: {alphas[0]} is below 0")
    parts = {}
    for key, own in sets.items():
        own = dict(own)
        for option in own:
            known = [*(one for one in zeroshot.KEYS if one != "similarity"), "batch_size"]   # concepts read pooled embeddings
            config_lib.refuse_unknown(option, known, f"key of config.evals.{instance}.sets.{key}")
        parts[key] = zeroshot.parts({**own, "views": {**config.get("views", {}), **(own.get("views") or {})}}, f"{name}.{key}")

    def run(embed, state):
        tops, scored = {}, {}
        for key, (collect, score) in parts.items():
            image, classes, rest = collect(embed, state)
            image_codes, class_codes = rest[""]["image"]["image_codes"], _class_codes(rest[""], classes, how, embed, state)
            scored[key] = [score(concepts_eval.joined(image, image_codes, a), concepts_eval.joined(classes, class_codes, a), rest)
                           for a in alphas]
            alone = score(concepts_eval.joined(image[:, :0], image_codes, 1.0), concepts_eval.joined(classes[:, :0], class_codes,
                                                                                                     1.0), rest)
            tops[key] = [own["top1"] for own in scored[key]], alone["top1"]
        place = int(np.argmax(np.mean([tops[key][0] for key in judges], axis=0)))
        result = {"chosen_alpha": alphas[place]}
        for key, own in scored.items():
            best = int(np.argmax(tops[key][0]))
            result |= {f"{key}/plain/{k}": v for k, v in own[0].items()} | {f"{key}/chosen/{k}": v for k, v in own[place].items()}
            result |= {f"{key}/codes/top1": tops[key][1], f"{key}/oracle_per_set/top1": tops[key][0][best],
                       f"{key}/oracle_per_set/alpha": alphas[best]}
        return result

    return run


def _class_codes(extra, classes, how, embed, state):
    """Codes (C, H) of the classes."""
    if how == "mean":
        return embed(state, {"text_raw": classes.astype(np.float32)})["text_codes"]
    codes, owner = extra["text"]["text_codes"], extra["prompt_class"]
    total = np.zeros((len(classes), codes.shape[1]), np.float32)
    np.add.at(total, owner, codes)
    return total / np.bincount(owner, minlength=len(classes))[:, None]
