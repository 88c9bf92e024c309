"""Published class sets: every class has a prompt, labels are matched by name, and the formats that the sets come in are read."""
import concurrent.futures
import io
import os

from mcd_jax.configs.evals import probe as probe_config
from mcd_jax.configs.evals import retrieval as retrieval_config
from mcd_jax.configs.evals import zeroshot as zeroshot_config
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from mcd_jax.config.base import EVAL
from mcd_jax.data import sources, tokenizers
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.evals import classes, probe, retrieval, zeroshot

IN_TFDS = [name for name in zeroshot_config.SETS if classes.read(name).tfds]
SIZES = {"cifar10": 10, "cifar100": 100, "food101": 101, "pets": 37, "flowers102": 102, "sun397": 397, "cars": 196, "dtd": 47,
         "caltech101": 102, "aircraft": 100, "imagenet": 1000}
TEMPLATES = {"cifar10": 18, "cifar100": 18, "food101": 1, "pets": 1, "flowers102": 1, "sun397": 2, "cars": 8, "dtd": 8,
             "caltech101": 34, "aircraft": 2, "imagenet": 80}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# ---- the lists -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_TFDS)
def test_every_class_of_tfds_gets_a_prompt(name, tmp_path):
    chosen = classes.read(name)
    info = tfds.builder(chosen.tfds["dataset"], data_dir=str(tmp_path)).info
    labels = info.features["label"].names
    assert len(labels) == SIZES[name] and {"image", "label"} <= set(info.features)
    if name.startswith("cifar"):   # TFDS learns these names only from the data
        labels = CIFAR10 if name == "cifar10" else chosen.stored
    assert sorted(labels) == sorted(chosen.stored)
    shuffled = np.random.default_rng(0).permutation(labels)
    places = classes.numbers(name, shuffled)
    assert sorted(places) == list(range(SIZES[name]))
    assert [chosen.stored[p] for p in places] == shuffled.tolist()


def test_the_lists_are_whole():
    assert classes.known() == sorted([*SIZES, "imagenet7"])
    for name in classes.known():
        chosen = classes.read(name)
        assert len(chosen.stored) == len(chosen.prompted) == SIZES["imagenet" if name == "imagenet7" else name]
        assert len({classes.fold(s) for s in chosen.stored}) == len(chosen.stored) and all(p.strip() for p in chosen.prompted)
        assert all(t.count("{}") == 1 for t in chosen.templates) and len(set(chosen.templates)) == len(chosen.templates)
    assert {name: len(classes.read(name).templates) for name in SIZES} == TEMPLATES
    seven = classes.read("imagenet7")
    assert len(seven.templates) == 7 and set(seven.templates) <= set(classes.read("imagenet").templates)
    averaged = [name for name in SIZES if classes.read(name).figure == "mean_per_class"]
    assert sorted(averaged) == ["aircraft", "caltech101", "flowers102", "pets"]


@pytest.mark.parametrize("name, stored, prompted", [
    ("caltech101", "faces_easy", "centered face"), ("caltech101", b"background_google", "background"),
    ("caltech101", "Faces", "off-center face"), ("sun397", "/a/apse/indoor", "apse indoor"), ("sun397", "abbey", "abbey"),
    ("flowers102", "ball moss", "air plant"), ("food101", "macaroni_and_cheese", "macaroni and cheese"),
    ("pets", "american_bulldog", "American Bulldog"), ("imagenet", "n02012849", "crane bird"), ("imagenet", "tench", "tench"),
    ("imagenet", "n03126707", "construction crane"), ("aircraft", "F_A-18", "F/A-18"), ("aircraft", "F-16AB", "F-16A/B"),
    ("cars", "Ram CV Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012"), ("cifar100", "aquarium fish", "aquarium fish")])
def test_names_are_matched_as_they_are_stored(name, stored, prompted):
    (place,) = classes.numbers(name, [stored])
    assert classes.read(name).prompted[place] == prompted


