"""Damages stored examples and reads them through the pipeline: `python tests/fuzzing.py KIND,KIND COUNT START FOLDER`.

Case n is a function of (kind, n). It prints one JSON line: {"kind", "case", "what", "outcome", "rows": {outcome: count},
"memory", "descriptors", "threads"}, with "wrong" if a rule is broken. Run as a process of its own (by tests/test_fuzz.py), so that
a crash or a hang of a C library is seen as one: SIGALRM ends a case that takes longer than LIMIT seconds, whatever it is in.

The rules. A source opens or refuses with a ValueError or an OSError. What opens gives every example that was not touched, bit for
bit at its place; a touched one comes out as it was, or is replaced by the next good one, or (only where the format has no checksum,
or the damage is older than the shard) differs. Nothing may be raised once it is open, except `Unusable` when every example was hit.
Where an index is made of a shard that is damaged already, examples behind the damage may be left out; the others keep their order.
"""
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import sys

import numpy as np
import shards

from mcd_jax.bench.soak import footprint
from mcd_jax.data import pipeline, sources
from mcd_jax.data.reader import Reader, Unusable
from mcd_jax.data.storage import records
from mcd_jax.data.views import Views

LIMIT = 20
CHECKED = ("array_record", *(("tfrecord",) if records.fast_crc() else ()))  # kinds whose checksums are looked at
VIEWS = {"image": "decode|resize(8)", "text": "caption('first')|tokenize(12)"}


def flip(data, at, size, rng):
    for _ in range(min(size, 30)):
        data[min(at + rng.randrange(40), len(data) - 1)] ^= 1 << rng.randrange(8)


def zero(data, at, size, rng):
    data[at:at + size] = bytes(len(data[at:at + size]))


def scramble(data, at, size, rng):
    data[at:at + size] = rng.randbytes(len(data[at:at + size]))


def truncate(data, at, size, rng):
    del data[at:]


def remove(data, at, size, rng):
    del data[at:at + size]


def duplicate(data, at, size, rng):
    data[at:at] = data[at:at + size]


def insert(data, at, size, rng):
    data[at:at] = rng.randbytes(size)


SAME_LENGTH = (flip, zero, scramble)
MUTATIONS = (*SAME_LENGTH, truncate, remove, duplicate, insert)


def damage(data, rng, lines=False):
    """(damaged bytes, name of the mutation, first byte touched, last byte touched or None if all that follow have moved)."""
    data, before = bytearray(data), bytes(data)
    stored = len(data.rstrip(b"\0")) if rng.random() < 0.9 else len(data)   # most of it not in the zeros that fill a file up
    at, size = rng.randrange(stored) if stored else 0, rng.choice((1, 1, 4, 40, 700))
    mutation = rng.choice(MUTATIONS)
    if data:
        mutation(data, at, size, rng)
    last = min(at + max(size, 40), len(before)) if mutation in SAME_LENGTH else None
    if lines and last is not None and [(i, c) for i, c in enumerate(before[at:last]) if c in b'\n\r"'] != [
            (i, c) for i, c in enumerate(data[at:last]) if c in b'\n\r"']:
        last = None   # a line or a quotation ends elsewhere now; csv has nothing that could tell the reader
    return bytes(data), mutation.__name__, at, last


