"""Questions about the embedded drawings, and the published question sets from small files in their formats.

  vqa_train.json, vg_qa.json: "dataset", "image", "question", "answer", "question_id"    salesforce/ALBEF dataset/vqa_dataset.py at
                                                                                         91de3c1; one "answer" of "vg" weighs 0.5
  pre_question                                                                           its dataset/utils.py
  "questions", "data_subtype"; "annotations" with "answers", "question_type",            GT-Vision-Lab/VQA PythonHelperTools/
  "answer_type"; COCO_<subtype>_<12 digits>.jpg                                          vqaTools/vqa.py and vqaDemo.py at 07aecec
  question_answers.json: "qas" of each image                                             ranjaykrishna/visual_genome_python_driver
                                                                                         visual_genome/local.py at 23b5a94 and
                                                                                         utils.py at 86fcb33
"""
import collections
import json

import cv2
from mcd_jax.configs.albef import answering_emoji
import numpy as np
import pytest

from mcd_jax.data import pipeline, sources, tokenizers
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji
from mcd_jax.methods.albef import questions_source, vqa_source

# ---- the embedded drawings -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    return {split: sources.open(dict(name="questions", split=split)) for split in ("train", "test")}


def test_a_question_alone_says_nothing_about_a_balanced_answer(asked):
    """Every single question of these kinds comes as often with either answer, so no rule of questions is right more than half."""
    for source in asked.values():
        by = collections.defaultdict(collections.Counter)
        kinds, texts, answers = (source.column(name) for name in ("question_type", "text", "answer"))
        for kind, text, answer in zip(kinds, texts, answers, strict=True):
            by[kind, text][answer] += 1
        balanced = {key: count for key, count in by.items() if key[0] in ("subgroup", "tag", "either")}
        assert len(balanced) > 400
        for (kind, text), count in balanced.items():
            assert len(count) == 2 and len(set(count.values())) == 1, (kind, text)
            assert set(count) == ({"yes", "no"} if kind != "either" else set(text[:-1].split(" or ")))


def test_answers_to_questions_are_true(asked):
    """By the concepts' own groups, subgroups and tags, read beside the source."""
    concepts = {row["concept"]: row for row in emoji.concepts()}
    for split, source in asked.items():
        rows = [source[i] for i in range(0, len(source), 37)]
        assert {row["concept_split"] for row in rows} == {split}   # what is held out is in no pair of what trains
        for row in rows:
            concept, kind = concepts[row["concept"]], row["question_type"]
            word = questions_source.WORDS.get(emoji_names.SUBGROUPS[concept["subgroup"]])
            if kind == "subgroup":
                assert row["answer"] == ("yes" if row["text"] == f"is this {word}?" else "no")
            elif kind == "either":
                assert row["answer"] == word.removeprefix("a ").removeprefix("an ") and row["answer"] in row["text"]
            elif kind == "tag":
                tag, own = row["text"].removeprefix("is it about ")[:-1], {t.lower() for t in concept["tags"]["en"]}
                assert row["answer"] == ("yes" if tag in own else "no")
            elif kind == "group":
                assert row["answer"] == questions_source.GROUPS[emoji_names.GROUPS[concept["group"]]]
            else:
                assert row["answer"] == concept["labels"]["en"]
            assert row["answers"] == row["choices"] == [row["answer"]] and row["weights"].tolist() == [1]


def test_questions_fit_into_the_rows_of_the_config(asked):
    """No question is cut, and few answers; the same spec asks the same, another seed something else."""
    tokenizer = tokenizers.make("emoji")
    texts = asked["train"].column("text")
    assert max(map(tokenizer.length, set(texts))) <= answering_emoji.emoji.CONTEXT - 1
    answers = set(asked["train"].column("answer"))
    assert sum(tokenizer.length(answer) > 7 for answer in answers) < 0.02 * len(answers)
    again, other = (sources.open(dict(name="questions", split="test", seed=seed)) for seed in (0, 1))
    same = asked["test"].column("text")
    assert again.column("text") == same != other.column("text") and len(other) == len(again)
    only = sources.open(dict(name="questions", split="test", kinds=("group",)))
    assert len(only) == 555 and set(only.column("question_type")) == {"group"}


def test_pairs_fit_and_use_every_position():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 101).tolist()
    pairs = questions_source.matching(values, lambda a, b: a != b, rng)
    flat = [i for pair in pairs for i in pair]
    assert len(pairs) == 50 and len(set(flat)) == 100 and all(values[i] != values[j] for i, j in pairs)
    assert questions_source.matching(["a"] * 4, lambda a, b: a != b, rng, tries=3) == []


