"""The embedded data set: what is in it, how it is split, and that the builder makes it."""
import collections
import concurrent.futures
import importlib.util
import io
import json
import os
import sys
import types

import cv2
import numpy as np
from PIL import Image
import pytest

from mcd_jax.data.emoji import drawing, families, names, npm_text, train_tokenizer
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.data.sources import emoji

MEGABYTE = 10 ** 6
NPM = os.environ.get("MCD_JAX_EMOJI_NPM")


@pytest.fixture(scope="module")
def concepts():
    return emoji.concepts()


@pytest.fixture(scope="module")
def drawings():
    return {split: emoji.make({"name": "emoji", "split": split}) for split in emoji_names.SPLITS}


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_every_concept_is_drawn_once_by_every_vendor(concepts, drawings):
    assert len(concepts) == 1852
    assert [row["concept_id"] for row in concepts] == list(range(1852))
    assert concepts[0]["concept"] == "1F600" and concepts[0]["labels"]["en"] == "grinning face"
    found = collections.Counter((row["vendor"], row["concept_id"]) for source in drawings.values() for row in source)
    assert sum(found.values()) == 7408
    assert set(found.values()) == {1} and len(found) == 4 * 1852
    for split, source in drawings.items():
        vendors = {"openmoji"} if split.startswith("openmoji") else {"google", "twitter", "fluent"}
        assert {row["vendor"] for row in source} == vendors


def test_splits_hold_out_whole_families_of_concepts(concepts, drawings):
    counts = collections.Counter(row["split"] for row in concepts)
    assert counts == {"train": 1575, "validation": 92, "test": 185}
    by_family = collections.defaultdict(set)
    for row in concepts:
        by_family[row["family"]].add(row["split"])
    assert all(len(splits) == 1 for splits in by_family.values())
    for split, source in drawings.items():
        assert {row["concept_split"] for row in source} == {split.removeprefix("openmoji_")}
    held_out = {row["concept"] for name in ("test", "openmoji_test", "validation", "openmoji_validation")
                for row in drawings[name]}
    assert not held_out & {row["concept"] for name in ("train", "openmoji_train") for row in drawings[name]}


def test_flags_are_marked_and_in_every_split(concepts):
    flags = [row for row in concepts if row["flag"]]
    assert len(flags) == 253
    assert all((emoji_names.GROUPS[row["group"]] == "flags") == row["flag"] for row in concepts)
    assert all("flag" in row["labels"]["en"] for row in flags)
    share = collections.Counter(row["split"] for row in flags)
    assert (share["test"], share["validation"]) == (25, 13)


def test_groups_and_subgroups_agree(concepts):
    home = collections.defaultdict(set)
    for row in concepts:
        home[emoji_names.SUBGROUPS[row["subgroup"]]].add(emoji_names.GROUPS[row["group"]])
    assert all(len(groups) == 1 for groups in home.values())
    assert home["country-flag"] == {"flags"} and home["food-fruit"] == {"food-drink"}
    assert len({row["group"] for row in concepts}) == 9 and len(emoji_names.GROUPS) == 10 and len(emoji_names.SUBGROUPS) == 100


def test_every_concept_has_text_in_28_languages(concepts):
    assert len(emoji_names.LANGUAGES) == 28
    for row in concepts:
        assert set(row["labels"]) == set(row["tags"]) == set(emoji_names.LANGUAGES)
        assert all(label.strip() for label in row["labels"].values())
        assert row["tags"]["en"] and all(isinstance(tag, str) for tag in row["tags"]["ja"])
    lacking = collections.Counter(language for row in concepts for language, tags in row["tags"].items() if not tags)
    assert lacking == {"en-gb": 3, "es-mx": 9}  # emojibase has none there
    rocket = next(row for row in concepts if row["concept"] == "1F680")["labels"]
    assert (rocket["en"], rocket["de"], rocket["ru"], rocket["zh"]) == ("rocket", "Rakete", "ракета", "火箭")


def test_everything_embedded_fits():
    sizes = [os.path.getsize(os.path.join(folder, name)) for folder, _, files in os.walk(names.HERE)
             for name in files if "__pycache__" not in folder]
    assert 8 * MEGABYTE < sum(sizes) < 15 * MEGABYTE
    assert os.path.getsize(emoji_names.TOKENIZER) < 1 * MEGABYTE


