"""eval_all.py on tiny data sets."""

import re
import shutil
import sys
from pathlib import Path

import openpyxl
import pytest
from benchmarks import LAYOUTS, SHAPES, make_benchmark, make_benchmarks, run, single_error

from clearclip.cli.field import published
from clearclip.cli.table import config_paths
from clearclip.config import benchmarks, protocols, read_config
from clearclip.errors import UserError
from clearclip.evaluation import evaluate as evaluation
from clearclip.evaluation.results import as_markdown, read_result, table
from clearclip.methods import METHODS
from eval_all import main

ROOT = Path(__file__).parents[1]
FAST = [
    "--cfg-options", "model.device=cpu", "model.templates=single", "test_dataloader.num_workers=0",
    "model.short_side=112",
]  # fmt: skip
UNNUMBERED = {"method", "backbone", "protocol", "source", "avg5", "avg8"}  # columns that hold no published number
pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path, monkeypatch):
    """VOC alone, as $CLEARCLIP_DATA; the current folder is empty."""
    folder = tmp_path / "data"
    make_benchmark(folder, "voc20")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CLEARCLIP_DATA", str(folder))
    return folder


def results(folder="."):
    return [read_result(path) for path in sorted(Path(folder).glob("work_dirs/**/result.json"))]


def test_all_benchmarks_through_the_command_line(tiny_folder, tmp_path, tmp_path_factory):
    command = [sys.executable, ROOT / "eval_all.py", "--backbones", f"local-dir:{tiny_folder}", "--methods", "NACLIP"]
    command += ["--markdown", "tables/all.md", "--cfg-options", "model.templates=single"]
    done = run(*command, cwd=tmp_path, data=make_benchmarks(tmp_path_factory.mktemp("data")))
    assert done.returncode == 0, done.stderr
    records = results(tmp_path)
    assert {record["dataset"]: record["images"] for record in records} == dict.fromkeys(LAYOUTS, len(SHAPES))
    (row,) = table(records)
    for name in LAYOUTS:
        assert re.search(rf"{row[name]:.2f} ± \d\.\d\d \(3 img\)", done.stdout)
    assert (tmp_path / "tables" / "all.md").read_text() == as_markdown([row]) + "\n"
    runs = openpyxl.load_workbook(tmp_path / "results.xlsx")["runs"]
    assert runs.max_row == 1 + len(LAYOUTS)
    planned, *others = done.stderr.splitlines()
    assert planned == "2 passes"  # Cityscapes has windows of its own
    for line in others:
        assert re.match(r"  \d\. |test: \d/6 images|\w+, NACLIP: mIoU \d", line)


def test_each_backbone_is_loaded_once(tiny_folder, data, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    loaded = []
    load = evaluation.load_backbone
    monkeypatch.setattr(evaluation, "load_backbone", lambda name, **rest: loaded.append(name) or load(name, **rest))
    names = [f"local-dir:{tiny_folder}", f"local-dir:{other}"]
    main(["--backbones", *names, "--methods", "CLIP", "ClearCLIP", "--datasets", "voc20", "voc21", *FAST])
    assert loaded == names
    assert len(results()) == 8
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("CLIP", "ClearCLIP"))]
    assert sorted(row[:2] for row in rows) == sorted(
        [method, folder.name] for method in ("CLIP", "ClearCLIP") for folder in (tiny_folder, other)
    )


def test_missing_data_sets_are_reported_and_the_rest_done(tiny_folder, data, capsys):
    main(["--backbones", f"local-dir:{tiny_folder}", "--methods", "CLIP", *FAST])
    assert sorted(record["dataset"] for record in results()) == ["voc20", "voc21"]
    missing = [line for line in capsys.readouterr().err.splitlines() if line.startswith("missing: data set ")]
    assert {line.split()[3] for line in missing} == set(LAYOUTS) - {"voc20", "voc21"}


