"""COCO, Flickr30k and Flickr8k captions in Karpathy and Fei-Fei's format (see mcd_jax.data.sources).

    dict(name="karpathy", path="/data/coco", table="dataset_coco.json", split="test")
    dict(name="karpathy", path="/data/flickr30k-images", table="/data/dataset_flickr30k.json", split="test")

The table is their JSON file, {"images": [{"filename", "filepath" (COCO only), "split", "sentences": [{"raw"}, ...]}, ...]}, and an
image lies at path/filepath/filename. One row per image; text is the list of its first five captions (`captions=None`: all; the
published figures use five, some COCO images have six or seven). split is one of the file's or several ("val+test"); "train" brings
"restval" along, the rest of COCO's validation images, as the literature does. Columns: image, text, key (the image's path below
`path`), split, imgid.
"""
import json
import os

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.columns import check_spec, position

KEYS = {
    "path": Key("str", NEEDED, "the folder of images"),
    "table": Key("str", NEEDED, "the JSON file, in that folder or elsewhere"),
    "split": Key("str", "test", "one of the file's splits, or several: \"val+test\""),
    "captions": Key("int | None", 5, "the first so many of an image; None: all"),
}
class Captions:
    """One example per image of the split, in the file's order; the image is read from its file on each access."""

    def __init__(self, path, table, split="test", captions=5):
        """See the module.

        Raises:
          FileNotFoundError: the folder, the table or an image does not exist.
          ValueError: the table isn't in this format, has no such split, or names a path that leaves the folder.
        """
        self._root = os.path.realpath(path)
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.path {path!r} is not a folder")
        self._table = os.path.join(self._root, table)
        if not os.path.isfile(self._table):
            raise FileNotFoundError(f"data.source.table: there is no file {self._table}")
        if captions is not None and (isinstance(captions, bool) or not isinstance(captions, int) or captions < 1):
            raise ValueError(f"data.source.captions={captions!r} must be a number of captions, or None for all")
        images = self._read()
        wanted = self._splits(split, sorted({image["split"] for image in images}))
        self._rows = []
        for number, image in enumerate(images):
            if image["split"] in wanted:
                key = self._inside(number, os.path.join(image.get("filepath", ""), image["filename"]))
                text = [_text(sentence["raw"]) for sentence in image["sentences"][:captions]]
                self._rows.append({"text": text, "key": key, "split": image["split"], "imgid": image.get("imgid", number)})
        missing = [row["key"] for row in self._rows if not os.path.isfile(os.path.join(self._root, row["key"]))]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of the {len(self._rows)} images that {self._table} names for split {split!r} "
                                    f"are not in {self._root}, the first is {missing[0]}")

    def _read(self):
        try:
            with open(self._table, encoding="utf-8") as file:
                images = json.load(file)["images"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._table} is not JSON with a list of images, as Karpathy's files are ({error})") from error
        for number, image in enumerate(images):
            fits = isinstance(image, dict) and all(isinstance(image.get(k, ""), str) for k in ("filename", "filepath", "split"))
            sentences = image.get("sentences") if fits else None
            if (not fits or "filename" not in image or "split" not in image or not isinstance(sentences, list) or not sentences
                    or not all(isinstance(s, dict) and isinstance(s.get("raw"), str) for s in sentences)):
                raise ValueError(f"{self._table}, image {number}: needs filename, split and sentences with raw, as Karpathy's "
                                 f"files have; it is {str(image)[:80]}")
        return images

    def _splits(self, split, present):
        wanted = {part.strip() for part in str(split).split("+")}
        for part in wanted:
            if part not in present:
                raise ValueError(f"data.source.split={split!r}: {self._table} has no split {part!r}; it has {', '.join(present)}")
        return wanted | ({"restval"} if "train" in wanted else set())

    def _inside(self, number, name):
        """`name` below the folder, once links are followed."""
        file = os.path.realpath(os.path.join(self._root, name)) if "\0" not in name else ""
        if not file or os.path.isabs(name) or os.path.commonpath([self._root, file]) != self._root:
            raise ValueError(f"{self._table}, image {number}: {name!r} leads out of {self._root}")
        return name

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        row = self._rows[position(index, len(self))]
        with open(os.path.join(self._root, row["key"]), "rb") as file:
            return {"image": file.read(), **row}

    def column(self, name):
        """The values of a column other than image for all rows; no file is read.

        Raises:
          KeyError: no such column.
        """
        return [row[name] for row in self._rows]


def _text(raw):
    """The caption; one with lone surrogates as bytes, which the pipeline repairs and counts."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        return raw.encode("utf-8", "surrogatepass")
    return raw


def make(spec):
    """The source of dict(name="karpathy", path=..., table=..., split="test", captions=5).

    Raises:
      FileNotFoundError, ValueError: as `Captions`; also an unknown key.
    """
    check_spec(spec, KEYS)
    if spec.get("columns"):
        raise ValueError("data.source.columns: the karpathy source has fixed columns: image, text, key, split, imgid")
    return Captions(spec["path"], spec["table"], spec.get("split", "test"), spec.get("captions", 5))
