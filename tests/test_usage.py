"""Everything that docs/usage.md shows: its commands and its Python, with a tiny model, where its files are."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import picture
from PIL import Image

from clearclip.cli.main import main

TEXT = (Path(__file__).parents[1] / "docs/usage.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines() if line
]
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_backbone):
    """A folder with the files that the page names; all weights are those of the tiny model, templates are one."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("photo.jpg", "photos/a.jpg", "photos/more/b.jpg"):
        Image.fromarray(picture(48, 64)).save(tmp_path / name)
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for seed in range(3):
        writer.write(picture(48, 64, seed))
    writer.release()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clearclip.segmenter.load_backbone", lambda *_: tiny_backbone)
    monkeypatch.setitem(__import__("clearclip.vocabulary").vocabulary.TEMPLATES, "imagenet80", ("a photo of a {}.",))
    return tmp_path


def test_there_are_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, place, capsys):
    program, *arguments = shlex.split(command)
    assert program == "clearclip"
    main(arguments)
    written = {path.name for path in (place / "demo_output").rglob("*") if path.is_file()}
    assert written
    for name in re.findall(r"demo_output/(\S+)", capsys.readouterr().out):
        assert Path(name.strip(",")).name in written


def test_the_python(place):
    names: dict = {}
    exec(compile(PYTHON, "docs/usage.md", "exec"), names)
    assert {"overlay.png", "where.png", "out.mp4"} <= {path.name for path in place.iterdir()}
    assert {"photo_labels.png", "photo.json", "a_labels.png"} <= {path.name for path in (place / "results").iterdir()}
    assert isinstance(names["result"].labels, np.ndarray)
