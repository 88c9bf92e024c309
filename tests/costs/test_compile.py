"""Planning a job for a topology that isn't there. The compiles themselves need libtpu and run with `make test-all`."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from mcd_jax.configs import clip_g14_yfcc15m, pretrain

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*args, config="tests/configs/pod.py"):
    return subprocess.run([sys.executable, "-m", "mcd_jax.compile", f"--config={config}", *args], cwd=ROOT, text=True,
                          capture_output=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_arguments_of_a_config():
    config = clip_g14_yfcc15m.get_config("batch_size=32768,source=/data/x*,fsdp=8")
    assert (config.batch_size, config.data.source.path, config.mesh.fsdp) == (32768, "/data/x*", 8)
    for text, words in (("batch=4", "'batch'; did you mean 'batch_size'"), ("fsdp=two", "write fsdp=16, say"),
                        ("fsdp", "write fsdp=16")):
        with pytest.raises(ValueError, match=words):
            clip_g14_yfcc15m.get_config(text)
    assert pretrain.arguments("", a=1) == {"a": 1}


def test_a_large_config_is_planned_without_its_data():
    is_planned(clip_g14_yfcc15m.get_config("batch_size=64,fsdp=2"), 1366e6)   # open_clip's model profile


def is_planned(config, parameters):
    """Shapes and shardings of the whole state, from the config alone: nothing is compiled, no array is made."""
    from mcd_jax import compile as compile_lib
    job, placeholder = compile_lib.plan(config, jax.devices()[:4], examples=10_000_000)
    assert placeholder and job.pipeline.examples == 10_000_000 and job.batch["image"].shape == (64, 224, 224, 3)
    total = sum(x.size for x in jax.tree.leaves(job.abstract.params))
    assert total == pytest.approx(parameters, rel=0.01)
    held = compile_lib.parts(job)
    assert held["params_bytes"] == pytest.approx(4 * total / 2, rel=0.01)
    assert held["optimizer_bytes"] == pytest.approx(2 * held["params_bytes"], rel=0.01)


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    from mcd_jax import compile as compile_lib
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'jax\[tpu\]'"):
        compile_lib.devices_of("v5e:2x2")


@pytest.mark.full
@pytest.mark.tpu
def test_a_small_step_compiles_for_a_pod():
    done = command("--topology=v5e:16x16", "--json", "--config.batch_size=4096", "--config.mesh.fsdp=4")
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    for key in ("config", "topology", "slices", "chips", "fits", "hbm_bytes", "peak_bytes", "argument_bytes", "temp_bytes", "flops",
                "hbm_traffic_bytes", "collectives", "roofline_seconds", "mfu_predicted", "compile_seconds",
                "pairs_per_second_per_chip", "hours", "chip_hours"):
        assert key in figures, key
    assert figures["fits"] and figures["chips"] == 256 and figures["flops"] > 1e9
    assert abs(figures["pairs_per_second_per_chip"] * figures["chip_hours"] * 3600 / (4096 * figures["steps"]) - 1) < 1e-6
    assert set(figures["collectives"]["all-gather"]) == {"count", "bytes", "async", "hidden"}


@pytest.mark.full
@pytest.mark.tpu
def test_two_slices_and_what_does_not_fit():
    done = command("--topology=v5e:2x2", "--slices=2", "--json", "--config.batch_size=256")
    assert done.returncode == 0 and json.loads(done.stdout)["chips"] == 8, done.stderr[-2000:]
    done = command("--topology=v5e:2x2", "--config.batch_size=65536", "--config.model.image.remat=none")
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout and "of 16.00 GiB" in done.stdout, done.stderr[-2000:]


@pytest.mark.full
@pytest.mark.tpu
def test_what_travels_in_a_ring_hides_behind_matmuls():
    """Scheduled by the TPU compiler at its default effort: a transfer starts, tiles are multiplied, the transfer ends."""
    done = subprocess.run([sys.executable, "-m", "mcd_jax.bench.loss", "--topology=v5e:2x2", "--batches=4096", "--losses=softmax",
                           "--forms=ring"], cwd=ROOT, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    moved = json.loads(done.stdout)["collectives"]
    assert moved.keys() <= {"collective-permute", "all-reduce"} and moved["all-reduce"]["bytes"] <= 8   # the loss and the scale
    ring = moved["collective-permute"]
    assert ring["count"] == ring["async"] and ring["hidden"] >= 0.9 * ring["count"]


@pytest.mark.full
@pytest.mark.tpu
@pytest.mark.parametrize("args,words", [
    (("--topology=v5litepod-256",), "there is no topology 'v5litepod-256'"),
    (("--topology=v5e:2x2", "--config.mesh.fsdp=3"), "does not divide the 4 devices"),
    (("--topology=v5e:2x2", "--config.batch_size=4098"), "4096 or 4100 would fit")])
def test_what_cannot_be_planned_is_refused_with_the_numbers_that_fit(args, words):
    done = command(*args)
    assert done.returncode == 1 and words in done.stderr, done.stderr[-2000:]
