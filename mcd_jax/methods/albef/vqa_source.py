"""Questions about photos with their answers: VQA v2 and Visual Genome, as ALBEF's lists or as published (see mcd_jax.data.sources).

    dict(name="vqa", path="/data", tables=("vqa_train.json", "vqa_val.json", "vg_qa.json"),
         images=dict(vqa="coco", vg="visual-genome"))                                                        ALBEF's lists
    dict(name="vqa", path="/data/vqa", questions="v2_OpenEnded_mscoco_val2014_questions.json",
         annotations="v2_mscoco_val2014_annotations.json", images="val2014")                                 VQA's own files
    dict(name="vqa", path="/data/vg", genome="question_answers.json", images=("VG_100K", "VG_100K_2"))       Visual Genome's

An image of VQA's files is COCO_<data_subtype>_<image id, 12 digits>.jpg, one of Visual Genome's <image id>.jpg in the first of the
folders that has it. Without annotations (VQA's test sets) a question has no answers.

Columns: image, text (the question, cleaned as in ALBEF: see `cleaned`), key, question_id, question_type and answer_type (where the
files have them, else ""), dataset ("vqa" or "vg"), answers (all that were given, list of str), and for training choices, the
different ones, the commonest first, and weights, float32 (most,), their shares, 0 where there are fewer: with `most` answers
"captions(10, 'first', 'choices')|tokenize(...)" and "column('weights')" are the rows of a batch. Visual Genome's one answer weighs
vg_weight (0.5, as in ALBEF's code).
"""
import collections
import json
import os
import re

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.columns import check_spec, position

KEYS = {
    "path": Key("str", NEEDED, "a folder"),
    "images": Key("str | tuple | dict", NEEDED, "folders of images in it: of ALBEF's lists one for each data set"),
    "tables": Key("str | tuple | None", None, "ALBEF's lists"),
    "questions": Key("str | None", None, "VQA's own file of questions"),
    "annotations": Key("str | None", None, "VQA's own file of answers; left out: there are none"),
    "genome": Key("str | None", None, "Visual Genome's file"),
    "words": Key("int", 30, "of a question, at most"),
    "most": Key("int", 10, "different answers of a question, at most"),
    "vg_weight": Key("float", 0.5, "of Visual Genome's one answer"),
}
_TEXT = ("question", "dataset", "image")


def make(spec):
    """The source of a spec; see the module.

    spec beside the above: words (30), after which a question is cut, 0: never (ALBEF's code: 50 in evaluation); most (10);
      vg_weight (0.5).

    Raises:
      FileNotFoundError: a folder, file or image that does not exist.
      ValueError: an unknown key or value, or a file in another format.
    """
    check_spec(spec, KEYS)
    if spec.get("columns"):
        raise ValueError("data.source.columns: the vqa source has fixed columns, see mcd_jax/methods/albef/vqa_source.py")
    forms = [key for key in ("tables", "questions", "genome") if spec.get(key)]
    if len(forms) != 1:
        raise ValueError(f"data.source needs one of tables, questions and genome for the vqa source; it has {forms or 'none'}")
    for name, least in (("words", 0), ("most", 1)):
        value = spec.get(name, 10)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"data.source.{name}={value!r} must be a whole number of at least {least}")
    root = os.path.realpath(spec["path"])
    if not os.path.isdir(root):
        raise FileNotFoundError(f"data.source.path {spec['path']!r} is not a folder")
    rows = {"tables": _lists, "questions": _official, "genome": _genome}[forms[0]](root, spec)
    return Answered(root, rows, spec.get("words", 30), spec.get("most", 10), spec.get("vg_weight", 0.5))


class Answered:
    """One example per question, in the files' order; an image is read from its file on each access.

    rows: tuples (dataset, image's path below the root, question, answers, question_id, question_type, answer_type).
    """

    def __init__(self, root, rows, words, most, vg_weight):
        self._root, self._rows, self._words, self._most, self._vg = root, rows, words, most, vg_weight
        missing = [name for name in dict.fromkeys(row[1] for row in rows) if not os.path.isfile(self._inside(name))]
        if missing:
            raise FileNotFoundError(f"{len(missing)} images of data.source are not in {root}, the first is {missing[0]}")

    def _inside(self, name):
        file = os.path.realpath(os.path.join(self._root, name)) if "\0" not in name else ""
        if not file or os.path.commonpath([self._root, file]) != self._root:
            raise ValueError(f"data.source: the image {name!r} leads out of {self._root}")
        return file

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        index = position(index, len(self))
        with open(self._inside(self._rows[index][1]), "rb") as file:
            return {"image": file.read(), **self._about(index)}

    def _about(self, index):
        dataset, name, question, answers, number, question_type, answer_type = self._rows[index]
        counts = collections.Counter(answers).most_common(self._most)
        weights = np.zeros(self._most, np.float32)
        weights[:len(counts)] = [self._vg if dataset == "vg" else n / len(answers) for _, n in counts]
        return {"text": cleaned(question, self._words), "key": f"{name}/{number}", "question_id": number, "dataset": dataset,
                "question_type": question_type, "answer_type": answer_type, "answers": list(answers),
                "choices": [answer for answer, _ in counts], "weights": weights}

    def column(self, name):
        """The values of a column other than image for all rows; no image is read.

        Raises:
          KeyError: no such column.
        """
        return [self._about(i)[name] for i in range(len(self))]


