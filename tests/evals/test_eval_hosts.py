"""Evaluations on devices and hosts: padded last batches, four devices and two processes change no figure; the command line."""
import json
import pathlib
import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from mcd_jax import config as config_lib
from mcd_jax import evaluate
from mcd_jax import job as job_lib
from mcd_jax.configs import clip_g14_yfcc15m
from mcd_jax.data import sources
from mcd_jax.data.emoji import names as emoji_names
from mcd_jax.evals import building
from mcd_jax.objectives.objective import Objective
from mcd_jax.run import checkpoint
from mcd_jax.sharding import mesh
from mcd_jax.step import State
from tests.configs import toy
from tests.sharding.test_distributed import Pair

ROOT = pathlib.Path(__file__).resolve().parents[2]
EMOJI = dict(name="tests.broken_emoji", split="openmoji_validation", captions=("label", "tags"), languages=("en", "de"))
VIEWS = dict(image="decode|resize(4)", text="caption('first')|tokenize(8, 'emoji')")
GOOGLE = dict(name="emoji", split="validation", vendors=("google",), captions=("tags",))
PAIRS = dict(name="pairs", match="concept_id", queries=EMOJI, candidates=GOOGLE, join=", ")
# 92 rows, two of them broken: neither 7 nor 256 nor 8 divides them
EVALS = dict(
    retrieval=dict(all=dict(source=EMOJI, views=VIEWS, texts="all", match="concept_id", ks=(1, 10, 50))),
    zeroshot=dict(labels=dict(source=EMOJI, views=VIEWS, label="concept_id", names=EMOJI, without=dict(no_flags="flag"))),
    probe=dict(groups=dict(source=EMOJI, train=EMOJI, views=VIEWS, label="group", solver="ridge", C=1e-3)),
    universal=dict(
        sum=dict(benchmark=PAIRS, views=VIEWS, fuse="unit_sum", ks=(1, 10, 50)),
        head=dict(benchmark=PAIRS, views=dict(VIEWS, text="caption('first')|tokenize(9, 'emoji')"), ks=(1, 10, 50))),
)


def head(params, memory, batch):
    """Integers and powers of two only, so that no order of summation and no compiler changes a bit."""
    out = {}
    if "image" in batch:
        raw = jnp.einsum("nhwc,hwcd->nd", jnp.round(batch["image"].astype(jnp.float32) / 64), params["w"])
        out |= {"image_raw": raw, "image": raw / 64}
    if "text" in batch:
        out |= {"text": params["table"][jnp.sum(batch["text"], axis=1) % 257] / 64}
    if len(out) == 3 and batch["text"].shape[1] == 9:   # the context tells whether this head is one that fuses
        out |= {"fused": out["image"] - 2 * out["text"]}
    return out


OBJECTIVE = Objective(needs=("image", "text"), init=None, init_memory=None, forward=None, terms={}, metrics={},
                      heads={"embed": head}, update_memory=None)


def figures(size, workdir):
    rng = np.random.default_rng(0)
    params = {"w": rng.integers(-2, 3, (4, 4, 3, 8)).astype(np.float32), "table": rng.integers(-9, 10, (257, 8)).astype(np.float32)}
    state = State(jnp.int32(3), params, {}, {}, jax.random.key(0))
    sized = {module: {name: {**own, "batch_size": size} for name, own in some.items()} for module, some in EVALS.items()}
    evals = building.build(ConfigDict({"evals": sized}), OBJECTIVE, lambda name, value: 0, state)
    grid = mesh.make({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
    job = types.SimpleNamespace(objective=OBJECTIVE, config=ConfigDict({"seed": 0}), init=None, mesh=grid)
    with jax.set_mesh(grid):
        return building.run(evals, state, 3, job, workdir)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    return figures(7, tmp_path_factory.mktemp("seven"))


def test_batch_sizes_and_padding_change_no_figure(seven, tmp_path):
    assert len(jax.devices()) == 4 and len(sources.open(EMOJI)) == 92
    assert seven == figures(256, tmp_path) and len(seven) > 40
    assert 0 < seven["retrieval/all/text_to_image/R@50"] < 1
    assert seven["zeroshot/labels/images"] == 90 and seven["retrieval/all/bad"] == seven["universal/sum/bad"] == 2
    assert seven["universal/sum/local/image_to_text/queries"] == seven["universal/head/local/fused_to_text/queries"] == 90
    assert {key for key in seven if key.startswith("universal/sum/local/fused") and seven[key] != seven[key.replace("sum", "head")]}
    assert seven["probe/groups/top1"] > seven["probe/groups/chance_top1"]


# Run by each of two processes: prints its figures, and how many images it decoded
TWO = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "evals")!r}]
from mcd_jax.sharding import distributed
distributed.join()
import json, pathlib, tempfile
import jax
from mcd_jax.data import decode as decode_lib
import test_eval_hosts
decoded, decode = [], decode_lib.decode
decode_lib.decode = lambda *a, **k: decoded.append(1) or decode(*a, **k)
with tempfile.TemporaryDirectory() as folder:
    print("FIGURES " + json.dumps([len(decoded), test_eval_hosts.figures(int(sys.argv[1]), folder), len(decoded)]), flush=True)
