"""A folder with one sub-folder per class, as torchvision's ImageFolder reads it: `train/<class>/x.jpg` (see mcd_jax.data.sources).

    dict(name="image_folder", path="/data/food101/test")
    dict(name="image_folder", path="/data/food101/test", prettify=True)     text "apple pie" for the folder apple_pie

Columns: image (the file's bytes), text and class_name (the name of the class's folder; `prettify` makes words of the text), label
(its place among the sorted folder names, 0 first), key ("<class>/x.jpg"). Images may lie deeper inside a class's folder;
names that begin with a dot are passed over. Files with other endings, pipes and links to nothing, images beside the classes'
folders and classes without an image are left out, counted and named when the source is opened.
"""
import collections
import functools
import os
import re

from absl import logging

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.columns import check_spec, position

KEYS = {
    "path": Key("str", NEEDED, "a folder with a sub-folder of images for each class"),
    "prettify": Key("bool", False, "make words of the folders' names for the text: \"apple pie\" of apple_pie"),
}
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
NO_FILE = "not a file (a pipe, or a link to nothing)"


class ImageFolder:
    """One example per image file, classes in order of their names, files in order of theirs.

    Attributes:
      classes: names of the classes, label 0 first.
      left_out: {cause: how many}.
    """

    def __init__(self, root, prettify=False):
        """
        Args:
          root: the folder that holds the classes' folders.
          prettify: whether text is `prettified(class_name)`.

        Raises:
          FileNotFoundError: no such folder, no folder of a class in it, or no image in any.
          ValueError: a link that leads out of `root`.
        """
        self._root, self._prettify = os.path.realpath(root), prettify
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.path {root!r} is not a folder")
        self.classes = sorted(e.name for e in os.scandir(self._root) if e.is_dir() and not e.name.startswith("."))
        if not self.classes:
            raise FileNotFoundError(f"data.source.path {root!r} has no folders: the image_folder source needs one for each class")
        self._other = collections.defaultdict(list)   # {cause: files or folders}
        loose = sorted(e.name for e in os.scandir(self._root) if e.is_file() and not e.name.startswith("."))
        self._other["image beside the classes' folders"] = [name for name in loose if name.lower().endswith(ENDINGS)]
        self._rows = []
        for label, name in enumerate(self.classes):
            images = self._images(name)
            self._rows += [(label, file) for file in images]
            if not images:
                self._other["class without an image"].append(name)
        told = ", ".join(f"{len(names):,} x {cause} (the first: {names[0]})" for cause, names in self._other.items() if names)
        if not self._rows:
            raise FileNotFoundError(f"data.source.path {root!r}: no image ({', '.join(ENDINGS)}) in the folders of its "
                                    f"{len(self.classes)} classes" + f"; {told}" * bool(told))
        self.left_out = {cause: len(names) for cause, names in self._other.items() if names}
        if told:
            _warn(f"image_folder source: {len(self._rows):,} images in {self._root}; left out: {told}")

    def _images(self, name):
        """Sorted paths, relative to the root, of the images below the folder `name`."""
        is_plain_file(self._root, name)   # raises where the folder is a link that leads out
        found = []
        for folder, inside, files in os.walk(os.path.join(self._root, name)):
            inside[:] = [n for n in inside if not n.startswith(".")]
            for file in files:
                path = os.path.relpath(os.path.join(folder, file), self._root)
                if not file.startswith(".") and not file.lower().endswith(ENDINGS):
                    self._other["no image by its ending"].append(path)
                elif not file.startswith("."):
                    (found if is_plain_file(self._root, path) else self._other[NO_FILE]).append(path)
        return sorted(found)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        label, file = self._rows[position(index, len(self))]
        with open(os.path.join(self._root, file), "rb") as opened:
            image = opened.read()
        return {"image": image, **self._stored(label, file)}

    def column(self, name):
        """The values of a column other than image for all rows; no file is read.

        Raises:
          KeyError: no such column.
        """
        return [self._stored(*row)[name] for row in self._rows]

    def _stored(self, label, file):
        name = self.classes[label]
        text = prettified(name) if self._prettify else name
        return {"text": text, "class_name": name, "label": label, "key": file.replace(os.sep, "/")}


def is_plain_file(root: str, name: str) -> bool:
    """Whether `name` below the folder `root` is a file that can be read to its end: no folder, no pipe, no link to nothing.

    Args:
      root: as os.path.realpath gives it.

    Raises:
      ValueError: a link that leads out of `root`.
    """
    path = os.path.join(root, name)
    if os.path.islink(path) and os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise ValueError(f"data.source.path: {name} is a link to {os.path.realpath(path)}, outside of {root}")
    return os.path.isfile(path)


@functools.cache
def _warn(sentence):
    """Once, however often the folder is opened."""
    logging.warning("%s", sentence)


def prettified(name):
    """The name of a folder as words for a prompt: "golden_retriever" and "03.goldenRetriever" are "golden retriever"."""
    words = re.sub(r"^\d+[._-]+(?=\D)", "", name)   # the numbers that Caltech-256 and CUB-200 put before their names
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", words)
    words = " ".join(re.sub(r"[_\s]+|-(?=\w)", " ", words).split())
    return (words.lower() if words != name and not words.isupper() else words) or name


def make(spec):
    """The source of dict(name="image_folder", path=...), optionally with prettify=True.

    Raises:
      FileNotFoundError, ValueError: as `ImageFolder`; also an unknown key.
    """
    check_spec(spec, KEYS)
    if spec.get("columns"):
        raise ValueError("data.source.columns: the image_folder source has fixed columns: image, text, key, class_name, label")
    return ImageFolder(spec["path"], bool(spec.get("prettify", False)))
