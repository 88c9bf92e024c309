"""Universal retrieval: images, texts and both together (fused) ask for images, texts and both together.

What an instance may say is KEYS.

R@k is UniIR's (src/common/mbeir_retriever.py): the share of queries with any relevant candidate among the k nearest by cosine.
Candidates that tie with the nearest relevant one count as nearer, so a collapsed network scores 0, wherever the relevant one stands
in a list. There are two pools: in "local" all candidates have the wanted modality (or are those that the benchmark names for the
task or the query); in "global" all modalities are mixed, and relevant is still only what has the wanted one. Where one query asks
for each of three modalities, its three figures at k = 1 add up to at most 1. A global pool no larger than the local is left out.

Figures: <pool>/<query>_to_<candidate>/R@k, as in global/text_to_fused/R@10, with chance_R@k, queries and candidates, and
<pool>/mean/R@k over these (nine where both sides have all three modalities); of several tasks <pool>/<task>/... "missing" image
files and "bad" examples (a corrupt image) neither ask nor answer; their numbers are given when there are any.
"""
import math

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals import benchmarks, entries, rows, search
from mcd_jax.evals.benchmarks import MODALITIES

KEYS = {
    "benchmark": Key("benchmark", NEEDED, "who asks, what can be found, what is relevant"),
    "views": Key("map of str", {}, "pipes of image and text (which reads the column text); left out: as in training, without "
                 "randomness"),
    "fuse": Key("str | None", "raw_sum", "how an image and a text become one embedding where the head has none: raw_sum | "
                "unit_sum"),
    "ks": Key("tuple", (1, 5, 10), "the k of R@k"),
    "search": Key("str | None", None, "faiss | exact (numpy); left out: faiss where it is installed"),
}


def chance(matches, sizes, ks):
    """{"chance_R@k": R@k of a random order} of queries with `matches` relevant ones among `sizes` candidates, (Q,) ints."""
    pairs, weights = np.unique(np.stack([matches, sizes]), axis=1, return_counts=True)
    miss = {k: [math.comb(n - m, k) / math.comb(n, k) if k <= n else 0.0 for m, n in pairs.T.tolist()] for k in ks}
    return {f"chance_R@{k}": float(1.0 - np.average(miss[k], weights=weights)) for k in ks}


class Pool:
    """Some of the candidates, ready to be searched.

    Attributes:
      members: (n,) int, increasing places among all candidates.
    """

    def __init__(self, candidates, members, backend):
        """candidates: (N, D) float32 unit embeddings of all; backend: of `search`."""
        self.members, self._where = members, np.full(len(candidates), -1, np.int64)
        self._where[members] = np.arange(len(members))
        self._index = search.Index(candidates if len(members) == len(candidates) else candidates[members], backend)

    def figures(self, queries, relevant, ks, excluded=None, own=None):
        """R@k, chance and sizes.

        Args:
          queries: (Q, D) float32 unit embeddings.
          relevant: for each query an int array of places among all candidates; excluded, own: the same or None, see `search.ranks`.
        """
        relevant, excluded, own = map(self._inside, (relevant, excluded, own))
        rank = search.ranks(queries, self._index, relevant, max(ks), excluded, own)
        sizes = np.full(len(queries), len(self.members)) if own is None else np.array([len(some) for some in own])
        matches = np.array([len(some) for some in relevant])
        return {**{f"R@{k}": float(np.mean(rank <= k)) for k in ks}, **chance(matches, sizes, ks), "queries": float(len(queries)),
                "candidates": float(np.mean(sizes))}

    def _inside(self, lists):
        return None if lists is None else [self._where[some][self._where[some] >= 0] for some in lists]


