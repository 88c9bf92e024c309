"""`config.json` and `preprocessor_config.json` of Hugging Face's CLIPModel and SiglipModel <-> `config.model`.

Keys and defaults: transformers 5.23, models/clip/configuration_clip.py and models/siglip/configuration_siglip.py; a key that is
missing has its default. What either side has and the other hasn't is refused by name.
"""
import dataclasses

import numpy as np

from mcd_jax.config.base import MODEL
from mcd_jax.convert.hf_rows import ACTS
from mcd_jax.models import towers

CLIP_VOCABULARY = 49408
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)   # image_utils.py
LEGACY_EOS = 2   # with this id CLIPTextModel pools at the highest id of a row instead (its pull request 24773)

_TOWER = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, hidden_act="quick_gelu",
              layer_norm_eps=1e-5)
_SIGLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
               hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
DEFAULTS = {
    "clip": dict(text=dict(_TOWER, vocab_size=CLIP_VOCABULARY, max_position_embeddings=77, eos_token_id=CLIP_VOCABULARY - 1),
                 vision=dict(_TOWER, hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224,
                             patch_size=32, num_channels=3)),
    "siglip": dict(text=dict(_SIGLIP, vocab_size=32000, max_position_embeddings=64, projection_size=None),
                   vision=dict(_SIGLIP, image_size=224, patch_size=16, num_channels=3, vision_use_head=True)),
}
# what a tower must be for the class; everything else is free
MUST = {
    "clip": dict(image=dict(name="vit", pool="class", position="learned", ln_pre=True, patch_bias=False, proj="linear"),
                 text=dict(name="text", causal=True, pool="eot", proj="linear")),
    "siglip": dict(image=dict(name="vit", pool="map", position="learned", ln_pre=False, patch_bias=True, proj="none"),
                   text=dict(name="text", causal=False, pool="last", pad_mask=False, proj="biased")),
}
CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}


# ---- theirs to ours --------------------------------------------------------------------------------------------------------------

def to_ours(config, preprocess):
    """(family, `config.model`, inputs without eot and pad unless the config tells, (op, method) of the image view).

    Args:
      config: config.json; preprocess: preprocessor_config.json, {} for the class's defaults.

    Raises:
      ValueError: a model_type, option or preprocessing that we don't have.
    """
    family = config.get("model_type")
    if family not in DEFAULTS:
        hint = " (NaFlex; the models of SigLIP 2 of a fixed resolution are model_type 'siglip')" if family == "siglip2" else ""
        raise ValueError(f"config.json has model_type={family!r}{hint}: there are {', '.join(map(repr, DEFAULTS))}")
    text, vision = (_filled(config, kind, DEFAULTS[family]) for kind in ("text", "vision"))
    if vision.get("vision_use_head") is False:
        raise ValueError("vision_config.vision_use_head=False: without its attention pooling the image tower has no embedding")
    if vision["num_channels"] != 3:
        raise ValueError(f"vision_config.num_channels={vision['num_channels']}: our towers take 3")
    size, patch = (_side(f"vision_config.{key}", vision[key]) for key in ("image_size", "patch_size"))
    must = MUST[family]
    model = dict(image=dict(must["image"], patch_size=patch, **_tower(vision, "vision_config")),
                 text=dict(must["text"], **_tower(text, "text_config")))
    inputs = dict(vocab_size=text["vocab_size"], context=text["max_position_embeddings"], image_size=size)
    if family == "clip":
        model["embed_dim"] = config.get("projection_dim", 512)
        model["text"]["pad_mask"] = False   # a causal tower never sees what follows the end of text
        eos = text["eos_token_id"]
        inputs["eot"] = text["vocab_size"] - 1 if eos == LEGACY_EOS else eos
    else:
        model["embed_dim"] = vision["hidden_size"]
        width = text["projection_size"] or text["hidden_size"]
        if width != vision["hidden_size"]:
            raise ValueError(f"text_config.projection_size={width} beside vision_config.hidden_size={vision['hidden_size']}: "
                             "the embeddings of images and texts have different lengths")
        model["logit_bias"] = 0.0   # its start; the checkpoint's own is read
    mean, std, view = _view(preprocess, family, size)
    return family, dict(model, mean=mean, std=std), inputs, view


def _filled(config, kind, defaults):
    """A tower's options; `<kind>_config_dict`, of old files, stands above `<kind>_config`."""
    given = config.get(f"{kind}_config_dict") or config.get(f"{kind}_config") or {}
    return {**defaults[kind], **{k: v for k, v in given.items() if k in defaults[kind]}}


def _tower(given, where):
    acts = {theirs: ours for ours, theirs in ACTS.items()} | {"gelu_new": "gelu_tanh"}
    if given["hidden_act"] not in acts:
        raise ValueError(f"{where}.hidden_act={given['hidden_act']!r} is none of {', '.join(acts)}")
    return dict(width=given["hidden_size"], depth=given["num_hidden_layers"], mlp_dim=given["intermediate_size"],
                num_heads=given["num_attention_heads"], act=acts[given["hidden_act"]], eps=float(given["layer_norm_eps"]))


def _side(where, value):
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ValueError(f"{where}={value!r}: our towers take squares")
    return sides.pop()


