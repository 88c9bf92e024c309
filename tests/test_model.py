"""A run trained on four devices (fsdp=4), whose training data are gone, on one: every command, and `mcd_jax.load` beside them."""
import io
import json
import pathlib
import shutil
import subprocess
import sys

from foreign import MODELS, drawn
import jax
import numpy as np
from PIL import Image
import pytest

import mcd_jax
from mcd_jax import analyze, embed, evaluate, report, trained
from mcd_jax import config as config_lib
from mcd_jax import train as train_lib
from mcd_jax.convert import __main__ as convert
from mcd_jax.convert import foreign as formats
from mcd_jax.convert import runs
from mcd_jax.data import sources
from mcd_jax.evals import building, retrieval
from mcd_jax.run import console
from mcd_jax.search import __main__ as search
from mcd_jax.sharding import mesh as mesh_lib
from tests.sharding.test_distributed import Pair

SIZE, COUNT = 16, 12
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
NAMES = ["red", "green", "blue", "yellow", "cyan", "pink"]
TEMPLATES = ("a {} square", "{}")


def pictures(folder, seed):
    """COUNT pictures that aren't square, and a table of their captions."""
    folder.mkdir()
    rng, lines = np.random.default_rng(seed), ["image,text,kind"]
    for i in range(COUNT):
        noise = rng.integers(-40, 40, (20 + 2 * i, 36, 3))
        pixels = np.clip(np.array([[COLOURS[i % 6]]]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {NAMES[i % 6]} square number {i},{i % 6}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return dict(name="folder", path=str(folder), table="captions.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, folder of pictures that are still there)."""
    root = tmp_path_factory.mktemp("model")
    train, kept = (pictures(root / name, seed) for name, seed in (("train", 0), ("kept", 1)))
    config = config_lib.default()
    config.steps, config.batch_size, config.tensorboard, config.checkpoint.every = "3 steps", 8, False, ""
    config.mesh = dict(slice=1, data=1, fsdp=4, tensor=1, expert=1)
    config.objective, config.ema = config_lib.objective("clip"), 0.5
    config.model = MODELS["vit"][0]
    config.data.source = train
    config.data.views = dict(image=f"decode|crop({SIZE}, 0.5)",
                             text="caption('random')|tokenize(8, 'emoji', 'whitespace')")
    views = dict(image=f"decode|resize({SIZE}, 'bicubic')")
    config.evals = dict(
        retrieval=dict(kept=dict(source=kept, views=views, batch_size=64, every="1 epoch")),
        zeroshot=dict(colours=dict(source=kept, views=views, label="kind", names=NAMES, templates=TEMPLATES, batch_size=64)),
        gap=dict(kept=dict(source=kept, views=views), untrained=dict(source=kept, views=views, weights_from="init")))
    assert train_lib.train(config, str(root / "run")) == 0
    shutil.rmtree(root / "train")
    return root / "run", root / "kept"


ALL_DEVICES = jax.devices


def only_one(*backend):
    return ALL_DEVICES(*backend)[:1]


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(mesh_lib.jax, "devices", only_one)


@pytest.fixture(scope="module")
def embedded(run):
    """What the run's own evaluation of retrieval embeds: (images, texts) in the order of the table."""
    found, parts = {}, retrieval.parts

    def spied(config, name, *more):
        collect, score = parts(config, name, *more)

        def both(embed, state):
            found[name] = collect(embed, state)
            return found[name]
        return both, score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib.jax, "devices", only_one)
        patch.setattr(retrieval, "parts", spied)
        evaluate.evaluate(str(run[0]))
    return found["kept"][:2]


def files(folder):
    return [folder / f"{i}.png" for i in range(COUNT)]


def captions():
    return [f"a {NAMES[i % 6]} square number {i}" for i in range(COUNT)]


# ---- the commands ----------------------------------------------------------------------------------------------------------------

def test_evaluate_gives_the_figures_of_the_training(run, one_device, capsys):
    before = json.loads((run[0] / "evals.json").read_text())
    evaluate.main([f"--workdir={run[0]}"])
    after = json.loads((run[0] / "evals.json").read_text())
    assert before.keys() == after.keys() and len(before) > 20
    assert all(abs(before[key] - after[key]) < 1e-4 for key in before if "R@" not in key)
    assert "evaluating step 3" in capsys.readouterr().out


def test_evals_of_a_file_look_as_the_runs_own_do(run, one_device, tmp_path, capsys):
    """One default view, that of the run's evaluations: the file's instance says nothing and gets the same figures."""
    own = json.loads((run[0] / "evals.json").read_text())
    source = dict(name="folder", path=str(run[1]), table="captions.csv")
    (tmp_path / "mine.py").write_text(f"get_evals = lambda _: dict(retrieval=dict(other=dict(source={source}, batch_size=64)))")
    evaluate.main([f"--workdir={run[0]}", f"--evals={tmp_path}/mine.py"])
    now = json.loads((run[0] / "evals.json").read_text())
    assert now["retrieval/other/text_to_image/MRR"] == own["retrieval/kept/text_to_image/MRR"]
    gone = dict(source, path=str(run[0].parent / "train"))
    (tmp_path / "gone.py").write_text(f"get_evals = lambda _: dict(retrieval=dict(gone=dict(source={gone})))")
    with pytest.raises(SystemExit, match=r"error: config\.evals\.retrieval\.gone.*train' is not a folder"):
        evaluate.main([f"--workdir={run[0]}", f"--evals={tmp_path}/gone.py"])


def test_search(run, one_device, capsys):
    search.main([f"--workdir={run[0]}", f"--images={run[1]}", f"--image={run[1]}/3.png", "--count=2"])
    assert capsys.readouterr().out.splitlines()[0].endswith("3.png")


def test_embed(run, one_device, tmp_path):
    embed.main([f"--workdir={run[0]}", f"--out={tmp_path}/x.array_record", "--source", f"path={run[1]}"])
    about = json.loads((tmp_path / "x.array_record.json").read_text())
    assert about["rows"] == COUNT and about["views"]["image"] == f"decode|resize({SIZE}, 'bicubic')"
    with pytest.raises(SystemExit, match=r"train' is not a folder"):   # its own source is the training's
        embed.main([f"--workdir={run[0]}", f"--out={tmp_path}/y.array_record"])


def test_analyze(run, one_device, tmp_path, capsys):
    analyze.main(["gap", f"--workdir={run[0]}", "--rows=12", "--seeds=2"])
    found = json.loads((run[0] / "analysis/gap.json").read_text())
    assert found["pairs"] == "kept" and found["step"] == 3 and found["cone"]["untrained"]
    analyze.main(["rotate_towers", f"--workdir={run[0]}", f"--out={tmp_path}/turned", "--scale=20"])
    _, state = trained.open_run(str(tmp_path / "turned"))
    assert np.exp(float(state.params["logit_scale"])) == pytest.approx(20, rel=1e-5)
    with pytest.raises(SystemExit, match=r"train' is not a folder"):
        analyze.main(["rotate_towers", f"--workdir={run[0]}", f"--out={tmp_path}/other", "--rotate"])


def test_report(run, one_device):
    report.main([f"--workdir={run[0]}"])
    assert "data:image/webp" in (run[0] / "report.html").read_text()


@pytest.mark.full
def test_a_report_without_the_images_of_its_evaluations(run, one_device, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    text = (tmp_path / "run/config.json").read_text()
    (tmp_path / "run/config.json").write_text(text.replace(str(run[1]), str(tmp_path / "nowhere")))
    report.main([f"--workdir={tmp_path}/run"])
    assert "No pictures: config.evals.retrieval.kept" in (tmp_path / "run/report.html").read_text()


@pytest.mark.full
def test_a_process_that_has_one_device(run):
    done = subprocess.run([sys.executable, "-m", "mcd_jax.evaluate", f"--workdir={run[0]}"], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "retrieval" in done.stdout


@pytest.mark.full
def test_two_processes_evaluate_together(run):
    before = json.loads((run[0] / "evals.json").read_text())
    results = Pair(["-m", "mcd_jax.evaluate", f"--workdir={run[0]}"]).wait()
    assert [status for status, _, _ in results] == [0, 0], results[0][2][-2000:] + results[1][2][-2000:]
    after = json.loads((run[0] / "evals.json").read_text())
    assert all(abs(before[key] - after[key]) < 1e-4 for key in before if "R@" not in key)


# ---- load ------------------------------------------------------------------------------------------------------------------------

def test_embeddings_are_the_evaluations_bit_for_bit(run, embedded, one_device):
    loaded = mcd_jax.load(str(run[0]))
    assert loaded.mesh.size == 1 and loaded.step == 3
    image, text = loaded.embed_images(files(run[1])), loaded.embed_texts(captions())
    assert image.dtype == text.dtype == np.float32 and image.shape == text.shape == (COUNT, 8)
    np.testing.assert_array_equal(image, embedded[0])
    np.testing.assert_array_equal(text, embedded[1])
    np.testing.assert_array_equal(loaded.similarity(files(run[1]), captions()), loaded.similarity(image, text))
    np.testing.assert_allclose(loaded.similarity(image, text), image @ text.T)


def test_every_kind_of_image_gives_the_same(run, one_device):
    loaded, path = mcd_jax.load(run[0]), run[1] / "3.png"
    picture = Image.open(path)
    want = loaded.embed_images([path] * 2)[0]
    data = path.read_bytes()
    given = [path, str(path), np.str_(path), data, bytearray(data), memoryview(data), picture, np.asarray(picture),
             jax.numpy.asarray(picture), picture.convert("RGBA")]
    for row in loaded.embed_images(given):
        np.testing.assert_array_equal(row, want)
    for kind in (bytearray, memoryview, lambda data: np.array([str(path)])):
        np.testing.assert_allclose(loaded.embed_images(kind(data)), want[None], atol=1e-6)
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    np.testing.assert_array_equal(*loaded.embed_images([grey, Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)]))
    one = loaded.embed_images(path)   # by the function for few
    assert one.shape == (1, 8)
    np.testing.assert_allclose(one[0], want, atol=1e-6)
    np.testing.assert_array_equal(loaded.embed_images(np.stack([np.asarray(picture)] * 3))[2], want)
    np.testing.assert_array_equal(loaded.embed_images(iter([path, path]))[1], want)


def test_zero_shot_ranks_as_the_evaluation(run, one_device):
    loaded = mcd_jax.load(str(run[0]))
    shares = loaded.zero_shot(files(run[1]), NAMES, TEMPLATES)
    assert shares.shape == (COUNT, 6) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    right = np.mean(shares.argmax(axis=1) == np.arange(COUNT) % 6)
    assert right == pytest.approx(evaluate.evaluate(str(run[0]))["zeroshot/colours/top1"])
    np.testing.assert_array_equal(loaded.zero_shot(files(run[1]), [["red", "scarlet"], "blue"]).shape, (COUNT, 2))
    image, text = loaded.embed_images(files(run[1])), loaded.embed_texts(["a red square"])
    np.testing.assert_allclose(loaded.similarity(7 * image, 0.1 * text[0]), image @ text.T, atol=1e-6)   # cosines, of any length
    np.testing.assert_allclose(loaded.probabilities((image @ text.T).tolist()), 1)


def test_other_weights(run, one_device):
    names = ("params", "memory/ema", "init")
    params, teacher, fresh = (mcd_jax.load(str(run[0]), name).embed_texts(captions()) for name in names)
    assert np.abs(params - teacher).max() > 1e-4 and np.abs(params - fresh).max() > 1e-4
    with pytest.raises(ValueError, match="weights_from='memory/emma': this run's memory holds memory/ema"):
        mcd_jax.load(str(run[0]), weights_from="memory/emma")
    with pytest.raises(ValueError, match="no checkpoint of step 2: there are 3"):
        mcd_jax.load(str(run[0]), step=2)


def test_four_devices_give_the_same(run, embedded):
    """With the run's own mesh, over which its parameters are sharded."""
    loaded = mcd_jax.load(str(run[0]))
    assert loaded.mesh.shape["fsdp"] == 4
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(loaded.params)} == {4}
    np.testing.assert_allclose(loaded.embed_images(files(run[1])), embedded[0], atol=1e-5)


def test_pure_functions(run, one_device):
    loaded = mcd_jax.load(str(run[0]))
    batch = {"image": loaded.pixels(files(run[1])), "text": loaded.tokens(captions())}
    assert batch["image"].dtype == np.uint8 and batch["text"].shape == (COUNT, 8)
    out = jax.jit(loaded.apply)(loaded.params, batch)
    np.testing.assert_allclose(out["image"], loaded.embed_images(files(run[1])), atol=1e-6)
    grown = jax.tree.map(lambda x: x, loaded.params)
    grown["image"] = {**grown["image"], "proj": jax.tree.map(lambda x: 2 * x, grown["image"]["proj"])}
    np.testing.assert_allclose(loaded.apply(grown, batch)["image_raw"], 2 * out["image_raw"], rtol=1e-4, atol=1e-5)


def mistakes(loaded, folder):
    """[(call, error, message)] of what a user may get wrong."""
    floats, flat = np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)
    (folder / "broken.png").write_bytes(b"<html>")
    good, broken, gone = (folder / name for name in ("0.png", "broken.png", "none.png"))
    return [
        (lambda: loaded.embed_images([]), ValueError, "images is an empty list"),
        (lambda: loaded.embed_texts([]), ValueError, "texts is an empty list"),
        (lambda: loaded.embed_images(None), TypeError, "images must be a list, not NoneType"),
        (lambda: loaded.embed_images([good, broken]), ValueError, r"images\[1\] \(.*broken.png\) can't be used: corrupt"),
        (lambda: loaded.embed_images([good, gone]), FileNotFoundError, r"images\[1\]: the file .*none.png can't be read"),
        (lambda: loaded.embed_images([good, b""]), ValueError, r"images\[1\] can't be used: empty image"),
        (lambda: loaded.embed_images([good, floats]), ValueError, r"images\[1\] is an array \(4, 4, 3\) of float32: pixels"),
        (lambda: loaded.embed_images([flat]), ValueError, r"images\[0\] is an array \(4, 4\) of uint8"),
        (lambda: loaded.embed_images([7]), TypeError, r"images\[0\] is of type int: an image is a path"),
        (lambda: loaded.embed_texts(["a", 7]), TypeError, r"texts\[1\] is of type int"),
        (lambda: loaded.embed_texts(["a", " "]), ValueError, r"texts\[1\] is empty"),
        (lambda: loaded.embed_images(flat), ValueError, r"images\[0\] is an array \(4, 4\) of uint8"),
        (lambda: loaded.embed_images({good}), TypeError, "images must be a list, not set: row i of what comes out is entry i"),
        (lambda: loaded.embed_images(io.BytesIO(b"x")), TypeError, "images is an open file: give its path"),
        (lambda: loaded.embed_images(Image.new("RGB", (0, 5))), ValueError, r"images\[0\] is a PIL image of 0 x 5 pixels"),
        (lambda: loaded.embed_images(Image.new("F", (5, 5))), ValueError, r"images\[0\] is .* mode F, which .*: make it L or RGB"),
        (lambda: loaded.embed_images("a\0b"), ValueError, r"images\[0\] is 'a\\x00b', which is no path"),
        (lambda: loaded.zero_shot(good, None), TypeError, "class_names is of type NoneType: it must be a list"),
        (lambda: loaded.zero_shot(good, {"n01": ["red"]}), TypeError, "class_names is of type dict: it must be a list"),
        (lambda: loaded.zero_shot(good, ["red", 1]), TypeError, r"class_names\[1\] is or holds something of type int"),
        (lambda: loaded.zero_shot(good, ["red", ["blue", b"x"]]), TypeError, r"class_names\[1\] .* of type bytes: it must be"),
        (lambda: loaded.zero_shot(good, ["red"], [str.upper]), TypeError, r"templates\[0\] .*: it must be a str"),
        (lambda: loaded.zero_shot(good, ["red"], ["a photo"]), ValueError, "templates: 'a photo' has no"),
        (lambda: loaded.zero_shot(good, []), ValueError, "class_names is an empty list"),
        (lambda: loaded.zero_shot(good, ["red", []]), ValueError, r"class_names\[1\] is an empty list"),
    ]


def test_mistakes_are_sentences(run, one_device, tmp_path):
    shutil.copytree(run[1], tmp_path / "kept")
    for wrong, kind, message in mistakes(mcd_jax.load(str(run[0])), tmp_path / "kept"):
        with pytest.raises(kind, match=message):
            wrong()
    (tmp_path / "empty").mkdir()
    (tmp_path / "started").mkdir()
    shutil.copy(run[0] / "config.json", tmp_path / "started")
    (tmp_path / "odd.bin").write_bytes(b"x")
    changed = json.loads((run[0] / "config.json").read_text())
    changed["model"]["embed_dim"] = 12
    shutil.copytree(run[0], tmp_path / "changed")
    (tmp_path / "changed/config.json").write_text(json.dumps(changed))
    for path, kind, message in (("none", FileNotFoundError, "there is no run, folder or file"),
                                ("empty", ValueError, "is an empty folder"),
                                ("started", FileNotFoundError, "has no checkpoint yet"),
                                ("odd.bin", ValueError, "is no workdir of a run, and its files are of no format"),
                                ("changed", ValueError, r"params/image/proj/kernel is \(16, 8\) in the .* and \(16, 12\)")):
        with pytest.raises(kind, match=message):
            mcd_jax.load(str(tmp_path / path))
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        mcd_jax.load(str(run[0]), batch_size=0)


def test_a_bar_on_long_lists(run, one_device, monkeypatch):
    loaded, told = mcd_jax.load(str(run[0]), batch_size=4), io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    quiet = loaded.embed_texts(captions())
    assert told.getvalue() == ""
    monkeypatch.setattr(console, "EVERY", 0)
    np.testing.assert_array_equal(loaded.embed_texts(captions(), progress=False), quiet)
    assert told.getvalue() == ""
    np.testing.assert_array_equal(loaded.embed_texts(captions()), quiet)
    assert "embedding: text 8/12" in told.getvalue()


# ---- folders of other libraries --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("format", ["open_clip", "hf"])
def test_an_exported_run_is_loaded_back(run, one_device, tmp_path, format):
    convert.main(["export", f"--workdir={run[0]}", f"--to={format}", f"--out={tmp_path}/out"])
    assert formats.format_at(tmp_path / "out") == format
    ours, theirs = mcd_jax.load(str(run[0])), mcd_jax.load(str(tmp_path / "out"))
    np.testing.assert_allclose(theirs.embed_images(files(run[1])), ours.embed_images(files(run[1])), atol=1e-5)
    np.testing.assert_allclose(theirs.embed_texts(captions()), ours.embed_texts(captions()), atol=1e-5)


@pytest.mark.parametrize("kind, format", [("siglip", "big_vision"), pytest.param("siglip", "hf", marks=pytest.mark.full)])
def test_an_imported_model_and_its_export(kind, format, run, one_device, tmp_path):
    """A workdir that an import made, and the folder that is exported from it."""
    own, inputs = MODELS[kind]
    tokens, view = runs.Tokens(7, "emoji", "whitespace"), runs.View("resize", "bicubic")
    imported = runs.Imported(own, inputs, drawn(own, inputs), tokens, view, [], "here")
    runs.write_workdir(imported, tmp_path / "in")
    convert.main(["export", f"--workdir={tmp_path}/in", f"--to={format}", f"--out={tmp_path}/out"])
    assert formats.format_at(tmp_path / "out") == format
    ours, theirs = mcd_jax.load(str(tmp_path / "in")), mcd_jax.load(str(tmp_path / "out"))
    np.testing.assert_allclose(theirs.embed_images(files(run[1])), ours.embed_images(files(run[1])), atol=1e-5)
    np.testing.assert_allclose(theirs.embed_texts(captions()), ours.embed_texts(captions()), atol=1e-5)
    with pytest.raises(ValueError, match=r"step=3: .* is a foreign checkpoint"):
        mcd_jax.load(str(tmp_path / "out"), step=3)


# ---- what isn't touched ----------------------------------------------------------------------------------------------------------

def test_nothing_of_the_training_is_opened(run, one_device, monkeypatch):
    monkeypatch.setattr(sources, "open", lambda spec: pytest.fail(f"opened {spec}"))
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(run[0]).rglob("*")}
    mcd_jax.load(str(run[0])).embed_texts(["a red square"])
    assert before == {path: path.stat().st_mtime_ns for path in pathlib.Path(run[0]).rglob("*")}


def test_importing_the_package_needs_nothing():
    code = "import sys, mcd_jax; sys.exit('jax' in sys.modules or 'load' not in dir(mcd_jax))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_views_of_the_runs_evaluations_are_the_default():
    config = config_lib.default()
    config.model = dict(inputs=dict(image_size=32))
    config.data.views = dict(image="decode|crop(32, 0.5)", text="caption('random')|tokenize(9, 'emoji')")
    config.evals = dict(retrieval=dict(a=dict(views=dict(image="decode|crop(32)")), b=dict(views=dict(image="decode|resize(32)")),
                                       c=dict()))
    assert building.default_views(config)["image"] == "decode|resize(32)"
    own, added = building.evaluations(config)["retrieval"], building.evaluations(config, {"retrieval": {"d": {}}})["retrieval"]
    assert own["b"]["views"]["image"] == "decode|resize(32)" == added["d"]["views"]["image"]
    assert own["c"]["views"]["image"] == "decode|center(32)"   # as when its run was trained
