"""`mcd-jax convert` without PyTorch: a run goes out and comes back, and what doesn't fit is refused."""
import json
import os

from foreign import MODELS, drawn, equal
import jax
import numpy as np
import pytest

from mcd_jax import trained
from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import files, open_clip, runs, tables, verdicts
from mcd_jax.evals import building
from mcd_jax.run import checkpoint
from mcd_jax.run import results as results_lib


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    model, inputs = MODELS["vit"]
    out = tmp_path_factory.mktemp("convert") / "run"
    model = dict(model, mean=(0.4, 0.5, 0.6), std=0.25)
    imported = runs.Imported(model, inputs, drawn(model, inputs), runs.Tokens(7, "emoji", "whitespace"),
                             runs.View("resize", "bicubic"), [], "here")
    runs.write_workdir(imported, out)
    results_lib.write(out, {"retrieval/test/text_to_image/R@1": 0.25}, 0)
    (out / "history.jsonl").write_text('{"step": 0, "seen": 4321, "batch_size": 2}\n')
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
    assert "(4,321 seen)" in card
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
    assert building.default_views(run.config)["image"] == "decode|resize(16, 'bicubic')"
    _, state = trained.open_run(workdir)
    equal(jax.tree.map(np.asarray, state.params), run.params)
    leaves = checkpoint.Checkpoints(workdir, read_only=True).leaves(0)
    assert sum(np.prod(shape) for path, (shape, _) in leaves.items() if path.startswith("opt/")) < 100   # beside the parameters


def test_another_image_size(workdir, tmp_path):
    out, back = tmp_path / "exported", tmp_path / "back"
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}", "--dtype=bfloat16"])
    cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={back}", "--image_size=24"])
    run = run_of(back)
    assert run.inputs["image_size"] == 24 and run.params["image"]["position"].shape == (10, 16)
    assert run.view == runs.View("resize", "bicubic")


def test_a_scale_over_100_is_kept(workdir, tmp_path, capsys):
    out = tmp_path / "exported"
    cli.export(workdir, "open_clip", out)
    weights = files.load(out / open_clip.WEIGHTS)
    scale = np.full_like(weights["logit_scale"], np.log(117))
    files.save(out / open_clip.WEIGHTS, {**weights, "logit_scale": scale})
    cli.main(["import", "--from=open_clip", f"--checkpoint={out}", f"--out={tmp_path / 'back'}"])
    said = capsys.readouterr().out
    assert "its logit scale is 117" in said and "config.optimizer.max_logit_scale = None" in said
    assert run_of(tmp_path / "back").config.optimizer.max_logit_scale is None
    assert runs.keeps_scale({"logit_scale": np.float32(np.log(100))}) and not runs.keeps_scale({"logit_scale": np.float32(-1)})


def test_everything_looks_through_the_view_of_the_evaluations():
    config = runs.config_of(runs.Imported(*MODELS["vit"], {}, runs.Tokens(7, "emoji"), runs.View("center", "area"), [], "x"))
    config.model.inputs = {**MODELS["vit"][1], "image_size": 48}
    config.data.views.image = "decode|crop(48, 0.5)"
    config.evals = dict(retrieval=dict(test=dict(views=dict(image="decode|resize(48, 'bicubic')"))))
    view = runs.view_of(config)
    assert building.default_views(config)["image"] == view.pipe(48) == "decode|resize(48, 'bicubic')"   # as model, search, embed
    assert building.evaluations(config, {"retrieval": {"new": {}}})["retrieval"]["new"]["views"]["image"] == view.pipe(48)


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
    for more, match in ((["--weights_from=memory/teacher"], "memory"), (["--step=7"], "no checkpoint of step 7: there are 0")):
        with pytest.raises(SystemExit, match=match):
            cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={tmp_path / 'bad'}", *more])
    assert not (tmp_path / "bad").exists() and not list(tmp_path.glob(".bad*"))
    capsys.readouterr()
    cli.main(["formats"])
    printed = capsys.readouterr().out
    assert "open_clip: import and export" in printed and "openai: import and export" in printed and "ViT-L/14@336px" in printed


