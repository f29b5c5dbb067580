"""`Segmenter` as an MMSegmentation segmentor, with its metric and a hook that saves what it saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models import BaseSegmentor
from mmseg.registry import METRICS, MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from clearclip.decode import tally
from clearclip.errors import UserError
from clearclip.evaluation.loading import REMEDY
from clearclip.evaluation.pictures import Pictures, own_colours
from clearclip.evaluation.statistics import bootstrap
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vocabulary import load_vocabulary

METRIC_NAMES = {"mIoU", "mDice", "mFscore"}


class AsLoaded(BaseDataPreprocessor):
    """Leaves a batch where it is: the normalisation belongs to the backbone, and OpenCV resizes on the CPU."""

    def forward(self, data: dict, training: bool = False) -> dict:
        return data


@MODELS.register_module()
class OpenVocabSegmentor(BaseSegmentor):
    """A thin adapter: MMSeg's batch of images in, `pred_sem_seg` at the original sizes out.

    `vocabulary` is a class file, one line for each label of the data set; `settings` are those of `Segmenter`, which
    resizes the images. Those of a batch may differ in size.
    """

    def __init__(self, vocabulary: str, **settings: Any):
        super().__init__(data_preprocessor=AsLoaded())
        self.segmenter = Segmenter(**settings)
        self.vocabulary = load_vocabulary(vocabulary)
        self.queries = class_queries(self.segmenter, vocabulary)

    def predict(self, inputs: Sequence[Tensor], data_samples: Sequence[SegDataSample]) -> Sequence[SegDataSample]:
        """A list of BGR images [3, H, W], uint8, to its data samples with `pred_sem_seg` [1, H, W] set.

        Their `finite` says whether the scores were, a tensor that the metric reads when the device has come so far.
        """
        views = [
            self.segmenter.view(image.flip(0), sample.ori_shape, sample.get("img_path"))
            for image, sample in zip(inputs, data_samples)
        ]
        labels, finite = self.segmenter.labels(views, self.queries)
        for sample, one in zip(data_samples, labels):
            sample.set_data({"pred_sem_seg": PixelData(data=one[None])})
            sample.set_metainfo({"finite": finite})
        return data_samples

    def encode_decode(self, inputs: Any, batch_data_samples: Any) -> NoReturn:
        raise NotImplementedError("there is no decode head; use predict")

    def extract_feat(self, inputs: Any) -> NoReturn:
        raise NotImplementedError("windows have features, images have not; see Segmenter.features")

    def loss(self, inputs: Any, data_samples: Any) -> NoReturn:
        raise NotImplementedError("nothing here is trained")

    def _forward(self, inputs: Any, data_samples: Any = None) -> NoReturn:
        raise NotImplementedError("use predict")


def class_queries(segmenter: Segmenter, path: str | Path) -> Queries:
    """The queries for the classes of a class file, in their order.

    Raises UserError where the segmenter tells what is other and class 0 is no background.
    """
    vocabulary = load_vocabulary(path)
    queries = segmenter.queries(vocabulary)
    if queries.names != vocabulary.classes:
        raise UserError(
            f"other takes part in class 0, which must be the background: that of {path} is "
            f"{vocabulary.classes[0]!r}; leave out --other"
        )
    return queries


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """In place of DistributedDataParallel, which refuses a model without gradients."""

    def __new__(cls, module: nn.Module) -> nn.Module:  # type: ignore[misc]
        return module


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """MMSeg's IoUMetric that also returns each class's IoU, and counts pixels in integers, on their device.

    Returns mIoU, aAcc, mAcc in percent, the mean over classes that occur; `interval`, half the width of mIoU's 95 %
    interval over images; and `IoU`, a dict by class name with NaN for a class that is neither in the ground truth nor
    predicted. `iou_metrics` may add mDice, and mFscore with mPrecision and mRecall.

    Raises UserError, naming the label map, for a label that is no class nor ignored and for a size that is not its
    image's; for scores that were not finite; and at the end where no pixel is labelled or an image is missing.
    """

    default_prefix = ""

    def __init__(self, iou_metrics: str | Sequence[str] = "mIoU", collect_device: str = "gpu", **kwargs: Any):
        names = [iou_metrics] if isinstance(iou_metrics, str) else iou_metrics
        for name in set(names) - METRIC_NAMES:
            raise ValueError(f"no metric {name!r} in iou_metrics; there are {', '.join(sorted(METRIC_NAMES))}")
        # "gpu" means: through the process group, GPU or not; "cpu" leaves a folder of pickles where we stand.
        super().__init__(iou_metrics=["mIoU", *names], collect_device=collect_device, **kwargs)
        self.results: list
        self.unchecked: list[tuple[dict, Tensor]] = []
        self.size = 0

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        self._check()  # the batch before: the device has counted it by now
        before = len(self.results)
        for sample in data_samples:
            labels, truth = sample["pred_sem_seg"], sample["gt_sem_seg"]
            if labels["data"].shape[-2:] != truth["data"].shape[-2:]:
                sizes = ("x".join(map(str, part["data"].shape[-2:])) for part in (truth, labels))
                raise UserError("label map {} is {}, its image {}; {}".format(_label_map(sample), *sizes, REMEDY))
            # MMSeg casts the ground truth to the prediction's type, which must hold the ignored label too.
            labels["data"] = labels["data"].int()
        super().process(data_batch, data_samples)
        self.unchecked = list(zip(data_samples, self.results[before:]))

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
        """Counts [4C + 2], int64, of two label maps [H, W].

        Those of each class's intersection, union, prediction and ground truth, one after the other; then of labels in
        the ground truth that are no class, and of ignored ones. Pixels that the ground truth ignores count nowhere
        else; a prediction outside 0..C-1 is in no class's area.
        """
        bins = num_classes + 3  # of the ignored, those below the classes, the classes, those above
        predicted, true = (labels.int().clamp(-1, num_classes) + 2 for labels in (pred_label, label))
        # One histogram of both maps: each bin of the ground truth is split into wrong and right.
        index = torch.stack([2 * true + (true == predicted), 2 * bins + predicted])
        index.masked_fill_(label == ignore_index, 0)
        counts = tally(index.flatten().long(), 3 * bins)
        wrong, right = counts[: 2 * bins].view(bins, 2).T
        true = wrong + right
        strange, ignored = true[1] + true[-1], true[0] // 2  # both rows of the index have the ignored in bin 0
        right, true, predicted = right[2:-1], true[2:-1], counts[2 * bins + 2 : -1]
        return torch.cat([right, predicted + true - right, predicted, true, torch.stack([strange, ignored])])

    def _check(self) -> None:
        """Raise UserError for scores that were not finite, or a label that is no class, in the last batch."""
        unchecked, self.unchecked = self.unchecked, []
        for sample, counts in unchecked:
            if not sample.get("finite", True):
                raise UserError(
                    f"scores are not finite from {sample['img_path']} on: use precision fp32, and weights and options "
                    "without NaN or infinity"
                )
            if counts[-2]:
                raise UserError(self._strange_label(sample))

    def _strange_label(self, sample: dict) -> str:
        first = int(bool(sample.get("reduce_zero_label")))  # the file's labels, of which the data set takes 1 off
        classes = len(self.dataset_meta["classes"])
        truth = sample["gt_sem_seg"]["data"].int()
        value = truth[((truth < 0) | (truth >= classes)) & (truth != self.ignore_index)][0].item() + first
        return (
            f"label map {_label_map(sample)} holds {value}, which is none of the {classes} classes ({first} to "
            f"{classes - 1 + first}) nor the ignored {self.ignore_index}; {REMEDY}"
        )

    def evaluate(self, size: int) -> dict:
        self._check()
        self.size = size
        if self.results:  # copied at once; as arrays, for a pickled tensor takes along those it shares memory with
            self.results = list(torch.stack(self.results).cpu().numpy())
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict:
        classes = [name.strip() for name in self.dataset_meta["classes"]]
        if len(results) < self.size:
            raise UserError(f"{len(results)} of {self.size} images were counted; let the sampler and loader give all")
        counts = np.stack(results)
        areas = counts[:, :-2].reshape(len(results), 4, len(classes))
        self._check_truth(areas[:, 3].sum(axis=0), counts[:, -1].sum())
        total = torch.from_numpy(areas.sum(axis=0)).double()
        values = self.total_area_to_metrics(*total, self.metrics, self.nan_to_num, self.beta)
        percent = {name: torch.as_tensor(value).double() * 100 for name, value in values.items()}
        accuracy, iou = percent.pop("aAcc").item(), percent["IoU"]
        means = {f"m{name}": value.nanmean().item() for name, value in percent.items()}
        interval = bootstrap(areas).mIoU.half_width
        return {**means, "aAcc": accuracy, "interval": interval, "IoU": dict(zip(classes, iou.tolist()))}

    def _check_truth(self, truth: np.ndarray, ignored: int) -> None:
        """Raise UserError for label maps that cannot be what they were meant to be; `truth` [C] counts pixels."""
        if not truth.sum():
            raise UserError(f"no pixel has a label: the label maps hold nothing but the ignored {self.ignore_index}")
        if len(truth) == 2 and ignored and not truth[1]:
            raise UserError(
                f"the label maps hold nothing but class 0 and the ignored {self.ignore_index}; in masks of 0 and 255, "
                "write 1 for 255"
            )


def _label_map(sample: dict) -> str:
    return sample.get("seg_map_path") or f"of {sample.get('img_path')}"


@HOOKS.register_module()
class SaveOverlayHook(Hook):
    """Saves a sheet of each image, its ground truth, prediction and errors in `folder`, laid out as the images are.

    One that cannot be drawn or written costs no evaluation: that is said once.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.pictures: Pictures | None = None

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[SegDataSample] = ()
    ) -> None:
        if self.pictures is None:
            dataset = runner.test_dataloader.dataset
            images, names = dataset.data_prefix["img_path"], dataset.metainfo["classes"]
            self.pictures = Pictures(self.folder, images, names, colours=own_colours(dataset.metainfo))
        for image, sample in zip(data_batch["inputs"], outputs):  # BGR [3, H, W], as it was loaded
            rgb = image.flip(0).permute(1, 2, 0).cpu().numpy()
            truth, labels = (part.data[0].cpu().numpy() for part in (sample.gt_sem_seg, sample.pred_sem_seg))
            self.pictures.save(sample.img_path, rgb, truth, labels)
