"""Universal retrieval, for any job: the embedded set's nine-way table, or the published benchmarks where a folder is given.

    mcd-jax evaluate --workdir=runs/x --evals=universal
    mcd-jax evaluate --workdir=runs/x --evals=universal:caption=de,fuse=unit_sum
    mcd-jax evaluate --workdir=runs/x --evals=universal:mbeir=/data/M-BEIR,tasks=mscoco_task0,cirr_task7

Embedded set: the drawing of an emoji by one vendor and its English label ask for its drawing by another and another text, its
English tags joined (or caption=de, its label in another language). Concepts whose tags are the label and nothing else, and flags,
whose tags say "flag", take no part: no image file and no concept's text is on both sides, though tags share words with labels.

heldout_asks      openmoji, whose drawings no config trains on, asks for drawings by google (seen=...) of the training concepts
heldout_found     google asks for openmoji's drawings of the training concepts
heldout_concepts  openmoji asks for drawings by google of the test concepts, of which nothing was seen, among those of all concepts

In the first two, what google drew was seen in training with these very texts: a label finds google's drawing by memory, so only
heldout_found tells of text to image, and only heldout_asks of image to text.

mbeir     folder of M-BEIR; tasks=mscoco_task0,cirr_task7,... (default: all 16), union=no leaves the global pool out
mmeb      folder of MMEB's parquet files, with mmeb_images=FOLDER and subsets=CIRR,NIGHTS,... (default: the 12 of retrieval)
covr      folder of frames, with covr_table=FILE.csv
Also weights_from, fuse (raw_sum, unit_sum), search (faiss, exact), instructions=yes. R@50 is added for M-BEIR and CoVR.
"""
from mcd_jax.configs.evals import zeroshot

from mcd_jax.evals.benchmarks import mmeb

HELD_OUT = "openmoji"
PARTS = ("train", "validation", "test")


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, seen="google", caption="tags", mbeir="", tasks=(), union="yes",
                          mmeb="", mmeb_images="", subsets=mmeb.SUBSETS, covr="", covr_table="", weights_from="params",
                          fuse="raw_sum",
                          search="", instructions="no")
    common = dict(weights_from=args["weights_from"], fuse=args["fuse"], search=args["search"] or None)
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
        found = {name: dict(benchmark=emoji(args["caption"], *vendors, part), **common) for name, vendors, part in (
            ("heldout_asks", (HELD_OUT, args["seen"]), "train"), ("heldout_found", (args["seen"], HELD_OUT), "train"),
            ("heldout_concepts", (HELD_OUT, args["seen"]), "test"))}
    return dict(universal=found)


def emoji(caption, asking, found, part):
    """Drawings by `asking` with labels, and by `found` with another text; the concepts of `part` ask."""
    tags = caption == "tags"
    text = dict(captions=("tags",)) if tags else dict(captions=("label",), languages=(caption,))
    return dict(name="pairs", match="concept_id", join=", " if tags else None, where=dict(flag=[False]) if tags else None,
                queries=dict(name="emoji", split=_split(asking), vendors=(asking,), captions=("label",)),
                candidates=dict(name="emoji", split=_split(found), vendors=(found,), **text), asks=dict(concept_split=part))


def _split(vendor):
    return "+".join(f"{vendor}_{part}" if vendor == HELD_OUT else part for part in PARTS)
