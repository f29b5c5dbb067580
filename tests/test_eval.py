"""eval.py on tiny data sets, run as a user runs it or, where the start of a process adds nothing, called here."""

import copy
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import torch
from benchmarks import LAYOUTS, SHAPES, make_benchmarks, run, single_error
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import save_file

from clearclip.evaluation import run as evaluation
from clearclip.evaluation.evaluate import Job, evaluate_all
from clearclip.evaluation.pictures import Pictures
from clearclip.evaluation.progress import Progress
from clearclip.evaluation.results import Result, read_result
from clearclip.evaluation.run import backbone_settings, default_work_dir, load_config
from clearclip.methods import METHODS
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import load_vocabulary
from eval import main

# isort: split
from mmseg.registry import METRICS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SCORES = ("mIoU", "aAcc", "mAcc", "per_class_IoU")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmarks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(autouse=True)
def _here(data, cache, tmp_path, monkeypatch):
    """Work in an empty folder; names are embedded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    monkeypatch.setenv("CLEARCLIP_CACHE", str(cache))


@pytest.fixture
def evaluate(tiny_folder):
    """`evaluate(config, *arguments, **model_settings)`: run eval.py in this process and return the result."""

    def evaluate(config, *arguments, batch_size=4, **settings):
        settings = {"device": "cpu", "templates": "single"} | settings
        main([
            str(CONFIGS / f"{config}.py"), "--backbone", f"local-dir:{tiny_folder}", "--work-dir", "run", *arguments,
            "--cfg-options", "test_dataloader.num_workers=0", f"test_dataloader.batch_size={batch_size}",
            *(f"model.{key}={value}" for key, value in settings.items()),
        ])  # fmt: skip
        return read_result("run/result.json")

    return evaluate


@pytest.fixture
def fails(evaluate, capsys):
    """`fails(…)`: the same for a run that ends with an error; returns its message."""

    def fails(*arguments, **settings):
        with pytest.raises(SystemExit) as exit:
            evaluate(*arguments, **settings)
        assert exit.value.code == 2
        return single_error(capsys.readouterr().err)

    return fails


def runs(workbook="results.xlsx"):
    """The rows of the workbook's sheet of runs."""
    header, *rows = openpyxl.load_workbook(workbook)["runs"].values
    return [dict(zip(header, row)) for row in rows]


def scores(result):
    return {key: result[key] for key in SCORES}


def test_command_line(tiny_folder, data, tmp_path):
    command = [sys.executable, ROOT / "eval.py", CONFIGS / "cfg_voc20.py", "--backbone", f"local-dir:{tiny_folder}"]
    done = run(*command, cwd=tmp_path, data=data)
    assert done.returncode == 0, done.stderr
    work_dir = next(tmp_path.glob("work_dirs/clearclip/voc20/ClearCLIP_local-dir*"))
    result = read_result(work_dir / "result.json")
    assert result.keys() >= Result.__required_keys__ | {"interval", "metrics"}
    assert result["images"] == len(SHAPES)
    assert (result["method"], result["dataset"], result["protocol"]) == ("ClearCLIP", "voc20", "clearclip")
    assert (result["backbone"], result["text"]) == (tiny_folder.name, "imagenet80")
    assert result["published"] is None  # these are not the weights of the paper
    assert [run["mIoU"] for run in runs()] == [pytest.approx(result["mIoU"])]  # Excel keeps 15 digits

    # All that a user is shown, and all that is left behind.
    assert re.fullmatch(r"(test: \d/3 images, .*\n)+", done.stderr)
    work_dir = work_dir.relative_to(tmp_path)
    assert done.stdout.endswith(f"images/s; {work_dir}/result.json\nappended to results.xlsx\n")
    assert f"ClearCLIP  {result['mIoU']:.2f} ± {result['interval']:.2f} (3 img)\n" in done.stdout
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        f"{work_dir}/result.json", f"{work_dir}/config.py", "work_dirs/records/1-of-1.sqlite", "results.xlsx",
        "results.xlsx.lock",
    }  # fmt: skip


