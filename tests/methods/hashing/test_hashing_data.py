"""The sets of the hashing literature, from small files in the formats in which they are distributed, and their published splits.

The formats are those of the scripts that make them:
  index.mat "index", caption.mat "caption", label.mat "category"   QinLab-WFU/DSPH dataset/make_mirflickr25k.py at 01ae75c,
                                                                   dataset/make_coco.py at 5cdb43f
  caption.txt                                                      QinLab-WFU/DSPH dataset/make_nuswide.py at 9cf7baf
  "index", "caption" and "label", arrays of strings                DarrenZZhang/MM23-MITH dataset/flickr25k/make_mirflickr25k.py
                                                                   at aee5ff9
read by QinLab-WFU/DSPH dataset/dataloader.py at 0138ccb and DarrenZZhang/MM23-MITH load_data.py at 2763081.
"""
import numpy as np
import pytest
from scipy import io

from mcd_jax.data import pipeline, sources
from mcd_jax.data.decode import Bad
from mcd_jax.methods.hashing import hashing_source

N, C = 12, 4
LABELS = (np.random.default_rng(0).random((N, C)) < 0.4).astype(np.float64)
RULE = dict(query=3, train=5, seed=7)


def pictures(folder, names):
    import cv2

    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(cv2.imencode(".png", np.full((8, 8, 3), 10 * number, np.uint8))[1].tobytes())


def mirflickr(root):
    """As make_mirflickr25k.py of DSPH writes it: lists of paths, of [caption] and of arrays. Tags may be none at all."""
    names = [f"im{i}.jpg" for i in range(1, N + 1)]
    tags = [[f"tag{i} sky"] for i in range(N - 1)] + [[""]]
    io.savemat(root / "index.mat", {"index": [f"/home/admin00/archive/mirflickr25k/mirflickr/{name}" for name in names]})
    io.savemat(root / "caption.mat", {"caption": tags})
    io.savemat(root / "label.mat", {"category": list(LABELS)})
    return names, [*tags[:-1], ["123456"]]     # in place of no tags, as make_nuswide.py has it


def coco(root):
    """As make_coco.py: five captions or six in a cell, images in two folders."""
    names = [f"{part}2017/{i:012d}.jpg" for part, numbers in (("train", range(8)), ("val", range(8, N))) for i in numbers]
    captions = [[f"caption {k} of {i}" + " long" * k for k in range(6 if i == 2 else 5)] for i in range(N)]
    cells = np.empty(N, object)
    cells[:] = captions
    io.savemat(root / "index.mat", {"index": [f"/data/coco2017/{name}" for name in names]})
    io.savemat(root / "caption.mat", {"caption": cells})
    io.savemat(root / "label.mat", {"category": [row.astype(int) for row in LABELS]})
    return names, captions


def nuswide(root):
    """As make_nuswide.py: captions are lines of a text file, and one that is empty was made "123456"."""
    names = [f"class{i % 2}/000{i}_21244.jpg" for i in range(N)]
    captions = [[f"tag{i} über"] if i else ["123456"] for i in range(N)]
    io.savemat(root / "index.mat", {"index": [f"/home/admin00/nuswide/Flickr/{name}" for name in names]})
    io.savemat(root / "label.mat", {"category": LABELS.astype(np.int8)})
    (root / "caption.txt").write_text("".join(f"{own[0]}\n" for own in captions), encoding="utf-8")
    return names, captions


def mith(root):
    """As MITH's scripts: arrays of strings, and the label's key is another."""
    names = [f"im{i}.jpg" for i in range(N)]
    captions = [f"cigarette tattoos {'x' * i}".strip() for i in range(N)]
    io.savemat(root / "index.mat", {"index": np.array([f"/TO/you/path/of/flickr_all_images/{name}" for name in names])})
    io.savemat(root / "caption.mat", {"caption": np.array(captions)})
    io.savemat(root / "label.mat", {"label": LABELS.astype(np.float32)})
    return names, [[text] for text in captions]