def spans(folder, rows, group):
    """{file name: [(first byte, end, its examples)]} of everything under `folder`, found by searching for what was stored.

    What lies between the bytes of two examples (headers, paddings, checksums) counts to both.
    """
    result = {}
    for path in (p for p in folder.rglob("*") if p.is_file()):
        data, found = path.read_bytes(), {}
        for i, row in enumerate(rows):
            places = [(p, p + len(x)) for x in (row["image"], row["text"].encode()) if (p := data.find(x)) >= 0]
            if places:
                found.setdefault(i // group, []).extend(places)
        ranges = sorted((min(p for p, _ in places), max(e for _, e in places), g) for g, places in found.items())
        starts, ends = [first for first, _, _ in ranges] + [len(data)], [0] + [end for _, end, _ in ranges]
        result[path.name] = [(ends[k], starts[k + 1] if k + 1 < len(ranges) else len(data), set(range(g * group, (g + 1) * group)))
                             for k, (_, _, g) in enumerate(ranges)]
        if group > 1:   # the file's end tells where the groups are
            result[path.name].append((ends[-1], len(data), set(range(len(rows)))))
    return result


def touched(places, at, last):
    """The examples that a mutation may have changed."""
    hit = [rows for first, end, rows in places if end >= at and (last is None or first <= last)]
    return set().union(*hit)


class Kind:
    """One kind of source, with undamaged examples to compare with."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.rows = shards.rows()
        self.views = Views(VIEWS)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "good").mkdir(parents=True)
        spec = shards.WRITERS[name](folder / "good", self.rows)
        self.spans = spans(folder / "good", self.rows, shards.GROUP.get(name, 1))
        assert set().union(*(rows for places in self.spans.values() for _, _, rows in places)) == set(range(len(self.rows)))
        self.good = next(pipeline.sequential(sources.open(spec), self.views, len(self.rows)))
        assert not self.good["bad"].any()

    def case(self, number):
        """One case, as the line to print."""
        rng = random.Random(f"{self.name} {number}")
        where = self.folder / f"case{number}"
        where.mkdir()
        if rng.random() < 0.7:
            file = sorted(self.spans)[rng.choice((0, -1, rng.randrange(len(self.spans))))]
            spec, hit, what, places = self.damaged_file(where, file, rng)
            result = self.read(spec, hit, exact=self.name in CHECKED, places=places)
        else:
            spec, hit, what = self.damaged_rows(where, rng)
            result = self.read(spec, hit, exact=False)
        shutil.rmtree(where)
        return {"case": number, "what": what, **result}

    def damaged_file(self, where, file, rng):
        """(spec, the examples that may differ, what was done, whether the others must be at their places)."""
        spec, indexed = shards.WRITERS[self.name](where, self.rows), self.name in shards.INDEXED
        early = indexed and rng.random() < 0.5
        if early:
            sources.open(spec)   # the index is older than the damage
        data, name, at, last = damage((where / file).read_bytes(), rng, lines=file.endswith((".csv", ".tsv")))
        times = (where / file).stat()
        (where / file).write_bytes(data)
        if early:   # a disk that rots changes no time; another size makes the index anew
            os.utime(where / file, ns=(times.st_atime_ns, times.st_mtime_ns))
        places = not indexed or (early and len(data) == times.st_size)
        return spec, touched(self.spans[file], at, last), f"{file}/{name}" + "/indexed" * early, places

    def damaged_rows(self, where, rng):
        rows, hit = [dict(row) for row in self.rows], set(rng.sample(range(len(self.rows)), rng.choice((1, 3))))
        column = rng.choice(("image", "text"))
        for i in hit:
            rows[i][column], name, _, _ = damage(shards.encoded(rows[i][column]), rng)
        return shards.WRITERS[self.name](where, rows), hit, f"{column} {name}"

    def read(self, spec, hit, exact, places=True):
        """What came of it; `hit` are the examples that may differ, with `exact` only by being replaced."""
        signal.alarm(LIMIT)
        try:
            source = sources.open(spec)
            Reader(source, self.views)
        except (ValueError, OSError) as error:
            return {"outcome": "refused", "sentence": str(error)[:200]}
        except Exception as error:
            return {"outcome": "raised", "wrong": f"at open: {error!r}"[:400]}
        try:
            batches = list(pipeline.sequential(source, self.views, 7))
        except Unusable:
            return {"outcome": "unusable", **({"wrong": f"only {hit} were hit"} if len(hit) < len(self.rows) else {})}
        except Exception as error:
            return {"outcome": "raised", "wrong": f"in a row: {error!r}"[:400]}
        finally:
            signal.alarm(0)
        batch = {key: np.concatenate([b[key] for b in batches]) for key in VIEWS | {"index": 0, "bad": 0}} if batches else {}
        if not places:
            return {"outcome": "opened", **self.order(batch, hit)}
        outcomes, wrong = collections.Counter(), []
        for i in range(len(self.rows)):
            outcome = self.row(batch, i, hit)
            outcomes[outcome] += 1
            if (outcome != "same" and i not in hit) or (outcome in ("differs", "replaced wrongly") and exact):
                wrong.append(f"example {i} {outcome}, hit were {sorted(hit)}")
        return {"outcome": "opened", "rows": outcomes, **({"wrong": "; ".join(wrong)[:600]} if wrong else {})}

    def order(self, batch, hit):
        """Of a shard whose index left something out: the examples before the damage are all there, the others in their order."""
        found = [i for i, bad in enumerate(batch["bad"]) if not bad] if batch else []
        known = [next((j for j in range(len(self.rows)) if self.same(batch, i, j)), None) for i in found]
        clean = [j for j in known if j is not None]
        strange = len(known) - len(clean)
        wrong = [*["an order of their own"] * (clean != sorted(set(clean))),
                 *[f"{strange} unknown examples"] * (strange > len(hit)),
                 *[f"example {j} is lost" for j in range(min(hit, default=len(self.rows))) if j not in clean]]
        rows = {"same": len(clean), "differs": strange, "missing": len(self.rows) - len(known)}
        return {"rows": rows, **({"wrong": f"{'; '.join(wrong)}, hit were {sorted(hit)}: {known}"} if wrong else {})}

    def same(self, batch, i, j):
        return all(np.array_equal(batch[view][i], self.good[view][j]) for view in VIEWS)

    def row(self, batch, i, hit):
        if not batch or i >= len(batch["index"]):
            return "missing"
        used = int(batch["index"][i])
        if used >= len(self.rows):
            return "differs"
        same = self.same(batch, i, used)
        if not batch["bad"][i]:
            return "same" if same else "differs"
        return "replaced" if same or used in hit else "replaced wrongly"


def main(kinds, count, start, folder):
    """Cases 0 to count - 1 of each kind, one kind after the other, without the first `start` of them all."""
    count = int(count)
    for k, name in enumerate(kinds.split(",")):
        numbers = range(max(0, int(start) - k * count), count)
        kind = Kind(name, pathlib.Path(folder) / name) if numbers else None
        for number in numbers:
            line = kind.case(number)
            print(json.dumps({"kind": name, **line, **footprint()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
