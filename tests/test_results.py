import json
import re
import textwrap
import unicodedata
from datetime import timedelta
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_results import NOON, result

from clearclip.errors import UserError
from clearclip.evaluation.results import (
    AVERAGES,
    BENCHMARKS,
    ROW,
    as_markdown,
    as_text,
    read_result,
    table,
    write_result,
)

KEYS = [name for name in ROW if name != "altered"]  # of runs that altered nothing
SHARED = (
    "backbone ViT-B-16, pretrained openai, protocol clearclip, text openai80, vocabulary cls_*.txt, precision fp32, "
    "resize cv2"
)


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


def test_a_result_on_fewer_images_leaves_a_fuller_one_where_it_is(tmp_path, caplog):
    full, part = write_result(result(images=1449), tmp_path), write_result(result(images=4), tmp_path)
    assert (read_result(full)["images"], read_result(part)["images"]) == (1449, 4)
    assert full == tmp_path / "result.json"
    assert "stays" in caplog.text
    assert write_result(result(images=1449), tmp_path) == full


def test_missing_result_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"result\.json cannot be read .*run eval\.py"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mIoU": "about eighty"}, "mIoU"),
        ({"images": 3.5, "date": "yesterday"}, "images, date"),
        ({"date": "0001-01-01T00:00:00+23:59"}, "date"),
        ({"per_class_IoU": {"cat": [1]}}, "per_class_IoU"),
        ({"settings": None, "versions": {"torch": 2}}, "versions, settings"),
        ({"differences": {"CLIP": 3.0}}, "differences"),
        ({"metrics": [80.0]}, "metrics"),
    ],
)
def test_result_with_a_field_of_another_type_is_a_user_error(tmp_path, changes, named):
    path = write_result(result(**changes), tmp_path)
    with pytest.raises(UserError, match=rf"result\.json is damaged \({named}\): run eval\.py again"):
        read_result(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(result())), anything, max_size=3), st.sampled_from(["{}", "[{}]", "{}x"]))
def test_result_of_any_json_is_a_row_or_a_user_error(tmp_path_factory, changes, frame):
    path = tmp_path_factory.getbasetemp() / "result.json"
    path.write_text(frame.replace("{}", json.dumps(result(**changes))))
    try:
        rows = table([read_result(path)])
    except UserError:
        return
    assert len(rows) == 1
    assert as_text(rows, 80)


def test_optional_fields_round_trip(tmp_path):
    record = result(interval=1.92, differences={"CLIP": [12.0, 11.1, np.float64(12.9)]}, metrics={"mDice": 88.0})
    assert read_result(write_result(record, tmp_path)) == record


@pytest.mark.parametrize("name", ["\ud800", "a\x00b", "\uffff", "line\nline", "=grass", "猫", "\\ud800"])
def test_any_class_name_round_trips(tmp_path, name):
    record = result(per_class_IoU={name: 50.0})
    assert read_result(write_result(record, tmp_path)) == record


# the table


def test_table_cell_and_difference():
    (row,) = table([result(mIoU=80.2, published=80.9)])
    assert {name: row[name] for name in KEYS} == {
        "method": "ClearCLIP", "backbone": "ViT-B-16", "pretrained": "openai", "protocol": "clearclip",
        "text": "openai80", "vocabulary": "cls_*.txt", "precision": "fp32", "resize": "cv2",
    }  # fmt: skip
    assert list(row) == [*KEYS, "voc20", "voc20 published", "voc20 difference"]
    assert row["voc20"] == 80.2
    assert row["voc20 published"] == 80.9
    assert row["voc20 difference"] == pytest.approx(-0.7)


def test_part_of_a_benchmark_is_marked_and_not_compared():
    rows = table([result(mIoU=79.326, images=108), result("ade20k", 16.5, benchmark_images=2000, images=2000)])
    assert rows[0]["voc20 images"] == 108
    assert "voc20 difference" not in rows[0]
    assert "voc20 published" not in rows[0]
    assert "ade20k images" not in rows[0]
    assert rows[0]["ade20k difference"] == pytest.approx(16.5 - 80.9)
    for text in (as_markdown(rows), as_text(rows, 200)):
        assert "79.33 (108 img)" in text
        assert "images" not in text


