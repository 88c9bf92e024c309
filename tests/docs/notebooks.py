"""Runs the cells of a notebook from top to bottom, without jupyter."""
import ast
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys


def execute(path, folder, replaced=()):
    """The notebook at `path` (a dict) with the outputs that its cells give here; an error in a cell is raised.

    Args:
      path: of an .ipynb. folder: where its cells run. replaced: [(text in a cell, what stands there in its place)].

    A cell whose lines begin with "!" is for the shell, in which `mcd-jax` is this package; every other cell is Python, and what its
    last expression gives is shown.
    """
    notebook, names, back = json.loads(pathlib.Path(path).read_text()), {"__name__": "__main__"}, pathlib.Path.cwd()
    os.chdir(folder)
    try:
        for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            code = "".join(cell["source"])
            for old, new in replaced:
                code = code.replace(old, new)
            run = shell if code.startswith("!") else python
            cell["outputs"], cell["execution_count"] = run(code, names, number + 1), number + 1
    finally:
        os.chdir(back)
    return notebook


def shell(code, names, number):
    lines = code.replace("\\\n", " ").splitlines()
    command = " && ".join(line.removeprefix("!") for line in lines).replace("mcd-jax ", f"{sys.executable} -m mcd_jax ")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return [stream(done.stdout)]


def python(code, names, number):
    tree, printed, shown = ast.parse(code), io.StringIO(), []
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
    if value is not None:
        shown = [{"output_type": "execute_result", "execution_count": number, "metadata": {},
                  "data": {"text/plain": repr(value).splitlines(keepends=True)}}]
    return [stream(printed.getvalue())] * bool(printed.getvalue()) + shown


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
