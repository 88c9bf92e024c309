"""Retrieval on your own pairs, or on COCO (5,000 test images) and Flickr30k (1,000) with five captions each, for any run:

    mcd-jax evaluate --workdir=runs/x --evals=retrieval:data=/data/my_pairs
    mcd-jax evaluate --workdir=runs/x --evals=retrieval:data=/data/dataset_mine.json,split=test
    mcd-jax evaluate --workdir=runs/x --evals=retrieval:coco=/data/coco,flickr30k=/data/flickr30k

data      your pairs, in any of the forms that docs/your_data.md lists: a table, a folder, shards, a file in Karpathy's format.
          Where the data set keeps a part for validation, that part; else all of it, or with hold_out=0.1 the part by the hash of
          the keys that configs/pairs.py holds out with the same number
images    the folder of the images of a Karpathy file, where it isn't found beside it
image, text, key   columns, where the usual names don't fit
coco, flickr30k    folders that hold the images and Karpathy's table, as published: coco/dataset_coco.json with coco/val2014/*.jpg,
          and flickr30k/dataset_flickr30k.json with flickr30k/*.jpg (or flickr30k_images=/elsewhere)
split     of a file in Karpathy's format: test (default)
weights_from   whose parameters, "params" (default) or "memory/teacher"
"""
import os

from mcd_jax.configs.evals import zeroshot

from mcd_jax.data.detect.detect import detect


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, data="", images="", image="", text="", key="", hold_out="", coco="", coco_images="",
                          flickr30k="", flickr30k_images="", split="test", weights_from="params")
    found = {}
    for name in ("coco", "flickr30k"):
        if args[name]:
            table = os.path.join(os.path.abspath(args[name]), f"dataset_{name}.json")
            source = dict(name="karpathy", path=args[f"{name}_images"] or args[name], table=table, split=args["split"])
            found[name] = dict(source=source, texts="all", weights_from=args["weights_from"])
    if args["data"]:
        found[zeroshot.instance(args["data"])] = dict(**own(args), weights_from=args["weights_from"])
    if not found:
        raise ValueError("retrieval: give coco=FOLDER, flickr30k=FOLDER, or data=PATH of your own pairs")
    return dict(retrieval=found)


def own(args):
    """source and texts of pairs of one's own."""
    if args["images"]:
        source = dict(name="karpathy", path=args["images"], table=os.path.abspath(os.path.expanduser(args["data"])))
        return dict(source=dict(source, split=args["split"]), texts="all")
    found = detect(args["data"], args["image"], args["text"], args["key"])
    if found.classes:
        raise ValueError(f"data={args['data']} holds {found.kind}, no captions: classes are for the evaluations zeroshot and probe")
    source = found.held_out or found.spec
    if source["name"] == "karpathy":
        source = {**found.spec, "split": args["split"], "captions": 5}
    elif args["hold_out"]:
        source = dict(name="hold_out", source=found.spec, part="held_out", share=float(args["hold_out"]))
    return dict(source=source, texts="all" if found.several else "first")
