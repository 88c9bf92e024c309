"""Several sources as one, by weight (see mcd_jax.data.sources):

    dict(name="mixture", sources=dict(cc3m=dict(name="webdataset", ...), yfcc=dict(name="parquet", ...)),
         weights=dict(cc3m=1, yfcc=3))

Weights are shares of the examples seen. The parts stand in the order of their names, whatever the order in the config.
"""
from collections.abc import Mapping
import fractions
import functools
import itertools
import math
import zlib

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import order, sources
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources.columns import ROLES, check_spec, position

KEYS = {
    "sources": Key("map of source", NEEDED, "name of your own -> a source"),
    "weights": Key("dict", {}, "the same names -> share of the examples seen"),
    "examples": Key("int | None", None, "examples of an epoch; left out: so many that no source comes round twice"),
}
_TRIES = 1000  # bad examples in a row after which a part, not an example, is to blame
_LOOK = 8  # good examples of a part whose columns are taken together


def make(spec):
    """The mixture that a spec describes.

    spec: sources, {name: spec of a source}; weights, {name: positive number} (default: the numbers of examples, so that
      every example is seen equally often); examples, the number of places E of an epoch.

    An epoch ends, unless `examples` says otherwise, when every example was seen at least once: E is the largest
    len / share of any part, and that part is seen exactly once. Each part takes its share of the E places, rounded by
    largest remainder. Any run of consecutive places holds each part's share to within the number of parts, so a batch
    does too.

    Each part has a stream of its own, in which each of its own epochs is a fresh permutation; its places of one epoch
    after another walk along that stream. So no example of a part comes a second time before all others of the part came,
    also when the mixture's epoch ends halfway.

    Raises:
      ValueError: weights that do not name exactly the parts or are not positive numbers, a part without examples, a part
        whose share of E is no whole example, or what a part's own spec gets wrong, with its name.
      FileNotFoundError: a file of a part does not exist.
    """
    if dict(spec.get("columns") or {}):
        raise ValueError("data.source.columns: a mixture has none; set columns of each of its sources")
    check_spec(spec, KEYS)
    specs = _mapping(spec["sources"], "sources", "the specs of the sources that are mixed")
    parts = {}
    for name in sorted(specs):
        where = f"data.source.sources.{name}"
        if "/" in name:
            raise ValueError(f"{where}: a name may not hold a slash, which ends it in the key of an example")
        _mapping(specs[name], f"sources.{name}", "the spec of a source, dict(name=..., ...)")
        try:
            parts[name] = sources.open(specs[name])
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{where}: {error}") from error
    return Mixture(parts, spec.get("weights"), spec.get("examples"))


class Mixture:
    """See `make`. Indices are those of the parts one after another.

    Attributes:
      examples: places of an epoch, E.
      counts: {name: how many of them the part takes}.

    An example has the columns that are found among the first examples of every part (None where it lacks one), key
    "<name>/<key in the part>", and the name of its part as column "source".
    """

    def __init__(self, parts, weights=None, examples=None):
        self._names, self._parts = sorted(parts), [parts[name] for name in sorted(parts)]
        shares = _shares(parts, weights)
        sizes = {name: order.size(part) for name, part in parts.items()}
        if examples is None:
            examples = max(math.ceil(sizes[name] / shares[name]) for name in parts)
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise ValueError(f"data.source.examples={examples!r} must be a positive integer or None")
        self.examples, self.counts = examples, _largest_remainder(shares, examples)
        for name, count in self.counts.items():
            if not count:
                raise ValueError(f"data.source.weights.{name}: its share of the {examples:,} examples of an epoch, "
                                 f"{float(shares[name]):.3g}, is less than one example; raise it or data.source.examples")
        self._ends = list(itertools.accumulate(map(len, self._parts)))
        columns = [_columns(name, parts[name]) for name in self._names]
        for role in ROLES:
            lacking = [name for name, found in zip(self._names, columns) if role not in found]
            if 0 < len(lacking) < len(parts):
                raise ValueError(f"data.source.sources.{lacking[0]}: its examples have no {role}, as those of other sources do; "
                                 f"they have {', '.join(map(str, columns[self._names.index(lacking[0])]))}")
        self._columns = [name for name in columns[0] if all(name in other for other in columns)]

    def __len__(self):
        return self._ends[-1]

    def __getitem__(self, index):
        number, inside = self._find(index)
        name = self._names[number]
        try:
            row = self._parts[number][inside]
        except Bad as bad:
            raise Bad(bad.cause, f"{name}: {bad.detail}") from bad
        return {**{column: row.get(column) for column in self._columns},
                "key": f"{name}/{row.get('key', inside)}", "source": name}

    def next(self, index):
        """The index after `index` in the same part, cyclically: what stands in for a bad example."""
        number, inside = self._find(index)
        part = self._parts[number]
        after = part.next(inside) if hasattr(part, "next") else (inside + 1) % len(part)
        return self._ends[number] - len(part) + after

    def draw(self, seed, epoch, place):
        """The index of the example at `place` of `epoch`: pure in (seed, epoch, place).

        Which part: of y places the first part takes floor(y * its count / all counts), the others share the rest in the
        same way. So counts are exact over an epoch, and even within it.
        """
        left = self.examples
        for number, name in enumerate(self._names):
            count = self.counts[name]
            before, after = place * count // left, (place + 1) * count // left
            if after > before:
                part = self._parts[number]
                inside = order.draw(part, _seed(seed, name), epoch * count + before)
                return self._ends[number] - len(part) + inside
            place, left = place - before, left - count
        raise IndexError(f"an epoch of the mixture has {self.examples} places")

    def _find(self, index):
        index = position(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - self._ends[number] + len(self._parts[number])


@functools.lru_cache(maxsize=1024)
def _seed(seed, name):
    """The seed of a part's own stream."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0])


def _mapping(value, key, what):
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"data.source.{key} must be {what}, not {value!r}")
    return value


def _shares(parts, weights):
    """{name: Fraction}, sum 1, in the order of names. Weights are taken as they are written: 0.1 is a tenth."""
    weights = _mapping({name: len(part) for name, part in parts.items()} if weights is None else weights,
                       "weights", "{name of a source: positive number}")
    if set(weights) != set(parts):
        raise ValueError(f"data.source.weights names {', '.join(sorted(weights))}; it must name each of the sources, "
                         f"{', '.join(sorted(parts))}, and nothing else")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"data.source.weights.{name}={weight!r} must be a positive number; "
                             "to leave a source out, take it out of data.source.sources")
    exact = {name: fractions.Fraction(str(weights[name])) for name in sorted(weights)}
    return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def _largest_remainder(shares, total):
    counts = {name: math.floor(share * total) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: counts[name] - shares[name] * total)
    for name in by_rest[:total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _columns(name, part):
    """The columns of the first good examples of a part, in the order in which they come."""
    found, good, last = {}, 0, None
    for index in range(min(len(part), _TRIES)):
        try:
            found |= dict.fromkeys(part[index].keys())
        except Bad as bad:
            last = bad
            continue
        good += 1
        if good == _LOOK:
            break
    if not good:
        raise ValueError(f"data.source.sources.{name}: its first {min(len(part), _TRIES)} examples are all bad, the last: {last}")
    return found
