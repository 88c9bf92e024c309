"""Packed hash codes against float embeddings: time, size and what recall it costs, over the same items. One JSON line.

python -m mcd_jax.methods.hashing.bench [--items=1000000] [--dim=512] [--bits=64,128,256] [--queries=64] [--threads=1]      # needs
faiss

Items are made, not real: rows of 64 hidden numbers, turned into `dim` and with a little noise of their own, made unit; a query is
an item with as much noise again, so that it has a right answer. Codes are signs of a random rotation (`hashing_eval.rotated`), so
what is lost is what codes without any training lose. Float search is faiss's IndexFlatIP, codes are searched by IndexBinaryFlat,
both exact, for 10 neighbours of all queries in one call; the time is the best of `repeats` calls, by turns. Of each code length:

  speed, size     how many times as fast and as small as float; cpu_speed by the CPU time of all threads, which other work on the
                  machine disturbs less
  recall@1        share of queries whose item is first; `float_recall@1` beside it
  recall@10       share whose item is among the first 10
  kept@10         share of float's 10 nearest that are among the 10 of the codes
  reranked@1      recall@1 when the 100 nearest by code are put in order by their float embeddings, and `reranked_speed`
"""
import json
import time

import numpy as np

from mcd_jax import command
from mcd_jax.evals import hamming
from mcd_jax.methods.hashing import hashing_eval

HIDDEN, NOISE, OWN = 64, 0.6, 0.3
_BLOCK = 65536


def made(items, dim, queries, seed=0):
    """Unit float32 items (n, dim), queries (q, dim), and the item of each query (q,)."""
    rng = np.random.default_rng(seed)
    turn = rng.standard_normal((HIDDEN, dim), np.float32) / np.sqrt(HIDDEN, dtype=np.float32)
    x = np.empty((items, dim), np.float32)
    for start in range(0, items, _BLOCK):
        size = min(_BLOCK, items - start)
        x[start:start + size] = rng.standard_normal((size, HIDDEN), np.float32) @ turn
        x[start:start + size] += np.float32(OWN) * rng.standard_normal((size, dim), np.float32)
        x[start:start + size] /= np.linalg.norm(x[start:start + size], axis=1, keepdims=True)
    right = rng.choice(items, queries, replace=False)
    q = x[right] + np.float32(NOISE / np.sqrt(dim)) * rng.standard_normal((queries, dim), np.float32)
    q += np.float32(NOISE / np.sqrt(HIDDEN)) * rng.standard_normal((queries, HIDDEN), np.float32) @ turn / np.sqrt(dim / HIDDEN)
    return x, (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32), right


def measure(items, dim, bits, queries, repeats=3, threads=1):
    """The figures as a dict, see the module."""
    import faiss

    faiss.omp_set_num_threads(threads)
    x, q, right = made(items, dim, queries)
    flat = faiss.IndexFlatIP(dim)
    flat.add(x)
    packed = {}
    for k in bits:
        sample = x[:_BLOCK]
        packed[k] = np.concatenate([hamming.pack(hashing_eval.rotated(x[s:s + _BLOCK], sample, k)) for s in range(0, items,
                                                                                                                  _BLOCK)])
    codes = {k: hamming.pack(hashing_eval.rotated(q, x[:_BLOCK], k)) for k in bits}
    indices = {k: hamming.Index(packed[k], "faiss") for k in bits}
    searches = {"float": lambda: flat.search(q, 10)[1]}
    for k in bits:
        searches[k] = lambda k=k: indices[k].search(codes[k], 10)[1]
        searches[k, "reranked"] = lambda k=k: reranked(x, q, indices[k].search(codes[k], 100)[1])
    seconds, cpu, found = {}, {}, {}
    for _ in range(repeats):
        for name, search in searches.items():
            start, used = time.perf_counter(), time.process_time()
            found[name] = search()
            cpu[name] = min(cpu.get(name, np.inf), time.process_time() - used)
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)

    def recall(name, n):
        return round(float(np.mean((found[name][:, :n] == right[:, None]).any(axis=1))), 4)

    line = {"items": items, "dim": dim, "queries": queries, "threads": threads, "float_bytes": x.nbytes,
            "float_ms_per_query": round(1e3 * seconds["float"] / queries, 3),
            "float_recall@1": recall("float", 1), "float_recall@10": recall("float", 10), "codes": {}}
    for k in bits:
        kept = [len(np.intersect1d(a, b)) for a, b in zip(found["float"], found[k])]
        line["codes"][k] = {
            "bytes": packed[k].nbytes, "size": round(x.nbytes / packed[k].nbytes, 1),
            "ms_per_query": round(1e3 * seconds[k] / queries, 3), "speed": round(seconds["float"] / seconds[k], 1),
            "cpu_speed": round(cpu["float"] / cpu[k], 1),
            "recall@1": recall(k, 1), "recall@10": recall(k, 10), "kept@10": round(float(np.mean(kept)) / 10, 4),
            "reranked@1": recall((k, "reranked"), 1), "reranked_speed": round(seconds["float"] / seconds[k, "reranked"], 1)}
    return line


def reranked(x, q, near):
    """Rows `near` (Q, n) of x, in the order of their inner products with q."""
    scores = np.einsum("qd,qnd->qn", q, x[near])
    return np.take_along_axis(near, np.argsort(-scores, axis=1, kind="stable"), axis=1)


def main(args=None):
    parser = command.Parser(prog="python -m mcd_jax.methods.hashing.bench", description=command.summary(__doc__))
    parser.add_argument("--items", type=command.whole(1), default=1_000_000)
    parser.add_argument("--dim", type=command.whole(1), default=512)
    parser.add_argument("--bits", default="64,128,256")
    parser.add_argument("--queries", type=command.whole(1), default=64)
    parser.add_argument("--threads", type=command.whole(1), default=1)
    parser.add_argument("--repeats", type=command.whole(1), default=3)
    args = parser.parse_args(args)
    try:
        hamming.backend("faiss")
        bits = [int(k) for k in args.bits.split(",")]
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(measure(args.items, args.dim, bits, args.queries, args.repeats, args.threads)), flush=True)


if __name__ == "__main__":
    main()