def test_a_batch_of_questions():
    config = answering_emoji.get_config("blind=1")
    data = {**config.data.to_dict(), "workers": 0}
    batch = pipeline.make(data, seed=0, batch_size=8).batch(0)
    assert batch["answers"].shape == (8, 1, 8) and batch["answers"].dtype == np.int32 and not batch["image"].any()
    assert batch["weights"].shape == (8, 1) and batch["weights"].dtype == np.float32 and batch["text"].shape == (8, 12)
    seen = pipeline.make({**data, "views": answering_emoji.get_config().data.views.to_dict()}, seed=0, batch_size=8).batch(0)
    assert seen["image"].any() and (seen["text"] == batch["text"]).all() and (seen["answers"] == batch["answers"]).all()


@pytest.mark.parametrize("spec, words", [
    (dict(kinds=("colour",)), r"data\.source\.kinds: \['colour'\] is not possible; choose from subgroup, tag"),
    (dict(kinds=()), r"data\.source\.kinds: nothing is not possible"),
    (dict(captions=("label",)), r"no captions and languages for the questions source"),
    (dict(split="all"), r"data\.source\.split"),
])
def test_what_can_not_be_asked_is_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        sources.open({"name": "questions", "split": "test", **spec})


# ---- published sets --------------------------------------------------------------------------------------------------------------

def write(root, name, value):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jpg"):
        value = cv2.imencode(".jpg", np.full((8, 8, 3), value, np.uint8))[1].tobytes()
        (root / name).write_bytes(value)
    else:
        (root / name).write_text(json.dumps(value))


@pytest.fixture
def lists(tmp_path):
    """ALBEF's lists, their images in a folder for each data set."""
    image = "train2014/COCO_train2014_000000458752.jpg"
    write(tmp_path, "vqa_train.json", [
        {"question_id": 409380, "question": "What position is this man playing?", "dataset": "vqa",
         "answer": ["pitcher"] * 6 + ["catcher"] + ["pitcher"] * 2 + ["fielder"], "image": image},
        {"question_id": 409381, "question": "Is it a day/night - game?!", "dataset": "vqa", "answer": ["yes"] * 10,
         "image": image}])
    write(tmp_path, "vg_qa.json",
          [{"dataset": "vg", "image": "image/1.jpg", "question": "What is on the wall?", "answer": "clock"}])
    write(tmp_path, f"coco/{image}", 100)
    write(tmp_path, "genome/image/1.jpg", 200)
    return dict(name="vqa", path=str(tmp_path), tables=("vqa_train.json", "vg_qa.json"),
                images=dict(vqa="coco", vg="genome"), most=3)


def test_lists_as_albef_has_them(lists, tmp_path):
    source = sources.open(lists)
    assert len(source) == 3 and source.column("text") == [
        "what position is this man playing", "is it a day night   game", "what is on the wall"]
    first, second, third = (source[i] for i in range(3))
    assert first["choices"] == ["pitcher", "catcher", "fielder"] and first["weights"] == pytest.approx([0.8, 0.1, 0.1])
    assert first["answers"][6] == "catcher" and len(first["answers"]) == 10 and first["question_id"] == 409380
    assert second["choices"] == ["yes"] and second["weights"].tolist() == [1, 0, 0]
    assert third["choices"] == ["clock"] and third["weights"].tolist() == [0.5, 0, 0] and third["dataset"] == "vg"
    assert third["image"] == (tmp_path / "genome/image/1.jpg").read_bytes()
    fewer = sources.open({**lists, "most": 1, "vg_weight": 0.2, "words": 2})
    assert fewer[0]["weights"] == pytest.approx([0.8]) and fewer[2]["weights"] == pytest.approx([0.2])
    assert fewer[2]["text"] == "what is"
    views = dict(image="decode|resize(8)", text="caption('first')|tokenize(12, 'emoji')", weights="column('weights')",
                 answers="captions(3, 'first', 'choices')|tokenize(6, 'emoji')")
    batch = next(pipeline.sequential(source, views, 3))
    assert batch["answers"].shape == (3, 3, 6) and batch["weights"].shape == (3, 3) and not batch["bad"].any()
    assert (batch["answers"][1] == batch["answers"][1, :1]).all()   # what is repeated weighs nothing


