"""docs/cluster.md: its scripts are sound, and every command in it has the options that it gives."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from clearclip.cli import eval, merge, prefetch, table, workbook
from clearclip.config import find_config
from clearclip.evaluation.shards import Share
from clearclip.spec import Spec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
RECIPE = re.search(r"```\n(Bootstrap:.*?)```", TEXT, re.DOTALL)[1]
PARSERS = {command.__name__.rpartition(".")[2]: command for command in (eval, merge, prefetch, table, workbook)}
BASH = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def commands(start):
    """Arguments of each command in the scripts, and in the text, that begins so, variables left as they are."""
    lines = "\n".join([*SCRIPTS, *re.findall(r"`([^`\n]+)`", TEXT)]).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(start)[2], comments=True) for line in lines if start in line]


@BASH
@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_every_script(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_its_options():
    found = [arguments for start in ("clearclip ", "clearclip.sif ") for arguments in commands(start)]
    found = [arguments for arguments in found if arguments and arguments[0] in PARSERS and len(arguments) > 1]
    assert {arguments[0] for arguments in found} == PARSERS.keys()
    for name, *arguments in found:
        parsed = vars(PARSERS[name].parse_arguments(arguments))
        for config in parsed.get("datasets") or parsed.get("configs") or filter(None, [parsed.get("config")]):
            find_config(config)
        for method in parsed.get("methods") or filter(None, [parsed.get("method")]):
            Spec.parse(method)


def test_torchrun_and_the_programs_that_launchers_start():
    from torch.distributed.run import parse_args

    (arguments,) = commands("torchrun ")
    parsed = parse_args([{"$SLURM_NODEID": "0"}.get(argument, argument) for argument in arguments])
    assert (parsed.nnodes, parsed.nproc_per_node) == ("2", "4")
    assert (ROOT / parsed.training_script).is_file()
    assert eval.parse_arguments(parsed.training_script_args).launcher == "pytorch"
    (arguments,) = commands("bash dist_test.sh ")
    config, processes, *rest = arguments
    assert processes.isdecimal()
    assert eval.parse_arguments([config, *rest]).method == "ClearCLIP"


@BASH
def test_the_array_gives_each_job_its_share(tmp_path):
    """The script is run as Slurm would, four times, with a `clearclip` that writes down what it is given."""
    (script,) = (script for script in SCRIPTS if "#SBATCH" in script)
    program = tmp_path / "bin" / "clearclip"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    shares = []
    for index in range(1, 5):
        slurm = dict(SLURM_ARRAY_TASK_ID=str(index), SLURM_ARRAY_TASK_COUNT="4", SLURM_CPUS_PER_TASK="4")
        variables = os.environ | slurm | {
            "SLURM_SUBMIT_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}",
        }  # fmt: skip
        done = subprocess.run(["bash"], input=script, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        name, *arguments = done.stdout.splitlines()
        assert name == "table"
        shares.append(Share.parse(table.parse_arguments(arguments).shard))
    assert shares == [Share(index, 4) for index in range(4)]


@BASH
def test_the_recipe_installs_what_is_here():
    parts = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", RECIPE, re.DOTALL | re.MULTILINE))
    for part in ("post", "runscript"):
        assert subprocess.run(["bash", "-n"], input=parts[part], text=True).returncode == 0
    for path in re.findall(r"/opt/clearclip/(\S+)", parts["post"]):
        assert (ROOT / path).is_file()