def test_licences_and_attribution_lie_beside_the_data():
    folder = os.path.join(names.HERE, "licences")
    sentences = {
        "noto-emoji-Apache-2.0.txt": ("Apache License", "END OF TERMS AND CONDITIONS"),
        "twemoji-CC-BY-4.0.txt": ("Attribution 4.0 International", "Creative Commons may be contacted"),
        "fluent-emoji-MIT.txt": ("Copyright (c) Microsoft", "WITHOUT WARRANTY OF ANY KIND"),
        "openmoji-CC-BY-SA-4.0.txt": ("Attribution-ShareAlike 4.0", "Creative Commons may be contacted"),
        "emojibase-MIT.txt": ("Miles Johnson", "WITHOUT WARRANTY OF ANY KIND"),
    }
    with open(os.path.join(folder, "NOTICE.md"), encoding="utf-8") as file:
        notice = file.read()
    for name, (start, end) in sentences.items():
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            text = file.read()
        assert start in text and end in text and name in notice
    assert all(f"| {vendor} |" in notice for vendor in emoji_names.VENDORS)


def test_every_drawing_decodes_and_stands_on_white(drawings):
    empty = 0
    for source in drawings.values():
        for row in source:
            pixels = decode(row["image"])
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8, row["key"]
            assert pixels.std() > 2, row["key"]
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            empty += np.median(border) > 250
    assert empty > 0.9 * 7408  # black would have shown where alpha was dropped


def test_captions_and_languages_are_chosen(concepts):
    spec = {"name": "emoji", "split": "openmoji_validation+openmoji_test", "captions": ["label", "label: tags"],
            "languages": ("en", "de")}
    source = emoji.make(spec)
    assert len(source) == 92 + 185
    row = source[0]
    concept = concepts[row["concept_id"]]
    assert row["text"] == [concept["labels"]["en"], f"{concept['labels']['en']}: {', '.join(concept['tags']['en'])}",
                           concept["labels"]["de"], f"{concept['labels']['de']}: {', '.join(concept['tags']['de'])}"]
    assert row["key"] == f"openmoji/{row['concept']}" and row["subgroup"] == concept["subgroup"]
    assert emoji.texts(concept, ("tags",), ("en",)) == concept["tags"]["en"]
    bare = {"labels": {"en": "thing"}, "tags": {"en": []}}
    assert emoji.texts(bare, ("tags", "label: tags", "label")) == ["thing"]
    only = emoji.make({"name": "emoji", "split": "train", "vendors": "google"})
    assert len(only) == 1575 and only[7]["vendor"] == "google"
    some = emoji.make({"name": "emoji", "split": "train", "groups": ("food-drink", "activities")})
    assert {row["group"] for row in some} == {names.GROUPS.index(name) for name in ("food-drink", "activities")}


@pytest.mark.parametrize("spec, sentence", [
    ({"split": "trane"}, "data.source.split.*trane.*choose from train, validation, test, openmoji_train"),
    ({"split": "test+test"}, "names a split twice"),
    ({"captions": ("caption",)}, "captions.*choose from label, tags, label: tags"),
    ({"captions": ()}, "captions.*nothing"),
    ({"languages": "tlh"}, "languages.*tlh.*choose from bn, da"),
    ({"vendors": ("apple",)}, "vendors.*apple.*google"),
    ({"split": "openmoji_test", "vendors": "google"}, "has no drawing by"),
    ({"groups": "faces"}, "groups.*faces.*choose from smileys-emotion, people-body"),
    ({"groups": "component"}, "has no drawing by .* of 'component'"),
    ({"sprit": "test"}, "no key 'sprit'.*it has name, split, captions"),
])
def test_a_wrong_spec_is_refused_by_name(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        emoji.make({"name": "emoji", **spec})


def test_reading_is_the_same_from_many_threads_and_items_are_private():
    source = emoji.make({"name": "emoji", "split": "openmoji_test"})
    source[3]["text"].append("written by a caller")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(source.__getitem__, list(range(len(source))) * 4))
    assert rows == [source[i] for i in range(len(source))] * 4
    assert "written by a caller" not in source[3]["text"]
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize("concept, base", [
    ("1F600", "1F600"),
    ("1F44B-1F3FD", "1F44B"),  # skin tone
    ("1F3C3-1F3FB-200D-2640-FE0F", "1F3C3"),  # woman running, light skin tone
    ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "1F3C3"),  # facing right
    ("1F469-200D-1F692", "1F9D1-1F692"),  # woman firefighter
    ("1F9D1-200D-1F692", "1F9D1-1F692"),
    ("1F469-200D-1F9B0", "1F468"), ("1F9D1", "1F468"),  # red hair, person
    ("1F468-200D-1F469-200D-1F467", "1F46A"),  # family
    ("1F469-200D-2764-FE0F-200D-1F468", "1F491"), ("1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1F48F"),
    ("1F408-200D-2B1B", "1F408"),  # black cat
    ("1F9D1-200D-1F384", "1F385"),  # Mx Claus
    ("1F9D1-200D-1F91D-200D-1F9D1", "1F46B"),  # people holding hands
    ("2764-FE0F-200D-1F525", "2764"),  # heart on fire
    ("1F1E9-1F1EA", "1F1E9-1F1EA"), ("0023-FE0F-20E3", "0023-20E3"), ("2640-FE0F", "2640"),
])
def test_a_variant_follows_its_base(concept, base):
    assert families.family(concept) == base


