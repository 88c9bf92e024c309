"""The sessions of a run: what a resume may change, examples really seen, and where the data goes on."""
import json
import os
import pathlib
import subprocess
import sys
import types

from ml_collections import ConfigDict
import numpy as np
from pair import CONFIG, ROOT
import pytest

from mcd_jax import config as config_lib
from mcd_jax.data import pipeline as pipeline_lib
from mcd_jax.run import history


def job(examples=100, keys="abcdefgh", total=12, **overrides):
    """What `History` asks of a `Job`."""
    given = [(key.replace("__", "."), str(value)) for key, value in overrides.items()]
    config = ConfigDict(config_lib.of_command(str(CONFIG), given).to_dict(), type_safe=False)
    config.total_steps = total
    pipeline = types.SimpleNamespace(examples=examples, keys=lambda: dict(enumerate(keys)))
    return types.SimpleNamespace(config=config, pipeline=pipeline, total_steps=total, mesh=types.SimpleNamespace(size=1))


def begun(folder, first, *args, **kwargs):
    made = history.History(folder, job(*args, **kwargs))
    made.begin(first)
    return made


def refused(folder, step, *args, **kwargs):
    made = history.History(folder, job(*args, **kwargs))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="--resume=allow") as error:
        made.check(step)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "the order of the data changes: " in made.check(step, history.ALLOW)
    return str(error.value)


def test_what_changes_the_order_of_the_data_is_refused(tmp_path):
    begun(tmp_path, 0)
    assert history.History(tmp_path, job()).check(4) == ""
    assert refused(tmp_path, 4, batch_size=32) == (
        "going on at step 4 would change the order of the data: config.batch_size was 16 and is 32; go back to what the run had, "
        "or give --resume=allow to go on with example 64 of the new order")
    assert "config.seed was 0 and is 5" in refused(tmp_path, 4, seed=5)
    assert "number of training examples was 100 and is 130" in refused(tmp_path, 4, 130)   # shards were added to the folder
    assert 'example 2 of the epoch was c and is C' in refused(tmp_path, 4, 100, "abCdefgh")
    assert "config.data.source.split was validation and is test" in refused(tmp_path, 4, data__source__split="test")
    assert history.History(tmp_path, job(batch_size=32)).check(0) == ""   # nothing was trained yet


def test_the_config_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip", "text_config": {}}')   # of an export
    with pytest.raises(ValueError, match=r"config.json is not of a run .* choose another --workdir"):
        history.History(tmp_path, job()).check(None)
    with pytest.raises(ValueError, match=r"config\.json is not of a run: it has neither model nor objective"):
        config_lib.read(tmp_path / "config.json")
    for text in ("", '{"model": {', '{"model": {}}'):   # cut, or of a run
        (tmp_path / "config.json").write_text(text)
        assert history.History(tmp_path, job()).check(None) == ""


def test_an_entry_of_other_types_is_passed_over(tmp_path):
    good = {"step": 0, "seen": 0, "batch_size": 16}
    (tmp_path / history.NAME).write_text("".join(json.dumps({**good, **more}) + "\n" for more in (
        {}, {"order": None}, {"software": [1]}, {"seen": "x"})))
    assert history.read(tmp_path) == [good]


def test_data_that_only_moved_is_the_same(tmp_path):
    there = dict(data__source="dict(name='folder', path='/a', table='t.csv')")
    begun(tmp_path, 0, **there)
    moved = dict(data__source="dict(name='folder', path='/b', table='t.csv')")
    assert history.History(tmp_path, job(**moved)).check(4) == (
        "changed at step 4: config.data.source.path was /a and is /b")
    assert "config.data.source.path was /a and is /b" in refused(tmp_path, 4, 130, **moved)


def test_what_changes_the_course_is_said_and_kept(tmp_path):
    begun(tmp_path, 0)
    later = history.History(tmp_path, job(optimizer__lr=0.5, steps="30 steps", log_every=7, data__workers=1))
    assert later.check(8) == "changed at step 8: config.optimizer.lr was 0.01 and is 0.5, config.steps was 24 steps and is 30 steps"
    later.begin(8)
    entry = history.read(tmp_path)[-1]
    assert entry["changes"]["config.log_every"] == [2, 7] and entry["changes"]["config.optimizer.lr"] == [0.01, 0.5]
    assert (entry["step"], entry["seen"], entry["batch_size"], entry["processes"]) == (8, 128, 16, 1)
    assert entry["software"]["jax"] and entry["host"] and entry["began"].endswith("+00:00") and entry["commit"] is not None
    assert config_lib.read(tmp_path / "config.json").optimizer.lr == 0.5
    assert history.History(tmp_path, job(optimizer__lr=0.5, steps="30 steps")).check(12) == ""   # log_every is not worth a word


