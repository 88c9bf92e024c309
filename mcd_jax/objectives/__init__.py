"""One short file per method. `make(config)` gives an `Objective`; everything else does not know which method it is running."""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Objective(NamedTuple):
    """A method: a forward pass, a bag of named loss terms, and a rule for its memory.

    `params` is what the optimizer may touch. `memory` is everything else that persists (a teacher, a queue, a frozen tower): saved
    and sharded alike, never differentiated. Both are nested dicts of arrays; so is a batch, flat, with the views as its keys.
    """
    needs: tuple        # the batch keys that forward reads
    init: Callable      # (key, batch) -> params
    start: Callable     # (key, params, batch) -> memory; runs after parameters were loaded
    forward: Callable   # (params, memory, batch, key, step) -> out, a dict of arrays; out["keep"] is handed to remember
    terms: Mapping      # name -> fn(out) -> f32 (); weighted, summed, differentiated
    metrics: Mapping    # name -> fn(out) -> f32 (); logged
    heads: Mapping      # name -> fn(params, memory, batch) -> dict of arrays, for evaluation and export; "embed" is required
    remember: Callable  # (memory, params, keep, step) -> memory, after the update
    parts: Any = None   # of forward, where methods that are composed may share them (`pair.Parts`); None: it stands alone


def nothing(*_):
    """The memory of a method that has none."""
    return {}


def unchanged(memory, *_):
    """The memory rule of a method whose memory never changes."""
    return memory
