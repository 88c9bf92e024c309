"""Lists every operation of pipe strings, from their docstrings: `python -m mcd_jax.data.tools.list_ops > docs/ops.md`."""
import inspect
import re

from mcd_jax import plugins
from mcd_jax.data.ops import augmented, image_ops, style_ops, text_ops

_HEAD = """# Operations of pipe strings

<!-- Written by `python -m mcd_jax.data.tools.list_ops > docs/ops.md` from the docstrings. Change those, not this page. -->

A view of `config.data.views` is a pipe string: `augmented="decode|crop(224, 0.08)|flip|jitter(.4, .4, .4, .1, p=.8)|gray(.2)"`.
An image view starts with `decode`, a text view with `caption`, a stored number with `column`. Arguments are plain numbers, strings
and tuples. A function of your own is named by its dotted path, `decode|my_lab.ops.sharpen(2)|resize(64)`, and returns a
`mcd_jax.data.ops.augmented.Op`.
`mcd-jax inspect --config=mcd_emoji` shows what a config's views do to its images.
"""
_SECTIONS = (("Images", image_ops), ("Drawing style", style_ops), ("Texts", text_ops))


def page() -> str:
    """The page as markdown."""
    parts = [_HEAD, "## Misalignment", "", _text(inspect.getdoc(augmented)), ""]
    for title, module in _SECTIONS:
        parts += [f"## {title}", "", *[_entry(name, function) for name, function in operations(module).items()]]
    entries = {name: getattr(plugins.load("op", name), name) for name in plugins.names("op")}
    parts += ["## Of single methods", "", *[_entry(name, function) for name, function in entries.items()]]
    return "\n".join(parts).rstrip() + "\n"


def operations(module) -> dict:
    """{name: function} of the operations that a module of `data/ops` has, in its order."""
    return {name: value for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")}


def _entry(name, function):
    return f"### `{name}{inspect.signature(function)}`\n\n{_text(inspect.getdoc(function))}\n"


def _text(doc):
    """A docstring as markdown: "Args:" and "Raises:" become lists, indented tables stay as they are."""
    lines, listed = [], False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns):", line):
            lines.append(f"{line}\n")
            listed = True
        elif listed and re.match(r"  \S", line):
            lines.append(f"* {line.strip()}")
        elif listed and line.strip():
            lines.append(f"  {line.strip()}")
        elif re.match(r"  \S", line):   # a formula or a table
            lines.append(f"    {line.strip()}" if lines and lines[-1].startswith("    ") else f"\n    {line.strip()}")
        else:
            lines.append(f"\n{line}" if lines and lines[-1].lstrip("\n").startswith("    ") and line.strip() else line)
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
