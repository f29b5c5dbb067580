"""From a benchmark config to a result: what eval.py and eval_all.py share."""

import functools
import os
import platform
import time
from datetime import datetime
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_main_process
from mmengine.runner import Runner

import clearclip
from clearclip.backbone import Backbone, load_backbone
from clearclip.errors import UserError
from clearclip.evaluation.datasets import check_dataset
from clearclip.evaluation.results import Result, write_result
from clearclip.evaluation.segmentor import OpenVocabSegmentor
from clearclip.methods import parse_method
from clearclip.weights import EMBEDDED


def load_config(path: str, model: dict | None = None, overrides: dict | None = None) -> Config:
    """Read a benchmark config; `model` settings that are not None and then `overrides` (dotted keys) win.

    Raises UserError for a file that is missing or is no benchmark config.
    """
    if not Path(path).is_file():
        raise UserError(f"config {path} does not exist; configs/ holds one file a benchmark")
    try:
        config = Config.fromfile(path)
        config.merge_from_dict({f"model.{k}": v for k, v in (model or {}).items() if v is not None})
        config.merge_from_dict(overrides or {})
        config.benchmark.name, config.model.vocabulary, config.test_dataloader.dataset  # noqa: B018
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, SyntaxError, ValueError, OSError, ImportError) as error:
        raise UserError(f"{path} is no benchmark config ({error}); see configs/README.md for the keys") from error
    return config


def resize_scale(config: Config) -> int:
    """The short side, in pixels, that the config's pipeline resizes images to."""
    resize = next(step for step in config.test_dataloader.dataset.pipeline if step["type"] == "Resize")
    return min(resize["scale"])


def default_work_dir(config: Config) -> Path:
    """`work_dirs/<protocol>/<data set>/<method>_<backbone>_<weights>`."""
    model, benchmark = config.model, config.benchmark
    name = "_".join((model.method, model.backbone, Path(model.pretrained).name))
    safe = "".join(character if character.isalnum() or character in "._-+=," else "-" for character in name)
    return Path("work_dirs") / benchmark.protocol / benchmark.name / safe


@functools.lru_cache(maxsize=1)
def _backbone(name: str, pretrained: str, precision: str) -> Backbone:
    return load_backbone(name, pretrained, precision=precision)


def _join_processes(launcher: str) -> None:
    if launcher == "none" or torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        init_dist(launcher)
    elif launcher == "pytorch":  # MMEngine's own start would pick a CUDA device for each process
        torch.distributed.init_process_group("gloo")
    else:
        raise UserError(f"launcher {launcher} needs GPUs; without them use dist_test.sh or --launcher pytorch")


def evaluate(
    config: Config, work_dir: str | Path | None = None, show_dir: str | Path | None = None, launcher: str = "none"
) -> Result | None:
    """Run one benchmark and write `result.json` into its work dir. Returns the result, on rank 0 only.

    Consecutive calls with the same backbone load it once. Raises UserError for data, weights or names that are
    not there, before anything slow is done.
    """
    check_dataset(config)
    settings = {key: value for key, value in config.model.items() if key != "type"}
    parse_method(settings["method"])
    _join_processes(launcher)
    backbone = _backbone(settings["backbone"], settings.pop("pretrained"), settings.get("precision", "auto"))
    segmentor = OpenVocabSegmentor(**settings | {"backbone": backbone})

    work_dir = Path(work_dir or default_work_dir(config))
    runner = Runner(
        model=segmentor,
        work_dir=str(work_dir),
        test_dataloader=config.test_dataloader,
        test_evaluator=config.test_evaluator,
        test_cfg=config.test_cfg,
        default_hooks=config.default_hooks,
        custom_hooks=[dict(type="SaveOverlayHook", folder=str(show_dir))] if show_dir else None,
        env_cfg=config.env_cfg,
        log_level=config.log_level,
        visualizer=config.visualizer,
        launcher=launcher,
        default_scope=config.default_scope,
        experiment_name=config.benchmark.name,
        cfg=dict(model_wrapper_cfg=dict(type="Unwrapped")),
    )
    start = time.perf_counter()
    metrics = runner.test()
    seconds = time.perf_counter() - start
    if not is_main_process():
        return None
    record = _record(config, segmentor, metrics, len(runner.test_dataloader.dataset), seconds)
    write_result(record, work_dir)
    return record


def _record(config: Config, segmentor: OpenVocabSegmentor, metrics: dict, images: int, seconds: float) -> Result:
    model, benchmark, backbone = config.model, config.benchmark, segmentor.segmenter.backbone
    # Published numbers are those of OpenAI's weights, or of a copy of them.
    published = benchmark.get("published", {}).get(backbone.name, {}) if backbone.tag in ("openai", EMBEDDED) else {}
    segmenter = segmentor.segmenter
    return Result(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        method=model.method,
        backbone=backbone.name,
        pretrained=backbone.tag,
        dataset=benchmark.name,
        protocol=benchmark.protocol,
        vocabulary=Path(model.vocabulary).name,
        text=_text_source(config, segmentor),
        mIoU=metrics["mIoU"],
        aAcc=metrics["aAcc"],
        mAcc=metrics["mAcc"],
        per_class_IoU=metrics["IoU"],
        images=images,
        benchmark_images=benchmark.get("images"),
        published=published.get(model.method),
        published_source=benchmark.get("source", {}).get(model.method) if model.method in published else None,
        seconds=round(seconds, 2),
        images_per_second=round(images / seconds, 3),
        device=_device_name(segmenter.device),
        precision=str(backbone.dtype).removeprefix("torch."),
        versions=_versions(),
        config=config.filename,
        settings=dict(
            short_side=resize_scale(config),
            crop=segmenter.crop,
            stride=segmenter.stride,
            temperature=segmenter.temperature,
            threshold=segmenter.threshold,
            area_threshold=segmenter.area_threshold,
            batch_size=config.test_dataloader.batch_size,
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
