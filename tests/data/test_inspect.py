"""The contact sheet: it shows the very batch of the run, and nothing that it shows can become markup."""
import base64
import html
import io
import json
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from mcd_jax import config as config_lib
from mcd_jax.data import pipeline
from mcd_jax.data.ops.augmented import PARAMS
from mcd_jax.data.tools import inspect
from tests.report.test_report import HOSTILE, Document

TEXTS = [HOSTILE, "\u202eturned\u202c \x00nul \x1b[31m", "\u0633\u0644\u0627\u0645", "word " * 300, ["one", "two two", HOSTILE],
         "e\u0301 \ud800 lone", "</bdi></div>", "\U0001f468\u200d\U0001f469"]
VIEWS = {"image": "decode|crop(16,.5)|flip", "augmented": "decode|crop(12,.1)|jitter(.4,.4,.4,.1)|gray(.3)|blur(.5)",
         "text": "caption|tokenize(16)", "label": "column('label')",
         "many": "captions(2,'random')|swap_words(1)|tokenize(9,'emoji')"}


@pytest.fixture
def config(tmp_path):
    """A folder of 12 pictures, two of them broken, with hostile captions; a config file that reads it."""
    root = tmp_path / "pictures"
    root.mkdir()
    with (root / "t.jsonl").open("w") as table:
        for i in range(12):
            file = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "PNG")
            (root / f"{i}.png").write_bytes(b"<b>broken" if i in (2, 5) else file.getvalue())
            row = {"image": f"{i}.png", "text": TEXTS[i % len(TEXTS)], "label": i % 3, "name": f"{HOSTILE}{i}"}
            table.write(json.dumps(row) + "\n")
    source = {"name": "folder", "path": str(root), "table": "t.jsonl", "columns": {"key": "name"}}
    path = tmp_path / "hostile.py"
    path.write_text("from mcd_jax import config as config_lib\ndef get_config():\n    config = config_lib.default()\n"
                    f"    config.seed, config.batch_size = 5, 8\n    config.data.source = {source!r}\n"
                    f"    config.data.views = {VIEWS!r}\n    return config\n")
    return path


def rows(page):
    """The markup of each row."""
    return re.split(r'<div class="row(?: bad)?">', page)[1:]


def shown(row, name):
    """The pixels of view `name`."""
    data = re.search(rf'<img alt="{name}" src="data:image/webp;base64,([^"]*)"', row)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.mark.parametrize("step, seed", [(0, 5), (7, 5), (7, 6)])
def test_the_sheet_shows_the_batch_of_the_run(config, step, seed):
    settings = config_lib.from_file(str(config), [f"--config.seed={seed}"])
    batch = pipeline.make(settings.data, seed, 8).batch(step)
    page = inspect.sheet(settings, step)
    found = rows(page)
    assert len(found) == 8 and len(Document(page).ids) == 3
    for j, row in enumerate(found):
        assert f"<span>index <b>{batch['index'][j]}</b>" in row and f"<span>position {8 * step + j:,}</span>" in row
        assert ("stands in for index" in row) == bool(batch["bad"][j])
        for name in ("image", "augmented"):
            np.testing.assert_array_equal(shown(row, name), batch[name][j])
            assert f"misalignment <b>{batch[f'{name}/misalignment'][j]:.2f}</b>" in row
            every = ", ".join(f"{what} {value:.4g}" for what, value in zip(PARAMS, batch[f"{name}/params"][j]))
            assert f'title="{every}"' in row
            left, top, wide, high = 100 * batch[f"{name}/params"][j][:4].astype(float)
            assert f"left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{high:.2f}%" in row
        lists = re.findall(r'<div class="tokens">(.*?)</div>', row)
        ids = [[int(i) for title in re.findall(r'title="([\d ]+)"', part) for i in title.split()] for part in lists]
        assert ids == [[i for i in tokens if i] for tokens in (*batch["many"][j].tolist(), batch["text"][j].tolist())]
        assert f"<b>label</b> {batch['label'][j]}" in row


def test_a_replaced_row_says_what_was_asked_for_and_why(config):
    settings = config_lib.from_file(str(config))
    data = pipeline.make(settings.data, 5, 8)
    seen = 0
    for step in range(3):
        asked, batch, found = data.asked(step)[1], data.batch(step), rows(inspect.sheet(settings, step))
        for j, row in enumerate(found):
            assert batch["bad"][j] == (asked[j] in (2, 5))
            if batch["bad"][j]:
                seen += 1
                assert f"stands in for index <b>{asked[j]}</b>: corrupt image not JPEG" in row and "&lt;b&gt;broke" in row
    assert seen == 4


def test_nothing_that_is_shown_becomes_markup(config):
    page = inspect.sheet(config_lib.from_file(str(config)), 0, rows=8, title=HOSTILE)
    document = Document(page)
    assert not {"script", "link", "iframe", "object"} & set(document.tags) and document.events == []
    assert all(ref.startswith(("#", "data:image/")) for ref in document.refs)
    text = "".join(document.text)
    assert HOSTILE in text and "\u202e" not in page and "\0" not in page and "⟨U+202E⟩turned" in text and "⟨U+0000⟩nul" in text
    assert "⟨U+001B⟩" in text and page.encode()   # no lone surrogate is left
    assert "(1,500 letters)" in text and "16 of 16 tokens, cut" in text


def test_fewer_rows_are_the_first_ones(config):
    settings = config_lib.from_file(str(config))
    assert rows(inspect.sheet(settings, 2, rows=3))[:2] == rows(inspect.sheet(settings, 2))[:2]
    assert len(rows(inspect.sheet(settings, 2, rows=3))) == 3


@pytest.mark.parametrize("text, seen", [
    ("a\u200db \u0301", "a\u200db \u0301"), ("\u2067x\u2069", "⟨U+2067⟩x⟨U+2069⟩"),
    ("\ud800\x7f\u2028", "⟨U+D800⟩⟨U+007F⟩⟨U+2028⟩")])
def test_letters_that_cannot_be_seen_are_named(text, seen):
    assert inspect.visible(text) == seen


def test_the_command(config, tmp_path, capsys):
    out = tmp_path / "sheet.html"
    inspect.main([f"--config={config}", "--step=1", f"--out={out}", "--rows=2", "--config.seed=9",
                  "--config.data.views.text=caption('first')|tokenize(5)"])
    assert capsys.readouterr().out == f"{out} (0.0 MB)\n" and sorted(p.name for p in tmp_path.iterdir()) == [
        "hostile.py", "pictures", "sheet.html"]
    page = out.read_text()
    assert "hostile, step 1" in page and "seed 9" in page and html.escape("caption('first')|tokenize(5)") in page
    for arguments, words in (([f"--config={config}", "--config.sede=1"], "sede"), (["--config=nowhere.py"], r"nowhere\.py"),
                             ([f"--config={config}", "--step=-1"], "--step=-1 must be a whole number of at least 0"),
                             ([f"--config={config}", "--verbose"], "verbose")):
        with pytest.raises(SystemExit, match=rf"(?s)error: .*{words}"):
            inspect.main([*arguments, f"--out={tmp_path / 'no.html'}"])
    assert not (tmp_path / "no.html").exists()


def test_no_model_is_imported():
    """And nothing of jax by pack, whose workers each import it (grain, which the pipeline needs, imports jax itself)."""
    code = ("import sys\nimport mcd_jax.data.tools.pack\nassert 'jax' not in sys.modules\n"
            "import mcd_jax.data.tools.inspect\nassert not {'flax', 'mcd_jax.evaluate', 'mcd_jax.job'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
