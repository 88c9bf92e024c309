"""open_clip's model configs as `config.model`, and back.

The keys are those of CLIPVisionCfg and CLIPTextCfg (mlfoundations/open_clip 89fb801, src/open_clip/model.py). A key that is not
understood, or has a value that our towers don't have, is refused by name.
"""
import dataclasses
from typing import NamedTuple

from mcd_jax.convert import runs
from mcd_jax.models import towers

CLIP_EOT, CLIP_VOCABULARY = 49407, 49408
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)   # OpenAI's, open_clip's default


class Timm(NamedTuple):
    """One of timm's ViTs with attention pooling; open_clip names it and can't change it."""
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    image_size: int
    act: str


_B, _L, _SO, _G = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1152, 27, 16, 4304), (1536, 40, 16, 6144)
SIGLIP = {   # huggingface/pytorch-image-models, timm/models/vision_transformer.py
    **{f"vit_base_patch16_siglip_{size}": Timm(*_B, 16, size, "gelu") for size in (224, 256, 384, 512)},
    "vit_base_patch32_siglip_256": Timm(*_B, 32, 256, "gelu_tanh"),
    **{f"vit_large_patch16_siglip_{size}": Timm(*_L, 16, size, "gelu") for size in (256, 384)},
    "vit_large_patch16_siglip_512": Timm(*_L, 16, 512, "gelu_tanh"),
    **{f"vit_so400m_patch14_siglip_{size}": Timm(*_SO, 14, size, "gelu") for size in (224, 378, 384)},
    **{f"vit_so400m_patch16_siglip_{size}": Timm(*_SO, 16, size, "gelu_tanh") for size in (256, 384, 512)},
    **{f"vit_giantopt_patch16_siglip_{size}": Timm(*_G, 16, size, "gelu_tanh") for size in (256, 384)},
}
TIMM_EPS = 1e-6

# keys that change nothing here, and what the others are when they are left out
_UNREAD = ("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained", "image_size", "hf_tokenizer_name",
           "tokenizer_mode", "tokenizer_kwargs", "hf_model_pretrained", "attn_pooler_queries", "attn_pooler_heads")
_VISION = dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, no_ln_pre=False, pos_embed_type="learnable",
               final_ln_after_pool=False, pool_type="tok", act_kwargs=None, norm_kwargs=None, timm_model_name=None,
               timm_pool="avg", timm_proj="linear", timm_proj_bias=False)
_TEXT = dict(context_length=77, vocab_size=CLIP_VOCABULARY, width=512, heads=8, layers=12, mlp_ratio=4.0, pad_id=0, eos_id=2,
             no_causal_mask=False, pool_type="argmax", proj_bias=False, proj_type="linear", act_kwargs=None, norm_kwargs=None)
_MODEL = dict(quick_gelu=False, custom_text=False, init_logit_scale=None, init_logit_bias=None, nonscalar_logit_scale=False)
_POOLS = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}


# ---- theirs to ours --------------------------------------------------------------------------------------------------------------

def to_ours(config, mean=MEAN, std=STD):
    """(`config.model`, inputs) of a model config of theirs.

    Args:
      config: their "model_cfg": embed_dim, vision_cfg, text_cfg, and options.
      mean, std: of pixels in [0, 1].

    Raises:
      ValueError: a key or value that our towers don't have.
    """
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise ValueError(f"this is no model config of open_clip: it has no {key!r}")
    options = _known({k: v for k, v in config.items() if k not in ("embed_dim", "vision_cfg", "text_cfg")}, _MODEL, "the model")
    image = _image(config["vision_cfg"], options["quick_gelu"], config["embed_dim"])
    text, inputs = _text(config["text_cfg"], options["quick_gelu"])
    model = dict(image=image, text=text, embed_dim=config["embed_dim"], mean=tuple(mean), std=tuple(std), dtype="float32")
    if options["init_logit_bias"] is not None:
        model["logit_bias"] = float(options["init_logit_bias"])
    size = config["vision_cfg"].get("image_size", 224)
    if isinstance(size, (list, tuple)):
        if len(set(size)) > 1:
            raise ValueError(f"vision_cfg.image_size={size}: our towers take square images")
        size = size[0]
    return runs.patched(model, size), {**inputs, "image_size": size}


