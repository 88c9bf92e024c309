"""The image and the text tower as pure functions of one parameter tree."""
from collections.abc import Callable, Mapping
import functools
import inspect
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from mcd_jax.config.base import LOCKABLE, MODEL
from mcd_jax.models import moe, shared, transformer
from mcd_jax.plugins import load
from mcd_jax.sharding.constrain import params_at
from mcd_jax.sharding.microbatch import KEPT


class Towers(NamedTuple):
    """What `make` returns. B examples, D = config.model.embed_dim, W a tower's width; embeddings are float32 in any compute dtype.

    `params` of every function may lack parts of a tower that stand at params["locked"] instead (see `split`): such a tower is not
    differentiated, drops no path, and what it gives is kept for the backward pass (`microbatch.KEPT`), not computed again.

    init: (key) -> {"image": {...}, "text": {...}, "logit_scale": () [, "logit_bias": ()]}, float32; of a shared tower there is
        "shared", and "image" and "text" have its projections.
    image: (params, pixels uint8 (B, H, W, 3), keep_ids=None | int32 (B, K), path_noise=None | float32 (B, depth), keys=None) ->
        dict of "z" (B, D) unit, "raw" (B, D) before normalisation, "pooled" (B, W), "tokens" (B, N, W), and more by the tower.
        keys: typed keys (G,) of the groups of rows whose tokens compete for experts, in training; only towers in `experts` take it.
    text: (params, tokens int32 (B, L), path_noise=None, image=None, keys=None) -> the same for text; `image` as in `text.Text`.
    scale: (params) -> float32 (), exp(logit_scale).
    bias: (params) -> float32 (), 0 without a logit_bias.
    num_patches: (shape of pixels) -> patches that keep_ids count.
    path_depth: {"image": int, "text": int}: columns of path_noise, 0 where the tower has no drop path.
    reads_image: whether the text tower takes `image`.
    both: of a shared tower (params, pixels, tokens, keep_ids=None, keys=None) -> {"image": ..., "text": ...}, row i of both in one
        group; else None.
    experts: "image", "text" -> moe.Options of the towers that have mixtures of experts to train.
    mixtures: the same -> how many blocks have one.
    routes: (params, kind, rows) -> {"expert" int32, "gate" float32, "kept" bool}, each (layers, B, N, k), of rows of pixels or
        tokens in evaluation; only towers in `experts`.
    """
    init: Callable
    image: Callable
    text: Callable
    scale: Callable
    bias: Callable
    num_patches: Callable
    path_depth: dict
    reads_image: bool = False
    both: Any = None
    experts: Mapping = MappingProxyType({})
    mixtures: Mapping = MappingProxyType({})
    routes: Any = None


