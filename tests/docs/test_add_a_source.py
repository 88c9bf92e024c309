"""The source of docs/data.md: its code, taken out of the page, is read by the pipeline, and its keys are those of a config."""
import sys

from doc_pages import ROOT, blocks
import pytest

from mcd_jax import config as config_lib
from mcd_jax.data import sources
from mcd_jax.data.pipeline import Pipeline
from mcd_jax.data.views import Views

SPEC = "--config.data.source=dict(name=\"my_lab.letters\", size={})"


def test_a_source_of_ones_own_is_found_read_and_checked(tmp_path, monkeypatch):
    code, = [block.text for block in blocks(ROOT / "docs" / "data.md") if block.kind == "python" and "class Letters" in block.text]
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "letters.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        source = sources.open(config_lib.from_file("clip_emoji", [SPEC.format(32)]).data.source.to_dict())
        views = Views(dict(image="decode|resize(16)", text="caption('first')|tokenize(8, 'emoji')"))
        batch = Pipeline(source, views, 0, 8, workers=0).batch(0)
        assert len(source) == 26 and batch["image"].shape == (8, 16, 16, 3) and not batch["bad"].any()
        with pytest.raises(ValueError, match=r"config\.data\.source\.size='big' must be a whole number"):
            config_lib.from_file("clip_emoji", [SPEC.format("'big'")])
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
            del sys.modules[name]