def test_examples_seen_are_those_of_the_steps_that_count(tmp_path):
    """16 a step to step 8, 32 to step 12; that session is lost back to step 10, from which 8 a step go on."""
    begun(tmp_path, 0)
    begun(tmp_path, 8, batch_size=32)
    begun(tmp_path, 10, batch_size=8)
    entries = history.read(tmp_path)
    assert [e["seen"] for e in entries] == [0, 128, 192]
    seen = [history.examples_seen(entries, step, 0) for step in (4, 8, 9, 10, 13)]
    assert seen == [64, 128, 160, 192, 216] and history.examples_seen_in(str(tmp_path), 13, 0) == 216
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 14, "se')   # cut
    assert history.read(tmp_path) == entries
    assert "config.batch_size was 8 and is 16" in refused(tmp_path, 12)
    assert "config.batch_size was 32 and is 16" in refused(tmp_path, 10)   # what the checkpoint of step 10 was trained with


def test_a_run_without_a_history_is_its_config(tmp_path):
    config_lib.save(job().config, tmp_path / "config.json")
    old = history.History(tmp_path, job())
    assert old.check(8) == "" and old.seen(8) == 128
    assert "config.batch_size was 16 and is 32" in refused(tmp_path, 8, batch_size=32)
    begun(tmp_path, 8, batch_size=32)
    assert [(e["step"], e["seen"]) for e in history.read(tmp_path)] == [(0, 0), (8, 128)]
    other = history.History(tmp_path / "new", job(batch_size=4, resume_from=f"{tmp_path}/checkpoints/10"))
    assert other.seen(0) == 0 and other.seen(10) == 192   # another run that goes on from there
    assert history.History(tmp_path / "new", job(batch_size=4, resume_from=f"{tmp_path}/no/checkpoints/10")).seen(10) == 40
    (tmp_path / "history.jsonl").unlink()
    (tmp_path / "config.json").write_text("")   # cut: nothing to compare with
    assert history.History(tmp_path, job(seed=3)).check(8) == ""


def test_the_data_goes_on_after_what_was_seen():
    config = config_lib.of_command(str(CONFIG), [])
    views = {"text": config.data.views.text}
    made = pipeline_lib.make({"source": config.data.source, "views": views, "workers": 0}, 3, 16)
    order = np.concatenate([made.batch(step)["index"] for step in range(6)])
    made = pipeline_lib.make({"source": config.data.source, "views": views, "workers": 0}, 3, 8)
    batches = made.iterate(2, offset=2 * 16 - 2 * 8)   # two steps of 16 were taken
    np.testing.assert_array_equal(np.concatenate([next(batches)["index"] for _ in range(4)]), order[32:64])
    worker = pipeline_lib._worker_pipeline(lambda: (made.source, made.views), 3, 8, np.arange(8), 16)
    np.testing.assert_array_equal(worker.piece(2)["index"], order[32:40])
    assert list(made.keys(3)) == [0, (made.examples - 1) // 2, made.examples - 1]
    made.close()


def train(workdir, *overrides):
    done = subprocess.run([sys.executable, "-m", "mcd_jax.train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides],
                          cwd=ROOT, text=True, capture_output=True, timeout=300,
                          env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.full
def test_training_is_refused_or_allowed_to_go_on(tmp_path):
    assert train(tmp_path, "--config.steps=4 steps", "--config.evals={}")[0] == 0
    before = {path: path.read_bytes() for path in sorted(pathlib.Path(tmp_path).rglob("*")) if path.is_file()}
    status, _, err = train(tmp_path, "--config.steps=8 steps", "--config.batch_size=32", "--config.evals={}")
    assert status == 1 and "config.batch_size was 16 and is 32" in err and "Traceback" not in err
    assert {path: path.read_bytes() for path in sorted(pathlib.Path(tmp_path).rglob("*")) if path.is_file()} == before
    status, out, err = train(tmp_path, "--config.steps=8 steps", "--config.batch_size=32", "--config.evals={}", "--resume=allow")
    assert status == 0, err
    assert "192 examples seen)" in out and "; 192 examples seen\n" in out and "goes on with example 64" in out
    status, out, err = train(tmp_path, "--config.steps=2 steps", "--config.batch_size=32")
    assert status == 0, err
    assert "config.steps='2 steps' is 2 steps, of which none is left at step 8" in out and "retrieval" in out
    assert json.loads((tmp_path / "evals.json").read_text())["step"] == 8
