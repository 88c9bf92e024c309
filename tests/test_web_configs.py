"""The published recipes for web pairs: each is planned for a pod without its data, and says which data there are."""
import importlib

import pytest

from mcd_jax.configs import pretrain
from tests.costs.test_compile import is_planned

# parameters; CLIP's own are 151 (open_clip's model profile), and the head for masked words has 25
MILLIONS = dict(alip=151, declip=180, defilip=180, eclipse=151, filip=152, uniclip=152)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_published_recipe_is_planned_without_its_data(name):
    is_planned(importlib.import_module(f"mcd_jax.configs.web.{name}_web").get_config("batch_size=64,fsdp=2"), MILLIONS[name] * 1e6)


def test_data_and_length_of_published_recipes():
    views = dict(image=pretrain.ORIGINAL)
    config = pretrain.published("data=cc3m,image=B/16", views)
    assert (config.steps, config.batch_size, config.model.image.variant) == ("40 epochs", 4096, "B/16")
    assert config.data.source.path == "data/cc3m/*.array_record" and pretrain.published("source=/x", views).data.source.path == "/x"
    with pytest.raises(ValueError, match="unknown value of the argument data of this config: 'cc12m'"):
        pretrain.published("data=cc12m", views)