def test_integers_need_an_order():
    assert classes.numbers("cifar10", np.array([2, 0]), ["truck", "cat", "dog"]).tolist() == [5, 9]
    assert classes.numbers("cifar10", np.array([2, 0]), "set").tolist() == [2, 0]
    for values, labels, message in (
            (np.array([1]), None, "holds integers, whose order can't be known"), (np.array([3]), ["cat", "dog"], "names 2"),
            (np.array([-1]), "set", "label -1"), (np.array(["cat", "cow"]), None, "holds 'cow': no class of the set 'cifar10'"),
            (np.array(["missile"]), None, "holds 'missile'")):
        with pytest.raises(ValueError, match=message):
            classes.numbers("imagenet" if "missile" in message else "cifar10", values, labels)   # two classes are called missile


# ---- zero-shot -----------------------------------------------------------------------------------------------------------------


def picture(number, size=8):
    """A flat image whose colour says the number, below 200."""
    data = io.BytesIO()
    Image.new("RGB", (size, size + 4), (50 + number, 0, 255 - number)).save(data, "PNG")
    return data.getvalue()


def oracle(name, context=20):
    """embed(state, batch) that knows: image and prompt of class c of the set are the unit vector c."""
    chosen, known = classes.read(name), {}
    for c, prompt in enumerate(chosen.prompted):
        for template in chosen.templates:
            known.setdefault(tokenizers.make("clip").encode([template.replace("{}", prompt)], context)[0].tobytes(), c)

    def embed(state, batch):
        if "text" in batch:
            return {"text": np.eye(len(chosen.stored), dtype=np.float32)[[known[row.tobytes()] for row in batch["text"]]]}
        return {"image": np.eye(len(chosen.stored), dtype=np.float32)[batch["image"][:, 4, 4, 0] - 50]}
    return embed


VIEWS = {"image": "decode|center(8)", "text": "caption('first')|tokenize(20, 'clip')"}


