"""Checkpoints: what is saved comes back bit for bit, or the one before it does, or a sentence says why not."""
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from mcd_jax import signals
from mcd_jax.run import arrays_on_disk, checkpoint, fingerprint
from mcd_jax.run import workdir as workdir_lib
from mcd_jax.run.preemption import Preemption


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    memory: Any
    key: Any


def make_state(step=0, width=8, devices=4):
    """A state with everything that occurs: shards, optax tuples, masked leaves, bf16, integers, an empty tree, a key."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    kernel = jax.random.normal(jax.random.key(step), (8, width))
    params = {"image": {"block_0": {"kernel": kernel}}, "logit_scale": jnp.float32(step + 0.5)}
    labels = {"image": {"block_0": {"kernel": "adamw"}}, "logit_scale": "frozen"}
    tx = optax.chain(optax.clip_by_global_norm(1.0),
                     optax.partition({"adamw": optax.adamw(1e-3), "frozen": optax.set_to_zero()}, labels))
    memory = {"teacher": kernel.astype(jnp.bfloat16), "seen": jnp.arange(6, dtype=jnp.int8), "flags": kernel[0] > 0, "none": {}}
    state = State(jnp.int32(step), params, tx.init(params), memory, jax.random.key(step + 7))
    place = lambda x: NamedSharding(mesh, P("data") if x.shape[:1] == (8,) else P())
    return jax.device_put(state, jax.tree.map(place, state))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def saved(workdir, steps, **options):
    saver = checkpoint.Checkpoints(workdir, **options)
    for step in steps:
        saver.save(step, make_state(step))
    saver.close()
    return workdir


def files_of(workdir, step):
    root = pathlib.Path(workdir) / "checkpoints" / str(step)
    return sorted(p for p in root.rglob("*") if p.is_file())


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    return said


def test_round_trip_is_bit_equal_in_the_same_structure_and_places(tmp_path):
    state = make_state(3)
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(3, state)
    back = saver.restore(abstract(state))
    saver.close()
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert checkpoint.checksum(back) == checkpoint.checksum(state) != checkpoint.checksum(make_state(4))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.sharding.spec, b.sharding.spec), back, state)
    assert jax.random.uniform(back.key) == jax.random.uniform(state.key)


def test_restores_on_another_number_of_devices(tmp_path):
    saved(tmp_path, [1])
    back = checkpoint.Checkpoints(tmp_path).restore(abstract(make_state(devices=1)))
    assert back.params["image"]["block_0"]["kernel"].sharding.num_devices == 1
    assert checkpoint.checksum(back) == checkpoint.checksum(make_state(1))


def test_arrays_may_be_donated_while_the_save_runs(tmp_path):
    state = jax.device_put(jnp.ones((1 << 20,)))
    saver = checkpoint.Checkpoints(tmp_path)
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    saver.save(1, {"x": state})
    for _ in range(5):
        state = double(state)
    assert float(state[0]) == 32 and float(saver.restore({"x": abstract(state)})["x"].max()) == 1
    saver.close()


def test_keeps_the_last_and_the_best(tmp_path):
    saver = checkpoint.Checkpoints(tmp_path, every=10, keep=2, best="retrieval/R@1")
    assert [s for s in range(41) if saver.due(s)] == [0, 10, 20, 30, 40] and not checkpoint.Checkpoints(tmp_path).due(10)
    for step, score in ((10, 0.2), (20, 0.9), (30, None), (40, float("nan")), (50, 0.5), (60, None)):
        saver.save(step, make_state(step), None if score is None else {"retrieval/R@1": score, "loss": score, "step": None})
    saver.close()
    assert saver.steps() == [20, 50, 60] and saver.latest() == 60 and saver.best() == 20
    again = checkpoint.Checkpoints(tmp_path, keep=1, best="-loss", read_only=True)
    assert again.best() == 50 and checkpoint.Checkpoints(tmp_path).best() is None
    with pytest.raises(ValueError, match="read_only"):
        again.save(70, make_state(70))
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.Checkpoints(tmp_path, keep=0)


# orbax leaves the reads beside a failed one unfinished
quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path: path.write_bytes(bytes(b ^ 255 if i % 97 == 96 else b for i, b in enumerate(path.read_bytes()))),
}


@quiet
@pytest.mark.parametrize("kind", ["deleted", "truncated", pytest.param("zeroed", marks=pytest.mark.full),
                                  pytest.param("flipped", marks=pytest.mark.full)])
def test_any_damaged_file_gives_the_same_state_or_the_one_before(tmp_path, warnings, kind):
    saved(tmp_path / "whole", [10, 20])
    wanted = {step: checkpoint.checksum(make_state(step)) for step in (10, 20)}
    fell_back = 0
    for path in files_of(tmp_path / "whole", 20):
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        DAMAGE[kind](tmp_path / "run" / path.relative_to(tmp_path / "whole"))
        reader = checkpoint.Checkpoints(tmp_path / "run", read_only=True)
        warnings.clear()
        state = reader.restore(abstract(make_state()))
        assert checkpoint.checksum(state) == wanted[int(state.step)], path
        assert reader.latest() == int(state.step)
        if int(state.step) == 10:
            fell_back += 1
            assert len(warnings) == 1 and "step 20" in warnings[0] and "falling back" in warnings[0]
        shutil.rmtree(tmp_path / "run")
    assert fell_back >= 4


def test_values_changed_without_a_trace_in_the_files_are_noticed(tmp_path, warnings, monkeypatch):
    saved(tmp_path, [10])
    real = arrays_on_disk.read

    def lying(*args, **kwargs):
        result = real(*args, **kwargs)
        result.params["logit_scale"] += 1
        return result

    saver = checkpoint.Checkpoints(tmp_path, read_only=True)
    monkeypatch.setattr(arrays_on_disk, "read", lying)
    with pytest.raises(OSError, match=r"step 10.*params/logit_scale doesn't hold the saved values"):
        saver.restore(abstract(make_state()))


def test_a_broken_step_is_set_aside_and_saved_again(tmp_path, warnings):
    saved(tmp_path, [10, 20])
    (tmp_path / "checkpoints/20/manifest/metadata").write_text("{")
    writer = checkpoint.Checkpoints(tmp_path, keep=2)
    assert int(writer.restore(abstract(make_state())).step) == 10
    assert checkpoint.Checkpoints(tmp_path, read_only=True).latest() == 10
    assert (tmp_path / "checkpoints/20.broken").is_dir()
    writer.save(10, make_state(99))  # already there: left alone
    writer.save(20, make_state(20))
    writer.close()
    for step in (10, 20):
        back = checkpoint.Checkpoints(tmp_path).restore(abstract(make_state()), step)
        assert checkpoint.checksum(back) == checkpoint.checksum(make_state(step))


def test_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path, warnings):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of any step.*there is none"):
        checkpoint.Checkpoints(tmp_path).restore(abstract(make_state()))
    saved(tmp_path, [10])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 15 .*there is 10"):
        checkpoint.Checkpoints(tmp_path).restore(abstract(make_state()), 15)
    (tmp_path / "checkpoints/10/commit_success.txt").unlink()
    with pytest.raises(OSError, match=r"step 10.*never finished"):
        checkpoint.Checkpoints(tmp_path, read_only=True).restore(abstract(make_state()))


def test_another_config_is_refused_with_the_parameter_and_both_shapes(tmp_path, warnings):
    saved(tmp_path, [10, 20])
    saver = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(checkpoint.MismatchError, match=r"kernel is float32 \(8, 8\) in .*20 and float32 \(8, 16\) in this config"):
        saver.restore(abstract(make_state(width=16)))
    grown = make_state()
    grown.params["image"]["new"] = grown.step
    with pytest.raises(checkpoint.MismatchError, match=r"params/image/new is absent in .* and int32"):
        saver.restore(abstract(grown))
    cast = abstract(make_state())
    cast.memory["teacher"] = cast.params["image"]["block_0"]["kernel"]
    with pytest.raises(checkpoint.MismatchError, match=r"memory/teacher is bfloat16 \(8, 8\) in .* and float32"):
        saver.restore(cast)
    assert not warnings and saver.latest() == 20


def test_restore_from_takes_a_run_or_one_step_and_one_part(tmp_path):
    saved(tmp_path, [10, 20])
    whole, params = abstract(make_state()), abstract(make_state()).params
    assert int(checkpoint.restore_from(tmp_path, whole).step) == 20
    back = checkpoint.restore_from(tmp_path / "checkpoints/10", params, "params")
    assert checkpoint.checksum(back) == checkpoint.checksum(make_state(10).params)
    with pytest.raises(checkpoint.MismatchError, match="params/image"):
        checkpoint.restore_from(tmp_path, {"logit_scale": params["logit_scale"]}, "params")


def test_restore_from_leaves_aside_what_it_is_told(tmp_path):
    """On both sides: a parameter of the run that is not wanted, and one of this config that the run doesn't have."""
    saved(tmp_path, [10])
    params = abstract(make_state()).params
    wanted = {**params, "head": {"kernel": params["logit_scale"]}}
    with pytest.raises(checkpoint.MismatchError, match=r"params/head/kernel is absent .*config\.init_fresh"):
        checkpoint.restore_from(tmp_path, wanted, "params")
    back = checkpoint.restore_from(tmp_path, wanted, "params", ("head/.*", "logit_scale"))
    assert checkpoint.checksum(back) == checkpoint.checksum({"image": make_state(10).params["image"]})
    del wanted["logit_scale"]
    assert set(checkpoint.restore_from(tmp_path, wanted, "params", ("head/.*", "logit_.*"))) == {"image"}
    with pytest.raises(checkpoint.MismatchError, match=r"'heads/\.\*' matches no parameter"):
        checkpoint.restore_from(tmp_path, wanted, "params", ("heads/.*",))


