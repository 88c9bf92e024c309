"""What a command shows while one waits: lines without a terminal, a bar on one, a word before a silence."""
import time

import pytest

from mcd_jax.run import console


@pytest.fixture
def clock(monkeypatch):
    """A list whose first entry is the time."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_lines_carry_the_figures_of_their_step_or_say_whose_they_are(clock, capsys):
    progress = console.Progress(100, unit="step")
    for step in range(1, 101):
        clock[0] += 10
        if step % 25 == 0:   # what is logged of a step comes after it
            progress.show(step, f"loss {step}")
        progress.show(step)
    clock[0] += 50           # evaluations
    progress.close()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 4/100: 16:00 left"
    assert "step 25/100: loss 25, 12:30 left" in said and "step 29/100: loss 25 at step 25, 11:50 left" in said
    assert said[-1] == "step 100/100: loss 100" and sum("100/100" in line for line in said) == 1


def test_the_first_figures_come_at_once_and_the_last_step_waits_for_its_own(clock, capsys):
    progress = console.Progress(2, unit="step")
    progress.show(1, "loss 5")
    clock[0] += 99
    progress.show(2)
    assert capsys.readouterr().err.splitlines() == ["step 1/2: loss 5, 00:00 left"]
    progress.show(2, "loss 4")
    progress.show(2)
    assert capsys.readouterr().err.splitlines() == ["step 2/2: loss 4"]


def test_the_time_left_does_not_count_what_was_compiled(clock, capsys):
    progress = console.Progress(10)
    clock[0] += 60
    progress.step()
    clock[0] += 40
    progress.step()
    assert capsys.readouterr().err.splitlines() == ["row 1/10", "row 2/10: 05:20 left"]


def test_a_terminal_has_a_bar_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.Progress(4, "embedding", keep=True) as progress:
        for _ in range(4):
            progress.step()
        console.say("a line")
        progress.show(4, "loss 2")
    shown = capsys.readouterr().err
    assert "embedding: 100%" in shown and "4/4" in shown and "<" in shown and "a line\n" in shown
    assert "loss 2]" in shown.rpartition("\r")[2]


def test_others_than_the_lead_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(console.jax, "process_index", lambda: 1)
    progress = console.Progress(4)
    clock[0] += 99
    progress.show(4, "loss")
    console.say("a line")
    assert capsys.readouterr().err == ""


def test_a_silence_is_explained_only_where_it_is_long(capsys, monkeypatch):
    monkeypatch.setattr(console, "LONG", 0.05)
    with console.waiting("opening"):
        pass
    with console.waiting("compiling"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "compiling ...\n"
