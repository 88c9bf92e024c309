"""WebVid-CoVR (Ventura et al., CoVR, AAAI 2024): video and text ask for a video (see mcd_jax.evals.benchmarks).

    dict(name="covr", path="/data/WebVid/frames", table="/data/webvid8m-covr_test.csv")

  path   folder of frames: <path>/<pth>/ with the frames of a video, all of them, in the order of their names' numbers; or one image
         file <path>/<pth>.jpg (or another ending), which is then the video's only frame
  table  the published csv file, of which pth1 (reference video), pth2 (target video) and edit (modification text) are read
  clean  edit as the publishing repository prepares it: small letters, no punctuation, at most 30 words (default True)

The query is the middle frame of the reference video with the modification text, fused; a target is the mean of 15 frames' unit
embeddings, each from the middle of one of 15 equal parts. As published, a target that is the query's own reference video can't be
found (its score is -10): figures of the task "", and once more with such targets left in, those of the task "ss". No video is
decoded here: frames come from ffmpeg or the like.
"""
import itertools
import os
import re

import numpy as np

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.data.sources.image_folder import ENDINGS
from mcd_jax.data.sources.tables import read_table
from mcd_jax.evals.benchmarks import MISSING, Benchmark, Entry, Files, Task, check, file

KEYS = {
    "path": Key("str", NEEDED, "folder of frames"),
    "table": Key("str", NEEDED, "the published csv file"),
    "clean": Key("bool", True, "the modification text as the publishing repository prepares it"),
}

FRAMES, WORDS = 15, 30


def make(spec):
    """The benchmark of dict(name="covr", ...), see the module.

    Raises:
      ValueError: an unknown key, a missing column, a target video that comes twice, a path that leaves the folder.
      FileNotFoundError: the table, or every frame.
    """
    check(spec, KEYS)
    images, path = Files(spec["path"]), file(spec["path"], spec["table"])
    rows = read_table(path)
    lacking = [name for name in ("pth1", "pth2", "edit") if not rows or name not in rows[0]]
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(lacking)}" + (f"; it has {', '.join(rows[0])}" if rows else ""))
    targets = [row["pth2"] for row in rows]
    if len(set(targets)) < len(targets):
        raise ValueError(f"{path}: {len(targets) - len(set(targets))} target videos come twice; a test table has one row for each")
    queries, candidates = [], []
    for number, row in enumerate(rows):
        reference, target = (_frames(row[name], images, f"{path}, row {number + 1}") for name in ("pth1", "pth2"))
        text = row["edit"].decode("utf-8", "replace") if isinstance(row["edit"], bytes) else row["edit"]
        text = cleaned(text) if spec.get("clean", True) else text
        queries.append(Entry(str(number), "fused", (reference[len(reference) // 2],), text))
        candidates.append(Entry(row["pth2"], "image", tuple(target[i] for i in sampled(len(target)))))
    images.check()
    excluded = [(row["pth1"],) for row in rows]
    relevant = [(target,) for target in targets]
    tasks = [Task("", queries, relevant, excluded=excluded), Task("ss", queries, relevant)]
    return Benchmark(images, candidates, tasks, len(images.missing), mean=False)


def sampled(count, frames=FRAMES):
    """Which of `count` frames stand for a video: the middle of each of min(frames, count) equal parts, borders and middles rounded
    down: list of int."""
    borders = np.linspace(0, count, min(frames, count) + 1).astype(int).tolist()
    return [(start + end - 1) // 2 for start, end in itertools.pairwise(borders)]


def cleaned(text, words=WORDS):
    """A modification text as the publishing repository prepares it."""
    text = re.sub(r"\s{2,}", " ", re.sub(r"([.!\"()*#:;~])", " ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:words])


def _frames(name, images, place):
    """Rows of a video's frames in order; (MISSING,) where there are none."""
    folder = images.inside(name, place)
    if os.path.isdir(folder):
        names = [entry for entry in os.listdir(folder) if entry.lower().endswith(ENDINGS) and not entry.startswith(".")]
        names.sort(key=lambda entry: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", entry)])
        if names:
            return [images.add(os.path.join(name, entry), place) for entry in names]
    for ending in ENDINGS:
        if os.path.isfile(images.inside(name + ending, place)):
            return [images.add(name + ending, place)]
    images.missing.add(name)
    return [MISSING]
