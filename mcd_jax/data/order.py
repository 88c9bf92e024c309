"""The order of examples: an endless stream of positions in which every epoch is a fresh permutation of the source.

A source may have an order of its own: `source.draw(seed, epoch, place)` is then the index of the example at a place of an
epoch, a pure function of the three, and `source.examples` the number of places of an epoch.
"""
import functools

from grain.experimental import index_shuffle
import numpy as np

_TABLE = 2 ** 20  # up to here an epoch's order is a table; above, a cipher of the place (slow for small sources)


def size(source):
    """The number of places of an epoch."""
    return source.examples if hasattr(source, "draw") else len(source)


def draw(source, seed, position):
    """The index of the example at `position` >= 0 of the endless stream: pure in (seed, position)."""
    epoch, place = divmod(position, size(source))
    if hasattr(source, "draw"):
        return source.draw(seed, epoch, place)
    return shuffled(seed, epoch, place, len(source))


def shuffled(seed, epoch, place, count):
    """Where `place` of [0, count) goes in the permutation that belongs to (seed, epoch)."""
    if count <= _TABLE:
        return int(_permutation(seed, epoch, count)[place])
    return _cipher(_epoch_seed(seed, epoch), place, count)


def _cipher(seed, place, count):
    top = count - 1
    if top.bit_length() % 2 and top & (top - 1) == 0:  # at a power of 4 grain gives one index twice and one never:
        top += 1                                       # take one place more, and pass it over
    while (place := index_shuffle(place, max_index=top, seed=seed, rounds=4)) >= count:
        pass
    return place


@functools.lru_cache(maxsize=32)
def _permutation(seed, epoch, count):
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


@functools.lru_cache(maxsize=256)
def _epoch_seed(seed, epoch):
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
