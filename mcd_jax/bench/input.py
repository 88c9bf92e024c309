"""What the input pipeline costs: `python -m mcd_jax.bench.input [--sources emoji 500x375 ...] [--peers]` prints JSON lines.

A line for each source: the embedded data set at 64 pixels, and photo-like JPEGs of 500x375 and 1000x750 pixels at 224, made
from a seed and written to a temporary folder. Its figures:
  per_second_per_core   items per second of one core's CPU time, by stage: read (the encoded bytes), decode (all pixels), each
                        view from the bytes, each augmentation from decoded pixels, tokenize, batch (everything)
  overhead              share of that CPU time which is neither decoding nor augmentation: reading, views, draws, batches, grain;
                        for one view cropped as open_clip does, the cheapest there is (JPEGs only)
  total                 examples per second of wall time as the training loop gets them, from so many threads, or from so many
                        worker processes with a thread each
Where the machine is busy, the shares and ratios hold better than the rates.

--peers runs beside open_clip, torchvision and PIL (see `peers.py`), in the environment of `make test-peers`:
    .venv-peers/bin/python -m mcd_jax.bench.input --peers
"""
import contextlib
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from mcd_jax import command
from mcd_jax.bench import photos
from mcd_jax.bench.overhead import overhead
from mcd_jax.bench.recipes import TWO, views_at
from mcd_jax.data import decode, pipeline, sources, tokenizers
from mcd_jax.data.ops import image_ops
from mcd_jax.data.ops.augmented import Augmented
from mcd_jax.data.views import Views


def cost(work, seconds, least=1):
    """Seconds of CPU time (all threads of this process) for a call work(i), i = 0, 1, ..., over about `seconds`."""
    work(0)
    done, start, clock = 0, time.process_time(), time.perf_counter()
    while done < least or time.perf_counter() - clock < seconds:
        work(done)
        done += 1
    return max(time.process_time() - start, 1e-9) / done


def stages(source, views, pixels, tokenizer, batch_size, seconds):
    """{stage: items per second and core}; see the module's docstring."""
    count = min(len(source), 256)
    stored = [source[i] for i in range(count)]
    result = {"read": cost(lambda i: source[i % len(source)], seconds)}
    result["decode"] = cost(lambda i: decode.decode(stored[i % count]["image"]), seconds)
    for name, spec in views.items():
        view = Views({name: spec})
        numbers = view.draws(0, range(count))[name]
        finish = (lambda augmented: augmented.drawn()) if name in view.images else (lambda array: array)
        result[name] = cost(lambda i: finish(view(dict(stored[i % count]), {name: numbers[i % count]})[name]), seconds)
    crop = image_ops.crop(pixels, 0.5)
    random = np.random.default_rng(0).random((count, crop.draws)).tolist()
    decoded = [(decode.decode(row["image"]), decode.size(row["image"]) if decode.is_jpeg(row["image"]) else None)
               for row in stored[:32]]
    cut = lambda i: crop.run(Augmented(*decoded[i % len(decoded)]), random[i % count])
    result["crop"] = cost(cut, seconds)
    cuts = [cut(i).pixels for i in range(len(decoded))]
    for name, op in (("flip", image_ops.flip(1.0)), ("jitter", image_ops.jitter(0.4, 0.4, 0.4, 0.1, p=1.0)),
                     ("gray", image_ops.gray(1.0)),
                     ("blur", image_ops.blur(1.0))):
        draw = lambda i: [0.0, *random[i % count][:op.draws - 1]]
        result[name] = cost(lambda i: op.run(Augmented(cuts[i % len(cuts)]), draw(i)).drawn(), seconds)
    encode = tokenizers.make(tokenizer)
    result["tokenize"] = cost(lambda i: encode.encode([f"{i} caption of about eight words"], 16), seconds)  # none comes twice
    for cache in (False, True):
        data = pipeline.Pipeline(source, Views(views), 0, batch_size, cache=cache)
        for step in range(-(-len(source) // batch_size) if cache else 0):
            data.batch(step)
        result["batch_cached" if cache else "batch"] = cost(data.batch, seconds) / batch_size
    return {stage: 1 / value for stage, value in result.items()}


def total(spec, views, batch_size, workers, processes, seconds):
    """Examples per second of wall time as the training loop gets them, after the batches that are made ahead."""
    data = pipeline.make({"source": spec, "views": views, "workers": workers, "processes": processes, "prefetch": 2}, 0, batch_size)
    batches = data.iterate(0)
    for _ in range(4):
        next(batches)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or done < 4:
        next(batches)
        done += 1
    wall = time.perf_counter() - start
    data.close()
    return done * batch_size / wall


@contextlib.contextmanager
def opened(name, count):
    """(source spec, side of the views, tokenizer, {what there is to say about it}) of the embedded data or of photos of a size."""
    if name not in photos.SIZES:
        yield {"name": name, "split": "train"}, 64, "emoji", {}
        return
    with tempfile.TemporaryDirectory() as folder:
        mean = photos.write(folder, name, count)
        spec = {"name": "array_record", "path": str(pathlib.Path(folder) / "photos.array_record")}
        yield spec, 224, "clip", {"folder": folder, "kilobytes": round(mean / 1000, 1)}


def main(argv=None):
    """Prints the JSON lines and returns them as a list of dicts."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("--sources", nargs="+", default=["emoji", *photos.SIZES], choices=["emoji", *photos.SIZES])
    parser.add_argument("--pixels", type=command.whole(0), default=0,
                        help="side of the views; 0: 64 or 224, as the source suggests")
    parser.add_argument("--view", action="append", default=[], metavar="NAME=PIPE", help="further view; repeatable")
    parser.add_argument("--batch_size", type=command.whole(1), default=64)
    parser.add_argument("--workers", type=command.whole(0), nargs="+", default=[0, 1, 2], help="numbers of threads to measure")
    parser.add_argument("--processes", type=command.whole(0), nargs="*", default=[1, 2],
                        help="numbers of worker processes to measure")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure")
    parser.add_argument("--photos", type=command.whole(1), default=128, help="how many are made of each size")
    parser.add_argument("--peers", action="store_true", help="beside open_clip, torchvision and PIL, on photos only")
    parser.add_argument("--rounds", type=command.whole(1), default=5, help="of turns with the peers")
    options = parser.parse_args(argv)
    lines = []
    for name in options.sources:
        if options.peers and name not in photos.SIZES:
            continue
        with opened(name, options.photos) as (spec, pixels, tokenizer, about):
            source = sources.open(spec)
            pixels, folder = options.pixels or pixels, about.pop("folder", None)
            line = {"bench": "input", "source": name, "examples": len(source), **about, "pixels": pixels,
                    "batch_size": options.batch_size, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
            if options.peers:
                from mcd_jax.bench import peers

                line |= peers.compare(folder, pixels, options.batch_size, options.rounds)
            else:
                views = views_at(pixels, TWO) | {"text": f"caption|tokenize(16,{tokenizer!r})"}
                views |= dict(v.split("=", 1) for v in options.view)
                measured = stages(source, views, pixels, tokenizer, options.batch_size, options.seconds)
                line["per_second_per_core"] = {stage: round(value) for stage, value in measured.items()}
                if name in photos.SIZES:
                    line["overhead"] = round(overhead(source, pixels, options.batch_size, options.seconds), 3)
                ways = {f"{n}_threads": (n, 0) for n in options.workers} | {f"{n}_processes": (1, n) for n in options.processes}
                line["total"] = {name: round(total(spec, views, options.batch_size, *way, 4 * options.seconds))
                                 for name, way in ways.items()}
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
