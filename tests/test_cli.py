"""`clearclip COMMAND`: what is common to the commands. What each does is tested by its program's name."""

import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clearclip
from clearclip.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
PROGRAMS = {"demo.py": "segment", "eval.py": "eval", "eval_all.py": "table"}
SHARED = ("--protocol", "--limit", "--device", "--precision", "--import", "--text-embeddings", "--results")


@pytest.fixture
def help_of(capsys):
    def help_of(command):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        return capsys.readouterr().out

    return help_of


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_commands_are_listed(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clearclip", *arguments])
    main()
    out = capsys.readouterr().out
    for command, summary in COMMANDS.items():
        assert f"  {command} " in out
        assert summary in out


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"{clearclip.__version__}\n"


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["segmnet"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: no command 'segmnet'; use one of segment, ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, help_of):
    assert help_of(command).startswith(f"usage: clearclip {command} ")


def test_evaluations_spell_their_options_alike(help_of):
    for command in ("eval", "table"):
        text = help_of(command)
        for option in (*SHARED, "--methods", "--datasets", "--backbones"):
            assert option in text


@pytest.mark.parametrize(("program", "command"), PROGRAMS.items())
def test_programs_are_the_commands(program, command):
    module = runpy.run_path(str(ROOT / program))
    assert module["main"].__module__ == f"clearclip.cli.{command}"


@pytest.mark.parametrize("command", [["-m", "clearclip", name] for name in COMMANDS] + [[name] for name in PROGRAMS])
def test_help_is_there_at_once(command):
    """Less than a second, for nothing heavy is imported."""
    heavy = ("torch", "numpy", "mmengine", "mmseg", "mmcv", "open_clip", "cv2", "PIL")
    start = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({heavy}));"  # importing one raises
        f"sys.argv = {command[-1:] if len(command) == 1 else command[1:]!r} + ['--help'];"
    )
    how = "run_path" if len(command) == 1 else "run_module"
    code = f"{start} runpy.{how}({command[min(1, len(command) - 1)]!r}, run_name='__main__')"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert time.perf_counter() - begin < 5  # of a busy machine
