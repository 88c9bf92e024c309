"""M-BEIR (Wei et al., UniIR, ECCV 2024) as published: huggingface.co/datasets/TIGER-Lab/M-BEIR (see mcd_jax.evals.benchmarks).

    dict(name="mbeir", path="/data/M-BEIR", tasks=("mscoco_task0", "cirr_task7"))      default: the 16 of the benchmark

  path          the folder with query/, cand_pool/, qrels/, instructions/ and mbeir_images/
  tasks         names of the publishing repository: data set and task id
  union         the global pool too: cand_pool/global/mbeir_union_<split>_cand_pool.jsonl, 5.6 million candidates (default True)
  instructions  False (default), or True: queries begin with the instruction for their data set, modality and the wanted modality
  split         "test" (default) or "val"

Files of a task: query/<split>/mbeir_<task>_<split>.jsonl, cand_pool/local/mbeir_<task>_cand_pool.jsonl (MSCOCO has one for each
split), qrels/<split>/mbeir_<task>_<split>_qrels.txt with "qid 0 did relevance task"; ids are "dataset:row". Relevance 0 is none.
Texts are written as UniIR writes them (first letter large, a full stop at the end). UniIR draws an instruction at random for each
query; here query number n of a file takes instruction n modulo their number, so that figures can be repeated.
"""
import os

from mcd_jax.config.keys import NEEDED, Key
from mcd_jax.evals.benchmarks import Benchmark, Entry, Files, Task, check, file, json_lines

KEYS = {
    "path": Key("str", NEEDED, "the folder with query/, cand_pool/, qrels/, instructions/ and mbeir_images/"),
    "tasks": Key("tuple | None", None, "names of the publishing repository: data set and task id; left out: the 16 of the "
                 "benchmark"),
    "union": Key("bool", True, "the global pool too, 5.6 million candidates"),
    "instructions": Key("bool", False, "queries begin with the instruction for their data set"),
    "split": Key("str", "test", "test | val"),
}

TASKS = ("visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "edis_task2", "webqa_task2", "visualnews_task3",
         "mscoco_task3", "fashion200k_task3", "nights_task4", "oven_task6", "infoseek_task6", "fashioniq_task7", "cirr_task7",
         "oven_task8", "infoseek_task8")
MODALITY = {"image": "image", "text": "text", "image,text": "fused", "text,image": "fused"}
_SPLIT_POOLS = ("mscoco",)              # data sets with a local pool for each split
_TEN = ("fashion200k", "fashioniq")     # judged at 10 candidates of the local pool where the others are at 5


def make(spec):
    """The benchmark of dict(name="mbeir", ...), see the module.

    Raises:
      ValueError: an unknown key or task, a malformed line, a query without relevant candidates, a path that leaves the folder.
      FileNotFoundError: a file of the benchmark, or every image.
    """
    check(spec, KEYS)
    images, split = Files(spec["path"]), spec.get("split", "test")
    root, names = os.path.realpath(spec["path"]), tuple(spec.get("tasks") or TASKS)
    for name in names:
        if name not in TASKS:
            raise ValueError(f"benchmark.tasks: {name!r} is none of {', '.join(TASKS)}")
    prompts = _instructions(file(root, "instructions/query_instructions.tsv")) if spec.get("instructions") else None
    candidates, locals_ = {}, {}
    for name in names:
        pool = f"{name}_{split}" if name.startswith(_SPLIT_POOLS) else name
        locals_[name] = _pool(file(root, f"cand_pool/local/mbeir_{pool}_cand_pool.jsonl"), images, candidates)
    if spec.get("union", True):
        _pool(file(root, f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"), images, candidates)
    tasks = []
    for name in names:
        relevant = qrels(file(root, f"qrels/{split}/mbeir_{name}_{split}_qrels.txt"))
        path = file(root, f"query/{split}/mbeir_{name}_{split}.jsonl")
        queries = _queries(path, images, candidates, relevant, prompts)
        tasks.append(Task(name, queries, [relevant[query.id] for query in queries], local=locals_[name]))
    images.check()
    average = {name: 10 if name.startswith(_TEN) else 5 for name in names}
    return Benchmark(images, list(candidates.values()), tasks, len(images.missing), averages={"local": {"R@5|10": average}})


def qrels(path):
    """{qid: tuple of dids of relevance above 0} of a qrels file.

    Raises:
      ValueError: a line without five fields, or a relevance that is no integer.
    """
    found = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) != 5 or not fields[3].lstrip("-").isdigit():
                raise ValueError(f"{path}, line {number} is not 'qid 0 did relevance task' but {line.strip()[:60]!r}")
            if int(fields[3]) > 0:
                found.setdefault(fields[0], []).append(fields[2])
    return {qid: tuple(dict.fromkeys(dids)) for qid, dids in found.items()}


def written(text):
    """A text as UniIR writes it: trimmed, without quotes around it, first letter large, a full stop unless it ends with . ? !"""
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def _modality(value, place):
    if value not in MODALITY:
        raise ValueError(f"{place}: modality {value!r} is none of {', '.join(MODALITY)}")
    return MODALITY[value]


def _pool(path, images, candidates):
    """Adds the candidates of a pool file to {did: Entry}; returns their dids."""
    ids = []
    for row in json_lines(path, ("did", "modality")):
        ids.append(row["did"])
        if row["did"] not in candidates:
            place = f"{path}, {row['did']}"
            rows = (images.add(row["img_path"], place),) if row.get("img_path") else ()
            candidates[row["did"]] = Entry(row["did"], _modality(row["modality"], place), rows, written(row.get("txt")))
    return ids


def _queries(path, images, candidates, relevant, prompts):
    queries = []
    for number, row in enumerate(json_lines(path, ("qid", "query_modality"))):
        qid, place = row["qid"], f"{path}, {row['qid']}"
        text = row.get("query_txt") or ""
        if qid not in relevant:
            raise ValueError(f"{place}: the qrels have no relevant candidate for it")
        if prompts is not None:
            wanted = next((candidates[did].modality for did in relevant[qid] if did in candidates), "")
            modality = _modality(row["query_modality"], place)
            choice = prompts.get((qid.partition(":")[0], modality, wanted))
            if wanted and not choice:
                raise ValueError(f"{place}: no instruction for data set {qid.partition(':')[0]}, {modality} to {wanted}")
            text = f"{written(choice[number % len(choice)])} {text}" if choice else text
        rows = (images.add(row["query_img_path"], place),) if row.get("query_img_path") else ()
        queries.append(Entry(qid, _modality(row["query_modality"], place), rows, written(text)))
    return queries


def _instructions(path):
    """{(data set's id, query modality, wanted modality): list of instructions} of query_instructions.tsv."""
    found = {}
    with open(path, encoding="utf-8") as lines:
        next(lines, None)   # the header
        for number, line in enumerate(lines, 2):
            fields = line.strip().split("\t")
            if len(fields) < 5:
                raise ValueError(f"{path}, line {number} is not 'query_modality cand_modality dataset_name dataset_id prompt_1 ..' "
                                 f"but {line.strip()[:60]!r}")
            place = f"{path}, line {number}"
            key = (fields[3], _modality(fields[0], place), _modality(fields[1], place))
            found[key] = [prompt for prompt in fields[4:] if prompt]
    return found
