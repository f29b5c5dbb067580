import json
import multiprocessing
import re
import textwrap
from datetime import UTC, datetime, timedelta
from statistics import fmean

import numpy as np
import openpyxl
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.evaluation.results import (
    AVERAGES,
    BENCHMARKS,
    ROW,
    append_results,
    as_markdown,
    as_text,
    check_workbook,
    read_result,
    table,
    write_result,
)

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def result(dataset="voc20", mIoU=80.2, minute=0, **changes):
    return {
        "date": (NOON + timedelta(minutes=minute)).isoformat(),
        "method": "ClearCLIP",
        "backbone": "ViT-B-16",
        "pretrained": "openai",
        "dataset": dataset,
        "protocol": "clearclip",
        "vocabulary": f"cls_{dataset}.txt",
        "text": "openai80",
        "mIoU": mIoU,
        "aAcc": 90.0,
        "mAcc": 88.5,
        "per_class_IoU": {"cat": 91.25, "potted plant": 60.5},
        "images": 1449,
        "benchmark_images": 1449,
        "published": 80.9,
        "published_source": "ClearCLIP, Table 3",
        "seconds": 100.0,
        "images_per_second": 14.49,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"clearclip": "0.1.0", "torch": "2.6.0"},
        "config": f"configs/cfg_{dataset}.py",
        "settings": {"short_side": 448, "crop": 448, "stride": 224},
        "weights_hash": "0123abcd",
    } | changes


def sheet(path, name):
    header, *rows = openpyxl.load_workbook(path)[name].values
    return [dict(zip(header, row)) for row in rows]


def cells(line):
    return [text.strip().replace(r"\|", "|") for text in re.split(r"(?<!\\)\|", line)[1:-1]]


# result.json


def test_result_round_trip(tmp_path):
    record = result(per_class_IoU={"cat": 91.25, "sofa, settee": None}, published=None)
    path = write_result(record, tmp_path / "new" / "work_dir")
    assert path == tmp_path / "new" / "work_dir" / "result.json"
    assert read_result(path) == record


def test_nan_is_null_and_numpy_is_a_number(tmp_path):
    record = result(
        mIoU=np.float32(80.5), per_class_IoU={"cat": np.float64("nan"), "dog": float("nan")}, images=np.int64(5)
    )
    path = write_result(record, tmp_path)
    assert "NaN" not in path.read_text()
    assert read_result(path) == record | {"mIoU": 80.5, "per_class_IoU": {"cat": None, "dog": None}, "images": 5}


@pytest.mark.parametrize("content", ["", '{"mIoU": 80', "[]", "null", '{"mIoU": 80.0}', b"\xff\xfe\x00"])
def test_damaged_result_is_a_user_error(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_result(path)


def test_missing_result_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"result\.json cannot be read .*run eval\.py"):
        read_result(tmp_path / "result.json")


# the table


def test_table_cell_and_difference():
    (row,) = table([result(mIoU=80.2, published=80.9)])
    assert [row[name] for name in ROW] == [
        "ClearCLIP", "ViT-B-16", "openai", "clearclip", "openai80", "cls_*.txt",
    ]  # fmt: skip
    assert list(row) == [*ROW, "voc20", "voc20 published", "voc20 difference"]
    assert row["voc20"] == 80.2
    assert row["voc20 published"] == 80.9
    assert row["voc20 difference"] == pytest.approx(-0.7)


def test_part_of_a_benchmark_is_marked_and_not_compared():
    rows = table([result(mIoU=79.326, images=108), result("ade20k", 16.5, benchmark_images=2000, images=2000)])
    assert rows[0]["voc20 images"] == 108
    assert "voc20 difference" not in rows[0]
    assert "ade20k images" not in rows[0]
    assert rows[0]["ade20k difference"] == pytest.approx(16.5 - 80.9)
    for text in (as_markdown(rows), as_text(rows, 200)):
        assert "79.33 (108 img)" in text
        assert "images" not in text


def test_set_of_no_benchmark_is_not_compared():
    assert list(table([result("sanity", benchmark_images=None)])[0]) == [*ROW, "sanity", "sanity published"]


def test_latest_run_of_a_cell_wins_whatever_the_order_and_offset():
    east = (NOON + timedelta(minutes=30)).isoformat().replace("+00:00", "+05:00")  # hours before NOON
    runs = [result(mIoU=3.0, minute=2), result(mIoU=1.0), result(mIoU=2.0, minute=1), result(mIoU=4.0, date=east)]
    assert [row["voc20"] for row in table(runs)] == [3.0]
    assert [row["voc20"] for row in table(runs[::-1])] == [3.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "CLIP"},
        {"backbone": "ViT-L-14"},
        {"pretrained": "laion"},
        {"protocol": "sclip"},
        {"text": "single"},
        {"vocabulary": "sclip/cls_voc20.txt"},
        {"text": "voc20.85templates.safetensors"},
    ],
)
def test_what_makes_a_row(changes):
    assert len(table([result(), result(**changes)])) == 2


