"""Every key that any config has, whatever its method and its data: type, default and meaning. `default` makes a config of them.

What a named module adds to them (a tower, a source, an evaluation, a method) that module declares itself, see `sections`.
"""
import copy
import math

from ml_collections import ConfigDict

from mcd_jax.config.keys import NEEDED, Key

LOCKABLE = ("image", "text", "image/proj", "text/proj")
TOWERS = {"image": "the image tower: a name, and the options of the tower of that name",
            "text": "the text tower: a name, and its options",
            "shared": "one tower for both, in place of image and text: its options"}
MODEL = {   # of config.model, beside the towers
    "embed_dim": Key("int", NEEDED, "numbers in an embedding"),
    "logit_scale": Key("float | None", 2.6592600, "logarithm of the inverse temperature at the start, CLIP's ln(1 / 0.07); None: "
                         "there is none"),
    "logit_bias": Key("float | None", None, "bias of the logits at the start (SigLIP); None: there is none"),
    "dtype": Key("str", "float32", "of what is computed: float32 | bfloat16; parameters are float32"),
    "mean": Key("float | tuple", 0.5, "of pixels in [0, 1], one number or one per channel, which is subtracted"),
    "std": Key("float | tuple", 0.5, "of pixels, one number or one per channel, by which is divided"),
    "locked": Key("tuple", (), f"what is not trained, out of {', '.join(LOCKABLE)}"),
    "inputs": Key("dict", {}, "filled in by the job: what the data decides, the vocabulary and the size of images"),
}
DATA = {
    "source": Key("source", {"name": ""}, "where examples come from: a name, and the keys of the sources of that name"),
    "views": Key("map of str", {}, "batch key -> the pipe that makes it of an example, as in \"decode|crop(224, 0.5)\""),
    "workers": Key("int", 2, "threads that read and decode; 0: the training thread does it itself"),
    "processes": Key("int", 0, "worker processes, with so many threads each; 0: the threads are the training process's"),
    "prefetch": Key("int", 4, "batches held ready"),
    "cache": Key("bool | float", False, "keep decoded images in memory: True (1,024 MiB) or a number of MiB; for small data sets"),
    "max_bad": Key("float", 0.1, "stop when a larger share of the examples can't be used"),
}
OPTIMIZER = {
    "optimizers": Key("pairs of optimizer", ((".*", dict(name="adamw", b1=0.9, b2=0.98, eps=1e-8)),),
                      "who updates which parameters: a name, and the options of the optimizer of that name"),
    "lr": Key("float", 1e-3, "peak learning rate, of every optimizer"),
    "schedule": Key("pairs of schedule", ((".*", dict(name="cosine", warmup="5 percent", final=0.01)),),
                    "how the rate moves, a name and its options; None in place of them freezes the parameters"),
    "lr_mults": Key("pairs of float", (), "factors on the learning rate, decay included; empty: 1 everywhere"),
    "weight_decay": Key("float", 0.1, "decoupled (AdamW): lr * weight_decay * parameter is subtracted, whatever the optimizer"),
    "decay_mask": Key("pairs of bool | float", (), "True, False or a factor on the decay; empty: tensors of two or more "
                      "dimensions, but no bias, norm or logit_*"),
    "clip_norm": Key("float | None", 1.0, "largest gradient norm; None or 0: any"),
    "clip_per": Key("str", "global", "\"global\": the norm over all trained parameters; \"tensor\": of each one"),
    "max_logit_scale": Key("float | None", math.log(100.0), "every logit_scale stays in [0, this] after an update; None: free"),
    "bounds": Key("pairs of tuple", (), "(low, high) inside which a parameter stays after an update; empty: none"),
    "max_skipped": Key("int", 20, "stop after this many non-finite updates in a row"),
}
_B1, _B2 = "decay of the average of gradients", "decay of the average of squared gradients"
_EPS = "added to the denominator"
_MU = Key("str", "float32", "of the stored average of gradients: float32 | bfloat16")
OPTIMIZERS = {   # name -> its options
    "adamw": {"b1": Key("float", 0.9, _B1), "b2": Key("float", 0.999, _B2), "eps": Key("float", 1e-8, _EPS),
              "mu_dtype": _MU},
    "lion": {"b1": Key("float", 0.9, "weight of the average in an update"), "b2": Key("float", 0.99, _B1), "mu_dtype": _MU},
    "sgd": {"momentum": Key("float", 0.0, "decay of the sum of gradients; 0: none"),
            "nesterov": Key("bool", False, "Nesterov's momentum"),
            "l2": Key("float", 0.0, "a decay that is part of the gradient, as PyTorch's, beside the decoupled one")},
    "bertadam": {"b1": Key("float", 0.9, _B1), "b2": Key("float", 0.98, _B2), "eps": Key("float", 1e-6, _EPS)},
    "adafactor": {"decay_rate": Key("float", 0.8, "decay of the second moment: min(max_decay, 1 - step ** -decay_rate)"),
                  "max_decay": Key("float", 1.0, "its bound"),
                  "min_dim_size_to_factor": Key("int", 128, "smaller tensors keep a whole second moment"),
                  "clipping_threshold": Key("float | None", 1.0, "largest root mean square of an update; None or 0: any"),
                  "momentum": Key("float", 0.0, "decay of an average of updates; 0: none"),
                  "multiply_by_parameter_scale": Key("bool", False, "scale an update by its parameter's root mean square")},
}
SCHEDULE = {
    "name": Key("str", "cosine", "\"cosine\" and \"linear\" fall to final * lr at the end of the run; \"constant\"; \"rsqrt\" is "
                "lr * sqrt(warmup / s), at least final * lr; \"stairs\" is constant for `every` and follows a cosine between; "
                "\"bert_cosine\", warmup_cosine of pytorch_pretrained_bert: the first update is 0, and the cosine counts from the "
                "first step, so it begins below lr"),
    "warmup": Key("duration", 0, "over which the rate rises"),
    "start": Key("float", 0.0, "share of lr at which the warm-up starts"),
    "final": Key("float", 0.0, "share of lr at the end"),
    "hold": Key("duration", 0, "of cosine and linear: the rate is a staircase that is constant for so long"),
    "warmup_hold": Key("duration", 0, "the same in the warm-up"),
    "every": Key("duration", 0, "of stairs: how long one is"),
    "fix_last_epoch": Key("bool", False, "of stairs: the cosine reaches its end one stair later"),
}
CHECKPOINT = {
    "every": Key("duration", "10 percent", "how often the state is saved; at the end it always is"),
    "keep": Key("int", 2, "how many of the newest are kept"),
    "best": Key("str | None", "", "a figure of evals.json, such as \"retrieval/validation/text_to_image/MRR\": the checkpoint "
                "with the largest is kept too; \"-name\": with the smallest"),
}
MESH = {
    "slice": Key("int", 1, "slices joined by the data-centre network"),
    "data": Key("int", -1, "devices that only share the batch; -1: what is left"),
    "fsdp": Key("int", 1, "devices that share the batch and hold a part of each parameter"),
    "tensor": Key("int", 1, "devices that share each matrix product"),
    "expert": Key("int", 1, "devices that share the batch and hold some of the experts"),
}
LOCKED = {kind: Key("str | None", "", f"workdir with the weights of the {kind} tower, where config.model.locked locks it")
          for kind in ("image", "text")}
