"""The input pipeline beside others, in one process on the same photos, by turns: CPU time for each image.

One view of 224 pixels, cropped as open_clip trains (RandomResizedCrop, 0.9 to 1 of the area), captions left as they are:
  ours            the training pipeline over the WebDataset archive: uint8 batches (pixels are normalised on the device)
  open_clip       open_clip_train.data.get_wds_dataset with open_clip.image_transform over the same archive: float32 batches
  pil             Image.open, crop, bicubic resize and a uint8 batch: what is left without a framework

SLIP's three views (crop from 0.5; twice crop from 0.08, jitter, grey, blur, flip), from the encoded bytes to a batch:
  ours            as above
  slip_pil        SLIP's own transforms (torchvision's on PIL images, PIL's blur), as in its main.py and datasets.py
  slip_torchvision  the same as torchvision.transforms.v2 on uint8 tensors, decoded by PIL

torch computes with one thread. Ratios are medians of the turns' ratios: the machine may be busy, but then it is for all.
"""
import functools
import io
import pathlib
import random
import statistics
import time
import types

import numpy as np

from mcd_jax.bench import recipes
from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _torch():
    """torch, with what torchvision's Python code asks for where its compiled operators don't load beside this torch."""
    import torch

    torch.set_num_threads(1)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return torch, library


def _ours(source, recipe, pixels, batch_size):
    data = Pipeline(source, Views(recipes.views_at(pixels, recipe)), 0, batch_size, workers=0)
    steps = iter(range(2 ** 60))
    return lambda: len(data.batch(next(steps))["image"])


def _open_clip(folder, count, pixels, batch_size):
    import open_clip
    from open_clip_train import data
    from webdataset import tariterators

    # webdataset 1 marks the end of a shard by an example without a name, at which open_clip 3.3 stops
    data.tar_file_expander = functools.partial(tariterators.tar_file_expander, eof_value=None)
    transform = open_clip.image_transform(pixels, is_train=True, mean=_MEAN, std=_STD)
    options = types.SimpleNamespace(
        train_data=str(pathlib.Path(folder) / "photos.tar"), train_num_samples=count, train_data_upsampling_factors=None,
        dataset_resampled=False, seed=0, batch_size=batch_size, workers=0, world_size=1)
    loader = data.get_wds_dataset(options, transform, is_train=True, tokenizer=lambda text: [text]).dataloader
    return lambda: sum(len(images) for images, _ in loader)  # an epoch: it reads the archive before the first image


def _pil(source, pixels, batch_size):
    from PIL import Image

    crop = torchvision_crop((0.9, 1.0))
    order = iter(range(2 ** 60))

    def batch():
        rows = []
        for _ in range(batch_size):
            picture = Image.open(io.BytesIO(source[next(order) % len(source)]["image"])).convert("RGB")
            top, left, height, width = crop(picture)
            box = (left, top, left + width, top + height)
            rows.append(np.asarray(picture.crop(box).resize((pixels, pixels), Image.Resampling.BICUBIC)))
        return len(np.stack(rows))
    return batch


def torchvision_crop(scale):
    """A function picture -> (top, left, height, width) that draws as RandomResizedCrop does."""
    from torchvision.transforms import RandomResizedCrop

    return lambda picture: RandomResizedCrop.get_params(picture, scale, (3 / 4, 4 / 3))


def slip_transforms(pixels):
    """SLIP's (original, augmented) for PIL images: torchvision's transforms and PIL's blur with a random radius."""
    from PIL import ImageFilter
    from torchvision import transforms as t

    blur = lambda picture: picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    end = [t.ToTensor(), t.Normalize(_MEAN, _STD)]
    original = t.Compose([t.RandomResizedCrop(pixels, scale=(0.5, 1.0)), *end])
    augmented = t.Compose([
        t.RandomResizedCrop(pixels, scale=(0.08, 1.0)), t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        t.RandomGrayscale(p=0.2), t.RandomApply([blur], p=0.5), t.RandomHorizontalFlip(), *end])
    return original, augmented


def _v2_transforms(torch, pixels):
    from torchvision.transforms import v2 as t

    end = [t.ToDtype(torch.float32, scale=True), t.Normalize(_MEAN, _STD)]
    original = t.Compose([t.PILToTensor(), t.RandomResizedCrop(pixels, scale=(0.5, 1.0)), *end])
    augmented = t.Compose([
        t.PILToTensor(), t.RandomResizedCrop(pixels, scale=(0.08, 1.0)),
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), t.RandomGrayscale(p=0.2),
        t.RandomApply([t.GaussianBlur(9, (0.1, 2.0))], p=0.5), t.RandomHorizontalFlip(), *end])
    return original, augmented


def _slip(torch, source, transforms, batch_size):
    from PIL import Image

    original, augmented = transforms
    order = iter(range(2 ** 60))

    def batch():
        rows = []
        for _ in range(batch_size):
            picture = Image.open(io.BytesIO(source[next(order) % len(source)]["image"])).convert("RGB")
            rows.append((original(picture), augmented(picture), augmented(picture)))
        return min(len(torch.stack(view)) for view in zip(*rows))
    return batch


def _turns(contenders, rounds):
    """{name: images per CPU second} and {name: ratio of the first contender's rate to its}: medians over turns."""
    costs = {name: [] for name in contenders}
    for batch in contenders.values():
        batch()
    for _ in range(rounds):
        for name, batch in contenders.items():
            start = time.process_time()
            images = batch()
            costs[name].append((time.process_time() - start) / images)
    first = next(iter(costs))
    rates = {name: round(1 / statistics.median(values)) for name, values in costs.items()}
    ratios = {name: round(statistics.median(b / a for a, b in zip(costs[first], values)), 2)
              for name, values in costs.items() if name != first}
    return {"images_per_second_per_core": rates, "times_theirs": ratios}


def compare(folder, pixels=224, batch_size=64, rounds=5):
    """Measures everybody in the module's docstring on the archive photos.tar of `folder`."""
    torch, _library = _torch()
    source = sources.open({"name": "webdataset", "path": str(pathlib.Path(folder) / "photos.tar")})
    one = {"ours": _ours(source, recipes.ONE, pixels, batch_size),
           "open_clip": _open_clip(folder, len(source), pixels, batch_size),
           "pil": _pil(source, pixels, batch_size)}
    few = min(batch_size, 32)
    three = {"ours": _ours(source, recipes.THREE, pixels, few),
             "slip_pil": _slip(torch, source, slip_transforms(pixels), few),
             "slip_torchvision": _slip(torch, source, _v2_transforms(torch, pixels), few)}
    return {"one_view": _turns(one, rounds), "three_views": _turns(three, rounds)}
