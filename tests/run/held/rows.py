"""A source whose rows stop coming: in each process that reads it the first `good` of them, then none."""
import held
from mcd_jax.data import sources


class Rows:
    def __init__(self, spec):
        held.sleep("open")
        self.inner, self.left = sources.open(dict(name="emoji", split="validation")), spec.get("good", 10 ** 9)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            held.sleep("input")
        return self.inner[index]


make = Rows
