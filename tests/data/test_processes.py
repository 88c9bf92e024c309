"""Worker processes make the same batches, counts and log as threads, and none of them can be lost unseen."""
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import shards
from test_robust import VIEWS, equal, lines

from mcd_jax.data import pipeline, workers
from mcd_jax.data.reader import Unusable


def broken_set(tmp_path):
    """Spec of a data set with three broken images, one without a caption, and a caption that is too long."""
    rows = shards.rows()
    for i, image in ((3, b""), (4, b"<html>"), (17, rows[17]["image"][:-20])):
        rows[i]["image"] = image
    rows[9]["text"], rows[11]["text"] = "", "caption " * 9000
    return shards.WRITERS["webdataset"](tmp_path, rows)


def make(spec, log=None, **options):
    return pipeline.make({"source": spec, "views": VIEWS, "max_bad": 0.5, **options}, 3, 7, bad_log=log)


@pytest.mark.parametrize("count, workers", [(1, 0), (2, 2)])
def test_processes_make_the_same_batches_counts_and_log(count, workers, tmp_path):
    spec = broken_set(tmp_path)
    here = make(spec, tmp_path / "here.jsonl", workers=0)
    there = make(spec, tmp_path / "there.jsonl", processes=count, workers=workers)
    for first in (0, 5):   # the second is a restart in the middle
        expected, batches = here.iterate(first), there.iterate(first)
        for _ in range(4):
            equal(next(expected), next(batches))
        there.close()
    assert here.counts() == there.counts()
    assert here.counts()["bad_examples"] == 4 and here.counts()["repaired_examples/caption_cut"] == 1
    by_index = lambda name: sorted(lines(tmp_path / name), key=lambda line: line["index"])
    assert by_index("here.jsonl") == by_index("there.jsonl")
    assert len(by_index("here.jsonl")) == 5


def test_a_step_of_several_pieces_is_put_together_in_order(tmp_path, monkeypatch):
    spec = shards.WRITERS["webdataset"](tmp_path, shards.rows())
    settings = {"source": spec, "views": {"label": "column('label')"}}
    here = pipeline.make(settings, 3, 600)
    there = pipeline.make({**settings, "processes": 2}, 3, 600)   # 3 pieces of 200 rows, dealt to 2 processes
    batches = there.iterate(1)
    for step in (1, 2):
        equal(here.batch(step), next(batches))
    there.close()


def test_a_process_that_dies_ends_the_run_with_its_exit_code(tmp_path):
    data = make(shards.WRITERS["webdataset"](tmp_path, shards.rows()), processes=1, prefetch=1)
    batches = data.iterate(0)
    next(batches)
    for pid in children(os.getpid()):
        for number in workers.SIGNALS:   # they are meant for the parent
            os.kill(pid, number)
        time.sleep(0.2)
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit code -9"):
        for _ in range(20):   # those that were made before
            next(batches)
    data.close()


def test_a_shard_that_vanishes_is_an_error_with_the_name_and_the_example(tmp_path):
    spec = shards.WRITERS["csv"](tmp_path, shards.rows())
    data = make(spec, processes=1, prefetch=1)
    batches = data.iterate(0)
    next(batches)
    (tmp_path / "0007.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"0007\.img") as raised:
        for _ in range(12):   # it comes again in the next epoch
            next(batches)
    assert [n for n in raised.value.__notes__ if "\n" not in n][:2] == ["3 tries to read it failed", "at example 7 of 24"]
    data.close()


def test_too_many_bad_examples_are_counted_where_the_run_is(tmp_path):
    data = make(broken_set(tmp_path), tmp_path / "bad.jsonl", processes=1, max_bad=0.1)
    batches = data.iterate(0)
    with pytest.raises(Unusable, match=r"16\.7% of the 24 examples .*max_bad=0\.1.*bad\.jsonl names them"):
        for _ in range(400):
            next(batches)
    data.close()


def test_settings_that_exclude_one_another(tmp_path):
    spec = shards.WRITERS["csv"](tmp_path, shards.rows())
    with pytest.raises(ValueError, match=r"config\.data\.processes set cache=False"):
        make(spec, processes=2, cache=True)
    with pytest.raises(ValueError, match="processes=-1 must be an integer of at least 0"):
        make(spec, processes=-1)
    given = make(spec)
    with pytest.raises(ValueError, match="needs `opener`"):
        pipeline.Pipeline(given.source, given.views, 3, 7, processes=1)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    spec = shards.WRITERS["webdataset"](tmp_path, shards.rows())
    script = tmp_path / "run.py"
    script.write_text(f"""if __name__ == "__main__":
    from mcd_jax.data import pipeline, workers
    data = pipeline.make({{"source": {spec!r}, "views": {VIEWS!r}, "processes": 1}}, 3, 7)
    batches = data.iterate(0)
    next(batches)
    print("ready", flush=True)
    input()
""")
    run = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(pathlib.Path(pipeline.__file__).parents[2])})
    assert run.stdout.readline() == "ready\n"
    left = children(run.pid)
    assert left
    run.kill()
    run.wait()
    deadline = time.time() + 20
    while any(alive(pid) for pid in left):
        assert time.time() < deadline, f"{left} still run"
        time.sleep(0.1)


def children(pid):
    """Processes that `pid` started to read."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text, line = path.read_text(), (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(text.rsplit(")", 1)[1].split()[1]) == pid and b"workers.serve" in line:
            found.append(int(path.parent.name))
    return found


def alive(pid):
    path = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
