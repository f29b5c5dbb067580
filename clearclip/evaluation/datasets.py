"""The benchmarks MMSegmentation lacks, and checks that a benchmark is on the disk before anything slow is done."""

import contextlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS

from clearclip.errors import UserError, one_line
from clearclip.images import SUFFIXES
from clearclip.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from clearclip.evaluation.run import Run


@DATASETS.register_module()
class PascalVOC20Dataset(PascalVOCDataset):
    """PASCAL VOC 2012 without its background: label 0 is ignored and 1..20 become 0..19."""

    METAINFO: ClassVar = {key: values[1:] for key, values in PascalVOCDataset.METAINFO.items()}

    def __init__(self, ann_file: str, reduce_zero_label: bool = True, **kwargs: Any):
        super().__init__(ann_file, reduce_zero_label=reduce_zero_label, **kwargs)


@DATASETS.register_module()
class COCOObjectDataset(BaseSegDataset):
    """COCO-Object: label 0 is the background, 1..80 are COCO's things; no pixel is ignored."""

    METAINFO: ClassVar = {
        "classes": ("background", *COCOStuffDataset.METAINFO["classes"][:80]),
        "palette": [[0, 0, 0], *COCOStuffDataset.METAINFO["palette"][:80]],
    }

    def __init__(self, seg_map_suffix: str = "_instanceTrainIds.png", **kwargs: Any):
        super().__init__(seg_map_suffix=seg_map_suffix, **kwargs)


@DATASETS.register_module()
class LargeVocabularyDataset(BaseSegDataset):
    """Hundreds of classes, named by a class file in `data_root`, whose lines the labels index; 65535 is ignored."""

    def __init__(self, class_file: str, data_root: str, ignore_index: int = 65535, **kwargs: Any):
        classes = load_vocabulary(Path(data_root) / class_file).classes
        super().__init__(metainfo=dict(classes=classes), data_root=data_root, ignore_index=ignore_index, **kwargs)


@contextlib.contextmanager
def building(run: "Run") -> Iterator[None]:
    """Turn what MMEngine raises for a config that it cannot build into a UserError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{run.path} cannot be built as it stands, with its overrides ({one_line(error)}); see configs/README.md "
            "for the keys"
        ) from error


def check_dataset(run: "Run") -> BaseSegDataset:
    """The test set, its list of files loaded. Raises UserError, naming what is missing, unless all files are there."""
    with building(run):
        return _check_dataset(run)


def _check_dataset(run: "Run") -> BaseSegDataset:
    name, settings = run.config.benchmark.name, run.config.test_dataloader.dataset
    root = Path(settings["data_root"])
    parts = [*settings["data_prefix"].values(), settings.get("ann_file", ""), settings.get("class_file", "")]
    _check_exist(name, [root, *(root / part for part in parts)])
    if settings.get("ann_file"):
        _check_split(root / settings["ann_file"])
    dataset = _build(run, serialize_data=False)
    dataset.full_init()  # its indices choose a part
    if not dataset.data_list:
        raise _not_found(name, f"no image *{dataset.img_suffix} in {dataset.data_prefix['img_path']}")
    listed = f", which split {dataset.ann_file} names" if Path(dataset.ann_file or "").is_file() else ""
    files = (sample[key] for sample in dataset.data_list for key in ("img_path", "seg_map_path"))
    _check_exist(name, files, listed)
    return dataset


def _check_split(path: Path) -> None:
    """Raise UserError for a list of images that is no text, has an empty line or names an image twice."""
    if not path.is_file():
        return  # MMSegmentation takes all images for a folder
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"split {path} is no UTF-8 text; write one image name a line") from None
    names = [line.strip() for line in lines]
    if not names:
        raise UserError(f"split {path} is empty; write one image name a line")
    if any(not name or name.startswith("\ufeff") for name in names):
        raise UserError(f"split {path} has an empty line or begins with a byte order mark; write one name a line")
    places = Counter(map(posixpath.normpath, names))  # ./a is a
    twice = next((name for name in names if places[posixpath.normpath(name)] > 1), None)
    if twice is not None:
        raise UserError(f"split {path} names {twice} twice, which would count twice; leave one of them out")


def left_aside(dataset: BaseSegDataset) -> str:
    """A sentence about pictures beside those of the data set that it passes over for their suffix, or nothing."""
    if dataset.ann_file and not Path(dataset.ann_file).is_dir():
        return ""
    samples = dataset.load_data_list()
    taken = {Path(sample[key]) for sample in samples for key in ("img_path", "seg_map_path")}
    folder = Path(dataset.data_prefix["img_path"])
    pictures = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    others = sorted(path for path in pictures if path not in taken)
    if not others:
        return ""
    example, suffix = others[0].name, dataset.img_suffix
    return f"pictures in {folder} left aside, as img_suffix is {suffix}: {len(others)}, such as {example}"


def whole_size(run: "Run") -> int:
    """How many images the test set has, those outside of its `indices` included."""
    with building(run):
        return len(_build(run, indices=None).load_data_list())


def _build(run: "Run", **settings: Any) -> BaseSegDataset:
    """The test set with other settings and without its pipeline, its files not yet listed."""
    settings = {**run.config.test_dataloader.dataset, "pipeline": [], "lazy_init": True, **settings}
    return DATASETS.build({**settings, "_scope_": "mmseg"})


def _check_exist(name: str, paths: Iterable[str | Path], whence: str = "") -> None:
    for path in paths:
        if not Path(path).exists():
            raise _not_found(name, f"no file {path}{whence}")


def _not_found(name: str, what: str) -> UserError:
    return UserError(f"data set {name} not found: {what}; see datasets/README.md or set CLEARCLIP_DATA")