def make(model_config, vocab_size, context, eot, image_size, pad=0, group_size=0):
    """Both towers from `config.model`, or the one that is both.

    Args:
      model_config: mapping with "image" and "text" (each a "name" of a module in models/, or a dotted path, that module's options
        and proj="linear" | "biased" | "none"), or "shared" in their place (options of `shared.Shared`, and proj), "embed_dim", and
        optionally "logit_scale", "logit_bias", "dtype" ("float32" | "bfloat16"), "mean", "std" of pixels in [0, 1], one number or
        one per channel, and "locked", out of LOCKABLE (see `split`).
      vocab_size, context, eot: of the tokenizer: ids, longest text in tokens, end-of-text id.
      image_size: pixels of the side of an image.
      pad: id of the tokenizer's padding; a text tower is told only if it isn't 0.
      group_size: rows whose tokens compete for experts, in place of what the towers' experts say; 0: as they say.

    Raises:
      ValueError: an unknown name or option, or sizes that don't fit; the sentence names the key and what would be right.
    """
    config = _grouped(_checked(model_config), group_size)
    dtype = jnp.dtype(config["dtype"])
    texts = {"vocab_size": vocab_size, "context": context, "eot": eot, **({"pad": pad} if pad else {})}
    dim = config["embed_dim"]
    mean, std = (jnp.broadcast_to(jnp.asarray(config[k], jnp.float32), (3,)) for k in ("mean", "std"))
    scales = {k: jnp.asarray(config[k], jnp.float32) for k in ("logit_scale", "logit_bias") if config[k] is not None}
    common = {"scale": lambda params: jnp.exp(params["logit_scale"]),
              "bias": lambda params: params.get("logit_bias", jnp.zeros((), jnp.float32))}

    def normalised(pixels):
        return ((pixels.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]).astype(dtype)

    words = context or 0   # None where stored rows are read and there are no tokens
    blank = jnp.zeros((1, image_size, image_size, 3), dtype), jnp.full((1, words), eot or 0, jnp.int32)
    if "shared" in config:
        return _one(config, dtype, image_size, texts, dim, scales, common, normalised, blank)
    _, image_tower, image_proj = tower(config, "image", image_size=image_size)
    _, text_tower, text_proj = tower(config, "text", **texts)

    def init(key):
        image_key, text_key = jax.random.split(key)
        return {"image": _init(image_tower, image_proj, dim, "image", image_key, example_of(image_tower, blank[0])),
                "text": _init(text_tower, text_proj, dim, "text", text_key, example_of(text_tower, blank[1])), **scales}

    def image(params, pixels, keep_ids=None, path_noise=None, keys=None):
        own, noise, keep = _own(params, "image", path_noise)
        x = pixels if takes_rows(image_tower) else normalised(pixels)
        more = {} if keys is None else {"keys": keys}
        with params_at("image"):
            return _embed(own, keep(image_tower.apply({"params": _body(own)}, x, keep_ids, noise, **more)))

    def text(params, tokens, path_noise=None, image=None, keys=None):
        own, noise, keep = _own(params, "text", path_noise)
        more = {name: value for name, value in (("image", image), ("keys", keys)) if value is not None}
        with params_at("text"):
            return _embed(own, keep(text_tower.apply({"params": _body(own)}, tokens, path_noise=noise, **more)))

    modules = {"image": image_tower, "text": text_tower}

    def routes(params, kind, rows):
        own, _, _ = _own(params, kind, None)
        with params_at(kind):
            return _routes(modules[kind], _body(own), normalised(rows) if kind == "image" else rows)

    experts = {kind: module.experts for kind, module in modules.items()
               if getattr(module, "experts", None) and kind not in config["locked"]}
    if len({own.group_size for own in experts.values()}) > 1:
        raise ValueError("config.model: the experts of both towers need the same group_size; config.group_size sets it for both")
    return Towers(
        init=init, image=image, text=text, **common,
        num_patches=image_tower.num_patches,
        path_depth={"image": image_tower.path_depth, "text": text_tower.path_depth},
        reads_image="image" in inspect.signature(type(text_tower).__call__).parameters,
        experts=experts, mixtures={kind: len(moe.mixture_layers(own, modules[kind].depth)) for kind, own in experts.items()},
        routes=routes)


def _one(config, dtype, image_size, texts, dim, scales, common, normalised, blank):
    """`Towers` of config.model.shared."""
    options = dict(config["shared"])
    proj = options.pop("proj", "linear")
    transformer.choose("model.shared", "proj", proj, ("linear", "biased", "none"))
    module = shared.make(options, image_size=image_size, dtype=dtype, **texts)

    def init(key):
        body, *keys = jax.random.split(key, 3)
        params = {"shared": module.init(body, *blank)["params"]}
        heads = {kind: _projection(proj, module.width, dim, "shared", k) for kind, k in zip(("image", "text"), keys, strict=True)}
        return {**params, **{kind: {"proj": head} for kind, head in heads.items() if head}, **scales}

    def both(params, pixels=None, tokens=None, keep_ids=None, keys=None):
        x = None if pixels is None else normalised(pixels)
        with params_at("shared"):
            found = module.apply({"params": params["shared"]}, x, tokens, keys, keep_ids)
        return {kind: _embed(params.get(kind, {}), out) for kind, out in found.items()}

    def image(params, pixels, keep_ids=None, path_noise=None, keys=None):
        return both(params, pixels, None, keep_ids, keys)["image"]

    def text(params, tokens, path_noise=None, image=None, keys=None):
        return both(params, None, tokens, None, keys)["text"]

    def routes(params, kind, rows):
        with params_at("shared"):
            return _routes(module, params["shared"], *((normalised(rows),) if kind == "image" else (None, rows)))

    kinds = ("image", "text") if module.experts else ()
    return Towers(
        init=init, image=image, text=text, **common, num_patches=module.num_patches, path_depth={"image": 0, "text": 0}, both=both,
        experts=dict.fromkeys(kinds, module.experts), routes=routes,
        mixtures={kind: len(moe.mixture_layers(module.experts, module.depth)) for kind in kinds})


