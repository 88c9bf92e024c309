"""Generated scenes: what they show is what their columns and captions say, recomputed here from boxes and masks."""
import itertools
import pickle

import numpy as np
import pytest

from mcd_jax.data import decode, pipeline, reader, sources
from mcd_jax.data.ops import augmented
from mcd_jax.data.scenes import layout, phrases
from mcd_jax.data.sources import scenes

SPEC = dict(name="scenes", source=dict(name="emoji", split="validation", vendors="google"), size=48, examples=60)
SIZE = 48


@pytest.fixture(scope="module")
def rows():
    source = sources.open(SPEC)
    return [source[i] for i in range(len(source))]


def test_a_scene_is_a_function_of_seed_and_index(rows):
    again = pickle.loads(pickle.dumps(sources.open(SPEC)))   # as worker processes are given it
    for i in (41, 3, 3):
        assert all(np.array_equal(again[i][key], value) for key, value in rows[i].items())
    other = sources.open({**SPEC, "seed": 1})
    assert other[3]["image"] != rows[3]["image"] and rows[4]["image"] != rows[3]["image"]
    assert len({row["key"] for row in rows}) == 60


def test_columns_are_padded_and_agree(rows):
    counts = [row["objects"] for row in rows]
    assert min(counts) <= 2 and max(counts) >= 8 and {row["objects"] for row in rows} <= set(range(1, 10))
    for row in rows:
        n = row["objects"]
        assert row["boxes"].shape == (9, 4) and row["labels"].shape == (9,) and row["masks"].shape == (9, SIZE, SIZE)
        assert (row["labels"][:n] >= 0).all() and (row["labels"][n:] == -1).all()
        assert not row["boxes"][n:].any() and not row["masks"][n:].any() and not row["named"][n:].any()
        assert decode.decode(row["image"]).shape == (SIZE, SIZE, 3)
        assert (row["masks"].sum(0) <= 1).all()                       # a pixel shows one thing
        for box, mask in zip(row["boxes"][:n], row["masks"]):
            left, top, right, bottom = (box * SIZE).round().astype(int)
            outside = mask.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any() and 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE


def test_what_is_shown_stands_where_the_masks_say():
    """On white, pixels that no mask has are white but for the soft edge of a drawing; most of each mask isn't."""
    source = sources.open({**SPEC, "backgrounds": "white", "examples": 20})
    for row in (source[i] for i in range(20)):
        white = (decode.decode(row["image"]) >= 250).all(2)
        shown = row["masks"].any(0)
        edge = np.zeros_like(shown)
        for y, x in itertools.product((-1, 0, 1), (-1, 0, 1)):
            edge |= np.roll(shown, (y, x), (0, 1))
        assert white[~edge].mean() > 0.995
        assert (~white[shown]).mean() > 0.5


def test_captions_say_what_is_there(rows):
    names = {row["concept_id"]: row["text"][0] for row in sources.open(SPEC["source"])}
    with_relation = 0
    for row in rows:
        n, kinds = row["objects"], {}
        for label, named in zip(row["labels"][:n].tolist(), row["named"]):
            kinds.setdefault(label, []).append(bool(named))
        assert all(len(set(said)) == 1 for said in kinds.values())        # all things of a kind, or none
        said = [phrases.phrase(names[label], len(of)) for label, of in kinds.items() if of[0]]
        assert 1 <= len(said) <= 3 and all(part in row["text"] for part in said)
        if relation := row["relation"]:
            with_relation += 1
            first, second = sorted((label for label, of in kinds.items() if of[0]), key=lambda label: row["text"].find(
                phrases.phrase(names[label], len(kinds[label]))))[:2]
            middle = (row["boxes"][:, :2] + row["boxes"][:, 2:]) / 2
            axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
            for a, b in itertools.product(middle[row["labels"] == first], middle[row["labels"] == second]):
                assert sign * (b[axis] - a[axis]) > 0.1 and abs(b[axis] - a[axis]) > abs(b[1 - axis] - a[1 - axis])
    assert with_relation >= 5


def test_what_a_crop_loses_pixel_by_pixel(rows):
    """Each named thing that is seen has an equal part of the caption; a crop loses the share of its pixels that are outside."""
    box = (8, 4, 30, 36)                                                  # left, top, width, height in pixels
    checked = 0
    for row in rows:
        lost = []
        for mask, named in zip(row["masks"], row["named"]):
            if named and mask.any():
                inside = sum(bool(mask[y, x]) for y in range(box[1], box[1] + box[3]) for x in range(box[0], box[0] + box[2]))
                lost.append(1 - inside / mask.sum())
        found = augmented.true_misalignment(row["said"], np.array(box) / SIZE)
        assert found == pytest.approx(1 + (np.mean(lost) if lost else 0), abs=1e-5)
        assert augmented.true_misalignment(row["said"], (0, 0, 1, 1)) == 1
        checked += bool(lost)
    assert checked > 55


