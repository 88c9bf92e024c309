"""What every command says of a mistake: one sentence with exit status 1, never a traceback, never this machine's folders."""
import ast
import os
import pathlib
import re
import sys
from unittest import mock

from commands import ended
import pytest

from mcd_jax import cli, command

ROOT = pathlib.Path(__file__).resolve().parent.parent / "mcd_jax"

BASE = {   # command -> words with which it would start; nothing of what they name is there
    "train": ["--config=pairs:data={tmp}/nope", "--workdir={tmp}/run"],
    "evaluate": ["--workdir={tmp}/nope"],
    "report": ["--workdir={tmp}/nope"],
    "results": ["{tmp}/nope"],
    "search": ["--workdir={tmp}/nope", "--images={tmp}/nope", "--text=x"],
    "embed": ["--workdir={tmp}/nope", "--out={tmp}/out.array_record"],
    "analyze": ["gap", "--workdir={tmp}/nope"],
    "convert": ["export", "--workdir={tmp}/nope", "--to=hf", "--out={tmp}/out"],
    "sweep": ["--config={tmp}/nope.py", "--workdir={tmp}/sweep"],
    "compile": ["--config=nope", "--topology=v5e:2x2"],
    "config": ["--config={tmp}/nope.py"],
    "index": ["{tmp}/nope/*.tar"],
    "pack": ["--source={tmp}/nope", "--out={tmp}/packed"],
    "inspect": ["--config={tmp}/nope.py"],
}


def words(name, folder):
    return [word.format(tmp=folder) for word in BASE[name]]


def said(line, folder):
    """The sentence with which a command line ends. It fails where there is more, or less, than one."""
    end = ended(line)
    what = f"mcd-jax {' '.join(line)}\n{end.err}"
    lines = [text for text in end.err.splitlines() if text.strip()]
    assert end.status == 1 and lines and lines[-1].startswith("error: "), (what, end)
    assert "Traceback" not in end.err and sum(text.startswith("error: ") for text in lines) == 1, what
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", lines[-1]), what
    assert f"{os.getcwd()}/" not in lines[-1], what
    return lines[-1]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_what_is_missing_or_misspelt(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = words(name, tmp_path)
    assert "nope" in said([name, *start], tmp_path)
    unknown = said([name, *start, "--wrkdr_x=1"], tmp_path)
    assert "unknown flag" in unknown and "wrkdr_x" in unknown, unknown
    if name not in ("config",):   # which explains all keys
        alone = said([name], tmp_path)
        assert re.match(r"error: (--?\w+|[A-Z]+|analysis|command) is missing", alone), alone
    assert sorted(os.listdir(tmp_path)) == [], f"mcd-jax {name} left something behind"


@pytest.fixture(scope="module")
def parsers():
    """command -> its parsers: of a command with commands of its own those too."""
    found = {}
    for name in cli.COMMANDS:
        def stopped(self, *_, name=name):
            found[name] = self
            sys.exit(0)
        with mock.patch.object(command.Parser, "parse_args", stopped):
            ended([name])
    return {name: [parser, *(own for action in parser._actions if isinstance(action.choices, dict)
                             for own in action.choices.values())] for name, parser in found.items()}


def test_every_flag_of_a_number_or_a_path_refuses_what_is_none(parsers):
    flags = 0
    for name, own in parsers.items():
        for parser in own:
            for action in parser._actions:
                bad = {"number": ("x", "-1", ""), "path": ("", " "), "local_path": ("", " ", "gs://b/x")}.get(
                    getattr(action.type, "__name__", ""), ())
                for value in bad if action.option_strings else ():
                    flags += 1
                    flag = action.option_strings[0]
                    said = "(must be a whole number|is (empty: |in a bucket, ))"
                    with pytest.raises(SystemExit, match=rf"^error: {flag}={value.strip()} {said}"):
                        parser.parse_args([f"{flag}={value}"])
                assert action.type is not int or "--seed" in action.option_strings, f"mcd-jax {name} {action.option_strings}"
    assert len(parsers) >= 11 and flags > 100


def raised():
    """(place, message with {} for what is filled in) of every error with a message of its own that the package raises."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            raises = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and len(node.exc.args) == 1
            if raises and (text := _text(node.exc.args[0])):
                yield f"{path.relative_to(ROOT.parent)}:{node.lineno} {ast.unparse(node.exc.func)}", text


def _text(node):
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "{}"


PARTS = {   # what another message, or the page that was asked, says the place of
    "its crc32c is wrong", "its arrays don't fit together", "its manifest is damaged", "another process is running it",
    "the GIF has no frame", "a chunk of the PNG is longer than the file",
    "= is empty: name a file or folder, . for the current one", "the first read fails",
    "the source is empty", "a picture is sent as multipart/form-data, as the form does it",
    "holds integers, whose order can't be known: name the column with the class name ('text' or 'class_name'), or give `labels`, "
    "the list of class names, label 0 first ('set': the set's order)"}


def test_every_error_is_one_sentence_that_names_something():
    found = list(raised())
    assert len(found) > 600
    wrong = [f"{place}: {text}" for place, text in found if "\n" in text or re.search(r"\. [A-Z]|[^.]\.$|!", text)]
    assert not wrong, "\n".join(["not one sentence, without a full stop:", *wrong])
    named = re.compile(r"\{\}|config\.|--\w|data\.|pip install|=\w|'\w|the (question|gap vector)|texts|"
                       "embeddings|big_vision|views")
    vague = [f"{place}: {text}" for place, text in found if not named.search(text) and text not in PARTS]
    assert not vague, "\n".join(["no key, file or value is named:", *vague])
