import json
import multiprocessing
import random
import resource
import signal
import time
import zipfile

import openpyxl
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_results import result

from clearclip.errors import UserError
from clearclip.evaluation.results import append_results, check_workbook, rebuild, table, write_result


def read_per_class(path):
    """`{run title: {(data set, class): IoU}}`, without empty cells."""
    frame = pandas.read_excel(path, sheet_name="per_class", keep_default_na=False, na_values=[""])
    columns = frame.set_index(["dataset", "class"])
    return {title: columns[title].dropna().to_dict() for title in columns}


def sheet(path, name):
    header, *rows = openpyxl.load_workbook(path)[name].values
    return [dict(zip(header, row)) for row in rows]


def test_workbook_has_three_sheets_of_real_numbers(tmp_path):
    path = tmp_path / "new" / "results.xlsx"
    append_results([result(per_class_IoU={"cat": 91.25, "sofa": float("nan")})], path)
    workbook = openpyxl.load_workbook(path)
    assert workbook.sheetnames == ["table", "runs", "per_class"]
    for each in workbook:
        assert each.freeze_panes == ("C2" if each.title == "per_class" else "B2")
        assert all(cell.font.bold for cell in each[1])
        assert each.auto_filter.ref == each.dimensions
    assert sheet(path, "table") == table([result()])
    assert sheet(path, "per_class") == [
        {"dataset": "voc20", "class": "cat", "1 ClearCLIP ViT-B-16": 91.25},
        {"dataset": "voc20", "class": "sofa", "1 ClearCLIP ViT-B-16": None},
    ]
    (run,) = sheet(path, "runs")
    record = result(interval=None, differences=None, record=None, text_hash=None, names_hash=None, calibration=None)
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
    assert [(line["dataset"], line["class"]) for line in sheet(path, "per_class")] == [
        ("voc20", "cat"), ("voc20", "potted plant"), ("ade20k", "cat"), ("ade20k", "potted plant"),
    ]  # fmt: skip
    assert [(title, [dataset for dataset, _ in ious]) for title, ious in read_per_class(path).items()] == [
        ("1 ClearCLIP ViT-B-16", ["voc20"] * 2), ("2 ClearCLIP ViT-B-16", ["ade20k"] * 2),
        ("3 ClearCLIP ViT-B-16", ["voc20"] * 2), ("4 CLIP ViT-B-16", ["voc20"] * 2),
    ]  # fmt: skip
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


@pytest.mark.slow
def test_two_processes_append(tmp_path):
    path = tmp_path / "results.xlsx"
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch, for half a minute
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
    assert [len(ious) for ious in read_per_class(path).values()] == [2] * 20
    assert {row["method"]: row["voc20"] for row in sheet(path, "table")} == {"CLIP": 9.0, "SCLIP": 9.0}


