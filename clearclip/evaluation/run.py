"""From a benchmark config to a result: what eval.py and eval_all.py share."""

import difflib
import functools
import inspect
import os
import platform
import tempfile
import time
import zlib
from datetime import datetime
from pathlib import Path
from pprint import pformat

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_main_process
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset

import clearclip
from clearclip.backbone import Backbone, load_backbone
from clearclip.errors import UserError
from clearclip.evaluation.datasets import CheckedPipeline, building, check_dataset, one_line
from clearclip.evaluation.results import Result, write_result
from clearclip.evaluation.segmentor import OpenVocabSegmentor
from clearclip.methods import parse_method
from clearclip.paths import atomic_write, data_root
from clearclip.refine import split_refinement
from clearclip.segmenter import LONG_SIDE, Segmenter, check_settings
from clearclip.vocabulary import load_vocabulary
from clearclip.weights import EMBEDDED

NUMBERS = ("crop", "stride", "temperature", "threshold", "area_threshold")
REQUIRED = {"method", "backbone", "pretrained", "vocabulary", *NUMBERS}
PROTOCOL = (*NUMBERS, "templates", "vocabulary")  # and the pipeline; who alters these has a protocol of their own


def load_config(path: str, model: dict | None = None, overrides: dict | None = None) -> Config:
    """Read a benchmark config; `model` settings that are not None and then `overrides` (dotted keys) win.

    What overrides alter of the protocol is kept in `benchmark.altered`, by key. Raises UserError for a file that is
    missing or is no benchmark config, and for a setting that cannot be.
    """
    if not Path(path).is_file():
        raise UserError(f"config {path} does not exist; configs/ holds one file a benchmark")
    # MMEngine puts the variable into the config as it stands: unexpanded, and empty where it is set to nothing.
    os.environ["CLEARCLIP_DATA"] = data_root().as_posix()
    try:
        config = Config.fromfile(path)
        before = _protocol(config)
    except UserError:
        raise
    except Exception as error:  # a config is Python and may raise anything
        raise UserError(f"{path} is no benchmark config ({error}); see configs/README.md for the keys") from error
    config.merge_from_dict({f"model.{k}": v for k, v in (model or {}).items() if v is not None})
    _check_keys(config, overrides or {})
    try:
        config.merge_from_dict(overrides or {})
        after = _protocol(config)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"--cfg-options do not fit {path} ({one_line(error)}); see configs/README.md") from error
    altered = {key: value for key, value in after.items() if value != before[key]}
    if altered:
        config.benchmark.altered = {**config.benchmark.get("altered", {}), **altered}
    _check_settings(config)
    entry, _ = parse_method(split_refinement(config.model.method)[0])
    config.model.method = entry.name + config.model.method[len(entry.name) :]  # "clearclip" is ClearCLIP in tables
    return config


def _protocol(config: Config) -> dict:
    """What a published number depends on besides method, backbone and data.

    Raises UserError as `short_side` does, and whatever Python does for a config of another structure.
    """
    config.benchmark.name, config.benchmark.protocol, config.test_dataloader.dataset.data_root  # noqa: B018
    settings = {key: config.model.get(key) for key in PROTOCOL} | {"short_side": short_side(config)}
    steps = config.test_dataloader.dataset.pipeline
    steps = [dict(step) | ({"scale": max(step["scale"])} if step["type"] == "Resize" else {}) for step in steps]
    return settings | {"pipeline": str(steps)}


def _check_keys(config: Config, overrides: dict) -> None:
    """MMEngine takes any dotted key, and nothing reads one that a config does not have."""
    for key in overrides:
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        if first not in config:
            inner = dict(model=_model_settings(), test_dataloader=config.test_dataloader, benchmark=config.benchmark)
            names = {name: f"{part}.{name}" for part in inner for name in inner[part]} | {name: name for name in config}
            near = difflib.get_close_matches(last, names, n=1)
            hint = f"did you mean {names[near[0]]}?" if near else f"there are {', '.join(config)}"
            raise UserError(f"--cfg-options {key}: {config.filename} has no {first}; {hint}")


def _model_settings() -> set[str]:
    return {"vocabulary", *inspect.signature(Segmenter).parameters} - {"short_side"}  # the pipeline resizes


