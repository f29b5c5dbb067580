"""Everything that docs/usage.md shows: its commands and its Python, with a tiny model, where its files are."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from clearclip.cli.main import main

TEXT = (Path(__file__).parents[1] / "docs/usage.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines() if line
]
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))

pytestmark = pytest.mark.slow


def test_there_are_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, desk, capsys):
    program, *arguments = shlex.split(command)
    assert program == "clearclip"
    main(arguments)
    written = {path.name for path in (desk / "demo_output").rglob("*") if path.is_file()}
    assert written
    for name in re.findall(r"demo_output/(\S+)", capsys.readouterr().out):
        assert Path(name.strip(",")).name in written


def test_the_python(desk):
    names: dict = {}
    exec(compile(PYTHON, "docs/usage.md", "exec"), names)
    assert {"overlay.png", "where.png", "out.mp4"} <= {path.name for path in desk.iterdir()}
    assert {"photo_labels.png", "photo.json", "a_labels.png"} <= {path.name for path in (desk / "results").iterdir()}
    assert isinstance(names["result"].labels, np.ndarray)
