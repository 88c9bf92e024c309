"""The leaves of a state by their paths: their table as a manifest keeps it, what differs between two, and their checksum."""
from collections.abc import Mapping, Sequence
import hashlib
import math
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from mcd_jax.run import fingerprint


class MismatchError(ValueError):
    """The checkpoint is whole, but it isn't the state of this config."""


def table(tree: Any) -> dict[str, list]:
    """{path: [shape, dtype name]} of a tree of arrays or shapes."""
    return {path: [list(x.shape), str(x.dtype)] for path, x in fingerprint.flat(tree).items()}


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree together, over all of their shards."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in fingerprint.flat(tree).values())


def without(regexes: Sequence[str], saved: Mapping, abstract: Any, part: str, path: Any) -> tuple[dict, Any]:
    """`saved` and `abstract` without the leaves of `part` whose path in it one of the regexes matches, which each of them must.

    Raises:
      MismatchError: a regex that matches nothing.
    """
    names = {k: k.removeprefix(f"{part}/") for k in saved.keys() | table({part: abstract}).keys()}
    for regex in regexes:
        if not any(re.fullmatch(regex, name) for name in names.values()):
            raise MismatchError(f"config.init_fresh: {regex!r} matches no parameter of {path} or of this config")
    return {k: v for k, v in saved.items() if not any(re.fullmatch(r, names[k]) for r in regexes)}, _without(abstract, regexes)


def _without(tree, regexes, path=""):
    """A nested dict without the leaves whose path one of the regexes matches, and without what is empty then."""
    kept = {k: _without(v, regexes, f"{path}{k}/") if isinstance(v, dict) else v for k, v in tree.items()
            if isinstance(v, dict) or not any(re.fullmatch(regex, path + k) for regex in regexes)}
    return {k: v for k, v in kept.items() if v != {}}


def compare(saved: Mapping, wanted: Mapping, path: Any, part: str) -> None:
    """Compares two tables.

    Raises:
      MismatchError: they differ; the sentence names the first leaf with both shapes, and what to do.
    """
    wrong = [k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k)]
    if wrong:
        wrong.sort(key=lambda k: (not k.startswith("params/"), k))
        was, now = (f"{t[wrong[0]][1]} {tuple(t[wrong[0]][0])}" if wrong[0] in t else "absent" for t in (saved, wanted))
        raise MismatchError(f"{wrong[0]} is {was} in the checkpoint {path} and {now} in this config{more(len(wrong))}: "
                            f"{_advice(wrong[0], saved, wanted, part)}")


def _advice(leaf, saved, wanted, part):
    if not part:
        return "go on with the config of that run (its config.json), or choose another --workdir"
    if leaf == "params/image/position" and leaf in saved and leaf in wanted and saved[leaf][0][-1] == wanted[leaf][0][-1]:
        return ("the images are of another size: make the view as large as that run's, or interpolate its position embeddings: "
                "`mcd-jax convert export --to=open_clip`, then `mcd-jax convert import --from=open_clip --image_size=...`")
    return "name what is not to be loaded in config.init_fresh, or make the model that of the run"


def more(count: int) -> str:
    """" (and 3 more)" of four, "" of one."""
    return f" (and {count - 1} more)" if count > 1 else ""


def checksum(params: Any) -> str:
    """sha256 (hex) over the sorted paths, dtypes, shapes and bytes of a tree of arrays, wherever its shards are."""
    digest = hashlib.sha256()
    for path, x in sorted(fingerprint.flat(params).items()):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        whole = x.is_fully_addressable if isinstance(x, jax.Array) else True
        x = np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))
        digest.update(f"{path} {x.dtype} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