def test_splits_are_drawn_by_seed_within_groups_and_keep_families():
    groups = {f"{group:X}{number:04X}": group for group in (1, 2) for number in range(200)}
    groups |= {f"1000{n}-200D-{sign}": 1 for n in range(5) for sign in ("2640", "2642")}
    groups |= {f"20001-1F3FB-200D-{n}": 2 for n in range(20)}  # a crowd: more than the largest family held out
    splits = families.assign_splits(groups)
    for group, size in ((1, 210), (2, 220)):
        counts = collections.Counter(splits[concept] for concept in groups if groups[concept] == group)
        assert counts["test"] == round(size * 0.10) and counts["validation"] == round(size * 0.05)
    assert all(splits[concept] == splits[families.family(concept)] for concept in groups)
    assert {splits[concept] for concept in groups if families.family(concept) == "20001"} == {"train"}
    assert splits == families.assign_splits(dict(reversed(groups.items())))
    assert splits != families.assign_splits(groups, seed=1)


def test_the_tokenizer_is_byte_level_lower_case_and_knows_its_languages(concepts):
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(emoji_names.TOKENIZER)
    assert tokenizer.get_vocab_size() == 8192
    assert tokenizer.token_to_id("<pad>") == 0 and tokenizer.token_to_id("<eot>") == 1
    assert tokenizer.encode("Grinning FACE").ids == tokenizer.encode("grinning face").ids
    assert tokenizer.encode("\ufb01re").ids == tokenizer.encode("fire").ids  # NFKC
    for text in ("no such word: qzxv \u0000 \U0001f680", *list(concepts[5]["labels"].values())):
        ids = tokenizer.encode(text).ids
        assert 0 not in ids and 1 not in ids
        expected = tokenizer.normalizer.normalize_str(text)
        assert tokenizer.decode(ids, skip_special_tokens=False).strip() == expected
    lengths = [len(tokenizer.encode(row["labels"]["en"]).ids) for row in concepts]
    assert np.mean(lengths) < 4 and max(lengths) < 15


def test_the_tokenizer_learns_from_training_concepts_only_and_the_same_each_time():
    def row(split, word):
        return {"split": split, "labels": dict.fromkeys(emoji_names.LANGUAGES, word),
                "tags": {key: [word + "tag"] for key in emoji_names.LANGUAGES}}
    lines = train_tokenizer.corpus([row("train", "apple"), row("test", "zebra"), row("validation", "yak")])
    assert set(lines) == {"apple", "appletag"}
    assert len(lines) == 2 * (27 + train_tokenizer.ENGLISH_WEIGHT)
    first = train_tokenizer.train(lines, 300).to_str()
    assert first == train_tokenizer.train(lines, 300).to_str()
    assert "Ġapple" in json.loads(first)["model"]["vocab"]


@pytest.mark.full
def test_the_committed_tokenizer_is_what_training_gives(concepts):
    with open(emoji_names.TOKENIZER, encoding="utf-8") as file:
        assert json.load(file) == json.loads(train_tokenizer.train(train_tokenizer.corpus(concepts)).to_str())


SYNTHETIC = {"1F600": (0, 0, "grin"), "1F680": (5, 56, "rocket"), "1F469-200D-1F680": (1, 25, "woman astronaut"),
             "1F1E9-1F1EA": (9, 98, "flag: Germany"),
             **{f"1F9{n}": (0, 1, f"face {n}") for n in range(10, 31)}}  # enough for every split to hold some


