"""The core without any folder of methods/: its tests are collected, and those of objectives and configs pass."""
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.full
def test_without_the_folders_of_methods_the_cores_tests_pass(tmp_path):
    leave = shutil.ignore_patterns("__pycache__", ".*", "peers")
    for name in ("mcd_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "Makefile", "docs", "launch"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    shutil.rmtree(tmp_path / "tests" / "methods")
    for folder in (tmp_path / "mcd_jax" / "methods").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)

    def tests(*arguments):
        environment = {**os.environ, "PYTHONPATH": "", "PYTEST_ADDOPTS": ""}
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=tmp_path,
                              env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    tests("--collect-only")
    tests("-m", "not full", "tests/objectives", "tests/test_config.py", "tests/losses", "tests/sharding/test_microbatch.py")
