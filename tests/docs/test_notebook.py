"""The notebook of docs/ from top to bottom, its training cut short."""
import json
import pathlib

from notebooks import execute
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/train_load_search_export.ipynb"


def outputs(notebook):
    return ["".join(line for out in cell["outputs"] for line in out.get("text", out.get("data", {}).get("text/plain", [])))
            for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.full
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "docs").mkdir()
    done = outputs(execute(NOTEBOOK, tmp_path / "docs", [("400 steps", "4 steps"), ("batch_size=128", "batch_size=16")]))
    stored = outputs(json.loads(NOTEBOOK.read_text()))
    assert len(done) == len(stored) and all(done)
    assert done[0].startswith("retrieval ") and done[1] == stored[1] == "315"
    assert [len(text.splitlines()) for text in done] == [len(text.splitlines()) for text in stored]
    assert done[6] == stored[6]   # exported and loaded back, to the last bits
    assert done[7] == stored[7]


def test_the_stored_outputs_are_those_of_a_trained_model():
    stored = outputs(json.loads(NOTEBOOK.read_text()))
    assert all(stored) and NOTEBOOK.stat().st_size < 20_000
    assert "flag germany" in stored[2] and "orange heart" in stored[4]
