"""The road from image to labels, in plain PyTorch: resize, windows, scores, stitch, decode."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip import windows
from clearclip.backbone import Backbone, choose_device, choose_precision, load_backbone
from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.methods import Method, create_method
from clearclip.refine import split_refinement
from clearclip.text import TextEmbeddings, embed_names
from clearclip.vocabulary import Vocabulary

LONG_SIDE = 2048  # the published resize never makes an image longer than this
RESIZERS = ("cv2", "device")
WINDOW_BATCH = {"cuda": 64, "mps": 8, "cpu": 4}


@dataclass(frozen=True)
class Segmentation:
    """One image's result, in NumPy arrays.

    `labels` [H, W] index `names`: uint8 where that fits (up to 256 names), else int16. CLIPer, which may give a
    pixel no class, labels it 255; with more than 255 names, 65535 and all labels in int32. `scores` [C, H, W] are
    probabilities, `features` [h, w, dim] unit patch features; both are None unless asked for.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclass(frozen=True)
class Queries:
    """What is looked for: text [Q, dim], unit rows; the class index of each row; the class names."""

    text: Tensor
    query_class: tuple[int, ...]
    names: tuple[str, ...]


class Segmenter:
    """Segment images into classes named in words, without training.

        segmenter = Segmenter(method="ClearCLIP", backbone="ViT-B-16", pretrained="openai")
        labels = segmenter("cat.jpg", ["cat", "grass, lawn"]).labels  # [H, W], 0 is cat

    `method` is a name of `list_methods()`, with options as in "ClearCLIP:attention=kk", or a `Method`; "+PAMR" after
    it refines the scores by the image at its original size, at the price of holding all of them at that size;
    `backbone` and `pretrained` are as `clearclip.weights.find_checkpoint` reads them, or a loaded `Backbone`.
    Images are resized to `short_side` pixels (0 keeps their size) and cut into windows of `crop` pixels every
    `stride` (`crop` 0: the whole image). `temperature`, `threshold` and `area_threshold` are those of
    `clearclip.decode.Decoder`. `text_embeddings`, a file or `TextEmbeddings`, takes the place of the text tower
    and `templates`. `window_batch` windows go through the network at once; it does not change the result.
    `resize` is "cv2", as published, or "device", see the method of that name; `compile` is that of
    `clearclip.backbone.load_backbone`. A loaded backbone keeps its device, precision and compilation.

    Raises UserError for what the user can mend: unknown names, weights that cannot be had, damaged files.
    """

    def __init__(
        self,
        method: str | Method = "ClearCLIP",
        backbone: str | Backbone = "ViT-B-16",
        pretrained: str = "openai",
        *,
        templates: str | Sequence[str] = "imagenet80",
        text_embeddings: str | Path | TextEmbeddings | None = None,
        short_side: int = 448,
        crop: int = 448,
        stride: int = 224,
        temperature: float = 50.0,
        threshold: float = 0.0,
        area_threshold: float = 0.0,
        device: str = "auto",
        precision: str = "auto",
        window_batch: int | None = None,
        resize: str = "cv2",
        compile: bool = False,
    ):
        settings = dict(short_side=short_side, crop=crop, stride=stride, window_batch=window_batch, resize=resize)
        check_settings(settings | dict(temperature=temperature, threshold=threshold, area_threshold=area_threshold))
        if not isinstance(method, str | Method):
            raise UserError(f"method must be a name of list_methods() or a Method, not {method!r}")
        self.refine = None
        if isinstance(method, Method):
            backbone = method.backbone
        if isinstance(backbone, Backbone):
            check_loaded(backbone, device, precision, compile)
        else:
            backbone = load_backbone(backbone, pretrained, device, precision, compile)
        self.backbone = backbone
        if isinstance(method, str):
            method, self.refine = split_refinement(method)
            method = create_method(method, backbone)
        self.method = method
        self.device = backbone.device
        self.templates = templates
        if text_embeddings is not None and not isinstance(text_embeddings, TextEmbeddings):
            text_embeddings = TextEmbeddings.load(text_embeddings)
        if text_embeddings is not None:
            text_embeddings.check(backbone)
        self.text_embeddings = text_embeddings
        self._embedded: TextEmbeddings | None = None
        self.resizer, self.short_side, self.crop, self.stride = resize, short_side, crop, stride
        self.temperature, self.threshold, self.area_threshold = temperature, threshold, area_threshold
        self.window_batch = window_batch or WINDOW_BATCH[self.device.type]

    def __call__(self, images, names, *, scores: bool = False, features: bool = False):
        """Segment one image, or a list of images of any sizes, into the classes `names`.

        An image is a path, a PIL image, an RGB array [H, W, 3] or a tensor [3, H, W] (uint8, or float in 0..1).
        `names` is a list of class names, synonyms separated by commas, or a `Vocabulary`. Returns a
        `Segmentation`, or a list of them, at the images' own sizes; `scores` and `features` ask for more.
        """
        several = isinstance(images, list | tuple)
        arrays = [read_image(image) for image in (images if several else [images])]
        queries = self.queries(names if isinstance(names, Vocabulary) else Vocabulary.of(names))
        resized = [self.resize(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays]
        results = []
        decoder = self.decoder(queries)
        for array, image, scored in zip(arrays, resized, self.score(resized, queries)):
            maps = self.maps(image, array.shape[:2], *scored)
            results.append(
                Segmentation(
                    decoder.labels(*maps).cpu().numpy(),
                    queries.names,
                    decoder.probabilities(*maps).cpu().numpy() if scores else None,
                    self.features(image).cpu().numpy() if features else None,
                )
            )
        return results if several else results[0]

    def queries(self, vocabulary: Vocabulary) -> Queries:
        """Embed a vocabulary's names, or pick them from the text embeddings that were given."""
        if self.text_embeddings is not None:
            text, query_class = self.text_embeddings.select(vocabulary)
        else:
            # The last names are kept: images come one by one, and the cache on disk may be one not to write to.
            if self._embedded is None or self._embedded.names != vocabulary.queries:
                self._embedded = embed_names(self.backbone, vocabulary.queries, self.templates)
            text, query_class = self._embedded.embeddings, vocabulary.query_class
        text = self.method.prepare(text.to(self.device), query_class, self.temperature)
        return Queries(text, query_class, vocabulary.classes)

    def decoder(self, queries: Queries) -> Decoder:
        """What turns scores into labels for these queries, as the method wants it."""
        make = self.method.decoder or Decoder
        return make(queries.query_class, self.temperature, self.threshold, self.area_threshold)

    def resize(self, image: Tensor) -> Tensor:
        """An image [3, H, W], uint8, to [3, h, w], uint8, as `resized_shape` says; a short side of 0 keeps its size.

        "cv2" is OpenCV's resize, on the CPU. "device" uploads the image and does the same there, but rounds once
        where OpenCV does several times: 11 % of a photograph's values, 13 % of those of noise, differ by 1 level.
        """
        if not self.short_side:
            return image
        if self.resizer == "cv2":
            array = resize_short(image.permute(1, 2, 0).cpu().numpy(), self.short_side)
            return torch.from_numpy(array).permute(2, 0, 1)
        shape = resized_shape(*image.shape[1:], self.short_side)
        resized = F.interpolate(image.to(self.device).float()[None], size=shape, mode="bilinear")[0]
        return (resized + 0.5).to(torch.uint8)

    def segment(self, images: Sequence[Tensor], shapes: Sequence[tuple[int, int]], queries: Queries) -> list[Tensor]:
        """Resized RGB images [3, h, w], uint8, to labels [H, W] at the given original shapes, on the device."""
        decoder = self.decoder(queries)
        return [
            decoder.labels(*self.maps(image, tuple(shape), *scored))
            for image, shape, scored in zip(images, shapes, self.score(images, queries))
        ]

    @torch.inference_mode()
    def maps(
        self, image: Tensor, shape: tuple[int, int], tiled: Tensor, plan: windows.Plan, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder reads for an output of `shape` (H, W): scores [Q, a, b], operators [H, a] and [W, b]."""
        rows, columns = windows.stitch_operators(plan, grid, shape, self.device)
        if self.refine is None:
            return tiled, rows, columns
        pixels = F.interpolate(self.normalise(image)[None], size=shape, mode="bilinear")[0]  # [3, H, W]
        refined = self.refine(pixels, rows @ tiled @ columns.T)  # [Q, H, W]
        return refined, *(torch.eye(side, device=self.device) for side in shape)

    @torch.inference_mode()
    def score(self, images: Sequence[Tensor], queries: Queries) -> list[tuple[Tensor, windows.Plan, tuple[int, int]]]:
        """Resized RGB images [3, h, w], uint8, to their window scores, windows of all images in common batches.

        Each result is the tiled scores [Q, n·h, m·w], float32, the plan of its windows and the grid of one.
        """
        plans, scores = self._windowed(images, lambda batch: self.method.scores(batch, queries.text))
        return [(windows.tile(s, plan), plan, tuple(s.shape[2:])) for s, plan in zip(scores, plans)]

    @torch.inference_mode()
    def features(self, image: Tensor) -> Tensor:
        """Unit patch features [h, w, dim] of one resized RGB image [3, H, W], windows averaged where they overlap."""
        (plan,), (features,) = self._windowed(
            [image], lambda batch: self.method.features(batch).float().permute(0, 3, 1, 2)
        )
        grid = tuple(features.shape[2:])
        if len(plan) > 1:
            # The stitching operators, sampled once a patch; the channels play the part of the queries.
            shape = tuple(max(1, round(side / self.backbone.patch_size)) for side in image.shape[1:])
            rows, columns = windows.stitch_operators(plan, grid, shape, self.device)
            features = (rows @ windows.tile(features, plan) @ columns.T)[None]
        return F.normalize(features[0], dim=0).permute(1, 2, 0)

    def _windowed(self, images: Sequence[Tensor], function) -> tuple[list[windows.Plan], list[Tensor]]:
        """Apply `function` to the windows of all images, in batches of one window shape; results image by image."""
        patch = self.backbone.patch_size
        plans = [windows.plan(*image.shape[1:], self.crop, self.stride, patch) for image in images]
        results: list = [None] * len(images)
        for shape in dict.fromkeys(plan.window_shape for plan in plans):
            members = [i for i, plan in enumerate(plans) if plan.window_shape == shape]
            stacked = torch.cat([windows.cut(self.normalise(images[i]), plans[i]) for i in members])
            out = torch.cat([function(batch) for batch in stacked.split(self.window_batch)])
            for i, part in zip(members, out.split([len(plans[i]) for i in members])):
                results[i] = part
        return plans, results

    def normalise(self, image: Tensor) -> Tensor:
        """RGB [3, h, w] in 0..255 to the backbone's normalisation, float32 on the device."""
        mean, std = self._statistics
        return (image.to(self.device).float() - mean) / std

    @functools.cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(s, device=self.device)[:, None, None] for s in (self.backbone.mean, self.backbone.std)
        )
        return mean * 255, std * 255


def check_settings(settings: Mapping) -> None:
    """Raise UserError naming a setting that no `Segmenter` can have.

    Looks at those of `short_side`, `crop`, `stride`, `window_batch` (None: by the device), `temperature`, `threshold`,
    `area_threshold` and `resize` that are there.
    """
    settings = {key: value for key, value in settings.items() if (key, value) != ("window_batch", None)}
    for key, least in (("short_side", 0), ("crop", 0), ("stride", 0), ("window_batch", 1)):
        value = settings.get(key, least)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{key} must be a whole number from {least} on, not {value!r}")
    for key in ("temperature", "threshold", "area_threshold"):
        value = settings.get(key, 1)
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if key == "temperature" and not (number and value > 0):
            raise UserError(f"temperature must be a number above 0, not {value!r}")
        if key != "temperature" and not (number and 0 <= value <= 1):
            raise UserError(f"{key} must be a number within 0..1, not {value!r}")
    if settings.get("crop") and "stride" in settings and not 0 < settings["stride"] <= settings["crop"]:
        raise UserError(
            f"stride {settings['stride']} must be between 1 and the crop, {settings['crop']}: else pixels are left out"
        )
    if settings.get("resize", "cv2") not in RESIZERS:
        raise UserError(f"unknown resize {settings['resize']!r}; use {' or '.join(RESIZERS)}")


def check_loaded(backbone: Backbone, device: str, precision: str, compile: bool) -> None:
    """Raise UserError where a setting contradicts a loaded backbone. The defaults contradict nothing."""
    for key, wanted, loaded in (
        ("device", device != "auto" and choose_device(device), backbone.device),
        ("precision", precision != "auto" and choose_precision(precision, backbone.device), backbone.dtype),
        ("compile", compile, backbone.compiled),
    ):
        if wanted and wanted != loaded:
            raise UserError(f"{key} {wanted} is not that of the loaded backbone, {loaded}; load it so, or leave it out")


def load_segmenter(config: str | Path, **overrides) -> Segmenter:
    """A `Segmenter` with the settings of a benchmark config, as eval.py would use it; `overrides` win.

    Class names and data set are not part of a segmenter: give names when calling it. Raises UserError for a
    file that is missing or is no benchmark config, and where `Segmenter` does.
    """
    from mmengine.config import Config

    if not Path(config).is_file():
        raise UserError(f"config {config} does not exist; configs/ holds one file a benchmark")
    try:
        loaded = Config.fromfile(config, import_custom_modules=False)
        settings = {key: value for key, value in loaded.model.items() if key not in ("type", "vocabulary")}
        resize = next(step for step in loaded.test_dataloader.dataset.pipeline if step["type"] == "Resize")
    except (AttributeError, KeyError, TypeError, SyntaxError, ValueError, OSError, StopIteration) as error:
        raise UserError(f"{config} is no benchmark config ({error}); see configs/README.md for the keys") from error
    return Segmenter(**{"short_side": min(resize["scale"])} | settings | overrides)


def read_image(image) -> np.ndarray:
    """A path, PIL image, array or tensor to RGB uint8 [H, W, 3]; EXIF rotation is applied.

    Raises UserError for a file that cannot be read and for an array of another form.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image))
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # NumPy has no bfloat16
        array = (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        from PIL import Image, ImageOps

        if not isinstance(image, Image.Image):
            raise UserError(f"an image must be a path, a PIL image, an array or a tensor, not {type(image).__name__}")
        array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise UserError("a floating-point image must be finite and within 0..1; divide by 255 or convert to uint8")
        array = np.round(array * 255).astype(np.uint8)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"an image must be RGB, [H, W, 3] as an array or [3, H, W] as a tensor, uint8 or float in 0..1; this one "
            f"is {list(array.shape)} {array.dtype}"
        )
    return np.require(array, requirements=["C", "W"])  # torch wants what it shares to be writable


def _read_file(path: Path) -> np.ndarray:
    import cv2

    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}; give the path of a picture") from None
    except cv2.error:  # a header that promises too much
        bgr = None
    if bgr is None:
        raise UserError(f"{path} is not a picture that OpenCV can decode; convert it to JPEG or PNG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The published resize rule: short side to `short_side`, unless that makes the long side exceed 2048."""
    scale = min(LONG_SIDE / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_short(image: np.ndarray, short_side: int) -> np.ndarray:
    """Resize [H, W, 3] by that rule, bilinear without antialiasing as OpenCV does it; 0 keeps the size."""
    if not short_side:
        return image
    import cv2

    height, width = resized_shape(*image.shape[:2], short_side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
