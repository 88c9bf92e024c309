"""Pictures for the report: what a run's newest checkpoint finds for texts, and what it says of one image under augmentation."""
import base64
import io

import numpy as np
from PIL import Image

from mcd_jax import trained
from mcd_jax.data import pipeline
from mcd_jax.evals import classes as classes_lib
from mcd_jax.evals import embedder as embedder_lib
from mcd_jax.evals import misalignment, retrieval, rows, similarity, zeroshot


class NoImages(Exception):
    """The source of an evaluation isn't there; the message says which."""


def gather(workdir, instance="", queries=8, top=10, images=2, seed=0):
    """Both galleries of a run. Examples are drawn at random with `seed`, never picked.

    Args:
      instance: the retrieval evaluation whose queries and candidates are shown; without it "heldout_vendor", else the first.
      queries, top: texts, and images for each. images: how many are shown under augmentation.

    Returns:
      {"step", "instance", "queries": [{"text", "rank", "candidates", "hits": [{"image", "score", "right", "text"}]}],
       "classes_of": zero-shot instance, "classified": [{"image", "name", "guesses": [{"name", "score", "right"}]}],
       "augmented": [{"text", "image", "rows": [{"kind", "views": [{"level", "image", "r", "y"}]}]}]}; images are data URIs.

    Raises:
      FileNotFoundError: the run has no checkpoint yet. ValueError: it has no such evaluation, or doesn't fit this program.
      NoImages: the images of an evaluation aren't on this machine.
    """
    with trained.opened(workdir) as (run, state, evals):
        chosen = _choose(evals.get("retrieval") or {}, instance or "heldout_vendor", bool(instance))
        found = {"step": int(state.step), "instance": chosen, "queries": [], "augmented": []}
        rng = np.random.default_rng(seed)
        if chosen:
            settings = evals["retrieval"][chosen]
            found["queries"] = texts(_embed(run, settings, state, f"retrieval.{chosen}"), settings, chosen, queries, top, rng)
        chosen = _choose(evals.get("zeroshot") or {}, "")
        if chosen and not found["queries"]:
            settings = evals["zeroshot"][chosen]
            found["classified"] = classified(_embed(run, settings, state, f"zeroshot.{chosen}"), settings, chosen, 2 * queries)
            found["classes_of"] = chosen
        chosen = _choose(evals.get("misalignment") or {}, "heldout_vendor")
        if chosen:
            settings = evals["misalignment"][chosen]
            found["augmented"] = augmented(_embed(run, settings, state, f"misalignment.{chosen}"), settings, chosen, images, rng)
        return found


def _choose(instances, name, must=False):
    trained = [key for key in instances if instances[key].get("weights_from") != "init"]
    if name in trained:
        return name
    if must:
        raise ValueError(f"--gallery={name}: config.evals.retrieval has {', '.join(trained) or 'no instance'}")
    return trained[0] if trained else ""


def _source(settings, names, instance):
    try:
        return rows.open_source(settings["source"], names, instance)
    except (ValueError, OSError) as error:
        raise NoImages(str(error)) from error


def _embed(run, settings, state, instance):
    """The embedding of batches that an instance compares."""
    embed = embedder_lib.on_mesh(run, settings.get("weights_from") or "params", settings.get("batch_size", 256))
    embed = similarity.using(embed, settings.get("similarity", "auto"), instance)
    return lambda _, batch: embed(state, batch)


