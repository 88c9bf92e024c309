"""Captions of COCO and Flickr30k: Karpathy's format, and retrieval with several captions for each image."""
import io
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from mcd_jax.data import sources, tokenizers
from mcd_jax.evals import retrieval

COUNTS = [5, 6, 1, 5, 2, 7, 5]   # captions of the images: two have more than five
SPLITS = ["test", "train", "test", "restval", "val", "test", "test"]


@pytest.fixture(params=["coco", "flickr30k"])
def published(request, tmp_path):
    """The images and the table as they are published, and the spec of their source."""
    root, deep = tmp_path / "images", request.param == "coco"
    (root / "val2014").mkdir(parents=True)
    images = []
    for i, (count, split) in enumerate(zip(COUNTS, SPLITS)):
        name = f"{'COCO_val2014_' if deep else ''}{i:012}.jpg"
        data = io.BytesIO()
        Image.new("RGB", (30, 20), (30 * i, 0, 0)).save(data, "PNG")
        (root / ("val2014" if deep else "") / name).write_bytes(data.getvalue())
        sentences = [{"tokens": ["thing", str(i)], "raw": f"Thing {i} seen {j}. ", "imgid": i, "sentid": 10 * i + j}
                     for j in range(count)]
        own = {"sentids": [s["sentid"] for s in sentences], "imgid": i, "filename": name, "split": split, "sentences": sentences}
        images.append({**own, **({"filepath": "val2014", "cocoid": 900 + i} if deep else {})})
    table = tmp_path / f"dataset_{request.param}.json"
    table.write_text(json.dumps({"images": images, "dataset": request.param}))
    return {"name": "karpathy", "path": str(root), "table": str(table)}


def test_karpathys_format(published):
    source = sources.open(published)
    assert [row["imgid"] for row in source] == [0, 2, 5, 6] and len(source) == 4   # split="test" by default
    assert [len(row["text"]) for row in source] == [5, 1, 5, 5] and source[2]["text"][4] == "Thing 5 seen 4. "
    assert source[0]["key"].endswith("000000000000.jpg") and source[-1]["split"] == "test"
    assert Image.open(io.BytesIO(source[2]["image"])).getpixel((0, 0)) == (150, 0, 0)
    assert source.column("imgid") == [0, 2, 5, 6]
    everything = sources.open({**published, "captions": None})
    assert [len(row["text"]) for row in everything] == [5, 1, 7, 5]
    assert [row["imgid"] for row in sources.open({**published, "split": "train"})] == [1, 3]   # restval comes along
    assert [row["imgid"] for row in sources.open({**published, "split": "val+test", "captions": 1})] == [0, 2, 4, 5, 6]


@pytest.mark.parametrize("change, message", [
    (lambda t: t["images"][5].update(filename="../../secret.png"), r"image 5: '.*secret.png' leads out of"),
    (lambda t: t["images"][5].update(filename="/etc/hostname", filepath=""), "image 5: '/etc/hostname' leads out of"),
    (lambda t: t["images"][5].update(filename="gone.jpg", filepath=""), "1 of the 4 images .* the first is gone.jpg"),
    (lambda t: t["images"][5].pop("split"), "image 5: needs filename, split and sentences"),
    (lambda t: t["images"][5].update(sentences=[]), "image 5: needs"),
    (lambda t: t["images"][5].update(filename=7), "image 5: needs"),
    (lambda t: t["images"][5].update(sentences=[{"tokens": []}]), "image 5: needs"), (lambda t: t.pop("images"), "list of images")])
def test_tables_that_are_refused(published, change, message):
    path = pathlib.Path(published["table"])
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.open(published)


@pytest.mark.parametrize("more, message", [
    ({"split": "dev"}, "no split 'dev'; it has restval, test, train, val"), ({"captions": 0}, "captions=0 must be a number"),
    ({"table": "none.json"}, "there is no file"), ({"columns": {"text": "raw"}}, "fixed columns"),
    ({"spilt": "val"}, "no key 'spilt'"), ({"path": "nowhere"}, "'nowhere' is not a folder")])
