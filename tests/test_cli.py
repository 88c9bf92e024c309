"""The console command: its list, its nearest names, and that it imports nothing but what was asked for."""
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from mcd_jax import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_alone_it_lists_the_commands(capsys):
    cli.main([])
    alone = capsys.readouterr().out
    cli.main(["--help"])
    assert capsys.readouterr().out == alone
    lines = alone.splitlines()
    assert lines[0] == "usage: mcd-jax COMMAND ..."
    for name, (_, text) in cli.COMMANDS.items():
        assert sum(line.split() == [name, *text.split()] for line in lines) == 1


@pytest.mark.parametrize("word, hint", [("trian", "did you mean 'train'?"), ("evalute", "did you mean 'evaluate'?"),
                                        ("frob", "there are train, evaluate, ")])
def test_a_misspelt_command_is_a_sentence(word, hint, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([word])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: mcd-jax has no command {word!r}; {hint}") and error.count("\n") == 1


def test_it_imports_only_what_was_asked_for(tmp_path):
    (tmp_path / "own_command.py").write_text("import sys; print(__name__, sys.argv, sorted(n for n in sys.modules if n in HEAVY or "
                                             "n.startswith('mcd_jax')))\n".replace("HEAVY", "('jax', 'numpy', 'absl')"))
    code = ("from mcd_jax import cli; cli.COMMANDS['train'] = ('own_command', ''); cli.main(['--help']); cli.main(['--version']); "
            "cli.main(['train', '--config.a=b', 'c'])")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = [p for p in sys.path if p] + [{str(ROOT)!r}]; {code}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, rest = done.stdout.splitlines()[-1].split(" ", 1)
    assert name == "__main__" and rest.endswith("['mcd_jax', 'mcd_jax.cli', 'mcd_jax.signals', 'mcd_jax.streams']")
    assert rest.startswith(f"['{tmp_path}/own_command.py', '--config.a=b', 'c']")


def source(module):
    """The text of a command's module; of a package that of its __main__ and its __init__."""
    spec = importlib.util.find_spec(module)
    assert spec, f"{module} is not there"
    files = [spec.origin, *(f"{folder}/__main__.py" for folder in spec.submodule_search_locations or ())]
    return "".join(file.read_text() for file in map(pathlib.Path, files) if file.exists())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_commands_usage_names_the_console_command(name):
    module = cli.COMMANDS[name][0]
    text = source(module)
    starts = re.search(r"\b(overrides.run|explain.main)\(", text)   # whose usage is the module's docstring
    assert f'prog="mcd-jax {name}"' in text or (f"mcd-jax {name} --" in text and starts)
    assert f"python -m {module} --" not in text


def test_a_command_runs_as_the_main_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mcd-jax"])
    with pytest.raises(SystemExit) as end:
        cli.main(["index", "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: mcd-jax index ")