class Candidates:
    """The candidates of a benchmark with their embeddings; see `search`."""

    def __init__(self, listed, vectors, usable, backend=None):
        """listed: list of N `Entry`; vectors: (N, D) float32 unit embeddings; usable: (N,) bool; backend: of `search`."""
        self._place = {entry.id: i for i, entry in enumerate(listed)}
        self._modality = np.array([MODALITIES.index(entry.modality) for entry in listed])
        self._vectors, self._usable, self._backend, self._all = vectors, usable, backend, None

    def search(self, task, queries, asks, ks):
        """The figures of one task.

        Args:
          task: `Task`. queries: (Q, D) float32 unit embeddings; asks: (Q,) bool: those that can be used. ks: of R@k.

        Returns:
          {"local": {"<query>_to_<candidate>": {figure: value}}, "global": ...} for the combinations of modalities that occur.
        """
        relevant, excluded, own = map(self._places, (task.relevant, task.excluded, task.pools))
        whole, pools, found = np.flatnonzero(self._usable), {}, {}
        for asked in MODALITIES:
            for wanted, modality in enumerate(MODALITIES):
                right = [ids[self._modality[ids] == wanted] for ids in relevant]
                some = [i for i, query in enumerate(task.queries) if query.modality == asked and asks[i] and len(right[i])]
                if not some:
                    continue
                pick = {"relevant": [right[i] for i in some], "excluded": excluded and [excluded[i] for i in some]}
                if own is not None:
                    pool = self._whole(whole, "exact")
                    pick["own"] = [own[i] for i in some]
                    pick["relevant"] = [np.intersect1d(*both) for both in zip(pick["relevant"], pick["own"])]
                else:
                    key = wanted if task.local is None else "local"
                    if key not in pools:
                        named = whole[self._modality[whole] == wanted] if task.local is None else self._places([task.local])[0]
                        pools[key] = Pool(self._vectors, np.sort(named), self._backend)
                    pool = pools[key]
                found.setdefault("local", {})[f"{asked}_to_{modality}"] = pool.figures(queries[some], ks=ks, **pick)
                if len(pool.members) < len(whole):
                    figures = self._whole(whole, self._backend).figures(queries[some], ks=ks, **pick)
                    found.setdefault("global", {})[f"{asked}_to_{modality}"] = figures
        return found

    def _whole(self, whole, backend):
        self._all = self._all or Pool(self._vectors, whole, backend)
        return self._all

    def _places(self, lists):
        """Lists of ids as int arrays of places, without those that are unknown or can't be used; None of None."""
        if lists is None:
            return None
        arrays = (np.array([self._place[i] for i in dict.fromkeys(ids) if i in self._place], np.int64) for ids in lists)
        return [own[self._usable[own]] for own in arrays]


def means(found, benchmark):
    """{pool: {figure: mean}} over all groups of {pool: {task: {group: {figure: value}}}}, and the benchmark's own averages."""
    result = {}
    for pool, tasks in found.items():
        groups = [figures for own in tasks.values() for figures in own.values()]
        if len(groups) > 1 and benchmark.mean:
            result[pool] = {name: float(np.mean([figures[name] for figures in groups])) for name in groups[0] if "R@" in name}
        for name, ks in (benchmark.averages or {}).get(pool, {}).items():
            values = [figures.get(f"R@{ks[task]}") for task, own in tasks.items() for figures in own.values()]
            if None not in values:
                result.setdefault(pool, {})[name] = float(np.mean(values))
    return result


def make(config, name):
    """fn(embed, state) -> the figures of the module docstring; `config`: see there."""
    instance = f"universal.{name}"
    mode, ks, backend = config.get("fuse") or entries.FUSIONS[0], tuple(config.get("ks", (1, 5, 10))), config.get("search")
    if mode not in entries.FUSIONS:
        raise ValueError(f"config.evals.{instance}.fuse={mode!r} must be one of {', '.join(entries.FUSIONS)}")
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"config.evals.{instance}.ks={ks!r} must be numbers of candidates, each at least 1")
    try:
        search.backend(backend)
    except ValueError as error:
        raise ValueError(f"config.evals.{instance}.{error}") from error
    views = {"both": rows.pick(config["views"], ["image", "text"], instance),
             **{key: rows.pick(config["views"], [key], instance) for key in ("image", "text")}}
    if views["text"].columns != ["text"]:
        raise ValueError(f"config.evals.{instance}.views.text must read the column text alone, "
                         f"not {', '.join(views['text'].columns)}")
    benchmark, size = benchmarks.open(config["benchmark"]), config.get("batch_size", 256)

    def evaluate(embed, state):
        everything = [*benchmark.candidates, *(query for task in benchmark.tasks for query in task.queries)]
        encoder = entries.Encoder(embed, state, benchmark.images, everything, views, mode, size)
        candidates, found, flat = Candidates(benchmark.candidates, *encoder(benchmark.candidates), backend), {}, {}
        for task in benchmark.tasks:
            for pool, groups in candidates.search(task, *encoder(task.queries), ks).items():
                found.setdefault(pool, {})[task.name] = groups
                path = "/".join(filter(None, (pool, task.name)))
                flat |= {f"{path}/{group}/{figure}": value for group, own in groups.items() for figure, value in own.items()}
        if not flat:
            raise ValueError(f"config.evals.{instance}: no query is left that a usable candidate answers")
        flat |= {f"{pool}/mean/{figure}": value for pool, own in means(found, benchmark).items() for figure, value in own.items()}
        return flat | {key: float(number) for key, number in (("missing", benchmark.missing), ("bad", encoder.bad)) if number}

    return evaluate
