"""Every config key that the trainer knows, with its default, and the checks that come before the first compile.

A file in `configs/` starts from `default()` and changes what it needs; the result is locked, so a misspelt key is refused where it
is written, in the file and on the command line alike. Durations ("3 epochs", "10 percent", "200 steps", "1e6 examples" or plain
steps) are read by `duration.steps`.
"""
import difflib
import json
import math
import pathlib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from mcd_jax import load


def default():
    """The base config: every key that `train` reads, none of them about a particular method or data set."""
    config = ConfigDict()
    config.seed = 0
    config.steps = "10 epochs"      # how long to train, a duration
    config.total_steps = 0          # filled in by the job: how many steps that is, for methods whose parts change on the way
    config.batch_size = 256         # global, over all devices and hosts
    config.microbatches = 1         # encode the batch in this many slices; the loss still sees all of it
    config.group_size = 0           # consecutive rows that methods with in-batch interaction keep together; 0: the whole batch
    config.objective = ConfigDict(dict(name="", weights={}, warmup={}, decay={}))
    config.model = ConfigDict()
    config.data = dict(
        source=ConfigDict(dict(name="")),
        views=ConfigDict(),         # batch key -> pipe string
        workers=2,                  # threads that read and decode
        processes=0,                # worker processes, with so many threads each; 0: the threads are the training process's
        prefetch=4,                 # batches held ready
        cache=False,                # keep decoded images in memory: for small data sets
        max_bad=0.1,                # stop when a larger share of the examples can't be used
    )
    config.optimizer = dict(
        optimizers=((".*", dict(name="adamw", b1=0.9, b2=0.98, eps=1e-8)),),
        lr=1e-3,
        schedule=((".*", dict(name="cosine", warmup="5 percent", final=0.01)),),  # None instead of a dict freezes
        lr_mults=(),
        weight_decay=0.1,
        decay_mask=(),
        clip_norm=1.0,
        clip_per="global",          # or "tensor"
        max_logit_scale=math.log(100.0),
        bounds=(),                  # regex over parameter paths -> (low, high), where a parameter stays inside
        max_skipped=20,             # stop after this many non-finite updates in a row
    )
    config.ema = 0.0                # decay of an average of the parameters kept in memory/ema; 0: none
    config.evals = ConfigDict()     # module -> instance -> settings; `every` (a duration) and `read` fit all
    config.checkpoint = dict(every="10 percent", keep=2, best="")
    config.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1, expert=1)
    config.sharding = ((".*/experts/.*", "expert"), (".*", "fsdp"))   # regex over parameter paths -> placement; first match wins
    config.log_every = 10
    config.profile_steps = ()       # (first, last): a profiler trace of these steps
    config.tensorboard = True
    config.wandb = ""               # a project name; needs the wandb package
    config.resume_from = ""         # another workdir whose whole state this run continues
    config.init_from = ""           # another workdir whose parameters this run starts from
    config.init_fresh = ()          # regexes of parameters that it doesn't give: they start as without it, such as "logit_scale"
    config.init_copies = ()         # (regex of parameters, the one of config.init_from that each starts as): ("b/(.*)", r"a/\1")
    config.init_locked = dict(image="", text="")   # workdirs that have the weights of the towers in config.model.locked
    return config


def objective(name, weights=None, warmup=None, decay=None, **changes):
    """The `config.objective` of method `name`: all of its options with their defaults, `changes` applied.

    Args:
      name: a module of `objectives/`, or a dotted path; or a tuple of them, to compose. Then `changes` are one dict for each method
        that doesn't keep its defaults, by the last part of its name: `objective(("mcd", "gcl"), gcl=dict(weights=dict(gcl=0.5)))`.
      weights: term -> weight, over the method's defaults.
      warmup: term -> duration over which its weight grows linearly from zero.
      decay: term -> duration after which its weight is a half, then a third, and so on.

    Raises:
      ValueError: an option, a term or a method that isn't one.
    """
    if not isinstance(name, str):
        return _composed(tuple(name), weights or warmup or decay, changes)
    module = load.load("objectives", name)
    options = module.Options()._asdict()
    for key in changes:
        refuse_unknown(key, options, f"option of objective {name!r}")
    for key in [*(weights or {}), *(warmup or {}), *(decay or {})]:
        refuse_unknown(key, module.WEIGHTS, f"term of objective {name!r}")
    result = ConfigDict(dict(name=name, weights={t: float(w) for t, w in (module.WEIGHTS | dict(weights or {})).items()},
                             **{**options, **changes}))
    for key, default, given in (("warmup", "WARMUP", warmup), ("decay", "DECAY", decay)):
        durations = {term: 0 for term in module.WEIGHTS} | dict(getattr(module, default, {})) | dict(given or {})
        result[key] = ConfigDict({term: str(value) for term, value in durations.items()})
    return result


def _composed(names, common, sections):
    shorts = [name.rpartition(".")[2] for name in names]
    if len(set(shorts)) < len(shorts) or len(shorts) < 2:
        raise ValueError(f"config.objective.name={names}: composed methods are two or more, whose last parts differ")
    if common:
        raise ValueError(f"weights and warmups belong to one of the composed methods: write {shorts[0]}=dict(weights=...)")
    for key in sections:
        refuse_unknown(key, shorts, "composed method")
    return ConfigDict(dict(name=names, **{short: objective(name, **(sections.get(short) or {}))
                                          for name, short in zip(names, shorts, strict=True)}))


