"""The configs of MCD: arguments, plans for pods, the sweep."""
import pathlib

import pytest

from mcd_jax import job
from mcd_jax.configs import mcd_web, study_scenes
from mcd_jax.sweep import plan
from tests.costs.test_compile import is_planned

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("variant, parameters", [("b32_yfcc15m", 151e6), ("b16_yfcc15m", 150e6), ("b16_cc3m", 150e6),
                                                 ("l14_yfcc15m", 427e6)])   # open_clip's model profile
def test_every_variant_is_planned_without_its_data(variant, parameters):
    is_planned(mcd_web.get_config(f"variant={variant},batch_size=64,fsdp=2"), parameters)


def test_variants_differ_in_size_data_and_length():
    assert mcd_web.get_config() == mcd_web.get_config("variant=b16_yfcc15m")
    config = mcd_web.get_config("variant=b16_cc3m")
    assert (config.steps, config.batch_size, config.data.source.path) == ("40 epochs", 4096, "data/cc3m/*.array_record")
    assert mcd_web.get_config("variant=l14_yfcc15m,source=/x").data.source.path == "/x"
    with pytest.raises(ValueError, match="unknown variant of this config: 'b16_cc3'; did you mean 'b16_cc3m'"):
        mcd_web.get_config("variant=b16_cc3")


def test_the_example_sweeps_weights_over_seeds(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = plan.plan("configs/mcd_emoji.py", "runs/weights")
    assert len(runs) == 9 and runs[8].name == "weights.misalignment=5.0,seed=2"


def test_a_true_misalignment_beside_a_mere_severity_is_refused():
    """Else a label is what a crop lost less how strong the crop of the original was: noise, and nothing shows it."""
    config = study_scenes.get_config("twitter")
    assert job.build(config).pipeline.views.true("image")
    config.data.views.image = "decode|crop(40, 0.6)"
    with pytest.raises(ValueError, match=r"views\.augmented reports what its caption lost, .* and image how strong"):
        job.build(config)
    config.objective.weights.misalignment = 0.0   # nothing compares them
    job.build(config)
