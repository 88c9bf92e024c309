"""What a model card tells to do with an image before another library gets it: the card prints the source of these functions.

They need nothing but Pillow (10.1 or newer) and numpy. `mcd-jax convert check` runs the same functions.
"""
import inspect

import numpy
import PIL.Image


def on_white(image):
    """A PIL image in RGB, its transparent pixels on white as in training."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixels_of(image, how):
    """uint8 (1, size, size, 3) of a PIL image; how: "image" of encoder.json."""
    size, (width, height) = how["size"], image.size
    if how["resize"] != "squash":   # the shorter side becomes size
        width, height = size * width // min(image.size), size * height // min(image.size)
    else:
        width = height = size
    image = on_white(image).resize((width, height), {"bicubic": PIL.Image.BICUBIC, "area": PIL.Image.BOX}[how["filter"]])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return numpy.asarray(image.crop((left, top, left + size, top + size)))[None]


def source(*functions):
    """The functions as lines of Python for a card."""
    return "\n\n".join(inspect.getsource(function) for function in functions)