def test_no_data_set_at_all(data, capsys):
    shutil.rmtree(data)
    with pytest.raises(SystemExit) as exit:
        main(["--datasets", "voc20"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        f"missing: data set voc20 not found: no file {data}/VOCdevkit/VOC2012; see datasets/README.md or set "
        "CLEARCLIP_DATA\n"
    )


def test_failed_runs_do_not_stop_the_rest(tiny_folder, data, capsys):
    backbones = ["RN50", f"local-dir:{tiny_folder}"]
    with pytest.raises(SystemExit) as exit:
        main(["--backbones", *backbones, "--methods", "CLIP:attention=zz", "CLIP", "--datasets", "voc20", *FAST])
    assert exit.value.code == 2
    (record,) = results()
    assert record["method"] == "CLIP"
    out, err = capsys.readouterr()
    assert f"{record['mIoU']:.2f} ± {record['interval']:.2f} (3 img)" in out
    lines = err.splitlines()
    assert len([line for line in lines if "CLIP, RN50: backbone RN50 is not supported" in line]) == 1
    assert len([line for line in lines if line.startswith("error: ") and "unknown attention 'zz'" in line]) == 1
    assert lines[-3:] == [
        "failed: voc20: CLIP:attention=zz, RN50",
        "failed: voc20: CLIP, RN50",
        f"failed: voc20: CLIP:attention=zz, local-dir:{tiny_folder}",
    ]


def test_any_exception_and_a_damaged_file_cost_one_run(tiny_folder, data, monkeypatch, capsys):
    make_benchmark(data, "ade20k")
    image = LAYOUTS["ade20k"].files(data)[1][0]
    image.write_bytes(b"no picture")
    create = METHODS.create

    def out_of_memory(choice, *arguments):
        method = create(choice, *arguments)
        if method.attention.gaussian:  # NACLIP
            method.features = lambda trunk: (_ for _ in ()).throw(RuntimeError("out of memory\nby 1 GiB"))
        return method

    monkeypatch.setattr(METHODS, "create", out_of_memory)
    with pytest.raises(SystemExit) as exit:
        main([
            "--backbones", f"local-dir:{tiny_folder}", "--methods", "NACLIP", "CLIP",
            "--datasets", "ade20k", "voc20", *FAST,
        ])  # fmt: skip
    assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.endswith(": RuntimeError: out of memory by 1 GiB")]) == 1
    assert [line for line in lines if line.startswith("error: ") and str(image) in line]
    assert len([line for line in lines if line.startswith("failed: ")]) == 3
    assert [(record["dataset"], record["method"]) for record in results()] == [("voc20", "CLIP")]
    assert openpyxl.load_workbook("results.xlsx")["runs"].max_row == 2


def test_a_named_data_set_that_is_missing_fails_at_the_end(tiny_folder, data):
    with pytest.raises(SystemExit) as exit:
        main(["--backbones", f"local-dir:{tiny_folder}", "--methods", "CLIP", "--datasets", "voc20", "ade20k", *FAST])
    assert exit.value.code == 2
    assert [record["dataset"] for record in results()] == ["voc20"]


def test_work_dirs_that_cannot_be_written_is_found_before_any_run(data, capsys):
    Path("work_dirs").write_text("a file")
    with pytest.raises(SystemExit) as exit:
        main(["--methods", "CLIP"])
    assert exit.value.code == 2
    assert "work_dirs is no folder to write to" in single_error(capsys.readouterr().err)


