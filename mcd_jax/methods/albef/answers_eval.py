"""Answers to questions about images: a fixed list of them ranked, or written word for word (Li et al. 2021, ALBEF).

An instance of `config.evals.answers` has

  source    questions: rows with an image, a text and a column "answers", a list of str: one answer, or those of several annotators
  views     pipes of "image" and "text" (the question), and of "answer", which tokenizes an answer: "tokenize(12, 'emoji')"
  how       "rank" (default) or "generate"
  answers   for "rank", the list: strings, the path of a JSON list (ALBEF's answer_list.json), or the spec of a source, whose
            different answers are taken
  k         answers whose first words are the likeliest, which are then scored as a whole (128)
  twice     whether the first word counts twice in that score, as in the published code (True, see below)
  types     column of the questions' types, or several ("question_type", "answer_type"): figures are given for each value too
  normal    "plain" (default: as the tokenizer gives an answer back) or "vqa" (the rules of VQA's evaluation, `normalised`)
  n         at most so many questions, evenly spaced; all when left out
  out       a JSON file of [{"question_id", "answer"}, ...] to write, as VQA's server takes it; needs a column "question_id"

Figures: "accuracy" (the commonest of the given answers), where questions have several "accuracy_vqa" (min(1, n / 3) for an answer
that n annotators gave) and "accuracy_vqa_nine" (its mean over the sets without one annotator, as VQA's code computes it), and
"accuracy_commonest", the accuracy of who knows the answers to this set but not the image: for each type the commonest one. Where
`types` are given, overall figures use the first. "within_k" is the share of questions whose commonest answer was scored as a whole.

The published ranking adds log p(first word) to the log-likelihood of the whole answer, which has it already. twice=False doesn't.
"""
import collections
import functools
import json
import pathlib
import re

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import sources
from mcd_jax.evals import rows
from mcd_jax.run import atomic

KEYS = {
    "source": Key("source", NEEDED, "questions: rows with an image, a text and a column answers, a list of str"),
    "views": Key("map of str", {}, "pipes of image, text (the question) and answer, which tokenizes an answer; left out: as in "
                 "training, without randomness"),
    "how": Key("str", "rank", "rank | generate"),
    "answers": Key("tuple | str | source | None", None, "for rank the list: strings, the path of a JSON list, or a source whose "
                   "answers are taken"),
    "k": Key("int", 128, "answers whose first words are the likeliest, which are then scored as a whole"),
    "twice": Key("bool", True, "the first word counts twice in that score, as in the published code"),
    "types": Key("str | tuple | None", None, "column of the questions' types, or several: figures are given for each value too"),
    "normal": Key("str", "plain", "plain: as the tokenizer gives an answer back | vqa: by the rules of VQA's evaluation"),
    "n": Key("int | None", None, "at most so many questions, evenly spaced; left out: all"),
    "out": Key("str | None", None, "a JSON file to write as VQA's server takes it; needs a column question_id"),
}
HEADS = ("question",)   # of the objective; also first and score, or generate
BLOCK = 2048            # questions whose states are held at once

# ---- what is right ----

_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
            "eight": "8", "nine": "9", "ten": "10"}
_SIGNS = ";/[]\"{}()=+\\_-><@`,?!"


