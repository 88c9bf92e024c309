"""Named sizes: `decode_variant("B/16")` and `text_variant("clip-B")` are dicts of module options.

Image sizes follow table 2 of Zhai et al. 2021 (arXiv 2106.04560) and SoViT-400m (arXiv 2305.13035); "clip-*" text sizes are those
that CLIP and OpenCLIP pair with each image size; ResNets are CLIP's (Radford et al. 2021, arXiv 2103.00020, appendix F).
"""

# name: width, depth, mlp_dim, num_heads
TRANSFORMERS = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
}

# the text tower beside an image tower of that size: width, depth, mlp_dim, num_heads ("clip-Ti" is ours, the others are public)
CLIP_TEXT = {
    "Ti": (256, 12, 1024, 4),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (512, 12, 2048, 8),
    "L": (768, 12, 3072, 12),
    "H": (1024, 24, 4096, 16),
    "g": (1024, 24, 4096, 16),
    "RN50": (512, 12, 2048, 8),
    "RN101": (512, 12, 2048, 8),
    "RN50x4": (640, 12, 2560, 10),
    "RN50x16": (768, 12, 3072, 12),
    "RN50x64": (1024, 12, 4096, 16),
}

# BERT (Devlin et al. 2018, arXiv 1810.04805; small ones of Turc et al. 2019, arXiv 1908.08962) and MiniLM (Wang et al. 2020, arXiv
# 2002.10957; 6 layers as in all-MiniLM-L6-v2). name: width, depth, mlp_dim, num_heads
BERT = {
    "Tiny": (128, 2, 512, 2),
    "Mini": (256, 4, 1024, 4),
    "Small": (512, 4, 2048, 8),
    "Medium": (512, 8, 2048, 8),
    "Base": (768, 12, 3072, 12),
    "Large": (1024, 24, 4096, 16),
    "MiniLM-L6": (384, 6, 1536, 12),
    "MiniLM-L12": (384, 12, 1536, 12),
}

# EfficientNet-Lite0 (tensorflow/tpu, models/official/efficientnet/lite): a (repeats, kernel, stride, expansion, width) per stage
EFFICIENTNETS = {
    "lite0": ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
              (1, 3, 1, 6, 320)),
}

# Swin transformers (Liu et al. 2021, table 7). name: width, depths, heads
SWINS = {
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

# name: width of the stem, blocks per stage. CLIP's stages have widths 4, 8, 16, 32 times the stem's
RESNETS = {
    "RN50": (64, (3, 4, 6, 3)),
    "RN101": (64, (3, 4, 23, 3)),
    "RN50x4": (80, (4, 6, 10, 6)),
    "RN50x16": (96, (6, 8, 18, 8)),
    "RN50x64": (128, (3, 15, 36, 10)),
}


def decode_variant(variant):
    """Options of a ViT size: "B/16" -> dict(width, depth, mlp_dim, num_heads, patch_size); "B" leaves patch_size out; None is {}.

    Raises:
      ValueError: the size isn't in the table, or the part after "/" isn't a whole number of pixels.
    """
    if not variant:
        return {}
    size, _, patch = variant.partition("/")
    options = _sizes(TRANSFORMERS, size, "variant", variant)
    if patch:
        if not patch.isdigit() or int(patch) == 0:
            raise ValueError(f"variant={variant!r}: after the slash stands the patch size in pixels, as in 'B/16'")
        options["patch_size"] = int(patch)
    return options


def text_variant(variant):
    """Options of a text size: "B" is as wide as the image tower of that name, "clip-B" is the text tower CLIP puts beside it."""
    if not variant:
        return {}
    if variant.startswith("clip-"):
        return _sizes(CLIP_TEXT, variant[len("clip-"):], "text variant", variant)
    return _sizes(TRANSFORMERS, variant, "text variant", variant)


def bert_variant(variant):
    """Options of a BERT: "Base" -> dict(width, depth, mlp_dim, num_heads, positions=512)."""
    return {**_sizes(BERT, variant, "bert variant", variant), "positions": 512} if variant else {}


def efficientnet_variant(variant):
    """Options of an EfficientNet-Lite: "lite0" -> dict(stages)."""
    if not variant:
        return {}
    if variant not in EFFICIENTNETS:
        raise ValueError(f"efficientnet variant={variant!r} is unknown; there are {', '.join(EFFICIENTNETS)}, or set stages")
    return {"stages": EFFICIENTNETS[variant]}


def swin_variant(variant):
    """Options of a Swin transformer: "L" -> dict(width, depths, heads)."""
    if not variant:
        return {}
    if variant not in SWINS:
        raise ValueError(f"swin variant={variant!r} is unknown; there are {', '.join(SWINS)}, or set width, depths and heads")
    return dict(zip(("width", "depths", "heads"), SWINS[variant], strict=True))


def resnet_variant(variant):
    """Options of one of CLIP's ResNets: "RN50" -> dict(stem, stem_width, widths, depths, block, pool)."""
    if not variant:
        return {}
    if variant not in RESNETS:
        raise ValueError(f"resnet variant={variant!r} is unknown; there are {', '.join(RESNETS)}, or set widths and depths")
    width, depths = RESNETS[variant]
    return {"stem": "clip", "stem_width": width, "widths": tuple(width * m for m in (4, 8, 16, 32)), "depths": depths,
            "block": "bottleneck", "pool": "attention", "num_heads": width // 2}


def _sizes(table, size, what, variant):
    if size not in table:
        raise ValueError(f"{what}={variant!r} is unknown; there are {', '.join(table)}")
    return dict(zip(("width", "depth", "mlp_dim", "num_heads"), table[size], strict=True))