class Dtd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The textures in TFDS's own format on disk, with the label names in another order than the list's."""
    VERSION = tfds.core.Version("3.0.1")
    ORDER = classes.read("dtd").stored[::-1]

    def _info(self):
        features = {"file_name": tfds.features.Text(), "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=self.ORDER)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(2), "validation": self._generate_examples(1), "test": self._generate_examples(2)}

    def _generate_examples(self, each):
        for number, name in enumerate(classes.read("dtd").stored):
            for i in range(each):
                yield f"{name}_{i}", {"file_name": name, "label": name, "image": io.BytesIO(picture(number))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    Dtd(data_dir=str(place), file_format="array_record").download_and_prepare()
    return str(place)


def test_zero_shot_over_tfds_whatever_its_label_order(prepared):
    given = zeroshot_config.get_evals(f"sets=dtd,data_dir={prepared}")["zeroshot"]["dtd"]
    found = zeroshot.make({**given, "views": VIEWS}, "dtd")(oracle("dtd"), None)
    assert found["top1"] == found["accuracy"] == 1.0 and found["images"] == 94 and found["classes"] == 47
    by_number = {**given, "views": VIEWS, "label": "label"}
    with pytest.raises(ValueError, match=r"zeroshot.dtd: column 'label' holds integers"):
        zeroshot.make(by_number, "dtd")(oracle("dtd"), None)
    assert zeroshot.make({**by_number, "labels": Dtd.ORDER}, "dtd")(oracle("dtd"), None)["top1"] == 1.0
    assert zeroshot.make({**by_number, "labels": "set"}, "dtd")(oracle("dtd"), None)["top1"] == pytest.approx(1 / 47)   # wrong here


def test_probe_over_tfds_uses_the_official_parts(prepared):
    given = probe_config.get_evals(f"sets=dtd,data_dir={prepared},solver=ridge,features=image")["probe"]["dtd"]
    found = probe.make({**given, "views": VIEWS}, "dtd")(oracle("dtd"), None)
    assert found["top1"] == found["accuracy"] == 1.0 and (found["train_images"], found["images"]) == (3 * 47, 94)


@pytest.mark.parametrize("name", ["aircraft", "caltech101"])
def test_zero_shot_over_folders(name, tmp_path):
    chosen = classes.read(name)
    for number, stored in enumerate(chosen.stored):
        folder = tmp_path / name / stored.replace("/", "_")
        folder.mkdir(parents=True)
        for i in range(1 + number % 3):   # the images of every third class are all taken for another's
            (folder / f"{i}.{'PNG' if i else 'png'}").write_bytes(picture(0 if number % 3 == 2 else number))
    given = zeroshot_config.get_evals(f"sets={name},folder={tmp_path}/{{set}}")["zeroshot"][name]
    figures = [zeroshot.make({**given, "views": VIEWS, "batch_size": size}, name)(oracle(name), None) for size in (7, 256)]
    assert figures[0] == figures[1]
    counts = np.array([1 + number % 3 for number in range(len(chosen.stored))])
    assert figures[0]["images"] == counts.sum() and figures[0]["top1"] == pytest.approx(counts[counts < 3].sum() / counts.sum())
    assert figures[0]["accuracy"] == figures[0]["mean_per_class"] == pytest.approx(np.mean(counts < 3))


def test_accuracy_against_a_confusion_matrix():
    rng = np.random.default_rng(0)
    image, kinds = (rng.normal(size=(n, 5)).astype(np.float32) for n in (200, 9))
    labels, table = rng.integers(0, 9, 200) ** 2 % 9, np.zeros((9, 9))
    for scores, label in zip((image @ kinds.T).tolist(), labels.tolist()):
        table[label, max(range(9), key=scores.__getitem__)] += 1
    found = zeroshot.accuracy(image, kinds, labels, np.arange(9))
    seen = table.sum(axis=1) > 0
    assert found["top1"] == pytest.approx(np.trace(table) / 200)
    assert found["mean_per_class"] == pytest.approx(np.mean(np.diag(table)[seen] / table.sum(axis=1)[seen]))


def test_classes_with_the_same_prompts_go_to_the_first():
    kinds = np.eye(4, dtype=np.float32)[[0, 1, 1, 2]]
    found = zeroshot.accuracy(kinds, kinds, np.arange(4), np.arange(4), np.array([0, 1, 1, 3]))
    assert found["top1"] == 0.75                        # an argmax is right on the first twin and wrong on the second
    assert zeroshot.accuracy(kinds, kinds, np.arange(4), np.arange(4))["top1"] == 0.5      # not known as twins: a tie is a miss
    broken = np.full((4, 4), np.nan, np.float32)
    assert zeroshot.accuracy(broken, kinds, np.arange(4), np.arange(4), np.arange(4))["top5"] == 1.0
    assert zeroshot.accuracy(broken, kinds, np.arange(4), np.arange(4), np.arange(4))["top1"] == 0.0


# ---- folders of classes --------------------------------------------------------------------------------------------------------


def test_emoji_groups_as_folders(tmp_path):
    """The embedded drawings, written as class folders, give the labels back."""
    drawings = sources.open(dict(name="emoji", split="validation"))
    for i in range(0, len(drawings), 3):
        row = drawings[i]
        folder = tmp_path / emoji_names.GROUPS[row["group"]]
        folder.mkdir(exist_ok=True)
        (folder / f"{i:04}.webp").write_bytes(row["image"])
    source = sources.open(dict(name="image_folder", path=str(tmp_path)))
    assert len(source) == len(range(0, len(drawings), 3)) and list(source.classes) == sorted(source.classes)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(source.__getitem__, range(len(source))))
    for row in rows:
        original = drawings[int(os.path.basename(row["key"])[:4])]
        assert row["image"] == original["image"] and row["class_name"] == row["text"] == emoji_names.GROUPS[original["group"]]
        assert source.classes[row["label"]] == row["class_name"]
    assert source.column("label") == [row["label"] for row in rows]
    names = [[name] for name in source.classes]
    views = {"image": "decode|resize(8)", "text": VIEWS["text"]}
    seen = {}
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        seen[pixels.tobytes()] = row["label"]
    settings = {"source": dict(name="image_folder", path=str(tmp_path)), "views": {**views, "image": "decode|resize(64)"},
                "label": "label", "names": names, "templates": ("{}",)}
    texts = {tokenizers.make("clip").encode([n[0]], 20)[0].tobytes(): c for c, n in enumerate(names)}

    def embed(state, batch):
        if "text" in batch:
            return {"text": np.eye(len(names), dtype=np.float32)[[texts[t.tobytes()] for t in batch["text"]]]}
        return {"image": np.eye(len(names), dtype=np.float32)[[seen[x.tobytes()] for x in batch["image"]]]}
    assert zeroshot.make(settings, "groups")(embed, None)["top1"] == 1.0


def test_image_folder_takes_images_only_and_stays_inside(tmp_path):
    root = tmp_path / "set"
    for name in ("b/deep/2.jpeg", "b/1.JPG", "a/x.png", "a/notes.txt", "a/.hidden.png", ".git/y.png", "empty/readme.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "loose.png").write_bytes(b"")
    source = sources.open({"name": "image_folder", "path": str(root)})
    assert [(row["key"], row["label"]) for row in source] == [("a/x.png", 0), ("b/1.JPG", 1), ("b/deep/2.jpeg", 1)]
    assert source.classes == ["a", "b", "empty"] and source[-1]["image"] == b"b/deep/2.jpeg"
    (root / "b" / "inside.png").symlink_to(root / "a" / "x.png")
    assert len(sources.open({"name": "image_folder", "path": str(root)})) == 4
    (tmp_path / "secret.png").write_bytes(b"secret")
    for place, target in (("b/away.png", "secret.png"), ("away", ".")):
        (root / place).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=f"{os.path.basename(place)} is a link to .*, outside of"):
            sources.open({"name": "image_folder", "path": str(root)})
        (root / place).unlink()


@pytest.mark.parametrize("spec, error, message", [
    ({"path": "{}/nowhere"}, FileNotFoundError, "nowhere' is not a folder"), ({"path": "{}"}, FileNotFoundError, "has no folders"),
    ({"path": "{}/.."}, FileNotFoundError, "no image .* in the folders of its 1 classes"),
    ({"path": "{}", "split": "x"}, ValueError, "no key 'split' for the image_folder source"),
    ({"path": "{}", "columns": {"text": "label"}}, ValueError, "fixed columns")])
def test_image_folder_refusals(spec, error, message, tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with pytest.raises(error, match=message):
        sources.open({"name": "image_folder", **{k: v.format(inner) if isinstance(v, str) else v for k, v in spec.items()}})


# ---- the files of configs/evals ------------------------------------------------------------------------------------------------


def test_eval_files_give_settings_that_the_modules_know():
    given = zeroshot_config.get_evals("")["zeroshot"]
    assert list(given) == IN_TFDS and given["food101"]["source"]["split"] == "validation"   # Food-101's test images in TFDS
    assert all(set(own) <= {*zeroshot.KEYS, *EVAL} for own in given.values())
    given = probe_config.get_evals("weights_from=memory/teacher,folder=/data/{set}/{part},n=50")["probe"]
    assert "aircraft" in given and "imagenet" not in given
    assert given["dtd"]["weights_from"] == "memory/teacher" and given["dtd"]["n"] == 50
    assert given["pets"]["train"]["path"] == "/data/pets/train" and given["pets"]["source"]["path"] == "/data/pets/test"
    assert all(set(own) <= {*probe.KEYS, *EVAL} for own in given.values())
    given = retrieval_config.get_evals("flickr30k=/data/f")["retrieval"]
    assert list(given) == ["flickr30k"] and set(given["flickr30k"]) <= {*retrieval.KEYS, *EVAL}
    for file, arguments, message in (
            (zeroshot_config, "set=food101", "argument 'set=food101'.*sets=..."), (zeroshot_config, "food101", "write sets="),
            (retrieval_config, "", "give coco=FOLDER"), (zeroshot_config, "sets=aircraft", "not in TFDS")):
        with pytest.raises(ValueError, match=message):
            file.get_evals(arguments)
