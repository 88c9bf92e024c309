"""What a method is: `make(config)` of its module gives an `Objective`; everything else does not know which method it is running."""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Tree = Mapping[str, Any]   # nested dicts of arrays


class Objective(NamedTuple):
    """A method: a forward pass, a bag of named loss terms, and a rule for its memory.

    `params` is what the optimizer may touch. `memory` is everything else that persists (a teacher, a queue, a frozen tower): saved
    and sharded alike, never differentiated. Both are nested dicts of arrays; so is a batch, flat, with the views as its keys.
    """
    needs: tuple[str, ...]              # the batch keys that forward reads
    init: Callable[..., Tree]           # (key, batch) -> params
    init_memory: Callable[..., Tree]    # (key, params, batch) -> memory; runs after parameters were loaded
    forward: Callable[..., Tree]        # (params, memory, batch, key, step) -> out; out["for_memory"] is handed to update_memory
    terms: Mapping[str, Callable]       # name -> fn(out) -> f32 (), or a `two_tower.Term`; weighted, summed, differentiated
    metrics: Mapping[str, Callable]     # name -> fn(out) -> f32 (); logged
    heads: Mapping[str, Callable]       # name -> fn(params, memory, batch) -> dict of arrays, for evaluation and export; "embed"
                                        # is required
    update_memory: Callable[..., Tree]  # (memory, params, for_memory, step) -> memory, after the update
    parts: Any = None                   # of forward, where methods that are composed may share them (`two_tower.ForwardPass`);
                                        # None: it stands alone
    behind: tuple[str, ...] = ()        # modalities whose embeddings are those of a head behind the tower: "embed" gives these, and
                                        # exports, which have towers alone, refuse the run
    pooled: bool = True                 # whether a term trains what "embed" gives; else its tokens alone are compared, by the head
                                        # "token_wise", and exports refuse the run


def apart(key: jax.Array, number: int = 0) -> jax.Array:
    """A key beside those that `key` is split into: `split` gives what `fold_in` gives for 0, 1, 2 ..., the same numbers again."""
    return jax.random.fold_in(key, 2 ** 29 + number)


def nothing(*_) -> Tree:
    """The memory of a method that has none."""
    return {}


def unchanged(memory: Tree, *_) -> Tree:
    """The memory rule of a method whose memory never changes."""
    return memory
