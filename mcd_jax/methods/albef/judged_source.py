"""Texts judged on images: SNLI-VE (one image, three classes) and NLVR2 (two images, true or false); see mcd_jax.data.sources.

    dict(name="judged", set="snli_ve", path="/data", table="ve_train.json", images="flickr30k-images")
    dict(name="judged", set="nlvr2", path="/data/nlvr2", table="data/train.json", images="images/train")

  path     a folder. table: a file in it, a JSON list as ALBEF distributes them, or an official file of one JSON object in each
           line; what it holds decides, not its name
  images   the folder in it that image paths start from; default: `path`
  missing  "refuse" (default) an image that does not exist, or "drop" its rows; the attribute `missing` counts them

SNLI-VE, columns image, text (the hypothesis), label (0 contradiction, 1 neutral, 2 entailment), key. ALBEF: {"image" (a name
without .jpg), "sentence", "label"}; official: {"Flickr30K_ID" or "Flikr30kID", "sentence2", "gold_label"}, where rows of "-" are
left out.

NLVR2, columns image, image2 (left and right), text, label (1 true), sentence, key. ALBEF: {"images" [left, right], "sentence",
"label"}; official: {"identifier" split-set-pair-sentence, "sentence", "label", in train.json also "directory"}, whose images are
[directory/]split-set-pair-img0.png and -img1.png. `sentence` numbers what was said of one set of images, so that an evaluation can
ask whether all of a sentence's pairs were judged rightly.
"""
import json
import os
import re

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import check_spec, position

KEYS = {
    "set": Key("str", NEEDED, "snli_ve | nlvr2"),
    "path": Key("str", NEEDED, "a folder"),
    "table": Key("str", NEEDED, "a file in it: ALBEF's list, or an official file"),
    "images": Key("str | None", "", "the folder in it that image paths start from"),
    "missing": Key("str", "refuse", "\"refuse\" an image that does not exist, or \"drop\" its rows"),
}
CLASSES = {"snli_ve": ("contradiction", "neutral", "entailment"), "nlvr2": ("false", "true")}


class Judged:
    """One example for each line or object of the table; images are read from their files on each access."""

    def __init__(self, spec):
        """spec: see the module.

        Raises:
          FileNotFoundError: the folder, the table or an image does not exist.
          ValueError: an unknown key or set, a row that isn't in the format, or a path that leaves the folder.
        """
        check_spec(spec, KEYS)
        if spec["set"] not in CLASSES:
            raise ValueError(f"data.source.set={spec['set']!r} must be one of {', '.join(CLASSES)}")
        if spec.get("missing", "refuse") not in ("refuse", "drop"):
            raise ValueError(f"data.source.missing={spec['missing']!r} must be 'refuse' or 'drop'")
        root = os.path.realpath(spec["path"])
        self._root, self._table = os.path.realpath(os.path.join(root, spec.get("images") or "")), os.path.join(root, spec["table"])
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.images: {self._root} is not a folder")
        if not os.path.isfile(self._table):
            raise FileNotFoundError(f"data.source.table: there is no file {self._table}")
        one = _entailment if spec["set"] == "snli_ve" else _reasoning
        self._rows = []
        for number, stored in enumerate(_objects(self._table), 1):
            try:
                row = one(stored)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{self._table}, row {number} is none of {spec['set']} ({type(error).__name__}: {error}): "
                                 f"{str(stored)[:120]}") from error
            if row is not None:
                self._rows.append({**row, **{name: self._inside(number, row[name]) for name in ("image", "image2") if name in row}})
        there = [all(os.path.isfile(os.path.join(self._root, row[name])) for name in ("image", "image2") if name in row)
                 for row in self._rows]
        self.missing = there.count(False)
        if self.missing and (spec.get("missing", "refuse") == "refuse" or not any(there)):
            raise FileNotFoundError(f"images of {self.missing} of the {len(there)} rows of {self._table} are not in {self._root}, "
                                    f"the first is {self._rows[there.index(False)]['image']}; add them, or drop their rows by "
                                    "data.source.missing='drop'")
        self._rows = [row for row, found in zip(self._rows, there) if found]
        if "sentence" in (self._rows or [{}])[0]:
            numbers = {}
            for row in self._rows:
                row["sentence"] = numbers.setdefault(row["sentence"], len(numbers))

    def _inside(self, number, name):
        """`name` below the folder of the images, once links are followed."""
        file = os.path.realpath(os.path.join(self._root, name)) if "\0" not in name else ""
        if not file.startswith(os.path.join(self._root, "")):
            raise ValueError(f"{self._table}, row {number}: the path {name!r} leads out of {self._root}")
        return os.path.relpath(file, self._root)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        row = self._rows[position(index, len(self))]
        return {**row, **{name: self._read(row[name]) for name in ("image", "image2") if name in row}}

    def _read(self, name):
        try:
            with open(os.path.join(self._root, name), "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            raise Bad("missing image", name) from error

    def column(self, name):
        """The values of a column other than the images for all rows; no image is read.

        Raises:
          KeyError: no such column.
        """
        if name in ("image", "image2"):
            raise KeyError(name)
        return [row[name] for row in self._rows]


def _objects(path):
    """The objects of a JSON list, or of a file with one in each line."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        if text.lstrip()[:1] == "[":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is neither a JSON list nor a file of one JSON object in each line ({error})") from error


def _entailment(row):
    """A row of SNLI-VE; None for one without a label that its annotators agreed on."""
    if "sentence2" in row:
        if row["gold_label"] == "-":
            return None
        name, text, label = row["Flickr30K_ID"] if "Flickr30K_ID" in row else row["Flikr30kID"], row["sentence2"], row["gold_label"]
    else:
        name, text, label = row["image"], row["sentence"], row["label"]
    name = name if name.endswith(".jpg") else f"{name}.jpg"
    return {"image": name, "text": str(text), "label": CLASSES["snli_ve"].index(label), "key": f"{name}#{text}"}


def _reasoning(row):
    """A row of NLVR2."""
    if "images" in row:
        left, right = row["images"]
    else:
        pair = row["identifier"].rpartition("-")[0]
        left, right = (os.path.join(str(row.get("directory", "")), f"{pair}-img{side}.png") for side in (0, 1))
    known = re.fullmatch(r"(.+)-\d+-img\d\.\w+", os.path.basename(left))
    label = CLASSES["nlvr2"].index(str(row["label"]).lower())
    return {"image": left, "image2": right, "text": str(row["sentence"]), "label": label,
            "sentence": (known[1] if known else "", row["sentence"]), "key": f"{left} {right}#{row['sentence']}"}


def make(spec):
    """The source protocol of mcd_jax.data.sources."""
    return Judged(dict(spec))
