"""What `import clearclip` promises, and what it does not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clearclip

PACKAGE = Path(clearclip.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ORDER = [  # each module imports only those before it, or of its own line
    ("errors",), ("paths", "tensors", "registry"), ("state",), ("offline",), ("images",), ("weights",),
    ("trunk", "backbones"), ("vision",), ("vocabulary",), ("text",), ("attention",), ("windows",), ("view",),
    ("kernels", "decode"), ("refine",), ("methods",), ("spec",), ("segmenter",), ("config",), ("visualize",),
    ("evaluation",), ("cli",),
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_evaluation_imports_mmseg(path):
    folder, names = path.relative_to(PACKAGE).parts[0], imported(path.read_text())
    if folder != "evaluation":
        assert not {name.partition(".")[0] for name in names} & {"mmseg", "mmcv"}
    if folder not in ("evaluation", "cli"):
        assert not any(name.startswith("clearclip.evaluation") for name in names)


PLACE = {module: place for place, modules in enumerate(ORDER) for module in modules}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    module = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if module == "__init__":
        return  # it imports what is asked for
    ours = {name.split(".")[1] for name in imported(path.read_text()) if name.startswith("clearclip.")}
    assert module in PLACE
    assert not {name for name in ours if PLACE.get(name, -1) > PLACE[module]}
