"""What a crop lost of its caption, as an evaluation: the truth is the scenes', and who knows it ranks perfectly."""
import numpy as np
import pytest
from scipy import stats

from mcd_jax.data import pipeline, sources
from mcd_jax.evals import lost_content

SOURCE = dict(name="scenes", source=dict(name="emoji", split="validation", vendors="google"), size=48, examples=24, objects=(3, 6))
SETTINGS = {"source": SOURCE, "views": dict(image="decode|resize(24)", text="tokenize(8, 'emoji')"), "n": 20, "looks": 6,
            "batch_size": 7, "cut": "decode(content='said')|crop(24, 0.3, 0.3, ratio=(1, 1))"}


def embed(_, batch):
    """Unit vectors that say the mean colour, and of a text nothing."""
    if "image" in batch:
        x = batch["image"].mean((1, 2)) / 255 + 0.01
        return {"image": x / np.linalg.norm(x, axis=1, keepdims=True)}
    return {"text": np.tile(np.array([[0.6, 0, 0.8]], np.float32), (len(batch["text"]), 1))}


def test_on_scenes():
    found = lost_content.make(SETTINGS, "x")(embed, None)
    lost, source = [], sources.open(SOURCE)
    views = pipeline.Views({f"v{i}": SETTINGS["cut"] for i in range(6)} | {"image": "decode|resize(24)"})
    for index in np.linspace(0, 23, 20).round().astype(int):
        said = source[int(index)]["said"].astype(np.float64)
        row = pipeline.example(views, source, int(index), 0)
        for i in range(6):
            left, top, width, height = np.rint(row[f"v{i}/params"][:4] * 48).astype(int)
            assert width * height == pytest.approx(0.3 * 48 * 48, rel=0.05)   # crops of one area
            lost.append(1 - said[top:top + height, left:left + width].sum())
    assert found["lost"] == pytest.approx(np.mean(lost), abs=1e-4)
    assert found["boxes/spearman_per_image"] > 0.9 and found["boxes/ordered"] > 0.9    # what is named, where, without its outline
    assert found["area/spearman"] == pytest.approx(0, abs=0.1) and found["area/ordered"] == 0.5
    assert abs(found["spearman"]) < 0.6 and {"pixel/spearman", "ordered"} < set(found) and "bad" not in found


def test_a_crop_of_another_size_than_the_image_is_refused():
    evaluate = lost_content.make({**SETTINGS, "views": {**SETTINGS["views"], "image": "decode|resize(16)"}}, "a")
    with pytest.raises(ValueError, match=r"have \(24, 24\) pixels and the view 'image' has \(16, 16\): both need one size"):
        evaluate(embed, None)


def test_figures_are_those_of_scipy():
    draw = np.random.default_rng(0)
    lost = draw.random((5, 4)).round(1)
    lost[2] = 0.5                                     # an image whose crops all lose the same
    r = draw.random((5, 4))
    found = lost_content.figures({"": r, "truth": lost, "opposite": -lost}, lost)
    assert found["spearman"] == pytest.approx(stats.spearmanr(r.ravel(), lost.ravel()).statistic)
    rest = [0, 1, 3, 4]
    assert found["spearman_per_image"] == pytest.approx(np.mean([stats.spearmanr(r[i], lost[i]).statistic for i in rest]))
    slow = [float(r[i, a] > r[i, b]) for i in range(5) for a in range(4) for b in range(4) if lost[i, a] > lost[i, b]]
    assert found["ordered"] == pytest.approx(np.mean(slow)) and found["lost"] == pytest.approx(lost.mean())
    assert [found[f"truth/{key}"] for key in ("spearman", "spearman_per_image", "ordered")] == pytest.approx([1, 1, 1])
    assert [found[f"opposite/{key}"] for key in ("spearman", "spearman_per_image", "ordered")] == pytest.approx([-1, -1, 0])
    with pytest.raises(ValueError, match="lose different shares"):
        lost_content.figures({"": r}, np.ones((5, 4)))


def test_share_of_boxes():
    boxes = np.array([[0, 0, .5, .5], [.5, .5, 1, 1], [0, 0, 0, 0]])
    assert lost_content.lost_of_boxes(boxes, [True, True, False], np.array([0, 0, .5, .25])) == pytest.approx((.5 + 1) / 2)
    assert lost_content.lost_of_boxes(boxes, [False] * 3, np.array([0, 0, .1, .1])) == 0


@pytest.mark.parametrize("wrong, message", [
    ({"cut": "decode|crop(24, .3)"}, "doesn't report what is lost"), ({"looks": 1}, r"looks=1 must be a whole number from 2"),
    ({"cut": "decode(content='masked')|crop(24, .3)"}, "reads column 'masked'"), ({"views": {}}, "x")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        lost_content.make({**SETTINGS, **wrong}, "x")