def test_an_export_goes_into_an_empty_folder_a_link_to_one_and_the_current_one(workdir, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out, place in ((tmp_path / "link", tmp_path / "empty"), (".", tmp_path / "here")):
        cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={out}"])
        assert "open_clip_config.json" in {p.name for p in place.iterdir()}
    assert (tmp_path / "link").is_symlink() and {p.name for p in tmp_path.iterdir()} == {"empty", "link", "here"}


def test_a_check_needs_no_checkpoint(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verdicts, "check", lambda *args: [])
    monkeypatch.setattr(verdicts, "status", lambda found: 0)
    cli.main(["check", f"--workdir={workdir}", "--json"])
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(SystemExit, match=r"--checkpoint=.*/no does not exist"):
        cli.main(["check", f"--workdir={workdir}", f"--checkpoint={tmp_path}/no"])


def test_two_exports_at_once_do_not_mix(workdir, tmp_path, monkeypatch):
    save, out = open_clip.save, tmp_path / "out"

    def slow(*args):   # another process is done in the meantime
        with monkeypatch.context() as patch:
            patch.setattr(open_clip, "save", save)
            patch.setattr(os, "getpid", lambda: 1)
            cli.export(workdir, "open_clip", out)
        return save(*args)
    monkeypatch.setattr(open_clip, "save", slow)
    with pytest.raises(ValueError, match=r"out is not empty, it holds README.md, "):
        cli.export(workdir, "open_clip", out)
    assert len(list(out.iterdir())) == 5 and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_embeddings_behind_a_head_are_not_exported_without_it(workdir, tmp_path):
    """The towers alone would embed other images than the run that was evaluated."""
    config = json.loads((workdir / "config.json").read_text())
    for aware in (True, False):
        config["objective"] = dict(name="uniclip", aware=aware, weights=dict(mp_nce=1.0))
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = "uniclip embeds the image by a head" if aware else "no checkpoint"
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_of(tmp_path)


def test_a_filip_run_without_pooled_embeddings_is_not_exported(workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    for weight, message in ((0.0, "filip trained no pooled embeddings, and other libraries have nothing"), (0.1, "no checkpoint")):
        config["objective"] = dict(name="filip", weights=dict(filip=1.0, clip=weight))
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_of(tmp_path)
    config["objective"] = dict(name=["filip", "clip"], filip=dict(name="filip", weights=dict(filip=1.0)),
                               clip=dict(name="clip", weights=dict(clip=1.0)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_of(tmp_path)


def test_ids_beyond_the_vocabulary_stay_here(tmp_path):
    """A mask that a method puts into texts has a row in the table of words; no tokenizer gives it."""
    model, inputs = MODELS["vit"]
    out, spare = tmp_path / "run", dict(model, text=dict(model["text"], spare_ids=2))
    params = drawn(spare, inputs)
    runs.write_workdir(runs.Imported(spare, inputs, params, runs.Tokens(7, "emoji", "whitespace"), runs.View(), [], "here"), out)
    run = run_of(out)
    assert len(params["text"]["token"]) == inputs["vocab_size"] + 2 == len(run.params["text"]["token"]) + 2
    np.testing.assert_array_equal(run.params["text"]["token"], params["text"]["token"][:-2])
    assert [path for path, why in run.left_out if "no tokenizer gives" in why] == [f"text/token[{inputs['vocab_size']}:]"]
    cli.main(["export", f"--workdir={out}", "--to=open_clip", f"--out={tmp_path / 'exported'}"])
    cli.main(["import", "--from=open_clip", f"--checkpoint={tmp_path / 'exported'}", f"--out={tmp_path / 'back'}"])
    equal(run_of(tmp_path / "back").params, run.params)


def test_what_is_refused_leaves_no_folder_above_it_either(workdir, tmp_path):
    with pytest.raises(SystemExit, match="has no class for this model"):
        cli.main(["export", f"--workdir={workdir}", "--to=openai", f"--out={tmp_path}/a/b"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file is a file: name a new folder"):
        cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={tmp_path}/file"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_import_goes_into_no_folder_of_something_else(workdir, tmp_path, monkeypatch):
    """The figures of a run would be shown as those of the imported model, and an export's config.json would be replaced."""
    exported, taken = tmp_path / "exported", tmp_path / "taken"
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", f"--out={exported}"])
    taken.mkdir()
    results_lib.write(taken, {"retrieval/test/text_to_image/R@1": 0.25}, 3)
    words = ["import", "--from=open_clip", f"--checkpoint={exported}"]
    for out, holds in ((taken, "evals.json"), (exported, "README.md, open_clip_config.json, open_clip_model.safetensors, ...")):
        with pytest.raises(SystemExit, match=f"--out=.* is not empty, it holds {holds}: name a new folder"):
            cli.main([*words, f"--out={out}"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="--out=memory://x is in a bucket"):
        cli.main([*words, "--out=memory://x"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="cut off"):   # config.json is there before the checkpoint
        patch.setattr(checkpoint.Checkpoints, "save", lambda *_: (_ for _ in ()).throw(OSError("cut off")))
        cli.main([*words, "--out=new"])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.json"]
    cli.main([*words, "--out=new"])
    assert run_of("new").step == 0 and {p.name for p in tmp_path.iterdir()} == {"exported", "taken", "new"}