distributed.leave(0)
"""


def test_two_processes_share_the_images_and_agree(seven, monkeypatch):
    """2 x 2 devices: what 1 x 4 gives, in both processes, each having decoded about half."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    results = Pair(["-c", TWO, "7"]).wait()
    assert [r[0] for r in results] == [0, 0], results[0][2][-3000:] + results[1][2][-3000:]
    (_, first, done), (_, second, also) = (json.loads(r[1].rpartition("FIGURES ")[2]) for r in results)
    assert first == second == seven
    passes = 4 + 2 + 2 + 2   # retrieval, ..., probe; universal over two vendors' images, twice, and once more for pairs to fuse
    assert done + also < 1.2 * passes * 92 and max(done, also) < 0.65 * passes * 92


# ---- the command ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a tiny network that was never trained."""
    workdir, config = tmp_path_factory.mktemp("run"), toy.get_config()
    config.ema = 0.0
    job = job_lib.build(config)
    rng = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        return jax.device_put((0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype), leaf.sharding)
    with jax.set_mesh(job.mesh):
        saver = checkpoint.Checkpoints(workdir, 4, 1)
        saver.save(4, jax.tree.map(fill, job.abstract)._replace(step=jnp.int32(4)))
        saver.wait()
        saver.close()
    config_lib.save(job.config, workdir / "config.json")
    job.pipeline.close()
    return workdir


FILE = """
def get_evals(arguments):
    folder = arguments.removeprefix("folder=")
    images = dict(name="image_folder", path=folder)
    names = sorted(p.name for p in __import__("pathlib").Path(folder).iterdir())
    probe = dict(source=images, train=images, label="class_name", solver="ridge", C=0.1)
    return dict(zeroshot=dict(groups=dict(source=images, label="label", names=names, templates=("{}", "a drawing of {}"))),
                probe=dict(untrained=dict(probe, features="image_raw"), pixels=dict(probe, features="pixels")))
"""


def test_the_command_adds_evaluations_to_any_run(run, tmp_path, capsys):
    """Groups of emoji as class folders: image size, tokenizer and context come from the run; its own evaluations stay out."""
    drawings = sources.open(dict(name="emoji", split="validation"))
    for i in range(0, len(drawings), 2):
        row = drawings[i]
        place = tmp_path / "data" / emoji_names.GROUPS[row["group"]].replace("&", "and")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.webp").write_bytes(row["image"])
    (tmp_path / "mine.py").write_text(FILE)
    evaluate.main(["--workdir", str(run), "--evals", f"{tmp_path}/mine.py:folder={tmp_path}/data"])
    saved = json.loads((run / "evals.json").read_text())
    assert saved.pop("step") == 4
    assert {key.rpartition("/")[0] for key in saved} == {"zeroshot/groups", "probe/untrained", "probe/pixels"}
    assert saved["zeroshot/groups/images"] == saved["probe/pixels/images"] == len(range(0, len(drawings), 2))
    assert saved["probe/pixels/chance_top1"] < saved["probe/untrained/top1"] <= 1 and saved["probe/pixels/top1"] > 0.5
    out = capsys.readouterr().out
    assert "evaluating step 4" in out and "zeroshot/groups (params)" in out and "top1" in out


@pytest.mark.parametrize("spec, message", [
    ("{0}/none.py", "there is no file"), ("{0}/empty.py", r"has no get_evals\(arguments\)"),
    ("{0}/wrong.py:x", "unknown key config.evals.zeroshot.a.setz .*; did you mean config.evals.zeroshot.a.set"),
    ("{0}/absent.py", "no data set prepared by TFDS is found as 'food101'")])
def test_the_command_refuses_with_a_sentence(run, tmp_path, spec, message):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "wrong.py").write_text("get_evals = lambda arguments: dict(zeroshot=dict(a=dict(setz=1)))")
    absent = dict(name="tfds", dataset="food101", split="test", data_dir=str(tmp_path), columns=dict(text="label"))
    (tmp_path / "absent.py").write_text(f"get_evals = lambda _: dict(zeroshot=dict(a=dict(set='food101', source={absent})))")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        evaluate.main(["--workdir", str(run), "--evals", spec.format(tmp_path)])


def test_views_that_are_left_out_follow_the_run():
    config = clip_g14_yfcc15m.get_config()
    assert building.default_views(config) == {}                              # its data isn't known yet
    config.model.inputs = dict(image_size=224)
    assert building.default_views(config) == {"image": "decode|center(224)", "text": "caption('first')|tokenize(77, 'clip')"}
    config.data.views = dict(image="decode|crop(64)", b="caption('random')|tokenize(8, 'emoji')", text="tokenize(9, name='emoji')")
    assert building.default_views(config)["text"] == "caption('first')|tokenize(9, name='emoji')"
    given = building.with_views({"views": {"image": "decode|resize(8)"}}, building.default_views(config))
    assert given["views"]["image"] == "decode|resize(8)" and "tokenize(9" in given["views"]["text"]