def test_set_of_no_benchmark_is_not_compared():
    assert list(table([result("sanity", benchmark_images=None)])[0]) == [*KEYS, "sanity", "sanity published"]


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
        {"precision": "bf16"},
        {"settings": {"resize": "device"}},
        {"settings": {"crop": 224, "altered": ["crop"]}},
        {"weights_hash": "4567cdef"},
    ],
)
def test_what_makes_a_row(changes):
    rows = table([result(), result(**changes)])
    assert len(rows) == 2
    text, markdown = as_text(rows, 200).splitlines()[-2:], as_markdown(rows).splitlines()[-2:]
    assert text[0] != text[1]
    assert markdown[0] != markdown[1]


def test_alterations_are_told_apart_and_named():
    altered = [
        result(settings={"crop": crop, "short_side": side, "altered": ["crop", "pipeline", "short_side"]})
        for crop, side in [(224, 448), (336, 560)]
    ]
    rows = table([*altered, result()])
    assert [(row["protocol"], row["altered"]) for row in rows] == [
        ("clearclip", None), ("clearclip*", "crop=224, short_side=448"), ("clearclip*", "crop=336, short_side=560"),
    ]  # fmt: skip


def test_weights_that_share_a_tag_show_their_hash_and_others_do_not():
    rows = table([result(), result(weights_hash="4567cdef89"), result(backbone="ViT-L-14", weights_hash="89ab")])
    assert [row["pretrained"] for row in rows] == ["openai (0123abcd)", "openai (4567cdef)", "openai"]


def test_a_part_never_takes_the_place_of_more():
    runs = [result(mIoU=80.0), result(mIoU=50.0, images=4, minute=1)]
    assert [row["voc20"] for row in table(runs)] == [80.0]
    parts = [result(mIoU=70.0, images=108), *runs[1:]]
    assert [(row["voc20"], row["voc20 images"]) for row in table(parts)] == [(70.0, 108)]
    assert [row["voc20"] for row in table([*runs, result(mIoU=81.0, minute=2)])] == [81.0]


def test_intervals_and_differences_of_runs():
    runs = [
        result(mIoU=79.334, interval=1.918, images=108, differences={"CLIP": [20.0, 18.5, 21.5]}),
        result(mIoU=79.4, interval=None, method="SCLIP", differences={"CLIP": [0.1, -0.4, 0.5]}),
        result(mIoU=59.3, method="CLIP"),
    ]
    rows = table(runs)
    assert list(rows[0]) == [
        *KEYS, "voc20", "voc20 interval", "voc20 images", "voc20 published", "voc20 difference",
        "voc20 vs CLIP", "voc20 vs CLIP low", "voc20 vs CLIP high",
    ]  # fmt: skip
    assert [row["voc20 interval"] for row in rows] == [1.918, None, None]
    assert [row["voc20 vs CLIP high"] for row in rows] == [21.5, 0.5, None]
    assert as_text(rows, 200).splitlines()[2:] == [
        "method                      voc20  published  difference  vs CLIP",
        "---------  ----------------------  ---------  ----------  -------",
        "ClearCLIP  79.33 ± 1.92 (108 img)                          +20.00",
        "SCLIP                       79.40      80.90       -1.50   ≈+0.10",
        "CLIP                        59.30      80.90      -21.60",
    ]
    assert as_markdown(rows).splitlines()[4:6] == [
        "| ClearCLIP | 79.33 ± 1.92 (108 img) |  |  | +20.00 |",
        "| SCLIP | 79.40 | 80.90 | -1.50 | ≈+0.10 |",
    ]


def test_averages_have_no_interval():
    (row,) = table([result(name, interval=1.0) for name in BENCHMARKS])
    assert not {"avg5 interval", "avg8 interval"} & row.keys()
    assert row["voc21 interval"] == 1.0


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
    shared, empty, *lines = as_markdown(rows).splitlines()
    assert shared == SHARED.replace("*", r"\*")
    assert empty == ""
    header, rule, *lines = map(cells, lines)
    assert header == ["method", *list(rows[0])[len(KEYS) :]]
    assert len(rule) == len(header)
    assert rule.count("---") == 1
    assert all(re.fullmatch("---:?", text) for text in rule)
    first, second = (dict(zip(header, line, strict=True)) for line in lines)
    assert first["voc20 difference"] == "-0.70"
    assert first["ade20k"] == "16.50"
    assert second["method"] == "a|b"
    assert [second[name] for name in header[1:]] == [""] * 4


