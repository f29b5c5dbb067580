"""From a benchmark config to a result: what eval.py and eval_all.py share."""

import difflib
import inspect
import os
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

import torch

import clearclip
from clearclip.backbones import Backbone
from clearclip.config import Settings, check_pipeline, find_config, import_custom_modules, override, read_config
from clearclip.errors import UserError, one_line
from clearclip.evaluation.datasets import DATASETS, check_dataset, whole_size
from clearclip.images import LONG_SIDE
from clearclip.paths import atomic_write, safe_component
from clearclip.segmenter import Segmenter
from clearclip.settings import check_settings
from clearclip.spec import Spec
from clearclip.vocabulary import class_lines, load_templates, load_vocabulary, plain
from clearclip.weights import EMBEDDED

NUMBERS = ("short_side", "crop", "stride", "logit_scale", "threshold", "area_threshold")
REQUIRED = {"method", "backbone", "pretrained", "vocabulary", *NUMBERS}
PROTOCOL = (
    *NUMBERS,
    "long_side",
    "two_steps",
    "other",
    "templates",
    "vocabulary",
    "calibration",
    "features",
)  # and the pipeline; who alters these has a protocol of their own
SCORES = {"mIoU", "aAcc", "mAcc", "interval", "IoU"}  # what a result keeps by name
INDICES = "test_dataloader.dataset.indices"  # which images of the data set count


@dataclass(frozen=True)
class Run:
    """One method on one benchmark, checked and ready to be evaluated.

    Attributes:
        path: the config file.
        config: its settings with all overrides. Nothing changes them any more.
        spec: the method and its refinements.
        altered: the settings of the protocol that overrides changed, by key.
    """

    path: Path
    config: Settings
    spec: Spec
    altered: dict[str, Any]

    @property
    def method(self) -> str:
        """The method as results name it."""
        return str(self.spec)


