"""Bad input, one row a kind: the exit status, the words, no traceback, and that nothing computed is lost.

Kinds of faults that have tests elsewhere:

    weights that run code, damaged or replaced files       test_state
    label maps of 16 bits, fractions, colours, EXIF        test_loading, test_eval, test_folders
    pictures of any depth, FIFOs, too large, damaged       test_images
    names twice, control characters, foreign commas        test_vocabulary
    full disks, links, read-only files, SIGTERM            test_paths, test_workbook
    killed runs, shards, ranks                             test_records, test_passes
    splits that count wrong, suffixes left aside           test_configs
    letters that no font has, labels without names         test_visualize
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import make_benchmark
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from clearclip.cli.eval import main as evaluate
from clearclip.cli.segment import main as segment
from clearclip.config import find_config, read_config
from clearclip.errors import UserError
from clearclip.evaluation.results.record import read_result
from clearclip.evaluation.run import check_classes, default_work_dir, load_config
from clearclip.offline.embedded import SENTENCES, _kept, fetch
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import Vocabulary


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_folder):
    """A folder with a tiny voc20, a picture, its class file and bad files of several kinds; it is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path / "data"))
    make_benchmark(tmp_path / "data", "voc20")
    Image.fromarray(picture(40, 60)).save(tmp_path / "cat.png")
    Image.fromarray(picture(50, 60)).save(tmp_path / "large.png")
    lines = Path(find_config("voc20")).with_name("cls_voc20.txt").read_text().splitlines()
    for name, order in (("same", range(21)), ("swapped", [0, 2, 1, *range(3, 21)]), ("short", range(20))):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines[index] for index in order))
    (tmp_path / "renamed.txt").write_text("\n".join(lines).replace("sofa", "couch"))
    TextEmbeddings(("catt", "sky"), torch.eye(2, 48)).save(tmp_path / "rows.safetensors")
    state = load_file(tiny_folder / "open_clip_model.safetensors")
    state["visual.proj"] = state["visual.proj"] * 0 + 70000
    (tmp_path / "huge").mkdir()
    save_file(state, tmp_path / "huge/open_clip_model.safetensors")
    (tmp_path / "huge/open_clip_config.json").write_text((tiny_folder / "open_clip_config.json").read_text())
    (tmp_path / "ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "syntax.py").write_text("model = dict(\n")
    return tmp_path


ROOT = Path(__file__).parents[1]
TINY = "local-dir:TINY"
SEGMENT = ["cat.png", "--names", "cat", "sky", "--backbone", TINY, "--device", "cpu"]
EVAL = ["voc20", "--backbone", TINY, "--device", "cpu"]
ROWS = {
    "a weight too large for half precision": (
        segment,
        ["cat.png", "--names", "cat", "sky", "--backbone", "local-dir:huge", "--device", "cpu", "--precision", "fp16"],
        "huge/open_clip_model.safetensors: proj has numbers too large for float16",
    ),
    "an option beyond all numbers": (evaluate, [*EVAL, "--method", "ClearCLIP:residual=1e400"], "residual"),
    "a class file in another order": (
        evaluate,
        [*EVAL, "--cfg-options", "model.vocabulary=swapped.txt"],
        "swapped.txt, line 2 (bicycle): the data set voc20 has 'aeroplane' there|which is in line 3",
    ),
    "a class of another name": (
        evaluate,
        [*EVAL, "--cfg-options", "model.vocabulary=renamed.txt"],
        "renamed.txt, line 19 (couch): the data set voc20 has 'sofa'|benchmark.renamed={'sofa': 'couch'}",
    ),
    "a class too few": (evaluate, [*EVAL, "--cfg-options", "model.vocabulary=short.txt"], "has 19 classes"),
    "embeddings without a name": (
        segment,
        [*SEGMENT, "--text-embeddings", "rows.safetensors"],
        "no row for cat (near: catt)",
    ),
    "a picture beyond the limit": (segment, [*SEGMENT, "--max-pixels", "2000"], "has 60 × 40 pixels"),
    "a pipeline without steps": (
        evaluate,
        [*EVAL, "--cfg-options", "test_dataloader.dataset.pipeline=[]"],
        "cfg_voc20.py: test_dataloader.dataset.pipeline has no step",
    ),
    "an unknown metric": (
        evaluate,
        [*EVAL, "--cfg-options", "test_evaluator.iou_metrics=[mDices]"],
        "no metric 'mDices' in iou_metrics",
    ),
    "a NUL in a path": (segment, ["a\0b.png", "--names", "cat", "sky"], "does not exist"),
    "a NUL in a place to write to": (segment, [*SEGMENT, "--output", "a\0b"], "its name holds a NUL"),
    "a place that takes no folder": (segment, [*SEGMENT, "--output", "/proc/x"], "/proc/x"),
    "a line break and an escape in a path": (segment, ["a\n\x1b[2Jb.png", "--names", "cat", "sky"], r"a\n\x1b[2Jb.png"),
    "a config that is no Python": (evaluate, ["syntax.py"], "syntax.py is no benchmark config"),
    "a config that ends Python": (evaluate, ["ends.py"], "ends.py is no benchmark config (3)"),
    "an empty folder": (segment, ["data", "--names", "cat", "sky"], "holds no picture"),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_sentence(row, place, tiny_folder, capsys):
    main, arguments, words = ROWS[row]
    with pytest.raises(SystemExit) as end:
        main([argument.replace("TINY", str(tiny_folder)) for argument in arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2
    for part in words.split("|"):
        assert part in error
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error: ")][1:] == []


def test_a_large_picture_costs_no_other(place, tiny_folder, capsys):
    arguments = [argument.replace("TINY", str(tiny_folder)) for argument in SEGMENT[1:]]
    with pytest.raises(SystemExit):
        segment(["cat.png", "large.png", *arguments, "--max-pixels", "2400", "--output", "out"])
    assert "large.png has 60 × 50 pixels" in capsys.readouterr().err
    assert (place / "out/cat_labels.png").is_file()


def test_a_full_disk_is_one_sentence(place, tiny_folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cat_overlay.png")

    monkeypatch.setattr("clearclip.segmentation.Segmentation.save", fail)
    with pytest.raises(SystemExit) as end:
        segment([argument.replace("TINY", str(tiny_folder)) for argument in SEGMENT])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cat_overlay.png: No space left on device;")
    assert "Traceback" not in error


@pytest.mark.parametrize(("stdout", "code", "words"), [("/dev/full", 2, "No space left on device"), ("pipe", 1, "")])
def test_a_stdout_that_takes_nothing_is_no_traceback(stdout, code, words, run_program):
    program = [sys.executable, "-m", "clearclip", "--help"]
    if stdout == "pipe":  # whose reader is gone
        script = "import os, subprocess, sys; r, w = os.pipe(); os.close(r)\n"
        script += "sys.exit(subprocess.run(sys.argv[1:], stdout=w).returncode)"
        ended = run_program(sys.executable, "-c", script, *program, cwd=ROOT)
    else:
        ended = run_program("sh", "-c", f'"$@" > {stdout}', "sh", *program, cwd=ROOT)
    assert ended.returncode == code
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == bool(words)


def test_memory_that_runs_out_is_no_bad_file(place, tiny_folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 GiB")

    monkeypatch.setattr("clearclip.segmenter.Segmenter.__call__", fail)
    with pytest.raises(SystemExit) as end:
        segment([argument.replace("TINY", str(tiny_folder)) for argument in SEGMENT])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: not enough memory for cat.png: give a smaller --short-side or a smaller copy\n"
    )


def test_names_edited_in_place_are_starred(place, tmp_path):
    run = load_config("voc20", overrides={"model.vocabulary": str(place / "same.txt")})
    assert list(run.altered) == ["vocabulary"]
    config = tmp_path / "cfg_mine.py"
    config.write_text(f'_base_ = "voc20"\nmodel = dict(vocabulary="{place}/same.txt")\n')
    assert load_config(config).altered == {}
    edited = (place / "same.txt").read_text().replace("ship", "ship, boat")
    (place / "same.txt").write_text(edited)
    assert list(load_config(config).altered) == ["names"]


def test_a_data_set_without_names_takes_those_of_the_class_file(place):
    own = {"model.vocabulary": str(place / "same.txt"), "test_dataloader.dataset.type": "BaseSegDataset"}
    run = load_config("voc20", overrides=own)
    assert run.config.test_dataloader.dataset.metainfo["classes"][3] == "ship"


def test_every_shipped_class_file_fits_its_data_set(place):
    for name in ("voc20", "sclip/voc20", "naclip/voc20", "proxyclip/voc20", "cliper/voc20"):
        run = load_config(name)
        check_classes(run)
        assert run.altered == {}


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.precision": "fp32"},
        {"model.precision": "bf16"},
        {"model.text_embeddings": "a/rows.safetensors"},
        {"model.text_embeddings": "b/rows.safetensors"},
        {"model.resize": "device"},
        {"model.pretrained": "a/weights.pt"},
        {"model.pretrained": "b/weights.pt"},
        {"benchmark.name": "../../x"},
    ],
    ids=str,
)
def test_every_setting_has_a_work_dir_of_its_own(overrides):
    folder, other = default_work_dir(load_config("voc20", overrides=overrides)), default_work_dir(load_config("voc20"))
    assert folder != other
    assert len(folder.parts) == 4
    assert ".." not in folder.parts


def test_work_dirs_tell_namesakes_apart():
    folders = {
        default_work_dir(load_config("voc20", overrides={"model.text_embeddings": f"{part}/rows.safetensors"}))
        for part in "ab"
    }
    assert len(folders) == 2


def test_python_without_pip_is_said(tmp_path, monkeypatch):
    ended = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(UserError, match=r"No module named pip: run `.* -m ensurepip`"):
        fetch(SENTENCES, tmp_path)


def test_what_a_killed_fetch_left_is_removed(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / ".ViT-B-16.x1.safetensors").write_bytes(b"half")
    _kept(folder, lambda folder: (folder / "w").write_bytes(b"whole") and None)
    assert sorted(path.name for path in folder.iterdir()) == ["sha256.json", "w"]


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_readers_take_nothing_but_what_they_read(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content)
    for read in (read_result, TextEmbeddings.load):
        with pytest.raises(UserError, match="file"):
            read(path)


@given(content=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["mIoU", "date", "x"]), inner),
))  # fmt: skip
def test_any_json_is_refused_as_a_result(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(path)


@given(content=st.text(alphabet="ab=()[]{}'\"\n\\ 1_.,\0\u2028é", max_size=60))
def test_any_text_as_a_config_is_read_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "config.py"
    path.write_text(content, encoding="utf-8")
    try:
        assert isinstance(read_config(path), dict)
    except UserError as error:
        assert "config.py" in str(error)  # noqa: PT017, most are refused, not all


@given(
    st.lists(st.text(alphabet="abAB -_", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=4, unique=True)
)
def test_rows_are_found_or_named(names):
    known = TextEmbeddings(("a", "ab"), torch.from_numpy(np.eye(2, 4, dtype=np.float32)))
    try:
        rows, query_class = known.select(Vocabulary(tuple((name,) for name in names)))
    except UserError as error:
        assert "no row for" in str(error)  # noqa: PT017
    else:
        assert len(rows) == len(query_class) == len(names)


def test_a_mapping_gives_names_their_rows(tmp_path):
    known, names = TextEmbeddings(("felis", "sky"), torch.eye(2, 4)), Vocabulary.of(["cat", "sky"])
    (tmp_path / "names.json").write_text('{"cat": "felis"}')
    for mapping in ({"cat": "felis"}, tmp_path / "names.json"):
        rows, query_class = known.select(names, mapping)
        assert (rows.tolist(), query_class) == (known.embeddings.tolist(), (0, 1))
    with pytest.raises(UserError, match="one row for the classes 'cat' and 'sky', of which the second can never win"):
        known.select(names, {"cat": "sky"})
    (tmp_path / "names.json").write_text("[1]")
    with pytest.raises(UserError, match="text_names must map names to names of rows"):
        known.select(names, tmp_path / "names.json")
