"""`clearclip merge`, `workbook` and `prefetch`, and differences from records, on tiny benchmarks."""

import shutil
import sqlite3
from pathlib import Path

import openpyxl
import pytest
from benchmarks import make_benchmarks
from sample_results import result

from clearclip.backbones.openclip import OpenCLIPBackbone
from clearclip.cli import eval, merge, prefetch, table, workbook
from clearclip.evaluation.confusion import Confusion
from clearclip.evaluation.records import Records
from clearclip.evaluation.results import as_text, read_result, recorded, write_result
from clearclip.evaluation.results import table as rows_of
from clearclip.evaluation.results.differences import comparable, difference
from clearclip.evaluation.statistics import paired

pytestmark = pytest.mark.slow  # evaluations

FAST = [
    "--device", "cpu", "--precision", "fp32", "--cfg-options", "model.templates=single", "model.short_side=64",
    "model.crop=64", "model.stride=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmarks(tmp_path_factory.mktemp("merge"))


@pytest.fixture(autouse=True)
def _here(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    monkeypatch.chdir(tmp_path)


def fails(main, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def evaluate(tiny_folder):
    """`evaluate(*options)`: ClearCLIP on VOC20."""
    return lambda *options: eval.main(["voc20", "--backbone", f"local-dir:{tiny_folder}", *options, *FAST])


def digits(path):
    found = read_result(path)
    return {key: found[key] for key in ("mIoU", "aAcc", "mAcc", "per_class_IoU", "interval", "images", "record")}


def test_shards_of_three_machines_merge_to_the_digits_of_one(evaluate, monkeypatch, capsys):
    evaluate("--work-dir", "one", "--records", "one/records")
    for shard in ("1/3", "2/3", "3/3"):
        evaluate("--shard", shard, "--records", f"machine{shard[0]}")
    capsys.readouterr()
    folders = ["machine3", "machine1", "machine2"]
    merge.main([*folders[:2], "--into", "all"])
    out = capsys.readouterr().out
    assert "2 files, 2 images" in out
    assert "2 of 1449" in out
    assert "missing: part 2/3, of which there is no file" in out
    assert "1447 of 1449 images are not counted" in out
    merge.main([*folders, *folders, "--into", "all"])
    out = capsys.readouterr().out
    assert "3 files, 1 images" in out
    expected = digits("one/result.json")
    assert f"3 of 1449  {expected['mIoU']:.2f} ± {expected['interval']:.2f}" in out
    assert "part" not in out
    monkeypatch.setattr(OpenCLIPBackbone, "embed", lambda *_: pytest.fail("it counts again"))
    evaluate("--work-dir", "merged", "--records", "all")
    assert digits("merged/result.json") == expected


def write_records(path, count):
    with Records.open(path) as records:
        run = records.run({"benchmark": "voc20", "method": [["CLIP", {}]]}, ["cat", "sofa"])
        run.add("a.jpg", Confusion.of([[count, 1], [0, 5]]), (2, 9))


def test_conflicting_counts_name_both_files(capsys):
    write_records("x/1-of-2.sqlite", 3)
    write_records("y/2-of-2.sqlite", 4)
    error = fails(merge.main, ["x", "y", "--into", "all"], capsys)
    assert "x/1-of-2.sqlite and y/2-of-2.sqlite count a.jpg differently" in error
    with Records.open("all/merged.sqlite") as records:
        assert not records.runs()


def test_a_damaged_file_is_not_merged(capsys):
    write_records("x/1-of-2.sqlite", 3)
    write_records("y/2-of-2.sqlite", 3)
    with sqlite3.connect("y/2-of-2.sqlite") as connection:
        connection.execute("UPDATE images SET height = 1")
    error = fails(merge.main, ["x", "y", "--into", "all"], capsys)
    assert "y/2-of-2.sqlite: run " in error
    assert "a.jpg: the record is damaged: nothing is merged" in error
    assert not Path("all").exists()


def test_options_that_are_not_defaults_are_shown(capsys):
    with Records.open("x/1-of-1.sqlite") as records:
        settings = [["ClearCLIP", {"attention": "kk", "residual": 0.0}], ["PAMR", {"iterations": 3}]]
        run = records.run({"benchmark": "nowhere", "method": settings}, ["cat"])
        assert recorded.method(run) == "ClearCLIP:attention=kk+PAMR:iterations=3"
        assert recorded.whole(run) is None
    merge.main(["x"])
    assert "missing" not in capsys.readouterr().out


@pytest.mark.parametrize(("source", "message"), [("nowhere", "nowhere does not exist"), (".", ". holds no records")])
def test_no_records(source, message, capsys):
    assert message in fails(merge.main, [source], capsys)


def test_a_workbook_from_results(capsys):
    for number, name in enumerate(("voc20", "voc21")):
        write_result(result(name, 70.0 + number), Path("work_dirs") / name)
    Path("work_dirs/bad").mkdir()
    Path("work_dirs/bad/result.json").write_text("{")
    assert "work_dirs/bad/result.json is damaged" in fails(workbook.main, [], capsys)
    shutil.rmtree("work_dirs/bad")
    workbook.main(["work_dirs", "work_dirs/voc20", "-o", "all.xlsx"])
    assert "2 runs in all.xlsx" in capsys.readouterr().out
    for path in ("results.xlsx", "all.xlsx"):
        assert openpyxl.load_workbook(path)["runs"].max_row == 3
    assert "no result.json below nowhere" in fails(workbook.main, ["nowhere"], capsys)


def test_differences_are_those_of_the_records(tiny_folder, capsys):
    arguments = ["--backbones", f"local-dir:{tiny_folder}", "--datasets", "voc20", *FAST]
    table.main(["--methods", "CLIP", "ClearCLIP", "NACLIP", "--against", "naclip", "--markdown", "t.md", *arguments])
    results = {found["method"]: found for found in map(read_result, Path("work_dirs").rglob("result.json"))}
    assert "differences" not in results["NACLIP"]
    with Records.open("work_dirs/records/1-of-1.sqlite") as records:
        areas = {recorded.method(run): run.areas() for run in records.runs()}
    for name in ("CLIP", "ClearCLIP"):
        gain = paired(areas[name], areas["NACLIP"]).mIoU
        assert results[name]["differences"] == {"NACLIP": [gain.value, gain.low, gain.high]}
        assert gain.value == pytest.approx(results[name]["mIoU"] - results["NACLIP"]["mIoU"])
    out = capsys.readouterr().out
    assert "vs NACLIP" in out
    assert "vs NACLIP" in Path("t.md").read_text()
    sheet = openpyxl.load_workbook("results.xlsx")["table"]
    assert "voc20 vs NACLIP" in [cell.value for cell in sheet[1]]


def test_without_records_there_is_no_difference(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(table.Comparison, "__init__", lambda self, against, records: self.__dict__.update(
        against=against, records=Path("elsewhere"), references=[], opened={}))  # fmt: skip
    arguments = ["--backbones", f"local-dir:{tiny_folder}", "--datasets", "voc20", *FAST]
    table.main(["--methods", "CLIP", "NACLIP", *arguments])
    out, err = capsys.readouterr()
    assert "NACLIP is not compared with CLIP" in err
    assert "vs CLIP" not in out


def test_a_grid_in_one_pass_with_its_pivot_table(tiny_folder, capsys):
    arguments = ["--backbones", f"local-dir:{tiny_folder}", "--datasets", "voc20", "--markdown", "t.md", *FAST]
    table.main(["--grid", "ClearCLIP:attention=qq|kk,residual=0|1", *arguments])
    out = capsys.readouterr().out
    assert "residual" in out.splitlines()[-4]
    assert out.splitlines()[-3].startswith("attention=qq  ")
    assert "vs ClearCLIP:attention=qq,residual=0" in out
    assert "| attention=kk |" in Path("t.md").read_text()


def test_what_differs_besides_the_method_is_not_compared():
    one = result(record="a")
    assert comparable(one, result(method="CLIP", record="b"))
    for key, value in dict(images=4, precision="bf16", weights_hash="x", dataset="voc21", settings={"crop": 1}).items():
        assert not comparable(one, result(**{key: value}))


def test_a_difference_needs_records():
    write_records("x/1-of-1.sqlite", 3)
    with pytest.raises(KeyError, match=r"no record of a\.jpg"):
        difference(result(record="f" * 64), result(record="f" * 64), ["a.jpg"], Path("x"))


def test_contents_of_one_name_do_not_share_a_row():
    runs = [result(text="mine.safetensors", text_hash=letter * 64) for letter in "ab"]
    assert [row["text"] for row in rows_of(runs)] == [f"mine.safetensors ({letter * 8})" for letter in "ab"]
    runs = [result(names_hash=letter * 64) for letter in "ab"]
    assert [row["vocabulary"] for row in rows_of(runs)] == [f"cls_*.txt ({letter * 8})" for letter in "ab"]
    both = [result("voc20", text_hash="a" * 64), result("voc21", text_hash="b" * 64), result("voc20", minute=-1)]
    assert len(rows_of(both)) == 1  # other names have other embeddings; an earlier version kept no hash
    assert "mine" not in as_text(rows_of(both), 200)


def test_prefetch_leaves_nothing_to_fetch(tiny_folder, capsys):
    own = Path("cfg_own.py")
    own.write_text('_base_ = "cfg_voc20.py"\nmodel = dict(templates="single")\n')
    arguments = [str(own), "--backbones", f"local-dir:{tiny_folder}", "--methods", "ClearCLIP", "NACLIP+PAMR"]
    prefetch.main(arguments)
    first = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in first[:-1]] == [
        f"at hand  weights of local-dir:{tiny_folder}", "at hand  all of ClearCLIP", "at hand  all of NACLIP+PAMR",
        "at hand  tokenizer", f"fetched  text embeddings of {own}",
    ]  # fmt: skip
    prefetch.main(arguments)
    assert f"at hand  text embeddings of {own}" in capsys.readouterr().out


def test_prefetch_says_what_is_missing(tiny_folder, capsys):
    backbone = ["--backbones", f"local-dir:{tiny_folder}", "ViT-B-32"]
    with pytest.raises(SystemExit) as end:
        prefetch.main(["voc20", *backbone, "--methods", "ProxyCLIP"])
    assert end.value.code == 2
    out = capsys.readouterr().out
    assert "missing  weights of ViT-B-32: the weights of ViT-B-32 openai" in out
    assert "missing  all of ProxyCLIP" in out
    assert "2 missing" in out
    assert "no config 'voc22'" in fails(prefetch.main, ["voc22"], capsys)
    assert "unknown method 'CLAP'" in fails(prefetch.main, ["--methods", "CLAP"], capsys)
