"""A source for tests: the embedded drawings, of which rows 3 and 50 can't be decoded."""
from mcd_jax.data import sources


class Broken:
    def __init__(self, spec):
        self._whole = sources.open({**spec, "name": "emoji"})

    def __len__(self):
        return len(self._whole)

    def __getitem__(self, index):
        row = self._whole[index]
        return {**row, "image": b"broken"} if index in (3, 50) else row


make = Broken
