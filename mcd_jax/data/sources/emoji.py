"""The embedded data set as a random-access source, read from the prepared shards beside this file."""

import functools
import os
import threading

from mcd_jax.config.keys import Key
from mcd_jax.data.emoji import names
from mcd_jax.data.storage.examples import parse_example

CAPTIONS = ("label", "tags", "label: tags")
KEYS = {
    "split": Key("str", "train", f"{', '.join(names.SPLITS)}; several joined by \"+\""),
    "captions": Key("str | tuple", ("label",), "label; tags: one caption for each tag; \"label: tags\": one caption of both"),
    "languages": Key("str | tuple", ("en",), f"of the captions: {', '.join(names.LANGUAGES)}"),
    "vendors": Key("str | tuple", tuple(names.VENDORS), "whose drawings"),
    "groups": Key("str | tuple", names.GROUPS, f"of concepts: {', '.join(names.GROUPS)}"),
}
_LOCK = threading.Lock()


def _records(config, split):
    """The records of one split of one config, in the order of its shard: list of {feature: list of values}."""
    from array_record.python import array_record_module

    path = os.path.join(names.PREPARED, "emoji", config, names.VERSION,
                        f"emoji-{split}.array_record-00000-of-00001")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the embedded data set is incomplete: {path} is missing; install the package again "
                                "or run python -m mcd_jax.data.emoji.build")
    reader = array_record_module.ArrayRecordReader(path)
    records = [parse_example(record) for record in reader.read_all()]
    reader.close()
    return records


@functools.lru_cache(maxsize=1)
def _concepts():
    rows = []
    for split in names.CONCEPT_SPLITS:
        for record in _records("concepts", split):
            rows.append({
                "concept": record["concept"][0].decode(),
                "concept_id": record["concept_id"][0],
                "family": record["family"][0].decode(),
                "group": record["group"][0],
                "subgroup": record["subgroup"][0],
                "flag": bool(record["flag"][0]),
                "split": record["split"][0].decode(),
                "labels": {key: record[f"labels/{key}"][0].decode() for key in names.LANGUAGES},
                "tags": {key: [tag.decode() for tag in record.get(f"tags/{key}", ())] for key in names.LANGUAGES},
            })
    return tuple(sorted(rows, key=lambda row: row["concept_id"]))


@functools.cache
def _drawings(split):
    """((vendor, concept, encoded bytes), ...) of one split, in the order of its shard."""
    return tuple((names.VENDORS[record["vendor"][0]], record["concept"][0].decode(), record["image"][0])
                 for record in _records("drawings", split))


def concepts():
    """The 1,852 concepts in their fixed order, a list of dicts that callers must not change.

    Each holds concept (hex key), concept_id (its position), family (base concept), group (index of names.GROUPS),
    subgroup (index of names.SUBGROUPS), flag, split ("train", "validation" or "test"),
    labels {language: str} and tags {language: [str]}.
    """
    with _LOCK:
        return list(_concepts())


def _choice(spec, key, allowed, default):
    value = spec.get(key, default)
    value = (value,) if isinstance(value, str) else tuple(value)
    unknown = [item for item in value if item not in allowed]
    if unknown or not value:
        raise ValueError(f"data.source.{key} of the emoji source: {unknown or 'nothing'} is not possible; "
                         f"choose from {', '.join(allowed)}")
    return value


class Emoji:
    """Drawings with the texts of their concept; all encoded bytes stay in memory (about 8 MB).

    Item: image (WebP bytes), text (list of str), key ("google/1F600"), vendor, concept, concept_id, family, group,
    subgroup, flag, concept_split. Items are new dicts; reading is safe from any thread.
    """

    def __init__(self, spec):
        """spec: split ("train", "validation", "test", "openmoji_train", ...; joined by "+"), captions (any of
        "label", "tags" (one caption per tag), "label: tags" (one caption)), languages, vendors and groups (default: all).

        Raises ValueError naming the key and the possible values.
        """
        unknown = [key for key in spec if key not in ("name", *KEYS)]
        if unknown:
            raise ValueError(f"data.source has no key {unknown[0]!r} for the emoji source; it has name, {', '.join(KEYS)}")
        splits = _choice({"split": str(spec.get("split", "train")).split("+")}, "split", names.SPLITS, ())
        captions = _choice(spec, "captions", CAPTIONS, ("label",))
        languages = _choice(spec, "languages", names.LANGUAGES, ("en",))
        vendors = _choice(spec, "vendors", names.VENDORS, names.VENDORS)
        groups = {names.GROUPS.index(name) for name in _choice(spec, "groups", names.GROUPS, names.GROUPS)}
        if len(set(splits)) < len(splits):
            raise ValueError(f"data.source.split names a split twice: {spec['split']!r}")
        with _LOCK:
            by_key = {row["concept"]: row for row in _concepts()}
            self._rows = [(image, vendor, by_key[concept]) for split in splits for vendor, concept, image in _drawings(split)
                          if vendor in vendors and by_key[concept]["group"] in groups]
        if not self._rows:
            raise ValueError(f"data.source: split {spec.get('split', 'train')!r} has no drawing by {vendors}"
                             + (f" of {spec['groups']!r}" if "groups" in spec else ""))
        self._texts = {row["concept"]: texts(row, captions, languages) for _, _, row in self._rows}

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        image, vendor, row = self._rows[index]
        return {"image": image, "text": list(self._texts[row["concept"]]), "key": f"{vendor}/{row['concept']}",
                "vendor": vendor, "concept": row["concept"], "concept_id": row["concept_id"],
                "family": row["family"], "group": row["group"], "subgroup": row["subgroup"], "flag": row["flag"],
                "concept_split": row["split"]}

    def about(self, index):
        """What is known of the concept of a drawing, as a row of `concepts`, with its English label and tags; no image is read."""
        row = self._rows[index][2]
        return {**row, "label": row["labels"]["en"], "tags": row["tags"]["en"]}


def texts(concept, captions=("label",), languages=("en",)):
    """The captions of one concept (a dict of concepts()), without repeats: list of str, never empty."""
    result = []
    for language in languages:
        label, tags = concept["labels"][language], concept["tags"][language]
        for caption in captions:
            if caption == "label":
                result.append(label)
            elif caption == "tags":
                result += tags or [label]
            else:
                result.append(f"{label}: {', '.join(tags)}" if tags else label)
    return list(dict.fromkeys(result))


def make(spec):
    """The source protocol of mcd_jax.data.sources."""
    return Emoji(spec)
