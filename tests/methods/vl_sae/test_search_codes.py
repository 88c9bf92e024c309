"""Search by hash codes, and hits explained by concepts, on tiny runs whose objectives have such heads."""
import json

import jax
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax import job
from mcd_jax.evals import hamming
from mcd_jax.methods.vl_sae import concepts_explanation as concepts_explanation_lib
from mcd_jax.run import checkpoint
from mcd_jax.search import __main__ as command
from mcd_jax.search import engine as engine_lib
from mcd_jax.search import folder as folder_lib
from tests.methods.gap.test_gap_run import get_config
from tests.search.test_search import picture

FOUND = {"captions": {"3": "red circle", "5": "red heart", "8": "<b>sea</b>"},
         "units": [{"unit": 2, "mean": 0.5, "texts": [[3, 0.9], [5, 0.8], [8, 0.1]], "images": []},
                   {"unit": 0, "mean": 1.0, "texts": [[8, 0.2]], "images": []},
                   {"unit": 3, "mean": 0.1, "texts": [], "images": []}]}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / f"images/{i}.png").write_bytes(picture((40 * i, 255 - 40 * i, 20 * i), size=(16 + i, 16)))
    return tmp_path / "images"


def trained(folder, objective, **model):
    """A run of untrained parameters."""
    config = get_config()
    config.objective, config.evals = objective, {}
    for key, value in model.items():
        config.model[key] = value
    folder.mkdir()
    made = job.build(config)
    with jax.set_mesh(made.mesh):
        saver = checkpoint.Checkpoints(folder)
        saver.save(3, made.init(jax.random.key(9))._replace(step=jax.numpy.int32(3)))
        saver.close()
    config_lib.save(made.config, folder / "config.json")
    made.pipeline.close()
    return folder


def test_concepts_are_named_by_their_captions(tmp_path):
    path = tmp_path / "analysis/concepts.json"
    with pytest.raises(ValueError, match=r"mcd-jax analyze concepts --workdir=.* names the concepts"):
        concepts_explanation_lib.Concepts(path)
    path.parent.mkdir()
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"is not what mcd-jax analyze concepts writes"):
        concepts_explanation_lib.Concepts(path)
    path.write_text(json.dumps(FOUND))
    found = concepts_explanation_lib.Concepts(path)
    fired = np.float32([0.4, 1.0, 0.2, 0.3])
    assert found.words(fired, fired) == ["<b>sea</b>", "red circle / red heart"]   # scores 0.16 and 0.04 / 0.5
    assert found.words(fired, np.float32([1, 1, 0, 1])) == ["<b>sea</b>"] and found.words(fired, np.zeros(4, np.float32)) == []


@pytest.mark.full
def test_hash_codes_find_and_cosines_order(tmp_path, images, capsys):
    workdir = trained(tmp_path / "run", config_lib.objective("ahlr", bits=16, positives="pair"))
    folder = folder_lib.Folder(images)
    engine = engine_lib.Engine(workdir, folder, bits=True, shortlist=3)
    codes = engine.index.extra["hash"]
    assert codes.dtype == np.uint8 and codes.shape == (6, 2)
    question = engine.text("red circle")
    order = np.lexsort((np.arange(6), hamming.distances(hamming.pack(question.codes[None]), codes)[0]))[:3]
    expected = sorted(order, key=lambda row: (-float(engine.index.image[row] @ question.unit), row))
    assert [hit.row for hit in engine.nearest([question], 3)] == expected
    assert engine.nearest([engine.member(4)], 1)[0].row == 4
    everything = engine_lib.Engine(workdir, folder)
    assert everything.embedded == 0 and len(everything.nearest([everything.text("red")], 9)) == 6
    plain = trained(tmp_path / "plain", config_lib.objective("clip"))
    with pytest.raises(SystemExit, match="makes no hash codes"):
        command.main([f"--workdir={plain}", f"--images={images}", "--text=x", "--bits"])


@pytest.mark.full
def test_hits_say_which_concepts_they_share_with_the_question(tmp_path, images, capsys):
    locked = ("image", "image/proj", "text", "text/proj")
    workdir = trained(tmp_path / "run", config_lib.objective("vl_sae", k=4, ratio=2), locked=locked)
    with pytest.raises(ValueError, match="analyze concepts"):
        engine_lib.Engine(workdir, folder_lib.Folder(images))
    (workdir / "analysis").mkdir()
    units = [{"unit": i, "mean": 1.0, "texts": [[i, 1.0]], "images": []} for i in range(32)]
    captions = {str(i): f"unit {i}" for i in range(32)}
    (workdir / "analysis/concepts.json").write_text(json.dumps({"captions": captions, "units": units}))
    engine = engine_lib.Engine(workdir, folder_lib.Folder(images))
    question = engine.member(2)
    assert question.concepts.shape == (32,) and np.count_nonzero(question.concepts) == 4
    hit = engine.nearest([question], 1)[0]
    strongest = np.argsort(-question.concepts, kind="stable")[:3]
    assert hit.row == 2 and hit.words == tuple(f"unit {i}" for i in strongest)
    command.main([f"--workdir={workdir}", f"--images={images}", f"--image={images}/2.png", "--count=1"])
    assert "2.png  [unit " in capsys.readouterr().out
