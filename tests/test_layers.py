"""Which module may import which, what each may import from others, and what `import clearclip` leaves alone."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clearclip"
ORDER = [  # each module or folder imports only those before it
    "_namesake", "errors", "paths", "tensors", "kernels", "fused", "registry", "state", "offline", "images", "weights",
    "products", "trunk", "backbones", "vision", "vocabulary", "other", "text", "attention", "windows", "view", "masks",
    "decode", "calibration", "refine", "methods", "spec", "features", "visualize", "coco", "segmentation", "settings",
    "embedder", "look", "segmenter", "keeping", "export",
    "video", "config", "analysis", "doctor",
    "app", "evaluation", "cli", "__main__",
]  # fmt: skip
EXCEPTIONS = {
    ("trunk", "backbones"): "the type of an argument, which is imported for type checkers alone",
}
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERED = [path for path in FILES if path != PACKAGE / "__init__.py"]  # that one names what is public, by strings
HEAVY = {"cv2", "matplotlib", "mmcv", "mmengine", "mmseg", "numpy", "open_clip", "timm", "torch", "transformers"}
# What a part of the package may import besides requirements/core.txt; all else is an extra that this part is for.
EXTRAS = {
    "analysis/figures.py": "analysis",
    "cli/analyze.py": "analysis",
    "evaluation": "eval",
    "refine/diffusion.py": "diffusion",
    "app/page.py": "app",
    "cli/app.py": "app",
    "cli/export.py": "export",
}
DISTRIBUTIONS = packages_distributions()  # cv2 to ["opencv-python"]
UNDECLARED = {"triton": "PyTorch brings it where there are GPUs for it"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def layer(path: Path) -> str:
    """`clearclip/refine/pamr.py` to refine, `clearclip/text.py` to text."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules, and names in them, that a file imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name, from clearclip.x import y"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layers_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("clearclip.")} & set(ORDER)


def declared(requirements: str) -> set[str]:
    """The packages that requirements/<name>.txt names, spelt as in metadata."""
    lines = (ROOT / "requirements" / f"{requirements}.txt").read_text().splitlines()
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines if line and line[0] not in "#-"}


def test_every_module_has_its_place():
    assert {layer(path) for path in LAYERED} == set(ORDER)


@pytest.mark.parametrize("path", LAYERED, ids=relative)
def test_imports_point_one_way(path):
    later = layers_of(imported(path)) & set(ORDER[ORDER.index(layer(path)) + 1 :])
    assert not {name for name in later if (layer(path), name) not in EXCEPTIONS}


def test_exceptions_are_still_needed():
    pairs = {(layer(path), name) for path in LAYERED for name in layers_of(imported(path))}
    assert pairs >= EXCEPTIONS.keys()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_is_imported_is_declared(path):
    """`pip install .` is enough for the API: only a part that an extra is for imports what that extra brings."""
    extras = [extra for part, extra in EXTRAS.items() if relative(path).startswith(part)]
    allowed = set().union(*map(declared, ["core", *extras]))
    tops = {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names - UNDECLARED.keys()
    for top in tops - {"clearclip"}:
        owners = {name.lower().replace("_", "-") for name in DISTRIBUTIONS.get(top, [top])}
        assert owners & allowed, f"{top} is in none of the requirements of {relative(path)}"


def test_extras_do_not_repeat_the_core():
    names = [name for file in sorted((ROOT / "requirements").glob("*.txt")) for name in sorted(declared(file.stem))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("statement", ["import clearclip", "import clearclip.errors, clearclip.vocabulary"])
def test_import_is_light(statement):
    assert not loaded_by(statement) & HEAVY


@pytest.mark.slow
def test_segmenting_needs_no_mmseg():
    modules = loaded_by("from clearclip import Segmenter, list_methods, load_segmenter; list_methods()")
    assert "torch" in modules
    assert not modules & {"matplotlib", "mmcv", "mmengine", "mmseg", "openpyxl", "pandas"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in memory after a statement in a fresh interpreter."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}
