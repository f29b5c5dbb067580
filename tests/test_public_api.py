"""What `import clearclip` promises, and what it does not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clearclip

PACKAGE = Path(clearclip.__file__).parent
ORDER = [  # each module imports only those before it
    "errors", "paths", "weights", "backbone", "vocabulary", "text", "attention", "methods", "windows", "decode",
    "segmenter",
]  # fmt: skip


def imported(source: str) -> set[str]:
    """Modules that a file imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in memory after a statement in a fresh interpreter."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_every_public_name_is_there():
    for name in clearclip.__all__:
        assert getattr(clearclip, name) is not None
    assert set(clearclip.__all__) == set(dir(clearclip))
    assert {"Segmenter", "load_segmenter", "list_methods", "list_backbones"} <= set(clearclip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = clearclip.Segmentor


def test_import_is_light():
    heavy = {"torch", "torchvision", "open_clip", "mmseg", "mmengine", "mmcv", "matplotlib", "numpy", "cv2"}
    assert not loaded_by("import clearclip, clearclip.errors, clearclip.vocabulary") & heavy


def test_segmenting_needs_no_mmseg():
    modules = loaded_by("from clearclip import Segmenter, load_segmenter, list_methods; list_methods()")
    assert "torch" in modules
    assert not modules & {"mmseg", "mmengine", "mmcv", "matplotlib", "pandas", "openpyxl"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_evaluation_imports_mmseg(path):
    tops = {name.partition(".")[0] for name in imported(path.read_text())}
    if "evaluation" not in path.relative_to(PACKAGE).parts:
        assert not tops & {"mmseg", "mmcv"}
        assert not any(name.startswith("clearclip.evaluation") for name in imported(path.read_text()))


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    path = PACKAGE / f"{module}.py"
    path = path if path.exists() else PACKAGE / module / "__init__.py"
    ours = {name.split(".")[1] for name in imported(path.read_text()) if name.startswith("clearclip.")}
    assert not ours & set(ORDER[ORDER.index(module) :])
