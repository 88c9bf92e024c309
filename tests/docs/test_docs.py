"""The documentation: every command can be run, every link leads somewhere, every place and message of the code is there."""
import ast
import os
import re
import shlex
import subprocess
import sys

from doc_commands import Command, check, commands
from doc_pages import ROOT, blocks, pages
import pytest

from mcd_jax.data.tools import list_ops

COMMANDS = {command.words: command for command in commands()}   # once each
SOURCES = "\n".join(path.read_text() for path in (ROOT / "mcd_jax").rglob("*.py"))
NOT_OURS = ("config key", "RESOURCE_EXHAUSTED", "1 cpu device(s)", "exit status 75", "names no term", "did you mean")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: " ".join(c.words)[:90])
def test_every_command_can_be_run(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize("words", ["mcd-jax trian --config=mcd_emoji", "mcd-jax train --config=mcd_emojii --workdir=x", "ls",
                                   "mcd-jax train --config=mcd_emoji --workdir=x --config.stepz=3", "make trein",
                                   "frobnicate --all",
                                   "mcd-jax evaluate --workdir=x --evalz=universal", "pip install '.[cudda]'",
                                   "python -m mcd_jax.bench.step --stepz=3", "launch/tpu.sh creat"])
def test_a_command_that_could_not_be_run_is_found(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception):  # noqa: B017
        check(Command("page", 1, tuple(shlex.split(words))))


@pytest.mark.parametrize("path", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for text, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", path.read_text()):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            other = (path.parent / file).resolve() if file else path
            assert other.exists(), f"{path.relative_to(ROOT)}: [{text}]({target})"
            heads = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in
                     (other.read_text().splitlines() if anchor else ()) if line.startswith("#")]
            assert not anchor or anchor in heads, f"{path.relative_to(ROOT)}: [{text}]({target})"


@pytest.mark.parametrize("block", [block for path in pages() for block in blocks(path) if block.kind == "python"],
                         ids=lambda block: f"{block.page}:{block.line}")
def test_python_is_python(block):
    ast.parse(block.text)


def test_every_place_of_architecture_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    places = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", text)
    assert len(places) > 30
    for file, name in places:
        path = ROOT / "mcd_jax" / file
        if not path.exists() and (path.with_suffix("") / "__init__.py").exists():   # config.py may become a package
            path = path.with_suffix("")
        source = "".join(p.read_text() for p in (path.glob("*.py") if path.is_dir() else [path]))
        assert not name or re.search(rf"(def|class) {name}\b", source), f"{file}:{name}"


def test_every_message_of_troubleshooting_stands_in_the_code():
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    plain = re.sub(r"[\"'] *\n\s*f?[\"']", "", SOURCES)   # sentences of several lines
    for row in rows:
        for piece in re.findall(r"`([^`]+)`", row)[0].split("..."):
            piece = piece.strip(" ;:,")
            assert piece in plain or piece in SOURCES or piece.startswith(NOT_OURS) or len(piece) < 4, piece


def test_ops_page_is_what_the_command_writes():
    assert (ROOT / "docs" / "ops.md").read_text() == list_ops.page()


def test_every_folder_of_a_method_says_what_it_is():
    for folder in sorted(p for p in (ROOT / "mcd_jax" / "methods").iterdir() if (p / "__init__.py").exists()):
        text = (folder / "README.md").read_text()
        assert all(part in text for part in ("*Status", "## Run it", "mcd-jax")), folder.name
        assert f"mcd_jax/methods/{folder.name}/README.md" in (ROOT / "README.md").read_text(), folder.name


# ---- really run, shortened -----------------------------------------------------------------------------------------------------

SHORT = ("--config.steps=4", "--config.batch_size=32", "--config.data.source.split=validation", "--config.tensorboard=False")
CHAIN = (   # a command of the pages, and what makes it short
    ("mcd-jax train --config=mcd_emoji --workdir=runs/mcd_emoji", SHORT),
    ("mcd-jax evaluate --workdir=runs/mcd_emoji", ()),
    ("mcd-jax report --workdir=runs/mcd_emoji", ()),
    ("mcd-jax search --workdir=runs/mcd_emoji --images=DIR --text=a red fruit", ()),
    ("mcd-jax train --config=clip_emoji:vit --workdir=runs/vit", SHORT),
    ("mcd-jax convert export --workdir=runs/vit --to=open_clip --out=exported/vit --licence=cc-by-sa-4.0", ()),
    ("mcd-jax convert formats", ()),
    ("mcd-jax inspect --config=mcd_emoji --step=3", ()),
    ("mcd-jax train --config=clip_emoji --workdir=runs/clip_emoji", SHORT),
    ("mcd-jax evaluate --workdir=runs/x --evals=universal", ()),
    ("mcd-jax analyze gap --workdir=runs/clip_emoji --evals=gap_emoji", ()),
    ("mcd-jax embed --workdir=runs/clip_emoji --source split=train captions=label --out=runs/clip_emoji/train.array_record",
     ("--n=64",)),
    ("mcd-jax results runs/mcd_emoji runs/clip_emoji --figures=retrieval/*/text_to_image/R@*", ()),
)


@pytest.mark.full
def test_a_day_with_the_documentation(tmp_path):
    """The commands one after the other in an empty folder, as the pages show them."""
    from PIL import Image
    (tmp_path / "DIR").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "DIR" / f"{colour}.png")
    shown = {" ".join(words) for words in COMMANDS}
    for text, more in CHAIN:
        assert text in shown, f"no page shows {text}"
        words = next(words for words in COMMANDS if " ".join(words) == text)
        words = [word.replace("runs/x", "runs/clip_emoji") for word in words[1:]]
        done = subprocess.run([sys.executable, "-m", "mcd_jax", *words, *more], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
