"""The road from image to labels, in plain PyTorch: resize, windows, scores, stitch, refine, decode."""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clearclip import windows
from clearclip.backbones import Backbone, load_backbone
from clearclip.calibration import Calibration
from clearclip.decode import Decoded, LabelDecoder
from clearclip.embedder import Embedder
from clearclip.errors import UserError
from clearclip.features import KeptFeatures, KeptFolder, KeptView, is_kept, load_kept
from clearclip.images import LONG_SIDE, MAX_PIXELS, image_size, read_image, resize_patches, resize_short, resized_shape
from clearclip.look import Dense, Look, check_finite, fitting_windows, look_together
from clearclip.methods import Method
from clearclip.other import OtherWords, read_other, set_apart
from clearclip.refine import Refinement
from clearclip.registry import Choice
from clearclip.segmentation import Segmentation, Similarities, version
from clearclip.settings import check_loaded, check_settings
from clearclip.spec import Spec
from clearclip.text import Queries, TextEmbeddings
from clearclip.view import View
from clearclip.vocabulary import Vocabulary
from clearclip.windows import Maps, Stitcher

UNKNOWN_SIDE = 1024  # of windows that are whole images of any size
AUTO = "auto"


class Segmenter:
    """Segment images into classes named in words, without training.

        segmenter = Segmenter(method="ClearCLIP", backbone="ViT-B-16", pretrained="openai")
        labels = segmenter("cat.jpg", ["cat", "grass, lawn"]).labels  # [H, W], 0 is cat

    `Segmenter("auto")` works on any machine: it is the default with the weights that are at hand.

    Args:
        method: as `Spec.parse` reads it, such as "ClearCLIP:attention=kk" or "NACLIP+PAMR", whose refinement PAMR holds
            the scores of all classes at the image's own size; or a `Method`.
        backbone, pretrained: as `load_backbone` reads them; or a loaded `Backbone`, which keeps its device, precision
            and compilation.
        templates: a set of prompt templates, a file of them, or the templates themselves.
        text_embeddings: a file or `TextEmbeddings` in place of the text tower and the templates.
        short_side, long_side: images are resized to the largest size that exceeds neither, in pixels, as published;
            a short side of 0 keeps their size.
        crop, stride: windows of `crop` pixels every `stride`; `crop` 0 takes the whole image at once.
        two_steps: the scores of a whole image go to the resized image's size first and from there to the output's, as
            in NACLIP's code and what builds on it, not in one step.
        logit_scale: what multiplies cosine scores before their softmax; `temperature` is another name for it. "model"
            is the scale that the backbone was trained to; one name alone then has the probability that a model trained
            by sigmoids (SigLIP) gives it, by its scale and its bias.
        threshold, area_threshold: see `clearclip.decode.Decoder`.
        device, precision, compile: see `load_backbone`.
        window_batch: windows that go through the network at once, by default what suits the device: on a GPU as many
            as half of its free memory holds. Where memory is too small for them they become half as many, and a
            warning says so. It does not change the result.
        resize: "cv2", as published, or "device", or CLIPer's "pil", see the method of that name.
        text_names: which row of `text_embeddings` a name takes that is written otherwise there: {name: row's name}, or
            a JSON file of it.
        refinements: what follows those that `method` names.
        other: True gives a class "other", the first, to what none of the names describes; or a list of words of one's
            own for what else there is. See `clearclip.other`. Pixels below the threshold are other, too.
        calibration: offsets and a threshold fitted on labelled images, see `clearclip.calibration`; results are then
            no longer training-free.

    Raises:
        UserError: for unknown names, settings that cannot be, weights that cannot be found and damaged files.
    """

    def __init__(
        self,
        method: str | Spec | Method = "ClearCLIP",
        backbone: str | Backbone = "ViT-B-16",
        pretrained: str | None = None,
        *,
        templates: str | Sequence[str] = "imagenet80",
        text_embeddings: str | Path | TextEmbeddings | None = None,
        short_side: int = 448,
        long_side: int = LONG_SIDE,
        crop: int = 448,
        stride: int = 224,
        logit_scale: float | str = 50.0,
        threshold: float = 0.0,
        area_threshold: float = 0.0,
        device: str = "auto",
        precision: str = "auto",
        window_batch: int | None = None,
        resize: str = "cv2",
        two_steps: bool = False,
        compile: bool = False,
        temperature: float | str | None = None,
        refinements: Sequence[Refinement] = (),
        text_names: Mapping[str, str] | str | Path | None = None,
        other: bool | Sequence[str] | OtherWords | None = None,
        calibration: str | Path | Calibration | None = None,
    ):
        if pretrained is None:
            pretrained = AUTO if method == AUTO else "openai"
        method = "ClearCLIP" if method == AUTO else method
        wanted = {"logit_scale": logit_scale} if temperature is None else {"temperature": temperature}
        sides = dict(short_side=short_side, long_side=long_side)
        settings = dict(**sides, crop=crop, stride=stride, window_batch=window_batch, resize=resize)
        thresholds = dict(threshold=threshold, area_threshold=area_threshold)
        check_settings(settings | wanted | thresholds | dict(two_steps=two_steps))
        self.other = read_other(other)
        if calibration is not None and not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        if isinstance(method, str):
            method = Spec.parse(method)  # what is wrong should not wait for the weights
        written = str(method) if isinstance(method, Spec) else None
        if not isinstance(method, Spec | Method):
            raise UserError(f"method must be a name of list_methods() or a Method, not {method!r}")
        if isinstance(method, Method):
            backbone = method.backbone
        if isinstance(backbone, Backbone):
            check_loaded(backbone, device, precision, compile)
        else:
            backbone = load_backbone(backbone, pretrained, device, precision, compile)
        self.backbone = backbone
        self.spec = str(method) if isinstance(method, Spec) else type(method).__name__
        self.method: Method
        self.refinements: list[Refinement]
        self.method, own = (method, []) if isinstance(method, Method) else method.create(backbone)
        self.choice: Choice[Method] | None = method.method if isinstance(method, Spec) else None
        self.given, self.refinements = tuple(refinements), [*own, *refinements]
        self.of_features = tuple(refinement for refinement in self.refinements if refinement.sees_features)
        if self.of_features and not self.method.compares_features:
            raise UserError(
                f"{type(self.of_features[0]).__name__} refines features, of which {type(self.method).__name__} does "
                "not make its scores; use it after another method, such as ClearCLIP"
            )
        self.device = backbone.device
        self.embedder = Embedder(backbone, templates, text_embeddings, text_names)
        self._decoder: tuple[tuple[Any, ...], LabelDecoder] | None = None
        self.resizer, self.short_side, self.long_side = resize, short_side, long_side
        self.crop, self.stride = crop, stride
        self.two_steps = two_steps
        scale = logit_scale if temperature is None else temperature
        self.logit_scale: float = trained_scale(backbone) if isinstance(scale, str) else scale
        self.bias = backbone.logit_bias if isinstance(scale, str) else None
        self.threshold, self.area_threshold = threshold, area_threshold
        self.window_batch = window_batch or fitting_windows(backbone, crop or 2 * short_side or UNKNOWN_SIDE)
        self.stitcher = Stitcher(self.device)
        self.calibration = calibration
        if calibration is not None:
            calibration.check_settings(self.settings | ({} if written is None else {"method": written}))

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        names: Any,
        *,
        scores: bool = ...,
        features: bool = ...,
        other: bool | Sequence[str] | OtherWords | None = ...,
        max_pixels: int | None = ...,
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self,
        images: Any,
        names: Any,
        *,
        scores: bool = ...,
        features: bool = ...,
        other: bool | Sequence[str] | OtherWords | None = ...,
        max_pixels: int | None = ...,
    ) -> Segmentation: ...

    def __call__(
        self,
        images: Any,
        names: Any,
        *,
        scores: bool = False,
        features: bool = False,
        other: bool | Sequence[str] | OtherWords | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> Any:
        """Segment one image, or a list of images of any sizes, into classes. A list shows its progress on a terminal.

            result = segmenter("cat.jpg", ["cat"], other=True, scores=True)
            result.areas  # {"other": 0.69, "cat": 0.31}
            result.heat("cat").save("where.png")

        Args:
            images: a path, a PIL image, an RGB array [H, W, 3] or a tensor [3, H, W] (uint8, or float in 0..1), or a
                list of them. In place of a picture, its kept features, or a path of them: see `clearclip.features`.
            names: a list of class names, synonyms separated by commas, or a `Vocabulary`.
            scores: give class probabilities and similarities too.
            features: give patch features too.
            other: as that of the segmenter, which it takes the place of.
            max_pixels: a picture of more is refused before it is decoded; None takes any.

        Returns:
            A `Segmentation` at the image's own size, or a list of them.
        """
        several = isinstance(images, list | tuple | KeptFolder)
        images = images if several else [images]
        for image in images if len(images) > 1 else ():
            if isinstance(image, str | os.PathLike) and not is_kept(image):
                image_size(os.fspath(image), max_pixels)  # what is missing should not cost what comes before it
        results = self.stream(images, names, scores=scores, features=features, other=other, max_pixels=max_pixels)
        if not several:
            return next(results)
        return list(tqdm(results, "segmenting", len(images), leave=False, unit=" images", delay=1, disable=None))

    def stream(
        self,
        images: Iterable[Any],
        names: Any,
        *,
        scores: bool = False,
        features: bool = False,
        other: bool | Sequence[str] | OtherWords | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> Iterator[Segmentation]:
        """Segment images one after the other, never holding more than fit into a batch of windows.

            for path, result in zip(paths, segmenter.stream(paths, ["cat", "grass"])):
                result.save("results")

        Arguments as those of a call.
        """
        vocabulary = names if isinstance(names, Vocabulary) else Vocabulary.of(names)
        queries = decoder = None
        for batch in self._batches(images, max_pixels):
            if queries is None or decoder is None:
                queries = self.queries(vocabulary, other)
                decoder = self.decoder(queries)
            seen = self.look([view for _, view in batch], queries, features)
            for (image, view), dense in zip(batch, seen):
                yield self.result(view, dense, queries, decoder, scores, image)

    def _batches(self, images: Iterable[Any], max_pixels: int | None) -> Iterator[list[tuple[Any, View]]]:
        """Images with their views, as many together as fill a batch of windows."""
        batch: list[tuple[Any, View]] = []
        for image in images:
            if is_kept(image):
                kept = load_kept(image)
                view: View = self.recall(kept)
                image = kept.note.origin if kept.note.origin.path else None
            else:
                pixels = torch.from_numpy(read_image(image, max_pixels)).permute(2, 0, 1)
                view = self.view(pixels, name=_file_name(image))
            if batch and type(batch[0][1]) is not type(view):  # pictures take the network's way, features do not
                yield batch
                batch = []
            batch.append((image, view))
            if sum(len(view.plan) for _, view in batch) >= self.window_batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def result(
        self, view: View, dense: Dense, queries: Queries, decoder: LabelDecoder, scores: bool, source: Any = None
    ) -> Segmentation:
        """What is handed to the user for one image. Raises UserError where scores are not finite."""
        check_finite(self.method, bool(dense.finite))
        maps = self.maps(view, dense, queries)
        decoded = self.decoded(view, maps, decoder)
        kept = probabilities = None
        if scores:
            on_cpu = Maps(maps.scores.float().cpu(), maps.rows.cpu(), maps.columns.cpu(), maps.taps, maps.whole)
            kept = Similarities(on_cpu, queries.query_class)
            alone = len(queries.names) == 1  # its share of a softmax is 1 everywhere
            probabilities = self._of_one(kept.of(0))[None] if alone else decoded.probabilities.cpu().numpy()
        return Segmentation(
            decoded.labels.cpu().numpy(),
            queries.names,
            probabilities,
            None if dense.features is None else dense.features.cpu().numpy(),
            kept,
            source,
            self.about | ({"features": "kept as float16"} if isinstance(view, KeptView) else {}),
            queries.everything_else,
        )

    def _of_one(self, similarity: np.ndarray) -> np.ndarray:
        """What `scores` has of a class that stands alone, from its similarity [H, W]."""
        if self.bias is None:
            return similarity
        return torch.from_numpy(self.logit_scale * similarity + self.bias).sigmoid().numpy()

    @property
    def settings(self) -> dict[str, Any]:
        """What its scores depend on besides method and text, for JSON."""
        keys = ("short_side", "crop", "stride", "two_steps", "logit_scale")
        return {
            "backbone": self.backbone.name,
            "weights": self.backbone.content_hash,
            **{key: getattr(self, key) for key in keys},
            "resize": self.resizer,
            **({"long_side": self.long_side} if self.long_side != LONG_SIDE else {}),
        }

    @property
    def feature_settings(self) -> dict[str, Any]:
        """What its patch features depend on, for JSON: what is kept of them serves all for which this is the same."""
        keys = ("short_side", "long_side", "crop", "stride", "two_steps")
        named = {"method": type(self.method).__qualname__}
        if self.choice is not None:
            named = {"method": self.choice.name, "option": json.loads(json.dumps(self.choice.settings, default=str))}
        return {
            **named,
            "file": self.method.files(),
            "backbone": self.backbone.name,
            "weights": self.backbone.content_hash,
            "position": self.backbone.position,
            **{key: getattr(self, key) for key in keys},
            "resize": self.resizer,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What makes its results, in words and numbers."""
        text = "text student" if self.backbone.text_stand_in else self.embedder.templates
        if self.embedder.embeddings is not None:
            text = self.embedder.embeddings.note or "text embeddings"
        return dict(
            method="+".join([self.spec, *(type(one).__name__ for one in self.given)]),
            backbone=self.backbone.name,
            weights=self.backbone.tag,
            text=text if isinstance(text, str) else list(text),
            short_side=self.short_side,
            threshold=self.threshold,
            precision=str(self.backbone.dtype).removeprefix("torch."),
            version=version(),
        )

    def queries(self, vocabulary: Vocabulary, other: bool | Sequence[str] | OtherWords | None = None) -> Queries:
        """Embed a vocabulary's names, or pick them from the text embeddings that were given.

        With `other`, by default the segmenter's own, class 0 is what none of the names describes, and its name comes
        first: "other", or what a class of the vocabulary is called that means it, such as "background".
        """
        words = self.other if other is None else read_other(other)
        if self.calibration is not None:
            if words is not None:
                raise UserError("a calibration holds for its own names alone; leave out other, or the calibration")
            self.calibration.check_names(vocabulary.names)
        if words is None:
            text, query_class = self.embedder.text(vocabulary, self.method.words)
            return self._queries(text, query_class, vocabulary.classes)
        called, own, rest = set_apart(vocabulary)
        text, query_class = self.embedder.text(rest, self.method.words)
        against = self.embedder.other(own, words, rest.queries, text[: len(query_class)])
        text = torch.cat([against, text])
        query_class = (*[0] * len(against), *(index + 1 for index in query_class))
        return self._queries(text, query_class, (called, *rest.classes), everything_else=True)

    def _queries(
        self, text: Tensor, query_class: tuple[int, ...], names: tuple[str, ...], everything_else: bool = False
    ) -> Queries:
        """Of text [Q + W, dim], that of the method's words after that of the queries."""
        text = text.to(self.device)
        prepared = self.method.prepare(text, query_class, self.logit_scale)
        return Queries(text[: len(query_class)], query_class, names, prepared, everything_else)

    def decoder(self, queries: Queries) -> LabelDecoder:
        """What turns maps into labels for these queries, as the method wants it."""
        calibration = self.calibration
        threshold = self.threshold if calibration is None or calibration.threshold is None else calibration.threshold
        key = (queries.query_class, self.logit_scale, threshold, self.area_threshold)
        if self._decoder is None or self._decoder[0] != key:  # the last is kept, with what it has on the device
            self._decoder = key, self.method.decoder(*key)
        decoder = self._decoder[1]
        return decoder if calibration is None else calibration.decoder(decoder, queries)

    def resize(self, image: Tensor) -> Tensor:
        """An image [3, H, W], uint8, to [3, h, w], uint8, as `resized_shape` says; a short side of 0 keeps its size.

        "cv2" is OpenCV's resize, on the CPU. "device" uploads the image and does the same there, but rounds once
        where OpenCV does several times: 11 % of a photograph's values, 13 % of those of noise, differ by 1 level.
        "pil" is CLIPer's: Pillow's bicubic resize, both sides rounded to multiples of the patch.
        """
        if not self.short_side:
            return image
        if self.resizer != "device":
            array = image.permute(1, 2, 0).cpu().numpy()
            if self.resizer == "cv2":
                array = resize_short(array, self.short_side, self.long_side)
            else:
                array = resize_patches(array, self.short_side, self.backbone.patch_size, self.long_side)
            return torch.from_numpy(array).permute(2, 0, 1)
        shape = resized_shape(image.shape[1], image.shape[2], self.short_side, self.long_side)
        resized = F.interpolate(image.to(self.device).float()[None], size=shape, mode="bilinear")[0]
        return (resized + 0.5).to(torch.uint8)

    def view(
        self,
        image: Tensor,
        shape: tuple[int, int] | None = None,
        name: str | None = None,
        resized: Tensor | None = None,
    ) -> View:
        """An RGB image [3, H, W], uint8, as methods see it, for labels of `shape`, by default the image's own.

        `name` is the path of its file, for methods that look for what belongs to it; `resized` is what `resize` would
        make.
        """
        resized = self.resize(image) if resized is None else resized
        height, width = resized.shape[1:]
        plan = windows.plan(height, width, self.crop, self.stride, self.backbone.patch_size, self.two_steps)
        wanted = shape or (image.shape[1], image.shape[2])
        return View(self.backbone, resized, image, wanted, plan, self.window_batch, self.stitcher, name)

    def recall(self, kept: KeptFeatures, shape: tuple[int, int] | None = None) -> KeptView:
        """Kept features as the view of their picture, for labels of `shape`, by default the picture's.

        Raises UserError where they were made with other settings.
        """
        kept.note.check(self.feature_settings, kept.name)
        return KeptView(kept, self.backbone, shape, self.window_batch, self.stitcher, self.resize)

    def segment(
        self, images: Sequence[Tensor], queries: Queries, shapes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """RGB images [3, H, W], uint8, to labels [H, W], or of the given shapes, on the device.

        Raises UserError where scores are not finite.
        """
        views = [self.view(image, shape) for image, shape in zip(images, shapes or repeat(None))]
        labels, finite = self.labels(views, queries)
        check_finite(self.method, bool(finite.item()))
        return labels

    @torch.inference_mode()
    def labels(self, views: Sequence[View], queries: Queries) -> tuple[list[Tensor], Tensor]:
        """Labels [H, W] of each view, and whether all scores were finite, a tensor: nothing waits for the device."""
        decoder, seen = self.decoder(queries), self.look(views, queries)
        labels = [self.decode(view, dense, queries, decoder).labels for view, dense in zip(views, seen)]
        return labels, torch.stack([dense.finite for dense in seen]).all()

    def look(self, views: Sequence[View], queries: Queries, features: bool = False) -> list[Dense]:
        """What the method makes of each image, windows of all images in common batches; with `features`, these too."""
        return see_together([(self, queries)], views, features)[0]

    @torch.inference_mode()
    def maps(self, view: View, dense: Dense, queries: Queries) -> Maps:
        """What the decoder reads for a view: scores and the operators that bring them to its shape, refined."""
        if dense.whole:
            maps = self.stitcher.resized(dense.scores, view.shape)
        else:
            maps = self.stitcher.maps(dense.scores, view.plan, view.shape)
        for refinement in self.refinements:
            maps = refinement(view, maps, queries)
        return maps

    @torch.inference_mode()
    def decode(self, view: View, dense: Dense, queries: Queries, decoder: LabelDecoder) -> Decoded:
        """What the decoder makes of a view, refined."""
        return self.decoded(view, self.maps(view, dense, queries), decoder)

    @torch.inference_mode()
    def decoded(self, view: View, maps: Maps, decoder: LabelDecoder) -> Decoded:
        """What the decoder makes of the maps of a view, refined."""
        decoded = Decoded(decoder.labels(maps), decoder.num_classes, functools.partial(decoder.probabilities, maps))
        for refinement in self.refinements:
            decoded = refinement.labels(view, decoded)
        return decoded

    @property
    def sees_images(self) -> bool:
        """Whether the method, or what refines its features, works on whole images."""
        return self.method.sees_images or bool(self.of_features)


def see_together(
    seers: Sequence[tuple[Segmenter, Queries]], views: Sequence[View], features: bool = False
) -> list[list[Dense]]:
    """What several segmenters, each with its queries, make of the same images, see `look_together`.

    Where memory was too small for `window_batch` windows at once, images to come are looked at in smaller batches.
    """
    looks = [Look(segmenter.method, segmenter.of_features, queries) for segmenter, queries in seers]
    wanted = [view.window_batch for view in views]
    seen = look_together(looks, views, features)
    if wanted != [view.window_batch for view in views]:
        for segmenter, _ in seers:
            segmenter.window_batch = views[0].window_batch
    return seen


def grid_step(shape: tuple[int, int], pixels: int = 2000) -> int:
    """How far apart pixels of an image [H, W] lie on a square grid of about so many."""
    return max(1, round((shape[0] * shape[1] / pixels) ** 0.5))


def trained_scale(backbone: Backbone) -> float:
    """The logit scale that a backbone was trained to. Raises UserError where its file does not say."""
    if backbone.logit_scale is None:
        raise UserError(
            f"{backbone.checkpoint.path} does not hold the logit scale that {backbone.name} was trained to; give a "
            "number as logit_scale"
        )
    return backbone.logit_scale


def _file_name(image: Any) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None