def test_protocols_paths_and_text_embeddings(tiny_folder, data, tiny_backbone):
    from clearclip.text import embed_names
    from clearclip.vocabulary import load_vocabulary

    for name in ("voc20", "voc21"):
        queries = load_vocabulary(ROOT / "configs" / "sclip" / f"cls_{name}.txt").queries
        embed_names(tiny_backbone, queries, "single").save(f"{name}.single.safetensors")
    own = Path("cfg_own.py")
    own.write_text(f'_base_ = "{ROOT}/configs/sclip/cfg_voc21.py"\nmodel = dict(crop=0)\n')
    main([
        "--backbones", f"local-dir:{tiny_folder}", "--methods", "SCLIP", "--protocol", "sclip",
        "--datasets", "voc20", str(own), "--text-embeddings", "{dataset}.single.safetensors", *FAST,
    ])  # fmt: skip
    voc20, voc21 = results()
    assert [voc20["protocol"], voc21["protocol"]] == ["sclip", "sclip"]
    assert [voc20["text"], voc21["text"]] == ["voc20.single.safetensors", "voc21.single.safetensors"]
    assert [voc20["settings"]["crop"], voc21["settings"]["crop"]] == [224, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "voc22"], "no config 'voc22': protocol clearclip has ade20k,"),
        (["--datasets", "voc22", "--protocol", "all"], "no config 'voc22': protocol clearclip has ade20k,"),
        (["--protocol", "clip"], "unknown protocol 'clip'; use one of clearclip, cliper,"),
        (["--import", "not_a_module"], "module not_a_module cannot be imported"),
        (["--methods", "CLIP", "CLAP"], "unknown method 'CLAP'"),
        (["--methods", "CLIP", "ClearCLIP:foo=1"], "no option foo"),
        (["--results", "results.csv"], "let it end in .xlsx"),
        (["--markdown", f"{__file__}/table.md"], "test_eval_all.py is no folder to write to"),
        (["--cfg-options", "model.crop"], "must be KEY=VALUE"),
        (["--cfg-options", "model.corp=3"], "no setting model.corp"),
    ],
)
def test_mistakes_are_found_before_any_run(arguments, message, data, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in single_error(capsys.readouterr().err)
    assert not results()


def test_a_protocol_of_fewer_data_sets_runs_on_its_own(tiny_folder, data, capsys):
    main([
        "--backbones", f"local-dir:{tiny_folder}", "--method", "CLIP", "--protocol", "radseg", "--limit", "1", *FAST,
    ])  # fmt: skip
    assert {record["protocol"] for record in results()} == {"radseg"}
    assert "voc20" in {record["dataset"] for record in results()}
    assert "voc21" not in capsys.readouterr().err


def test_all_protocols_of_a_data_set(tiny_folder, data, capsys):
    main([
        "--backbones", f"local-dir:{tiny_folder}", "--method", "CLIP", "--protocol", "all", "--datasets", "voc20",
        "--limit", "1", *FAST,
    ])  # fmt: skip
    having = [name for name in protocols() if "voc20" in benchmarks(name)]
    assert [record["protocol"] for record in results()] == having
    assert {record["images"] for record in results()} == {1}
    assert capsys.readouterr().out.count("(1 img)") == len(having)


@pytest.mark.parametrize(
    ("datasets", "protocol", "expected"),
    [
        (["voc20", "cfg_voc21.py"], "clearclip", ["cfg_voc20.py", "cfg_voc21.py"]),
        (["voc20", "sclip/voc21"], "naclip", None),
        (["naclip/voc20", "voc21"], "clearclip", ["naclip/cfg_voc20.py", "cfg_voc21.py"]),
        (["context459"], "all", ["cfg_context459.py"]),
    ],
)
def test_names_of_data_sets(datasets, protocol, expected):
    if expected is None:
        with pytest.raises(UserError, match="no config 'sclip/voc21': protocol naclip has"):
            config_paths(datasets, protocol)
    else:
        assert config_paths(datasets, protocol) == [ROOT / "configs" / name for name in expected]


def test_what_is_published_is_printed_without_running_anything(tmp_path, run_program):
    done = run_program(
        sys.executable, "-X", "importtime", ROOT / "eval_all.py", "--published", "--markdown", "field.md"
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "clearclip.config" in loaded
    assert not loaded & {"torch", "mmseg", "cv2", "open_clip"}
    assert "ViT-B-16" in done.stdout
    markdown = (tmp_path / "field.md").read_text()
    assert "ClearCLIP paper (ECCV 2024)" in markdown
    assert "protocol clearclip" in markdown


def test_every_published_number_is_in_the_table_with_its_source():
    table, sources = published()
    shown = [cell for row in table for name, cell in row.items() if name not in UNNUMBERED and cell]
    benchmark = [read_config(path).benchmark for path in sorted((ROOT / "configs").rglob("cfg_*.py"))]
    given = [str(number) for one in benchmark for methods in one.get("published", {}).values()
             for number in methods.values()]  # fmt: skip
    given += [str(number) for row in read_config(ROOT / "configs/published.py").rows
              for name, number in row.mIoU.items() if not name.startswith("avg")]  # fmt: skip
    assert sorted(shown) == sorted(given)
    assert {row["source"] for row in table} == {f"[{number}]" for number in range(1, len(sources) + 1)}
    (ours,) = (row for row in table if row["method"] == "ClearCLIP" and row["source"] == "[1]" and row["voc20"])
    assert (ours["protocol"], ours["voc20"], ours["avg5"], ours["avg8"]) == ("clearclip", "80.9", "37.5", "38.1")


def test_published_numbers_of_some_data_sets(capsys):
    main(["--published", "--datasets", "ade847", "segearth/loveda"])
    printed = capsys.readouterr().out
    assert "5.67" in printed
    assert "32.4" in printed
    assert "80.9" not in printed
    with pytest.raises(SystemExit):
        main(["--published", "--datasets", "imagenet"])
    assert "nothing published on imagenet is known here; use some of voc21," in single_error(capsys.readouterr().err)


def test_a_protocol_with_none_of_the_eight_takes_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["--protocol", "segearth", *FAST])
    assert "data set loveda not found" in capsys.readouterr().err