BASE = {
    "seed": Key("int", 0, "of the initialisation, the order of examples and everything drawn"),
    "steps": Key("duration", "10 epochs", "how long to train"),
    "total_steps": Key("int", 0, "filled in by the job: how many steps that is, for methods whose parts change on the way"),
    "batch_shapes": Key("dict", {}, "filled in by the job: batch key -> (shape of a row, type), to open the run without its data"),
    "batch_size": Key("int", 256, "examples of a step, over all devices and hosts"),
    "microbatches": Key("int", 1, "encode the batch in this many slices; the loss still sees all of it"),
    "group_size": Key("int", 0, "consecutive rows that methods with in-batch interaction keep together; 0: the whole batch"),
    "objective": Key("objective", {"name": "", "weights": {}, "warmup": {}, "decay": {}},
                     "the method: its name, or a tuple of several to compose, its options and the weights of its terms"),
    "model": Key("model", {}, "the towers"),
    "data": Key(DATA, None, "what is trained on"),
    "optimizer": Key(OPTIMIZER, None, "how parameters are updated; lists are (regex over parameter paths, value) pairs, the first "
                     "whole match wins"),
    "ema": Key("float", 0.0, "decay of an average of the parameters that is kept in memory/ema; 0: none"),
    "evals": Key("evals", {}, "evaluation -> a name of your own -> its settings"),
    "checkpoint": Key(CHECKPOINT, None, "what is saved"),
    "mesh": Key(MESH, None, "how many devices along each axis"),
    "sharding": Key("pairs of str | tuple", ((".*/experts/.*", "expert"), (".*", "fsdp")),
                    "where parameters live, the first match wins: \"replicate\", \"fsdp\", \"expert\", or an axis or None for each "
                    "dimension"),
    "log_every": Key("int", 10, "steps between two lines of metrics.jsonl"),
    "profile_steps": Key("tuple | None", (), "(first, last): a profiler trace of these steps"),
    "tensorboard": Key("bool", True, "write TensorBoard's event files too"),
    "wandb": Key("str | None", "", "a project name; needs the wandb package"),
    "resume_from": Key("str | None", "", "another workdir whose whole state this run continues"),
    "init_from": Key("str | None", "", "another workdir whose parameters this run starts from"),
    "init_fresh": Key("tuple | None", (), "regexes of parameters that init_from doesn't give: they start as without it, such as "
                      "\"logit_scale\""),
    "init_copies": Key("tuple | None", (), "(regex of parameters, the one of init_from that each starts as): (\"b/(.*)\", "
                       "r\"a/\\1\")"),
    "init_locked": Key(LOCKED, None, "where the weights of locked towers come from, in place of init_from"),
}
# what every evaluation has beside its own keys
EVAL = {
    "every": Key("duration", None, "how often; left out: at the end only"),
    "weights_from": Key("str | None", "params", "whose parameters: \"params\", \"memory/<path>\" such as \"memory/teacher\", or "
                        "\"init\", the untrained network"),
    "batch_size": Key("int", 256, "rows that are embedded at once"),
}


def default() -> ConfigDict:
    """The base config: every key above. A value of a wrong type is refused by `check`, with its key, not where it is set."""
    return ConfigDict(values(BASE), type_safe=False)


def values(declared: dict) -> dict:
    """The defaults of declared keys, sections inside."""
    return {name: values(key.type) if isinstance(key.type, dict) else copy.deepcopy(key.default) for name, key in declared.items()}
