"""MMEB's retrieval sets (Jiang et al., VLM2Vec, ICLR 2025) as published (see mcd_jax.evals.benchmarks).

    dict(name="mmeb", path="/data/MMEB_Test_Instruct", subset="CIRR", images="/data/MMEB")

  path          folder with <subset>/test-*.parquet: huggingface.co/datasets/ziyjiang/MMEB_Test_Instruct, or TIGER-Lab/MMEB-eval
  images        folder that image paths start from (image-tasks of TIGER-Lab/MMEB-V2, or images.zip of MMEB-eval)
  subset        one of SUBSETS, the twelve of retrieval, or another
  instructions  False (default), or True: the columns qry_inst and, for candidates with an image, tgt_inst stand before the texts.
                MMEB-eval has no such columns: its texts hold the instructions, which can't be taken out

Columns: qry_text and qry_img_path (str), tgt_text and tgt_img_path (lists of the same length, "" for none): the candidates of this
query alone, the right one first. The mark <|image_1|>, for models that read images as tokens, is left out. Two candidates with the
same text and image are one, as in the publishing repository (which in text-to-image sets goes by the image alone).
"""
import glob
import os

import pyarrow.parquet as pq

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals.benchmarks import Benchmark, Entry, Files, Task, check

KEYS = {
    "path": Key("str", NEEDED, "folder with <subset>/test-*.parquet"),
    "subset": Key("str", NEEDED, "such as CIRR"),
    "images": Key("str", NEEDED, "folder that image paths start from"),
    "instructions": Key("bool", False, "stand before the texts"),
}

SUBSETS = ("VisDial", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "Wiki-SS-NQ", "WebQA", "EDIS", "NIGHTS",
           "CIRR", "FashionIQ", "OVEN")
COLUMNS = ("qry_inst", "qry_text", "qry_img_path", "tgt_inst", "tgt_text", "tgt_img_path")
MARK = "<|image_1|>"


def make(spec):
    """The benchmark of dict(name="mmeb", ...), see the module.

    Raises:
      ValueError: an unknown key, a missing column, lists of different lengths, a path that leaves the folder.
      FileNotFoundError: no file of the subset, or every image.
    """
    check(spec, KEYS)
    images, pattern = Files(spec["images"]), os.path.join(spec["path"], spec["subset"], "test-*.parquet")
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"benchmark: no file fits {pattern}")
    candidates, queries, relevant, pools = {}, [], [], []
    for path in paths:
        for number, row in enumerate(_rows(path)):
            place = f"{path}, row {number}"
            texts, names = row["tgt_text"], row.get("tgt_img_path")
            names = names or [""] * len(texts)
            if not texts or len(texts) != len(names):
                raise ValueError(f"{place} has {len(texts)} tgt_text and {len(names)} tgt_img_path: a list of candidates has as "
                                 "many of both, and at least one")
            ids = []
            for text, name in zip(texts, names):
                before = row.get("tgt_inst") if spec.get("instructions") and name else ""
                entry = _entry("", before, text, name, images, place)
                entry = candidates.setdefault(entry[1:], entry._replace(id=str(len(candidates))))
                ids.append(entry.id)
            before = row.get("qry_inst") if spec.get("instructions") else ""
            queries.append(_entry(str(len(queries)), before, row["qry_text"], row.get("qry_img_path"), images, place))
            relevant.append(ids[:1])
            pools.append(list(dict.fromkeys(ids)))
    images.check()
    return Benchmark(images, list(candidates.values()), [Task("", queries, relevant, pools=pools)], len(images.missing), mean=False)


def _rows(path):
    stored = pq.ParquetFile(path)
    present = stored.schema_arrow.names
    lacking = [name for name in ("qry_text", "tgt_text") if name not in present]
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(present)}")
    for batch in stored.iter_batches(64, columns=[name for name in COLUMNS if name in present]):
        yield from batch.to_pylist()


def _entry(key, instruction, text, name, images, place):
    text = " ".join(part.replace(MARK, "").strip() for part in (instruction or "", text or "")).strip()
    rows = (images.add(name, place),) if name else ()
    if not rows and not text:
        raise ValueError(f"{place}: a query or candidate with neither text nor image")
    return Entry(key, ("fused" if text else "image") if rows else "text", rows, text)