def test_files_named_after_their_data_set_share_a_row():
    rows = table(
        [
            result("voc20", text="voc20.85templates.safetensors"),
            result("ade20k", text="ade150.85templates.safetensors"),
        ]
    )
    assert [row["text"] for row in rows] == ["*.85templates.safetensors"]
    rows = table([result(text="mine.safetensors"), result(text="yours.safetensors")])
    assert [row["text"] for row in rows] == ["mine.safetensors", "yours.safetensors"]


def test_columns_and_averages():
    runs = [result(name, float(i), published=i + 0.5) for i, name in enumerate(reversed(BENCHMARKS))]
    (row,) = table([result("sanity", 99.0, published=None, benchmark_images=None), *runs])
    scores = [name for name in row if name not in ROW and " " not in name]
    assert scores == [*BENCHMARKS, "sanity", "avg5", "avg8"]
    assert [name for name in row if name.startswith("avg")] == [
        "avg5", "avg5 published", "avg5 difference", "avg8", "avg8 published", "avg8 difference",
    ]  # fmt: skip
    for name, parts in AVERAGES.items():
        assert row[name] == pytest.approx(fmean(row[part] for part in parts))
        assert row[f"{name} difference"] == pytest.approx(-0.5)
    assert "avg8" not in table(runs[1:])[0]
    assert "avg5" in table(runs[:5])[0]
    assert "avg5" not in table(runs[1:])[0]


def test_average_over_a_part_is_marked():
    runs = [result(name, 10.0) for name in AVERAGES["avg5"][1:]]
    (row,) = table([result("voc20", 20.0, images=108), *runs])
    assert row["avg5"] == 12.0
    assert row["avg5 images"] == 108 + 4 * 1449
    assert "avg5 difference" not in row
    assert "12.00 (5904 img)" in as_markdown([row])


def test_rows_are_grouped_by_backbone_and_methods_keep_their_order():
    names = [("SCLIP", "ViT-L-14"), ("CLIP", "ViT-B-16"), ("SCLIP", "ViT-B-16"), ("CLIP", "ViT-L-14")]
    rows = table([result(method=m, backbone=b, minute=i) for i, (m, b) in enumerate(names)])
    assert [(row["method"], row["backbone"]) for row in rows] == [names[1], names[2], names[0], names[3]]


def test_no_results():
    assert table([]) == []
    assert as_markdown([]) == ""
    assert as_text([]) == "no results"


def test_markdown_has_the_columns_and_values_of_the_table():
    rows = table([result(), result("ade20k", 16.5, published=None), result(method="a|b", mIoU=None)])
    header, rule, *lines = map(cells, as_markdown(rows).splitlines())
    assert header == list(rows[0])
    assert len(rule) == len(header)
    assert rule.count("---") == len(ROW)
    assert all(re.fullmatch("---:?", text) for text in rule)
    first, second = (dict(zip(header, line, strict=True)) for line in lines)
    assert first["voc20 difference"] == "-0.70"
    assert first["ade20k"] == "16.50"
    assert second["method"] == "a|b"
    assert [second[name] for name in header[len(ROW) :]] == [""] * 4


def test_text_is_aligned_and_says_once_what_all_rows_share():
    rows = table([result(), result(method="CLIP", mIoU=8.5, published=None), result("ade20k", 16.51)])
    shared = "backbone ViT-B-16, pretrained openai, protocol clearclip, text openai80, vocabulary cls_*.txt"
    voc = """
method     voc20  published  difference
---------  -----  ---------  ----------
ClearCLIP  80.20      80.90       -0.70
CLIP        8.50"""
    ade = """
method     ade20k  published  difference
---------  ------  ---------  ----------
ClearCLIP   16.51      80.90      -64.39
CLIP"""
    assert as_text(rows, 60) == "\n".join([textwrap.fill(shared, 60), voc, ade])
    assert as_text(rows, 100).splitlines()[2:] == [
        "method     voc20  published  difference  ade20k  published  difference",
        "---------  -----  ---------  ----------  ------  ---------  ----------",
        "ClearCLIP  80.20      80.90       -0.70   16.51      80.90      -64.39",
        "CLIP        8.50",
    ]


methods = st.sampled_from(["CLIP", "MaskCLIP", "SCLIP"])
scores = st.floats(0, 100).map(lambda value: round(value, 2))
some_runs = st.lists(
    st.builds(
        result,
        dataset=st.sampled_from([*BENCHMARKS, "sanity"]),
        mIoU=st.none() | scores,
        minute=st.integers(0, 99),
        method=methods,
        backbone=st.sampled_from(["ViT-B-16", "ViT-L-14"]),
        images=st.sampled_from([108, 1449]),
        published=st.none() | scores,
    ),
    min_size=1,
    max_size=20,
)


