"""The image files below a folder, as a source: names first, bytes when they are asked for."""
import os
from typing import NamedTuple

from mcd_jax.data.sources.columns import position
from mcd_jax.data.sources.image_folder import ENDINGS


class File(NamedTuple):
    name: str         # relative to the folder, with "/" between its parts
    size: int         # bytes
    changed: int      # time of the last change, ns


class Folder:
    """Images at any depth below `root`, sorted by name; names that begin with a dot are passed over.

    Attributes:
      files: tuple of `File`.
      outside: number of links that lead out of the folder; they are passed over.
    """

    def __init__(self, root):
        """
        Raises:
          FileNotFoundError: no such folder, or no image below it.
        """
        self.root = os.path.realpath(root)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"--images={root} is not a folder")
        self.outside, found = 0, []
        for folder, inside, names in os.walk(self.root):
            inside[:] = [name for name in inside if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                if name.startswith(".") or not name.lower().endswith(ENDINGS):
                    continue
                if not self._inside(path):
                    self.outside += 1
                elif os.path.isfile(path):
                    state = os.stat(path)
                    found.append(File(os.path.relpath(path, self.root).replace(os.sep, "/"), state.st_size, state.st_mtime_ns))
        if not found:
            raise FileNotFoundError(f"--images={root}: no image ({', '.join(ENDINGS)}) below this folder")
        self.files = tuple(sorted(found))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        """{"image": bytes, "text": "", "key": name}; no bytes when the file is gone, unreadable or outside."""
        name = self.files[position(index, len(self))].name
        return {"image": self.read(index), "text": "", "key": name}

    def read(self, index):
        """The bytes of file `index`, see `__getitem__`."""
        path = os.path.join(self.root, *self.files[position(index, len(self))].name.split("/"))
        if not self._inside(path):
            return b""
        try:
            with open(path, "rb") as opened:
                return opened.read()
        except OSError:
            return b""

    def _inside(self, path):
        return os.path.commonpath([self.root, os.path.realpath(path)]) == self.root
