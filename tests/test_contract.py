"""What holds the design together: who may import what, who may name a method, and how long a file may be."""
import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mcd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
METHODS = ("clip", "siglip", "slip", "mcd", "gcl", "m2mix", "albef", "answering", "judging", "assigning", "loupe", "limoe",
           "vl_sae", "ahlr", "dchmt", "dsph")


def imports(path):
    """Modules that a file imports anywhere, and those that it imports when it is itself imported."""
    tree = ast.parse(path.read_text())
    names = lambda node: [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    everywhere = {n for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for n in names(node)}
    at_top = {n for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)) for n in names(node)}
    return everywhere, at_top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stay_in_their_layer(path):
    everywhere, at_top = imports(path)
    roots = {name.split(".")[0] for name in everywhere}
    part = path.relative_to(PACKAGE).parts[0]
    assert part == "models" or "flax" not in roots, "only models/ imports flax"
    assert part != "data" or "jax" not in roots, "data/ does not import jax"
    assert not {name.split(".")[0] for name in at_top} & {"torch", "tensorflow", "transformers", "open_clip", "wandb"}
    if part == "losses":
        assert not {n for n in everywhere if n.startswith("mcd_jax.") and not n.startswith(("mcd_jax.losses", "mcd_jax.mesh"))}


NEUTRAL = [PACKAGE / "train.py", PACKAGE / "step.py", PACKAGE / "job.py", *sorted((PACKAGE / "data").rglob("*.py")),
           *sorted((PACKAGE / "evals").glob("*.py"))]


@pytest.mark.parametrize("path", NEUTRAL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_method_is_named_outside_its_objective(path):
    """As a name or in a string of the code; "clip" is also a verb, a tokenizer and a numpy function."""
    tree = ast.parse(path.read_text())
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body and isinstance(node.body[0], ast.Expr)}
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
              and id(node) not in docs}
    other = [m for m in METHODS if m != "clip"]
    assert not [w for w in words if w in other]
    assert "config.method" not in path.read_text() and not re.search(r"objective\.name\s*==", path.read_text())


def test_files_stay_short_and_nothing_is_called_utils():
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    assert not {name: n for name, n in sizes.items() if n > 400}
    assert not [name for name in sizes if name.endswith("utils.py")]


def test_the_embedded_data_fits():
    total = sum(p.stat().st_size for p in (PACKAGE / "data" / "emoji").rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert total <= 15 * 2 ** 20
