"""Reads one drawing from the npm packages and encodes it for the shards. Only the builder needs this."""

import io
import os

from PIL import Image

from mcd_jax.data.emoji.families import concept_key

SIZE = 64
QUALITY = 88
FOLDERS = {
    "google": "emoji-datasource-google/img/google/64",
    "twitter": "emoji-datasource-twitter/img/twitter/64",
    "fluent": "@lobehub/fluent-emoji-3d/assets",
    "openmoji": "openmoji/color/svg",
}


def files(npm, vendor):
    """{concept: path} of a vendor's drawings below `npm` (a node_modules folder). Raises FileNotFoundError."""
    folder = os.path.join(npm, FOLDERS[vendor])
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"no drawings of {vendor!r} at {folder}; give the node_modules folder that holds the npm packages")
    names = sorted(name for name in os.listdir(folder) if name.endswith((".png", ".webp", ".svg")))
    return {concept_key(os.path.splitext(name)[0]): os.path.join(folder, name) for name in names}


def on_white(image):
    """A PIL image of any mode composited on white: RGB of the same size."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def draw(path):
    """The file (PNG, WebP or SVG) as a 64x64 RGB PIL image on white."""
    if path.endswith(".svg"):
        import resvg_py  # the extra "build-data": only needed to build

        file = io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=path, width=SIZE, height=SIZE)))
    else:
        file = path
    image = on_white(Image.open(file))
    return image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def encode(image):
    """WebP bytes: lossless where that is the smaller file (flat drawings), else at quality 88."""
    lossy, lossless = io.BytesIO(), io.BytesIO()
    image.save(lossy, "WEBP", quality=QUALITY, method=6)
    image.save(lossless, "WEBP", lossless=True, quality=100, method=4)
    return min(lossless.getvalue(), lossy.getvalue(), key=len)