@pytest.fixture
def synthetic_npm(tmp_path, monkeypatch):
    """A node_modules folder with a few concepts and one that not every vendor draws."""
    root = tmp_path / "node_modules"
    for folder in drawing.FOLDERS.values():
        (root / folder).mkdir(parents=True)
    for number, concept in enumerate(SYNTHETIC):
        red = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        red.paste((200, 2 * number, 0, 255), (16, 16, 48, 48))
        red.save(root / drawing.FOLDERS["google"] / f"{concept.lower()}.png")
        red.convert("LA").save(root / drawing.FOLDERS["twitter"] / f"{concept.lower()}-fe0f.png")
        red.resize((256, 256), Image.Resampling.NEAREST).save(
            root / drawing.FOLDERS["fluent"] / f"{concept.lower()}.webp", lossless=True)
        (root / drawing.FOLDERS["openmoji"] / f"{concept}.svg").write_text("<svg/>")
    (root / drawing.FOLDERS["google"] / "1f9ff.png").write_bytes(b"drawn by google only")
    for language in emoji_names.LANGUAGES:
        (root / "emojibase-data" / language).mkdir(parents=True)
        rows = [{"hexcode": concept, "label": f"{label} {language}", "group": group, "subgroup": subgroup,
                 "order": 100 - number, "tags": ["a", "b"]}
                for number, (concept, (group, subgroup, label)) in enumerate(SYNTHETIC.items())]
        rows.append({"hexcode": "1F9FF", "label": "amulet", "group": 6, "subgroup": 65, "order": 1})
        (root / "emojibase-data" / language / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 255, 128)).save(file, "PNG")
    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=lambda **_: file.getvalue()))
    return str(root)


def test_the_builder_makes_both_configs_without_tensorflow(synthetic_npm, tmp_path):
    import tensorflow_datasets as tfds

    from mcd_jax.data.emoji import build
    build.prepare(synthetic_npm, str(tmp_path / "out"))
    assert "tensorflow" not in sys.modules
    builder = tfds.builder_from_directory(str(tmp_path / "out/emoji/concepts/1.0.0"))
    rows = [row for split in emoji_names.CONCEPT_SPLITS for row in builder.as_data_source(split=split)]
    assert {row["concept"].decode() for row in rows} == set(SYNTHETIC)
    flag = next(row for row in rows if row["concept"] == b"1F1E9-1F1EA")
    assert flag["flag"] and flag["concept_id"] == len(SYNTHETIC) - 4 and flag["labels"]["th"] == b"flag: Germany th"
    builder = tfds.builder_from_directory(str(tmp_path / "out/emoji/drawings/1.0.0"))
    assert set(builder.info.splits) == set(emoji_names.SPLITS)
    pixels = {(row["concept"].decode(), emoji_names.VENDORS[row["vendor"]]): row["image"]
              for split in emoji_names.SPLITS for row in builder.as_data_source(split=split)}
    assert len(pixels) == 4 * len(SYNTHETIC)
    for vendor in ("google", "twitter", "fluent"):  # transparent is white, the square is where it was
        image = pixels["1F600", vendor].astype(int)
        assert image[2, 2].min() > 250 and image[32, 32].min() < 80, vendor
    assert abs(pixels["1F600", "openmoji"][5, 5].astype(int) - (127, 127, 255)).max() < 4  # half blue on white


def test_a_missing_package_is_named(synthetic_npm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'google'.*node_modules"):
        drawing.files(str(tmp_path / "nowhere"), "google")
    os.remove(os.path.join(synthetic_npm, "emojibase-data", "th", "data.json"))
    with pytest.raises(FileNotFoundError, match="'th'"):
        npm_text.concepts(synthetic_npm)


def test_the_shards_are_what_the_builder_makes(concepts, drawings):
    """Its pure parts on every concept; and where the npm packages are present, their text and some drawings."""
    stored = {row["concept"]: row for row in concepts}
    assert all(families.family(concept) == row["family"] for concept, row in stored.items())
    splits = families.assign_splits({concept: row["group"] for concept, row in stored.items()})
    assert splits == {concept: row["split"] for concept, row in stored.items()}
    assert list(drawings["openmoji_train"])[-1]["concept_id"] > 1800  # shards keep the order of the concepts
    ids = [row["concept_id"] for row in drawings["train"]]
    assert ids == sorted(ids)
    if not NPM:
        return
    rebuilt = npm_text.concepts(NPM)
    for row, new in zip(concepts, rebuilt, strict=True):
        assert new == {**row, "group": emoji_names.GROUPS[row["group"]], "subgroup": emoji_names.SUBGROUPS[row["subgroup"]]}
    vendors = emoji_names.VENDORS if importlib.util.find_spec("resvg_py") else emoji_names.TRAINING_VENDORS
    for split in ("test", "openmoji_test"):
        for row in list(drawings[split])[::37]:
            if row["vendor"] in vendors:
                new = decode(drawing.encode(drawing.draw(drawing.files(NPM, row["vendor"])[row["concept"]])))
                assert np.abs(new.astype(int) - decode(row["image"])).mean() < 1, row["key"]
