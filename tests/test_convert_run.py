"""`python -m mcd_jax.convert` without PyTorch: a run goes out and comes back, and what doesn't fit is refused."""
import json

from foreign import MODELS, drawn, equal
import jax
import numpy as np
import pytest

from configs import limoe_emoji
from mcd_jax import checkpoint, evaluate
from mcd_jax import config as config_lib
from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import files, open_clip, runs, tables


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    model, inputs = MODELS["vit"]
    out = tmp_path_factory.mktemp("convert") / "run"
    model = dict(model, mean=(0.4, 0.5, 0.6), std=0.25)
    imported = runs.Imported(model, inputs, drawn(model, inputs), runs.Tokens(7, "emoji", "whitespace"),
                             runs.View("resize", "bicubic"), [], "here")
    runs.write_workdir(imported, out)
    evaluate.write(out, {"retrieval/test/text_to_image/R@1": 0.25}, 0)
    return out


def run_of(path):
    return runs.open_run(path)


def test_a_run_goes_out_and_comes_back(workdir, tmp_path, capsys):
    run, out = run_of(workdir), tmp_path / "exported"
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}", "--licence=apache-2.0"])
    assert 'open_clip.create_model_and_transforms("local-dir:' in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"README.md", "open_clip_config.json", "open_clip_model.safetensors",
                                               "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((out / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == {"mean": [0.4, 0.5, 0.6], "std": [0.25] * 3, "interpolation": "bicubic",
                                        "resize_mode": "squash"}
    assert config["model_cfg"]["text_cfg"]["eos_id"] == 1 and config["model_cfg"]["text_cfg"]["pool_type"] == "eos"
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "25.0%" in card and "OpenMoji" in card and "0 of" in card
    back = tmp_path / "back"
    cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={back}", "--scan"])
    again = run_of(back)
    assert again.model["image"]["scan"] and again.inputs == run.inputs and again.tokens.cleaning == "whitespace"
    for kind in ("image", "text"):
        equal(again.params[kind], tables.stacked(run.params[kind]))
    third = tmp_path / "third"
    cli.main(["export", f"--workdir={back}", "--to=open_clip", f"--out={third}"])
    equal(files.load(third / open_clip.WEIGHTS), files.load(out / open_clip.WEIGHTS))
    with pytest.raises(SystemExit, match="holds checkpoints already"):
        cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={back}"])
    with pytest.raises(SystemExit, match="is not empty"):
        cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}"])


def test_an_imported_workdir_starts_a_run_and_is_evaluated(workdir):
    run = run_of(workdir)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), runs.abstract(run.model, run.inputs))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
    params = checkpoint.restore_from(workdir, abstract, "params")   # as config.init_from does
    equal(jax.tree.map(np.asarray, params), run.params)
    assert evaluate.default_views(run.config)["image"] == "decode|resize(16, 'bicubic')"
    job, state = evaluate.open_run(workdir)
    job.pipeline.close()
    equal(jax.tree.map(np.asarray, state.params), run.params)
    assert sum(x.size for x in jax.tree.leaves(state.opt)) < 100   # nothing beside the parameters is stored


def test_another_image_size(workdir, tmp_path):
    out, back = tmp_path / "exported", tmp_path / "back"
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}", "--dtype=bfloat16"])
    cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={back}", "--image_size=24"])
    run = run_of(back)
    assert run.inputs["image_size"] == 24 and run.params["image"]["position"].shape == (10, 16)
    assert run.view == runs.View("resize", "bicubic")


def test_wrong_commands_are_refused(workdir, tmp_path, capsys):
    out = tmp_path / "exported"
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}"])
    weights = out / open_clip.WEIGHTS
    whole = weights.read_bytes()
    config = json.loads((out / open_clip.CONFIG).read_text())

    def refused(match, *more):
        with pytest.raises(SystemExit, match=match):
            cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={tmp_path / 'bad'}", *more])
        assert not (tmp_path / "bad").exists()

    weights.write_bytes(whole[:-1000])
    refused("no whole safetensors file")
    weights.write_bytes(whole)
    wider = json.loads(json.dumps(config))
    wider["model_cfg"]["vision_cfg"]["layers"] = 3
    (out / open_clip.CONFIG).write_text(json.dumps(wider))
    refused(r"(?s)12 mismatches.*missing: visual.transformer.resblocks.2.ln_1.weight \(for image/block_2/ln1/scale\)")
    (out / open_clip.CONFIG).unlink()
    refused("--model=NAME")
    refused("--model=ViT-B-33", "--model=ViT-B-33")
    for argument, match in (("--to=pickle", "no format 'pickle' to export to: there are .*open_clip, openai"),
                            ("--to=openai", "OpenAI's CLIP has no class for this model")):
        with pytest.raises(SystemExit, match=match):
            cli.main(["export", f"--workdir={workdir}", argument, f"--out={tmp_path / 'bad'}"])
    for more, match in ((["--read=memory/teacher"], "memory"), (["--step=7"], "no checkpoint of step 7: there are 0")):
        with pytest.raises(SystemExit, match=match):
            cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={tmp_path / 'bad'}", *more])
    assert not (tmp_path / "bad").exists() and not (tmp_path / ".bad.part").exists()
    capsys.readouterr()
    cli.main(["formats"])
    printed = capsys.readouterr().out
    assert "open_clip: import and export" in printed and "openai: import and export" in printed and "ViT-L/14@336px" in printed


def test_one_tower_for_both_modalities_has_no_counterpart(tmp_path):
    config_lib.save(limoe_emoji.get_config(), tmp_path / "config.json")
    with pytest.raises(SystemExit, match=r"one tower for both modalities \(config.model.shared\) has no counterpart"):
        cli.main(["export", f"--workdir={tmp_path}", "--to=open_clip", f"--out={tmp_path / 'out'}"])
