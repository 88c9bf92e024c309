"""A ViT trained here, exported, and evaluated by open_clip's own preprocessing, tokenizer and towers: the same retrieval table."""
import io
import json
import subprocess
import sys

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch

from mcd_jax import train
from mcd_jax.configs import clip_emoji
from mcd_jax.convert import __main__ as cli
from mcd_jax.convert import open_clip as ours
from mcd_jax.convert import peers, runs
from mcd_jax.data import sources
from mcd_jax.run import results as results_lib

STEPS = 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(workdir, exported folder) of a run on the embedded data with the averaged teacher's weights beside."""
    root = tmp_path_factory.mktemp("run")
    config = clip_emoji.get_config("vit")
    config.steps, config.batch_size, config.ema = f"{STEPS} steps", 64, 0.9
    config.model.image.depth = 2
    config.evals = dict(retrieval=dict(test=config.evals.retrieval.heldout_concepts, both=config.evals.retrieval.heldout_both))
    config.tensorboard = False
    assert train.train(config, str(root / "run")) == 0
    cli.main(["export", f"--workdir={root / 'run'}", "--to=open_clip", f"--out={root / 'out'}"])
    return root / "run", root / "out"


def recall(queries, candidates, query_ids, candidate_ids, k):
    """The share of queries that have a row with their id among the k nearest, counted one by one."""
    found = 0
    for row, own in zip(queries, query_ids):
        nearest = np.argsort(-(candidates @ row), kind="stable")[:k]
        found += any(candidate_ids[i] == own for i in nearest)
    return found / len(queries)


def peer_table(out, split, keep=lambda row: True):
    """R@1, 5, 10 both ways by open_clip alone: its transforms on the encoded images, its tokenizer on the captions."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    source = sources.open(dict(name="emoji", split=split, captions=("label",), languages=("en",)))
    rows = [source[i] for i in range(len(source))]
    ids = np.array([row["concept_id"] for row in rows])
    asks = np.array([keep(row) for row in rows])
    _, first = np.unique(ids, return_index=True)
    with torch.no_grad():
        pixels = torch.stack([preprocess(PIL.Image.open(io.BytesIO(row["image"]))) for row in rows])
        image = model.eval().encode_image(pixels, normalize=True).numpy()
        text = model.encode_text(tokenizer([rows[i]["text"][0] for i in first]), normalize=True).numpy()
    result = {}
    for k in (1, 5, 10):
        result[f"text_to_image/R@{k}"] = recall(text[asks[first]], image, ids[first][asks[first]], ids, k)
        result[f"image_to_text/R@{k}"] = recall(image[asks], text, ids[asks], ids[first], k)
    return result


def test_the_same_retrieval_table(folders):
    workdir, out = folders
    figures = results_lib.latest(workdir)
    held_out = lambda row: row["concept_split"] == "test"
    tables = {"test": peer_table(out, "test"),
              "both": peer_table(out, "openmoji_train+openmoji_validation+openmoji_test", held_out)}
    for instance, table in tables.items():
        mine = {key: figures[f"retrieval/{instance}/{key}"] for key in table}
        print(instance, mine, table)
        assert mine == pytest.approx(table, abs=1e-9)
    assert figures["retrieval/test/text_to_image/R@10"] > 4 * figures["retrieval/test/text_to_image/chance_R@10"]   # it has learned


def test_the_peer_is_imported_without_what_these_tests_declare():
    code = "from mcd_jax.convert import peers; peers.declare_operators(); import open_clip"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_sides_see_the_same(folders):
    workdir, out = folders
    found = peers.check(workdir, ours, out, count=64)
    assert found["pixels"] < 1e-5 and found["tokens"] == 0 and found["other top 1"] == 0
    assert max(found["image"], found["text"]) < 1e-4 and found["logits"] < 1e-3


def test_every_caption_of_the_embedded_set_has_the_same_tokens(folders):
    source = sources.open(dict(name="emoji", split="train+validation+test", captions=("label", "label: tags"),
                               languages=("en", "de")))
    captions = sorted({text for i in range(len(source)) for text in source[i]["text"]})
    run = runs.open_run(folders[0])
    mine = peers.of_run(run).tokens(captions)
    theirs = np.asarray(open_clip.get_tokenizer(f"local-dir:{folders[1]}")(captions))
    assert len(captions) > 4000 and np.array_equal(mine, theirs)


def test_the_averaged_weights_are_exported_too(folders, tmp_path):
    workdir, _ = folders
    cli.main(["export", f"--workdir={workdir}", "--to=open_clip", "--weights_from=memory/ema", f"--out={tmp_path / 'ema'}"])
    assert peers.check(workdir, ours, tmp_path / "ema", weights_from="memory/ema")["image"] < 1e-4
    assert peers.check(workdir, ours, tmp_path / "ema")["image"] > 1e-3
    card = (tmp_path / "ema" / "README.md").read_text()
    assert "memory/ema" in card and f"{STEPS} of 64 examples" in card and "Evaluation" in card
    assert json.loads((tmp_path / "ema" / ours.CONFIG).read_text())["preprocess_cfg"]["resize_mode"] == "squash"
