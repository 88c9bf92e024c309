"""One tower for both modalities goes nowhere."""
import pytest

from mcd_jax import config as config_lib
from mcd_jax.configs import limoe_emoji
from mcd_jax.convert import __main__ as command


def test_one_tower_for_both_modalities_has_no_counterpart(tmp_path):
    config_lib.save(limoe_emoji.get_config(), tmp_path / "config.json")
    with pytest.raises(SystemExit, match=r"one tower for both modalities \(config.model.shared\) has no counterpart"):
        command.main(["export", f"--workdir={tmp_path}", "--to=open_clip", f"--out={tmp_path / 'out'}"])