def measure(segmenter, dataset, vocabulary, first, data):
    """Scores of a `Segmenter` on a tiny benchmark by plain counting; label `first` is class 0."""
    vocabulary = load_vocabulary(CONFIGS / vocabulary)
    counts = np.zeros((len(vocabulary), len(vocabulary)), int)  # [truth, prediction]
    for image, label in LAYOUTS[dataset].files(data):
        raw = np.asarray(Image.open(label)).astype(int)
        predicted = segmenter(image, vocabulary).labels
        assert predicted.shape == raw.shape
        known = (raw >= first) & (raw != 255)
        np.add.at(counts, (raw[known] - first, predicted[known]), 1)
    right, union, truth = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts), counts.sum(1)
    return {
        "mIoU": np.mean(100 * right[union > 0] / union[union > 0]),
        "aAcc": 100 * right.sum() / counts.sum(),
        "mAcc": np.mean(100 * right[truth > 0] / truth[truth > 0]),
        "per_class_IoU": [100 * r / u if u else None for r, u in zip(right, union)],
    }


@pytest.mark.parametrize(
    ("config", "vocabulary", "first", "settings"),
    [
        ("cfg_ade20k", "cls_ade20k.txt", 1, {}),
        ("cfg_voc21", "cls_voc21.txt", 0, {"threshold": 0.5}),
        ("cfg_city_scapes", "cls_city_scapes.txt", 0, {"crop": 224}),
        ("sclip/cfg_voc21", "sclip/cls_voc21.txt", 0, {
            "method": "SCLIP", "short_side": 336, "crop": 224, "stride": 112, "logit_scale": 65, "threshold": 0.1,
            "area_threshold": 0.1,
        }),
        ("naclip/cfg_voc20", "sclip/cls_voc20.txt", 1, {
            "method": "NACLIP", "short_side": 336, "crop": 0, "two_steps": True,
        }),
    ],
)  # fmt: skip
def test_scores_are_those_of_a_segmenter(config, vocabulary, first, settings, evaluate, tiny_backbone, data):
    result = evaluate(config)
    segmenter = Segmenter(backbone=tiny_backbone, templates="single", **settings)
    expected = measure(segmenter, result["dataset"], vocabulary, first, data)
    assert list(result["per_class_IoU"].values()) == pytest.approx(expected.pop("per_class_IoU"), abs=1e-9)
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 0 < result["mIoU"] < 100
    assert result["protocol"] == (config.rpartition("/")[0] or "clearclip")
    elsewhere = {("method", result["method"]), ("two_steps", True)}
    assert result["settings"].items() >= settings.items() - elsewhere


def test_batches_do_not_change_scores(evaluate):
    one = evaluate("cfg_context60", batch_size=1, window_batch=1)
    three = evaluate("cfg_context60", batch_size=3, window_batch=8)
    assert scores(one) == scores(three)
    assert [run["run"] for run in runs()] == [1, 2]


def test_config_may_be_an_option_and_any_key_overridden(tiny_folder):
    options = ["model.short_side=224", "test_dataloader.num_workers=0"]
    options += ["model.device=cpu", "model.templates=single", "model.crop=224", "model.threshold=0.3"]
    arguments = ["--config", str(CONFIGS / "cfg_voc21.py"), "--backbone", f"local-dir:{tiny_folder}"]
    main([*arguments, "--results", "mine/table.xlsx", "--work-dir", "run", "--cfg-options", *options])
    settings = read_result("run/result.json")["settings"]
    expected = {"short_side": 224, "crop": 224, "stride": 224, "threshold": 0.3, "logit_scale": 50}
    assert settings.items() >= expected.items()
    assert len(runs("mine/table.xlsx")) == 1
    assert not Path("results.xlsx").exists()


def test_saved_config_repeats_the_run(evaluate):
    first = evaluate("cfg_voc21", "--method", "clearclip:residual=1", threshold=0.2)
    assert "save_dir" not in Path("run/config.py").read_text()  # of that one run
    main(["run/config.py", "--work-dir", "again"])
    again = read_result("again/result.json")
    changing = {"date", "seconds", "images_per_second", "config"}
    assert {key: first[key] for key in first.keys() - changing} == {key: again[key] for key in again.keys() - changing}
    assert first["method"] == "ClearCLIP:residual=1"  # as it is spelt


def test_method_with_options(evaluate):
    plain = evaluate("cfg_voc20")
    changed = evaluate("cfg_voc20", "--method", "ClearCLIP:attention=kk,residual=1")
    assert changed["method"] == "ClearCLIP:attention=kk,residual=1"
    assert changed["per_class_IoU"] != plain["per_class_IoU"]


