"""Where examples come from: random access to image-text pairs.

A source has `len(source)` and `source[i]`, a dict with at least image (encoded bytes), text (str, bytes or a list of
them) and key (str), plus the other stored columns. Reading is safe from any number of threads. `open` takes the
mapping of `config.data.source`; its `name` says which kind, the other keys are that kind's own:

    dict(name="emoji", split="train")                                        the embedded data set (mcd_jax.data.emoji)
    dict(name="tfds", dataset="coco", split="train[:10%]", columns=...)      prepared by TFDS as array_record
    dict(name="webdataset", path="gs://bucket/cc3m/{00000..00331}.tar")      tar shards, as img2dataset writes them
    dict(name="tfrecord", path="/data/cc3m/*.tfrecord")                      the same as TFRecord
    dict(name="array_record", path="/data/pairs-*.array_record")             files of tf.train.Example records
    dict(name="parquet", path="/data/laion/{00000..00331}.parquet")          img2dataset's and Hugging Face's Parquet files
    dict(name="folder", path="/data/pictures", table="captions.csv")         image files and a csv, tsv, jsonl or COCO table
    dict(name="image_folder", path="/data/food101/test")                     a folder of images for each class
    dict(name="sidecars", path="/data/pictures")                             images with .txt, .caption or .json beside them
    dict(name="karpathy", path="/data/coco", table="dataset_coco.json")      captions of COCO and Flickr30k
    dict(name="hashing", path="/data/flickr25k", protocol="mith_mirflickr25k", ...)   sets as distributed for hashing
    dict(name="embeddings", path="runs/x/train.array_record")                what mcd-jax embed wrote
    dict(name="mixture", sources=dict(a=dict(...), b=dict(...)), weights=dict(a=1, b=3))
    dict(name="hold_out", source=dict(...), part="train", share=0.05)        a part of a source, the other being held out
    dict(name="mosaic", source=dict(...), label="concept_id")                several images of a source on one canvas, with boxes
    dict(name="scenes", objects=(1, 9), named=(1, 3))                        drawings on a background, a caption of some, the truth
    dict(name="questions", split="train")                                    questions about the embedded data set, with answers
    dict(name="vqa", path="/data", tables=("vqa_train.json", "vg_qa.json"))  questions and answers of VQA v2 and Visual Genome
    dict(name="judged", set="snli_ve", path="/data", table="ve_train.json")  SNLI-VE and NLVR2: texts judged on images
    dict(name="my_lab.pairs", ...)                                           a module with make(spec) -> source

`columns=dict(image="jpg", text="caption")` tells which stored column serves as image, text and key ("a/b": b inside a).
"""
from mcd_jax import plugins

FORMER_NAMES = {"source": {"standin": "placeholder"}}   # of stored configs


def kinds() -> list[str]:
    """The names that `config.data.source.name` may have, beside dotted paths of modules of one's own."""
    return plugins.known("source")


def open(spec):
    """Opens the source of `config.data.source`.

    Raises:
      ValueError: an unknown name, key, split or column; the sentence says what there is.
      FileNotFoundError: a file or folder that the spec names does not exist.
    """
    spec = dict(spec)
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"data.source.name must be one of {', '.join(kinds())} or a module path, not {name!r}")
    try:
        module = plugins.load("source", name)
    except ValueError as error:
        if "." in name:
            raise ValueError(f"data.source.name {name!r}: there is no such module to import") from error
        raise ValueError(f"data.source.name {name!r} is unknown: it is one of {', '.join(kinds())}; "
                         "a module of your own is named by its dotted path") from error
    if not callable(getattr(module, "make", None)):
        raise ValueError(f"data.source.name {name!r}: the module has no make(spec) that returns a source")
    source = module.make(spec)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(f"data.source.name {name!r}: make(spec) returned a {type(source).__name__} "
                         "without len() and [index]")
    if not len(source):
        place = "/".join(str(spec[key]) for key in ("path", "table", "dataset", "directory", "split") if spec.get(key))
        raise ValueError(f"data.source: the {name} source has no examples" + f": {place} is empty" * bool(place))
    return source
