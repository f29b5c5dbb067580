"""All documents: links lead somewhere, commands are what programs read, Python compiles, what can be run is run."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import picture
from PIL import Image

from clearclip.cli.main import COMMANDS as PROGRAMS
from clearclip.cli.main import main
from clearclip.config import find_config
from clearclip.spec import Spec

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "configs/*.md", "datasets/*.md", "datasets/sanity/*.md", "clearclip/**/*.md")
    for path in ROOT.glob(pattern)
)
TEXTS = {str(path): (ROOT / path).read_text(encoding="utf-8") for path in DOCUMENTS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = ("", "sh", "bash")
CHECKOUT = {"demo.py": "segment", "eval.py": "eval", "eval_all.py": "table"}
NOT_OURS = {
    "#", "#SBATCH", "apptainer", "cd", "cp", "export", "mkdir", "pip", "set", "srun", "tar", "torchrun", "unzip", "uv",
    "wget",
}  # fmt: skip
OWN_CONFIGS = {"cfg_mine.py"}  # that a page tells its reader to write
# Which test runs each program, on tiny networks and made-up data.
RUN_BY = {
    "segment": "test_documents.py",
    "app": "test_app.py",
    "analyze": "test_analysis.py",
    "features": "test_features.py",
    "eval": "test_cli.py",
    "export": "test_onnx.py",
    "table": "test_eval_all.py",
    "calibrate": "test_calibration.py",
    "merge": "test_merge.py",
    "names": "test_doctor.py",
    "workbook": "test_merge.py",
    "report": "test_report.py",
    "prefetch": "test_merge.py",
}


def prose(text):
    """A document without its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text):
    """What `#…` may name: headings, spelled as the site and most viewers of Markdown spell them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode() for heading in headings)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


def links():
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            if not re.match(r"\w+:", target):
                yield pytest.param(name, target, id=f"{name}->{target}")


@pytest.mark.parametrize(("name", "target"), list(links()))
def test_links_lead_somewhere(name, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / name).parent / path if path else ROOT / name
    assert file.exists()
    assert not anchor or anchor in anchors(file.read_text(encoding="utf-8"))


def test_the_readme_is_for_five_minutes():
    assert len(TEXTS["README.md"].split()) <= 900


def test_every_page_is_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"[\w-]+\.md", nav))


# commands


def lines():
    """(document, command) of each line of shell, and of each span of code that begins as a program of ours does."""
    start = re.compile(r"(clearclip|python|make|bash dist_test\.sh) \S+ \S")
    for name, text in TEXTS.items():
        for language, block in FENCE.findall(text):
            if language in SHELL and is_shell(block):
                for line in block.replace("\\\n", " ").splitlines():
                    yield from ((name, part.strip()) for part in line.split("&&") if part.strip())
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
            if start.match(span) and "…" not in span and "..." not in span:
                yield name, " ".join(span.split())


def is_shell(block):
    """Whether a block without a language is commands, not what they print, a tree or a recipe."""
    first = block.split()[0]
    return first in NOT_OURS | {"clearclip", "python", "make", "bash", "#!/bin/bash"}


def ours():
    for name, line in dict.fromkeys(lines()):
        words = shlex.split(re.sub(r"^(\w+=\S* )+", "", line), comments=True)
        if words and words[0] == "srun" and "clearclip" in words:
            words = words[words.index("clearclip") :]
        if words and words[0] not in NOT_OURS and "=" not in words[0] and "--help" not in words:
            yield pytest.param(words, id=f"{name}: {' '.join(words)}")


class Parsed(BaseException):
    """A program has read its arguments."""


def load(path):
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path, arguments, monkeypatch):
    """Have a script read its arguments, and stop it there."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        parse(parser, argv, namespace)
        raise Parsed

    monkeypatch.syspath_prepend(path.parent)  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    module = load(path)
    if path.parent.name == "examples":
        assert len(arguments) == module.main.__code__.co_argcount
        return
    if "argparse" not in path.read_text(encoding="utf-8") and path.parent.name == "tools":
        assert not arguments  # it takes none
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.parametrize("words", list(ours()))
def test_commands_are_what_the_programs_read(words, monkeypatch):
    program, first, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
        return
    if program == "bash":
        assert first == "dist_test.sh"
        config, processes, *rest = rest
        assert processes.isdecimal()
        name, rest = "eval", [config, *rest]
    elif program == "python" and first in CHECKOUT:
        name = CHECKOUT[first]
    elif program == "python":
        read(ROOT / first, rest, monkeypatch)
        return
    else:
        assert program == "clearclip"
        name = first
    assert name in PROGRAMS
    parsed = vars(importlib.import_module(f"clearclip.cli.{name}").parse_arguments(rest))
    configs = parsed.get("datasets") or parsed.get("configs") or [parsed.get("config") or parsed.get("dataset")]
    for config in filter(None, configs):
        if config not in OWN_CONFIGS and isinstance(config, str):
            find_config(config, parsed.get("protocol") or "clearclip")
    methods = parsed.get("methods") or [parsed.get("method")]
    for method in filter(None, [*methods, *(parsed.get("compare") or ())]):
        if method != "METHOD":
            Spec.parse(method)