def cleaned(question, words=30):
    """A question in lower case without ,.'!?"()*#:;~, with blanks for - and /, cut after so many words (0: never).

    Source: salesforce/ALBEF, dataset/utils.py (pre_question).
    """
    text = re.sub(r"[,.'!?\"()*#:;~]", "", question.lower()).replace("-", " ").replace("/", " ").rstrip(" ")
    parts = text.split(" ")
    return " ".join(parts[:words]) if 0 < words < len(parts) else text


def _lists(root, spec):
    """Rows of ALBEF's lists: [{"dataset", "image", "question", "answer": str or list, "question_id"}, ...]."""
    folders, tables = spec["images"], spec["tables"]
    if not hasattr(folders, "keys"):
        raise ValueError(f"data.source.images={folders!r} must name the folder of each data set: dict(vqa='coco', vg='genome')")
    rows = []
    for table in [tables] if isinstance(tables, str) else tables:
        for number, row in enumerate(_entries(_read(root, table, "tables"), table)):
            answers = row.get("answer", [])
            answers = [answers] if isinstance(answers, str) else answers
            if not all(isinstance(row.get(key), str) for key in _TEXT) or not _texts(answers):
                raise ValueError(f"{table}, entry {number}: needs dataset, image, question and answer, as ALBEF's lists have; it "
                                 f"is {str(row)[:80]}")
            if row["dataset"] not in folders:
                raise ValueError(f"{table}, entry {number}: data.source.images has no folder for dataset {row['dataset']!r}")
            rows.append((row["dataset"], os.path.join(folders[row["dataset"]], row["image"]), row["question"], tuple(answers),
                         row.get("question_id", number), "", ""))
    return rows


def _official(root, spec):
    """Rows of VQA's questions file and, where there is one, its annotations file, which are in any order."""
    found = _read(root, spec["questions"], "questions")
    asked = _entries(found.get("questions") if isinstance(found, dict) else None, spec["questions"], "questions")
    subtype, known = found.get("data_subtype"), {}
    if spec.get("annotations"):
        table = _read(root, spec["annotations"], "annotations")
        entries = _entries(table.get("annotations") if isinstance(table, dict) else None, spec["annotations"], "annotations")
        known = {row.get("question_id"): row for row in entries}
    rows = []
    for number, row in enumerate(asked):
        about = known.get(row.get("question_id"), {})
        answers = [one.get("answer") for one in about.get("answers", [])]
        fits = isinstance(row.get("question"), str) and isinstance(row.get("image_id"), int) and isinstance(subtype, str)
        if not fits or not _texts(answers) or bool(known) != bool(about):
            raise ValueError(f"{spec['questions']}, question {number}: needs question, image_id, the file's data_subtype and, with "
                             f"annotations, its answers there; it is {str(row)[:80]}")
        name = f"COCO_{subtype}_{row['image_id']:012d}.jpg"
        rows.append(("vqa", os.path.join(spec["images"], name), row["question"], tuple(answers), row["question_id"],
                     about.get("question_type", ""), about.get("answer_type", "")))
    return rows


def _genome(root, spec):
    """Rows of Visual Genome's question_answers.json: [{"id", "qas": [{"qa_id", "image_id", "question", "answer"}, ...]}, ...]."""
    folders = [spec["images"]] if isinstance(spec["images"], str) else list(spec["images"])
    rows = []
    for number, image in enumerate(_entries(_read(root, spec["genome"], "genome"), spec["genome"])):
        for row in _entries(image.get("qas"), f"{spec['genome']}, image {number}"):
            if not _texts([row.get("question"), row.get("answer")]) or not isinstance(row.get("image_id"), int):
                raise ValueError(f"{spec['genome']}, image {number}: needs qas with question, answer and image_id; it has "
                                 f"{str(row)[:80]}")
            names = [os.path.join(folder, f"{row['image_id']}.jpg") for folder in folders]
            name = next((one for one in names if os.path.isfile(os.path.join(root, one))), names[0])
            rows.append(("vg", name, row["question"], (row["answer"].rstrip(".").lower(),), row.get("qa_id", len(rows)), "", ""))
    return rows


def _read(root, name, key):
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"data.source.{key}: there is no file {path}")
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data.source.{key}: {path} is not JSON: {error}") from error


def _entries(found, name, key=""):
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{name} has no list of {key or 'entries'}, as the vqa source reads it")
    return found


def _texts(values):
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