@given(some_runs)
def test_table_holds_the_latest_score_of_every_cell(runs):
    rows = {(row["method"], row["backbone"]): row for row in table(runs)}
    latest = {}
    for run in runs:
        cell = run["method"], run["backbone"], run["dataset"]
        if cell not in latest or run["date"] >= latest[cell]["date"]:
            latest[cell] = run
    assert len(rows) == len({cell[:2] for cell in latest})
    for (method, backbone, dataset), run in latest.items():
        row = rows[method, backbone]
        assert row.get(dataset) == run["mIoU"]
        assert row.get(f"{dataset} published") == (None if run["mIoU"] is None else run["published"])
        whole = run["images"] == 1449 and None not in (run["mIoU"], run["published"])
        assert (row.get(f"{dataset} difference") is not None) == whole
        assert row.get(f"{dataset} images") == (108 if run["images"] == 108 and run["mIoU"] is not None else None)


@given(some_runs, st.integers(20, 300))
def test_text_of_any_width_drops_nothing(runs, width):
    rows = table(runs)
    lines = as_text(rows, width).splitlines()
    words = {word.rstrip(",") for line in lines for word in line.split()}
    for row in map(cells, as_markdown(rows).splitlines()[2:]):
        assert set(" ".join(row).split()) <= words
    if width >= 90:  # room for the two keys and the widest data set
        assert max(map(len, lines)) <= width


# results.xlsx


def test_workbook_has_three_sheets_of_real_numbers(tmp_path):
    path = tmp_path / "new" / "results.xlsx"
    append_results([result(per_class_IoU={"cat": 91.25, "sofa": float("nan")})], path)
    workbook = openpyxl.load_workbook(path)
    assert workbook.sheetnames == ["table", "runs", "per_class"]
    for each in workbook:
        assert each.freeze_panes == "B2"
        assert each.auto_filter.ref == each.dimensions
    assert sheet(path, "table") == table([result()])
    assert sheet(path, "per_class")[0].items() >= {"run": 1, "dataset": "voc20", "class": "cat", "IoU": 91.25}.items()
    assert sheet(path, "per_class")[1]["IoU"] is None
    (run,) = sheet(path, "runs")
    record = result()
    del record["per_class_IoU"]
    assert run.pop("run") == 1
    assert run | {key: json.loads(run[key]) for key in ("versions", "settings")} == record
    formats = {cell.value: cell.number_format for cell in workbook["table"][2]}
    assert formats[80.2] == "0.00"
    assert formats[80.2 - 80.9] == "+0.00;-0.00;0.00"


def test_pandas_reads_the_sheets(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result(), result("ade20k", 15.0)], path)
    sheets = pandas.read_excel(path, sheet_name=None)
    assert sheets["runs"].set_index("dataset").mIoU.to_dict() == {"voc20": 80.2, "ade20k": 15.0}
    assert list(sheets["table"].columns) == list(table([result(), result("ade20k", 15.0)])[0])


def test_appending_keeps_earlier_runs_and_what_the_user_added(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result(mIoU=70.0), result("ade20k", 15.0)], path)
    workbook = openpyxl.load_workbook(path)
    workbook.create_sheet("notes", 0).append(["mine", "=1+1"])
    workbook["runs"].cell(1, workbook["runs"].max_column + 1, "remark")
    workbook["runs"].cell(2, workbook["runs"].max_column, "good")
    workbook["runs"].column_dimensions["A"].width = 33
    workbook.active = 0
    workbook.save(path)

    append_results([result(mIoU=80.0, minute=1)], path)
    append_results([result(method="CLIP", mIoU=40.0, minute=2)], path)
    assert [(run["run"], run["mIoU"], run["remark"]) for run in sheet(path, "runs")] == [
        (1, 70.0, "good"), (2, 15.0, None), (3, 80.0, None), (4, 40.0, None),
    ]  # fmt: skip
    assert [line["run"] for line in sheet(path, "per_class")] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [(row["method"], row["voc20"], row["ade20k"]) for row in sheet(path, "table")] == [
        ("ClearCLIP", 80.0, 15.0), ("CLIP", 40.0, None),
    ]  # fmt: skip
    workbook = openpyxl.load_workbook(path)
    assert [cell.value for cell in workbook["notes"][1]] == ["mine", "=1+1"]
    assert workbook["runs"].column_dimensions["A"].width == 33
    assert [each.title for each in workbook if each.sheet_view.tabSelected] == ["table"]


