"""Language-image pretraining in JAX: train, evaluate, search and export; `load` opens what was trained.

    import mcd_jax
    model = mcd_jax.load("runs/mcd_emoji")
"""
from typing import Any

__all__ = ["Model", "__version__", "load"]
_PLACES = {"load": "mcd_jax.model", "Model": "mcd_jax.model"}   # imported when first asked for: they need jax


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version of the installed package, or of the checkout that is used without an installation."""
    from importlib import metadata
    import pathlib
    import tomllib

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:
        project = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(project)["project"]["version"]
