"""Photo-like JPEGs with captions, made from a seed and written as shards: for benchmarks on machines without data."""
import io
import pathlib
import tarfile

from array_record.python import array_record_module
import cv2
import numpy as np
import simplejpeg
from tensorflow_datasets.proto import tf_example_pb2

SIZES = {"500x375": 5.0, "1000x750": 2.3}  # strength of the texture: files of 49 and 117 KB on average, as on the web
_WORDS = ("a", "the", "two", "old", "red", "green", "house", "dog", "river", "man", "woman", "on", "beside", "under", "of")
_MIX = np.array([[0.7, 0.2, 0.1], [0.25, 0.6, 0.15], [0.1, 0.25, 0.65]])  # channels of photos go together


def photo(seed, height, width, texture):
    """Smooth fields of colour from coarse to fine, an edge, and texture that is stronger here than there.

    Args:
      texture: standard deviation of the noise, of 255, where it is neither strong nor weak.

    Returns:
      uint8 (height, width, 3).
    """
    random = np.random.default_rng(seed)
    stretch = lambda field: cv2.resize(field.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.full((height, width, 3), 118, np.float32)
    for cells, strength in ((3, 90), (6, 60), (12, 40), (24, 25), (48, 14), (96, 8)):
        shape = (-(-height * cells // max(height, width)) + 1, cells + 1, 3)
        pixels += stretch(random.normal(0, strength, shape) @ _MIX)
    relief = stretch(random.normal(0, 1, (4, 5)))
    pixels[relief > 0.3] = 47 + 0.6 * pixels[relief > 0.3] + random.normal(0, 60, 3)
    noise = random.normal(0, texture, (height, width)) * np.clip(1.2 * np.abs(relief), 0.15, 1.6)
    return np.clip(pixels + noise[..., None], 0, 255).astype(np.uint8)


def examples(size, count):
    """Yields `count` pairs (JPEG bytes, caption of about eight words) of pictures of a size of SIZES."""
    width, height = map(int, size.split("x"))
    for seed in range(count):
        pixels = photo(seed, height, width, SIZES[size])
        words = np.random.default_rng(seed).choice(_WORDS, 8)
        yield simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"), " ".join(words)


def write(folder, size, count):
    """Writes the same examples as a WebDataset archive, photos.tar, and as photos.array_record of tf.train.Example.

    Returns:
      mean size of a JPEG in bytes.
    """
    folder = pathlib.Path(folder)
    records = array_record_module.ArrayRecordWriter(str(folder / "photos.array_record"), "group_size:1")
    sizes = []
    with tarfile.open(folder / "photos.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (data, caption) in enumerate(examples(size, count)):
            sizes.append(len(data))
            example = tf_example_pb2.Example()
            for name, value in (("image", data), ("text", caption.encode())):
                example.features.feature[name].bytes_list.value.append(value)
            records.write(example.SerializeToString())
            for ending, value in (("jpg", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(value)
                archive.addfile(member, io.BytesIO(value))
    records.close()
    return sum(sizes) / count
