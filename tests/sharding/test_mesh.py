import os
import socket
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from mcd_jax.optim import optimizer
from mcd_jax.sharding import mesh as mesh_lib

CONFIG = {"slice": 1, "data": -1, "fsdp": 1, "tensor": 1, "expert": 1}


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    memory: Any
    key: Any


def test_minus_one_takes_what_is_left():
    assert dict(mesh_lib.make(CONFIG).shape) == {"slice": 1, "data": 4, "fsdp": 1, "expert": 1, "tensor": 1}
    assert mesh_lib.make({**CONFIG, "fsdp": 2}).shape["data"] == 2
    assert mesh_lib.make({"fsdp": -1}, jax.devices()[:2]).shape["fsdp"] == 2
    mesh = mesh_lib.make({"slice": 2, "tensor": 2})
    assert mesh.shape["slice"] == mesh.shape["tensor"] == 2 and set(mesh.axis_types) == {AxisType.Auto}
    assert mesh_lib.batch_devices(mesh) == 2


@pytest.mark.parametrize("config, words", [
    ({"data": 3, "fsdp": 2}, ["data 3 x fsdp 2 = 6", "there are 4 devices"]),
    ({"data": 2}, ["data 2 = 2", "multiply to 4"]),
    ({"data": -1, "tensor": 3}, ["tensor 3 = 3 does not divide the 4 devices", "data=-1", "1, 2, 4"]),
    ({"data": -1, "fsdp": -1}, ["data and fsdp", "only one"]),
    ({"data": 0}, ["config.mesh.data=0"]),
    ({"data": 4.0}, ["config.mesh.data=4.0"]),
    ({"dta": 4}, ["config.mesh.dta", "data"]),
])
def test_mesh_refusals(config, words):
    with pytest.raises(ValueError) as error:
        mesh_lib.make(config)
    assert all(word in str(error.value) for word in words), error.value


def test_batch_that_does_not_divide():
    mesh = mesh_lib.make({"data": 2, "tensor": 2})
    mesh_lib.check_batch(6, mesh)
    mesh_lib.check_batch(24, mesh, microbatches=3, group_size=4)
    with pytest.raises(ValueError, match=r"batch_size=7 .*2 batch devices.* = 2; 6 or 8 would fit"):
        mesh_lib.check_batch(7, mesh)
    with pytest.raises(ValueError, match=r"2 batch devices x 3 microbatches x groups of 4 = 24; 24 would fit"):
        mesh_lib.check_batch(20, mesh, microbatches=3, group_size=4)


