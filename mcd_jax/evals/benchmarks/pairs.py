"""All nine combinations of {image, text, fused} from two sources of image-text pairs (see mcd_jax.evals.benchmarks).

    dict(name="pairs", match="concept_id", queries=dict(name="emoji", split="openmoji_train", ...),
         candidates=dict(name="emoji", split="train", vendors=("google",), captions=("tags",)), join=", ")

  queries, candidates  source specs, of different images and texts of the same things; of several rows of one thing the first counts
  match   integer column that says which belong together
  join    what stands between a row's captions when they make one text; without it the first caption is taken
  where   {column: value or list}: only rows of both sources with these values take part
  asks    {column: value or list}: only these rows of `queries` ask

Each thing asks as an image, as a text and as both, for its image, its text and both among the candidates. A thing that the
candidates lack does not ask. One whose two texts are the same would be found by them: it takes no part.
"""
import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data import sources
from mcd_jax.data.sources.columns import keep_rows
from mcd_jax.evals.benchmarks import MODALITIES, Benchmark, Entry, Task, check

KEYS = {
    "queries": Key("source", NEEDED, "what asks"),
    "candidates": Key("source", NEEDED, "what can be found"),
    "match": Key("str", NEEDED, "integer column that says which belong together"),
    "join": Key("str | None", None, "what stands between a row's captions when they make one text; left out: the first caption"),
    "where": Key("dict | None", None, "rows of both sources that take part: {column: a value or several}"),
    "asks": Key("dict | None", None, "rows of queries that ask"),
}


class Two:
    """Rows of one source, then rows of another."""

    def __init__(self, first, second):
        self._first, self._second = first, second

    def __len__(self):
        return len(self._first) + len(self._second)

    def __getitem__(self, index):
        return self._first[index] if index < len(self._first) else self._second[index - len(self._first)]


def make(spec):
    """The benchmark of dict(name="pairs", ...), see the module.

    Raises:
      ValueError: an unknown key or column, or nothing is left to ask.
    """
    check(spec, KEYS)
    opened = [sources.open(spec[side]) for side in ("queries", "candidates")]
    where, asks = dict(spec.get("where") or {}), dict(spec.get("asks") or {})
    query, candidate = (_first(source, spec, where, side) for source, side in zip(opened, ("queries", "candidates")))
    same = {thing for thing in query.keys() & candidate.keys() if query[thing][1] == candidate[thing][1]}
    asking = _asking(opened[0], query, asks)
    entries = {"queries": [], "candidates": []}
    for side, rows, offset in (("queries", query, 0), ("candidates", candidate, len(opened[0]))):
        for thing, (row, text) in sorted(rows.items()):
            if thing in same or (side == "queries" and (thing not in candidate or thing not in asking)):
                continue
            for modality in MODALITIES:
                entries[side].append(Entry(f"{modality} {thing}", modality, (offset + row,) if modality != "text" else (),
                                           text if modality != "image" else ""))
    if not entries["queries"]:
        raise ValueError(f"benchmark pairs: no query is left; {len(same)} of {len(query)} have the same text as their candidate")
    relevant = [tuple(f"{modality} {query.id.partition(' ')[2]}" for modality in MODALITIES) for query in entries["queries"]]
    return Benchmark(Two(*opened), entries["candidates"], [Task("", entries["queries"], relevant)])


def _first(source, spec, where, side):
    """{thing: (row, text)} of the first row of each thing that `where` keeps."""
    names = {spec["match"], *where}
    found, table = {}, {name: [] for name in names}
    texts = []
    for row in (source[index] for index in range(len(source))):
        for name in names:
            if name not in row:
                raise ValueError(f"benchmark.{side} has no column {name!r}; it has {', '.join(sorted(row))}")
            table[name].append(row[name])
        captions = [row["text"]] if isinstance(row["text"], (str, bytes)) else list(row["text"])
        captions = [some.decode("utf-8", "replace") if isinstance(some, bytes) else some for some in captions]
        texts.append(spec["join"].join(captions) if spec.get("join") is not None else captions[0])
    keep = keep_rows(table, where, f"benchmark.{side}").tolist() if where else range(len(texts))
    for index in keep:
        found.setdefault(int(table[spec["match"]][index]), (index, texts[index]))
    return found


def _asking(source, query, asks):
    """The things among `query` whose row has the values of `asks`."""
    things = list(query)
    if not asks:
        return set(things)
    rows = [source[query[thing][0]] for thing in things]
    for name in asks:
        if name not in rows[0]:
            raise ValueError(f"benchmark.asks: the queries have no column {name!r}; they have {', '.join(sorted(rows[0]))}")
    kept = keep_rows({name: np.asarray([row[name] for row in rows]) for name in asks}, asks, "benchmark.queries")
    return {things[number] for number in kept}