def test_there_are_commands_of_all_programs():
    found = {words.values[0][1] for words in ours() if words.values[0][0] == "clearclip"}
    assert found >= PROGRAMS.keys()


def test_every_program_is_run():
    assert RUN_BY.keys() == PROGRAMS.keys()
    for name, test in RUN_BY.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert re.search(rf'"{name}"[,\]]|cli\.{name} import|cli import .*\b{name}\b', text), f"{test} runs no {name}"


# Python


def python():
    for name, text in TEXTS.items():
        for number, (language, block) in enumerate(FENCE.findall(text)):
            if language == "python":
                yield pytest.param(name, block, id=f"{name}:{number}")


@pytest.mark.parametrize(("name", "block"), list(python()))
def test_python_compiles(name, block):
    compile(block, name, "exec")


def blocks(name, start):
    """The Python of a document that begins with, or has, `start`."""
    found = [block for language, block in FENCE.findall(TEXTS[name]) if language == "python" and start in block]
    assert found
    return "\n".join(found)


def run(name, block, names=None):
    names = {} if names is None else names
    exec(compile(block, name, "exec"), names)
    return names


@pytest.mark.slow
def test_the_readme_runs(desk):
    for words in (words.values[0] for words in ours() if words.id.startswith("README.md: clearclip segment")):
        main(words[1:])
    written = {path.name for path in (desk / "demo_output").iterdir()}
    assert {"photo_labels.png", "a_overlay.png", "clip_overlay.mp4"} <= written
    names = run("README.md", blocks("README.md", "Segmenter"))
    assert names["result"].labels.shape == (48, 64)
    assert (desk / "overlay.png").is_file()


@pytest.mark.slow
def test_the_analysis_runs(desk):
    Image.fromarray(picture(160, 200)).save(desk / "photo.jpg")
    text = blocks("docs/analysis.md", "inspect").replace("[0, 5, 11]", "[0, 2, 5]")  # the tiny network has six blocks
    names = run("docs/analysis.md", text)
    assert names["why"].name in ("cat", "grass, lawn", "grass")
    assert (desk / "photo.safetensors").is_file()


@pytest.mark.slow
def test_the_pictures_run(desk):
    from clearclip import Segmenter

    Image.fromarray(picture(48, 64)).save(desk / "cat.jpg")
    result = Segmenter("ClearCLIP")("cat.jpg", ["cat", "grass"], scores=True)
    run("docs/pictures.md", blocks("docs/pictures.md", "compare("), {"result": result, "one": result, "two": result})
    assert {"overlay.png", "cat_heat.png", "sheet.png"} <= {path.name for path in desk.iterdir()}


def test_the_configs_run():
    assert run("configs/README.md", blocks("configs/README.md", "read_config"))["config"].model.short_side == 336