def _view(given, family, size):
    default = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3, size={"height": size, "width": size}, do_center_crop=False)
    if family == "clip":
        default = dict(image_mean=CLIP_MEAN, image_std=CLIP_STD, size={"shortest_edge": size}, do_center_crop=True)
    given = {"resample": 3, "do_resize": True, "do_normalize": True, **default, **given}
    mean, std = (tuple(float(x) for x in given[key]) if given["do_normalize"] else (v,) * 3
                 for key, v in (("image_mean", 0.0), ("image_std", 1.0)))
    sides = given["size"] if isinstance(given["size"], dict) else {"shortest_edge": given["size"]}
    op = "center" if "shortest_edge" in sides else "resize"
    wrong = [side for side in sides.values() if side != size]
    if wrong or not given["do_resize"] or (op == "center") != bool(given["do_center_crop"]):
        raise ValueError(f"preprocessor_config.json has size={sides}, do_resize={given['do_resize']}, do_center_crop="
                         f"{given['do_center_crop']} beside image_size={size}: we have the shorter side with a crop, or the whole "
                         "image, at the model's size")
    if given["resample"] != 3:
        raise ValueError(f"preprocessor_config.json has resample={given['resample']}: of Pillow's filters we have 3, bicubic")
    return mean, std, (op, "bicubic")


# ---- ours to theirs --------------------------------------------------------------------------------------------------------------

def to_theirs(model, inputs, ids, end=True):
    """(family, config.json) of a `config.model` and its inputs.

    Args:
      ids: dict of bos_token_id, eos_token_id, pad_token_id.
      end: whether rows of tokens have their end of text.

    Raises:
      ValueError: transformers has no class for these towers; each option is named.
    """
    image, text = (options(model, kind, inputs) for kind in ("image", "text"))
    family = "siglip" if image.get("pool") == "map" else "clip"
    wrong = [f"config.model.{kind}.{key}={tower.get(key)!r}, not {value!r}"
             for kind, tower in (("image", image), ("text", text)) for key, value in MUST[family][kind].items()
             if tower.get(key) != value]
    wrong += [f"config.model.image.{key}={image[key]!r}, not False" for key in ("spare_token", "norm_pooled") if image.get(key)]
    if (model.get("logit_bias") is not None) != (family == "siglip"):
        wrong.append(f"config.model.logit_bias={model.get('logit_bias')!r}, " +
                     ("which it has no place for" if family == "clip" else "not a number"))
    if family == "clip" and ids["eos_token_id"] == LEGACY_EOS:
        wrong.append(f"the tokenizer's end of text is id {LEGACY_EOS}, which it reads as: pool at the highest id of a row")
    if family == "clip" and not end:
        wrong.append("rows of tokens without their end of text (tokenize(..., end=False)), where it would pool")
    if wrong:
        raise ValueError(f"transformers has no class for this model: {CLASSES[family]} is the nearest, but there is "
                         + "; ".join(wrong))
    vision = dict(_theirs(image), image_size=inputs["image_size"], patch_size=image["patch_size"], num_channels=3)
    words = dict(_theirs(text), vocab_size=inputs["vocab_size"], max_position_embeddings=inputs["context"], **ids)
    dim = model["embed_dim"]
    if family == "clip":
        extra = dict(projection_dim=dim)
        top = dict(projection_dim=dim, logit_scale_init_value=model.get("logit_scale", MODEL["logit_scale"].default))
        vision, words = vision | extra, words | extra
    else:
        top, words, vision = {}, dict(words, projection_size=dim), dict(vision, vision_use_head=True)
    return family, dict(architectures=[CLASSES[family]], model_type=family, **top,
                        text_config=dict(words, model_type=f"{family}_text_model"),
                        vision_config=dict(vision, model_type=f"{family}_vision_model"))


def options(model, kind, inputs):
    """Every option of a tower by name, as its module fills them in; of other towers than ours the name alone."""
    name = model[kind]["name"]
    if name != {"image": "vit", "text": "text"}[kind]:
        return dict(name=name)
    given = dict(image_size=inputs["image_size"]) if kind == "image" else {k: v for k, v in inputs.items() if k != "image_size"}
    _, module, proj = towers.tower(model, kind, **given)
    return {**{f.name: getattr(module, f.name) for f in dataclasses.fields(module)}, "name": name, "proj": proj}


def _theirs(tower):
    return dict(hidden_size=tower["width"], intermediate_size=tower["mlp_dim"], num_hidden_layers=tower["depth"],
                num_attention_heads=tower["num_heads"], hidden_act=ACTS[tower["act"]], layer_norm_eps=tower["eps"],
                attention_dropout=0.0)


def preprocessing(family, model, view, size):
    """preprocessor_config.json of the image view (op "center" | "resize")."""
    mean, std = (np.broadcast_to(np.float64(model.get(key, 0.5)), 3).tolist() for key in ("mean", "std"))
    square = {"height": size, "width": size}
    crop = dict(size={"shortest_edge": size}, do_center_crop=True, crop_size=square) if view.op == "center" else \
        dict(size=square, do_center_crop=False)
    if family == "siglip" and view.op == "center":   # SiglipImageProcessor has no crop of its own
        family = "clip"
    return dict(image_processor_type={"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[family], do_convert_rgb=True,
                do_resize=True, resample=3, **crop, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
                image_mean=mean, image_std=std)
