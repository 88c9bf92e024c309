"""Plugins are modules: `load("objectives", "mcd")` is `mcd_jax.objectives.mcd`, and any dotted path is itself."""
import importlib
import pkgutil


def load(kind, name):
    """The module `mcd_jax.<kind>.<name>`, or the module `name` itself when it has a dot ("my_lab.method").

    Raises:
      ValueError: there is no such module; the message lists what the package has of this kind.
    """
    path = name if "." in name else f"mcd_jax.{kind}.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path and not path.startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        package = importlib.import_module(f"mcd_jax.{kind}")
        names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
        known = [n for n in names if hasattr(importlib.import_module(f"{package.__name__}.{n}"), "make")]
        raise ValueError(f"no {kind} module {name!r}: the package has {', '.join(known)}; "
                         "a module of your own is named by its dotted path") from error
