"""configs/pairs.py: arguments, models, methods and what it refuses; forms of data stand in data/test_detect.py."""
import math

import jax
from mcd_jax.configs.evals import probe as probe_file
from mcd_jax.configs.evals import retrieval as retrieval_file
from mcd_jax.configs.evals import zeroshot as zeroshot_file
import own_data
import pytest

from mcd_jax import job, train
from mcd_jax.configs import pairs, pretrain, scenes_clip
from mcd_jax.data import sources


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    place = tmp_path_factory.mktemp("a,b=c") / "x,size=y"   # both signs in the path
    own_data.sidecars(place)
    return place


@pytest.mark.parametrize("method", pairs.METHODS)
def test_every_method_gets_its_views(method, mine):
    config = pairs.get_config(f"data={mine.parent},method={method}")
    built = job.build(config)
    assert set(built.objective.needs) <= set(built.batch)
    assert built.total_steps == math.ceil(30 * len(sources.open(config.data.source)) / config.batch_size)
    built.pipeline.close()


def test_train_and_held_out_share_nothing_and_are_all(mine):
    config = pairs.get_config(f"data={mine.parent},hold_out=0.3")
    held_out = config.evals.retrieval.held_out.source
    train, kept = ({row["key"] for row in sources.open(spec)} for spec in (config.data.source, held_out))
    assert not train & kept and len(train | kept) == 40 and len(kept) > 4


def test_a_part_that_is_kept_is_in_neither_where_a_share_is_given(tmp_path):
    own_data.hugging_face(tmp_path)   # its own validation part
    found = pairs.detect(str(tmp_path))
    assert found.held_out and pairs.parts(found, 0, "x").rule == "the part that the data set itself keeps for it"
    with_share = pairs.parts(found, 0.3, "x")
    assert sum(with_share.examples) == len(sources.open(found.spec))
    assert with_share.left_out == ("hold_out=0.3 parts the rest: what the data set itself keeps for validation is in neither part",)


@pytest.mark.parametrize("examples, share", [(10, 0.2), (499, 0.2), (500, 0.1), (50_000, 0.1), (50_001, 0.05), (3_000_000, 0.001),
                                             (10 ** 9, 0.0001)])
def test_how_much_is_held_out(examples, share):
    assert pairs.chosen_share(examples) == share


@pytest.mark.parametrize("name, size, parameters", [
    ("small", 64, 10.3e6), ("ViT-B/32", 224, 151e6), pytest.param("medium", 112, 22e6, marks=pytest.mark.full),
    pytest.param("ViT-S/16", 224, 62.5e6, marks=pytest.mark.full), pytest.param("RN50", 224, 102e6, marks=pytest.mark.full)])
def test_models(name, size, parameters, mine):
    config = pairs.get_config(f"data={mine.parent},model={name}")
    built = job.build(config)
    total = sum(x.size for x in jax.tree.leaves(built.abstract.params))
    assert built.batch["image"].shape[1:3] == (size, size) and total == pytest.approx(parameters, rel=0.05)
    built.pipeline.close()


def test_batches_fit_the_model_and_the_data(tmp_path, monkeypatch):
    own_data.sidecars(tmp_path / "x", 40)
    monkeypatch.setattr(pairs, "parts", lambda found, share, path: pairs.Parts(found.spec, found.spec, (100_000, 5000), "so"))
    sizes = {name: pairs.get_config(f"data={tmp_path}/x,model={name}") for name in ("small", "ViT-B/32", "ViT-L/14")}
    assert [(c.batch_size, c.microbatches) for c in sizes.values()] == [(256, 1), (1024, 4), (1024, 16)]
    config = pairs.get_config(f"data={tmp_path}/x,model=ViT-B/32,batch_size=1000,lr=0.1,context=9,size=32,epochs=2.5")
    assert (config.steps, config.microbatches, config.optimizer.lr) == ("2.5 epochs", 4, 0.1)
    assert config.data.views.text == "caption('random')|tokenize(9, 'clip')" and "crop(32," in config.data.views.image


def test_it_says_what_it_decided_once(mine, capsys):
    pairs._say.cache_clear()
    for _ in range(2):
        pairs.get_config(f"data={mine.parent},method=slip")
    told = capsys.readouterr().out
    assert told.count("pairs: what was found") == 1
    for piece in ("40 images with .txt beside them", "text .txt", "held out (those whose key's hash is below 0.2",
                  "small, images of 64 px", "slip, with the views view1 and view2", "steps of 8", "retrieval on the held-out part"):
        assert piece in told, piece


def test_its_data_are_named_from_the_current_folder(mine, monkeypatch):
    config = pairs.get_config(f"data={mine.parent}")
    assert train._data(config) == str(mine.parent)   # the config, which a resumed run compares, has the whole path
    monkeypatch.chdir(mine.parent.parent)
    assert train._data(config) == mine.parent.name
    assert train._data(scenes_clip.get_config()) == "scenes of emoji"


@pytest.mark.parametrize("arguments, message", [
    ("", "say where your pairs are"), ("data={},modle=small", "unknown argument.*'modle'; did you mean 'model'"),
    ("data={}/gone", "there is no such file or folder"),
    ("data={},model=ViT-Q/16", "model=ViT-Q/16 is unknown: it is small, medium"),
    ("data={},model=ViT-B", "with the patch size behind a slash"), ("data={},method=albef", "pairs alone suffice for clip, siglip"),
    ("data={},hold_out=2", "a number between 0 and 1"), ("data={},hold_out=0", "hold_out=0.0 of this config must be"),
    ("data={},hold_out=30%", "of this config: a number is needed"), ("data={},lr=0", "lr=0.0 of this config must be"),
    ("data={},size=64,size=32", "'size' of this config is given twice, as '64' and '32'"),
    ("data={},text=", "'text=' of this config: it has no value: write one, or leave text out"),
    ("data={},hold_out=0.001", "both parts need two at least: set hold_out=0.3"),
    ("data={},epochs=many", "write epochs=30.0, say"), ("data={},method=my_lab.gone", "my_lab")])
