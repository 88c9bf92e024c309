"""Logs, pipes and terminals that break or are closed, and locales that aren't UTF-8, in processes of their own."""
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = """
import pathlib, sys
from mcd_jax import command
def main():
    with command.sentences(printed={printed}):
        for stream in (sys.stdout, sys.stderr):
            for line in range(20000):
                print("line", line, file=stream, flush=line < 9)
        pathlib.Path(sys.argv[1]).write_text("done")
main()
"""


def ran(shell, *words, code, **env):
    """Runs Python on `code` by a line of the shell, in which "$@" is the command."""
    return subprocess.run(["bash", "-o", "pipefail", "-c", shell, "bash", sys.executable, "-c", code, *map(os.fspath, words)],
                          env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **env}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("shell", [
    '"$@" | head -1', '"$@" 2> >(exec head -1 >/dev/null) >/dev/null',
    '"$@" 2>/dev/full', '"$@" >&-', '"$@" 2>&-', '"$@" <&- >&- 2>&-'])
def test_a_stream_that_is_closed_or_breaks_stops_nothing(shell, tmp_path):
    end = ran(shell, tmp_path / "file", code=WORK.format(printed=True))
    assert end.returncode == 0 and (tmp_path / "file").read_text() == "done" and "rror" not in end.stderr


def test_output_that_is_lost_is_an_error_unless_the_result_is_in_files(tmp_path):
    end = ran('"$@" >/dev/full', tmp_path / "file", code=WORK.format(printed=True))
    sentence = "error: what this command prints could not be written to its stdout: No space left on device\n"
    assert end.returncode == 1 and end.stderr.endswith(sentence)
    end = ran('"$@" >/dev/full 2>&1', tmp_path / "file", code=WORK.format(printed=False))
    assert end.returncode == 0 and (tmp_path / "file").read_text() == "done"


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    code = ("import os, sys\nfrom mcd_jax import streams\nstreams.prepare()\nfile = open(sys.argv[1], 'w')\n"
            "os.write(1, b'of a library')\nos.write(2, b'of a library')\nprint('a', flush=True)\n"
            "assert file.fileno() > 2 and sys.stdin.read() == ''")
    assert ran('"$@" <&- >&- 2>&-', tmp_path / "file", code=code).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_pipe_that_another_program_made_non_blocking_loses_nothing(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen([sys.executable, "-c", WORK.format(printed=True), tmp_path / "file"], stdout=write,
                          stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.fspath(ROOT)}) as process:
        os.close(write)
        time.sleep(0.5)   # the pipe is full by then
        with open(read, encoding="utf-8") as file:
            assert file.read() == "".join(f"line {i}\n" for i in range(20000))
    assert process.returncode == 0


def test_a_closed_streams_number_that_a_library_has_taken(tmp_path):
    code = ("import socket, sys\nsockets = socket.socketpair()\nassert sockets[1].fileno() == 1\n"
            "from mcd_jax import streams\nstreams.prepare()\nprint('a', flush=True)\nsockets[0].setblocking(False)\n"
            "try:\n    print(sockets[0].recv(9), file=sys.stderr)\nexcept BlockingIOError:\n    pass")
    end = ran('"$@" <&- >&-', code=code)
    assert (end.returncode, end.stderr) == (0, "")


@pytest.mark.parametrize("options", ['"$@"', '"$1" -E "${@:2}"', '"$1" -X utf8=0 "${@:2}"'])
def test_a_command_is_in_utf8_whatever_the_locale(options, tmp_path):
    (tmp_path / "größe日本").mkdir()
    code = ("import os, sys\nsys.path.insert(0, sys.argv[1])\nfrom mcd_jax import streams\nstreams.in_utf8()\nstreams.prepare()\n"
            "print(ascii(os.listdir(sys.argv[2])), ascii(sys.argv[3]), os.environ['PYTHONUTF8'])\n"
            "print('\\u00b1')")
    end = ran(options, ROOT, tmp_path, "é", code=code, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
              PYTHONIOENCODING="ascii")
    names, printed = end.stdout.splitlines()
    assert printed == ("\xb1" if "-E" in options else "\\xb1") and end.returncode == 0
    if options == '"$@"':   # the others forbid it: they end all the same
        assert names == f"{['größe日本']!a} '\\xe9' 1"