def load_config(
    name: str | Path,
    model: dict | None = None,
    overrides: dict | None = None,
    limit: int | None = None,
    own: dict | None = None,
) -> Run:
    """Read a benchmark config, a file or a name such as "sclip/voc20".

    `own`, dotted keys, makes a data set of it that no config describes, and alters no protocol.
    `model` settings that are not None and then `overrides` (dotted keys) win; `limit` keeps the first images alone.
    `{dataset}` in the name of a file of text embeddings stands for the benchmark's.

    Raises UserError for a file that is missing or is no benchmark config, and for a setting that cannot be.
    """
    path = find_config(name)
    config = override(read_config(path), own or {})
    try:
        before = _protocol(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no benchmark config ({one_line(error)}); see configs/README.md") from error
    import_custom_modules(config)
    config = override(config, {f"model.{key}": value for key, value in (model or {}).items() if value is not None})
    _check_keys(path, config, overrides or {})
    config = override(config, overrides or {})
    try:
        after = _protocol(config)
        check_pipeline(config, path)
        _check_settings(path, config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--cfg-options do not fit {path} ({one_line(error)}); see configs/README.md") from error
    spec = Spec.parse(config.model.method)
    final: dict[str, Any] = {"model.method": str(spec)}
    if limit:
        final[INDICES] = limit
    if isinstance(config.model.get("text_embeddings"), str):
        final["model.text_embeddings"] = config.model.text_embeddings.replace("{dataset}", config.benchmark.name)
    if not _class_names(config):
        final["test_dataloader.dataset.metainfo"] = dict(classes=load_vocabulary(config.model.vocabulary).classes)
    config = override(config, final)
    altered = {key: value for key, value in after.items() if value != before[key]}
    altered = {**config.benchmark.get("altered", {}), **altered}
    if "vocabulary" not in altered:
        altered |= _altered_names(config)
    return Run(path, config, spec, altered)


def _protocol(config: Settings) -> dict[str, Any]:
    """What a published number depends on besides method, backbone and data.

    Raises what Python does for a config of another structure.
    """
    config.benchmark.name, config.benchmark.protocol, config.test_dataloader.dataset.data_root  # noqa: B018
    steps = config.test_dataloader.dataset.pipeline
    return {key: config.model.get(key) for key in PROTOCOL} | {"pipeline": str([dict(step) for step in steps])}


def _class_names(config: Settings) -> bool:
    """Whether the data set knows the names of its classes; where it does not, the class file gives them."""
    settings = config.test_dataloader.dataset
    kind = DATASETS.get(f"mmseg.{settings.type}") if isinstance(settings.get("type"), str) else settings.get("type")
    given = settings.get("metainfo") or {}
    return kind is None or "class_file" in settings or bool(given.get("classes") or kind.METAINFO.get("classes"))


def _altered_names(config: Settings) -> dict[str, str]:
    """The start of the hash of class names that are not those of the protocol: a file may be edited in its place."""
    published = config.benchmark.get("names")
    if not published:
        return {}
    found = load_vocabulary(config.model.vocabulary).hash
    return {} if found == published else {"names": found[:8]}


def _check_keys(path: Path, config: Settings, overrides: dict) -> None:
    """Raise UserError for the key of an override that begins with what the config does not have."""
    for key in overrides:
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        if first not in config:
            inner = dict(model=_model_settings(), test_dataloader=config.test_dataloader, benchmark=config.benchmark)
            names = {name: f"{part}.{name}" for part in inner for name in inner[part]} | {name: name for name in config}
            near = difflib.get_close_matches(last, names, n=1)
            hint = f"did you mean {names[near[0]]}?" if near else f"there are {', '.join(config)}"
            raise UserError(f"--cfg-options {key}: {path} has no {first}; {hint}")


def _model_settings() -> set[str]:
    return {"vocabulary", "features", *inspect.signature(Segmenter).parameters}


def _check_settings(path: Path, config: Settings) -> None:
    settings = {key: value for key, value in config.model.items() if key != "type"}
    known = _model_settings()
    for key in sorted(settings.keys() - known):
        raise UserError(f"{path}: no setting model.{key}; there are {', '.join(sorted(known))}")
    for key in sorted(REQUIRED):
        if settings.get(key) is None:
            raise UserError(f"{path}: model.{key} is missing; see configs/README.md for the keys")
    try:
        check_settings({key: settings[key] for key in (*NUMBERS, "long_side") if key in settings})
    except UserError as error:
        raise UserError(f"{path}: model.{error}") from None
    images = config.benchmark.get("images")
    if images is not None and not isinstance(images, int):
        raise UserError(f"{path}: benchmark.images must be a number of images, not {images!r}")
    if not config.test_dataloader.dataset.get("pipeline"):
        raise UserError(
            f"{path}: test_dataloader.dataset.pipeline has no step; leave it out to inherit that of base.py"
        )
    batch_size = config.test_dataloader.get("batch_size")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"{path}: test_dataloader.batch_size must be 1 or more, not {batch_size!r}")
    if config.test_dataloader.get("drop_last"):
        raise UserError(f"{path}: test_dataloader.drop_last leaves images out, which would not count; remove it")


def default_work_dir(run: Run) -> Path:
    """`work_dirs/<protocol>/<data set>/<method>_<backbone>_<weights>`, what is altered, and which part of the set."""
    model, benchmark = run.config.model, run.config.benchmark
    weights = [] if ":" in model.backbone else [_place(model.pretrained)]  # "arch:tag" has them already
    chosen = {
        "precision": None if model.get("precision") in (None, "auto") else model.precision,
        "text": _place(model.text_embeddings) if isinstance(model.get("text_embeddings"), str | Path) else None,
        "resize": None if model.get("resize", "cv2") == "cv2" else model.resize,
        "images": run.config.test_dataloader.dataset.get("indices"),
    }
    settings = run.altered | {key: value for key, value in chosen.items() if value is not None}
    named = [f"{key}={_brief(value)}" for key, value in sorted(settings.items())]
    parts = benchmark.protocol, benchmark.name, "_".join([run.method, model.backbone, *weights, *named])
    return Path("work_dirs").joinpath(*map(safe_component, map(str, parts)))


def _place(path: str | Path) -> str:
    """A tag as it is; a path by the name of its file, and a checksum that tells it from namesakes."""
    path = Path(path)
    return str(path) if len(path.parts) == 1 else f"{path.stem}-{zlib.crc32(str(path.absolute()).encode()):08x}"


def _brief(value: Any) -> str:
    """A number, a name or the stem of a path as it is, anything longer as its checksum."""
    text = Path(value).stem if isinstance(value, str) else str(value)
    return text if len(text) <= 24 else f"{zlib.crc32(text.encode()):08x}"


def backbone_settings(run: Run) -> dict[str, Any]:
    """What `load_backbone` is to be given for a run. Runs for which it is equal may share a backbone."""
    model = run.config.model
    return dict(
        name=model.backbone,
        pretrained=model.pretrained,
        device=model.get("device", "auto"),
        precision=model.get("precision", "auto"),
        compile=model.get("compile", False),
    )


def check_classes(run: Run) -> None:
    """Raise UserError unless the data set is on the disk and its classes are those of the class file, in its order.

    Where a class file names a class otherwise, the config says so: `benchmark.renamed = {"diningtable": "table"}`.
    """
    classes = check_dataset(run).metainfo.get("classes", ())
    path = run.config.model.vocabulary
    vocabulary = load_vocabulary(path)
    if len(vocabulary) != len(classes):
        raise UserError(
            f"class file {path} has {len(vocabulary)} classes, data set {run.config.benchmark.name} has "
            f"{len(classes)}; write one line for each"
        )
    renamed = run.config.benchmark.get("renamed") or {}
    names = [name.strip() for name in classes]
    names = [
        name if _is_named(name, known) else renamed.get(name, name) for name, known in zip(names, vocabulary.names)
    ]
    lines = class_lines(path)
    for here, there in vocabulary.misplaced(names):
        raise UserError(
            f"class file {path}, line {lines[here]} ({vocabulary.classes[here]}): the data set "
            f"{run.config.benchmark.name} has {names[here]!r} there, which is in line {lines[there]}; put the lines "
            "into the order of its labels"
        )
    for line, name, synonyms in zip(lines, names, vocabulary.names):
        if not _is_named(name, synonyms):
            raise UserError(
                f"class file {path}, line {line} ({synonyms[0]}): the data set {run.config.benchmark.name} has "
                f"{name!r} there; write that name too, after a comma, or set "
                f"benchmark.renamed={{{name!r}: {synonyms[0]!r}}}"
            )


def _is_named(name: str, synonyms: Sequence[str]) -> bool:
    return plain(name) in map(plain, synonyms)


def write_config(run: Run, path: Path) -> None:
    """All settings of a run as a config that repeats it, and that knows what was altered."""
    benchmark = run.config.benchmark | ({"altered": run.altered} if run.altered else {})
    settings = {**run.config, "benchmark": benchmark}
    text = "".join(f"{key} = {pformat(value, width=110)}\n" for key, value in settings.items())
    with atomic_write(path) as temporary:  # MMEngine's own dump formats it, for seconds
        temporary.write_text(text, encoding="utf-8")


def describe(run: Run, segmenter: Segmenter) -> dict[str, Any]:
    """All of a result that is known before the run."""
    model, benchmark = run.config.model, run.config.benchmark
    backbone, text = segmenter.backbone, _text_source(run, segmenter.backbone)
    vocabulary = load_vocabulary(model.vocabulary)
    # Published numbers are those of OpenAI's weights, or of a copy of them, where the config names no others.
    weights = backbone.name if backbone.tag in ("openai", EMBEDDED) else f"{backbone.name} {backbone.tag}"
    comparable = text != "student" and not run.altered
    published = benchmark.get("published", {}).get(weights, {}) if comparable else {}
    part = run.config.test_dataloader.dataset.get("indices") is not None
    return dict(
        method=run.method,
        backbone=backbone.name,
        pretrained=backbone.tag,
        dataset=benchmark.name,
        protocol=benchmark.protocol,
        vocabulary=Path(model.vocabulary).name,
        names=[list(names) for names in vocabulary.names],
        names_hash=vocabulary.hash,
        text=text,
        templates=list(load_templates(model.templates)) if text == Path(model.templates).name else [],
        benchmark_images=benchmark.get("images") or (whole_size(run) if part else None),
        published=published.get(run.method),
        published_source=benchmark.get("source", {}).get(run.method) if run.method in published else None,
        device=_device_name(segmenter.device),
        precision=str(backbone.dtype).removeprefix("torch."),
        versions=versions(),
        config=str(run.path),
        settings=dict(
            resize=segmenter.resizer,
            **{key: getattr(segmenter, key) for key in NUMBERS},
            **({"long_side": segmenter.long_side} if segmenter.long_side != LONG_SIDE else {}),
            **({"other": True} if segmenter.other else {}),
            batch_size=run.config.test_dataloader.batch_size,
            altered=sorted(run.altered),
            **({"calibration": str(model.calibration)} if model.get("calibration") else {}),
            **({"features": "float16"} if model.get("features") else {}),
        ),
        weights_hash=backbone.content_hash,
    )


def _text_source(run: Run, backbone: Backbone) -> str:
    if run.config.model.get("text_embeddings"):
        return Path(run.config.model.text_embeddings).name
    return "student" if backbone.text_stand_in else Path(run.config.model.templates).name


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
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