def texts(embed, settings, name, queries, top, rng):
    """The text gallery: `queries` random texts that ask in retrieval instance `name`, with their `top` images."""
    source = _source(settings, (), f"retrieval.{name}")
    match, where = settings.get("match"), dict(settings.get("queries") or {})
    table = rows.columns(source, {*where, *([match] if match else [])})
    ids = table[match] if match else np.arange(len(source))
    asks = rows.select({**table, "": ids}, where, f"retrieval.{name}")
    views = {key: rows.pick(settings["views"], [key], f"retrieval.{name}") for key in ("image", "text")}
    size = settings.get("batch_size", 256)
    image, good = rows.encode(embed, None, source, views["image"], ["image"], size)
    image, places = similarity.rows_of(image, "image")[good], np.flatnonzero(good)
    _, first = np.unique(ids, return_index=True)
    first = first[asks[first] & np.isin(ids[first], ids[places])]
    chosen = np.sort(rng.choice(first, min(queries, len(first)), replace=False))
    text = similarity.rows_of(rows.encode(embed, None, source, views["text"], ["text"], size, indices=chosen)[0], "text")
    rank = retrieval.ranks(text, image, ids[chosen], ids[places])
    result = []
    for query, scores, place in zip(chosen, similarity.scores(text, image), rank):
        best = np.argsort(-scores, kind="stable")[:top]
        pictures = pixels(source, views["image"], places[best])
        hits = [{"image": uri(picture["image"]), "score": float(scores[j]), "right": bool(ids[places[j]] == ids[query]),
                 "text": caption(source[int(places[j])])} for j, picture in zip(best, pictures)]
        result.append({"text": caption(source[int(query)]), "rank": int(place), "candidates": len(places), "hits": hits})
    return result


def classified(embed, settings, name, images, nearest=3):
    """The gallery of zero-shot instance `name`: at most `images`, evenly spaced, with the `nearest` classes of each.

    Empty where a source gives the names of the classes: they belong to texts of their own.
    """
    if hasattr(settings.get("names", ""), "keys"):
        return []
    given = settings.get("source") or classes_lib.source(settings["set"])
    source = _source({"source": given}, (), f"zeroshot.{name}")
    collect, _ = zeroshot.parts({**settings, "n": images}, name)
    image, classes, rest = collect(embed, None)
    names = list(settings.get("names") or classes_lib.read(settings["set"]).prompted)
    names = [own if isinstance(own, str) else own[0] for own in names]
    labels, places = rest[settings.get("label", "text")], rest[""]["rows"]
    pictures = pixels(source, rows.pick(settings["views"], ["image"], f"zeroshot.{name}"), places)
    return [{"image": uri(picture["image"]), "name": names[label],
             "guesses": [{"name": names[c], "score": float(scores[c]), "right": bool(c == label)}
                         for c in np.argsort(-scores, kind="stable")[:nearest]]}
            for picture, label, scores in zip(pictures, labels.tolist(), zeroshot.scores(image, classes))]


def augmented(embed, settings, name, images, rng):
    """The augmentation gallery: random images of misalignment instance `name` under every kind and level."""
    where, levels = dict(settings.get("where") or {}), list(settings["levels"])
    source = _source(settings, where, f"misalignment.{name}")
    views, count = misalignment.views(settings, f"misalignment.{name}")
    pool = rows.sample(source, where, settings.get("n", 256), f"misalignment.{name}")
    chosen = np.sort(rng.choice(pool, min(images, len(pool)), replace=False))
    result = []
    for index in chosen:
        r, _, y = misalignment.measure(embed, None, source, views, count, 1, [index], settings.get("eps", 1e-6))
        if not len(r):
            continue  # the image can't be read
        picture = pixels(source, views, [index])[0]
        shown = [{"level": levels[i % len(levels)], "image": uri(picture[f"v{i}"]), "r": float(r[0, i]), "y": float(y[0, i])}
                 for i in range(count)]
        kinds = [{"kind": kind, "views": shown[k * len(levels):(k + 1) * len(levels)]} for k, kind in enumerate(settings["kinds"])]
        result.append({"text": caption(source[int(index)]), "image": uri(picture["image"]), "rows": kinds})
    return result


def pixels(source, views, indices):
    """One dict of view arrays per row of `indices`: what the network is shown."""
    batches = pipeline.sequential(source, views, 1, seed=0, indices=indices)
    return [{key: value[0] for key, value in batch.items()} for batch in batches]


def caption(row):
    """The first text of a row, as str; "" where it has none."""
    texts = row["text"] if isinstance(row["text"], (list, tuple)) else [row["text"]]
    text = next((text for text in texts if isinstance(text, (str, bytes))), "")
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def uri(picture):
    """uint8 (H, W, 3) -> a data URI."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