def _routes(module, params, *inputs):
    """What each router of an evaluation did, the first block's first: {"expert", "gate", "kept"}, each (layers, B, N, k)."""
    _, found = module.apply({"params": params}, *inputs, mutable=["routes"])
    blocks = sorted(found["routes"].items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return {name: jnp.stack([block["moe"][name] for _, block in blocks]) for name in ("expert", "gate", "kept")}


def tower(model_config, kind, **given):
    """(name, linen module, kind of projection) of the tower at config.model.<kind>; `given` is what the data decides.

    Raises:
      ValueError: an unknown name or option, or sizes that don't fit.
    """
    config = _checked(model_config)
    options = dict(config[kind])
    if "name" not in options:
        raise ValueError(f"config.model.{kind}.name is missing: which module of models/ makes the {kind} tower?")
    name, proj = options.pop("name"), options.pop("proj", "linear")
    module = load("model", name)
    if not _makes(module, kind):
        raise ValueError(f"config.model.{kind}.name={name!r} is no {kind} tower; images have efficientnet, resnet, swin and vit, "
                         "texts have bert and text, stored embeddings of both have stored")
    transformer.choose(f"model.{kind}", "proj", proj, ("linear", "biased", "none"))
    return name, module.make(options, dtype=jnp.dtype(config["dtype"]), **given), proj


def split(params, names):
    """(what is trained, what is locked) of a whole tree of parameters.

    Args:
      params: {"image": {...}, "text": {...}, ...}.
      names: config.model.locked, out of LOCKABLE: "text" is the text tower without its projection, "text/proj" its projection.

    Returns:
      Two trees whose leaves are those of `params`, each once; the second has the keys "image" and "text" at most. Put at
      params["locked"] of the first it is what the functions of `Towers` take; `merge_locked` puts all together again.
    """
    trained, locked = dict(params), {}
    for kind in ("image", "text"):
        if kind in names:
            kept = {"proj"} - {name.partition("/")[2] for name in names if name.startswith(f"{kind}/")}
            trained[kind] = {k: v for k, v in params[kind].items() if k in kept}
            locked[kind] = {k: v for k, v in params[kind].items() if k not in kept}
    return trained, locked


def merge_locked(params):
    """Parameters with the towers at params["locked"], if there are any, put back in their places: the inverse of `split`."""
    rest, locked = {k: v for k, v in params.items() if k != "locked"}, params.get("locked", {})
    return {**rest, **{kind: {**tower, **rest.get(kind, {})} for kind, tower in locked.items()}}


def project(params, kind, x):
    """x (..., W), such as tokens, by the projection that a tower gives its pooled features: float32 (..., D)."""
    raw = _embed(_own(params, kind, None)[0], {"pooled": x.reshape(-1, x.shape[-1])})["raw"]
    return raw.reshape(*x.shape[:-1], raw.shape[-1])


def draw_keep_ids(key, batch, n_patches, keep):
    """int32 (batch, K) patch positions, K = round(keep * n_patches) but at least 1: uniform without replacement, rows ascending.

    One draw for the whole batch: the result depends on the key only, not on where the rows are placed.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of patches to keep is {keep}; it must be in (0, 1]")
    count = max(1, round(keep * n_patches))
    order = jnp.argsort(jax.random.uniform(key, (batch, n_patches)), axis=1)
    return jnp.sort(order[:, :count], axis=1).astype(jnp.int32)


def unit(x):
    """Rows of x (B, D) scaled to length 1, in float32; a zero row stays zero and its gradient is finite."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def plain(config):
    """A ConfigDict or mapping as nested dicts, lists as tuples (so that modules can be compared and hashed)."""
    if isinstance(config, (list, tuple)):
        return tuple(plain(v) for v in config)
    if hasattr(config, "items"):
        return {k: plain(v) for k, v in config.items()}
    return config


def refuse_unknown(where, options, known):
    """Raises a ValueError naming the first key of `options` that isn't in `known`."""
    for key in options:
        if key not in known:
            raise ValueError(f"config.{where} has no key {key!r}; there are {', '.join(sorted(known))}")


def _checked(model_config):
    """The config as plain dicts with defaults filled in; unknown and missing keys are refused."""
    config = {**{key: own.default for key, own in MODEL.items() if key not in ("embed_dim", "inputs")}, **plain(model_config)}
    towers = ("shared",) if "shared" in config else ("image", "text")
    if "shared" in config and ("image" in config or "text" in config or config["locked"]):
        raise ValueError("config.model.shared is both towers in one: beside it there is no config.model.image or .text, and none "
                         "of it can be locked")
    refuse_unknown("model", config, (*towers, "shared", *(key for key in MODEL if key != "inputs")))
    for key in (*towers, "embed_dim"):
        if key not in config:
            raise ValueError(f"config.model.{key} is missing")
    transformer.choose("model", "dtype", config["dtype"], ("float32", "bfloat16"))
    locked = config["locked"]
    if not isinstance(locked, tuple) or any(name not in LOCKABLE or name.split("/")[0] not in locked for name in locked):
        raise ValueError(f"config.model.locked={locked!r} must be a tuple out of {', '.join(map(repr, LOCKABLE))}; "
                         "a projection can only be locked together with its tower")
    return config


def _grouped(config, group_size):
    """The config with `group_size`, if not 0, in the experts of every tower."""
    def own(tower):
        return {**tower, "experts": {**tower["experts"], "group_size": group_size}}
    return {**config, **{kind: own(config[kind]) for kind in ("image", "text", "shared")
                         if group_size and config.get(kind, {}).get("experts")}}


def _makes(module, kind):
    """Whether a module of models/ has a `make` for towers of this kind: it takes what the data decides for it."""
    if not hasattr(module, "make"):
        return False
    parameters = inspect.signature(module.make).parameters
    return {"image": "image_size", "text": "vocab_size"}[kind] in parameters or any(
        p.kind == p.VAR_KEYWORD for p in parameters.values())


def _own(params, kind, path_noise):
    """(parameters of one tower, its path noise, what to do with its outputs), wherever its parameters stand."""
    locked = params.get("locked", {}).get(kind)
    if locked is None:
        return params[kind], path_noise, lambda out: out
    own = {**jax.lax.stop_gradient(locked), **params.get(kind, {})}
    return own, None, functools.partial(jax.tree.map, lambda x: checkpoint_name(x, KEPT))


def _init(tower, proj, dim, kind, key, dummy):
    body_key, proj_key = jax.random.split(key)
    out, variables = tower.init_with_output(body_key, dummy)
    head = _projection(proj, out["pooled"].shape[-1], dim, kind, proj_key)
    return {**variables.get("params", {}), **({"proj": head} if head else {})}


def _projection(proj, width, dim, kind, key):
    """Parameters of a projection, {} where there is none."""
    if proj == "none":
        if width != dim:
            raise ValueError(f"config.model.{kind}.proj='none' needs the tower's width {width} to equal embed_dim={dim}")
        return {}
    bias = {"bias": jnp.zeros((dim,))} if proj == "biased" else {}
    return {"kernel": jax.random.normal(key, (width, dim)) * width ** -0.5, **bias}


def takes_rows(tower):
    """Whether the tower reads rows of numbers (models/stored.py) in place of pixels or tokens."""
    return getattr(tower, "takes_rows", False)


def example_of(tower, blank):
    """An example of what the tower reads: `blank`, or a row of numbers."""
    return jnp.zeros((1, tower.width)) if takes_rows(tower) else blank


def _body(params):
    return {k: v for k, v in params.items() if k != "proj"}


def _embed(params, out):
    pooled = out["pooled"]
    raw = pooled.astype(jnp.float32)
    if "proj" in params:
        kernel = params["proj"]["kernel"].astype(pooled.dtype)
        raw = jnp.matmul(pooled, kernel, preferred_element_type=jnp.float32)
        if "bias" in params["proj"]:
            raw = raw + params["proj"]["bias"][None]
    return {**out, "raw": raw, "z": unit(raw)}
