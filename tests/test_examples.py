"""The notebooks in examples/ run from their first cell to their last, with a tiny network."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def code_cells(path):
    """The source of each code cell, and whether it is the one with parameters."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", ()))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def run_cell(source, names):
    """Execute a cell as a notebook does; the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path, tiny_folder, capsys):
    names = {}
    for source, parameters in code_cells(path):
        value = run_cell(source, names)
        if parameters:
            names |= {"BACKBONE": f"local-dir:{tiny_folder}", "SHORT_SIDE": 64}
        if hasattr(value, "savefig"):
            value.canvas.draw()  # as a notebook would to show it
    assert "layer  6" in capsys.readouterr().out
    assert names["found"].labels