def test_every_metric_is_kept(tiny_folder, fails):
    arguments = ["voc21", "--backbone", f"local-dir:{tiny_folder}", *OPTIONS]
    main([*arguments, "test_evaluator.iou_metrics=mDice"])
    result = read_result("run/result.json")
    assert set(result["metrics"]) == {"mDice"}
    assert result["metrics"]["mDice"] > result["mIoU"] > result["interval"] > 0
    assert "no metric 'mDise' in iou_metrics" in fails("cfg_voc21", "--cfg-options", "test_evaluator.iou_metrics=mDise")


def test_pictures(evaluate):
    evaluate("cfg_voc20", "--show-dir", "pictures")
    assert {path.name for path in Path("pictures").iterdir()} == {f"{name}.png" for name in SHAPES}
    for name, (height, width) in SHAPES.items():
        with Image.open(f"pictures/{name}.png") as picture:
            assert picture.width > 2 * width  # in two rows
            assert picture.height > 2 * height


def test_pictures_of_images_that_are_counted_already(evaluate):
    """All are drawn, and none of another run stays; the digits are those of the records."""
    expected = evaluate("cfg_voc20", "--show-dir", "pictures")
    first = min(Path("pictures").iterdir())
    content = first.read_bytes()
    first.unlink()
    assert scores(evaluate("cfg_voc20", "--show-dir", "pictures")) == scores(expected)
    assert first.is_file()
    evaluate("cfg_voc20", "--show-dir", "pictures", "--method", "CLIP")
    assert first.read_bytes() != content


def test_a_picture_that_cannot_be_drawn_costs_no_evaluation(evaluate, monkeypatch, capsys):
    expected = evaluate("cfg_voc20", "--records", "plain")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Pictures, "_save", full)
    assert scores(evaluate("cfg_voc20", "--show-dir", "pictures", "--records", "drawn")) == scores(expected)
    assert capsys.readouterr().err.count("No space left on device); the evaluation goes on") == 1


@METRICS.register_module(force=True)
class Sizes(BaseMetric):
    def process(self, data_batch, data_samples):
        for sample in data_samples:
            assert sample["pred_sem_seg"]["data"].shape == sample["gt_sem_seg"]["data"].shape
            self.results.append(
                (torch.tensor(sample["pred_sem_seg"]["data"].numel()), data_batch["inputs"][0].shape[0])
            )

    def compute_metrics(self, results):
        return {"pixels": sum(pixels for pixels, _ in results), "channels": results[0][1], "mIoU": 7.0, "name": "x"}


@METRICS.register_module(force=True)
class Odd(Sizes):
    def process(self, data_batch, data_samples):
        self.results.append(object())


def test_metrics_of_ones_own_see_each_image_once(tiny_folder, fails, capsys):
    base = "_base_ = 'voc20'\ntest_evaluator = "
    Path("mine.py").write_text(f"{base}[dict(type='ClassIoUMetric'), dict(type='Sizes')]")
    arguments = ["mine.py", "--backbone", f"local-dir:{tiny_folder}", *OPTIONS]
    for _ in range(2):  # the second reads the records
        main(arguments)
        expected = {"pixels": sum(h * w for h, w in SHAPES.values()), "channels": 3, "Sizes/mIoU": 7.0}
        assert read_result("run/result.json")["metrics"] == expected
    for metrics, message in (
        ("[dict(type='ClassIoUMetric'), dict(type='Odd')]", "metric Odd keeps a object of an image"),
        ("[dict(type='Sizes')]", "test_evaluator has 0 metrics of type ClassIoUMetric"),
    ):
        Path("mine.py").write_text(f"{base}{metrics}")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in single_error(capsys.readouterr().err)


def test_text_embeddings_serve_a_checkpoint_without_text_tower(evaluate, tiny_folder, tiny_state, fails):
    folder = Path("vision")
    shutil.copytree(tiny_folder, folder)
    vision = {key: value for key, value in tiny_state.items() if key.startswith("visual.")}
    save_file(vision, folder / "open_clip_model.safetensors")
    names = load_vocabulary(CONFIGS / "cls_voc20.txt").classes
    rows = torch.randn(len(names), 48, generator=torch.Generator().manual_seed(0))
    TextEmbeddings(names, rows).save("voc20.safetensors")

    assert "holds no text tower" in fails("cfg_voc20", "--backbone", f"local-dir:{folder}")
    result = evaluate("cfg_voc20", "--backbone", f"local-dir:{folder}", "--text-embeddings", "voc20.safetensors")
    assert result["text"] == "voc20.safetensors"
    assert result["mIoU"] > 0


