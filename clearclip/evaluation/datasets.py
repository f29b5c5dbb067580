"""The two benchmarks MMSegmentation lacks, and a check that a benchmark is on the disk."""

from pathlib import Path
from typing import ClassVar

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS

from clearclip.errors import UserError


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


def check_dataset(config: Config) -> None:
    """Raise UserError, naming what is missing, unless all images and labels of the test set are there."""
    settings = dict(config.test_dataloader.dataset)
    root = Path(settings["data_root"])
    parts = [*settings["data_prefix"].values(), settings.get("ann_file", "")]
    _check_exist(config, [root, *(root / part for part in parts)])
    dataset = DATASETS.build({**settings, "pipeline": [], "lazy_init": True})
    samples = dataset.load_data_list()
    if not samples:
        raise _not_found(config, f"no image *{dataset.img_suffix} in {dataset.data_prefix['img_path']}")
    _check_exist(config, (sample[key] for sample in samples for key in ("img_path", "seg_map_path")))


def _check_exist(config, paths) -> None:
    for path in paths:
        if not Path(path).exists():
            raise _not_found(config, f"no file {path}")


def _not_found(config, what) -> UserError:
    return UserError(
        f"data set {config.benchmark.name} not found: {what}; see datasets/README.md or set CLEARCLIP_DATA"
    )
