"""A folder with one sub-folder per class, as torchvision's ImageFolder reads it: `train/<class>/x.jpg` (see mcd_jax.data.sources).

    dict(name="image_folder", path="/data/food101/test")

Columns: image (the file's bytes), text and class_name (the name of the class's folder), label (its place among the sorted folder
names, 0 first), key ("<class>/x.jpg"). Images may lie deeper inside a class's folder; names that begin with a dot are passed over.
"""
import os

from mcd_jax.data.columns import check_spec, position

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class ImageFolder:
    """One example per image file, classes in order of their names, files in order of theirs.

    Attributes:
      classes: names of the classes, label 0 first.
    """

    def __init__(self, root):
        """
        Args:
          root: the folder that holds the classes' folders.

        Raises:
          FileNotFoundError: no such folder, no folder of a class in it, or no image in any.
          ValueError: a link that leads out of `root`.
        """
        self._root = os.path.realpath(root)
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"data.source.path {root!r} is not a folder")
        self.classes = sorted(e.name for e in os.scandir(self._root) if e.is_dir() and not e.name.startswith("."))
        if not self.classes:
            raise FileNotFoundError(f"data.source.path {root!r} has no folders: the image_folder source needs one for each class")
        self._rows = [(label, file) for label, name in enumerate(self.classes) for file in self._images(name)]
        if not self._rows:
            raise FileNotFoundError(f"data.source.path {root!r}: no image ({', '.join(ENDINGS)}) in the folders of its "
                                    f"{len(self.classes)} classes")

    def _images(self, name):
        """Sorted paths, relative to the root, of the images below the folder `name`."""
        self._check(os.path.join(self._root, name))
        found = []
        for folder, inside, files in os.walk(os.path.join(self._root, name)):
            inside[:] = [n for n in inside if not n.startswith(".")]
            for file in files:
                if file.lower().endswith(ENDINGS) and not file.startswith("."):
                    path = os.path.join(folder, file)
                    self._check(path)
                    found.append(os.path.relpath(path, self._root))
        return sorted(found)

    def _check(self, path):
        if os.path.islink(path) and os.path.commonpath([self._root, os.path.realpath(path)]) != self._root:
            raise ValueError(f"data.source.path: {path} is a link to {os.path.realpath(path)}, outside of {self._root}")

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
        return {"text": name, "class_name": name, "label": label, "key": file.replace(os.sep, "/")}


def make(spec):
    """The source of dict(name="image_folder", path=...).

    Raises:
      FileNotFoundError, ValueError: as `ImageFolder`; also an unknown key.
    """
    check_spec(spec, ("path",))
    if spec.get("columns"):
        raise ValueError("data.source.columns: the image_folder source has fixed columns: image, text, key, class_name, label")
    return ImageFolder(spec["path"])
