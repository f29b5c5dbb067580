"""Class offsets and a threshold fitted on a few labelled images: CLIP favours some names, and this takes it back.

    segmenter = Segmenter("ClearCLIP", calibration="voc20.calibration.json")

An offset is added to the scores of all names of its class before their softmax. Results are no longer training-free,
and say so wherever they appear. `clearclip calibrate` fits a file.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearclip.decode import LabelDecoder
from clearclip.errors import UserError
from clearclip.paths import atomic_write
from clearclip.text import Queries
from clearclip.windows import Maps

log = logging.getLogger(__name__)

FORMAT = "clearclip calibration 1"
REACH, STEPS = 2.0, 41  # offsets are tried from −2 to 2 units, see `unit`, in so many steps
SWEEPS = 3  # over all classes
FOLDS = 4
SHRINKAGE = (0.0, 1.0, 3.0, 10.0, 30.0, math.inf)  # images' worth of doubt that an offset is 0
THRESHOLDS = tuple(step / 20 for step in range(20))
RELUCTANCE = 1e-4  # of mIoU that an offset of one unit must gain: among equals the smallest is taken


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and for what.

    Attributes:
        names: of each class, all synonyms.
        offsets: [C], added to scores.
        threshold: in place of the segmenter's; None where the data has no class for uncertain pixels.
        settings: of the segmenter it was fitted for: method, backbone, weights, short_side and so on.
        text_hash: SHA-256 of the text embeddings.
        fitted: on what, and what it gave: "benchmark", "images" (a list of their ids), "seed" and so on.
    """

    names: tuple[tuple[str, ...], ...]
    offsets: tuple[float, ...]
    threshold: float | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    text_hash: str = ""
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.offsets):
            raise ValueError(f"{len(self.names)} classes need as many offsets, not {len(self.offsets)}")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that changes a label."""
        decisive = [self.names, self.offsets, self.threshold]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(synonyms[0] for synonyms in self.names)

    @property
    def source(self) -> str:
        """What it was fitted on, in words: "50 images of voc20"."""
        return f"{len(self.fitted.get('images', ()))} images of {self.fitted.get('benchmark', 'unknown origin')}"

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load` reads."""
        content = {"format": FORMAT, "hash": self.hash, **dataclasses.asdict(self)}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote. Raises UserError for a file that is missing, no calibration or was edited."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("of another format")
            expected = content.pop("hash")
            names = tuple(map(tuple, content.pop("names")))
            offsets = tuple(map(float, content.pop("offsets")))
            found = cls(names, offsets, **content)
            found._check()
        except OSError as error:
            raise UserError(
                f"calibration {path} cannot be read ({error.strerror}); clearclip calibrate makes one"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no calibration ({error}); clearclip calibrate makes one") from None
        if found.hash != expected:
            raise UserError(f"calibration {path} was changed after it was fitted; run clearclip calibrate again")
        return found

    def _check(self) -> None:
        """Raise ValueError for parts of a file that are not what `calibrate` makes of them."""
        if not self.names or not all(names and all(isinstance(name, str) for name in names) for names in self.names):
            raise ValueError("its names are not those of classes")
        if not all(map(math.isfinite, self.offsets)):
            raise ValueError("its offsets are not finite")
        if self.threshold is not None and (
            isinstance(self.threshold, bool)
            or not isinstance(self.threshold, int | float)
            or not 0 <= self.threshold <= 1
        ):
            raise ValueError(f"its threshold is {self.threshold!r}, not within 0..1")
        if not (isinstance(self.settings, dict) and isinstance(self.text_hash, str) and isinstance(self.fitted, dict)):
            raise ValueError("its settings or its origin are damaged")
        images = self.fitted.get("images", [])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise ValueError("its images are no list of names")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError for a setting that is not as it was when this was fitted; what is unknown is not judged."""
        for key, wanted in self.settings.items():
            if key in settings and settings[key] != wanted:
                raise UserError(
                    f"the calibration was fitted for {key} {wanted}, not {settings[key]}: use the same, or run "
                    "clearclip calibrate for these settings"
                )

    def check_names(self, names: Sequence[Sequence[str]]) -> None:
        """Raise UserError where classes or synonyms differ from those that it was fitted for."""
        if tuple(map(tuple, names)) != self.names:
            odd = next((mine for mine, theirs in zip(names, self.names) if tuple(mine) != theirs), None)
            what = f"{', '.join(odd)!r} is not among them" if odd else f"there are {len(names)} classes"
            raise UserError(
                f"the calibration was fitted for other names, {len(self.names)} classes that begin with "
                f"{self.classes[0]!r}, and {what}: give the same names, or run clearclip calibrate for these"
            )

    def decoder(self, decoder: LabelDecoder, queries: Queries) -> LabelDecoder:
        """A decoder of scores to which the offsets are added. Raises UserError for queries of other classes."""
        if queries.names != self.classes:
            self.check_names([(name,) for name in queries.names])
        if self.text_hash and text_hash(queries) != self.text_hash:
            log.warning("the calibration was fitted with other text embeddings: it may help less, or harm")
        return Shifted(decoder, tuple(self.offsets[index] for index in queries.query_class))


def text_hash(queries: Queries) -> str:
    """SHA-256 of text embeddings, to four digits: devices differ in the last."""
    rounded = (queries.text.float().cpu() * 1e4).round().to(torch.int32).contiguous()
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Shifted:
    """A decoder whose scores have an offset for each query: stitching is an average, so it may come before that."""

    inner: LabelDecoder
    offsets: tuple[float, ...]  # [Q]

    @property
    def num_classes(self) -> int:
        return self.inner.num_classes

    def labels(self, maps: Maps) -> Tensor:
        return self.inner.labels(self._shifted(maps))

    def probabilities(self, maps: Maps) -> Tensor:
        return self.inner.probabilities(self._shifted(maps))

    def _shifted(self, maps: Maps) -> Maps:
        offsets = torch.tensor(self.offsets, device=maps.scores.device)[:, None, None]
        return dataclasses.replace(maps, scores=maps.scores.float() + offsets)


# Fitting


@dataclass(frozen=True)
class Pixels:
    """Labelled pixels of several images, and what competes for them.

    Attributes:
        scores: [C, P], the best score of each class's names.
        mass: [C, P], log Σ exp(logit_scale · score) over its names.
        truth: [P], int64.
        image: [P], int64, which image each is of.
        logit_scale: that of the segmenter.
    """

    scores: Tensor
    mass: Tensor
    truth: Tensor
    image: Tensor
    logit_scale: float

    @classmethod
    def of(cls, sampled: Sequence[tuple[Tensor, Tensor]], query_class: Sequence[int], logit_scale: float) -> "Pixels":
        """From the scores [Q, p] and labels [p] of each image."""
        scores = torch.cat([scores for scores, _ in sampled], dim=1).float().cpu()  # [Q, P]
        index = torch.tensor(query_class)[:, None].expand_as(scores)
        empty = scores.new_full((max(query_class) + 1, scores.shape[1]), -torch.inf)
        best = empty.scatter_reduce(0, index, scores, "amax")
        share = (logit_scale * (scores - best[list(query_class)])).exp()
        mass = logit_scale * best + torch.zeros_like(best).scatter_add(0, index, share).log()
        truth = torch.cat([labels for _, labels in sampled]).long().cpu()
        image = torch.cat([torch.full((len(labels),), number) for number, (_, labels) in enumerate(sampled)])
        return cls(best, mass, truth, image, logit_scale)

    def take(self, chosen: Tensor) -> "Pixels":
        """Those where `chosen` [P] is true."""
        return Pixels(
            self.scores[:, chosen], self.mass[:, chosen], self.truth[chosen], self.image[chosen], self.logit_scale
        )

    @property
    def classes(self) -> int:
        return len(self.scores)

    @cached_property
    def unit(self) -> float:
        """How far the classes' scores of a pixel usually lie apart: their standard deviation."""
        return float(self.scores.std(dim=0).mean())

    @cached_property
    def areas(self) -> Tensor:
        """[C] pixels of each class."""
        return torch.bincount(self.truth, minlength=self.classes)

    @cached_property
    def images_of(self) -> Tensor:
        """[C] images in which each class is."""
        pairs = torch.unique(self.truth * (int(self.image.max()) + 1) + self.image)
        return torch.bincount(pairs // (int(self.image.max()) + 1), minlength=self.classes)


@dataclass(frozen=True)
class Fit:
    """Offsets [C] and a threshold; `doubt` is the shrinkage that was chosen, and what was measured by folds."""

    offsets: Tensor
    threshold: float
    doubt: float
    plain: float  # mIoU of left-out folds without calibration
    calibrated: float  # and with it


def fit(pixels: Pixels, threshold: float, seed: int = 0) -> Fit:
    """Fit offsets and, where `threshold` is above 0, one threshold: coordinate ascent on mIoU, and shrinkage.

    An offset is multiplied by n / (n + k), n being the number of images that have the class. Of several k that is
    taken which does best on folds of images that were left out; k = ∞, no calibration, is one of them.
    """
    images = int(pixels.image.max()) + 1
    fold = torch.randperm(images, generator=torch.Generator().manual_seed(seed)) % min(FOLDS, images)
    totals: dict[float, Tensor] = {doubt: torch.zeros(2, pixels.classes) for doubt in SHRINKAGE}
    for number in range(int(fold.max()) + 1) if images > 1 else ():
        left_out = fold[pixels.image] == number
        train, test = pixels.take(~left_out), pixels.take(left_out)
        raw, _ = ascend(train, threshold)
        for doubt in SHRINKAGE:
            offsets = shrunk(raw, train, doubt)
            best = best_threshold(train, offsets) if threshold and doubt < math.inf else threshold
            totals[doubt] += torch.stack(overlap(test, offsets, best))
    measured = {doubt: mean_iou(*total) for doubt, total in totals.items()}
    doubt = max(SHRINKAGE, key=lambda doubt: (measured[doubt], doubt))
    offsets = shrunk(ascend(pixels, threshold)[0], pixels, doubt) if doubt < math.inf else torch.zeros(pixels.classes)
    chosen = best_threshold(pixels, offsets) if threshold and doubt < math.inf else threshold
    return Fit(offsets, chosen, doubt, measured[math.inf], measured[doubt])


def shrunk(offsets: Tensor, pixels: Pixels, doubt: float) -> Tensor:
    """Offsets [C] moved to 0 the more, the fewer images have a class."""
    seen = pixels.images_of.float()
    return torch.zeros_like(offsets) if math.isinf(doubt) else offsets * seen / (seen + doubt).clamp_min(1e-9)


def ascend(pixels: Pixels, threshold: float) -> tuple[Tensor, float]:
    """Offsets [C] and a threshold of which none alone can be bettered, or nearly: each in turn, some times over.

    A class that is in no label keeps the offset 0: nothing is known of it.
    """
    steps = torch.linspace(-REACH, REACH, STEPS)
    offsets = torch.zeros(pixels.classes)
    for _ in range(SWEEPS):
        before = offsets.clone()
        for index in pixels.areas.nonzero().flatten().tolist():
            scores = line(pixels, offsets, threshold, index, steps * pixels.unit)
            offsets[index] = steps[(scores - RELUCTANCE * steps.abs()).argmax()] * pixels.unit
        if threshold:
            threshold = best_threshold(pixels, offsets)
        if torch.equal(before, offsets):
            break
    return offsets, threshold


def line(pixels: Pixels, offsets: Tensor, threshold: float, index: int, values: Tensor) -> Tensor:
    """mIoU [G], 0 to 1, for each value [G], ascending, of the offset of one class, the others staying as they are.

    As the offset grows, a pixel first has its best other class, is then too uncertain and so of class 0, and then of
    this class. Where it changes follows from its scores; so all values are counted at once.
    """
    scale, classes, steps = pixels.logit_scale, pixels.classes, len(values)
    moved = pixels.scores + offsets[:, None]
    moved[index] = -torch.inf
    best, other = moved.max(dim=0)
    leaves = enters = best - pixels.scores[index]  # [P] the offset at which this class overtakes
    if threshold:
        mass = pixels.mass + scale * offsets[:, None]
        mass[index] = -torch.inf
        rest, own = mass.logsumexp(dim=0), pixels.mass[index]
        spare = (scale * best - rest).exp() / threshold - 1  # room for this class before the best is below threshold
        uncertain = torch.where(spare > 0, (rest + spare.clamp_min(1e-30).log() - own) / scale, -torch.inf)
        excess = (scale * pixels.scores[index] - own).exp() - threshold
        certain = torch.where(
            excess > 0, (math.log(threshold) + rest - own - excess.clamp_min(1e-30).log()) / scale, torch.inf
        )
        leaves, enters = leaves.minimum(uncertain), enters.maximum(certain)
    first = torch.bucketize(leaves, values, right=True)  # from this step on it is no longer `other`
    last = torch.bucketize(enters, values, right=True)  # from this step on it is of this class

    def grown(bins: Tensor, chosen: Tensor) -> Tensor:
        """[G] how many of the chosen have come by each step."""
        return torch.bincount(bins[chosen], minlength=steps + 1).cumsum(0)[:steps]

    def stayed(chosen: Tensor) -> Tensor:
        """[G, C] how many of the chosen still have their other class at each step."""
        counts = torch.bincount((first * classes + other)[chosen], minlength=(steps + 1) * classes)
        counts = counts.view(steps + 1, classes)
        return counts.sum(0) - counts.cumsum(0)[:steps]

    everything, truth = torch.ones_like(other, dtype=torch.bool), pixels.truth
    predicted, hit = stayed(everything), stayed(other == truth)
    predicted[:, index] += grown(last, everything)
    hit[:, index] += grown(last, truth == index)
    predicted[:, 0] += grown(first, everything) - grown(last, everything)
    hit[:, 0] += grown(first, truth == 0) - grown(last, truth == 0)
    union = predicted + pixels.areas - hit
    present = pixels.areas > 0
    return (hit[:, present] / union[:, present]).mean(dim=1)


def labels(pixels: Pixels, offsets: Tensor, threshold: float) -> Tensor:
    """The label [P] of each pixel."""
    best, label = (pixels.scores + offsets[:, None]).max(dim=0)
    if threshold:
        mass = (pixels.mass + pixels.logit_scale * offsets[:, None]).logsumexp(dim=0)
        label = label.masked_fill((pixels.logit_scale * best - mass).exp() < threshold, 0)
    return label


def overlap(pixels: Pixels, offsets: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Intersection and union [C] of labels and truth, in pixels."""
    label = labels(pixels, offsets, threshold)
    hit = torch.bincount(label[label == pixels.truth], minlength=pixels.classes)
    return hit, torch.bincount(label, minlength=pixels.classes) + pixels.areas - hit


def mean_iou(hit: Tensor, union: Tensor) -> float:
    """mIoU in percent, over classes that occur."""
    occurs = union > 0
    return float((hit[occurs] / union[occurs]).mean() * 100)


def best_threshold(pixels: Pixels, offsets: Tensor) -> float:
    """That of `THRESHOLDS` which gives the best mIoU."""
    return max(THRESHOLDS, key=lambda threshold: mean_iou(*overlap(pixels, offsets, threshold)))