def test_missing_data_set(tiny_folder, data, tmp_path):
    command = [sys.executable, ROOT / "eval.py", CONFIGS / "cfg_voc20.py", "--backbone", f"local-dir:{tiny_folder}"]
    done = run(*command, cwd=tmp_path, data=tmp_path / "nowhere")
    assert done.returncode == 2
    error = single_error(done.stderr)
    assert f"data set voc20 not found: no file {tmp_path}/nowhere/VOCdevkit/VOC2012" in error
    assert "CLEARCLIP_DATA" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("variable", "place"), [("", "data"), ("~/sets", "{home}/sets")])
def test_data_root_may_be_empty_or_in_the_home_folder(variable, place, fails, monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARCLIP_DATA", variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"no file {place.format(home=tmp_path)}/VOCdevkit/VOC2012;" in fails("cfg_voc20")


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["--method", "CLAP"], {}, "unknown method 'CLAP'; use one of"),
        (["--method", "ClearCLIP:spice=1"], {}, "spice"),
        (["--method", "ClearCLIP:residual"], {}, "must be written key=value"),
        (["--backbone", "ViT-Z"], {}, "unknown backbone 'ViT-Z'; use one of ViT-B-32,"),
        (["--backbone", "RN50"], {}, "backbone RN50 is not supported"),
        (["--backbone", "local-dir:nowhere"], {}, "nowhere is not a model folder that can be used"),
        (["--text-embeddings", "nowhere.safetensors"], {}, "nowhere.safetensors do not exist"),
        (["--launcher", "pytorch"], {}, "dist_test.sh"),
        ([], {"temprature": 40}, "no setting model.temprature"),
        ([], {"temperature": "hot"}, "model.logit_scale must be a number"),
        ([], {"logit_scale": "hot"}, "model.logit_scale must be a number"),
        ([], {"logit_scale.x": 1}, "--cfg-options model.logit_scale.x=1 fits nothing"),
        ([], {"short_side": -1}, "model.short_side must be a whole number"),
        ([], {"batch_size": 0}, "batch_size must be 1 or more"),
        ([], {"precision": "fp12"}, "unknown precision 'fp12'"),
        ([], {"stride": 0}, "stride 0"),
        ([], {"method": "None"}, "model.method is missing"),
        ([], {"vocabulary": "nowhere.txt"}, "class file nowhere.txt"),
        ([], {"vocabulary": CONFIGS / "cls_voc21.txt"}, "has 21 classes, data set voc20 has 20"),
        (["--results", "results.csv"], {}, "results.csv is no name for a workbook: let it end in .xlsx"),
        (["--results", f"{__file__}/results.xlsx"], {}, "test_eval.py is no folder to write to"),
        (["--work-dir", f"{__file__}/run"], {}, "test_eval.py is no folder to write to"),
        (["--show-dir", __file__], {}, "test_eval.py is no folder to write to"),
    ],
)
def test_errors(arguments, settings, message, fails, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert message in fails("cfg_voc20", *arguments, **settings)


PIPELINE = "test_dataloader.dataset.pipeline"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temperature=40", "has no temperature; did you mean model.temperature?"),
        ("model_.logit_scal=40", "has no model_; did you mean model.logit_scale?"),
        ("num_workers=0", "did you mean test_dataloader.num_workers?"),
        ("foo.bar=1", "has no foo; there are default_scope,"),
        ("benchmark=1", "--cfg-options do not fit"),
        ("model=1", "--cfg-options do not fit"),
        ("benchmark.images=many", "benchmark.images must be a number of images, not 'many'"),
        ("test_evaluator=1", "cannot be built"),
        ("default_hooks=1", "default_hooks must be a dict"),
        (f"{PIPELINE}=1", "--cfg-options do not fit"),
        (f"{PIPELINE}.1.scale=foo", "leave out Resize and its scale, and set model.short_side=448"),
        (f"{PIPELINE}.1.scale=(2048,336)", "leave out Resize and its scale, and set model.short_side=336"),
        ("test_dataloader.drop_last=True", "test_dataloader.drop_last leaves images out"),
        (f"{PIPELINE}.0.type=Foo", "Foo"),
        ("test_dataloader.sampler.type=Foo", "test_dataloader.sampler is Foo"),
        ("test_dataloader.dataset.type=Foo", "Foo"),
        ("test_dataloader.num_workers=-1", "num_workers must be 0 or more, not -1"),
        ("test_dataloader.num_wrokers=1", "no setting test_dataloader.num_wrokers"),
    ],
)
def test_overrides_that_fit_nothing(option, message, tiny_folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main([
            str(CONFIGS / "cfg_voc20.py"), "--backbone", f"local-dir:{tiny_folder}", "--cfg-options",
            "model.device=cpu", "model.templates=single", option,
        ])  # fmt: skip
    assert exit.value.code == 2
    assert message in single_error(capsys.readouterr().err)


def own_config(data, name="voc21", root=None):
    """A config of the tiny benchmark that keeps the size of its images; the data may lie elsewhere."""
    Path("mine.py").write_text(f"""
_base_ = "{CONFIGS}/cfg_{name}.py"
model = dict(templates="single", device="cpu", short_side=0)
test_dataloader = dict(num_workers=0, dataset=dict(
    data_root="{root or data}/VOCdevkit/VOC2012",
))
""")
    return "mine.py"


@pytest.mark.parametrize("resize", ["cv2", "device"])
def test_a_short_side_of_0_keeps_the_size_of_images(resize, tiny_folder, tiny_backbone, data):
    options = ["--work-dir", "run", "--cfg-options", f"model.resize={resize}"]
    main([own_config(data), "--backbone", f"local-dir:{tiny_folder}", *options])
    result = read_result("run/result.json")
    assert result["settings"]["short_side"] == 0
    segmenter = Segmenter(backbone=tiny_backbone, templates="single", threshold=0.5, short_side=0)
    expected = measure(segmenter, "voc21", "cls_voc21.txt", 0, data)
    assert result["mIoU"] == pytest.approx(expected["mIoU"], abs=1e-9)


@pytest.fixture
def damaged(data, tmp_path):
    """VOC to spoil: the image and the label map of one of its three photographs."""
    shutil.copytree(data / "VOCdevkit/VOC2012", tmp_path / "spoilt/VOCdevkit/VOC2012")
    return LAYOUTS["voc21"].files(tmp_path / "spoilt")[1]


def spoil_image(image, labels):
    image.write_bytes(b"no picture")
    return f"{image} is not a picture that can be read"


def spoil_labels(image, labels):
    labels.write_bytes(b"no picture")
    return f"cannot read label map {labels} "


def spoil_size(image, labels):
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(labels)
    return f"label map {labels} is 10x20, its image 75x50"


def spoil_bits(image, labels):
    array = np.asarray(Image.open(labels)).astype(np.uint16)
    array[array == 255] = 261
    Image.fromarray(array).save(labels)
    return f"label map {labels} holds 261, which is none of the 21 classes"


def spoil_colour(image, labels):
    Image.open(labels).convert("RGB").save(labels)
    return f"label map {labels} is a picture in colour"


def spoil_values(image, labels):
    array = np.asarray(Image.open(labels)).copy()
    array[0] = 99
    Image.fromarray(array).save(labels)
    return f"label map {labels} holds 99, which is none of the 21 classes (0 to 20) nor the ignored 255"


@pytest.mark.parametrize(
    ("spoil", "workers"),
    [
        (spoil_image, 2),
        *((spoil, 0) for spoil in (spoil_image, spoil_labels, spoil_size, spoil_values, spoil_bits, spoil_colour)),
    ],
)
def test_files_that_spoil_a_run_are_named(spoil, workers, tiny_folder, data, damaged, tmp_path, capfd):
    message = spoil(*damaged)
    config = own_config(data, root=tmp_path / "spoilt")
    with pytest.raises(SystemExit) as exit:
        main([
            config, "--backbone", f"local-dir:{tiny_folder}", "--cfg-options",
            f"test_dataloader.num_workers={workers}",
        ])  # fmt: skip
    assert exit.value.code == 2
    assert message in single_error(capfd.readouterr().err)
    assert not Path("results.xlsx").exists()


@pytest.mark.parametrize(("weights", "published"), [("{} {}", 50), ("{}", None)], ids=["named", "OpenAI's"])
def test_a_published_number_of_other_weights_is_theirs_alone(
    weights, published, tiny_folder, tiny_backbone, data, tmp_path
):
    config = own_config(data)
    key = weights.format(tiny_backbone.name, tiny_backbone.tag)
    with open(config, "a") as file:
        file.write(f"\nbenchmark = dict(published={{{key!r}: dict(ClearCLIP=50.0)}}, source=dict(ClearCLIP='paper'))\n")
    main([config, "--backbone", f"local-dir:{tiny_folder}", "--work-dir", str(tmp_path / "work")])
    result = read_result(tmp_path / "work/result.json")
    assert (result["published"], result["published_source"]) == (published, published and "paper")


def test_an_altered_protocol_is_marked_and_not_compared(tiny_folder, tiny_backbone, data, monkeypatch):
    """The tiny weights pass for OpenAI's, the config has a number for them."""
    config = own_config(data)
    source = Path(config).read_text()
    numbers = f"benchmark = dict(published={{'{tiny_folder.name}': dict(ClearCLIP=50.0)}})"
    Path(config).write_text(f"{source}\n{numbers}\n")
    monkeypatch.setattr(evaluation, "EMBEDDED", tiny_backbone.tag)

    def evaluate(*options):
        before = set(Path().glob("work_dirs/**/result.json"))
        main([config, "--backbone", f"local-dir:{tiny_folder}", "--cfg-options", "model.precision=fp32", *options])
        (path,) = set(Path().glob("work_dirs/**/result.json")) - before
        return read_result(path), path.parent

    plain, folder = evaluate()
    assert (plain["published"], plain["settings"]["altered"]) == (50, [])
    altered, altered_folder = evaluate(
        "model.logit_scale=40", f"model.vocabulary={CONFIGS}/sclip/cls_voc21.txt", "benchmark.renamed.background=sky"
    )
    assert (altered["published"], altered["published_source"]) == (None, None)
    assert altered["settings"]["altered"] == ["logit_scale", "vocabulary"]
    stem, _, _ = folder.name.partition("_precision=fp32-")  # and a hash
    assert altered_folder.name.startswith(f"{stem}_logit_scale=40_precision=fp32_vocabulary=cls_voc21-")
    main([f"{altered_folder}/config.py", "--work-dir", "again"])
    again = read_result("again/result.json")
    assert (again["published"], again["settings"]["altered"]) == (None, ["logit_scale", "vocabulary"])
    header, *rows = openpyxl.load_workbook("results.xlsx")["table"].values
    assert {row[header.index("protocol")] for row in rows} == {"clearclip", "clearclip*"}

    monkeypatch.setattr(evaluation, "_text_source", lambda *_: "student")
    shutil.rmtree("work_dirs")
    student, _ = evaluate("model.window_batch=2")
    assert (student["published"], student["settings"]["altered"]) == (None, [])


@pytest.mark.parametrize(
    ("options", "altered"),
    [
        ({"model.resize": "device", "model.device": "cpu", "model.window_batch": 2, "model.compile": False}, {}),
        ({"test_dataloader.batch_size": 1, "model.text_embeddings": "a.safetensors", "model.temperature": 50}, {}),
        ({"model.short_side": 336}, {"short_side": 336}),
        ({"model.temperature": 40}, {"logit_scale": 40}),
        ({"model.area_threshold": 0.1, "model.threshold": 0.2}, {"area_threshold": 0.1, "threshold": 0.2}),
        ({"model.crop": 224, "model.stride": 112}, {"crop": 224, "stride": 112}),
        ({"model.templates": "imagenet7"}, {"templates": "imagenet7"}),
    ],
)
def test_what_alters_a_protocol(options, altered):
    run = load_config("voc20", overrides=options)
    assert run.altered == altered
    suffix = "".join(f"_{key}={value}" for key, value in sorted(altered.items()))
    kept_apart = "".join(
        {"model.resize": "_resize=device", "model.text_embeddings": "_text=a"}.get(o, "") for o in options
    )
    assert default_work_dir(run).name == f"ClearCLIP_ViT-B-16_openai{suffix}{kept_apart}"


def test_an_altered_pipeline_has_a_short_name():
    run = load_config("voc20", overrides={f"{PIPELINE}.1.reduce": False})
    assert list(run.altered) == ["pipeline"]
    assert re.fullmatch(r"ClearCLIP_ViT-B-16_openai_pipeline=[0-9a-f]{8}", default_work_dir(run).name)


def test_option_without_value(capsys):
    with pytest.raises(SystemExit) as exit:
        main([str(CONFIGS / "cfg_voc20.py"), "--cfg-options", "model.threshold"])
    assert exit.value.code == 2
    assert "'model.threshold' must be KEY=VALUE" in single_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config mine.py does not exist; give a file, or a name such as voc20 or sclip/voc20"),
        ("model = dict(", "mine.py is no benchmark config"),
        ("model = dictionary()", "mine.py is no benchmark config (name 'dictionary' is not defined)"),
        ("model = dict(method='CLIP')", "mine.py is no benchmark config"),
    ],
)
def test_config_that_is_none(text, message, capsys):
    if text:
        Path("mine.py").write_text(text)
    with pytest.raises(SystemExit) as exit:
        main(["mine.py"])
    assert exit.value.code == 2
    assert message in single_error(capsys.readouterr().err)