@pytest.mark.parametrize("config", [{"data": 4}, {"fsdp": 2, "tensor": 2}, {"slice": 2, "data": 2}, {"tensor": 4}])
def test_rows_travel_to_their_devices(config):
    mesh = mesh_lib.make(config)
    rows = mesh_lib.local_rows(8, mesh)
    np.testing.assert_array_equal(rows, np.arange(8))
    batch = {"image": np.arange(8 * 6, dtype=np.uint8).reshape(8, 2, 3), "index": np.arange(8, dtype=np.int32)}
    out = mesh_lib.to_global(batch, mesh)
    for key, x in batch.items():
        np.testing.assert_array_equal(out[key], x)
        assert out[key].dtype == x.dtype and out[key].sharding == mesh_lib.batch_sharding(mesh)
    assert out["index"].addressable_shards[0].data.shape == (8 // mesh_lib.batch_devices(mesh),)
    with pytest.raises(ValueError, match="index 7"):
        mesh_lib.to_global({"image": batch["image"], "index": batch["index"][:7]}, mesh)


def test_each_process_holds_its_own_rows(tmp_path):
    """Two processes of two devices, devices dealt out crosswise: the rows follow the devices, not the process number."""
    script = tmp_path / "rows.py"
    script.write_text(textwrap.dedent("""
        import sys
        import jax
        import numpy as np
        from mcd_jax.sharding import mesh as mesh_lib
        me, port = int(sys.argv[1]), sys.argv[2]
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, me, initialization_timeout=60)
        devices = jax.devices()
        for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
            mesh = mesh_lib.make({"data": 4}, [devices[i] for i in order])
            whole = np.arange(24, dtype=np.int32).reshape(8, 3)
            rows = mesh_lib.local_rows(8, mesh)
            out = mesh_lib.to_global({"x": whole[rows]}, mesh)["x"]
            placed = [d.id for d in mesh.devices.ravel()]
            mine = [i for i, d in enumerate(mesh.devices.ravel()) if d.process_index == me]
            assert rows.tolist() == [r for i in mine for r in (2 * i, 2 * i + 1)], (rows, placed)
            assert out.shape == (8, 3)
            for shard in out.addressable_shards:
                np.testing.assert_array_equal(shard.data, whole[shard.index])
        print("rows agree")
    """))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": "."}
    both = [subprocess.Popen([sys.executable, str(script), str(i), str(port)], env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "rows agree" in out, out


def test_one_rule_one_spec():
    mesh = mesh_lib.make({"fsdp": 2, "tensor": 2})
    spec = mesh_lib.spec
    assert spec("replicate", (4, 8), mesh) == P()
    assert spec("fsdp", (4, 8), mesh) == P(None, "fsdp")
    assert spec("fsdp", (6, 7), mesh) == P("fsdp")
    assert spec("fsdp", (3, 5), mesh) == spec("fsdp", (), mesh) == P()
    assert spec("fsdp", (4, 8), mesh_lib.make({"data": 4})) == P()
    assert spec((None, ["fsdp", "tensor"]), (3, 8, 5), mesh) == P(None, ("fsdp", "tensor"))
    for rule, shape, words in (("fsdpp", (4,), "'fsdpp' for a/b"), (("model",), (4,), "axis 'model'"),
                               (("tensor",), (3,), "2 devices, which do not divide 3"),
                               ((None, "tensor"), (4,), "names 2 dimensions of 1")):
        with pytest.raises(ValueError, match=words):
            spec(rule, shape, mesh, "a/b")


def state():
    params = {"image": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(3)}, "logit_scale": jnp.zeros(())}
    tx, _ = optimizer.make({"optimizers": [("image/.*", {"name": "adamw"}), (".*", {"name": "sgd"})]}, params, 10, 8, 80)
    teacher = {"image": params["image"]}
    return State(jnp.int32(0), params, tx.init(params),
                 {"teacher": teacher, "ema": params, "queue": jnp.zeros((2, 8, 4)), "frozen": {"kernel": jnp.zeros((6, 4))}},
                 jax.random.key(0))


def test_moments_and_memory_follow_their_parameter():
    mesh = mesh_lib.make({"fsdp": 2, "data": 2})
    rules = [("kernel", (None, "fsdp")), ("image/kernel", ("fsdp", None)), ("memory/queue", (None, ("data", "fsdp"))),
             (".*", "fsdp")]
    s = state()
    got = mesh_lib.shardings(s, rules, mesh)
    placed = {jax.tree_util.keystr(k, simple=True, separator="/"): v.spec
              for k, v in jax.tree_util.tree_leaves_with_path(got)}
    kernels = {path: spec for path, spec in placed.items() if path.endswith("image/kernel")}
    assert len(kernels) == 5 and set(kernels.values()) == {P("fsdp", None)}     # params, mu, nu, teacher, ema
    assert placed["memory/queue"] == P(None, ("data", "fsdp"))
    assert placed["memory/frozen/kernel"] == P(None, "fsdp")                    # by a rule of its own
    assert placed["step"] == placed["key"] == placed["params/image/bias"] == placed["opt/skipped"] == P()
    moved = jax.device_put(s, got)
    assert moved.params["image"]["kernel"].addressable_shards[0].data.shape == (2, 8)
    with pytest.raises(ValueError, match=r"config\.sharding: no rule matches logit_scale"):
        mesh_lib.shardings(s, [("image/.*", "fsdp")], mesh)
    with pytest.raises(ValueError, match=r"image/bias \(3,\)"):
        mesh_lib.shardings(s, [(".*bias", ("data",)), (".*", "fsdp")], mesh)


def test_factored_moments_need_not_fit_the_rule():
    mesh = mesh_lib.make({"fsdp": 2, "data": 2})
    params = {"w": jnp.zeros((256, 128))}
    tx, _ = optimizer.make({"optimizers": {"name": "adafactor"}}, params, 10, 8, 80)
    s = State(jnp.int32(0), params, tx.init(params), {}, jax.random.key(0))
    moved = jax.device_put(s, mesh_lib.shardings(s, [(".*", ("fsdp", "data"))], mesh))
    updates, _ = jax.jit(tx.update)({"w": jnp.ones((256, 128))}, moved.opt, moved.params)
    assert np.all(np.isfinite(optax.apply_updates(moved.params, updates)["w"]))


def test_table_counts_bytes_per_device():
    mesh = mesh_lib.make({"fsdp": 2, "data": 2})
    text, total = mesh_lib.table(jax.eval_shape(lambda: state().params), [(".*kernel", "fsdp"), (".*", "replicate")], mesh)
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert lines["image/kernel"][1:] == ["4x8", "float32", "-", "fsdp", "64"]
    assert lines["image/bias"][1:] == ["3", "float32", "replicated", "12"]
    assert total == "36 parameters on mesh data 2 x fsdp 2: 80 of their 144 bytes on each device"
