"""The processes of a job compare what they are about to run: the sentences, the cost, and two real processes."""
import collections
import importlib
import re
import threading
import time

from pair import CONFIG, Pair
import pytest

from mcd_jax.run import agreement
from mcd_jax.sharding import distributed


class Store:
    """A coordinator's store and barriers for `count` threads, which counts calls and bytes."""

    def __init__(self, count):
        self.values, self.calls, self.moved, self.lock = {}, 0, 0, threading.Lock()
        self.set = collections.defaultdict(threading.Event)
        self.barriers = collections.defaultdict(lambda: threading.Barrier(count))

    def key_value_set(self, key, value, **_):
        with self.lock:
            self.values[key] = value
            self._counted(value)
            self.set[key].set()

    def blocking_key_value_get(self, key, _):
        with self.lock:
            event = self.set[key]
        assert event.wait(60)
        with self.lock:
            self._counted(self.values[key])
            return self.values[key]

    def key_value_dir_get(self, folder):
        with self.lock:
            found = [(k, v) for k, v in self.values.items() if k.startswith(folder)]
            self._counted(*(v for _, v in found))
            return found

    def wait_at_barrier(self, name, _):
        with self.lock:
            self._counted()
            barrier = self.barriers[name]
        barrier.wait(60)

    def _counted(self, *values):
        self.calls += 1
        self.moved += sum(map(len, values))


def run(monkeypatch, count, said):
    """(the outcome of `agree` of each of `count` threads, the store); `said`: {process: record}, of the others that of 0."""
    store, own, outcomes = Store(count), threading.local(), {}
    monkeypatch.setattr(distributed, "coordinator", lambda: store)
    monkeypatch.setattr(distributed, "dissolve", lambda: None)
    monkeypatch.setattr(agreement.jax, "process_index", lambda: own.me)
    monkeypatch.setattr(agreement.time, "sleep", lambda _: None)
    monkeypatch.setattr(distributed, "_BARRIERS", _Once())
    monkeypatch.setattr(agreement, "_STAGES", _Once())

    def one(me):
        own.me = me
        try:
            agreement.agree("a test", said.get(me, said[0]))
            outcomes[me] = None
        except agreement.Disagreement as error:
            outcomes[me] = str(error)
    threads = [threading.Thread(target=one, args=(me,)) for me in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[me] for me in range(count)], store


class _Once(dict):
    """A counter that stays at 1: the threads stand for processes with a counter each."""

    def __getitem__(self, key):
        return 1

    def __setitem__(self, key, value):
        pass


def record(**changes):
    config = {f"key_{i}": i for i in range(300)} | {"optimizer": {"lr": 0.001}, "model": [("a", {"b": 1})]} | changes
    return agreement.command(config, workdir="runs/a")


def test_a_thousand_processes_that_agree_exchange_little(monkeypatch):
    outcomes, store = run(monkeypatch, 1024, {0: record()})
    assert outcomes == [None] * 1024
    assert store.calls <= 5 * 1024 and store.moved < 1024 * 100 + 50_000   # the record once, a digest and a word each


def test_the_sentence_names_processes_and_settings(monkeypatch):
    other = record(optimizer={"lr": 0.1})
    outcomes, _ = run(monkeypatch, 64, {0: record(), **{i: other for i in (3, 4, 5, 9)}, 7: record(key_1=0, model=[("a", {})])})
    assert set(outcomes) == {
        "processes 3-5, 9 have config.optimizer.lr=0.1, process 0 has 0.001; process 7 has config.key_1=0, process 0 has 1 and "
        "config.model.0.1={}, process 0 has none and no config.model.0.1.b, process 0 has 1: " + agreement.COMMAND}
    own = {key: dict(workers=8, processes=2, prefetch=1, cache=True)[key] for key in ("workers", "processes", "prefetch", "cache")}
    assert agreement.command({"data": own})[agreement.COMMAND] == {}   # a host's own affair


