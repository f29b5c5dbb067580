"""The benchmarks MMSegmentation lacks, and checks that a benchmark is on the disk and its files are sound."""

import contextlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image

from clearclip.errors import UserError
from clearclip.segmenter import read_image
from clearclip.vocabulary import load_vocabulary


@DATASETS.register_module()
class PascalVOC20Dataset(PascalVOCDataset):
    """PASCAL VOC 2012 without its background: label 0 is ignored and 1..20 become 0..19."""

    METAINFO: ClassVar = {key: values[1:] for key, values in PascalVOCDataset.METAINFO.items()}

    def __init__(self, ann_file, reduce_zero_label=True, **kwargs):
        super().__init__(ann_file, reduce_zero_label=reduce_zero_label, **kwargs)


@DATASETS.register_module()
class COCOObjectDataset(BaseSegDataset):
    """COCO-Object: label 0 is the background, 1..80 are COCO's things; no pixel is ignored."""

    METAINFO: ClassVar = {
        "classes": ("background", *COCOStuffDataset.METAINFO["classes"][:80]),
        "palette": [[0, 0, 0], *COCOStuffDataset.METAINFO["palette"][:80]],
    }

    def __init__(self, seg_map_suffix="_instanceTrainIds.png", **kwargs):
        super().__init__(seg_map_suffix=seg_map_suffix, **kwargs)


@DATASETS.register_module()
class LargeVocabularyDataset(BaseSegDataset):
    """Hundreds of classes, named by a class file in `data_root`, whose lines the labels index; 65535 is ignored."""

    def __init__(self, class_file: str, data_root: str, ignore_index: int = 65535, **kwargs):
        classes = load_vocabulary(Path(data_root) / class_file).classes
        super().__init__(metainfo=dict(classes=classes), data_root=data_root, ignore_index=ignore_index, **kwargs)


@TRANSFORMS.register_module()
class LoadAnnotations16(LoadAnnotations):
    """MMSeg's LoadAnnotations for label maps of 16 bits, of which that one keeps 8. Labels are taken as they stand."""

    def _load_seg_map(self, results: dict) -> None:
        path = results["seg_map_path"]
        try:
            with Image.open(path) as image:
                labels = np.array(image)
        except Exception as error:  # what a damaged file raises has no common base in Pillow
            raise UserError(f"cannot read {path} ({error}); convert it again, see datasets/README.md") from error
        if labels.ndim != 2 or labels.dtype.kind not in "ui":
            raise UserError(f"{path} is not a map of labels, one integer a pixel; see datasets/README.md")
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")


class CheckedPipeline:
    """A data set's pipeline that raises UserError, naming the file, for what would spoil a run.

    That is an image or a label map that cannot be read, a label map of another size than its image, and a label
    that is neither one of the classes nor `ignore_index`.
    """

    def __init__(self, pipeline, classes: int, ignore_index: int):
        self.pipeline, self.classes, self.ignore_index = pipeline, classes, ignore_index

    def __call__(self, results: dict) -> dict:
        image, label_map = results["img_path"], results["seg_map_path"]
        remedy = "convert it again, see datasets/README.md"
        try:
            packed = self.pipeline(results)
        except UserError:
            raise
        except Exception as error:  # what a damaged file raises has no common base
            read_image(image)  # says so where the image is at fault
            raise UserError(f"cannot read label map {label_map} ({one_line(error)}); {remedy}") from error
        sample = packed["data_samples"]
        truth = sample.gt_sem_seg.data  # [1, H, W]
        if truth.shape[1:] != sample.ori_shape:
            sizes = ("x".join(map(str, shape)) for shape in (truth.shape[1:], sample.ori_shape))
            raise UserError("label map {} is {}, its image {}; {}".format(label_map, *sizes, remedy))
        strange = truth[((truth < 0) | (truth >= self.classes)) & (truth != self.ignore_index)]
        if len(strange):
            raise UserError(
                f"label map {label_map} holds {strange[0]}, which is none of the {self.classes} classes (0 to "
                f"{self.classes - 1}) nor the ignored {self.ignore_index}; {remedy}"
            )
        return packed


def one_line(error: Exception) -> str:
    """The message of any exception, fit for a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def building(config: Config):
    """Turn what MMEngine raises for a config that it cannot build into a UserError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{config.filename} cannot be built as it stands, with its overrides ({one_line(error)}); see "
            "configs/README.md for the keys"
        ) from error


def check_dataset(config: Config) -> BaseSegDataset:
    """The test set, not yet loaded. Raises UserError, naming what is missing, unless all its files are there."""
    with building(config):
        return _check_dataset(config)


def _check_dataset(config: Config) -> BaseSegDataset:
    settings = dict(config.test_dataloader.dataset)
    root = Path(settings["data_root"])
    parts = [*settings["data_prefix"].values(), settings.get("ann_file", ""), settings.get("class_file", "")]
    _check_exist(config, [root, *(root / part for part in parts)])
    dataset = DATASETS.build({**settings, "pipeline": [], "lazy_init": True, "_scope_": "mmseg"})
    samples = dataset.load_data_list()
    if not samples:
        raise _not_found(config, f"no image *{dataset.img_suffix} in {dataset.data_prefix['img_path']}")
    _check_exist(config, (sample[key] for sample in samples for key in ("img_path", "seg_map_path")))
    return dataset


def _check_exist(config, paths) -> None:
    for path in paths:
        if not Path(path).exists():
            raise _not_found(config, f"no file {path}")


def _not_found(config, what) -> UserError:
    return UserError(
        f"data set {config.benchmark.name} not found: {what}; see datasets/README.md or set CLEARCLIP_DATA"
    )
