"""Universal retrieval, for any job: the embedded set's nine-way table, or the published benchmarks where a folder is given.

    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/universal.py
    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/universal.py:queries=google,candidates=openmoji,caption=de
    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/universal.py:mbeir=/data/M-BEIR,tasks=mscoco_task0,cirr_task7

Embedded set: an emoji by one vendor (queries=openmoji, whose drawings no config trains on) and its English label ask for the
drawing by another (candidates=google) and another text: its English tags (caption=tags, joined) or its label in another language
(caption=de). Concepts whose tags are the label and nothing else, and flags, whose tags say "flag", take no part: neither an image
file nor the text of a concept is on both sides. heldout_vendor asks about the training concepts: google's drawings and the tags
were seen with these very labels, so text to image, text and fused is partly memory. heldout_concepts asks about the test concepts,
of which nothing was seen, among all candidates.

mbeir     folder of M-BEIR; tasks=mscoco_task0,cirr_task7,... (default: all 16), union=no leaves the global pool out
mmeb      folder of MMEB's parquet files, with mmeb_images=FOLDER and subsets=CIRR,NIGHTS,... (default: the 12 of retrieval)
covr      folder of frames, with covr_table=FILE.csv
Also read, fuse (raw_sum, unit_sum), search (faiss, exact), instructions=yes. R@50 is added for M-BEIR and CoVR.
"""
from configs.evals import zeroshot
from mcd_jax.data.benchmarks import mmeb

HELD_OUT = "openmoji"
PARTS = ("train", "validation", "test")


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, queries=HELD_OUT, candidates="google", caption="tags", mbeir="", tasks=(), union="yes",
                          mmeb="", mmeb_images="", subsets=mmeb.SUBSETS, covr="", covr_table="", read="params", fuse="raw_sum",
                          search="", instructions="no")
    common = dict(read=args["read"], fuse=args["fuse"], search=args["search"] or None)
    instructions, found = args["instructions"] == "yes", {}
    if args["mbeir"]:
        spec = dict(name="mbeir", path=args["mbeir"], tasks=args["tasks"], union=args["union"] == "yes", instructions=instructions)
        found["mbeir"] = dict(benchmark=spec, ks=(1, 5, 10, 50), **common)
    for subset in args["subsets"] if args["mmeb"] else ():
        spec = dict(name="mmeb", path=args["mmeb"], subset=subset, images=args["mmeb_images"], instructions=instructions)
        found[f"mmeb_{subset}"] = dict(benchmark=spec, ks=(1,), **common)
    if args["covr"]:
        found["covr"] = dict(benchmark=dict(name="covr", path=args["covr"], table=args["covr_table"]), ks=(1, 5, 10, 50), **common)
    if not found:
        found = {name: dict(benchmark=emoji(part, args), **common)
                 for name, part in (("heldout_vendor", "train"), ("heldout_concepts", "test"))}
    return dict(universal=found)


def emoji(part, args):
    """Pairs of drawings and texts of the embedded set; the concepts of `part` ask."""
    tags = args["caption"] == "tags"
    text = dict(captions=("tags",)) if tags else dict(captions=("label",), languages=(args["caption"],))
    return dict(name="pairs", match="concept_id", join=", " if tags else None, where=dict(flag=[False]) if tags else None,
                queries=dict(name="emoji", split=_split(args["queries"]), vendors=(args["queries"],), captions=("label",)),
                candidates=dict(name="emoji", split=_split(args["candidates"]), vendors=(args["candidates"],), **text),
                asks=dict(concept_split=part))


def _split(vendor):
    return "+".join(f"{vendor}_{part}" if vendor == HELD_OUT else part for part in PARTS)