def _check_settings(config: Config) -> None:
    settings = {key: value for key, value in config.model.items() if key != "type"}
    known = _model_settings()
    for key in sorted(settings.keys() - known):
        raise UserError(f"{config.filename}: no setting model.{key}; there are {', '.join(sorted(known))}")
    for key in sorted(REQUIRED):
        if settings.get(key) is None:
            raise UserError(f"{config.filename}: model.{key} is missing; see configs/README.md for the keys")
    try:
        check_settings({key: settings[key] for key in NUMBERS})
    except UserError as error:
        raise UserError(f"{config.filename}: model.{error}") from None
    images = config.benchmark.get("images")
    if images is not None and not isinstance(images, int):
        raise UserError(f"{config.filename}: benchmark.images must be a number of images, not {images!r}")
    batch_size = config.test_dataloader.get("batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"{config.filename}: test_dataloader.batch_size must be 1 or more, not {batch_size!r}")


def short_side(config: Config) -> int:
    """The short side, in pixels, that the config's pipeline resizes images to; 0 where it keeps their size.

    Raises UserError for a Resize without a pair of lengths.
    """
    for step in config.test_dataloader.dataset.pipeline:
        if step["type"] == "Resize":
            scale = step.get("scale")
            pair = isinstance(scale, tuple | list) and len(scale) == 2
            if not pair or not all(isinstance(side, int) and side > 0 for side in scale):
                raise UserError(f"{config.filename}: Resize needs scale=(longest side, short side), not {scale!r}")
            return min(scale)
    return 0


def _without_resize(config: Config) -> dict:
    """The config's dataloader whose images keep their size. Raises UserError for a resize that is not `Segmenter`'s."""
    dataset = config.test_dataloader.dataset
    for step in dataset.pipeline:
        if step["type"] == "Resize" and not (step.get("keep_ratio") and max(step["scale"]) == LONG_SIDE):
            raise UserError(
                f"{config.filename}: with model.resize=device, Resize must have keep_ratio=True and a scale "
                f"({LONG_SIDE}, short side); use model.resize=cv2 for any other"
            )
    pipeline = [step for step in dataset.pipeline if step["type"] != "Resize"]
    return {**config.test_dataloader, "dataset": {**dataset, "pipeline": pipeline}}


def default_work_dir(config: Config) -> Path:
    """`work_dirs/<protocol>/<data set>/<method>_<backbone>_<weights>`, and what is altered of the protocol."""
    model, benchmark = config.model, config.benchmark
    weights = [] if ":" in model.backbone else [Path(model.pretrained).name]  # "arch:tag" has them already
    altered = [f"{key}={_brief(value)}" for key, value in sorted(benchmark.get("altered", {}).items())]
    name = "_".join([model.method, model.backbone, *weights, *altered])
    safe = "".join(character if character.isalnum() or character in "._-+=," else "-" for character in name)
    return Path("work_dirs") / benchmark.protocol / benchmark.name / safe


def _brief(value) -> str:
    """A number, a name or the stem of a path as it is, anything longer as its checksum."""
    text = Path(value).stem if isinstance(value, str) else str(value)
    return text if len(text) <= 24 else f"{zlib.crc32(text.encode()):08x}"


def find_backbone(config: Config) -> Backbone:
    """The backbone a config asks for. The one of the last call is kept: consecutive runs load it once."""
    model = config.model
    device, precision = model.get("device", "auto"), model.get("precision", "auto")
    return _backbone(model.backbone, model.pretrained, device, precision, model.get("compile", False))


@functools.lru_cache(maxsize=1)
def _backbone(name: str, pretrained: str, device: str, precision: str, compile: bool) -> Backbone:
    return load_backbone(name, pretrained, device, precision, compile)


def _join_processes(launcher: str) -> None:
    if launcher == "none":
        return
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise UserError("launcher pytorch needs torchrun's environment; start with dist_test.sh")
    if torch.cuda.is_available():
        init_dist(launcher)
    elif launcher == "pytorch":  # MMEngine's own start would pick a CUDA device for each process
        torch.distributed.init_process_group("gloo")
    else:
        raise UserError(f"launcher {launcher} needs GPUs; without them use dist_test.sh or --launcher pytorch")


def evaluate(
    config: Config, work_dir: str | Path | None = None, show_dir: str | Path | None = None, launcher: str = "none"
) -> Result | None:
    """Run one benchmark, write `result.json` and the full `config.py` into its work dir. Returns the result.

    With a `launcher`, rank 0 alone writes and returns it; the others return None. Consecutive calls with the same
    backbone load it once. Raises UserError for data, weights or names that are not there, before anything slow is
    done.
    """
    classes = check_dataset(config).metainfo.get("classes", ())
    vocabulary = load_vocabulary(config.model.vocabulary)
    if len(vocabulary) != len(classes):
        raise UserError(
            f"class file {config.model.vocabulary} has {len(vocabulary)} classes, data set {config.benchmark.name} has "
            f"{len(classes)}; write one line for each"
        )
    settings = {key: value for key, value in config.model.items() if key != "type"}
    dataloader = config.test_dataloader
    if settings.get("resize") == "device":
        settings["short_side"], dataloader = short_side(config), _without_resize(config)
    _join_processes(launcher)
    segmentor = OpenVocabSegmentor(**settings | {"backbone": find_backbone(config)})
    with building(config):
        record = _describe(config, segmentor)  # before the run, which it could cost

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        with building(config):
            runner, dataset = _runner(config, segmentor, dataloader, scratch, show_dir, launcher)
        start = time.perf_counter()
        metrics = _test(runner)
        seconds = time.perf_counter() - start
    main_process = is_main_process()
    if launcher != "none":
        torch.distributed.destroy_process_group()
    if not main_process:
        return None
    record |= dict(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        mIoU=metrics["mIoU"],
        aAcc=metrics["aAcc"],
        mAcc=metrics["mAcc"],
        per_class_IoU=metrics["IoU"],
        images=len(dataset),
        seconds=round(seconds, 2),
        images_per_second=round(len(dataset) / seconds, 3),
    )
    record = Result(**{key: record[key] for key in Result.__annotations__})
    work_dir = Path(work_dir or default_work_dir(config))
    write_result(record, work_dir)
    with atomic_write(work_dir / "config.py") as temporary:  # MMEngine's own dump formats it, for seconds
        text = "".join(f"{key} = {pformat(value, width=110)}\n" for key, value in config.to_dict().items())
        temporary.write_text(text, encoding="utf-8")
    return record


def _runner(config, segmentor, dataloader, scratch, show_dir, launcher) -> tuple[Runner, BaseSegDataset]:
    """A runner that has built all it needs, and its data set."""
    runner = Runner(
        model=segmentor,
        work_dir=scratch,  # MMEngine would leave a folder with an empty log for each run
        test_dataloader=dataloader,
        test_evaluator=config.test_evaluator,
        test_cfg=config.test_cfg,
        default_hooks=config.default_hooks,
        custom_hooks=[dict(type="SaveOverlayHook", folder=str(show_dir))] if show_dir else None,
        env_cfg=config.env_cfg,
        log_level=config.log_level,
        visualizer=dict(config.visualizer),  # a copy, for the runner writes into it
        launcher=launcher,
        default_scope=config.default_scope,
        experiment_name=Path(scratch).name,  # MMEngine wants no two runs of one name
        cfg=dict(model_wrapper_cfg=dict(type="Unwrapped")),
    )
    dataset = runner.test_loop.dataloader.dataset  # builds both, outside of what is timed
    ignored = runner.test_loop.evaluator.metrics[0].ignore_index
    dataset.pipeline = CheckedPipeline(dataset.pipeline, len(dataset.metainfo["classes"]), ignored)
    return runner, dataset


def _test(runner: Runner) -> dict:
    """`runner.test()`, whose loader's workers hand on a UserError with a traceback for a message."""
    try:
        return runner.test()
    except UserError as error:
        message = str(error).rpartition("UserError: ")[2].strip()
        error.__traceback__ = None  # its frames keep the workers; collected as garbage, those would end 5 seconds late
    raise UserError(message)


def _describe(config: Config, segmentor: OpenVocabSegmentor) -> dict:
    """All of a result that is known before the run."""
    model, benchmark, segmenter = config.model, config.benchmark, segmentor.segmenter
    backbone, text = segmenter.backbone, _text_source(config, segmentor)
    altered = sorted(benchmark.get("altered", {}))
    # Published numbers are those of OpenAI's weights, or of a copy of them, under the protocol as it stands.
    comparable = backbone.tag in ("openai", EMBEDDED) and text != "student" and not altered
    published = benchmark.get("published", {}).get(backbone.name, {}) if comparable else {}
    return dict(
        method=model.method,
        backbone=backbone.name,
        pretrained=backbone.tag,
        dataset=benchmark.name,
        protocol=benchmark.protocol,
        vocabulary=Path(model.vocabulary).name,
        text=text,
        benchmark_images=benchmark.get("images"),
        published=published.get(model.method),
        published_source=benchmark.get("source", {}).get(model.method) if model.method in published else None,
        device=_device_name(segmenter.device),
        precision=str(backbone.dtype).removeprefix("torch."),
        versions=_versions(),
        config=config.filename,
        settings=dict(
            short_side=short_side(config),
            resize=segmenter.resizer,
            crop=segmenter.crop,
            stride=segmenter.stride,
            temperature=segmenter.temperature,
            threshold=segmenter.threshold,
            area_threshold=segmenter.area_threshold,
            batch_size=config.test_dataloader.batch_size,
            altered=altered,
        ),
        weights_hash=backbone.content_hash,
    )


def _text_source(config: Config, segmentor: OpenVocabSegmentor) -> str:
    if config.model.get("text_embeddings"):
        return Path(config.model.text_embeddings).name
    return "student" if segmentor.segmenter.backbone.checkpoint.student else Path(config.model.templates).name


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"


def _versions() -> dict[str, str]:
    import cv2
    import mmcv
    import mmengine
    import mmseg
    import numpy
    import open_clip

    modules = dict(
        clearclip=clearclip, torch=torch, open_clip=open_clip, mmseg=mmseg, mmengine=mmengine, mmcv=mmcv,
        numpy=numpy, opencv=cv2,
    )  # fmt: skip
    return {name: module.__version__ for name, module in modules.items()} | {"python": platform.python_version()}
