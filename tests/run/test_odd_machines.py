"""Machines and folders that differ from ours: another encoding, folders that may only be read, names with control characters."""
import io
import json
import os
import pathlib
import sys

import jax.numpy as jnp
import pytest

from mcd_jax import command, evaluate, report
from mcd_jax.convert import __main__ as convert
from mcd_jax.run import atomic, console, results, workdir
from mcd_jax.sweep import plan


def test_text_that_the_terminals_encoding_lacks_is_printed_all_the_same(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with command.sentences():
        print("a \u2764 caf\u00e9")
    out.flush()
    assert out.buffer.getvalue() == b"a \\u2764 caf\\xe9\n"


def test_names_from_data_never_control_the_terminal(capsys):
    console.say("a\x1b[2Jb\nc\u202ed")
    assert capsys.readouterr().err == "a\\x1b[2Jb\nc\\u202ed\n"


def test_figures_are_printed_before_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    class Run:
        config = objective = mesh = None

    class State:
        step = jnp.int32(3)
    monkeypatch.setattr(evaluate.trained, "open_run", lambda *_: (Run, State))
    monkeypatch.setattr(evaluate.building, "build", lambda *_: [])
    monkeypatch.setattr(evaluate.building, "run", lambda *_, **__: {"zeroshot/x/top1": 0.25})
    monkeypatch.setattr(evaluate.jax, "set_mesh", lambda mesh: io.StringIO())
    evaluate.evaluate(str(tmp_path))
    assert results.latest(tmp_path) == {"step": 3, "zeroshot/x/top1": 0.25}
    capsys.readouterr()

    def read_only(*_):
        raise OSError(30, "Read-only file system", "/runs/x/evals.json")
    monkeypatch.setattr(results, "write", read_only)
    with pytest.raises(OSError, match=r"^the figures above could not be stored in .*/evals.json: /runs/x/evals.json: Read-only"):
        evaluate.evaluate(str(tmp_path))
    assert "25.0%" in capsys.readouterr().out


def test_a_report_goes_elsewhere_with_out(tmp_path, monkeypatch):
    def none(*_):
        raise report.gallery_lib.NoImages("none")
    monkeypatch.setattr(report.gallery_lib, "gather", none)
    (tmp_path / "config.json").write_text(json.dumps({"objective": {"name": "clip"}}))
    (tmp_path / "report.html").mkdir()   # nothing can be written there
    with pytest.raises(OSError) as caught:
        report.write(str(tmp_path))
    assert "--out=FILE writes the report elsewhere" in command.sentence(caught.value)
    path, size = report.write(str(tmp_path), out=str(tmp_path / "r.html"))
    assert path == str(tmp_path / "r.html") and (tmp_path / "r.html").stat().st_size == size


def test_a_checkpoint_to_import_that_is_not_there_is_named_itself(tmp_path):
    for source in ("open_clip", "hf", "openai", "big_vision"):
        with pytest.raises(FileNotFoundError, match=r"^--checkpoint=.*/no/such does not exist"):
            convert.import_(source, f"{tmp_path}/no/such", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_in_a_bucket_is_refused():
    with pytest.raises(ValueError, match=r"^--workdir=gs://lab/s: .* a bucket can't keep"):
        plan.plan("clip_emoji", "gs://lab/s")
    assert workdir.is_remote("gs://lab/s")


def test_a_folder_that_may_not_be_written_is_said_before_the_work_and_by_the_name_that_was_given(tmp_path, monkeypatch):
    def refused(self, *_, **__):   # as for a user who isn't root
        raise PermissionError(13, "Permission denied", os.fspath(self))
    monkeypatch.setattr(pathlib.Path, "touch", refused)
    with pytest.raises(PermissionError) as caught, atomic.writing(tmp_path / "x.array_record"):
        pytest.fail("the work was begun")
    assert command.sentence(caught.value) == f"{tmp_path}/x.array_record: Permission denied"
    monkeypatch.setattr(convert.formats, "named", lambda *_: type("Format", (), {"open_run": staticmethod(lambda *_: None)}))
    monkeypatch.setattr(pathlib.Path, "mkdir", refused)
    with pytest.raises(PermissionError) as caught:
        convert.export("runs/x", "hf", tmp_path / "out")
    assert command.sentence(caught.value) == f"{tmp_path}/out: Permission denied"


def test_what_a_limit_of_threads_and_python_without_docstrings_say():
    assert "ulimit -u" in command.sentence(RuntimeError("can't start new thread"))
    assert command.summary(None) == "" and command.summary(workdir.__doc__).startswith("The folder of a run")