def methods(objective):
    """The section of `config.objective` that each method reads: {"": all of it} for one, {last part of its name: ...} for several.

    Raises:
      ValueError: a composed method without a section.
    """
    if isinstance(objective.name, str):
        return {"": objective}
    shorts = [name.rpartition(".")[2] for name in objective.name]
    for short in shorts:
        if not isinstance(objective.get(short), ConfigDict):
            raise ValueError(f"config.objective.{short} is missing: make the section of every method of config.objective.name="
                             f"{tuple(objective.name)} with config_lib.objective(...)")
    return {short: objective[short] for short in shorts}


def title(objective):
    """The methods of a config as people read them: "mcd", "mcd + gcl"."""
    return objective.name if isinstance(objective.name, str) else " + ".join(objective.name)


def refuse_unknown(key, known, what):
    """Raises a ValueError that names `key` and the nearest of `known`, unless it is one of them."""
    if key not in known:
        near = difflib.get_close_matches(key, list(known), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise ValueError(f"unknown {what}: {key!r}; {hint}")


def options(cls, mapping):
    """An `Options` tuple of a method from `config.objective`; the keys that every method has are left out.

    Raises:
      ValueError: an unknown option, or a value of another type than the default's.
    """
    given = {k: v for k, v in mapping.items() if k not in ("name", "weights", "warmup", "decay")}
    defaults = cls()._asdict()
    for key, value in given.items():
        refuse_unknown(key, defaults, f"option of objective {mapping['name']!r}")
        want = type(defaults[key])
        if (want in (bool, str) and not isinstance(value, want)) or (want is float and not isinstance(value, (int, float))):
            raise ValueError(f"config.objective.{key}={value!r} must be a {want.__name__}, as its default {defaults[key]!r} is")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def check(config):
    """Refuses, with a sentence, what can be seen to be wrong before any data is read.

    Raises:
      ValueError: an unknown key, or a value outside its range.
    """
    base = default()
    for key in config:
        refuse_unknown(key, base, "config key")
        for sub in config[key] if isinstance(config[key], ConfigDict) and key in ("data", "checkpoint", "mesh") else ():
            refuse_unknown(sub, base[key], f"config.{key} key")
    for key in ("batch_size", "microbatches", "log_every"):
        if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 1:
            raise ValueError(f"config.{key}={config[key]!r} must be a whole number of at least 1")
    if config.batch_size % config.microbatches:
        raise ValueError(f"config.batch_size={config.batch_size} is not a multiple of config.microbatches={config.microbatches}")
    if config.group_size and config.batch_size % config.group_size:
        raise ValueError(f"config.batch_size={config.batch_size} is not a multiple of config.group_size={config.group_size}")
    if not 0 <= config.ema < 1:
        raise ValueError(f"config.ema={config.ema} must lie in [0, 1)")
    for regex in config.init_fresh:
        try:
            re.compile(regex)
        except (re.error, TypeError) as error:
            raise ValueError(f"config.init_fresh: {regex!r} is not a regular expression: {error}") from error
    for pair in config.get("init_copies", ()):
        try:
            regex, other = pair
            re.sub(regex, other, "")
        except (re.error, TypeError, ValueError) as error:
            raise ValueError(f"config.init_copies: {pair!r} is not a pair of a regular expression and what replaces it, such as "
                             f"('decoder/(.*)', r'fusion/\\1'): {error}") from error
        if not config.init_from:
            raise ValueError(f"config.init_copies: {pair!r} copies parameters of config.init_from, which is empty")
    if not config.objective.name:
        raise ValueError("config.objective.name is empty: name a module of mcd_jax/objectives or your own dotted path")
    for kind, folder in config.get("init_locked", {}).items():
        refuse_unknown(kind, base.init_locked, "config.init_locked key")
        if folder and kind not in config.model.get("locked", ()):
            raise ValueError(f"config.init_locked.{kind}={folder!r}, but config.model.locked={config.model.get('locked', ())!r} "
                             f"does not lock the {kind} tower: add {kind!r} to it, or leave the key empty")
    if not config.data.views:
        raise ValueError("config.data.views is empty: give at least one batch key with its pipe string")


def save(config, path):
    """Writes the resolved config as JSON."""
    pathlib.Path(path).write_text(json.dumps(config.to_dict(), indent=2, default=str) + "\n")


def read(path):
    """The ConfigDict that `save` wrote; keys that the run's version did not have yet get their defaults.

    Raises:
      FileNotFoundError: with the advice to train first.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is this the --workdir of a run that `python -m mcd_jax.train` started?")
    config = ConfigDict(json.loads(path.read_text()))
    for key, value in default().items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict):
            for sub in set(value) - set(config[key]):
                config[key][sub] = value[sub]
    return config


def from_file(path, given=()):
    """The ConfigDict that train reads from `--config=<path>` (a file of configs/, with `:args`) and the flags `given`.

    Raises:
      ValueError: config_flags refuses a flag. OSError: there is no such file.
    """
    argv = ["train", f"--config={path}", *given]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    config = values["config"].value
    config.to_dict()   # a file that is missing is only reported when the config is used
    return config
