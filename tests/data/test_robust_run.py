"""Bad input in a whole run: figures by cause in metrics.jsonl, a sentence where it stops; and the soak that looks for leaks."""
import json
import os
import pathlib
import subprocess
import sys

from mcd_jax.bench import soak

ROOT = pathlib.Path(__file__).resolve().parents[2]
BROKEN_EMOJI = """
from mcd_jax.data import sources

class Broken:
    def __init__(self, spec):
        self.own = sources.open({**spec, "name": "emoji"})
    def __len__(self):
        return len(self.own)
    def __getitem__(self, i):
        row = dict(self.own[i])
        row["image"] = b"" if i % 20 == 3 else row["image"][:50] if i % 20 == 4 else row["image"]
        return row

make = Broken
"""
CONFIG = """
from mcd_jax import config as config_lib

def get_config():
    config = config_lib.default()
    config.steps, config.batch_size, config.log_every, config.tensorboard = "30 steps", 64, 1, False
    config.checkpoint.every = "100 percent"
    config.objective = config_lib.objective("clip")
    config.data.source = dict(name="broken_pairs.emoji", split="validation")
    config.data.views = dict(image="decode|resize(8)", text="caption('first')|tokenize(8, 'emoji')")
    config.data.max_bad = 0.07
    config.model = dict(image=dict(name="resnet", widths=(8,), depths=(1,)), embed_dim=8,
                        text=dict(name="text", width=8, depth=1, num_heads=1, mlp_dim=8))
    return config
"""


def test_a_run_logs_counts_by_cause_and_stops_with_a_sentence(tmp_path):
    (tmp_path / "broken_pairs").mkdir()
    (tmp_path / "broken_pairs" / "emoji.py").write_text(BROKEN_EMOJI)
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "mcd_jax.train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "JAX_NUM_CPU_DEVICES": "1"}, cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "10.1% of the 276 examples looked at so far are bad (14 x corrupt image, 14 x empty image)" in sentence
    last = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["bad_examples"] == last["bad_examples/corrupt_image"] + last["bad_examples/empty_image"] > 20
    assert len(lines(tmp_path / "run" / "bad_examples.jsonl")) == 28


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_soak_prints_one_json_line(capsys):
    line = soak.main(["--batches=30", "--batch_size=8"])
    assert json.loads(capsys.readouterr().out) == line
    assert line["bad_examples"] and line["memory_mib"]["at_end"] > 50 and line["threads"]["at_end"] >= 3
    assert line["repaired_examples/caption_cut"]
