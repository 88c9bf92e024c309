"""Retrieval on COCO (5,000 test images) and Flickr30k (1,000), five captions each, for any job:

    python -m mcd_jax.evaluate --workdir=runs/x --evals=configs/evals/retrieval.py:coco=/data/coco,flickr30k=/data/flickr30k

Each folder holds the images and Karpathy's table, as published: coco/dataset_coco.json with coco/val2014/*.jpg, and
flickr30k/dataset_flickr30k.json with flickr30k/*.jpg (or flickr30k_images=/elsewhere). Also split (default test) and read.
"""
import os

from configs.evals import zeroshot


def get_evals(arguments=""):
    args = zeroshot.parse(arguments, coco="", coco_images="", flickr30k="", flickr30k_images="", split="test", read="params")
    found = {}
    for name in ("coco", "flickr30k"):
        if args[name]:
            table = os.path.join(os.path.abspath(args[name]), f"dataset_{name}.json")
            source = dict(name="karpathy", path=args[f"{name}_images"] or args[name], table=table, split=args["split"])
            found[name] = dict(source=source, texts="all", read=args["read"])
    if not found:
        raise ValueError("configs/evals/retrieval.py: give coco=FOLDER, flickr30k=FOLDER or both")
    return dict(retrieval=found)
