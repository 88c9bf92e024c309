"""Checkpoints in odd folders: names that look like patterns, folders that are no step's, a disk without room, arrays that can't be
opened."""
import errno
import os
import pathlib
import shutil

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcd_jax.run import arrays_on_disk, atomic, checkpoint, leaves, steps
from mcd_jax.run import workdir as workdir_lib

STATE = {"params": {"w": jnp.arange(8.0), "b": jnp.ones((3, 2), jnp.bfloat16)}}


def shapes(state=STATE):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def saved(workdir, numbers, **options):
    saver = checkpoint.Checkpoints(workdir, **options)
    for number in numbers:
        saver.save(number, STATE)
    saver.close()
    return saver


@pytest.mark.parametrize("name", ["exp [lr=0.1]/a", "a?b*c", "{1..2} %20#~é", "[!x]"])
def test_a_folder_whose_name_looks_like_a_pattern_holds_checkpoints(tmp_path, name):
    workdir = tmp_path / name
    saved(workdir, [1, 2, 3], keep=2)
    (workdir / "checkpoints/9.orbax-checkpoint-tmp-1").mkdir()
    saved(workdir, [4], keep=2)
    assert sorted(os.listdir(workdir / "checkpoints")) == ["3", "4"]
    np.testing.assert_array_equal(checkpoint.Checkpoints(workdir, read_only=True).restore(shapes())["params"]["w"], np.arange(8.0))
    assert checkpoint.restore_from(f"{workdir}/checkpoints/3", shapes())
    moved = tmp_path / "plain"
    workdir.rename(moved)
    assert checkpoint.restore_from(moved, shapes())


def test_glob_of_a_folder_takes_only_its_argument_for_a_pattern(tmp_path):
    folder = epath.Path(tmp_path) / "a[1]"
    folder.mkdir()
    for name in ("x.1", "x.2", "y"):
        (folder / name).write_text("")
    assert [p.name for p in folder.glob("x.*")] == ["x.1", "x.2"] and all(isinstance(p, epath.Path) for p in folder.glob("*"))


def test_arrays_that_cannot_be_opened_stop_the_run_and_no_older_checkpoint_goes(tmp_path, monkeypatch):
    saver = saved(tmp_path, [1], keep=1)
    monkeypatch.setattr(type(epath.Path(".")), "glob", arrays_on_disk._etils_glob)   # what happened below "[...]"
    workdir = tmp_path / "[1]"
    saver = checkpoint.Checkpoints(workdir, keep=1)
    saved_before = workdir / "checkpoints/1"
    (tmp_path / "checkpoints").rename(workdir / "checkpoints") if workdir.mkdir() is None else None
    saver.save(2, STATE)
    with pytest.raises(OSError, match=r"the checkpoint of step 2 in .* could not be saved: "):
        saver.wait()
    assert saved_before.is_dir()


@pytest.mark.parametrize("name", ["0007", "7 ", "+7", "\u0667", "7.broken", "x"])
def test_only_plain_numbers_are_steps(tmp_path, name):
    saved(tmp_path, [4])
    (tmp_path / "checkpoints" / name).mkdir()
    saver = checkpoint.Checkpoints(tmp_path, read_only=True)
    assert saver.steps() == [4] and saver.restore(shapes())
    assert steps.number(name) is None and steps.number("7") == 7 and steps.number("0") == 0
    with pytest.raises(ValueError, match=r"is no checkpoint: .* named by its step alone, as in .*/checkpoints/4"):
        checkpoint.restore_from(tmp_path / "checkpoints" / name, shapes())


def test_a_renamed_checkpoint_is_no_checkpoint(tmp_path):
    saved(tmp_path, [4])
    (tmp_path / "checkpoints/4").rename(tmp_path / "checkpoints/0004")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of any step in .*: there is none"):
        checkpoint.Checkpoints(tmp_path, read_only=True).restore(shapes())


def test_a_checkpoint_under_another_number_is_none_either(tmp_path):
    """A copy of step 4 called 9 would be the newest for ever: each session would begin at 4 again, and never find what it did."""
    state = {**STATE, "step": jnp.int32(4)}
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(4, state)
    saver.close()
    for name in ("9", str(10 ** 11)):
        shutil.copytree(tmp_path / "checkpoints/4", tmp_path / "checkpoints" / name)
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    with pytest.raises(OSError, match="step 9: ValueError: it holds another step than its folder's name says"):
        reader.restore({"w": shapes()["params"]["w"]}, 9, "params", besides="params/b")
    with pytest.raises(OSError, match="can't be used"):
        reader.leaves(10 ** 11)
    writer = checkpoint.Checkpoints(tmp_path)
    assert int(writer.restore(shapes(state))["step"]) == writer.latest() == 4
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"{10 ** 11}.broken", "4", "9.broken"]


