"""The benchmark's transcription against the golden numbers, and what the program writes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import benchmark
from benchmarking import inputs, measure, published

from clearclip.backbones import load_backbone
from clearclip.decode import Decoder
from clearclip.images import read_image
from clearclip.methods import create_method
from clearclip.segmenter import Segmenter

DISTINCT, SYNONYMS = (0, 1, 2, 3, 4, 5, 6), (0, 0, 1, 2, 2, 3, 4)
PIPELINES = {  # name: input, crop, stride, classes of the queries, temperature, threshold
    "slide64_32.112x160.ori150x213.q7": ("image_112x160", 64, 32, DISTINCT, 50, 0.0),
    "slide64_32.112x160.ori150x213.synonyms": ("image_112x160", 64, 32, SYNONYMS, 50, 0.0),
    "slide64_32.112x160.ori150x213.threshold": ("image_112x160", 64, 32, SYNONYMS, 20, 0.6),
    "slide448_224.80x48.small": ("image_80x48", 448, 224, DISTINCT, 50, 0.0),
}


def no_lap(stage):
    pass


@pytest.mark.parametrize("name", PIPELINES)
def test_transcription_gives_the_golden_labels(name, golden, tiny_backbone):
    image, crop, stride, query_class, temperature, threshold = PIPELINES[name]
    images, text, expected = golden("inputs")[image], golden("inputs")["text"], golden("pipeline")[f"{name}/labels"]
    with torch.inference_mode():
        results = published.published_vit(tiny_backbone.visual, images, text, crop, stride)
        merged = published.published_stitch(results, images)
        logits = torch.nn.functional.interpolate(merged, size=expected.shape[1:], mode="bilinear")[0]
        labels = published.published_decode(logits, query_class, temperature, threshold)
        strips = published.decode_in_strips(merged, tuple(expected.shape[1:]), DISTINCT, rows=40, queries=3)
    assert torch.equal(labels, expected[0].long())
    assert torch.equal(strips, published.published_decode(logits, DISTINCT))


@pytest.fixture
def case(tiny_backbone, tmp_path):
    """A segmenter, queries, an image file and its ground truth, all small."""
    segmenter = Segmenter("ClearCLIP", tiny_backbone, short_side=448)
    with torch.inference_mode():
        path, truth = inputs.make_image(inputs.Case("", 90, 130, 9), tmp_path)
        yield segmenter, inputs.make_queries(9, segmenter), path, truth


def test_both_passes_give_what_the_segmenter_gives(case):
    segmenter, queries, path, truth = case
    (expected,) = segmenter.segment([torch.from_numpy(read_image(path)).permute(2, 0, 1)], queries)
    assert len(expected.unique()) > 2
    assert torch.equal(measure.engine_pass(segmenter, queries, path, truth, no_lap), expected)
    labels, merged = published.published_pass(segmenter.backbone, segmenter, queries, path, truth, no_lap)
    differing, gap = measure.compare(expected, labels, merged)
    assert differing < 5
    assert gap < measure.TIE


def test_differing_labels_are_counted_and_weighed(case):
    segmenter, queries, path, truth = case
    labels, merged = published.published_pass(segmenter.backbone, segmenter, queries, path, truth, no_lap)
    wrong = labels.clone()
    wrong[:2, :3] = (wrong[:2, :3] + 1) % 9
    differing, gap = measure.compare(wrong, labels, merged)
    assert differing == 6
    assert gap > measure.TIE
    assert measure.compare(labels, labels, merged) == (0, 0.0)


def test_operations_are_those_that_torch_counts(tiny_backbone):
    method, text = create_method("ClearCLIP", tiny_backbone), torch.randn(7, 48)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        method.scores(tiny_backbone.trunk(torch.randn(3, 3, 96, 64)), text)
    assert measure.vit_operations(tiny_backbone, 3, 96, 64, 7) == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_program(right, tiny_folder, tmp_path, monkeypatch, capsys):
    small = inputs.Case("small", 90, 130, 9)
    monkeypatch.setattr(benchmark, "CASES", {"small": small})
    monkeypatch.setattr(benchmark, "run_growth", lambda *_: {"images": [(1, 0.5, None)], "classes": [(2, 0.1, 0.2)]})
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *_: 1e11)
    if not right:
        monkeypatch.setattr(Decoder, "labels", lambda self, maps: torch.zeros(90, 130).byte())
    files = tmp_path / "figures.json", tmp_path / "picture.png"
    arguments = ["--quick", "--backbones", f"local-dir:{tiny_folder}", "--cases", "small", "--device", "cpu"]
    benchmark.main([*arguments, "--json", str(files[0]), "--picture", str(files[1])])

    rows = {row["stage"]: row for row in json.loads(files[0].read_text())}
    assert set(rows) == {*measure.STAGES, "image", "text, cold", "text, warm"}
    for stage, row in rows.items():
        assert row["case"].startswith("3 classes" if "text" in stage else "small")
        assert row["device"] == "cpu"
        assert row["ratio"] == pytest.approx(row["reference_s"] / row["engine_s"])
        assert min(row["reference_s"], row["engine_s"], row["reference_spread_s"], row["engine_spread_s"]) >= 0
        assert row["labels_equal"] is ("text" in stage or right)
        if Path("/proc/self/clear_refs").exists():
            assert row["reference_peak_bytes"] is None or row["reference_peak_bytes"] > 0
    assert rows["image"]["engine_s"] > rows["ViT"]["engine_s"] > 0
    assert files[1].read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "stitch+decode" in printed
    assert "images a second" in printed


def test_the_engine_may_run_in_another_precision(tiny_folder, tiny_backbone, tmp_path):
    coarse = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="bf16")
    with torch.inference_mode():
        rows, _ = measure.run_case(
            inputs.Case("small", 90, 130, 9), tiny_backbone, Segmenter("ClearCLIP", coarse), tmp_path, 1
        )
    assert 0 < rows[-1]["differing_pixels"] < 90 * 130 / 2  # against float32
    assert not rows[-1]["labels_equal"]


def test_a_reference_that_does_not_fit_is_counted(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "available_bytes", lambda device: 1 << 20)
    with torch.inference_mode():
        rows, note = measure.run_case(
            inputs.Case("large", 200, 300, 9), tiny_backbone, Segmenter("ClearCLIP", tiny_backbone), tmp_path, 1
        )
    image = rows[-1]
    assert (image["stage"], image["reference_s"], image["ratio"]) == ("image", None, None)
    assert image["reference_peak_bytes"] == 3 * 9 * 200 * 300 * 4
    assert image["engine_s"] > 0
    assert image["labels_equal"]
    assert "counted, not measured" in note


@pytest.mark.parametrize("cases", [1, 2, 4])
def test_the_picture_shows_every_case_and_the_growth(cases, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    stages = [dict(stage=stage, reference_s=2.0, engine_s=1.0, ratio=2.0) for stage in measure.STAGES]
    rows = [dict(row, case=f"case {number}") for number in range(cases) for row in stages]
    growth = {what: [(1, 0.1, None), (2, 0.2, None)] for what in ("images", "windows", "classes")}
    benchmark.draw(rows, growth, tmp_path / "picture.png")
    shown = [axis.get_title() for axis in plt.gcf().axes if axis.get_visible()]
    assert len(shown) == cases + len(growth)
    assert "" not in shown


def test_unknown_case(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--cases", "VOC12"])
    assert "unknown case VOC12" in capsys.readouterr().err


def test_random_weights_of_a_real_architecture():
    backbone = inputs.make_backbone("ViT-B-32", None, "cpu", "auto")
    assert (backbone.name, backbone.tag, backbone.patch_size, len(backbone.blocks)) == ("ViT-B-32", "random", 32, 12)
    with torch.inference_mode():
        assert backbone.trunk(torch.zeros(1, 3, 64, 64)).tokens().shape == (1, 5, 768)


@pytest.mark.slow
def test_one_pass_beside_single_runs(tiny_folder, tmp_path, monkeypatch, capsys):
    from benchmarking import passes

    monkeypatch.setattr(passes, "RUNS", {"two methods": (("voc20", "voc21"), ("CLIP", "ClearCLIP"))})
    file = tmp_path / "figures.json"
    benchmark.main(["--passes", "2", "--backbones", f"local-dir:{tiny_folder}", "--device", "cpu", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert row["runs"] == 4
    assert row["scores_equal"]
    for clock in ("", "cpu_"):
        assert row[f"{clock}ratio"] == pytest.approx(row[f"{clock}single_s"] / row[f"{clock}pass_s"])
    assert "4 single runs" in capsys.readouterr().out


def test_other_scores_are_noticed(tiny_backbone, tmp_path, monkeypatch):
    from benchmarking import passes

    timed, calls = passes.timed, []

    def one_digit_less(jobs, records):
        found = timed(jobs, records)
        calls.append(records)
        return found._replace(scores=[{**score, "mIoU": 0.0} for score in found.scores]) if len(calls) == 3 else found

    monkeypatch.setattr(passes, "timed", one_digit_less)
    passes.prepare(tmp_path, 1, tiny_backbone.dim)
    assert not passes.measure_runs("one", ("voc20",), ("CLIP",), tiny_backbone, tmp_path)["scores_equal"]


def test_the_ablation_has_twenty_cells():
    from benchmarking.passes import ABLATION

    assert len({*ABLATION}) == 20


def test_a_large_picture_from_its_file_to_files(tiny_backbone, tmp_path, capsys):
    from benchmarking import large

    with torch.inference_mode():
        rows = large.run(tiny_backbone, 0.03, tmp_path)
    assert [row["stage"] for row in rows][-2:] == ["stitch, labels", "draw, write"]
    assert all(row["seconds"] > 0 for row in rows)
    assert {"large_overlay.png", "large_labels.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "times the network" in capsys.readouterr().out


def test_refinements_beside_the_floor_of_their_arithmetic(tiny_backbone, monkeypatch, capsys):
    from benchmarking import refinements

    monkeypatch.setitem(inputs.CASES, "VOC20", inputs.Case("VOC20", 60, 80, 5))
    monkeypatch.setattr(refinements, "LARGE", 64)
    monkeypatch.setattr(refinements, "METHODS", ("ClearCLIP", "ResCLIP", "CLIPer"))
    with torch.inference_mode():
        rows = refinements.run(tiny_backbone)
    assert [row["stage"] for row in rows] == [*refinements.WORK, *refinements.METHODS, "PAMR"]
    for row in rows[:-1]:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_s"])
        assert row["floor_s"] == pytest.approx(sum(row["floor_parts_s"].values()))
    products = {row["stage"]: row["floor_parts_s"].get("products", 0) for row in rows[:-1]}
    assert min(products["CLIPer"], products["ResCLIP"]) > products["ClearCLIP"] > products["LPP"] == 0
    assert "PAMR, 847 classes" in capsys.readouterr().out
