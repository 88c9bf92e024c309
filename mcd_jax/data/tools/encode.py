"""An example of any source as a record of tf.train.Example with a small JPEG, as `pack` writes them.

A record has image, text (all captions as they are stored), key, every column of numbers (whole ones and flags as int64, others as
float32; not arrays of several dimensions) and the text columns asked for. An image whose shorter side is longer than the limit is
reduced to it, averaged over areas; none is enlarged. A JPEG that needs no reduction keeps its bytes; everything else becomes a JPEG
with colours at half resolution (4:2:0) and transparent parts on white. EXIF orientation is ignored, as `decode.decode` does.
"""
import numbers

import cv2
import numpy as np
import simplejpeg

from mcd_jax.data import decode, tokenizers

ROLES = ("image", "text", "key")


def small_jpeg(data, short_side, quality):
    """An encoded image as a JPEG whose shorter side is at most `short_side` pixels (0: any), see the module.

    Raises:
      image.Bad: what `decode.decode` refuses, or a picture too long for a JPEG.
    """
    pixels = decode.decode(bytes(data))   # also of a file that is kept: a truncated one must not be
    height, width = pixels.shape[:2]
    large = 0 < short_side < min(height, width)
    if decode.is_jpeg(data) and not large:
        return bytes(data)
    if large:
        scale = short_side / min(height, width)
        pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    if max(pixels.shape) > 65500:
        raise decode.Bad("giant image", f"{pixels.shape[1]}x{pixels.shape[0]} is too long for a JPEG")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def record(example, short_side, quality, keep=()):
    """(serialised tf.train.Example of a source's example, set of the names of columns that it leaves out), see the module.

    Args:
      example: as a source gives it. keep: names of text columns to carry along.

    Raises:
      image.Bad: training could not use the example. ValueError: a whole number beyond 64 bits, or a column of `keep` without text.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    message, left_out = tf_example_pb2.Example(), set()
    feature = message.features.feature
    if not isinstance(example["image"], (bytes, bytearray, memoryview)):   # such as a list of several
        raise decode.Bad("image not bytes", f"column 'image' holds {type(example['image']).__name__}")
    feature["image"].bytes_list.value.append(small_jpeg(bytes(example["image"]), short_side, quality))
    tokenizers.captions({"text": example["text"]}, "text")   # refuses what training would
    feature["text"].bytes_list.value.extend(map(_bytes, _list(example["text"])))
    feature["key"].bytes_list.value.append(_bytes(example["key"]))
    for name, value in example.items():
        if name in ROLES:
            continue
        values = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else _list(value)
        if name in keep:
            if not all(isinstance(one, (str, bytes)) for one in values):
                raise ValueError(f"--keep={name}: the column holds {type(values[0]).__name__}, not text")
            feature[name].bytes_list.value.extend(map(_bytes, values))
        elif not values or value is None:
            feature[name].SetInParent()   # comes back as an empty list
        elif all(isinstance(one, (numbers.Integral, np.bool_)) for one in values):
            try:
                feature[name].int64_list.value.extend(map(int, values))
            except ValueError as error:
                raise ValueError(f"column {name!r}: {value!r} does not fit into 64 bits") from error
        elif all(isinstance(one, (numbers.Real, np.bool_)) for one in values):
            feature[name].float_list.value.extend(map(float, values))
        else:
            left_out.add(name)
    return message.SerializeToString(deterministic=True), left_out


def _list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _bytes(value):
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