def test_damaged_workbook_is_found_before_the_run(fails):
    Path("results.xlsx").write_text("no zip archive")
    assert "results.xlsx is damaged" in fails("cfg_voc20")
    assert Path("results.xlsx").read_text() == "no zip archive"
    assert not Path("run").exists()


def test_workbook_damaged_during_the_run_costs_no_result(fails, monkeypatch):
    def damage(self):
        Path("results.xlsx").write_text("no zip archive")

    monkeypatch.setattr(Progress, "close", damage)
    error = fails("cfg_voc20")
    assert "results.xlsx is damaged" in error
    assert "the results are safe in run/result.json" in error
    assert read_result("run/result.json")["mIoU"] > 0
    assert Path("results.xlsx").read_text() == "no zip archive"


@pytest.mark.parametrize("arguments", [[], ["a.py", "--config", "b.py"]])
def test_one_config_is_wanted(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "give one config" in capsys.readouterr().err


def test_images_may_be_resized_on_the_device(evaluate, tiny_backbone, data):
    on_cpu = evaluate("cfg_voc21")
    on_device = evaluate("cfg_voc21", resize="device")
    assert [result["settings"]["resize"] for result in (on_cpu, on_device)] == ["cv2", "device"]
    assert on_device["settings"]["short_side"] == 448
    expected = measure(
        Segmenter(backbone=tiny_backbone, templates="single", threshold=0.5, resize="device"),
        "voc21", "cls_voc21.txt", 0, data,
    )  # fmt: skip
    assert list(on_device["per_class_IoU"].values()) == pytest.approx(expected.pop("per_class_IoU"), abs=1e-9)
    assert {key: on_device[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert on_device["aAcc"] == pytest.approx(on_cpu["aAcc"], abs=1)
    assert on_device["images"] == len(SHAPES)

    main(["run/config.py", "--work-dir", "again"])
    assert scores(read_result("again/result.json")) == scores(on_device)


def test_workers_only_decode_where_images_are_resized_on_the_device(evaluate, fails, monkeypatch):
    seen, view = [], Segmenter.view
    monkeypatch.setattr(Segmenter, "view", lambda self, image, *rest: seen.append(image) or view(self, image, *rest))
    evaluate("cfg_voc20", resize="device")
    assert [tuple(image.shape[1:]) for image in seen] == list(SHAPES.values())
    assert "unknown resize 'gpu'; use one of cv2, device, pil" in fails("cfg_voc20", resize="gpu")


def test_what_decides_whether_runs_share_a_backbone():
    def settings(**model):
        return backbone_settings(load_config("voc20", model))

    assert settings() == settings(method="CLIP", crop=224) | {"compile": False}
    for model in ({"device": "cpu"}, {"precision": "bf16"}, {"compile": True}, {"backbone": "ViT-L-14"}):
        assert settings(**model) != settings()


def test_a_config_by_its_name_and_protocol(tiny_folder, evaluate):
    def settings(*arguments):
        main([*arguments, "--backbone", f"local-dir:{tiny_folder}", *OPTIONS])
        return read_result("run/result.json")

    plain = settings("voc20")
    assert scores(plain) == scores(evaluate("cfg_voc20"))
    assert Path(plain["config"]) == CONFIGS / "cfg_voc20.py"
    assert settings("--datasets", "voc20", "--methods", "ClearCLIP", "--protocol", "clearclip")["mIoU"] == plain["mIoU"]
    one, two = settings("naclip/voc20"), settings("voc20", "--protocol", "naclip")
    assert scores(one) == scores(two) != scores(plain)
    assert (one["method"], one["protocol"]) == ("NACLIP", "naclip")


OPTIONS = [
    "--work-dir",
    "run",
    "--device",
    "cpu",
    "--cfg-options",
    "model.templates=single",
    "test_dataloader.num_workers=0",
]


@pytest.mark.parametrize("whole", [1449, None])
def test_a_limit_is_marked_as_a_part(whole, tiny_folder, data, capsys):
    Path("mine.py").write_text(f"_base_ = 'voc21'\nbenchmark = dict(images={whole})")
    main(["mine.py", "--backbone", f"local-dir:{tiny_folder}", "--limit", "2", *OPTIONS])
    part = read_result("run/result.json")
    assert (part["images"], part["benchmark_images"]) == (2, whole or 3)
    assert "(2 img)" in capsys.readouterr().out
    main(["run/config.py", "--work-dir", "again"])
    assert scores(read_result("again/result.json")) == scores(part)
    assert default_work_dir(load_config("voc21", limit=2)).name == "ClearCLIP_ViT-B-16_openai_images=2"

    main(["mine.py", "--backbone", f"local-dir:{tiny_folder}", "--limit", "99", *OPTIONS])
    assert read_result("run/result.json")["images"] == 3
    with pytest.raises(SystemExit):
        main(["mine.py", "--limit", "0"])
    assert "--limit: must be a whole number above 0, not '0'" in capsys.readouterr().err


def test_precision_and_methods_of_ones_own(tiny_folder, monkeypatch, tmp_path, capsys):
    METHODS.entries()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # other tests list what there is
    source = "from clearclip.methods import register\nfrom clearclip.methods.final_block import FinalBlock\n"
    for name in ("first", "second"):
        (tmp_path / f"own_{name}.py").write_text(f"{source}register('Own{name}', FinalBlock, 'as ClearCLIP')")
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine.py").write_text("_base_ = 'voc20'\ncustom_imports = dict(imports=['own_second'])")
    for method, arguments in (("Ownfirst", ["voc20", "--import", "own_first"]), ("Ownsecond", ["mine.py"])):
        main(
            [*arguments, "--backbone", f"local-dir:{tiny_folder}", "--method", method, "--precision", "bf16", *OPTIONS]
        )
        result = read_result("run/result.json")
        assert (result["method"], result["precision"]) == (method, "bfloat16")
    with pytest.raises(SystemExit):
        main(["voc20", "--import", "own_third"])
    assert "module own_third cannot be imported" in capsys.readouterr().err


def test_an_evaluation_leaves_no_trace(tiny_folder, data):
    settings = {"backbone": f"local-dir:{tiny_folder}", "device": "cpu", "templates": "single"}
    run = load_config("voc20", settings, {"test_dataloader.num_workers": 0})
    config, variables = copy.deepcopy(run.config), dict(os.environ)
    (first,) = evaluate_all(Job([run], records=Path("one")))
    assert run.config == config
    assert dict(os.environ) == variables
    (second,) = evaluate_all(Job([run], records=Path("two")))
    assert scores(first.result) == scores(second.result)


def test_mmengine_runs_a_config_by_itself(tiny_folder, evaluate):
    """Without our `evaluate`: the same digits."""
    expected = evaluate("cfg_voc21")
    settings = {"backbone": f"local-dir:{tiny_folder}", "device": "cpu", "templates": "single"}
    loaded = load_config("voc21", settings, {"test_dataloader.num_workers": 0}).config
    read = Config.fromfile(CONFIGS / "cfg_voc21.py")
    read.merge_from_dict({f"model.{key}": value for key, value in settings.items()})
    for config in (Config(loaded), read):
        config.work_dir = "plain"
        metrics = Runner.from_cfg(config).test()
        assert {key: metrics[key] for key in SCORES[:3]} == {key: expected[key] for key in SCORES[:3]}
        assert [value for value in metrics["IoU"].values() if value == value] == [
            value for value in expected["per_class_IoU"].values() if value is not None
        ]