def test_a_failed_save_is_reported_before_the_next_step(tmp_path, monkeypatch):
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(10, make_state(10))
    saver.wait()

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.CompositeCheckpointHandler, "finalize", full)
    saver.save(20, make_state(20))
    with pytest.raises(OSError, match=r"checkpoint of step 20 can't be saved: No space left.* bytes are needed beside step 10"):
        for _ in range(100):
            saver.check()
            time.sleep(0.05)
    assert saver.latest() == 10


def test_check_writable_names_the_folder(tmp_path):
    workdir_lib.check_writable(tmp_path / "a/b")
    assert not list((tmp_path / "a/b").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--workdir=.*file/run can't be written \(Not a directory\)"):
        workdir_lib.check_writable(tmp_path / "file/run")


SAVE_FOREVER = """
import sys, jax, jax.numpy as jnp
from mcd_jax.run import checkpoint
saver = checkpoint.Checkpoints(sys.argv[1], keep=2)
like = {"x": jax.ShapeDtypeStruct((1 << 19,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
step = 0 if saver.latest() is None else int(saver.restore(like)["step"])
while True:
    step += 1
    saver.save(step, {"x": jax.random.normal(jax.random.key(step), (1 << 19,)), "step": jnp.int32(step)})
    print(step, flush=True)
"""


def test_kill_9_during_a_save_leaves_a_usable_checkpoint(tmp_path, warnings):
    rng, reached = np.random.default_rng(0), 0
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"x": jax.ShapeDtypeStruct((1 << 19,), jnp.float32, sharding=device),
            "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=device)}
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                                 cwd=pathlib.Path(checkpoint.__file__).parents[2])
        for _ in range(3):  # a third save is under way, so the second one is committed
            line = int(child.stdout.readline())
        assert line == reached + 3, "each life continues from the last committed step"
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        state = checkpoint.Checkpoints(tmp_path, read_only=True).restore(like)
        assert int(state["step"]) >= line - 1 and not warnings
        np.testing.assert_array_equal(state["x"], jax.random.normal(jax.random.key(int(state["step"])), (1 << 19,)))
        reached = int(state["step"])


