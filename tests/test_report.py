"""The HTML report: what it says, that it says nothing false of parts, and that no name breaks it."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import TINY_CONFIG, picture, save_model
from PIL import Image
from sample_records import record
from sample_results import result

from clearclip.cli import eval as evaluation
from clearclip.cli import report as command
from clearclip.errors import UserError
from clearclip.evaluation.report import find, gather, write_report
from clearclip.evaluation.report.figures import axis, gains
from clearclip.evaluation.report.markup import escaped, tag
from clearclip.evaluation.results import read_result, write_result
from clearclip.evaluation.statistics import Interval, paired, worst

CLASSES = ["cat", "sofa", "potted plant", "tv"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br"}


@pytest.fixture
def runs(tmp_path):
    """Three methods on one whole benchmark, with records."""
    for seed, (method, right) in enumerate([("CLIP", 0.4), ("ClearCLIP", 0.8), ("SC-CLIP", 0.9)]):
        record(
            tmp_path, method, right, CLASSES, seed=seed, seconds=0.1 * (seed + 1), benchmark_images=12,
            published=80.9 if method == "ClearCLIP" else None,
        )  # fmt: skip
    return tmp_path


class Page(HTMLParser):
    """The text of a page, its tags and attributes; an element that is not closed is an error."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(folder, *paths, **options):
    """The report as text, of everything in a folder unless paths are given."""
    out = folder / "report.html"
    write_report(find(paths or [folder / "runs"], folder / "records"), out, **options)
    return out.read_text(encoding="utf-8")


def test_a_report_has_scores_differences_classes_and_confusions(runs):
    report = gather(find([runs / "runs"], runs / "records"))
    (voc20,) = report.data_sets
    assert [entry.label for entry in voc20.entries] == ["CLIP", "ClearCLIP", "SC-CLIP"]
    clip, clear, sc = voc20.entries
    assert voc20.top is sc
    assert clear.gain is None
    assert clip.gain.mIoU.high < 0 < sc.gain.mIoU.low
    assert [entry.seconds for entry in voc20.entries] == pytest.approx([0.1, 0.2, 0.3], abs=0.01)
    assert clear.beyond_published == pytest.approx(clear.mIoU - 80.9)
    assert not report.notes

    text = Page(written(runs, pictures=2)).text
    for number in (f"{sc.mIoU:.1f} ±", f"+{sc.gain.mIoU.value:.1f}", "published 80.9"):
        assert number in text
    pair = sc.pairs[0]
    assert f"{pair.truth} {pair.prediction} {pair.percent:.1f} {pair.pixels:,}" in text
    assert "wins 4, loses 0, 0 ≈" in text


def test_a_difference_is_that_of_the_records_on_the_same_images(runs):
    from clearclip.evaluation.records import Records

    (data,) = gather(find([runs / "runs"], runs / "records"), against="CLIP").data_sets
    with Records.open(runs / "records" / "1-of-1.sqlite", readonly=True) as records:
        areas = {run.identity["method"][0][0]: run.areas() for run in records.runs()}
        samples = sorted(records.runs()[0].done())
    expected = paired(areas["SC-CLIP"], areas["CLIP"])
    assert data.entries[2].gain.mIoU == expected.mIoU
    assert data.entries[2].worst == worst(areas["SC-CLIP"], samples, 3)


def test_a_part_is_marked_and_not_compared_with_what_was_published(tmp_path):
    record(tmp_path, "CLIP", 0.4, CLASSES, benchmark_images=1449, published=80.9)
    record(tmp_path, "ClearCLIP", 0.8, CLASSES, seed=1, benchmark_images=1449, published=80.9)
    html = written(tmp_path, pictures=0)
    assert "12 of 1,449 images" in html
    assert "published 80.9" not in html
    assert 'class="published"' not in html


def test_the_best_of_a_column_is_among_those_on_the_most_images(tmp_path):
    record(tmp_path, "CLIP", 0.4, CLASSES, benchmark_images=12)
    record(tmp_path, "ClearCLIP", 0.8, CLASSES, seed=1, images=4, benchmark_images=12)
    report = gather(find([tmp_path / "runs"], tmp_path / "records"))
    assert report.data_sets[0].top.label == "CLIP"
    assert all(entry.gain is None for entry in report.data_sets[0].entries)  # of other images


def test_a_class_on_few_images_is_never_won(tmp_path):
    for seed, (method, right) in enumerate([("ClearCLIP", 0.5), ("SC-CLIP", 1.0)]):
        record(tmp_path, method, right, CLASSES, images=2, seed=seed, benchmark_images=2)
    gain = gather(find([tmp_path / "runs"], tmp_path / "records")).data_sets[0].entries[1].gain
    assert all(str(one.low) == "nan" and one.value > 0 for one in gain.IoU)
    assert "wins 0, loses 0, 4 ≈" in Page(written(tmp_path, pictures=0)).text


