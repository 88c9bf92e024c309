"""The formats that there are: which modules write, and which read."""
from types import ModuleType

from mcd_jax import plugins


def named(name: str, what: str) -> ModuleType:
    """The module of a format that exports or imports ("EXPORTS", "IMPORTS").

    Raises:
      ValueError: there is none of this name, or it goes the other way only.
    """
    known = names(what)
    if "." not in name and name not in known:
        way = "export to" if what == "EXPORTS" else "import from"
        raise ValueError(f"no format {name!r} to {way}: there are {', '.join(known)}")
    return plugins.load("format", name)


def names(what: str) -> list[str]:
    """Names of the formats of this package that export or import ("EXPORTS", "IMPORTS")."""
    return [name for name in plugins.known("format") if getattr(plugins.load("format", name), what)]
