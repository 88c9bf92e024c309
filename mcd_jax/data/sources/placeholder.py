"""A source without data: one grey image and a few words, as often as asked. For planning a job where its data isn't."""
import numpy as np
import simplejpeg

from mcd_jax.config.keys import NEEDED, Key

KEYS = {"examples": Key("int", NEEDED, "how many"), "images": Key("tuple", ("image",), "columns with an image"),
        "texts": Key("tuple", ("text",), "columns with a text")}


class Placeholder:
    """`examples` times the same example: images (JPEG bytes), texts, key; as a question it has choices and weights, see vqa.py."""

    def __init__(self, examples, images=("image",), texts=("text",)):
        image = simplejpeg.encode_jpeg(np.full((256, 256, 3), 128, np.uint8))
        self._columns = {**dict.fromkeys(images, image), **dict.fromkeys(texts, "a grey square")}
        self._examples = examples

    def __len__(self):
        return self._examples

    def __getitem__(self, index):
        return {**self._columns, "key": str(index), "choices": ["grey"], "weights": np.eye(1, 10, dtype=np.float32)[0]}


def make(spec):
    """The source of dict(name="mcd_jax.data.sources.placeholder", examples=N, images=(column, ...), texts=(column, ...))."""
    return Placeholder(int(spec["examples"]), **{key: tuple(spec[key]) for key in ("images", "texts") if key in spec})
