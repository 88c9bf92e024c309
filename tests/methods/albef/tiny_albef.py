"""ALBEF and its fine-tunings at the size of a toy."""
from cases import BATCH, BERT, VOCAB, Case
import jax
import numpy as np


def slow_entropies(out):
    """(hard, soft): mean cross-entropies of both directions with the own key and the teacher's distribution, keys: batch, queue."""
    hard, soft, scale, teacher = 0.0, 0.0, float(out["scale"]), jax.tree.map(np.float64, out["for_memory"])
    for one, other in (("image", "text"), ("text", "image")):
        keys = np.concatenate([teacher[other], *np.asarray(out["memory"]["queue"][other], np.float64)])
        for i, x in enumerate(np.asarray(out[one], np.float64)):
            p, q = (np.exp(scale * keys @ z) / np.sum(np.exp(scale * keys @ z)) for z in (x, teacher[one][i]))
            hard, soft = hard - np.log(p[i]) / 2, soft - np.sum(q * np.log(p)) / 2
    return hard / len(teacher["image"]), soft / len(teacher["image"])


def slow_itm(out):
    rows = [(row, label) for three in np.asarray(out["itm"], np.float64) for row, label in zip(three, (1, 0, 0), strict=True)]
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in rows])


def slow_words(out, name):
    """Of the sums over each row's masked words, whose own slow form is in test_albef.py."""
    return np.sum(out[f"mlm/{name}"]) / np.sum(out["mlm/count"])


def slow_answers(out, name):
    """Of the sums over each answer's words, whose own slow form is in test_answering.py."""
    sums, weights = np.asarray(out[f"answer/{name}"], np.float64), np.asarray(out["weights"], np.float64)
    return sum(w * x for row, own in zip(sums, weights) for x, w in zip(row, own)) / len(sums)


def slow_class(out, target=None):
    """Cross-entropy of a few classes with the label, or with other distributions over them."""
    logits = np.asarray(out["logits"], np.float64)
    rows = np.eye(logits.shape[1])[np.asarray(out["label"])] if target is None else np.asarray(out[target], np.float64)
    return np.mean([-sum(y * (x - np.log(np.sum(np.exp(row)))) for x, y in zip(row, own)) for row, own in zip(logits, rows)])


OF_ALBEF = {"itc": lambda out: slow_entropies(out)[0], "itc_distill": lambda out: -np.subtract(*slow_entropies(out)),
            "itm": slow_itm, "mlm": lambda out: slow_words(out, "hard"),
            "mlm_distill": lambda out: slow_words(out, "soft") - slow_words(out, "hard")}
OF_VQA = {"answer": lambda out: slow_answers(out, "hard"),
          "answer_distill": lambda out: slow_answers(out, "soft") - slow_answers(out, "hard")}
CASES = {
    "albef": Case((12.33409, 150.28381, 0.06543, 12.36553), OF_ALBEF,
                  dict(mask_id=VOCAB, mask_rate=0.4, queue=2 * BATCH, fusion_layers=1), dict(text=BERT),
                  weights=dict(itc_distill=0.5, mlm_distill=0.5), every_mesh=True, layers=("fusion",)),
    "vqa": Case((9.9425, 3.5607, 0.04773, 13.61646), OF_VQA, dict(start_id=VOCAB, fusion_layers=1, decoder_layers=1, longest=4),
                dict(text=BERT), weights=dict(answer_distill=0.5), slow=True,
                layers=("fusion", "decoder")),
    "entailment": Case((1.09865, 0.06202, 0.05228, 13.00641),
                       {"label": slow_class, "label_distill": lambda out: slow_class(out, "soft") - slow_class(out)},
                       dict(fusion_layers=1, second="augmented", label="kind"), dict(text=BERT), weights=dict(label_distill=0.5),
                       slow=True, lockable=False),
    "text_assignment": Case((1.09082, 0.40015, 0.06861, 13.00475), {"assign": slow_class}, dict(fusion_layers=1), dict(text=BERT),
                            slow=True, lockable=False),
}
