"""SNLI-VE and NLVR2 from small files in their published formats, and what an evaluation says of verdicts.

The fields are those of
  ve_train.json         ALBEF's dataset/ve_dataset.py, as serend1p1ty/ALBEF has it at 64e6a0b: "image", "sentence", "label"
  snli_ve_train.jsonl   necla-ml/SNLI-VE vet/tools/snli_ve_generator.py ("Flickr30K_ID", "gold_label") and snli_ve_parser.py
                        ("Flikr30kID", "sentence2") at 659fd5c
  nlvr_train.json       salesforce/ALBEF dataset/nlvr_dataset.py at 91de3c1: "images", "sentence", "label" "True" or "False"
  train.json, dev.json  lil-lab/nlvr nlvr2/README.md at 15ea307 ("identifier", names of the images), nlvr2/eval/metrics.py at
                        e6a286a (labels in any case, consistency by the identifier without its pair)
"""
import json

import cv2
import numpy as np
import pytest

from mcd_jax.data import pipeline, sources
from mcd_jax.methods.albef import classification_eval


def picture(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), grey, np.uint8))[1].tobytes())


def lines(path, rows, listed):
    path.write_text(json.dumps(rows) if listed else "".join(json.dumps(row) + "\n" for row in rows))


def entailment(root, kind):
    """Three images, four sentences; one of the official rows has no agreed label."""
    for number in range(3):
        picture(root / "flickr30k-images" / f"{number}00.jpg", 20 * number)
    rows = [("000", "A man sleeps.", "contradiction"), ("100", "Über alles", "neutral"), ("100", "A dog", "entailment")]
    if kind == "albef":
        lines(root / "ve.json", [{"image": name, "sentence": text, "label": label} for name, text, label in rows], True)
        return "ve.json"
    key = "Flickr30K_ID" if kind == "generated" else "Flikr30kID"
    rows.append(("200", "Nobody knows", "-"))
    stored = [{"annotator_labels": [label], "captionID": f"{name}.jpg#0", key: name, "gold_label": label,
               "pairID": f"{name}.jpg#0r1n", "sentence1": "left out", "sentence2": text} for name, text, label in rows]
    lines(root / "snli_ve_train.jsonl", stored, False)
    return "snli_ve_train.jsonl"


@pytest.mark.parametrize("kind", ["albef", "generated", "parsed"])
def test_snli_ve(tmp_path, kind):
    spec = dict(name="judged", set="snli_ve", path=str(tmp_path), images="flickr30k-images")
    source = sources.open(dict(spec, table=entailment(tmp_path, kind)))
    assert [row["text"] for row in map(source.__getitem__, range(3))] == ["A man sleeps.", "Über alles", "A dog"]
    assert source.column("label") == [0, 1, 2] and len(source) == 3 and source.missing == 0
    views = pipeline.Views(dict(image="decode|resize(8)", text="caption('first')|tokenize(12, 'emoji')", label="column('label')"))
    batch = next(pipeline.sequential(source, views, 3, seed=0))
    np.testing.assert_array_equal(batch["label"], [0, 1, 2])
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [0, 20, 20], atol=1)
    assert len(set(source.column("key"))) == 3


def reasoning(root, kind):
    """Two pairs of one set with one sentence each, and another set; in train.json images lie in numbered folders."""
    found = [("train-10-0", "0", "Two dogs.", "True"), ("train-10-1", "0", "Two dogs.", "False"),
             ("train-22-3", "31", "One cat.", "True")]
    for number, (pair, folder, _, _) in enumerate(found):
        for side in (0, 1):
            picture(root / "images/train" / folder / f"{pair}-img{side}.png", 40 * number + 20 * side)
    if kind == "albef":
        rows = [{"sentence": text, "label": label, "images": [f"images/train/{folder}/{pair}-img{side}.png" for side in (0, 1)]}
                for pair, folder, text, label in found]
        lines(root / "nlvr_train.json", rows, True)
        return dict(table="nlvr_train.json")
    rows = [{"validation": {}, "sentence": text, "left_url": "http://a/b.jpg", "writer": 1, "right_url": "", "synset": "dog",
             "identifier": f"{pair}-0", "label": label, "query": "dog0", "directory": int(folder)}
            for pair, folder, text, label in found]
    lines(root / "train.json", rows, False)
    return dict(table="train.json", images="images/train")


@pytest.mark.parametrize("kind", ["albef", "official"])
def test_nlvr2(tmp_path, kind):
    source = sources.open(dict(name="judged", set="nlvr2", path=str(tmp_path), **reasoning(tmp_path, kind)))
    views = pipeline.Views(dict(image="decode|resize(8)", image2="decode('image2')|resize(8)", label="column('label')"))
    batch = next(pipeline.sequential(source, views, 3, seed=0))
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [0, 40, 80])
    np.testing.assert_allclose(batch["image2"][:, 0, 0, 0], [20, 60, 100])
    np.testing.assert_array_equal(batch["label"], [1, 0, 1])
    assert source.column("sentence") == [0, 0, 1] and source[2]["text"] == "One cat."
    with pytest.raises(KeyError):
        source.column("image")


