"""An order for examples that lie in groups which can only be read whole (row groups of Parquet files)."""
import numpy as np

from mcd_jax.data import order


class Windows:
    """Every epoch goes through the groups in a fresh random order, some of them at a time (a window), and through the
    examples of a window in random order. So every group is read once per epoch if a window fits into memory. It is a
    permutation of the examples, but not any: those of a group come close together.
    """

    def __init__(self, counts, groups):
        """
        Args:
          counts: (G,) number of examples of each group; examples are numbered group by group.
          groups: how many of them make a window.
        """
        self._counts, self._groups = np.asarray(counts, np.int64), groups
        self._starts = np.cumsum(self._counts) - self._counts
        self._epochs = {}

    def draw(self, seed, epoch, place):
        """The number of the example at `place` of `epoch`: pure in (seed, epoch, place)."""
        groups, ends, own = self._epoch(seed, epoch)
        window = int(np.searchsorted(ends, place, side="right")) // self._groups
        first = int(ends[window * self._groups - 1]) if window else 0
        last = int(ends[min((window + 1) * self._groups, len(ends)) - 1])
        place = first + order.shuffled(own, window, place - first, last - first)
        number = int(np.searchsorted(ends, place, side="right"))
        group = groups[number]
        return int(self._starts[group] + place - ends[number] + self._counts[group])

    def _epoch(self, seed, epoch):
        """(order of the groups, where each ends in it, seed of the windows)."""
        found = self._epochs.get((seed, epoch))
        if found is None:
            groups = np.random.default_rng([seed, epoch]).permutation(len(self._counts))
            own = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
            found = groups, np.cumsum(self._counts[groups]), own
            self._epochs = {**dict(list(self._epochs.items())[-3:]), (seed, epoch): found}
        return found