def test_a_run_in_a_folder_called_checkpoints_is_a_run(tmp_path):
    saved(tmp_path / "checkpoints/first", [4])
    assert steps.split(tmp_path / "checkpoints/first")[1] is None
    assert checkpoint.restore_from(tmp_path / "checkpoints/first", shapes())
    assert checkpoint.restore_from(f"{tmp_path}/checkpoints/first/checkpoints/", shapes())   # all of a run's
    saved(tmp_path / "checkpoints", [5])
    assert steps.split(tmp_path / "checkpoints")[0] == epath.Path(tmp_path / "checkpoints")


def test_room_is_looked_at_before_a_save(tmp_path, monkeypatch):
    saver = saved(tmp_path, [1], keep=1)
    saver = checkpoint.Checkpoints(tmp_path, keep=1)
    monkeypatch.setattr(atomic, "free", lambda folder: 43)
    assert leaves.size(STATE) == 8 * 4 + 6 * 2
    with pytest.raises(atomic.Full, match=r"the checkpoint of step 2 can't be saved: No space left on device in .* "
                                          r"\(44 bytes .* step 1: with config.checkpoint.keep=1 .* goes, 43 bytes are free\)"):
        saver.save(2, STATE)
    with pytest.raises(atomic.Full, match=r"^a checkpoint can't be saved: No space left"):   # as before a run's first compile
        checkpoint.Checkpoints(tmp_path / "new").check_room(shapes())
    monkeypatch.setattr(atomic, "free", lambda folder: 44)
    saver.save(2, STATE)
    saver.close()
    assert os.listdir(tmp_path / "checkpoints") == ["2"]


def test_a_disk_that_fills_while_saving_is_one_sentence_and_nothing_is_left(tmp_path, monkeypatch, capfd):
    saver = saved(tmp_path, [1], keep=1)
    saver = checkpoint.Checkpoints(tmp_path, keep=1)
    saver.save(2, STATE)
    wait = saver._checkpointer.wait_until_finished

    def fills():
        wait()
        (tmp_path / "checkpoints/2").rename(tmp_path / "checkpoints/2.orbax-checkpoint-tmp")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("INTERNAL: " + "x" * 300) from error

    monkeypatch.setattr(saver._checkpointer, "wait_until_finished", fills)
    with pytest.raises(atomic.Full, match=r"step 2 can't be saved: No space left on device in .* \(44 bytes are needed"):
        saver.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("workdir", "why"), [
    ("", "is empty"), ("  ", "is empty"), ("a\nb", "can't be printed"), ("a\x1b[2J", "can't be printed"),
    ("gs://lab/a[1]", r"'\[' in a bucket's path"), ("gs://lab/*/a", r"'\*' in a bucket's path"),
    ("a/b\\c", r"a folder with a backslash in its name, b\\c"), ("caf\udce9/a", r"name is not UTF-8, caf.: ")])
def test_workdirs_that_are_refused(workdir, why):
    with pytest.raises(ValueError, match=f"^--workdir=.*{why}"):
        workdir_lib.named(workdir)


def test_home_is_known_in_every_path_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "run", [4])
    assert workdir_lib.named("~/run") == f"{tmp_path}/run" and checkpoint.restore_from("~/run/checkpoints/4", shapes())
    assert checkpoint.Checkpoints("~/run", read_only=True).steps() == [4]
    assert workdir_lib.named(pathlib.Path("a[1]")) == "a[1]"


def test_a_run_that_does_not_start_leaves_no_folder(tmp_path):
    (tmp_path / "there").mkdir()
    for workdir in ("a/b/c", "there", "there/d"):
        with pytest.raises(ValueError, match="refused"), workdir_lib.nothing_left(tmp_path / workdir):
            workdir_lib.check_writable(tmp_path / workdir)
            raise ValueError("refused")
    for workdir, place in (("link", "link"), ("there", "there/checkpoints")):   # a disk that isn't mounted
        (tmp_path / place).symlink_to("/nowhere/a")
        with pytest.raises(OSError, match=f"{place} is a link to /nowhere/a, which is not there: is its disk mounted"):
            workdir_lib.check_writable(tmp_path / workdir)
        (tmp_path / place).unlink()
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]
    with pytest.raises(ValueError, match="later"), workdir_lib.nothing_left(tmp_path / "run"):
        workdir_lib.check_writable(tmp_path / "run")
        (tmp_path / "run/config.json").write_text("{}")
        raise ValueError("later")
    assert (tmp_path / "run/config.json").exists()


def test_an_unknown_home_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)   # what it does without HOME and without an entry for the user
    with pytest.raises(ValueError, match=r"^--workdir=~/run: the home folder isn't known \(HOME is not set\): write"):
        workdir_lib.named("~/run")


def test_a_newest_checkpoint_that_may_not_be_read_is_an_error_not_an_older_one(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2])
    before = os.stat

    def refused(path, *args, **kwargs):   # as for a user who isn't root
        if os.fspath(path).startswith(f"{tmp_path}/checkpoints/2/"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return before(path, *args, **kwargs)
    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(PermissionError, match=r"checkpoints/2/commit_success.txt"):
        checkpoint.Checkpoints(tmp_path, read_only=True).restore(shapes())