def test_pixels_that_are_cut_count_by_their_share():
    content = np.array([[1.0, 0], [0, 3]])
    assert augmented.true_misalignment(content, (0.25, 0, 0.75, 1)) == pytest.approx(1 + 0.5 * 1 / 4)
    assert augmented.true_misalignment(content, (0, 0, 0.5, 0.5)) == pytest.approx(1.75)
    assert augmented.true_misalignment(content * 0, (0, 0, 0.1, 0.1)) == 1
    assert augmented.true_misalignment(content, (0, 0, 1, 1), [(0.75, 0.5, 0.25, 0.5)]) == pytest.approx(1 + 3 / 8)
    assert augmented.true_misalignment(content, (0, 0, 0.5, 1), [(0, 0, 1, 0.5), (0, 0, 0.5, 0.5)]) == 2


def test_a_view_reports_the_truth_or_its_severity(rows):
    views = dict(image="decode|crop(24,.2,.4)|stream('a')", true="decode(content='said')|crop(24,.2,.4)|flip|stream('a')",
                 whole="decode(content='said')|resize(24)|gray(1)", masks="column('masks')")
    made = pipeline.make(dict(source=SPEC, views=views, workers=0, cache=True), seed=0, batch_size=12)
    for step in (0, 5):                                                   # 60 rows: step 5 is the second epoch, out of the cache
        batch = made.batch(step)
        for j, index in enumerate(batch["index"]):
            expected = augmented.true_misalignment(rows[index]["said"], batch["true/params"][j])
            assert batch["true/misalignment"][j] == pytest.approx(expected, abs=1e-6)
            assert np.array_equal(batch["masks"][j], rows[index]["masks"])
        assert np.allclose(batch["image/misalignment"], augmented.misalignment(batch["image/params"]))
        assert (batch["whole/misalignment"] == 1).all()                   # a grey picture shows the same things
        assert (batch["true/misalignment"] <= 2).all() and batch["true/misalignment"].std() > 0.1
    with pytest.raises(reader.Unusable, match="'boxes' is 9 x 4 and the image 48 x 48: a map has the image's proportions"):
        pipeline.example(pipeline.Views(dict(image="decode(content='boxes')|resize(24)")), made.source, 0, 0)
    with pytest.raises(ValueError, match="1 is no name of a column"):
        pipeline.Views(dict(image="decode(content=1)|resize(24)"))
    with pytest.raises(ValueError, match="reads column 'nothing'"):
        pipeline.make(dict(source=SPEC, views=dict(image="decode(content='nothing')|resize(24)")), seed=0, batch_size=2)
    with pytest.raises(reader.Unusable, match=r"'labels' holds int32 \(9,\): it takes numbers \(H, W\) from 0"):
        pipeline.example(pipeline.Views(dict(image="decode(content='labels')|resize(24)")), made.source, 0, 0)
    made.close()


@pytest.mark.parametrize("together", ["seen", "unseen"])
def test_pairs_that_are_kept_apart(together):
    source = sources.open({**SPEC, "together": together, "named": (2, 3), "objects": (2, 6), "examples": 40})
    said = [sorted({*row["labels"][row["named"]].tolist()}) for row in (source[i] for i in range(40))]
    apart = [any(scenes.kept_apart(a, b, 0.2) for a, b in itertools.combinations(labels, 2)) for labels in said]
    assert all(apart) if together == "unseen" else not any(apart)
    share = np.mean([scenes.kept_apart(a, b, 0.2) for a, b in itertools.combinations(range(100), 2)])
    assert 0.18 < share < 0.22 and scenes.kept_apart(3, 70, 0.2) == scenes.kept_apart(70, 3, 0.2)


@pytest.mark.parametrize("name, count, said", [
    ("red apple", 1, "a red apple"), ("red apple", 2, "two red apples"), ("orange", 1, "an orange"), ("grapes", 1, "grapes"),
    ("grapes", 2, "two grapes"), ("face with tears of joy", 3, "three faces with tears of joy"),
    ("person running", 2, "two people running"),
    ("running shirt", 2, "two running shirts"), ("flag: France", 1, "a flag of France"), ("man: beard", 2, "two men with beard"),
    ("butterfly", 2, "two butterflies"), ("monkey", 2, "two monkeys"), ("peach", 9, "nine peaches"), ("cactus", 1, "a cactus"),
    ("wolf", 2, "two wolves"), ("woman artist", 2, "two woman artists"), ("policewoman", 2, "two policewomen")])
