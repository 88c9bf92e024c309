"""Retrieval benchmarks as plain records: what asks, what can be found, what counts as found. The evaluation reads nothing else.

`open(spec)` takes a mapping whose `name` is the reader:

    dict(name="pairs", queries=<source spec>, candidates=<source spec>, match="concept_id")     any two sources
    dict(name="mbeir", path="/data/M-BEIR", tasks=("mscoco_task0", ...))                        M-BEIR
    dict(name="mmeb", path="/data/MMEB", subset="CIRR", images="/data/MMEB/images")             MMEB
    dict(name="covr", path="/data/WebVid", table="webvid8m-covr_test.csv")                      WebVid-CoVR
    dict(name="my_lab.tasks", ...)                                         a module with make(spec) -> Benchmark

Files that a benchmark names are read only from below its folder, once links are followed.
"""
import builtins
import os
from typing import NamedTuple

from mcd_jax.config.keys import NEEDED
from mcd_jax.data.decode import Bad
from mcd_jax.data.sources import tables
from mcd_jax.data.sources.columns import position
from mcd_jax.plugins import load

MODALITIES = ("image", "text", "fused")
MISSING = -1   # in place of an image's row: its file is not there


class Entry(NamedTuple):
    """A query or a candidate.

    modality is what the benchmark says it is; by an instruction an image query may have a text all the same. images are rows of
    `Benchmark.images` (several: frames of one video, whose embeddings are averaged); text "" is none.
    """
    id: str
    modality: str
    images: tuple = ()
    text: str = ""


class Task(NamedTuple):
    """Queries with what they search for.

    Attributes:
      name: "" for the only task of a benchmark.
      queries: list of Entry.
      relevant: for each query the ids of its relevant candidates, at least one.
      local: ids of the candidates in the task's own pool; None: all candidates of the modality that is wanted.
      pools: for each query the ids of its own candidates; None: all share one pool.
      excluded: for each query the ids of candidates that may not be found (they rank behind all others); None: none.
    """
    name: str
    queries: list
    relevant: list
    local: object = None
    pools: object = None
    excluded: object = None


class Benchmark(NamedTuple):
    """Tasks over one set of candidates.

    Attributes:
      images: source whose rows the entries name.
      candidates: list of Entry with different ids: the global pool.
      tasks: list of Task.
      missing: number of image files that are not there.
      mean: whether the mean over the tasks' figures is of interest.
      averages: {pool: {figure's name: {task: k}}}: further means, of each task's R@k; None: none.
    """
    images: object
    candidates: list
    tasks: list
    missing: int = 0
    mean: bool = True
    averages: object = None


def open(spec):
    """The `Benchmark` of `spec`.

    Raises:
      ValueError: an unknown name or key, a malformed file, a path that leaves its folder, or a query that nothing answers.
      FileNotFoundError: a file or folder that the spec names does not exist, or none of the images does.
    """
    spec = dict(spec)
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"benchmark.name must be pairs, mbeir, mmeb, covr or a module path, not {name!r}")
    benchmark = load("benchmark", name).make(spec)
    known = {entry.id: entry for entry in benchmark.candidates}
    if len(known) < len(benchmark.candidates):
        raise ValueError(f"benchmark {name}: {len(benchmark.candidates) - len(known)} candidates have the id of another")
    for task in benchmark.tasks:
        lost = [query.id for query, ids in zip(task.queries, task.relevant, strict=True) if not any(i in known for i in ids)]
        if lost or not task.queries:
            raise ValueError(f"benchmark {name} {task.name}: {len(lost)} of {len(task.queries)} queries have no relevant candidate "
                             f"in the pool, such as {lost[:1]}: do queries, candidates and relevance belong together?")
    return benchmark


def check(spec, declared):
    """Refuses unknown keys of a reader's spec and missing ones; declared: {key: keys.Key}."""
    for key in spec:
        if key not in ("name", *declared):
            raise ValueError(f"benchmark has no key {key!r} for the {spec['name']} reader; it has {', '.join(declared)}")
    for key in (key for key, own in declared.items() if own.default is NEEDED):
        if not spec.get(key):
            raise ValueError(f"benchmark.{key} is missing: the {spec['name']} reader needs it")


class Files:
    """A source of image files below one folder; `add` names them, rows are numbered in the order of their first naming.

    Attributes:
      missing: names of files that are not there.
    """

    def __init__(self, root):
        """Raises FileNotFoundError: `root` is no folder."""
        self._root = os.path.realpath(root)
        if not os.path.isdir(self._root):
            raise FileNotFoundError(f"benchmark: {root!r} is not a folder")
        self._rows, self._names, self._parents, self.missing = {}, [], {}, set()

    def add(self, name, place):
        """The row of the file `name` (a path below the folder), MISSING where there is no such file.

        Args:
          place: what names it, for messages.

        Raises:
          ValueError: the path leads out of the folder.
        """
        if name not in self._rows:
            if os.path.isfile(self.inside(name, place)):
                self._rows[name] = len(self._names)
                self._names.append(name)
            else:
                self._rows[name] = MISSING
                self.missing.add(name)
        return self._rows[name]

    def inside(self, name, place):
        """The path of `name` below the folder, links followed; raises ValueError where that leaves it."""
        if not isinstance(name, str) or not name or "\0" in name or os.path.isabs(name):
            raise ValueError(f"{place}: {name!r} is no path below {self._root}")
        parent, base = os.path.split(os.path.join(self._root, name))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        path = os.path.join(self._parents[parent], base)
        path = os.path.realpath(path) if base in ("", ".", "..") or os.path.islink(path) else path
        if path != self._root and not path.startswith(os.path.join(self._root, "")):
            raise ValueError(f"{place}: {name!r} leads out of {self._root}")
        return path

    def check(self):
        """Refuses a folder in which not one of the images is."""
        if self.missing and not self._names:
            raise FileNotFoundError(f"none of the {len(self.missing):,} images, such as {min(self.missing)}, is in {self._root}: "
                                    "is that the folder that their paths start from?")

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        name = self._names[position(index, len(self))]
        try:
            with builtins.open(self.inside(name, name), "rb") as file:
                return {"image": file.read(), "key": name}
        except FileNotFoundError as error:
            raise Bad("missing image", name) from error


def file(root, name):
    """The path of a table named by the config, below `root` or absolute.

    Raises:
      FileNotFoundError: there is no such file.
    """
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"benchmark: there is no file {path}")
    return path


def json_lines(path, needed):
    """Yields the objects of a JSON lines file.

    Raises:
      ValueError: a line is no JSON object, or lacks a key of `needed`; the message names file and line.
    """
    with builtins.open(path, encoding="utf-8") as lines:
        for number, row in tables.json_lines(lines, path):
            lacking = [key for key in needed if key not in row]
            if lacking:
                raise ValueError(f"{path}, line {number} has no {', '.join(lacking)}")
            yield row
