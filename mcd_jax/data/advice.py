"""What would help a training that waits for its input: which settings of config.data, on this machine, for this data."""
import os

import numpy as np

from mcd_jax.data import decode

LOOKS = 8   # examples whose images are looked at


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory():
    """Bytes of memory that are free on this machine (Linux; 0 elsewhere)."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def image_sizes(source):
    """(height, width) of the images of some examples, evenly spaced; those that can't be told are left out."""
    found = []
    for index in np.linspace(0, len(source) - 1, LOOKS).astype(int).tolist():
        try:
            data = source[index].get("image")
            found.append(decode.size(data) if isinstance(data, bytes) else data.shape[:2])
        except (decode.Bad, AttributeError, KeyError, OSError, ValueError):
            continue
    return found


def advice(data, examples, sizes, view=0, cores=1, free=0, shares_cores=False):
    """A sentence or more on what would make the input faster, the simplest first.

    Args:
      data: config.data.
      examples: how many there are. sizes: (height, width) of some of their images.
      view: pixels of the side of the largest image view; 0: there is none.
      cores: of this machine. free: bytes of its memory.
      shares_cores: whether the training itself runs on these cores.
    """
    workers, processes, path = data.get("workers", 2), data.get("processes", 0), str(data["source"].get("path", ""))
    threads, tips = workers * max(processes, 1), []
    pixels = examples * 3 * float(np.mean([h * w for h, w in sizes])) if sizes else 0
    if not data.get("cache") and not processes and 0 < pixels < free / 2:
        size = max(1, int(pixels * 1.1 / 2 ** 20) + 1)
        tips.append(f"config.data.cache={size} keeps all {examples:,} decoded images in memory ({size:,} MiB)")
    if threads < cores and (cores <= 12 or processes):
        key, count = ("processes", -(-cores // max(workers, 1))) if processes else ("workers", cores)
        tips.append(f"config.data.{key}={count} uses this machine's {cores} cores (now {threads} thread{'s' * (threads != 1)})")
    elif not processes and cores > 12:
        off = " with config.data.cache=False" if data.get("cache") else ""
        tips.append(f"config.data.processes={-(-cores // max(workers, 1))}{off} reads in processes: threads share one interpreter, "
                    "which ends at about a dozen cores")
    if view and sizes and np.median([min(size) for size in sizes]) >= 2 * view:
        tips.append(f"`mcd-jax pack` stores the images once at a smaller size (now about "
                    f"{' x '.join(str(int(n)) for n in np.median(sizes, axis=0)[::-1])} pixels for views of {view})")
    if "://" in path:
        tips.append("a copy of the data on this machine's disk spares the network")
    if not tips:
        tips.append("its settings leave nothing to gain" + (": the training runs on the same cores" if shares_cores else
                                                            ": it needs more cores or cheaper views"))
    return "; ".join(tips)


def for_pipeline(data, pipeline, shares_cores=False):
    """`advice` for a `pipeline.Pipeline` made of config.data, on this machine."""
    views = [shape[1] for shape, _ in pipeline.shapes.values() if len(shape) == 4]
    return advice(data, pipeline.examples, image_sizes(pipeline.source) if views else [], max(views, default=0), cores(),
                  free_memory(), shares_cores)