def test_runs_that_shared_a_pass_have_no_cost_of_their_own(tmp_path):
    for seed, method in enumerate(["CLIP", "ClearCLIP"]):
        record(tmp_path, method, 0.5, CLASSES, seed=seed, seconds=0.5, benchmark_images=12)
    report = gather(find([tmp_path / "runs"], tmp_path / "records"))
    assert [(entry.shared, entry.seconds) for entry in report.data_sets[0].entries] == [(True, None)] * 2
    assert "2 runs shared a pass" in written(tmp_path, pictures=0)


EVIL = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x00b\x1b[31m\u2028", "&amp; 'quoted'", "\ud800",
    "</style></title>", "javascript:alert(1)", "猫 🐈", "=1+1", "x" * 5000,
]  # fmt: skip


def test_no_name_is_more_than_text(tmp_path):
    plain = [name for name in EVIL if name != "\ud800"]  # which no record holds
    for seed, method in enumerate(["ClearCLIP", EVIL[0]]):
        path = record(tmp_path, f"M{seed}", 0.5, plain, seed=seed, benchmark_images=12)
        made = json.loads(path.read_text())
        made |= dict(method=method, text=EVIL[1], device=EVIL[4], config=EVIL[5], published=3.0)
        write_result(made | dict(published_source=EVIL[1], pretrained=EVIL[2]), path.parent)
    html = written(tmp_path, pictures=2, title=EVIL[5])
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", html)
    assert EVIL[0] in page.text


