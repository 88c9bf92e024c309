"""The report: all of its sections, nothing outside of the file, nothing of a run that could become markup."""
import html.parser
import io
import json
import re
import sys
import types

import numpy as np
from PIL import Image
import pytest

from mcd_jax import evaluate, report
from mcd_jax.report import gallery as gallery_lib
from mcd_jax.report import page, plots

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\" onclick=\"alert(3)\" '&"


def workdir(path, hostile="", steps=120):
    """A folder as `train` and `evaluate` leave it."""
    path.mkdir()
    rng = np.random.default_rng(0)
    evals = {"retrieval": {"heldout_vendor": {}}, "misalignment": {"heldout": {}, "untrained": {"weights_from": "init"}}, "gap": {}}
    config = {"seed": 0, "steps": "30 epochs", "batch_size": 256, "objective": {"name": "mcd" + hostile, "weights": {"clip": 1.0}},
              "data": {"source": {"name": "emoji"}, "views": {"image": "decode|resize(64)" + hostile}}, "evals": evals}
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(10, 10 * steps + 1, 10):
        line = {"step": step, "loss": 5 * 0.995 ** (step / 10) + 0.1 * rng.normal(), "loss/clip": 4.0, "loss/misalignment": 0.2,
                "grad_norm": 1.0, "lr/.*": 1e-3, "examples_per_sec": 400 + rng.normal(), "input_stall": 0.02, "mfu": 0.3,
                "misalignment/teacher": 0.3, "skipped_updates": 0, "bad_examples": 0, "seconds/train": step / 2,
                "seconds/stall": step / 100, "seconds/eval": 9.0}
        if step % 400 == 0:
            line |= {"retrieval/heldout_vendor/text_to_image/R@1": step / 9000, "retrieval/heldout_vendor/text_to_image/R@10": 0.3}
        lines.append(json.dumps(line))
    (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1210, "lo')   # the last line is still being written
    figures = {"step": 10 * steps, "gap/heldout_vendor/alignment": 1.1, "gap/heldout_vendor/distance": 0.62}
    for group in ("text_to_image", "image_to_text", "no_flags/text_to_image", "no_flags/image_to_text"):
        figures |= {f"retrieval/heldout_vendor/{group}/{k}": v for k, v in {
            "R@1": 0.136, "R@5": 0.24, "R@10": 0.331, "MRR": 0.2, "chance_R@1": 0.00054, "chance_R@10": 0.0054, "queries": 1574.0,
            "candidates": 1852.0}.items()}
    for name in ("heldout", "untrained"):
        for kind in ("", "crop/", "blur/"):
            names = ("spearman", "spearman_per_image", "ordered", "pixel/ordered")
            figures |= {f"misalignment/{name}/{kind}{k}": 0.5 for k in names}
            figures |= {f"misalignment/{name}/{kind}mean@{level}": level for level in (0.2, 0.5, 0.8) if kind}
    figures["zeroshot/labels" + hostile + "/top1"] = None
    (path / "evals.json").write_text(json.dumps(figures))
    entries = ({"step": 0, "seen": 0, "batch_size": 256, "began": "2026-01-02T03:04:05+00:00"},
               {"step": 400, "seen": 102400, "batch_size": 128,
                "changes": {"config.batch_size": [256, 128], "x" + hostile: [1, 2]}})
    (path / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def gallery(text="grinning face"):
    image = gallery_lib.uri(np.full((8, 8, 3), 200, np.uint8))
    view = {"level": 0.2, "image": image, "r": 0.4, "y": 1.3}
    return {"step": 1200, "instance": "heldout_vendor",
            "queries": [{"text": text, "rank": 3, "candidates": 1852, "hits": [
                {"image": image, "score": 0.4, "right": right, "text": text} for right in (False, False, True)]}],
            "augmented": [{"text": text, "image": image, "rows": [{"kind": "crop", "views": [view, view]}]}]}


class Document(html.parser.HTMLParser):
    """Collects what a browser would act on."""
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.refs, self.events, self.text, self._open = [], set(), [], [], [], []
        self.feed(text)
        assert self._open == [], "unbalanced elements"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.refs.append(value)
            if name.startswith("on"):
                self.events.append(name)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_has_every_section_and_refers_to_nothing_outside(tmp_path):
    run = report.read(workdir(tmp_path / "run"))
    other = report.read(workdir(tmp_path / "clip & co", steps=60))
    other["config"]["objective"]["options"] = [1, 2]
    text = page.page(run, gallery(), other)
    document = Document(text)
    assert {"summary", "curves", "speed", "evaluations", "queries", "augmentation", "config"} <= document.ids
    assert all(ref.startswith(("#", "data:image/")) for ref in document.refs)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text)
    assert "script" not in document.tags and "link" not in document.tags and document.events == []
    shown = " ".join(document.text)
    pieces = ("loss/misalignment", "misalignment/teacher", "grad_norm", "examples_per_sec", "13.6%", "0.05%", "1,574 queries",
              "text → image, no flags", "objective.options", "[1, 2]", "grinning face",
              "found at 3", "+0.40", "Sessions", "config.batch_size: 256 to 128", ", 204,800 examples seen",
              "clip & co", "jax", '"30 epochs"', "pixel distance")
    for piece in pieces:
        assert piece in shown, piece
    assert document.tags.count("svg") >= 12
    assert len(text) < 2_000_000


def test_a_run_without_retrieval_shows_what_it_has(tmp_path):
    path = workdir(tmp_path / "run")
    (path / "evals.json").write_text(json.dumps({"step": 1200, "zeroshot/mine/top1": 0.625, "zeroshot/mine/chance_top1": 0.25,
                                                 "probe/mine/top1": 0.75}))
    guesses = [{"name": "red things", "score": 0.31, "right": False}, {"name": "blue things", "score": 0.25, "right": True}]
    item = {"image": gallery()["queries"][0]["hits"][0]["image"], "name": "blue things", "guesses": guesses}
    pictures = {"step": 1200, "instance": "", "queries": [], "augmented": [], "classes_of": "mine", "classified": [item]}
    document = Document(page.page(report.read(path), pictures))
    shown = " ".join(document.text)
    assert "classified" in document.ids and not {"queries", "augmentation"} & set(document.ids)
    for piece in ("zeroshot mine top1", "62.5%", "chance 25.0%", "probe mine top1", "75.0%", "red things 0.31"):
        assert piece in shown, piece
    nothing = Document(page.page(report.read(path), {**pictures, "classified": []}))
    assert not {"queries", "classified", "augmentation"} & set(nothing.ids)


def test_tiles_and_the_bar_of_time_agree_and_say_whose_step_they_show(tmp_path):
    folder = workdir(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]
    spent = {"start": 60, "train": 700, "stall": 20, "eval": 30, "checkpoint": 10}
    line = {"step": 1207, **{f"seconds/{part}": seconds for part, seconds in spent.items()}}
    (folder / "metrics.jsonl").write_text(f"{text}\n{json.dumps(line)}\n")   # as a preempted run leaves it
    run = report.read(folder)
    tiles = " ".join(Document(str(page.join(page.summary(run, gallery(), None)))).text)
    assert "1,207 steps" in tiles and "training 12.0 min" in tiles and "20 s of it waiting for input" in tiles
    assert tiles.count("at step 1,200") == 3   # loss, rate and stall are those of the last step that was logged
    bar = " ".join(Document(str(page.join(page.speed(run, None)))).text)
    for piece in ("where 13.7 min went", "start 60 s", "steps 11.7 min", "waiting for input 20 s", "evaluation 30 s",
                  "checkpoints 10 s"):
        assert piece in bar, piece


def test_report_escapes_hostile_text(tmp_path):
    run = report.read(workdir(tmp_path / "run", hostile=HOSTILE))
    run["name"] = HOSTILE
    for other in (None, {**run, "name": HOSTILE + "2", "config": {"x" + HOSTILE: HOSTILE}}):
        pictures = gallery(HOSTILE)
        pictures["instance"] = HOSTILE
        pictures["augmented"][0]["rows"][0]["kind"] = HOSTILE
        document = Document(page.page(run, pictures, other))
        assert "script" not in document.tags and document.events == []
        assert all(ref.startswith(("#", "data:image/")) for ref in document.refs)
        assert HOSTILE in "".join(document.text)


def test_report_of_a_run_that_has_just_begun(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"objective": {"name": "clip"}}')

    def none_yet(*_):
        raise FileNotFoundError("no checkpoint")
    monkeypatch.setattr(gallery_lib, "gather", none_yet)
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "No step has been logged yet." in text and "Nothing has been evaluated yet." in text and "no checkpoint" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "report.html"]
    for command in (report.main, evaluate.main):
        with pytest.raises(SystemExit, match=r"error: .*nowhere.*config.json.* is this the --workdir"):
            command(["--workdir", str(tmp_path / "nowhere")])