def test_code_of_the_users_own_that_the_config_names_is_compared(tmp_path, monkeypatch):
    (tmp_path / "lab_of_one").mkdir()
    (tmp_path / "lab_of_one/ops.py").write_text("def sharpen(image, draws): return image")
    (tmp_path / "lab_of_one/late.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)

    def said(views):
        return agreement.command({"data": {"views": {"image": views, "text": "numpy.x.json.dumps"}}})[agreement.CODE]
    plain, views = said("decode"), "decode|lab_of_one.ops.sharpen()|resize(8)"
    assert said(views) == plain   # nothing of it has been imported
    importlib.import_module("lab_of_one.ops")
    here = said(views)
    assert here.keys() - plain.keys() == {"source of lab_of_one"} and said("decode") == plain
    importlib.import_module("lab_of_one.late")   # as a loss or an evaluation of one process may at any time
    assert said(views) == here
    (tmp_path / "lab_of_one/ops.py").write_text("def sharpen(image, draws): return -image")
    assert {key for key, value in said(views).items() if here[key] != value} == {"source of lab_of_one"}


CASES = """
import copy, types, sys
from mcd_jax.sharding import distributed
distributed.join()
import jax
import mcd_jax
from mcd_jax import config as config_lib
from mcd_jax.data import pipeline
from mcd_jax.evals import rows
from mcd_jax.run import agreement, software
agreement.time.sleep = lambda seconds: None
me, config = jax.process_index(), config_lib.from_file(sys.argv[1]).unlock()

def attempt(name, said):
    try:
        agreement.agree(name, said)
        print(name, "agreed", sep="\\t", flush=True)
    except agreement.Disagreement as error:
        print(name, error, sep="\\t", flush=True)

def put(key, value):
    changed = copy.deepcopy(config)
    *path, last = key.split(".")
    section = changed
    for part in path:
        section = section[part]
    if me:
        section[last] = value
    attempt(key, agreement.command(changed, workdir="a"))

def data(name, split, seed, total):
    made = pipeline.make({**config.data, "source": {"name": "emoji", "split": split}}, seed, config.batch_size)
    attempt(name, agreement.data(types.SimpleNamespace(pipeline=made, total_steps=total, config=config), None, 0))

attempt("same", agreement.command(config, workdir="a"))
for key, value in (("optimizer.lr", 0.1), ("seed", 5), ("model.logit_scale", 1.0), ("steps", "14 steps"), ("batch_size", 32),
                   ("checkpoint.every", "3 steps")):
    put(key, value)
put("data.workers", 7)
attempt("workdir", agreement.command(config, workdir="b" if me else "a"))
data("rows", "test" if me else "validation", 0, 24)
data("order", "validation", me, 24)
embed = types.SimpleNamespace(held=[0])
try:
    rows.encode(embed, None, range(5 if me else 4), None, ["text"], 4)
except agreement.Disagreement as error:
    print("evaluation", error, sep="\\t", flush=True)
mcd_jax.__version__ = "0.0.9" if me else mcd_jax.__version__
attempt("version", agreement.command(config, workdir="a"))
software.source = lambda: "feed" if me else "beef"
attempt("copy", agreement.command(config, workdir="a"))
distributed.leave(0)
"""


def test_two_processes_that_differ_say_the_same(tmp_path):
    results = Pair(["-c", CASES, str(CONFIG)], devices=1).wait(90)
    assert [r[0] for r in results] == [0, 0], results
    first, second = (dict(line.split("\t") for line in out.splitlines() if "\t" in line) for _, out, _ in results)
    assert first == second
    beside = {"same": "agreed", "data.workers": "agreed"}
    for key, mine, theirs in (("optimizer.lr", "0.1", "0.01"), ("seed", "5", "0"), ("model.logit_scale", "1.0", "none"),
                              ("steps", '"14 steps"', '"24 steps"'), ("batch_size", "32", "16"),
                              ("checkpoint.every", '"3 steps"', '"4 steps"')):
        beside[key] = f"process 1 has config.{key}={mine}, process 0 has {theirs}: {agreement.COMMAND}"
    beside["workdir"] = f'process 1 has --workdir="b", process 0 has "a": {agreement.COMMAND}'
    assert {key: first[key] for key in beside} == beside
    assert re.match(r"process 1 has number of training examples=\d+, process 0 has \d+", first["rows"])
    assert first["evaluation"].startswith("process 1 has rows to embed=5, process 0 has 4 and rows of their source=5, ")
    assert re.match(r'process 1 has example \d+ of the epoch="[^"]+", process 0 has "', first["order"])
    assert re.match(r'process 1 has mcd_jax="0\.0\.9, source \w+", process 0 has "0\.\d', first["version"])
    assert first["copy"].endswith(f': {agreement.CODE}') and "source feed" in first["copy"]


DIFFERENT = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("toy", {toy!r})
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

def get_config(what):
    config, me = toy.get_config(), int(os.environ["JAX_PROCESS_ID"])
    config.evals = {{}}
    if what == "seed" and me:
        config.seed = 5
    if what == "rows":   # process 1 has a copy of the table that lacks some rows
        config.data.source = dict(name="folder", path={folder!r}, table=f"t{{me}}.csv")
        config.steps = "4 epochs"
    return config
"""


@pytest.mark.full
@pytest.mark.parametrize("what, sentence", [
    ("seed", "process 1 has config.seed=5, process 0 has 0: start all with the same command and config"),
    ("rows", "process 1 has config.data.source.table")])
def test_training_that_would_differ_ends_at_once(tmp_path, what, sentence):
    from PIL import Image
    for i in range(60):
        Image.new("RGB", (20, 20), (4 * i, 0, 0)).save(tmp_path / f"{i}.png")
    for me, rows in ((0, 60), (1, 40)):
        (tmp_path / f"t{me}.csv").write_text("image,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(rows)))
    file = tmp_path / "different.py"
    file.write_text(DIFFERENT.format(toy=str(CONFIG), folder=str(tmp_path)))
    start = time.time()
    results = Pair(["-m", "mcd_jax.train", f"--config={file}:{what}", f"--workdir={tmp_path}/run"]).wait(120)
    assert time.time() - start < 60
    for status, out, err in results:
        assert status == 1 and sentence in err and "has died" not in err and "training" not in out, (out, err)
    assert not list(tmp_path.glob("run/*"))