def test_phrases(name, count, said):
    assert phrases.phrase(name, count) == said


def test_captions_join_what_is_named():
    assert phrases.caption(["dog"], [1]) == "a dog"
    assert phrases.caption(["red apple", "dog"], [2, 1], "left of") == "two red apples left of a dog"
    assert phrases.caption(["dog", "tree", "cat"], [1, 1, 3]) == "a dog, a tree and three cats"
    assert phrases.relations(np.array([[.2, .5], [.3, .5]]), np.array([[.6, .6]])) == ["left of"]
    assert phrases.relations(np.array([[.2, .5], [.7, .5]]), np.array([[.6, .6]])) == []


def test_white_inside_a_drawing_is_part_of_it():
    pixels = np.full((12, 12, 3), 255, np.uint8)
    pixels[3:9, 2:10] = 0
    pixels[5:7, 4:8] = 255
    pixels[4, 4] = 255                                                    # joined to the white inside by a corner only
    part = layout.cut_out(pixels)
    assert part.shape == (6, 8, 4) and (part[..., 3] == 255).all()
    canvas = np.full((12, 12, 3), 100, np.uint8)
    seen = layout.paint(canvas, [part] * 2, np.array([[0, 0, 8, 6], [4, 3, 12, 9]]))
    assert (canvas[2:4, 2] == 255).all() and seen.sum((1, 2)).tolist() == [48 - 12, 48]


@pytest.mark.parametrize("wrong, message", [
    (dict(objects=(0, 3)), r"data\.source\.objects=\(0, 3\)"), (dict(objects=(1, 10)), "whole numbers from 1 to 9"),
    (dict(named=(3, 2)), "the fewest and the most"), (dict(scale=(0, 1)), "above 0 and at most 1"), (dict(size=8), "from 16"),
    (dict(backgrounds="sea"), "there are white, plain"), (dict(together="never"), "any, seen, unseen"),
    (dict(together="unseen", named=(1, 1)), "let named and objects reach 2"), (dict(label="colour"), "no column of the drawings"),
    (dict(overlaps=1), "has no key 'overlaps'"), (dict(overlap=2), "a number from 0 to 1"), (dict(scale=1), "smallest and the")])
def test_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        sources.open({**SPEC, **wrong})


def test_too_few_kinds_are_said():
    source = sources.open({**SPEC, "label": "flag", "named": (1, 1), "several": 0.0, "objects": (9, 9), "together": "any",
                           "source": dict(name="emoji", split="validation", vendors="google")})
    with pytest.raises(ValueError, match="9 things must be of different flag, and few do"):
        for i in range(60):
            source[i]


def test_what_is_painted_over_is_lost(rows):
    """The share that is lost of a picture is that of the pixels which an erased box changes, whichever way the view is turned."""
    painted = "decode(content='said')|crop(48,.4,.4)|flip(0.5)|erase(1,(.3,.3))|stream('a')"
    views = dict(true=painted, plain=painted.replace('erase(1', 'erase(0'), black="decode(content='said')|resize(8)|blank")
    made = pipeline.make(dict(source=SPEC, views=views, workers=0), seed=0, batch_size=30)
    batch = made.batch(0)
    made.close()
    assert (batch["black/misalignment"] == 2).all()
    flips = set()
    for j, index in enumerate(batch["index"]):
        left, top, width, height, flip = batch["true/params"][j][:5]
        said = rows[index]["said"].astype(np.float64)
        covered = (batch["true"][j] != batch["plain"][j]).any(-1)          # but where the paint has the colour below it
        across, down = np.flatnonzero(covered.any(0)), np.flatnonzero(covered.any(1))
        first, last = across[0] / SIZE, (across[-1] + 1) / SIZE
        first, last = (1 - last, 1 - first) if flip else (first, last)
        upper, lower = down[0] / SIZE, (down[-1] + 1) / SIZE
        box = (left + width * first, top + height * upper, width * (last - first), height * (lower - upper))
        kept = 2 - augmented.true_misalignment(said, (left, top, width, height))
        under = 2 - augmented.true_misalignment(said, box)
        assert batch["true/misalignment"][j] == pytest.approx(1 + (1 - kept + under if said.sum() else 0), abs=0.02)
        flips.add(bool(flip))
    assert flips == {True, False}