def test_specs_that_are_refused(published, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.open({**published, **more})


# ---- retrieval -----------------------------------------------------------------------------------------------------------------


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embedding(seed=0, context=16):
    """embed(state, batch): each image and each caption has a vector of its own, captions near their image's."""
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(7, 6)))
    text = {}
    for i, count in enumerate(COUNTS):
        for j in range(count):
            row = tokenizers.make("clip").encode([f"Thing {i} seen {j}. "], context)[0]
            text[row.tobytes()] = unit(image[i:i + 1] + 0.9 * rng.normal(size=(1, 6)))[0]

    def embed(state, batch):
        if "text" in batch:
            return {"text": np.stack([text[row.tobytes()] for row in batch["text"]])}
        return {"image": image[batch["image"][:, 0, 0, 0] // 30]}
    return embed, image, text


def slow(scores_TI, owner, k):
    """clip_benchmark's figures, spelled out: recall among the k best scores, counted as 1 when it is above 0. (T, I) scores."""
    def share(scores, positive):
        hits = []
        for row, right in zip(scores, positive):
            best = sorted(range(len(row)), key=lambda j: -row[j])[:k]
            hits.append(sum(right[j] for j in best) / sum(right) > 0)
        return float(np.mean(hits))
    positive = owner[:, None] == np.arange(scores_TI.shape[1])[None, :]
    return share(scores_TI, positive), share(scores_TI.T, positive.T)


VIEWS = {"image": "decode|center(8)", "text": "caption('first')|tokenize(16, 'clip')"}


@pytest.mark.parametrize("texts, captions", [("all", None), ("all", 5), (2, 5), ("first", 5)])
@pytest.mark.parametrize("size", [7, 256])
def test_retrieval_with_several_captions_against_a_slow_search(published, texts, captions, size):
    spec = {**published, "split": "train+val+test", "captions": captions}
    embed, image, text = embedding()
    found = retrieval.make({"source": spec, "views": VIEWS, "texts": texts, "ks": (1, 2, 3), "batch_size": size}, "x")(embed, None)
    most = {"all": captions or 99, "first": 1}.get(texts, texts)
    counts = [min(most, count) for count in COUNTS]
    order = [int(row["imgid"]) for row in sources.open(spec)]
    owner = np.array([i for i in range(7) for _ in range(counts[i])])
    keys = [tokenizers.make("clip").encode([f"Thing {i} seen {j}. "], 16)[0].tobytes() for i in range(7) for j in range(counts[i])]
    scores = np.stack([text[key] for key in keys]) @ image.T
    assert sorted(order) == list(range(7))
    for k in (1, 2, 3):
        to_image, to_text = slow(scores, owner, k)
        assert found[f"text_to_image/R@{k}"] == pytest.approx(to_image) and found[f"image_to_text/R@{k}"] == pytest.approx(to_text)
    assert found["text_to_image/queries"] == found["image_to_text/candidates"] == sum(counts)
    assert found["image_to_text/queries"] == found["text_to_image/candidates"] == 7
    expected = np.mean([1 - np.prod([(sum(counts) - c - i) / (sum(counts) - i) for i in range(2)]) for c in counts])
    assert found["image_to_text/chance_R@2"] == pytest.approx(expected)
    if texts == "all":
        assert 0 < found["image_to_text/R@1"] < 1 or 0 < found["text_to_image/R@1"] < 1   # the example is neither solved nor lost


def test_several_captions_with_match_and_filters(published):
    """With `match` the captions of the first row stand for its value; a filter keeps captions with their row."""
    spec = {**published, "split": "test"}
    embed, _, _ = embedding()
    settings = {"source": spec, "views": VIEWS, "texts": "all", "match": "imgid", "queries": {"imgid": [0, 5]}}
    found = retrieval.make(settings, "x")(embed, None)
    sizes = {k: v for k, v in found.items() if k.endswith(("queries", "candidates"))}
    assert sizes == {"text_to_image/queries": 10, "text_to_image/candidates": 4, "image_to_text/queries": 2,
                     "image_to_text/candidates": 16}


@pytest.mark.parametrize("change, message", [
    ({"texts": "each"}, "texts='each' must be 'first', 'all' or a number"), ({"texts": 0}, "texts=0 must be"),
    ({"texts": 2, "views": {**VIEWS, "text": "caption('first', 'title')|tokenize(8)"}}, "the column text alone, not title")])
def test_retrieval_refusals(published, change, message):
    with pytest.raises(ValueError, match=message):
        retrieval.make({"source": published, "views": VIEWS, **change}, "x")
