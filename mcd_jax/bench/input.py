"""What the input pipeline costs: `python -m mcd_jax.bench.input [--pixels=64 --batch_size=256 ...]` prints one JSON line.

Rates are items per second of one core's CPU time, by stage, on the embedded data set and SLIP's two recipes (other
sources and views by flags). `total` is examples per second of wall time as the training loop would get them.
"""
import argparse
import json
import os
import time

from mcd_jax.data import sources, tokenizers
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

_RECIPES = {"image": "decode|crop({pixels},0.5)",
            "augmented": "decode|crop({pixels},0.08)|jitter(.4,.4,.4,.1,p=.8)|gray(.2)|blur(.5)|flip"}


def rate(work, count, seconds):
    """Items per CPU second of `work(i)`, i = 0, 1, ... modulo `count`, over about `seconds`."""
    work(0)
    done, start, clock = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - clock < seconds or done == 0:
        work(done % count)
        done += 1
    return done / max(time.process_time() - start, 1e-9)


def stages(source, views, tokenizer, batch_size, seconds):
    """{stage: items per second and core} for reading, decoding, each view of a decoded image, tokens, batches."""
    count = min(len(source), 512)
    examples = [source[i] for i in range(count)]
    result = {"read": rate(lambda i: source[i], len(source), seconds)}
    decode = Views({"image": "decode"})
    draws = decode.draws(0, range(count))["image"]
    result["decode"] = rate(lambda i: decode(dict(examples[i]), {"image": draws[i]}), count, seconds)
    decoded = [dict(example) for example in examples]
    for name, spec in views.items():
        view = Views({name: spec})
        numbers = view.draws(0, range(count))[name]
        for example in decoded:
            view(example, {name: numbers[0]})  # decodes
        finish = (lambda look: look.drawn()) if name in view.images else (lambda array: array)
        result[name] = rate(lambda i: finish(view(decoded[i], {name: numbers[i]})[name]), count, seconds)
    encode = tokenizers.make(tokenizer)
    texts = [f"{i} caption of about eight words" for i in range(20_000)]  # none is remembered
    result["tokenize"] = rate(lambda i: encode.encode([texts[i]], 16), len(texts), seconds)
    for cache in (False, True):
        data = Pipeline(source, Views(views), 0, batch_size, cache=cache)
        for step in range(-(-len(source) // batch_size) if cache else 1):
            data.batch(step)
        key = "batch_cached" if cache else "batch"
        result[key] = batch_size * rate(data.batch, 1_000_000, seconds)
    return result


def total(source, views, batch_size, workers, seconds):
    """Examples per second of wall time from `workers` threads."""
    data = Pipeline(source, Views(views), 0, batch_size, workers=workers)
    batches = data.iterate(0)
    next(batches)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or done == 0:
        next(batches)
        done += 1
    wall = time.perf_counter() - start
    data.close()
    return done * batch_size / wall


def main(argv=None):
    """Prints the JSON line and returns it as a dict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="name of the source")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pixels", type=int, default=64, help="side of the views")
    parser.add_argument("--view", action="append", default=[], metavar="NAME=PIPE", help="further view; repeatable")
    parser.add_argument("--tokenizer", default="emoji")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="threads to measure")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure")
    options = parser.parse_args(argv)
    source = sources.open({"name": options.source, "split": options.split})
    views = {name: spec.format(pixels=options.pixels) for name, spec in _RECIPES.items()}
    views |= {"text": f"caption|tokenize(16,{options.tokenizer!r})"} | dict(v.split("=", 1) for v in options.view)
    line = {"bench": "input", "source": options.source, "examples": len(source), "pixels": options.pixels,
            "batch_size": options.batch_size, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    measured = stages(source, views, options.tokenizer, options.batch_size, options.seconds)
    line["per_second_per_core"] = {stage: round(value) for stage, value in measured.items()}
    line["total"] = {f"{workers}_workers": round(total(source, views, options.batch_size, workers, options.seconds))
                     for workers in options.workers}
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main()