def test_preemption_is_polled_and_sticky_and_ends_what_waits():
    before = {s: signal.getsignal(s) for s in signals.NAMES}
    for number, name in signals.NAMES.items():
        with Preemption() as preemption:
            assert not preemption.reached() and preemption.unless_asked(int, "3") == 3
            assert preemption.unless_asked(lambda: (os.kill(os.getpid(), number), time.sleep(60))) is None
            assert preemption.reached() and preemption.reached() and preemption.reason == name
            assert preemption.unless_asked(int, "3") is None
    assert {s: signal.getsignal(s) for s in before} == before


def test_checksum_depends_on_paths_values_and_types_but_not_on_places():
    one, four = make_state(1, devices=1).params, make_state(1).params
    assert checkpoint.checksum(one) == checkpoint.checksum(four) == checkpoint.checksum(jax.tree.map(np.asarray, one))
    assert fingerprint.fingerprints(one) == fingerprint.fingerprints(four)
    others = [make_state(2).params, {"images": one["image"], "logit_scale": one["logit_scale"]},
              {**one, "logit_scale": jnp.bfloat16(1.5)}]
    assert len({checkpoint.checksum(x) for x in [one, *others]}) == 4


def test_fingerprints_notice_swapped_and_zeroed_values():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    seen = [x, x[::-1], x[:, ::-1], x.reshape(4, 3), x * 0, -x, x.astype(np.int32), x.astype(jnp.bfloat16)]
    assert len({fingerprint.fingerprints({"x": jnp.asarray(v)})["x"] for v in seen}) == len(seen)


def test_checkpoints_of_a_bucket_go_to_the_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(checkpoint.Checkpoints("gs://lab/runs/x", read_only=True).directory) == "gs://lab/runs/x/checkpoints"
    assert str(checkpoint.Checkpoints("runs/x", read_only=True).directory) == f"{tmp_path}/runs/x/checkpoints"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert str(checkpoint.Checkpoints("~/runs/x", read_only=True).directory) == f"{tmp_path}/me/runs/x/checkpoints"
    with pytest.raises(OSError, match=r"--workdir=ftp://lab/x: checkpoints go to a folder or to gs://.*, not to ftp://"):
        workdir_lib.check_writable("ftp://lab/x")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_bucket_without_its_package_is_a_sentence():
    with pytest.raises(OSError, match=r"--workdir=gs://lab/x needs a package that isn't installed: .*gcsfs.*'mcd_jax\[gcs\]'"):
        workdir_lib.check_writable("gs://lab/x")
