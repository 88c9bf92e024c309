"""Plugins are modules found by name: `load("objective", "mcd")` is `mcd_jax.methods.mcd.mcd`, and any dotted path is itself.

The core has a package for each kind of plugin. A method keeps what it owns in its own folder, `methods/<method>/<name>_<kind>.py`:
its sources, evaluations, analyses, weight formats. Whoever deletes the folder removes them all, and nothing else. No module is
imported before its name is asked for.
"""
from collections.abc import Iterator
import importlib
import importlib.util
import pathlib
import pkgutil
import re
from types import ModuleType

PACKAGES = {                # kind -> where the core has its own; "" where only methods have some
    "objective": "methods",
    "model": "models",
    "source": "data.sources",
    "eval": "evals",
    "benchmark": "evals.benchmarks",
    "format": "convert",
    "op": "",               # of pipe strings, a function of that name
    "analysis": "",         # `mcd-jax analyze <name>`
    "section": "",          # of the report, on what the analysis of that name found
    "explanation": "",      # of search results, by the head of that name
}
DEFINES = {"objective": "WEIGHTS", "model": "TOWER", "format": "EXPORTS", "analysis": "run",
           "section": "section"}   # by which one is told; else make


def load(kind: str, name: str) -> ModuleType:
    """The plugin module `name` of a kind, or the module `name` itself when it has a dot ("my_lab.method").

    Raises:
      ValueError: there is no such module; the message lists what the package has of this kind.
    """
    path = name if "." in name else _path(kind, name) or _path(kind, former_names(kind).get(name, ""))
    if not path:
        raise ValueError(_unknown(kind, name))
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path and not path.startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ValueError(_unknown(kind, name)) from error
    except TypeError as error:
        if not path.startswith("."):
            raise
        raise ValueError(_unknown(kind, name)) from error   # a relative name, of no package


def find(kind: str, name: str) -> ModuleType | None:
    """The plugin module `name` of a kind, or None."""
    path = _path(kind, name) or _path(kind, former_names(kind).get(name, ""))
    return importlib.import_module(path) if path else None


def names(kind: str) -> list[str]:
    """The names of all modules of a kind, sorted. Of the core's packages these are all modules, helpers too."""
    return sorted({name for name, _ in _modules(kind)})


def known(kind: str) -> list[str]:
    """The names of the plugins of a kind, sorted, without the modules that only help them. None is imported."""
    if kind == "op":
        return names(kind)
    pattern = re.compile(rf"^(?:def )?{DEFINES.get(kind, 'make')}\b", re.MULTILINE)
    return [name for name in names(kind) if pattern.search(_source(_path(kind, name)))]


def methods() -> list[str]:
    """The folders of `methods/`, sorted."""
    package = importlib.import_module(f"{__package__}.methods")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def _unknown(kind: str, name: str) -> str:
    return (f"no {kind} module {name!r}: the package has {', '.join(known(kind)) or 'none'}; "
            "a module of your own is named by its dotted path")


def _path(kind: str, name: str) -> str:
    """The dotted path of a plugin, "" if there is none."""
    return next((path for known, path in _modules(kind) if known == name), "")


def _source(path: str) -> str:
    """The text of the module or package at a dotted path; its parent packages are imported."""
    return pathlib.Path(importlib.util.find_spec(path).origin).read_text(encoding="utf-8")


def _modules(kind: str) -> Iterator[tuple[str, str]]:
    """(name, dotted path) of every module of a kind: the core's first, then those of the methods."""
    if core := PACKAGES[kind]:
        package = importlib.import_module(f"{__package__}.{core}")
        for module in pkgutil.iter_modules(package.__path__):
            if not (module.name.startswith("_") or (kind == "objective" and module.ispkg)):
                yield module.name, f"{package.__name__}.{module.name}"
    ending = "" if kind == "objective" else f"_{kind}"
    for method in methods():
        package = importlib.import_module(f"{__package__}.methods.{method}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith(ending):
                yield module.name.removesuffix(ending), f"{package.__name__}.{module.name}"


def former_names(kind: str) -> dict[str, str]:
    """{former name: today's} of the plugins of a kind, which stored configs and people know: FORMER_NAMES[kind] of the packages."""
    packages = [PACKAGES[kind]] * bool(PACKAGES[kind]) + [f"methods.{method}" for method in methods()]
    former = [getattr(importlib.import_module(f"{__package__}.{package}"), "FORMER_NAMES", {}) for package in packages]
    return {old: new for names in former for old, new in names.get(kind, {}).items()}