def normalised(answer, words=True):
    """An answer by the rules of VQA's evaluation: punctuation and, of what a model says, number words and articles (`words`).

    Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py at c4e6a0e, which gives the annotators' answers the
    first only, and only where they differ. Its table of contractions without their apostrophe is left out.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip() if words else answer
    text, comma = answer, re.search(r"\d,\d", answer) is not None
    for sign in _SIGNS:
        alone = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if alone or comma else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    if not words:
        return text
    return " ".join(word for word in (_NUMBERS.get(word, word) for word in text.lower().split()) if word not in _ARTICLES)


def credit(answer, given):
    """(min(1, n / 3), its mean over the sets without one) of an answer that n of the `given` ones equal.

    Source: Goyal et al. 2017 (VQA v2) and Antol et al. 2015: the second is what the published code computes.
    """
    n, all_ = sum(one == answer for one in given), len(given)
    nine = (n * min(1.0, (n - 1) / 3) + (all_ - n) * min(1.0, n / 3)) / all_
    return min(1.0, n / 3), nine


def commonest(given):
    """The answer that most gave, the first of them in order of appearance."""
    return collections.Counter(given).most_common(1)[0][0]


def figures_of(answered, given, kind):
    """Figures of answers (n) to questions of one kind or several.

    Args:
      answered: list of str, or None where there is none. given: list of lists of str. kind: list of the questions' kinds.
    """
    wanted = [commonest(one) for one in given]
    of_kind = collections.defaultdict(list)
    for value, answer in zip(kind, wanted):
        of_kind[value].append(answer)
    prior = {value: commonest(answers) for value, answers in of_kind.items()}
    found = {"accuracy": np.mean([a == w for a, w in zip(answered, wanted)]),
             "accuracy_commonest": np.mean([prior[value] == w for value, w in zip(kind, wanted)]), "queries": len(wanted)}
    if any(len(one) > 1 for one in given):
        both = np.mean([credit(a, one) for a, one in zip(answered, given)], axis=0)
        found |= {"accuracy_vqa": both[0], "accuracy_vqa_nine": both[1]}
    return {name: float(value) for name, value in found.items()}


# ---- the evaluation ----

def likeliest(first, firsts, k):
    """(n, k) numbers of the answers whose first words are the likeliest, best first.

    Args:
      first: (n, ids) log-probabilities. firsts: (N,) the first word of every answer.
    """
    scores = first[:, firsts]
    return np.argsort(-scores, axis=1, kind="stable")[:, :min(k, len(firsts))]


def make(config, name):
    """fn(embed, state) -> figures; `config`: see the module.

    Raises:
      ValueError: a key or value that doesn't fit, a source without answers, or an empty list of them.
    """
    instance = f"answers.{name}"
    how, normal, k = config.get("how", "rank"), config.get("normal", "plain"), config.get("k", 128)
    for key, value, known in (("how", how, ("rank", "generate")), ("normal", normal, ("plain", "vqa"))):
        if value not in known:
            raise ValueError(f"config.evals.{instance}.{key}={value!r} must be one of {', '.join(map(repr, known))}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"config.evals.{instance}.k={k!r} must be a whole number of at least 1")
    types = config.get("types") or ()
    types = (types,) if isinstance(types, str) else tuple(types)
    stored = ("answers", *types, *(("question_id",) if config.get("out") else ()))
    source = rows.open_source(config["source"], stored, instance)
    view, answer_view = (rows.pick(config["views"], keys, instance) for keys in (["image", "text"], ["answer"]))
    if "answer" not in answer_view.tokens:
        raise ValueError(f"config.evals.{instance}.views.answer={config['views']['answer']!r} must tokenize an answer")
    tokenizer, context = answer_view.tokens["answer"]
    candidates = _candidates(config["answers"], instance) if how == "rank" else ()
    size = config.get("batch_size", 256)

    @functools.cache
    def said(answer):
        """How an answer is compared when a model gives it."""
        return normalised(answer) if normal == "vqa" else tokenizer.decoded(tokenizer.row(answer, context))

    def known(given):
        """The same of what annotators gave."""
        if normal == "vqa":
            return [normalised(answer, False) for answer in given] if len(set(given)) > 1 else given
        return [said(answer) for answer in given]

    def fn(embed, state):
        chosen = rows.sample(source, None, config.get("n"), instance)
        table = rows.columns(source, stored, chosen, ragged=stored)
        pick = _ranker(embed, state) if how == "rank" else _writer(embed, state)
        answered, within, good = [], [], []
        for at in range(0, len(chosen), BLOCK):
            states, usable = rows.encode(embed, state, source, view, ["image", "text"], size, chosen[at:at + BLOCK], together=True)
            found, near = pick(states)
            answered, within, good = answered + found, within + near, [*good, *usable]
        if config.get("out"):
            _write(config["out"], table["question_id"], answered)
        figures = {"bad": float(np.sum(~np.asarray(good)))}
        kept = [i for i, given in enumerate(table["answers"]) if good[i] and given]
        if not kept:   # a test set without answers: `out` is what it is for
            return figures
        answers = [answered[i] if answered[i] is None else said(answered[i]) for i in kept]
        given = [known(table["answers"][i]) for i in kept]
        every = [table[types[0]][i] for i in kept] if types else [""] * len(kept)
        figures |= figures_of(answers, given, every)
        if how == "rank":
            near = [{said(candidates[number]) for number in within[i]} for i in kept]
            figures["within_k"] = float(np.mean([commonest(one) in some for one, some in zip(given, near)]))
        for column in types:
            values = [str(table[column][i]) for i in kept]
            for value in sorted(set(values)):
                own = [i for i, v in enumerate(values) if v == value]
                of_value = figures_of([answers[i] for i in own], [given[i] for i in own], [""] * len(own))
                figures |= {f"{value}/{figure}": number for figure, number in of_value.items()}
        return figures

    def _ranker(embed, state):
        first, score = embed.head("first"), embed.head("score")
        tokens = np.stack([tokenizer.row(answer, context) for answer in candidates])
        firsts = tokens[:, int(tokenizer.sot is not None)]

        def pick(states):
            near, best = [], []
            for at in range(0, len(states["seen"]), size):
                part = {key: value[at:at + size] for key, value in states.items()}
                chosen = likeliest(first(state, part)["first"], firsts, k)
                found = score(state, {**part, "answers": tokens[chosen]})
                total = found["score"] + (found["first"] if config.get("twice", True) else 0)
                total = np.where(np.isfinite(total), total, -np.inf)
                top = np.argmax(total, axis=1)
                best += [candidates[row[i]] if np.isfinite(scores[i]) else None for row, scores, i in zip(chosen, total, top)]
                near += chosen.tolist()
            return best, near
        return pick

    def _writer(embed, state):
        generate = embed.head("generate")

        def pick(states):
            written = generate(state, states)["tokens"].astype(int)
            return [tokenizer.decoded(row) for row in written], [()] * len(written)
        return pick

    return fn


def _candidates(given, instance):
    """The list of answers, each once, in order."""
    if hasattr(given, "keys"):
        source = sources.open(given)
        given = [answer for own in rows.columns(source, ["answers"], ragged=("answers",))["answers"] for answer in own]
    elif isinstance(given, str):
        given = json.loads(pathlib.Path(given).read_text(encoding="utf-8"))
    found = list(dict.fromkeys(given))
    if not found or not all(isinstance(answer, str) and answer for answer in found):
        raise ValueError(f"config.evals.{instance}.answers must give answers, all of them text; it gives {found[:3]!r}")
    return found


def _write(path, ids, answered):
    """The answers as VQA's server takes them; every process writes the same."""
    atomic.write_text(path, json.dumps([{"question_id": int(i), "answer": answer or ""} for i, answer in zip(ids, answered)]))