def test_vqa_as_published(tmp_path):
    asked = [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
             {"image_id": 9, "question": "Is this a one-way street?", "question_id": 9001}]
    write(tmp_path, "questions.json", {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {},
                                       "data_subtype": "val2014", "questions": asked})
    about = [{"question_type": qt, "answer_type": at, "multiple_choice_answer": words[0], "image_id": q["image_id"],
              "question_id": q["question_id"],
              "answers": [{"answer": word, "answer_confidence": "yes", "answer_id": i + 1} for i, word in enumerate(words)]}
             for q, qt, at, words in zip(asked, ("where is the", "is this"), ("other", "yes/no"),
                                         (["down"] * 4 + ["at table"] * 5 + ["table"], ["yes"] * 9 + ["no"]))]
    write(tmp_path, "annotations.json", {"info": {}, "data_subtype": "val2014", "annotations": about[::-1]})
    for number in (262148, 9):
        write(tmp_path, f"val2014/COCO_val2014_{number:012d}.jpg", 50)
    spec = dict(name="vqa", path=str(tmp_path), questions="questions.json", annotations="annotations.json", images="val2014")
    source = sources.open(spec)
    assert source.column("question_type") == ["where is the", "is this"] and source.column("answer_type") == ["other", "yes/no"]
    assert source[0]["choices"] == ["at table", "down", "table"] and source[0]["weights"][:4] == pytest.approx([0.5, 0.4, 0.1, 0])
    assert source[1]["text"] == "is this a one way street" and source[1]["key"] == "val2014/COCO_val2014_000000000009.jpg/9001"
    test = sources.open({k: v for k, v in spec.items() if k != "annotations"})   # VQA's test sets have no answers
    assert test[1]["answers"] == [] and not test[1]["weights"].any() and test.column("question_id") == [262148000, 9001]
    write(tmp_path, "annotations.json", {"annotations": about[:1]})
    with pytest.raises(ValueError, match=r"questions\.json, question 1: needs question, image_id.*its answers there"):
        sources.open(spec)


def test_visual_genome_as_published(tmp_path):
    write(tmp_path, "question_answers.json", [
        {"id": 1, "qas": [{"qa_id": 986768, "image_id": 1, "question": "What color is the clock?", "answer": "Green.",
                           "question_objects": [], "answer_objects": []}]},
        {"id": 2, "qas": [{"qa_id": 5, "image_id": 2, "question": "Who is there?", "answer": "A man."}]}])
    for name in ("VG_100K/1.jpg", "VG_100K_2/2.jpg"):
        write(tmp_path, name, 70)
    source = sources.open(dict(name="vqa", path=str(tmp_path), genome="question_answers.json", images=("VG_100K", "VG_100K_2")))
    assert source.column("answers") == [["green"], ["a man"]] and source.column("question_id") == [986768, 5]
    assert source[1]["key"] == "VG_100K_2/2.jpg/5" and source[1]["weights"][0] == 0.5


def test_published_files_that_do_not_fit_are_refused(lists, tmp_path):
    def refused(error, words, **changes):
        with pytest.raises(error, match=words):
            sources.open({**lists, **changes})

    refused(ValueError, "has no key 'split'", split="train")
    refused(ValueError, r"needs one of tables, questions and genome .* it has \['tables', 'genome'\]", genome="x.json")
    refused(ValueError, r"data\.source\.most=0 must be a whole number of at least 1", most=0)
    refused(FileNotFoundError, r"data\.source\.tables: there is no file .*none\.json", tables="none.json")
    refused(ValueError, r"images='coco' must name the folder of each data set", images="coco")
    refused(ValueError, r"images has no folder for dataset 'vg'", images=dict(vqa="coco"))
    refused(FileNotFoundError, r"1 images of data\.source are not in", images=dict(vqa="coco", vg="coco"))
    refused(ValueError, r"leads out of", images=dict(vqa="coco", vg="../.."))
    write(tmp_path, "odd.json", {"questions": []})
    refused(ValueError, r"odd\.json has no list of entries", tables="odd.json")
    write(tmp_path, "odd.json", [{"dataset": "vqa", "image": "x.jpg", "question": 3, "answer": "a"}])
    refused(ValueError, r"odd\.json, entry 0: needs dataset, image, question and answer", tables="odd.json")
    (tmp_path / "odd.json").write_text("{")
    refused(ValueError, r"odd\.json is not JSON", tables="odd.json")


def test_questions_are_cleaned_as_in_albef():
    assert vqa_source.cleaned("What's the man's T-shirt's colour? (red/blue)", 30) == "whats the mans t shirts colour red blue"
    assert vqa_source.cleaned("one two three four", 3) == "one two three" and vqa_source.cleaned("one two", 0) == "one two"