def test_text_is_aligned_and_says_once_what_all_rows_share():
    rows = table([result(), result(method="CLIP", mIoU=8.5, published=None), result("ade20k", 16.51)])
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
    assert as_text(rows, 60) == "\n".join([textwrap.fill(SHARED, 60), voc, ade])
    assert as_text(rows, 100).splitlines()[3:] == [
        "method     voc20  published  difference  ade20k  published  difference",
        "---------  -----  ---------  ----------  ------  ---------  ----------",
        "ClearCLIP  80.20      80.90       -0.70   16.51      80.90      -64.39",
        "CLIP        8.50",
    ]


def terminal_width(line):
    return sum(1 + (unicodedata.east_asian_width(character) == "W") for character in line)


LONG = "NACLIP:attention=kk,residual=1+PAMR:iterations=20"


@pytest.mark.parametrize("width", [80, 200])
def test_text_fits_the_terminal_whatever_the_names(width):
    runs = [
        result(name, images=108, interval=1.5, method=method, precision=precision, text=text, vocabulary="類.txt")
        for name in BENCHMARKS[:4]
        for method, precision, text in [
            (LONG, "fp32", "openai80"),
            (LONG, "bf16", "openai80"),
            ("猫", "fp32", "單.txt"),
        ]
    ]
    lines = as_text(table(runs), width).splitlines()
    assert max(map(terminal_width, lines)) <= width
    assert sum(LONG in line for line in lines) == 2


def test_rows_with_long_names_are_numbered():
    rows = table([result(method=LONG, precision=precision) for precision in ("bf16", "fp32")])
    assert as_text(rows, 80).splitlines()[2:] == [
        "",
        f"1  {LONG}, precision bf16",
        f"2  {LONG}, precision fp32",
        "",
        "#  voc20  published  difference",
        "-  -----  ---------  ----------",
        "1  80.20      80.90       -0.70",
        "2  80.20      80.90       -0.70",
    ]


def test_wide_characters_are_aligned():
    lines = as_text(table([result(method="猫語"), result(method="CLIP")]), 100).splitlines()[-4:]
    assert lines[2:] == ["猫語    80.20      80.90       -0.70", "CLIP    80.20      80.90       -0.70"]


def test_a_data_set_with_a_space_in_its_name():
    assert "my set  published  difference" in as_text(table([result("my set")]), 100)


def test_no_name_breaks_a_line_or_the_markdown():
    name = "a\nb\x1b[31m|c\\|*d*`<e>"
    rows = table([result(method=name), result()])
    first = as_markdown(rows).splitlines()[4]
    assert first.startswith(r"| a\\nb\\x1b\[31m\|c\\\|\*d\*\`\<e> | 80.20 |")
    assert r"a\nb\x1b[31m|c\|*d*`<e>" in as_text(rows, 200)


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
def test_table_holds_the_latest_score_on_the_most_images_of_every_cell(runs):
    rows = {(row["method"], row["backbone"]): row for row in table(runs)}
    chosen = {}
    for run in runs:
        cell = run["method"], run["backbone"], run["dataset"]
        if cell not in chosen or (run["images"], run["date"]) >= (chosen[cell]["images"], chosen[cell]["date"]):
            chosen[cell] = run
    assert len(rows) == len({cell[:2] for cell in chosen})
    for (method, backbone, dataset), run in chosen.items():
        row = rows[method, backbone]
        whole = run["images"] == 1449 and run["mIoU"] is not None
        assert row.get(dataset) == run["mIoU"]
        assert row.get(f"{dataset} published") == (run["published"] if whole else None)
        assert (row.get(f"{dataset} difference") is not None) == (whole and run["published"] is not None)
        assert row.get(f"{dataset} images") == (108 if run["images"] == 108 and run["mIoU"] is not None else None)


@given(some_runs, st.integers(20, 300))
def test_text_of_any_width_drops_nothing(runs, width):
    rows = table(runs)
    lines = as_text(rows, width).splitlines()
    words = {word.rstrip(",") for line in lines for word in line.split()}
    markdown = as_markdown(rows).splitlines()
    for row in map(cells, markdown[markdown.index("") + 3 :]):
        assert set(" ".join(row).split()) <= words
    if width >= 60:  # room for the widest column
        assert max(map(len, lines)) <= width