def test_dev_images_lie_in_no_folder(tmp_path):
    picture(tmp_path / "dev-850-0-img0.png", 0)
    picture(tmp_path / "dev-850-0-img1.png", 9)
    lines(tmp_path / "dev.json", [{"identifier": "dev-850-0-1", "sentence": "s", "label": "False"}], False)
    assert sources.open(dict(name="judged", set="nlvr2", path=str(tmp_path), table="dev.json"))[0]["label"] == 0


@pytest.mark.parametrize("rows, change, words", [
    ([{"image": "../x", "sentence": "a", "label": "neutral"}], {}, r"row 1: the path '\.\./x\.jpg' leads out of"),
    ([{"image": "x", "sentence": "a", "label": "maybe"}], {}, "row 1 is none of snli_ve .*'maybe'"),
    ([{"picture": "x"}], {}, "row 1 is none of snli_ve .KeyError"),
    ([{"image": "x", "sentence": "a", "label": "neutral"}], {}, "images of 1 of the 1 rows"),
    ([{"image": "x", "sentence": "a", "label": "neutral"}], dict(missing="drop"), "images of 1 of the 1 rows"),
    ([], dict(set="vqa"), "data.source.set='vqa' must be one of snli_ve, nlvr2"),
    ([], dict(missing="keep"), "data.source.missing='keep'"),
])
def test_files_that_do_not_fit_are_refused(tmp_path, rows, change, words):
    lines(tmp_path / "t.json", rows, True)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        sources.open({**dict(name="judged", set="snli_ve", path=str(tmp_path), table="t.json"), **change})


def test_rows_without_their_image_can_be_dropped(tmp_path):
    picture(tmp_path / "here.jpg", 1)
    lines(tmp_path / "t.json", [{"image": name, "sentence": "a", "label": "neutral"} for name in ("gone", "here")], True)
    source = sources.open(dict(name="judged", set="snli_ve", path=str(tmp_path), table="t.json", missing="drop"))
    assert (len(source), source.missing) == (1, 1)


# ---- verdicts --------------------------------------------------------------------------------------------------------------------

def test_figures_of_verdicts_by_hand():
    logits = np.array([[2, 0, 0], [2, 0, 0], [0, 3, 1], [0, 1, 0], [0, 0, 5]])
    found = classification_eval.figures(logits, np.array([0, 1, 1, 1, 0]), ["a", "b", "c"], np.array([7, 7, 8, 8, 9]))
    assert found == {"accuracy": 0.6, "mean_per_class": pytest.approx((0.5 + 2 / 3) / 2), "accuracy_a": 0.5, "chance": 0.6,
                     "accuracy_b": pytest.approx(2 / 3), "queries": 5.0, "accuracy_together": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="labels run from 0 to 3, and the head has 3 classes"):
        classification_eval.figures(logits, np.array([0, 3, 1, 1, 0]))
    with pytest.raises(ValueError, match="names 2 classes, and the head has 3"):
        classification_eval.figures(logits, np.zeros(5, int), ["a", "b"])


class Judge:
    """A head that knows: true where the second image is brighter by 20 and the first below 80."""

    def head(self, name):
        def judge(state, batch):
            one, two = (batch[key].reshape(len(batch[key]), -1).mean(1) for key in ("image", "image2"))
            true = (np.round(two - one) == 20) & (one < 80)
            return {"logits": np.stack([~true, true], 1).astype(np.float32), "other": one}
        return {"judge": judge}[name]


def test_an_evaluation_of_two_images_and_of_none(tmp_path):
    source = dict(name="judged", set="nlvr2", path=str(tmp_path), **reasoning(tmp_path, "albef"))
    views = dict(image="decode|resize(8)", image2="decode('image2')|resize(8)", text="caption('first')|tokenize(12, 'emoji')")
    settings = dict(source=source, views=views, classes=("false", "true"), together="sentence", batch_size=2)
    found = classification_eval.make(settings, "toy")(Judge(), None)   # says true, true, false of true, false, true
    assert found["accuracy"] == pytest.approx(1 / 3) and found["accuracy_true"] == 0.5 and found["accuracy_false"] == 0
    assert found["accuracy_together"] == 0 and found["chance"] == pytest.approx(2 / 3) and found["queries"] == 3
    blind = classification_eval.make({**settings, "blank": ("image", "image2")}, "toy")(Judge(), None)   # no difference: all are
                                                                                                         # false
    assert blind["accuracy_false"] == 1 and blind["accuracy_true"] == 0
    with pytest.raises(ValueError, match=r"verdicts\.toy\.blank: 'text' is no image view"):
        classification_eval.make({**settings, "blank": ("text",)}, "toy")
