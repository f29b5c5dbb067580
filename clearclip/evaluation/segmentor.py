"""`Segmenter` as an MMSegmentation segmentor, with its metric and a hook that saves what it saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models import BaseSegmentor
from mmseg.registry import METRICS, MODELS
from torch import Tensor

from clearclip.segmenter import Segmenter, read_image
from clearclip.vocabulary import load_vocabulary


@MODELS.register_module()
class OpenVocabSegmentor(BaseSegmentor):
    """A thin adapter: MMSeg's batch of images in, `pred_sem_seg` at the original sizes out.

    `vocabulary` is a class file, one line for each label of the data set; `settings` are those of `Segmenter`.
    `short_side` is 0 where the pipeline has resized the images. Those of a batch may differ in size.
    """

    def __init__(self, vocabulary: str, short_side: int = 0, **settings):
        # No preprocessing of MMSeg's: the normalisation belongs to the backbone.
        super().__init__(data_preprocessor=BaseDataPreprocessor())
        self.segmenter = Segmenter(**settings, short_side=short_side)
        self.vocabulary = load_vocabulary(vocabulary)
        self.queries = self.segmenter.queries(self.vocabulary)

    def predict(self, inputs, data_samples):
        """A list of BGR images [3, h, w], uint8, to its data samples with `pred_sem_seg` [1, H, W] set."""
        images = [self.segmenter.resize(image.to(self.segmenter.device).flip(0)) for image in inputs]
        shapes = [sample.ori_shape for sample in data_samples]
        for sample, labels in zip(data_samples, self.segmenter.segment(images, shapes, self.queries)):
            sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return data_samples

    def encode_decode(self, inputs, batch_data_samples):
        raise NotImplementedError("there is no decode head; use predict")

    def extract_feat(self, inputs):
        raise NotImplementedError("windows have features, images have not; see Segmenter.features")

    def loss(self, inputs, data_samples):
        raise NotImplementedError("nothing here is trained")

    def _forward(self, inputs, data_samples=None):
        raise NotImplementedError("use predict")


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """In place of DistributedDataParallel, which refuses a model without gradients."""

    def __new__(cls, module):
        return module


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """MMSeg's IoUMetric that also returns each class's IoU, and counts pixels in integers, on their device.

    Returns mIoU, aAcc, mAcc in percent, the mean over classes that occur, and `IoU`, a dict by class name with
    NaN for a class that is neither in the ground truth nor predicted.
    """

    default_prefix = ""

    def __init__(self, collect_device="gpu", **kwargs):
        # "gpu" means: through the process group, GPU or not; "cpu" leaves a folder of pickles where we stand.
        super().__init__(collect_device=collect_device, **kwargs)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            # MMSeg casts the ground truth to the prediction's type, which must hold the ignored label too.
            sample["pred_sem_seg"]["data"] = sample["pred_sem_seg"]["data"].int()
        super().process(data_batch, data_samples)

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
        """Areas [4, C], int64, of two label maps [H, W]: intersection, union, prediction and ground truth.

        Pixels that the ground truth ignores do not count; a label outside 0..C-1 is in no class's area.
        """
        pred_label, label = pred_label.int(), label.int()
        bins = num_classes + 2  # the first and the last take what is no class
        predicted, true = (labels.clamp(-1, num_classes) + 1 for labels in (pred_label, label))
        # One histogram of both maps: each bin of the ground truth is split into wrong and right.
        index = torch.stack([2 * true + (true == predicted), 2 * bins + predicted])
        index.masked_fill_(label == ignore_index, 0)
        counts = torch.bincount(index.flatten(), minlength=3 * bins)
        wrong, right = counts[: 2 * bins].view(bins, 2)[1:-1].T
        predicted = counts[2 * bins + 1 : -1]
        return torch.stack([right, predicted + wrong, predicted, wrong + right])

    def evaluate(self, size: int) -> dict:
        if self.results:  # copied at once; as arrays, for a pickled tensor takes along those it shares memory with
            self.results = list(torch.stack(self.results).cpu().numpy())
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict:
        areas = torch.from_numpy(np.sum(results, axis=0)).double()
        metrics = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        iou, accuracy = (torch.as_tensor(metrics[key]).double() * 100 for key in ("IoU", "Acc"))
        return {
            "mIoU": iou.nanmean().item(),
            "aAcc": float(metrics["aAcc"]) * 100,
            "mAcc": accuracy.nanmean().item(),
            "IoU": dict(zip(map(str.strip, self.dataset_meta["classes"]), iou.tolist())),
        }


@HOOKS.register_module()
class SaveOverlayHook(Hook):
    """Saves image, ground truth and prediction side by side as `<folder>/<image name>.png`."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=()):
        from clearclip.visualize import overlay, sheet

        names = runner.test_dataloader.dataset.metainfo["classes"]
        for sample in outputs:
            image = read_image(sample.img_path)
            truth, labels = (s.data[0].cpu().numpy() for s in (sample.gt_sem_seg, sample.pred_sem_seg))
            pictures = [image, overlay(image, truth, names), overlay(image, labels, names)]
            self.folder.mkdir(parents=True, exist_ok=True)
            titles = ["image", "ground truth", "prediction"]
            sheet([list(zip(titles, pictures))]).save(self.folder / f"{Path(sample.img_path).stem}.png")