def test_what_the_page_may_load_is_nothing(runs):
    page = Page(written(runs, pictures=0))
    policy = next(value for _, value in page.attributes if value and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert not [v for k, v in page.attributes if k in ("src", "href") and not v.startswith(("#", "data:"))]


def test_escaping():
    assert (
        tag("p", "a<b", tag("b", "&"), None, [1, "c"], class_="x'y") == '<p class="x&#x27;y">a&lt;b<b>&amp;</b>1c</p>'
    )
    assert escaped("\x1b") == r"\x1b"


def test_axes_hold_their_values():
    for values in ([0, 0], [79.3], [36.3, 82.7], [-3.2, 4.1], [0.001, 0.002], [-76, 100]):
        low, high, step = axis(values)
        assert low <= min(values) <= max(values) <= high
        assert 1 <= round((high - low) / step) <= 12
    assert "≈" in gains([("cat", Interval(1.0, -1.0, 2.0))], "title")


# --- what is missing --------------------------------------------------------------------------------------------------


def test_without_records_a_report_says_what_it_lacks(tmp_path):
    for method in ("ClearCLIP", "SC-CLIP"):
        made = result(method=method, record="gone", differences={"ClearCLIP": [0.4, -0.2, 1.0]})
        write_result(made | {"confused": [["cat", "sofa", 1200, 3.5]]}, tmp_path / "runs" / method)
    report = gather(find([tmp_path / "runs"], tmp_path / "records"))
    assert len(report.notes) == 2
    text = Page(written(tmp_path)).text
    assert "its records were not found" in text
    assert "cat sofa 3.5 1,200" in text


def test_records_alone_are_shown(runs):
    text = Page(written(runs, runs / "records", pictures=0)).text
    assert "3 runs of 3 methods" in text
    one = Page(written(runs, runs / "records" / "1-of-1.sqlite", pictures=0)).text
    assert "3 runs of 3 methods" in one


def test_without_data_or_weights_images_are_named(runs):
    text = Page(written(runs, pictures=2)).text
    assert "no config.py lies beside the result" in text
    assert "images/000.jpg" in text or "images/001.jpg" in text


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["gone"], "gone does not exist"), (["empty"], "empty holds no result.json"), (["note.txt"], "is no result")],
)
def test_bad_input_is_one_sentence(tmp_path, paths, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(UserError, match=message):
        find([tmp_path / path for path in paths])


def test_bad_options_are_one_sentence(runs, capsys):
    for arguments, message in [
        (["-o", "report.pdf"], "let it end in .html"),
        (["--against", "GEM"], "no run has that method; there are CLIP, ClearCLIP, SC-CLIP"),
        (["--pictures", "-1"], "0 or more"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            command.main([str(runs / "runs"), "--records", str(runs / "records"), *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_a_damaged_result_is_noted_and_the_others_are_shown(runs):
    (runs / "runs" / "voc20" / "CLIP" / "result.json").write_text("{")
    html = written(runs, pictures=0)
    assert "is damaged, it is no JSON" in html
    assert "SC-CLIP" in html


def test_a_page_that_would_be_too_large_is_refused(runs, monkeypatch):
    monkeypatch.setattr("clearclip.evaluation.report.LIMIT", 1000)
    with pytest.raises(UserError, match="fewer --pictures"):
        written(runs, pictures=0)


# --- size, and a browser ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_report_stays_small(tmp_path):
    """Six methods on a data set of 171 classes: a third of what a table of all methods has there."""
    names = [f"a class of number {index}" for index in range(171)]
    for seed in range(6):
        record(tmp_path, ["ClearCLIP", *"ABCDE"][seed], 0.3 + 0.1 * seed, names, images=40, seed=seed,
               dataset="coco_stuff164k", benchmark_images=40)  # fmt: skip
    start = time.process_time()
    html = written(tmp_path, pictures=0)
    assert len(html) < 20e6 / 24  # 24 times as many runs: 18 methods, 8 data sets
    assert time.process_time() - start < 60


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_and_sorts_it(runs, width):
    html = written(runs, pictures=0)
    probe = """
      const head = document.querySelectorAll("#table ~ .scroll th > button")[1];
      head.click();
      const first = head.closest("table").tBodies[0].rows[0].cells[0].textContent;
      for (const each of document.querySelectorAll("details")) each.open = true;
      const wide = [...document.querySelectorAll(".scroll, .plot, .card, p, summary")].filter(
        each => each.getBoundingClientRect().right > innerWidth - 10);
      document.title = `sorted: ${first}; ${head.parentElement.ariaSort}; ${wide.length} too wide`;
    """
    page = html.replace("</body>", f"<script>{probe}</script></body>")
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()  # the page runs no other scripts
    page = page.replace("script-src ", f"script-src &#x27;sha256-{digest}&#x27; ")
    (runs / "probe.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={runs / 'profile'}", "--dump-dom", (runs / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert "<title>sorted: SC-CLIP; descending; 0 too wide</title>" in done.stdout


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path, monkeypatch, tiny_state):
    """Two methods of a tiny CLIP evaluated on three photographs."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "masks", "tiny"):
        (tmp_path / name).mkdir()
    save_model(tmp_path / "tiny", {"model_cfg": TINY_CONFIG}, tiny_state)
    for index in range(3):
        Image.fromarray(picture(48, 64, index)).save(tmp_path / "photos" / f"{index}.png")
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 20 + 10 * index :], labels[0] = 1, 255
        Image.fromarray(labels).save(tmp_path / "masks" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("field, meadow\n<b>sky</b>\nsea\n")
    own = ["--images", "photos", "--masks", "masks", "--classes", "classes.txt", "--device", "cpu"]
    for method in ("CLIP", "ClearCLIP"):
        evaluation.main([*own, "--backbone", "local-dir:tiny", "--method", method])
    return tmp_path


def report_of(folder, capsys, *options):
    """The report on all runs in a folder, by the command, and what it printed."""
    command.main(["-o", "report.html", *options])
    return Page((folder / "report.html").read_text(encoding="utf-8")), capsys.readouterr()


@pytest.mark.slow
def test_images_are_segmented_again_as_they_were_counted(evaluated, capsys):
    page, printed = report_of(evaluated, capsys, "--pictures", "1")
    assert "2 runs in report.html" in printed.out
    (data,) = gather(find(["work_dirs"]), pictures=1).data_sets
    top = data.top
    shown = [value for name, value in page.attributes if name == "src"]
    assert len(shown) == 8  # image, ground truth and two methods, of the worst and the best
    first = Image.open(io.BytesIO(base64.b64decode(shown[0].partition(",")[2])))
    assert first.size == (64, 48)
    for _, score in (*top.worst, *top.best):
        assert page.text.count(f"{top.label}, mIoU {score:.1f}") >= 1
    assert "<b>sky</b>" in page.text
    kept = read_result(next(evaluated.rglob("*ClearCLIP*/result.json")))["confused"]
    clear = next(entry for entry in data.entries if entry.run["method"] == "ClearCLIP")
    assert [tuple(pair) for pair in kept] == [tuple(pair) for pair in clear.pairs]


@pytest.mark.slow
def test_what_is_missing_for_pictures_is_said(evaluated, capsys):
    (evaluated / "tiny" / "open_clip_model.safetensors").unlink()
    page, _ = report_of(evaluated, capsys, "--pictures", "1")
    assert page.tags.count("img") == 4  # images and ground truth
    assert "was not run again:" in page.text
    shutil.rmtree(evaluated / "photos")
    page, _ = report_of(evaluated, capsys, "--pictures", "1")
    assert "img" not in page.tags
    assert "No pictures, or not all:" in page.text
