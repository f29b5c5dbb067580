"""What `import clearclip` promises, and what it does not pull in."""

import subprocess
import sys
from pathlib import Path

import pytest

import clearclip

PACKAGE = Path(clearclip.__file__).parent


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