def test_what_does_not_fit_is_one_sentence(arguments, message, mine):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        pairs.get_config(arguments.format(mine.parent))
    assert "\n" not in str(error.value)


def test_commas_and_equals_signs_in_paths(mine, tmp_path):
    read = lambda text: pretrain.arguments(text, data="", size=0, model="small")
    assert read(f"data={mine.parent},size=4") == {"data": str(mine.parent), "size": 4, "model": "small"}
    assert read("data=/a/{x,y}.tar,model=b") == {"data": "/a/{x,y}.tar", "size": 0, "model": "b"}
    assert read("model=b,data=/a,b,c")["data"] == "/a,b,c"
    assert read(f"data={mine},size=4") == {"data": str(mine), "size": 4, "model": "small"}   # which has ",size=y" in it
    (tmp_path / "x").mkdir()
    (tmp_path / "x,size=4").mkdir()
    assert read(f"data={tmp_path}/x,size=4") == {"data": f"{tmp_path}/x", "size": 4, "model": "small"}   # an argument, if it can be
    with pytest.raises(ValueError, match="unknown argument of this config: 'b'"):
        read("data=/a,b=c")   # no path that exists begins so
    with pytest.raises(ValueError, match="write data=my_pairs if that is where your data are"):
        read("my_pairs")
    own_data.class_folders(tmp_path / "a,b=c")
    found = zeroshot_file.get_evals(f"folder={tmp_path}/a,b=c,n=5")["zeroshot"]
    assert list(found) == ["a_b_c"] and found["a_b_c"]["n"] == 5 and found["a_b_c"]["names"][0] == "blue things"


def test_rows_that_cannot_be_used_are_told(tmp_path, capsys):
    own_data.csv_table(tmp_path / "table")
    (tmp_path / "table" / "images" / "7.jpg").unlink()
    own_data.json_sidecars(tmp_path / "beside")
    for name in ("table", "beside"):
        pairs.get_config(f"data={tmp_path}/{name}")
    told = capsys.readouterr().out
    assert "1 rows whose image doesn't exist are left out" in told and "left out: 2 x failed (failed_to_download)" in told


def test_own_classes_in_evaluations(tmp_path):
    own_data.class_parts(tmp_path / "mine")
    with pytest.raises(ValueError, match="'folder=' has no value"):   # an empty variable of the shell: not the sets of the default
        zeroshot_file.get_evals("folder=")
    zeroshot = zeroshot_file.get_evals(f"folder={tmp_path}/mine")["zeroshot"]["mine"]
    assert zeroshot["source"]["path"].endswith("/val") and zeroshot["templates"] == zeroshot_file.TEMPLATES
    given = probe_file.get_evals(f"folder={tmp_path}/mine/train")["probe"]["train"]
    sides = [{row["key"] for row in sources.open(given[part])} for part in ("train", "source")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40
    given = probe_file.get_evals(f"folder={tmp_path}/mine")["probe"]["mine"]
    assert (given["train"]["path"], given["source"]["path"]) == (f"{tmp_path}/mine/train", f"{tmp_path}/mine/val")
    (tmp_path / "names.json").write_text('{"gone": "x"}')
    own_data.sidecars(tmp_path / "pairs")
    for file, arguments, message in (
            (zeroshot_file, f"folder={tmp_path}/mine,names={tmp_path}/names.json", "'gone' is no class's folder"),
            (zeroshot_file, f"folder={tmp_path}/pairs", "a folder for each class is needed"),
            (zeroshot_file, f"sets=cifar10,names={tmp_path}/names.json", "names=FILE is for a folder of your own"),
            (retrieval_file, f"data={tmp_path}/mine", "no captions: classes are for the evaluations zeroshot")):
        with pytest.raises(ValueError, match=message):
            file.get_evals(arguments)


def test_own_pairs_in_retrieval(tmp_path, mine):
    given = retrieval_file.get_evals(f"data={mine},hold_out=0.2")["retrieval"]["x_size_y"]
    config = pairs.get_config(f"data={mine}")
    assert given["source"] == config.evals.retrieval.held_out.source.to_dict()   # the part that training left out
    own_data.karpathy(tmp_path / "k")
    for images in ("", f",images={tmp_path}/k"):
        given = retrieval_file.get_evals(f"data={tmp_path}/k/dataset_mine.json{images}")["retrieval"]["dataset_mine"]
        assert given["texts"] == "all" and len(sources.open(given["source"])) == 8


def test_a_class_of_one_image_costs_the_probe_and_not_the_run(tmp_path, capsys):
    own_data.class_folders(tmp_path / "mine")
    held = next(n for n in range(100) if pairs.hold_out.place(f"rare/{n}.jpg") < 0.2)
    (tmp_path / "mine" / "rare").mkdir()
    (tmp_path / "mine" / "rare" / f"{held}.jpg").write_bytes(own_data.picture(0))
    config = pairs.get_config(f"data={tmp_path}/mine")
    assert list(config.evals) == ["zeroshot"] and "no linear probe: the class rare" in capsys.readouterr().out
