"""Which software makes a run: versions of the packages, and which copy of this one's source."""
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys

import mcd_jax

PACKAGES = ("mcd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "matplotlib")
COMPUTING = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")   # decide what a step does
_DOTTED = re.compile(r"[A-Za-z_]\w*(?=\.[A-Za-z_])")
_FOLDER = pathlib.Path(mcd_jax.__file__).parent


def versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """{name: version} of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The kind of this machine, in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def source() -> str:
    """12 hexadecimal digits of the sha256 over the Python files of this package: another copy of the code has others."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.rglob("*.py")):
        digest.update(f"{path.relative_to(_FOLDER).as_posix()}\n".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def own(text: str) -> dict[str, str]:
    """{"source of my_lab": 12 digits as of `source`} of the packages that a text, such as a config, names by dotted paths.

    Only packages that have been imported count, whichever of their modules have been: those may be imported at any moment, and
    by one process alone. Neither Python's own do nor those of `COMPUTING`, which have versions.
    """
    packages = {word.partition(".")[0] for word in _DOTTED.findall(text)} - sys.stdlib_module_names - {"mcd_jax", *COMPUTING}
    found = {}
    for name in sorted(packages & sys.modules.keys()):
        digest, files = hashlib.sha256(), _python_files(sys.modules[name])
        for within, path in files:
            digest.update(f"{within}\n".encode() + path.read_bytes() + b"\0")
        if files:
            found[f"source of {name}"] = digest.hexdigest()[:12]
    return found


def _python_files(module):
    """[(name inside the package, path)] of a module, or of all modules of a package; folders without any are passed over."""
    found = []
    for root in getattr(module, "__path__", ()):
        for folder, inside, files in os.walk(root):
            own = sorted(name for name in files if name.endswith(".py"))
            inside[:] = sorted(name for name in inside if name.isidentifier()) if own or folder == root else []
            found += [(os.path.relpath(os.path.join(folder, name), root), pathlib.Path(folder, name)) for name in own]
    path = getattr(module, "__file__", None) or ""
    if not found and path.endswith(".py") and os.path.isfile(path):
        found = [(os.path.basename(path), pathlib.Path(path))]
    return found


@functools.cache
def commit() -> str:
    """The git commit of the checkout that this package is run from; "" where it is none."""
    git = _FOLDER.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text().strip()
        packed = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", (git / "packed-refs").read_text(), re.MULTILINE)
        return packed[1] if packed else ""
    except OSError:
        return ""
