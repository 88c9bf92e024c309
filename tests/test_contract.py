"""What holds the design together: who may import what, who may name a method, and how long a file may be."""
import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mcd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
METHODS = sorted(p.stem for p in (PACKAGE / "methods").iterdir() if p.stem != "__init__" and not p.stem.startswith("__"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
LOSSES_SEE = ("mcd_jax.losses", "mcd_jax.sharding.mesh", "mcd_jax.sharding.ring")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """Modules that a file imports anywhere, and those that it imports when it is itself imported."""
    def names(node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module or "" for name in inside]
    nodes = [node for node in ast.walk(TREES[path]) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {n for node in nodes for n in names(node)}, {n for node in nodes if node in TREES[path].body for n in names(node)}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stay_in_their_layer(path):
    everywhere, at_top = imports(path)
    roots, part = {name.split(".")[0] for name in everywhere}, part_of(path)
    assert part in ("models", "methods") or "flax" not in roots, "only models import flax"
    assert part != "data" or "jax" not in roots, "data/ does not import jax"
    assert not {name.split(".")[0] for name in at_top} & {"torch", "tensorflow", "transformers", "open_clip", "wandb"}
    if part == "losses":
        assert not {n for n in everywhere if n.startswith("mcd_jax.") and not n.startswith(LOSSES_SEE)}
    if part != "methods":
        assert not {n for n in everywhere if n.startswith("mcd_jax.methods")}, "the core imports no method"


def test_no_folder_of_a_method_needs_another_one():
    """Files of methods/ need no folder, and may be built on one another."""
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")}
    for path in FILES:
        own = path.relative_to(PACKAGE).parts
        if own[0] == "methods":
            needed = {n.split(".")[2] for n in imports(path)[0] if n.startswith("mcd_jax.methods.")}
            assert needed <= (files if len(own) == 2 else {own[1], "clip"}), f"{path}: {needed}"


def test_no_import_circle():
    """In Python's own order: a package comes before its modules only where its __init__ imports them."""
    graph = {name: {n for n in imports(path)[1] if n in MODULES and n != name} for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())   # raises CycleError, which names the circle


NEUTRAL = [path for path in FILES if part_of(path) in ("train.py", "step.py", "job.py", "data", "evals", "search", "run", "optim",
                                                       "sharding", "objectives")]


@pytest.mark.parametrize("path", NEUTRAL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_method_is_named_outside_its_objective(path):
    """As a name or in a string of the code; "clip" is also a verb, a tokenizer and a numpy function."""
    tree = TREES[path]
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body and isinstance(node.body[0], ast.Expr)}
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
              and id(node) not in docs}
    assert not words & {m for m in METHODS if m not in ("clip", "gap")}   # "gap" is also the pooling
    assert "config.method" not in path.read_text() and not re.search(r"objective\.name\s*==", path.read_text())


def test_files_stay_short_and_nothing_is_called_utils():
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    assert not {name: n for name, n in sizes.items() if n > 400}
    assert not [name for name in sizes if name.endswith("utils.py")]


def test_the_embedded_data_fits():
    total = sum(p.stat().st_size for p in (PACKAGE / "data" / "emoji").rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert total <= 15 * 2 ** 20


CORE_TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py"))
              if path.relative_to(ROOT / "tests").parts[0] not in ("methods", "peers")]
FOLDERS = {path.name for path in (PACKAGE / "methods").iterdir() if path.is_dir()}
OF_FOLDERS = {path.stem for folder in FOLDERS for path in (PACKAGE / "methods" / folder).glob("*.py")}


def imported(tree):
    """Dotted names of what a file imports: modules, and what it takes from them."""
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def configs_of_folders():
    """The configs whose objective stands in a folder of methods/, and those that import one of them."""
    trees = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "configs").rglob("*.py")}

    def objectives(tree):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "objective"]
        return {leaf.value for call in calls for leaf in ast.walk(call.args[0]) if isinstance(leaf, ast.Constant)}
    needing = {name for name, tree in trees.items() if objectives(tree) & OF_FOLDERS}
    while more := {name for name, tree in trees.items() if {n.rpartition(".")[2] for n in imported(tree)} & needing} - needing:
        needing |= more
    return needing


def test_the_cores_tests_need_no_folder_of_methods():
    """Neither a module of one, nor its tests, nor a config of its method: who deletes a folder has green tests of the core."""
    needing = configs_of_folders()
    assert "mcd_emoji" in needing or "mcd" not in FOLDERS
    for path in CORE_TESTS:
        for name in imported(ast.parse(path.read_text())):
            parts = name.split(".")
            assert not (name.startswith("mcd_jax.methods.") and parts[2] in FOLDERS), f"{path} imports {name}"
            assert not name.startswith("tests.methods"), f"{path} imports {name}"
            assert not ("configs" in parts and parts[-1] in needing), f"{path} imports {name}"