def _image(given, quick, embed_dim):
    cfg = _known(given, _VISION, "vision_cfg")
    if cfg["timm_model_name"]:
        return _siglip(cfg, given.get("image_size", 224), embed_dim)
    if isinstance(cfg["layers"], (list, tuple)):
        stem = cfg["width"]
        return dict(name="resnet", stem="clip", stem_width=stem, widths=tuple(stem * m for m in (4, 8, 16, 32)),
                    depths=tuple(cfg["layers"]), block="bottleneck", norm="frozen", pool="attention", proj="biased",
                    num_heads=stem * 32 // cfg["head_width"], act="relu", mask_patch=32)
    _choose("vision_cfg.pos_embed_type", cfg["pos_embed_type"], ("learnable", "sin_cos_2d"))   # both are stored
    _choose("vision_cfg.pool_type", cfg["pool_type"], ("tok", "avg"))
    heads = cfg["width"] // cfg["head_width"]
    spare = dict(spare_token=True) if cfg["pool_type"] == "avg" else {}
    late = dict(norm_pooled=True) if cfg["final_ln_after_pool"] else {}
    return dict(name="vit", width=cfg["width"], depth=cfg["layers"], mlp_dim=int(cfg["width"] * cfg["mlp_ratio"]), num_heads=heads,
                patch_size=cfg["patch_size"], pool="mean" if spare else "class", patch_bias=False, ln_pre=not cfg["no_ln_pre"],
                act=_act(cfg, quick), eps=_eps(cfg), **spare, **late)


def _siglip(cfg, size, embed_dim):
    name = cfg["timm_model_name"].split(".")[0]
    if name not in SIGLIP or cfg["timm_pool"] != "map":
        raise ValueError(f"vision_cfg.timm_model_name={cfg['timm_model_name']!r} with timm_pool={cfg['timm_pool']!r} has no tower "
                         f"here: of timm's models there are {', '.join(SIGLIP)} with timm_pool='map'")
    _choose("vision_cfg.timm_proj", cfg["timm_proj"], ("none", "linear"))
    timm = SIGLIP[name]
    if size not in (timm.image_size, [timm.image_size] * 2):
        raise ValueError(f"vision_cfg.image_size={size}, but {name} is made for {timm.image_size} px")
    proj = "none" if cfg["timm_proj"] == "none" else "biased" if cfg["timm_proj_bias"] else "linear"
    return dict(name="vit", width=timm.width, depth=timm.depth, num_heads=timm.num_heads, mlp_dim=timm.mlp_dim,
                patch_size=timm.patch_size, pool="map", patch_bias=True, ln_pre=False, act=timm.act, eps=TIMM_EPS, proj=proj)


def _text(given, quick):
    cfg = _known(given, _TEXT, "text_cfg")
    _choose("text_cfg.pool_type", cfg["pool_type"], tuple(_POOLS))
    _choose("text_cfg.proj_type", cfg["proj_type"], ("linear", "none"))
    proj = "none" if cfg["proj_type"] == "none" else "biased" if cfg["proj_bias"] else "linear"
    text = dict(name="text", width=cfg["width"], depth=cfg["layers"], mlp_dim=int(cfg["width"] * cfg["mlp_ratio"]),
                num_heads=cfg["heads"], causal=not cfg["no_causal_mask"], pool=_POOLS[cfg["pool_type"]], pad_mask=False,
                act=_act(cfg, quick), eps=_eps(cfg), proj=proj)
    inputs = dict(vocab_size=cfg["vocab_size"], context=cfg["context_length"])
    if cfg["pool_type"] == "eos":
        inputs["eot"] = cfg["eos_id"]
    elif cfg["pool_type"] == "argmax":   # the highest id of a row: of CLIP's vocabulary that is its end of text
        inputs["eot"] = cfg["vocab_size"] - 1
    return text, inputs


def _known(given, defaults, where):
    """The options with defaults filled in; what our towers don't know must be off."""
    for key, value in given.items():
        if key not in defaults and key not in _UNREAD and value not in (None, False, 0, 0.0, "", "default"):
            raise ValueError(f"{where} has {key}={value!r}, which our towers don't have")
    return {**defaults, **{k: v for k, v in given.items() if k in defaults}}


def _act(cfg, quick):
    kwargs = cfg["act_kwargs"] or {}
    if (quick and kwargs) or set(kwargs) - {"approximate"} or kwargs.get("approximate", "none") not in ("none", "tanh"):
        raise ValueError(f"act_kwargs={kwargs} with quick_gelu={quick} is no activation of ours")
    return "quick_gelu" if quick else "gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu"


def _eps(cfg):
    kwargs = cfg["norm_kwargs"] or {}
    if set(kwargs) - {"eps"}:
        raise ValueError(f"norm_kwargs={kwargs}: our norms have eps only")
    return float(kwargs.get("eps", 1e-5))


def _choose(what, value, known):
    if value not in known:
        raise ValueError(f"{what}={value!r} has no tower here: there are {', '.join(map(repr, known))}")


# ---- ours to theirs --------------------------------------------------------------------------------------------------------------

def to_theirs(model, inputs):
    """Their model config of a `config.model` and its inputs.

    Raises:
      ValueError: open_clip has no class for a tower or an option of it; the sentence names the key.
    """
    image = _filled(model, "image", image_size=inputs["image_size"])
    text = _filled(model, "text", **{k: v for k, v in inputs.items() if k != "image_size"})
    wrong = []
    vision_cfg, timm = _their_image(image, inputs["image_size"], wrong)
    text_cfg = _their_text(text, inputs, wrong)
    quick = text["act"] == "quick_gelu"
    if image["name"] == "vit" and not timm and quick != (image["act"] == "quick_gelu"):
        wrong.append(f"config.model.image.act={image['act']!r} beside config.model.text.act={text['act']!r}: open_clip's "
                     "quick_gelu is one switch for both towers")
    if wrong:
        raise ValueError("open_clip has no class for this model: " + "; ".join(wrong))
    result = dict(embed_dim=model["embed_dim"], vision_cfg=vision_cfg, text_cfg=text_cfg)
    if quick:
        result["quick_gelu"] = True
    if timm:
        result["custom_text"] = True
    if model.get("logit_bias") is not None:
        result["init_logit_bias"] = model["logit_bias"]
    return result


def _filled(model, kind, **given):
    """Every option of a tower by name, as its module fills them in."""
    name = model[kind]["name"]
    if name not in ("vit", "resnet", "text"):
        raise ValueError(f"config.model.{kind}.name={name!r}: open_clip has no class for this tower")
    _, module, proj = towers.tower(model, kind, **given)
    return {**{f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in ("parent", "name")},
            "name": name, "proj": proj}


def _their_image(image, size, wrong):
    """(vision_cfg, whether it is timm's); what doesn't fit is added to `wrong`."""
    if image["name"] == "resnet":
        return _their_resnet(image, size, wrong), False
    if image["pool"] == "map":
        return _their_siglip(image, size, wrong), True
    must = dict(position="learned", proj="linear", pool="mean" if image["spare_token"] else "class")
    wrong += [f"config.model.image.{key}={image[key]!r}: open_clip's ViT has {value!r}" for key, value in must.items()
              if image[key] != value]
    cfg = dict(image_size=size, layers=image["depth"], width=image["width"], head_width=image["width"] // image["num_heads"],
               mlp_ratio=_ratio(image), patch_size=image["patch_size"], **_act_norm(image, "image", wrong))
    return {**cfg, **({} if image["ln_pre"] else dict(no_ln_pre=True)), **(dict(pool_type="avg") if image["spare_token"] else {}),
            **(dict(final_ln_after_pool=True) if image["norm_pooled"] else {})}, False


def _their_siglip(image, size, wrong):
    mine = Timm(image["width"], image["depth"], image["num_heads"], image["mlp_dim"], image["patch_size"], size, image["act"])
    names = [name for name, timm in SIGLIP.items() if timm == mine]
    must = dict(position="learned", patch_bias=True, ln_pre=False, spare_token=False, norm_pooled=False, eps=TIMM_EPS)
    wrong += [f"config.model.image.{key}={image[key]!r}: timm's ViT with attention pooling has {value!r}"
              for key, value in must.items() if image[key] != value]
    if not names:
        wrong.append(f"config.model.image with pool='map' and {mine}: open_clip takes attention pooling from timm, which has the "
                     f"sizes {', '.join(SIGLIP)}")
    cfg = dict(image_size=size, timm_model_name=names[0] if names else "", timm_model_pretrained=False, timm_pool="map",
               timm_proj="none" if image["proj"] == "none" else "linear")
    return {**cfg, **(dict(timm_proj_bias=True) if image["proj"] == "biased" else {})}


def _their_resnet(image, size, wrong):
    stem = image["stem_width"]
    must = dict(stem="clip", block="bottleneck", norm="frozen", pool="attention", act="relu", proj="biased",
                widths=tuple(stem * m for m in (4, 8, 16, 32)))
    wrong += [f"config.model.image.{key}={image[key]!r}: open_clip's ResNet has {value!r}" for key, value in must.items()
              if image[key] != value]
    if size % 32:
        wrong.append(f"images of {size} px: open_clip's ResNet takes multiples of 32")
    return dict(image_size=size, layers=list(image["depths"]), width=stem, head_width=stem * 32 // image["num_heads"],
                patch_size=None)


def _their_text(text, inputs, wrong):
    clip = inputs["vocab_size"] == CLIP_VOCABULARY and inputs["eot"] == CLIP_EOT
    padded = text["pad_mask"] and not text["causal"]
    if padded:
        wrong.append("config.model.text.pad_mask=True with causal=False: open_clip's text tower looks at padding; train with "
                     "pad_mask=False")
    if text["depth"] < 1:
        wrong.append("config.model.text.depth=0: open_clip's text tower has at least one block")
    if text["pool"] not in ("eot", "last", "first"):
        wrong.append(f"config.model.text.pool={text['pool']!r}: open_clip's text tower has 'eot', 'last' and 'first'")
    # the last token that is seen is the end of text, where padding isn't
    pool = text["pool"] if text["pool"] == "first" or (text["pool"] == "last" and not text["pad_mask"]) else "eot"
    cfg = dict(context_length=inputs["context"], vocab_size=inputs["vocab_size"], width=text["width"], heads=text["num_heads"],
               layers=text["depth"], mlp_ratio=_ratio(text), **_act_norm(text, "text", wrong))
    cfg |= {"eot": {} if clip else dict(pool_type="eos", eos_id=inputs["eot"])}.get(pool, dict(pool_type=pool))
    if inputs.get("pad", 0):
        cfg["pad_id"] = inputs["pad"]
    if not text["causal"]:
        cfg["no_causal_mask"] = True
    return {**cfg, **{"none": dict(proj_type="none"), "biased": dict(proj_bias=True)}.get(text["proj"], {})}


def _ratio(tower):
    """mlp_ratio, of which they take int(width * mlp_ratio)."""
    ratio = tower["mlp_dim"] / tower["width"]
    return ratio if int(tower["width"] * ratio) == tower["mlp_dim"] else (tower["mlp_dim"] + 0.5) / tower["width"]


def _act_norm(tower, kind, wrong):
    if tower["act"] not in ("gelu", "gelu_tanh", "quick_gelu"):
        wrong.append(f"config.model.{kind}.act={tower['act']!r}: open_clip has 'gelu', 'gelu_tanh' and 'quick_gelu'")
    return {**(dict(act_kwargs=dict(approximate="tanh")) if tower["act"] == "gelu_tanh" else {}),
            **(dict(norm_kwargs=dict(eps=tower["eps"])) if tower["eps"] != 1e-5 else {})}
