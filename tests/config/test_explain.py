"""`python -m mcd_jax.config` and docs/config.md say what the code declares."""
from collections.abc import Sequence
import pathlib
import re
from typing import NamedTuple, Optional

import pytest

from mcd_jax import config as config_lib
from mcd_jax import plugins
from mcd_jax.config import base, explain, keys, overrides, sections
from mcd_jax.config.keys import NEEDED, Key

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOY = str(ROOT / "tests" / "configs" / "toy.py")


def blocks(text):
    """{heading: what stands below it}."""
    parts = re.split(r"^(#{2,3} .*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_documentation_is_what_the_code_declares():
    made, stored = explain.markdown(), (ROOT / "docs" / "config.md").read_text()
    written = blocks(stored)
    stale = [heading for heading, block in blocks(made).items() if written.get(heading, "").strip() != block.strip()]
    assert not stale, f"mcd-jax config --markdown > docs/config.md: {stale}"
    assert stored.startswith(made[:made.index("\n## ")])
    assert "| `optimizer.lr` | float | `0.001` | peak learning rate" in stored


def test_every_declared_key_has_a_meaning_and_a_default_of_its_type():
    declared = {"base": explain._flattened(base.BASE), "model": base.MODEL, "schedule": base.SCHEDULE, "eval": base.EVAL,
                **base.OPTIMIZERS, "experts": keys.of_fields(sections.module("model", "moe").Options)}
    for place, (_, kind) in explain._CHOICES.items():
        for name in plugins.known(kind):
            declared[f"{place} {name}"] = explain.of_module(place, name)[1]
    assert len(declared) > 50
    for where, own in declared.items():
        for name, key in own.items():
            assert key.meaning, (where, name)
            if key.default is not NEEDED and not isinstance(key.type, dict) and key.default is not None:
                sections.check(key.default, key.type, name)


def test_a_config_is_explained_with_what_it_sets():
    text = explain.answer(TOY, [("seed", "3")], [])
    for line in ("* seed = 3   (int, default 0)", "* optimizer.lr = 0.01   (float, default 0.001)", "  microbatches = 1   (int)",
                 "* model.text.width = 16   (int, default 192)", "  model.text.act = 'gelu'   (str)",
                 "* ema = 0.9   (float, default 0.0)", "* evals.retrieval.validation.match = 'concept_id'",
                 "* data.source.split = 'validation'   (str, default 'train')", "  objective.decay.clip = '0'   (duration)"):
        assert f"\n{line}" in text, line
    one = explain.answer(TOY, [], ["optimizer.lr"])
    assert "optimizer.lr = 0.01" in one and "peak learning rate" in one and "weight_decay" not in one
    assert "b2 = 0.98" in explain.answer(None, [], ["optimizer.optimizers"])
    assert "batch key -> the pipe" not in explain.answer(TOY, [], ["data.source"])


def test_a_module_is_explained_by_its_name():
    text = explain.answer(None, [], ["data.source.webdataset", "evals.retrieval", "model.image.vit"])
    assert "path   (str or tuple, needed)" in text and "ks = (1, 5, 10)   (tuple)" in text and "patch_size = 8   (int)" in text
    assert "There are array_record, " in explain.answer(None, [], ["data.source"])
    assert "path" in explain.answer(None, [("data.source.name", "parquet")], ["data.source"])


def test_an_unknown_key_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match=r"error: unknown key config\.optimizer\.lrr; did you mean config\.optimizer\.lr\?"):
        explain.main(["optimizer.lrr"])
    with pytest.raises(SystemExit, match="error: unknown flag --confg; did you mean --config"):
        explain.main(["--confg=x"])
    with pytest.raises(SystemExit, match=r"error: --config=nothing/here\.py: there is no file"):
        explain.main(["--config=nothing/here.py"])


def test_a_field_says_what_it_means_in_its_comment():
    found = keys.of_fields(Fields, ("hidden",))
    assert found == {"a": Key("int", NEEDED, ""), "b": Key("str", "x # y", "one, two three"), "c": Key("tuple", (), "four")}


class Fields(NamedTuple):
    a: int
    b: str = "x # y"    # one,
                        # two three
    c: tuple = ()       # four
    hidden: int = 1     # not asked for


def test_a_field_of_another_type_takes_any_value():
    class Others(NamedTuple):
        a: Optional[float] = None   # noqa: UP045
        b: list = ()
        c: Sequence[int] = ()
        d: tuple[int, ...] = ()
    found = keys.of_fields(Others)
    assert [own.type for own in found.values()] == ["any", "any", "any", "tuple"]
    assert keys.fits(found["a"].type, 1.5)


def test_defaults_are_a_config_of_their_own():
    first = config_lib.default()
    first.data.views.image = "decode"
    assert not config_lib.default().data.views
    assert overrides.field(config_lib.default(), "mesh.data") == -1
