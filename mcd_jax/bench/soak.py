"""Whether the input pipeline leaks: `python -m mcd_jax.bench.soak [--batches=20000 ...]` prints one JSON line. Needs Linux (/proc).

Reads the embedded data set again and again through several views, without the cache, with 2 % of the images broken, some
captions too long and some reads that fail the first time. Memory, descriptors and threads of the process are taken at a tenth
of the batches, when every cache is warm, and at the end.
"""
import json
import os
import pathlib
import tempfile
import time

from mcd_jax import command
from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

_VIEWS = {"image": "decode|crop(32,0.5)",
          "augmented": "decode|crop(32,0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip",
          "text": "caption|tokenize(16,'emoji')", "clip_text": "caption|tokenize(16,'clip')", "label": "column('group')"}


class Worn:
    """A source that has gone through a lot: broken and empty images, endless captions, reads that work the second time only."""

    def __init__(self, source):
        self._source, self._failed = source, set()

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if index % 1000 == 1 and index not in self._failed:
            self._failed.add(index)
            raise OSError("the first read fails")
        row = dict(self._source[index])
        if index % 50 == 2:
            row["image"] = row["image"][:40] if index % 100 == 2 else b""
        if index % 50 == 3:
            row["text"] = f"caption {index} " * 1000
        return row


def footprint():
    """{"memory": resident bytes, "descriptors": open files, "threads": ...} of this process."""
    resident = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"memory": resident, "descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}


def main(argv=None):
    """Prints the JSON line and returns it as a dict."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("--batches", type=command.whole(10), default=20_000)
    parser.add_argument("--batch_size", type=command.whole(1), default=16)
    parser.add_argument("--workers", type=command.whole(1), default=2, help="threads")
    options = parser.parse_args(argv)
    if options.batches < 10:
        parser.error("--batches must be at least 10")
    source = Worn(sources.open({"name": "emoji", "split": "train"}))
    with tempfile.TemporaryDirectory() as folder:
        data = Pipeline(source, Views(_VIEWS), 0, options.batch_size, workers=options.workers,
                        bad_log=pathlib.Path(folder) / "bad_examples.jsonl")
        batches, start = data.iterate(0), time.perf_counter()
        for _ in range(options.batches // 10):
            next(batches)
        early = footprint()
        for _ in range(options.batches - options.batches // 10):
            next(batches)
        late, seconds = footprint(), time.perf_counter() - start
        data.close()
    line = {"bench": "soak", "examples": len(source), "batches": options.batches, "batch_size": options.batch_size,
            "workers": options.workers, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
            "batches_per_sec": round(options.batches / seconds, 1),
            "memory_mib": {"at_10_percent": round(early["memory"] / 2 ** 20, 1), "at_end": round(late["memory"] / 2 ** 20, 1)},
            **{name: {"at_10_percent": early[name], "at_end": late[name]} for name in ("descriptors", "threads")},
            **data.counts()}
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main()
