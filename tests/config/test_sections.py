"""What modules of one's own may leave undeclared."""
import pytest

from mcd_jax import config as config_lib
from mcd_jax.config import base, sections


def lab(folder, monkeypatch, name, text):
    """A module of one's own, importable as `name`."""
    (folder / f"{name.rpartition('.')[2]}.py").write_text(text)
    monkeypatch.syspath_prepend(folder.parent)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "own_lab_of_keys").mkdir()
    (tmp_path / "own_lab_of_keys" / "__init__.py").write_text("")
    return tmp_path / "own_lab_of_keys"


def test_a_module_of_ones_own_declares_all_names_or_nothing(package, monkeypatch):
    lab(package, monkeypatch, "own_lab_of_keys.open", "def make(spec): pass\n")
    lab(package, monkeypatch, "own_lab_of_keys.named", "KEYS = ('path', 'size')\ndef make(spec): pass\n")
    lab(package, monkeypatch, "own_lab_of_keys.typed",
        "from mcd_jax.config.keys import NEEDED, Key\nKEYS = {'path': Key('str', NEEDED, 'a file')}\ndef make(spec): pass\n")
    sections.check(dict(name="own_lab_of_keys.open", whatever=3), "source", "data.source")
    sections.check(dict(name="own_lab_of_keys.named", path=3), "source", "data.source")
    with pytest.raises(ValueError, match=r"unknown key config\.data\.source\.pth .*did you mean config\.data\.source\.path\?"):
        sections.check(dict(name="own_lab_of_keys.named", pth=3), "source", "data.source")
    with pytest.raises(ValueError, match=r"config\.data\.source\.path=3 must be a string"):
        sections.check(dict(name="own_lab_of_keys.typed", path=3), "source", "data.source")


def test_types_are_split_at_the_right_places():
    assert sections.kinds("str | map of int | None") == ["str", "map of int | None"]
    assert sections.section_of("None | tuple | source") == "source" and sections.section_of("str | tuple") is None
    assert sections.pairs_of("pairs of str | tuple") == "str | tuple" and sections.pairs_of("tuple") is None


def test_lists_are_settled_as_tuples_and_whole_numbers_as_floats():
    config = dict(optimizer=dict(lr=1, schedule=[[".*", None]], clip_norm=None), sharding=[["a", [None, "data"]]], init_fresh=None)
    settled = sections.settled(config, base.BASE)
    assert settled == dict(optimizer=dict(lr=1.0, schedule=((".*", None),), clip_norm=None),
                           sharding=(("a", (None, "data")),), init_fresh=())
    assert type(settled["optimizer"]["lr"]) is float


def test_a_config_without_its_keys_says_where_to_start():
    with pytest.raises(ValueError, match=r"config\.seed is missing: start from mcd_jax\.config\.default\(\)"):
        config_lib.check(config_lib.default().__class__({}))
