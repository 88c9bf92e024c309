"""The package as a stranger gets it: an sdist and a wheel with all files, installed alone in a clean environment."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
pytestmark = pytest.mark.full


def ours(folder, root):
    """Paths of the files of a folder that belong to the project, relative to `root`."""
    return {p.relative_to(root).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def build(what, source, out):
    """What the package's build backend makes of a folder, as pip would ask it to."""
    code = f"import setuptools.build_meta as b, sys; print(b.build_{what}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(sdist, wheel made from it), built from a copy of this checkout."""
    folder = tmp_path_factory.mktemp("build")
    skipped = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=lambda at, names: skipped(at, names) if pathlib.Path(at) == ROOT else {
        name for name in names if name == "__pycache__"})
    sdist = build("sdist", folder / "checkout", folder)
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    return sdist, build("wheel", next((folder / "unpacked").iterdir()), folder)


@pytest.fixture(scope="module")
def clean(archives, tmp_path_factory):
    """A new environment that has the wheel, and the packages that it needs from this one's."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    done = subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
                           archives[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place = next((folder / "lib").glob("python*/site-packages"))
    others = [path for path in sys.path if path.endswith("site-packages")]   # their .pth files aren't read, so no editable package
    (place / "borrowed.pth").write_text("".join(f"{path}\n" for path in others))
    return folder / "bin"


@pytest.fixture
def run(clean, tmp_path):
    """Runs a command of the clean environment in an empty folder."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_NUM_CPU_DEVICES")}

    def run(command, *arguments):
        return subprocess.run([clean / command, *map(str, arguments)], cwd=tmp_path, env=env, capture_output=True, text=True,
                              timeout=300)
    return run


def test_every_file_is_in_the_archives(archives):
    sdist, wheel = archives
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    modules = ours(ROOT / "mcd_jax", ROOT) | {f"mcd_jax/{name}" for name in ours(ROOT / "configs", ROOT)}
    assert modules - inside == set()
    rest = {name for name in inside - modules if not re.match(r"mcd_jax-[\d.]+\.dist-info/", name)}
    assert rest == set()   # neither tests nor anything else lands at the top of somebody's site-packages
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    wanted = [name for folder in ("mcd_jax", "configs", "launch", "tests", "docs") for name in ours(ROOT / folder, ROOT)]
    wanted += ["LICENSE", "README.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile"]
    wanted += [p.name for p in ROOT.glob("requirements*.txt")]
    assert set(wanted) - packed == set()


def test_the_licences_come_along(archives):
    with zipfile.ZipFile(archives[1]) as file:
        names = [name.partition("/licenses/")[2] for name in file.namelist()]
        about = file.read(next(n for n in file.namelist() if n.endswith("/METADATA"))).decode()
    wanted = ["LICENSE", *(p.relative_to(ROOT).as_posix() for p in (ROOT / "mcd_jax").glob("**/licences/*"))]
    assert len(wanted) > 8 and set(wanted) <= set(names)
    assert "License-Expression: Apache-2.0" in about
    for extra in ("tpu", "cuda", "gcs", "wandb", "torch", "build-data"):
        assert f"\nProvides-Extra: {extra}\n" in about


def test_the_version_is_one(run):
    assert run("mcd-jax", "--version").stdout == f"mcd-jax {PROJECT['version']}\n"
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    code = "import sys, mcd_jax; print(mcd_jax.__version__, mcd_jax.__file__, 'jax' in sys.modules)"
    version, file, heavy = run("python", "-c", code).stdout.split()
    assert version == PROJECT["version"] and heavy == "False" and not pathlib.Path(file).is_relative_to(ROOT)


def test_a_config_trains_by_its_name_in_an_empty_folder(run, tmp_path):
    small = ["--config.steps=3 steps", "--config.batch_size=32", "--config.evals={}", "--config.tensorboard=False"]
    done = run("mcd-jax", "train", "--config=clip_emoji", "--workdir=runs/x", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("training clip on emoji: 4,725 examples, 3 steps of 32")
    assert re.fullmatch(r"params_checksum=[0-9a-f]{64}", done.stdout.splitlines()[-1])
    assert {p.name for p in (tmp_path / "runs/x").iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints"}
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    wrong = run("mcd-jax", "train", "--config=clip_emogi", "--workdir=runs/y")
    assert wrong.returncode and "did you mean 'clip_emoji'" in wrong.stderr and "Traceback" not in wrong.stderr
    report = run("mcd-jax", "report", "--workdir=runs/x")   # css and js of the pages
    assert report.returncode == 0 and (tmp_path / "runs/x/report.html").stat().st_size > 20_000, report.stderr


def test_what_jax_export_imports_late_is_required():
    """jax itself doesn't require it, and `convert export --to=stablehlo` fails without."""
    assert re.search(r"^flatbuffers\b", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