def test_curves_leave_gaps_and_keep_text_as_text():
    drawing = plots.curves([("a <b>", [1, 2, 3], [1.0, None, float("nan")]), ("$x$", [1, 2], [0, 1])], legend=True)
    assert drawing.startswith("<svg viewBox") and "http" not in drawing and "<style" not in drawing
    assert "a &lt;b&gt;" in drawing and "$x$" in drawing
    smooth = plots.smooth(np.array([np.nan, 2.0, 2.0, np.nan, 2.0]), 4)
    assert np.isnan(smooth[0]) and np.allclose(smooth[1:], 2.0)
    assert [plots.short(v) for v in (0, 12345, 0.25, 3e-6, 2.5e6)] == ["0", "12.3k", "0.25", "3e-6", "2.5M"]


class Shades:
    """Six flat grey pictures."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        data = io.BytesIO()
        Image.new("RGB", (16, 16), (40 * i,) * 3).save(data, "PNG")
        return {"image": data.getvalue(), "text": [f"shade {i}"], "key": f"k{i}", "label": i, "asks": i != 0}


def test_galleries_show_what_was_found(monkeypatch):
    module = types.ModuleType("tiny.shades")
    module.make = lambda spec: Shades()
    monkeypatch.setitem(sys.modules, "tiny", types.ModuleType("tiny"))
    monkeypatch.setitem(sys.modules, "tiny.shades", module)

    def embed(_, batch):
        angle = {}
        if "image" in batch:
            angle["image"] = batch["image"].mean(axis=(1, 2, 3)) / 100
        if "text" in batch:
            angle["text"] = np.array([0.4 * index[row.tobytes()] for row in batch["text"]])
        return {key: np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32) for key, a in angle.items()}

    from mcd_jax.data import tokenizers
    index = {tokenizers.make("clip").encode([f"shade {i}"], 8)[0].tobytes(): i for i in range(6)}
    views = {"image": "decode|resize(8)", "text": "caption('first')|tokenize(8, 'clip')"}
    settings = {"source": {"name": "tiny.shades"}, "views": views,
                "match": "label", "queries": {"asks": [True]}, "batch_size": 4}
    found = gallery_lib.texts(embed, settings, "x", 9, 2, np.random.default_rng(0))
    assert [query["text"] for query in found] == [f"shade {i}" for i in range(1, 6)]
    for query in found:
        assert query["rank"] == 1 and query["hits"][0]["right"] and not query["hits"][1]["right"]
        assert query["hits"][0]["text"] == query["text"] and query["hits"][0]["image"].startswith("data:image/webp;base64,")
    named = {"source": settings["source"], "views": views, "label": "label", "names": [f"shade {i}" for i in range(6)]}
    shown = gallery_lib.classified(embed, named, "x", 3)
    assert [(item["name"], item["guesses"][0]["name"], item["guesses"][0]["right"]) for item in shown] == [
        (f"shade {i}", f"shade {i}", True) for i in (0, 2, 5)]
    assert [guess["right"] for guess in shown[0]["guesses"]] == [True, False, False]
    assert gallery_lib.classified(embed, {**named, "names": {"name": "tiny.shades"}}, "x", 3) == []
    settings = {**settings, "kinds": ["jitter", "blur"], "levels": [0.1, 0.9], "n": 6,
                "augmented": "decode|resize(8)|severity('{kind}', {level})"}
    items = gallery_lib.augmented(embed, settings, "x", 2, np.random.default_rng(1))
    assert [row["kind"] for row in items[0]["rows"]] == ["jitter", "blur"]
    assert [view["level"] for view in items[0]["rows"][1]["views"]] == [0.1, 0.9]
    for view in items[0]["rows"][1]["views"]:
        assert view["y"] > 1 and view["r"] == pytest.approx(0, abs=1e-3)   # blur does nothing to a flat image