def test_table_of_a_sorted_runs_sheet_is_the_same(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result(mIoU=float(i), minute=i) for i in range(3)], path)
    workbook = openpyxl.load_workbook(path)
    runs = workbook["runs"]
    rows = [[cell.value for cell in row] for row in runs.iter_rows(min_row=2)]
    runs.delete_rows(2, 3)
    for row in rows[::-1]:
        runs.append(row)
    workbook.save(path)
    append_results([], path)
    assert [row["voc20"] for row in sheet(path, "table")] == [2.0]


def append_ten(path, method):
    for i in range(10):
        append_results([result(method=method, mIoU=float(i), minute=i)], path)


def test_two_processes_append(tmp_path):
    path = tmp_path / "results.xlsx"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_ten, args=(path, method)) for method in ("CLIP", "SCLIP")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    runs = sheet(path, "runs")
    assert [run["run"] for run in runs] == list(range(1, 21))
    assert sorted((run["method"], run["mIoU"]) for run in runs) == [
        (method, float(i)) for method in ("CLIP", "SCLIP") for i in range(10)
    ]
    assert len(sheet(path, "per_class")) == 40
    assert {row["method"]: row["voc20"] for row in sheet(path, "table")} == {"CLIP": 9.0, "SCLIP": 9.0}


def other_workbook(path):
    workbook = openpyxl.Workbook()
    workbook.active.append(["budget", 7])
    workbook.save(path)


def cut_workbook(path):
    append_results([result()], path)
    path.write_bytes(path.read_bytes()[:2000])


def edited_workbook(path):
    append_results([result()], path)
    workbook = openpyxl.load_workbook(path)
    header = [cell.value for cell in workbook["runs"][1]]
    workbook["runs"].cell(2, header.index("mIoU") + 1, "about eighty")
    workbook.save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_text("no zip"), "damaged"),
        (cut_workbook, "damaged"),
        (edited_workbook, "damaged"),
        (other_workbook, "no sheet 'runs'"),
    ],
)
def test_unusable_workbook_is_a_user_error_and_is_left_alone(tmp_path, spoil, message):
    path = tmp_path / "results.xlsx"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        append_results([result()], path, saved_at="work/result.json")
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "move it away" in str(error.value)
    assert "work/result.json" in str(error.value)
    assert path.read_bytes() == before
    with pytest.raises(UserError) as found:
        check_workbook(path)
    assert str(error.value) == f"{found.value}; the results are safe in work/result.json"


@pytest.mark.parametrize("mark", ["~$results.xlsx", ".~lock.results.xlsx#"])
def test_workbook_open_elsewhere_is_a_user_error(tmp_path, mark):
    path = tmp_path / "results.xlsx"
    (tmp_path / mark).touch()
    with pytest.raises(
        UserError, match=r"open in another program: close it .*; the results are safe in the result.json"
    ):
        append_results([result()], path)
    assert not path.exists()
    with pytest.raises(UserError, match=r"open in another program: close it \(or remove .*\) and run again$"):
        check_workbook(path)


@pytest.mark.parametrize("use", [check_workbook, lambda path: append_results([result()], path)])
def test_place_that_cannot_be_written_is_a_user_error(use, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.xlsx").mkdir()
    for path in (
        tmp_path / "file" / "results.xlsx",
        tmp_path / "file" / "new" / "results.xlsx",
        tmp_path / "folder.xlsx",
    ):
        with pytest.raises(UserError, match=rf"{path.name} cannot be written"):
            use(path)


@pytest.mark.parametrize("use", [check_workbook, lambda path: append_results([result()], path)])
def test_name_of_another_format_is_a_user_error(use, tmp_path):
    with pytest.raises(UserError, match=r"let it end in \.xlsx"):
        use(tmp_path / "results.csv")


def test_check_of_a_good_place_leaves_nothing(tmp_path):
    check_workbook(tmp_path / "new" / "folder" / "results.xlsx")
    assert not list(tmp_path.iterdir())
    append_results([result()], tmp_path / "results.xlsx")
    check_workbook(tmp_path / "results.xlsx")
    assert len(sheet(tmp_path / "results.xlsx", "runs")) == 1


def test_runs_that_altered_their_protocol_have_a_row_of_their_own(tmp_path):
    altered = result(mIoU=70.0, minute=1, published=None, settings={"crop": 224, "altered": ["crop"]})
    append_results([result(settings={"altered": []})], tmp_path / "r.xlsx")
    append_results([altered], tmp_path / "r.xlsx")
    frame = pandas.read_excel(tmp_path / "r.xlsx", sheet_name="table")
    assert dict(zip(frame["protocol"], frame["voc20"])) == {"clearclip": 80.2, "clearclip*": 70.0}
    runs = pandas.read_excel(tmp_path / "r.xlsx", sheet_name="runs")
    assert list(runs["protocol"]) == ["clearclip"] * 2
