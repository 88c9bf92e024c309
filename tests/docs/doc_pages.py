"""The pages of the documentation, and the blocks of code in them."""
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Block(NamedTuple):
    page: str       # path from the root
    line: int       # of its first line of text
    kind: str       # "python", "" (commands and output), ...
    text: str


def pages():
    """README.md, the pages of docs/ and the READMEs of methods, launch and the embedded data set."""
    single = ("README.md", "CONTRIBUTING.md", "launch/README.md", "mcd_jax/data/emoji/README.md")
    return [path for name in single if (path := ROOT / name).exists()] + [
        *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "mcd_jax" / "methods").glob("*/README.md"))]


def blocks(path):
    """The fenced blocks of a page, indented ones too."""
    result, kind, lines, start, indent = [], None, [], 0, 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = re.match(r"( *)```(\w*)\s*$", line)
        if fence and kind is None:
            kind, lines, start, indent = fence[2], [], number + 1, len(fence[1])
        elif fence:
            result.append(Block(str(path.relative_to(ROOT)), start, kind, "\n".join(lines)))
            kind = None
        elif kind is not None:
            lines.append(line[indent:])
    return result
