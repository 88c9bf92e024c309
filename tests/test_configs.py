"""Names of configs: what they stand for, and the sentence where they stand for nothing."""
import importlib
import pathlib
import re
import sys

import pytest

from mcd_jax import config as config_lib
from mcd_jax import configs
from mcd_jax.data.tools import pack
from mcd_jax.evals import building
from mcd_jax.sweep import plan

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_every_config_of_the_folder_has_a_name():
    found, evals = configs.names(), configs.names("evals")
    defining = [file for file in (ROOT / "configs").rglob("*.py") if "def get_config" in file.read_text()]
    assert sorted(found.values()) == sorted(defining) and len(found) == len(defining) > 20
    assert {"mcd_emoji", "clip_emoji", "albef_b16"} <= found.keys() and not {"emoji", "pretrain", "zeroshot"} & found.keys()
    assert {"zeroshot", "retrieval", "probe"} <= evals.keys() and "mcd_emoji" not in evals
    for kind, files in (("config", found), ("evals", evals)):
        for name, file in files.items():
            assert configs.resolve(f"{name}:a=1,b=x:y", kind) == f"{file}:a=1,b=x:y"


def test_a_path_is_the_file_and_a_name_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mcd_emoji.py").write_text("mine")
    assert configs.resolve("mcd_emoji.py:x") == "mcd_emoji.py:x"
    assert configs.resolve(f"{tmp_path}/mcd_emoji.py") == f"{tmp_path}/mcd_emoji.py"
    assert configs.resolve("mcd_emoji") == str(configs.FOLDER / "mcd_emoji.py")   # whatever the folder has


@pytest.mark.parametrize("spec, kind, sentence", [
    ("mcd_emogi:1", "config", r"--config=mcd_emogi:1: the package has no 'mcd_emogi'; did you mean 'mcd_emoji'.*a file of"),
    ("zzz", "config", r"--config=zzz: the package has no 'zzz'; there are .*clip_emoji, .*mcd_emoji"),
    ("zershot", "evals", r"--evals=zershot: .*did you mean 'zeroshot'"),
    ("zeroshot", "config", r"--config=zeroshot: the package has no 'zeroshot'"),
    ("somewhere/mcd_emoji.py", "config", r"there is no file somewhere/mcd_emoji.py; the package has one .*: --config=mcd_emoji$"),
    ("mine.py:x", "config", r"--config=mine.py:x: there is no file mine.py$"),
    ("", "config", r"--config=: the package has no ''; there are"),
])
def test_a_name_of_nothing_is_a_sentence_with_the_nearest(spec, kind, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=sentence) as error:
        configs.resolve(spec, kind)
    assert "\n" not in str(error.value)


def test_files_of_one_name_in_two_folders_go_by_their_folders(tmp_path, monkeypatch):
    for folder in ("a", "b", "c/d"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.py").write_text("def get_config():\n    return 1\n")
    (tmp_path / "a/y.py").write_text("from z import get_config\nget_config = get_config\n")
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    assert configs.names() == {"a/x": tmp_path / "a/x.py", "y": tmp_path / "a/y.py", "b/x": tmp_path / "b/x.py",
                               "c/d/x": tmp_path / "c/d/x.py"}
    assert configs.resolve("c/d/x:1") == f"{tmp_path}/c/d/x.py:1" and configs.resolve("a/y") == f"{tmp_path}/a/y.py"


def test_whatever_takes_a_config_takes_a_name():
    assert config_lib.from_file("slip_emoji", ["--config.seed=3"]).seed == 3
    assert config_lib.from_file("clip_emoji:vit").model.image.name == "vit"
    assert len(plan.collect("temperature_emoji")) == 6
    assert list(building.read_evals(["zeroshot:sets=cifar10"])["zeroshot"]) == ["cifar10"]
    assert pack.read_source(["slip_emoji"])["name"] == "emoji"
    run = plan.plan("temperature_emoji", "runs/weights")[0]
    assert "--config=temperature_emoji" in run.command and run.config["objective"]["name"] == "clip"


def test_no_module_takes_the_name_configs_from_its_user(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/emoji.py").write_text("MINE = 1\n")
    for name in [name for name in sys.modules if name == "configs" or name.startswith("configs.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert importlib.import_module("configs.emoji").MINE
    assert importlib.import_module("mcd_jax.configs.emoji").SIZE == 48
    for folder in ("configs", "mcd_jax", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) configs\b", file.read_text(), re.MULTILINE), file
    for name in [name for name in sys.modules if name == "configs" or name.startswith("configs.")]:
        del sys.modules[name]