@pytest.mark.parametrize("write", [mirflickr, coco, nuswide, mith])
def test_hashing_sets_as_distributed(write, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    names, captions = write(tmp_path)
    pictures(images, names)
    np.random.seed(7)
    order = np.random.permutation(range(N))          # the published rule, in the published code's words
    parts = dict(query=order[:3], train=order[3:8], retrieval=order[3:])
    for part, rows in parts.items():
        source = sources.open(dict(name="hashing", path=str(tmp_path), images=str(images), part=part, **RULE))
        assert len(source) == len(rows)
        for place, row in enumerate(rows):
            example = source[place]
            assert example["key"] == names[row] and example["text"] == captions[row]
            assert example["label"].tolist() == LABELS[row].astype(int).tolist()
            assert example["image"] == (images / names[row]).read_bytes()
        assert np.array_equal(source.column("label"), LABELS[rows]) and source.column("key") == [names[row] for row in rows]
    views = {"image": "decode|resize(8)", "label": "column('label')", "text": "caption('first')|tokenize(6, 'emoji')"}
    spec = dict(name="hashing", path=str(tmp_path), images=str(images), part="train", **RULE)
    batch = pipeline.make(dict(source=spec, views=views, workers=0), seed=0, batch_size=4).batch(0)
    assert batch["label"].shape == (4, C) and batch["label"].dtype == np.int32 and not batch["bad"].any()


def test_hashing_protocols_are_the_published_ones():
    """Seed 1 and seed 1814, sizes as in the publishing repositories; what asks can't be found, what trains can."""
    sizes = {name: (p.rows, p.labels, p.query, p.train, p.rows - p.query) for name, p in hashing_source.PROTOCOLS.items()}
    assert sizes["mith_mirflickr25k"] == (20015, 24, 2000, 10000, 18015)
    assert sizes["mith_nuswide"] == (190421, 21, 2100, 10500, 188321)
    assert sizes["mith_coco"] == (122218, 80, 5000, 10000, 117218) == sizes["dchmt_coco"]
    assert sizes["dchmt_mirflickr25k"][:4] == (24581, 24, 5000, 10000) and sizes["dchmt_nuswide"][:4] == (195834, 21, 5000, 10000)
    for name, p in hashing_source.PROTOCOLS.items():
        found = hashing_source.split(p.rows, p.query, p.train, p.seed, validation=500)
        np.random.seed(1 if name.startswith("mith") else 1814)
        order = np.random.permutation(range(p.rows))
        assert np.array_equal(np.concatenate([found["query"], found["retrieval"]]), order)
        assert np.array_equal(found["train"], order[p.query:p.query + p.train]) and len(found["validation"]) == 500
        assert not np.intersect1d(found["train"], found["validation"]).size
        assert np.isin(found["validation"], found["retrieval"]).all()


def test_hashing_a_split_is_kept_in_a_file(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    names, _ = mith(tmp_path)
    pictures(images, names)
    found = hashing_source.split(N, **RULE, validation=2)
    hashing_source.save_splits(tmp_path / "split.npz", **found)
    spec = dict(name="hashing", path=str(tmp_path), images=str(images))
    for part in hashing_source.PARTS:
        kept, drawn = (sources.open({**spec, "part": part, **how}) for how in (dict(split="split.npz"), dict(RULE, validation=2)))
        assert kept.column("key") == drawn.column("key") == [names[row] for row in found[part]]
    hashing_source.save_splits(tmp_path / "bad.npz", query=[0, 1], train=[1], retrieval=[1, 2])
    with pytest.raises(ValueError, match="rows of query are in retrieval as well"):
        sources.open({**spec, "split": "bad.npz"})
    hashing_source.save_splits(tmp_path / "far.npz", query=[0], train=[1], retrieval=[1, N])
    with pytest.raises(ValueError, match="retrieval names rows outside of the 12"):
        sources.open({**spec, "split": "far.npz"})


def test_hashing_files_that_do_not_fit_are_refused(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    names, _ = mith(tmp_path)
    pictures(images, names[:-1])
    spec = dict(name="hashing", path=str(tmp_path), images=str(images), **RULE)
    refused = lambda error, words, **how: _refused(error, words, {**spec, **how})
    refused(ValueError, "has no key 'captions'", captions="x.mat")
    refused(ValueError, r"part='test' must be one of query, train, validation, retrieval", part="test")
    refused(ValueError, "part='validation' has no rows", part="validation")
    refused(ValueError, "protocol='mith' must be one of", protocol="mith")
    refused(ValueError, r"has 12 rows with 4 labels; the protocol mith_coco is of 122,218", protocol="mith_coco")
    refused(ValueError, "query=9 and train=5 must be at least 1", query=9)
    refused(ValueError, "seed is missing", seed=None)
    refused(ValueError, "does not begin with data.source.prefix='/other/'", prefix="/other")
    refused(FileNotFoundError, "images .* is not a folder", images=str(tmp_path / "none"))
    refused(FileNotFoundError, "data.source.index: there is no file", index="none.mat")
    io.savemat(tmp_path / "other.mat", {"labels": LABELS})
    refused(ValueError, "has no 'category' or 'label'; it has labels", label="other.mat")
    io.savemat(tmp_path / "short.mat", {"label": LABELS[:5]})
    refused(ValueError, r"don't fit together: .*short.mat has 5 rows", label="short.mat")
    io.savemat(tmp_path / "leaves.mat", {"index": np.array([f"/a/{'../' * (i == 4)}x{i}.jpg" for i in range(N)])})
    refused(ValueError, "leads out of", index="leaves.mat", prefix="/a", part="retrieval", query=1, train=11, seed=0)
    (tmp_path / "broken.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200)
    refused(ValueError, "broken.mat is no .mat file that can be read", label="broken.mat")
    (tmp_path / "text.mat").write_text("not a mat file at all\n" * 20)
    refused(ValueError, "text.mat is no .mat file that can be read", label="text.mat")
    source = sources.open({**spec, "part": "retrieval"})
    missing = source.column("key").index(names[-1]) if names[-1] in source.column("key") else None
    if missing is None:
        source = sources.open({**spec, "part": "query"})
        missing = source.column("key").index(names[-1])
    with pytest.raises(Bad, match="missing image"):
        source[missing]


def _refused(error, words, spec):
    with pytest.raises(error, match=words):
        sources.open(spec)
