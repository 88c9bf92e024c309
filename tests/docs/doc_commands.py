"""The commands that the documentation shows, and how each is checked without running it.

A command of ours is read by its own parser: its module is started as `python -m` starts it, and stopped as soon as the arguments
are read and the config is resolved and checked. Scripts of launch/ run with --dry-run. Programs of others are only known by name.
"""
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from typing import NamedTuple
from unittest import mock

from absl import app, flags
from commands import own_flags
from doc_pages import ROOT, Block, blocks, pages

from mcd_jax import cli, command, configs
from mcd_jax import config as config_lib

# programs of others: not run here
OTHERS = ("gcloud", "export", "docker", "tmux", "ssh-add", "python3", "git", "cd", "npm", "xpk", "number=$(gcloud", "~/xpk/bin/pip")
# commands that another test checks: start of the line -> that test
ELSEWHERE = {
    "mcd-jax train --config=my_lab/": "tests/docs/test_add_a_method.py",
    "mcd-jax train --config=pairs:": "tests/docs/test_your_data.py",
}


class Command(NamedTuple):
    page: str
    line: int
    words: tuple


class Read(Exception):
    """The arguments of a command were read and are right."""


def commands():
    """Every command of every page, those of blocks and those within a sentence that are whole."""
    result = []
    for path in pages():
        for block in blocks(path):
            if block.kind == "":
                result += _of_block(block)
        for number, line in enumerate(_sentences(path), 1):
            for text in re.findall(r"(?<!`)`((?:mcd-jax|\S*python -m mcd_jax\S*|make|launch/\w+\.sh) [^`]+)`", line):
                whole = "..." not in text and "--" in text and not text.endswith("--help")
                if whole or text.startswith("make "):
                    result.append(Command(str(path.relative_to(ROOT)), number, tuple(shlex.split(text))))
    return result


def _of_block(block: Block):
    text = re.sub(r"\\\n\s*", " ", block.text)
    return [Command(block.page, block.line, tuple(words)) for line in text.splitlines()
            if (words := shlex.split(line, comments=True)) and "..." not in line.partition("#")[0].replace("--config=...", "")]


def _sentences(path):
    """The lines of a page, empty where they belong to a block."""
    inside, lines = False, []
    for line in path.read_text().splitlines():
        fence = re.match(r" *```", line)
        lines.append("" if inside or fence else line)
        inside ^= bool(fence)
    return lines


def check(command: Command):
    """Raises an AssertionError, with the reason, where the command could not be run as it stands."""
    words = [word for i, word in enumerate(command.words) if not all(re.match("[A-Z_]+=", w) for w in command.words[:i + 1])]
    line = shlex.join(words)
    for word in words:
        if word.startswith("--evals="):
            configs.resolve(word.partition("=")[2], "evals")
    if others := [test for start, test in ELSEWHERE.items() if line.startswith(start)]:
        assert (ROOT / others[0]).exists(), f"{others[0]}, which checks this command, is gone"
        return
    if words == ["mcd-jax", "--version"]:
        return
    if words[0] == "mcd-jax":
        assert len(words) > 1 and words[1] in cli.COMMANDS, f"mcd-jax has no command {words[1:2]}"
        read(cli.COMMANDS[words[1]][0], words[2:])
    elif re.fullmatch(r"(\.venv\S*/bin/)?python", words[0]) and words[1] == "-m":
        read(words[2], words[3:words.index(">")] if ">" in words else words[3:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"the Makefile has {', '.join(targets)}"
    elif words[0] == "pip":
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("optional-dependencies", {}))
        asked = {extra for word in words for extra in re.findall(r"^\.\[(.*)\]$", word)}
        assert words[1] == "install" and {e for text in asked for e in text.split(",")} <= extras, f"extras are {extras}"
    elif words[0].startswith("launch/"):
        launch(words)
    else:
        assert words[0] in OTHERS, f"nothing knows how to check {words[0]!r}"


def launch(words):
    """Runs a script of launch/ with --dry-run, and checks the command of ours that it is given."""
    at = words.index("--") if "--" in words else len(words)
    places = dict(TPU_PROJECT="p", TPU_ZONE="us-west4-a", TPU_NAME="mcd", TPU_ACCELERATOR="v5e-256", TPU_QUEUED="1",
                  GKE_CLUSTER="c", GKE_WORKLOAD="w", TPU_SLICES="2", PATH="/usr/bin:/bin", HOME=os.environ.get("HOME", "/"))
    own = [word.replace("--config=...", "--config=mcd_emoji") for word in words[at + 1:]]
    done = subprocess.run([ROOT / words[0], *words[1:at], "--dry-run", *(["--", *own] if own else [])], cwd=ROOT, env=places,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if own:
        check(Command("", 0, tuple(own)))


def read(module, arguments):
    """Starts a module as `python -m module arguments`, and stops it when it has read them; its config is resolved and checked."""
    try:
        with own_flags(), mock.patch.object(sys, "argv", [module, *arguments]), mock.patch.object(app, "run", _absl), \
                mock.patch.object(command.Parser, "parse_args", _read(command.Parser.parse_args)):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        raise AssertionError(f"{module} {' '.join(arguments)} read no arguments")
    except Read:
        pass
    except SystemExit as error:
        raise AssertionError(f"python -m {module} {' '.join(arguments)} refuses its arguments: {error}") from error


def _absl(main, argv=None, flags_parser=None, **_):
    argv = argv or sys.argv
    (flags_parser or flags.FLAGS)(argv)
    for word in argv:
        if word.startswith("--config="):
            config_lib.check(config_lib.from_file(word.partition("=")[2], [w for w in argv if w.startswith("--config.")]))
    raise Read


def _read(real):
    def parse_args(self, args=None, namespace=None):
        real(self, args, namespace)
        raise Read
    return parse_args