def replace_part(path, part, old, new):
    """Replace bytes in one part of a workbook, which is a zip archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old, new) if name.endswith(part) else content)


def other_workbook(path):
    workbook = openpyxl.Workbook()
    workbook.active.append(["budget", 7])
    workbook.save(path)


def cut_workbook(path):
    append_results([result()], path)
    path.write_bytes(path.read_bytes()[:2000])


def broken_sheet(path):
    append_results([result()], path)
    replace_part(path, "sheet3.xml", b"</sheetData>", b"")


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
        (broken_sheet, "damaged"),
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


def test_a_folder_that_takes_no_file_is_said_at_once():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"/proc/results\.xlsx"):
        append_results([result()], "/proc/results.xlsx")
    assert time.monotonic() - started < 60  # a lock file that cannot be made is not waited for


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


# what is shown


def test_the_best_of_a_column_is_bold_and_an_uncertain_difference_grey(tmp_path):
    path = tmp_path / "results.xlsx"
    runs = [
        result(mIoU=80.0, differences={"CLIP": [0.2, -0.1, 0.5]}),
        result(mIoU=79.0, method="SCLIP", differences={"CLIP": [1.0, 0.5, 1.5]}),
        result(mIoU=99.0, method="CLIP", images=4),  # a part is no rival
        result("ade20k", 16.0, method="CLIP"),  # nor has a single run one
        result("sanity", 50.0, images=2),
        result("sanity", 60.0, method="SCLIP", images=2),
    ]
    append_results(runs, path)
    workbook = openpyxl.load_workbook(path)
    cells = [cell for row in workbook["table"].iter_rows(min_row=2) for cell in row]
    assert [cell.value for cell in cells if cell.font.bold] == [80.0, 60.0]
    grey = [cell for cell in cells if cell.font.color is not None and cell.font.color.rgb == "00808080"]
    assert [(cell.value, cell.number_format) for cell in grey] == [(0.2, "+0.00;-0.00;0.00")]


def test_metrics_and_intervals_are_columns(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    append_results([result(mIoU=81.0, interval=1.5, metrics={"mDice": 88.5, "mIoU": 3.0}, minute=1)], path)
    plain, measured = sheet(path, "runs")
    assert (plain["interval"], plain["mDice"]) == (None, None)
    assert (measured["interval"], measured["mDice"], measured["mIoU"]) == (1.5, 88.5, 81.0)
    assert sheet(path, "table")[0]["voc20 interval"] == 1.5


def test_widths_and_place_of_the_table_are_kept(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result("voc20")], path)
    workbook = openpyxl.load_workbook(path)
    names = {cell.value: cell.column_letter for cell in workbook["table"][1]}
    workbook["table"].column_dimensions[names["voc20"]].width = 33
    workbook.move_sheet("table", 2)
    workbook.save(path)
    append_results([result("ade20k"), result("voc21")], path)  # voc21 comes before voc20
    workbook = openpyxl.load_workbook(path)
    names = {cell.value: cell.column_letter for cell in workbook["table"][1]}
    assert workbook["table"].column_dimensions[names["voc20"]].width == 33
    assert workbook.sheetnames == ["runs", "per_class", "table"]


def test_charts_and_notes_of_the_user_are_kept(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    workbook = openpyxl.load_workbook(path)
    mine = workbook.create_sheet("mine")
    mine.append([1, 2, 3])
    mine["A1"].comment = openpyxl.comments.Comment("look here", "me")
    chart = openpyxl.chart.BarChart()
    chart.add_data(openpyxl.chart.Reference(mine, min_col=1, max_col=3, min_row=1))
    mine.add_chart(chart, "E1")
    workbook.save(path)
    append_results([result()], path)
    mine = openpyxl.load_workbook(path)["mine"]
    assert mine["A1"].comment.text == "look here"
    assert len(mine._charts) == 1


def test_what_was_published_is_not_beside_a_part(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result(images=4), result(method="CLIP", mIoU=40.0)], path)
    part, whole = sheet(path, "runs")
    assert (part["published"], part["published_source"], part["images"]) == (None, None, 4)
    assert whole["published"] == 80.9
    assert list(read_per_class(path)) == ["1 ClearCLIP ViT-B-16 (4 img)", "2 CLIP ViT-B-16"]


def test_confusions_are_a_sheet_of_their_own(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    assert "confusions" not in openpyxl.load_workbook(path).sheetnames
    append_results([result(method="=CLIP", confused=[["sofa", "=chair\x00", 120, 12.5]])], path)
    append_results([result(method="SCLIP", confused=[["cat", "dog", 7, 0.5], ["dog", "cat", 3, None]])], path)
    assert [list(row.values()) for row in sheet(path, "confusions")] == [
        [2, "voc20", "=CLIP", "sofa", r"=chair\x00", 120, 12.5],
        [3, "voc20", "SCLIP", "cat", "dog", 7, 0.5],
        [3, "voc20", "SCLIP", "dog", "cat", 3, None],
    ]
    made = openpyxl.load_workbook(path)["confusions"]
    assert (made.freeze_panes, made["E2"].data_type, made["G2"].number_format) == ("E2", "s", "0.00")
    assert all(cell.font.bold for cell in made[1])
    check_workbook(path)


def test_one_rule_marks_the_best_of_each_class_and_the_users_rules_stay(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    workbook = openpyxl.load_workbook(path)
    assert not list(workbook["per_class"].conditional_formatting)  # nothing to compare
    mine = openpyxl.formatting.rule.CellIsRule("lessThan", formula=["5"], font=openpyxl.styles.Font(italic=True))
    workbook["per_class"].conditional_formatting.add("C2:C3", mine)
    workbook.save(path)
    for method in ("CLIP", "SCLIP"):
        append_results([result(method=method)], path)
    rules = {
        str(area.sqref): [rule.formula[0] for rule in area.rules]
        for area in openpyxl.load_workbook(path)["per_class"].conditional_formatting
    }
    assert rules.pop("C2:C3") == ["5"]
    ((area, (formula,)),) = rules.items()
    assert area == "C2:E3"
    assert formula.endswith('C2>=SUMPRODUCT(MAX(ISERROR(SEARCH(" img)",$C$1:$E$1))*$C2:$E2)))')


# what names can hold


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("=grass", "=grass"),
        ("#N/A", "#N/A"),
        ("+1+cmd", "+1+cmd"),
        ("@SUM(A1)", "@SUM(A1)"),
        ("-2", "-2"),
        ("a\x00b\x1b", r"a\x00b\x1b"),
        ("\ud800", r"\ud800"),
        ("end\uffff", r"end\uffff"),
        ("two\r\nlines", r"two\r\nlines"),
        ("<&>\"'", "<&>\"'"),
        ("猫 🐈", "猫 🐈"),
        ("x" * 40_000, "x" * 32_767),
    ],
)
def test_any_name_stays_text(tmp_path, name, shown):
    path = tmp_path / "results.xlsx"
    for minute in range(2):
        append_results([result(method=name, per_class_IoU={name: 50.0}, minute=minute)], path)
    workbook = openpyxl.load_workbook(path)
    cell = workbook["per_class"]["B2"]
    assert (cell.value, cell.data_type) == (shown, "s")
    assert workbook["per_class"].max_row == 2
    assert [run["method"] for run in sheet(path, "runs")] == [shown] * 2
    check_workbook(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=5, unique=True))
def test_no_class_name_breaks_the_workbook(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("any") / "results.xlsx"
    append_results([result(method=names[0], per_class_IoU=dict.fromkeys(names, 50.0))], path)
    check_workbook(path)
    assert pandas.read_excel(path, sheet_name="runs").mIoU.to_list() == [80.2]


def test_settings_that_no_cell_holds_are_cut_and_read_back(tmp_path):
    path = tmp_path / "results.xlsx"
    names = [f"class {number}" for number in range(5000)]
    for minute in range(2):
        append_results(
            [result(settings={"names": names, "crop": 224, "altered": ["crop"]}, minute=minute)],
            path,
        )
    assert json.loads(sheet(path, "runs")[0]["settings"]) == {
        "names": "… in result.json", "crop": 224, "altered": ["crop"],
    }  # fmt: skip
    assert sheet(path, "table")[0]["altered"] == "crop=224"


def test_more_differences_than_a_cell_holds_are_cut_and_read_back(tmp_path):
    path = tmp_path / "results.xlsx"
    differences = {f"ClearCLIP:residual={number / 1000:.3f}": [1.5, 1.0, 2.0] for number in range(1000)}
    for minute in range(2):
        append_results([result(differences=differences, minute=minute)], path)
    kept = json.loads(sheet(path, "runs")[0]["differences"])
    assert kept == dict(list(differences.items())[:500])


# workbooks of earlier versions


def earlier_workbook(path, runs, lacking=()):
    """A row for each class and run; no columns of later versions."""
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    keys = ("method", "backbone", "pretrained", "protocol", "text", "vocabulary")
    columns = ["run", *(key for key in result() if key not in ("per_class_IoU", *lacking))]
    for name, header in [("table", keys), ("runs", columns), ("per_class", ["run", "dataset", *keys, "class", "IoU"])]:
        workbook.create_sheet(name).append(header)
    for number, run in enumerate(runs, 1):
        run = run | {"run": number, "versions": "{}", "settings": json.dumps(run["settings"])}
        workbook["runs"].append([run[column] for column in columns])
        for name, iou in run["per_class_IoU"].items():
            workbook["per_class"].append([number, run["dataset"], *(run[key] for key in keys), name, iou])
    workbook.save(path)


@pytest.mark.parametrize("lacking", [(), ("benchmark_images", "precision", "settings", "published_source")])
def test_an_earlier_workbook_gains_columns_and_the_matrix(tmp_path, lacking):
    path = tmp_path / "results.xlsx"
    earlier_workbook(path, [result(method="CLIP"), result("ade20k", 15.0, per_class_IoU={"cat": 3.0})], lacking)
    check_workbook(path)
    append_results([result(interval=1.5, metrics={"mDice": 90.0})], path)
    assert read_per_class(path) == {
        "1 CLIP ViT-B-16": {("voc20", "cat"): 91.25, ("voc20", "potted plant"): 60.5},
        "2 ClearCLIP ViT-B-16": {("ade20k", "cat"): 3.0},
        "3 ClearCLIP ViT-B-16": {("voc20", "cat"): 91.25, ("voc20", "potted plant"): 60.5},
    }
    runs = sheet(path, "runs")
    assert [(run["mIoU"], run["interval"], run["mDice"]) for run in runs] == [
        (80.2, None, None), (15.0, None, None), (80.2, 1.5, 90.0),
    ]  # fmt: skip
    assert set(runs[0]) >= {"run", *result()} - {"per_class_IoU"}


def test_a_removed_run_leaves_the_table_and_its_number_is_not_used_again(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result(), result(method="CLIP")], path)
    workbook = openpyxl.load_workbook(path)
    workbook["runs"].delete_rows(3)
    workbook.save(path)
    append_results([result(method="SCLIP")], path)
    assert [row["method"] for row in sheet(path, "table")] == ["ClearCLIP", "SCLIP"]
    assert [run["run"] for run in sheet(path, "runs")] == [1, 3]


# rebuild


def test_rebuild_makes_the_workbook_that_appending_made(tmp_path):
    runs = [result(minute=1), result(method="CLIP", minute=0), result("ade20k", 15.0, minute=2, metrics={"mDice": 1.0})]
    paths = [write_result(run, tmp_path / str(number)) for number, run in enumerate(runs)]
    for run in (runs[1], runs[0], runs[2]):
        append_results([run], tmp_path / "appended.xlsx")
    rebuild([*paths, str(paths[0]), runs[0]], tmp_path / "rebuilt.xlsx")
    for name in ("table", "runs", "per_class"):
        assert sheet(tmp_path / "rebuilt.xlsx", name) == sheet(tmp_path / "appended.xlsx", name)


def test_rebuild_mends_our_sheets_and_keeps_others(tmp_path):
    path = tmp_path / "results.xlsx"
    edited_workbook(path)
    workbook = openpyxl.load_workbook(path)
    workbook.create_sheet("notes").append(["mine"])
    workbook.save(path)
    rebuild([result(mIoU=70.0)], path)
    check_workbook(path)
    assert [run["mIoU"] for run in sheet(path, "runs")] == [70.0]
    assert openpyxl.load_workbook(path)["notes"]["A1"].value == "mine"


def test_rebuild_from_nothing_and_of_what_is_not_ours(tmp_path):
    rebuild([], tmp_path / "empty.xlsx")
    append_results([result()], tmp_path / "empty.xlsx")
    assert len(sheet(tmp_path / "empty.xlsx", "runs")) == 1
    other_workbook(tmp_path / "other.xlsx")
    before = (tmp_path / "other.xlsx").read_bytes()
    with pytest.raises(UserError, match=r"no sheet 'runs' .*move it away"):
        rebuild([result()], tmp_path / "other.xlsx")
    with pytest.raises(UserError, match=r"gone\.json cannot be read"):
        rebuild([tmp_path / "gone.json"], tmp_path / "other.xlsx")
    assert (tmp_path / "other.xlsx").read_bytes() == before


# the file


def test_the_target_of_a_link_is_replaced_and_keeps_its_mode(tmp_path):
    target, link = tmp_path / "store" / "data.bin", tmp_path / "results.xlsx"
    target.parent.mkdir()
    append_results([result()], tmp_path / "first.xlsx")
    (tmp_path / "first.xlsx").rename(target)
    target.chmod(0o640)
    link.symlink_to("store/data.bin")
    check_workbook(link)
    append_results([result(method="CLIP")], link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert len(sheet(link, "runs")) == 2
    (target.parent / ".~lock.data.bin#").touch()
    with pytest.raises(UserError, match="open in another program"):
        check_workbook(link)


@pytest.mark.parametrize("use", [check_workbook, lambda path: append_results([result()], path)])
def test_a_read_only_workbook_is_refused(use, tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    path.chmod(0o444)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"results\.xlsx is read-only"):
        use(path)
    assert path.read_bytes() == before


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_the_old_workbook(tmp_path):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # what a disk with 2000 bytes left does
    try:
        with pytest.raises(UserError, match=r"results\.xlsx cannot be written \(.*the results are safe in work/result"):
            append_results([result()], path, saved_at="work/result.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert left(tmp_path) == ["results.xlsx", "results.xlsx.lock"]


def wrong_character(path):
    replace_part(path, "sheet2.xml", b"ViT-B-16", "\uffff".encode())  # which XML forbids


def without_a_sheet(path):
    workbook = openpyxl.load_workbook(path)
    del workbook["per_class"]
    workbook_save(workbook, path)


def without_a_row(path):
    workbook = openpyxl.load_workbook(path)
    workbook["runs"].delete_rows(2)
    workbook_save(workbook, path)


workbook_save = openpyxl.Workbook.save


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(path.read_bytes()[:3000]), wrong_character, without_a_sheet, without_a_row],
)
def test_a_workbook_that_does_not_read_back_never_replaces_the_old_one(tmp_path, monkeypatch, spoil):
    path = tmp_path / "results.xlsx"
    append_results([result()], path)
    before = path.read_bytes()

    def save(workbook, temporary):
        workbook_save(workbook, temporary)
        spoil(temporary)

    monkeypatch.setattr(openpyxl.Workbook, "save", save)
    with pytest.raises(UserError, match=r"cannot be written .*the results are safe"):
        append_results([result()], path)
    assert path.read_bytes() == before
    assert left(tmp_path) == ["results.xlsx", "results.xlsx.lock"]


def many_runs(number):
    random.seed(0)
    names = [f"class number {index}" for index in range(171)]
    pairs = [(names[index], names[index + 1]) for index in range(12)]
    return [
        result(
            "coco_stuff164k",
            minute=index,
            method=f"ClearCLIP:residual={index / 1000}",
            per_class_IoU={name: random.random() * 100 for name in names},
            confused=[[one, other, random.randrange(10**6), 100 * random.random()] for one, other in pairs],
        )
        for index in range(number)
    ]


@pytest.mark.slow
def test_a_large_workbook_is_fast(tmp_path):
    path = tmp_path / "results.xlsx"
    *runs, last = many_runs(401)
    append_results(runs, path)
    start = time.process_time()
    check_workbook(path)
    append_results([last], path)
    assert time.process_time() - start < 5  # 1.3 on a quiet machine; a row for each class and run takes 27
    ious = read_per_class(path)
    assert len(ious) == 401
    assert list(ious["401 ClearCLIP:residual=0.4 ViT-B-16"].values()) == pytest.approx(
        list(last["per_class_IoU"].values())
    )
