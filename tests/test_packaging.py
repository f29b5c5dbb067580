"""`pip install .` gives everything: the wheel is built, looked into, installed, and used from another folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

import clearclip

ROOT = Path(__file__).parents[1]
SOURCES = [
    "clearclip", "configs", "datasets/sanity", "requirements", "pyproject.toml", "setup.py", "README.md", "LICENSE",
]  # fmt: skip
SANITY = "datasets/sanity"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
CAPTURE = {"capture_output": True, "text": True, "timeout": 280}
# Python imports it before anything else. `None` is its own way to say that a module is not there.
WITHOUT_EVAL = """
import sys
sys.modules |= dict.fromkeys(["matplotlib", "mmcv", "mmengine", "mmseg", "openpyxl", "pandas", "scipy"])
"""
pytestmark = pytest.mark.slow


def check(done):
    """The output of a program that must succeed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built of a copy, so that the working tree stays as it is."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    (source / "configs/mine/deeper").mkdir(parents=True)  # a protocol added tomorrow
    (source / "configs/mine/deeper/cfg_voc20.py").write_text('_base_ = "../../cfg_voc20.py"\n')
    (source / "configs/mine/cls_voc20.txt").write_text("aeroplane\n")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", output, source]
    check(subprocess.run(build, **CAPTURE))
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def files(wheel):
    """The content of each file in the wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Variables for a Python that sees the installed wheel, not this folder, and nothing of the extra [eval]."""
    target, hook = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("hook")
    check(subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel], **CAPTURE))
    (hook / "sitecustomize.py").write_text(WITHOUT_EVAL)
    return {
        "PYTHONPATH": os.pathsep.join([str(target), str(hook)]),
        "PATH": os.pathsep.join([str(target / "bin"), os.environ["PATH"]]),
    }


def tree(folder, *patterns):
    """Files below a folder that fit one of the patterns, caches left out, by their path in it."""
    found = (path for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {path.relative_to(ROOT / folder).as_posix(): path for path in found if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("folder", "inside", "patterns", "least"),
    [
        ("clearclip", "clearclip", ["*.py", "py.typed"], 35),
        ("configs", "clearclip/configs", ["*.py", "*.txt", "*.md"], 64),
        (SANITY, f"clearclip/{SANITY}", ["*.jpg", "*.png", "*.txt", "*.md"], 22),
        ("clearclip/offline/assets", "clearclip/offline/assets", ["*"], 2),
    ],
)
def test_the_wheel_holds_every_file(files, folder, inside, patterns, least):
    wanted = tree(folder, *patterns)
    assert len(wanted) >= least
    for name, path in wanted.items():
        assert files[f"{inside}/{name}"] == path.read_bytes()


def test_a_new_folder_of_configs_needs_no_list(files):
    assert {"clearclip/configs/mine/deeper/cfg_voc20.py", "clearclip/configs/mine/cls_voc20.txt"} <= files.keys()


def test_the_wheel_holds_nothing_else(files, wheel):
    tops = {name.partition("/")[0] for name in files}
    assert tops == {"clearclip", f"clearclip-{clearclip.__version__}.dist-info"}
    assert not [name for name in files if name.endswith(".pyc")]
    assert wheel.stat().st_size < 10 << 20


def test_metadata(files):
    folder = f"clearclip-{clearclip.__version__}.dist-info"
    metadata = BytesParser().parsebytes(files[f"{folder}/METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "the ClearCLIP contributors"
    assert f"{folder}/licenses/LICENSE" in files
    assert {"eval", "app", "diffusion", "export"} <= set(metadata.get_all("Provides-Extra"))
    needed = {re.match(r"[\w.-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "open_clip_torch"} <= needed
    assert not needed & {"mmsegmentation", "mmengine", "mmcv-lite", "matplotlib", "pandas", "openpyxl", "gradio"}
    evaluation = [line for line in metadata.get_all("Requires-Dist") if line.endswith('extra == "eval"')]
    assert any(line.startswith("mmsegmentation==1.2.2") for line in evaluation)
    entry_points = files[f"{folder}/entry_points.txt"].decode()
    assert entry_points.split() == ["[console_scripts]", "clearclip", "=", "clearclip.cli.main:main"]


def test_a_segmenter_from_another_folder(installed, run_program, tiny_folder):
    """Without MMSegmentation: a config by its name, and a photograph of the package."""
    program = (
        "import sys, clearclip\n"
        "from pathlib import Path\n"
        "package = Path(clearclip.__file__).parent\n"
        "segmenter = clearclip.load_segmenter('voc20', backbone=sys.argv[1], templates='single', short_side=64)\n"
        "result = segmenter(package / 'datasets/sanity/images/cat.jpg', ['cat', 'sofa'])\n"
        "print(package.parent, *result.names, *result.labels.shape)\n"
    )
    output = check(run_program(sys.executable, "-c", program, f"local-dir:{tiny_folder}", **installed))
    target = installed["PYTHONPATH"].partition(os.pathsep)[0]
    assert output.split() == [target, "cat", "sofa", "300", "451"]


def test_the_command_from_another_folder(installed, run_program, tiny_folder, tmp_path):
    """`clearclip segment`, as its user types it."""
    shutil.copy(ROOT / SANITY / "images/cat.jpg", tmp_path / "photo.jpg")
    program = shutil.which("clearclip", path=installed["PATH"])
    assert "segment" in check(run_program(program, "--help", **installed))
    arguments = ["photo.jpg", "--names", "cat", "sofa", "--backbone", f"local-dir:{tiny_folder}"]
    check(run_program(program, "segment", *arguments, **installed))
    made = [path for path in tmp_path.rglob("*.png") if path.stat().st_size]
    assert made


def test_evaluating_without_the_extra_says_what_to_install(installed, run_program):
    done = run_program(shutil.which("clearclip", path=installed["PATH"]), "eval", "sanity", **installed)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "pip install 'clearclip[eval]'" in done.stderr
    assert done.stderr.count("\n") == 1
