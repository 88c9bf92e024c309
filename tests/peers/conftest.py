"""Tests beside PyTorch run apart from the others (`make test-peers`): nothing here is imported by them."""
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

# torchvision's compiled operators don't load beside this torch; open_clip imports it for its transforms only
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
