"""A segmenter for one vocabulary as a program of its own: `torch.export`, and by it ONNX.

Inside is all between a decoded picture and its labels: OpenCV's resize, windows, the network, text embeddings,
stitching, refinements, the best class of each pixel. Outside stay reading files and turning them upright.

    program = trace(segmenter, ["cat", "grass, lawn", "sky"])
    save_onnx(program, "cat.onnx")
    program.program.module()(images)  # [B, 3, H, W] uint8 to labels [B, H, W]

There are two ways. Methods that look at one window after the other are traced for any size, or for one, and any number
of pictures: `_Windows`. All others, and refinements, need a fixed size; what is traced is then the segmenter's own road
for one picture: `_Road`.

All scores [B, Q, H, W] are in memory at once, where a `Segmenter` makes them in bands: 20 names on 12 million pixels
are 1 GB.
"""

import contextlib
import importlib
import io
import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clearclip.decode import Decoder, LabelDecoder
from clearclip.errors import UserError
from clearclip.images import resized_shape
from clearclip.masks import MaskProvider
from clearclip.methods import Method
from clearclip.paths import atomic_write
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.view import View
from clearclip.vocabulary import Vocabulary
from clearclip.windows import Axis, plan_axis, resize_matrix

PACKAGES = ("onnx", "onnxscript")  # that writing ONNX needs
OUTPUTS = ("labels", "scores")
LARGEST = 16384  # pixels of a side
LARGEST_FILE = 1 << 31  # bytes of an ONNX file, a single message of Protocol Buffers
ANSI = re.compile(r"\x1b\[[0-9;]*m")
OPERATION = re.compile(r"\b(aten|prims|higher_order|torchvision)[.:]+\w+")
COEFFICIENT = 1 << 11  # OpenCV's resize of bytes rounds its weights to multiples of 1 / 2048


@dataclass(frozen=True)
class Exported:
    """A traced segmenter.

    Attributes:
        program: images [B, 3, H, W] to labels [B, H, W] or scores [B, C, H, W].
        about: what made it and what it takes, for the metadata of its file: names, output, input, method, weights.
    """

    program: ExportedProgram
    about: Mapping[str, Any] = field(default_factory=dict)


def trace(
    segmenter: Segmenter,
    names: Any,
    size: tuple[int, int] | None = None,
    output: str = "labels",
    floats: bool = False,
) -> Exported:
    """Trace a segmenter for one vocabulary.

    Args:
        segmenter: on the CPU, in float32.
        names: of classes, as a `Segmenter` takes them.
        size: (H, W) of all pictures; then windows and operators are constants. None: any size, whose sides differ by
            at most 2048 / short_side times, beyond which a `Segmenter` shrinks the picture further.
        output: "labels", uint8 or int16, or "scores", the similarity of each class, float32.
        floats: take float32 in 0..1, not uint8.

    Returns:
        An `Exported`. Its batch is dynamic where the method looks at one window after the other; else it takes one
        picture at a time, and so it does with refinements.

    Raises:
        UserError: in one sentence, why a method or a setting cannot be exported.
    """
    if output not in OUTPUTS:
        raise UserError(f"a program gives {' or '.join(OUTPUTS)}, not {output!r}")
    vocabulary = names if isinstance(names, Vocabulary) else Vocabulary.of(names)
    if reason := obstacle(segmenter, size is None):
        raise UserError(f"{segmenter.spec} cannot be exported: {reason}")
    with torch.inference_mode(False), torch.no_grad():
        queries = segmenter.queries(vocabulary)
        queries = replace(queries, text=queries.text.clone(), prepared=queries.for_scores.clone())
        program, batch = _traced(segmenter, queries, segmenter.decoder(queries), size, output, floats)
    shape = ", ".join(map(str, (batch, 3, *(size or ("H", "W")))))
    about = {
        "names": list(queries.names),
        "output": output,
        "input": f"RGB, {'float32 in 0..1' if floats else 'uint8'}, [{shape}]",
        "everything_else": queries.everything_else,
        **segmenter.about,
    }
    return Exported(program, about)


def obstacle(segmenter: Segmenter, dynamic: bool = False) -> str:
    """Why a segmenter cannot be exported, in one sentence; empty where nothing is known to be in the way."""
    for part in (segmenter.method, *segmenter.refinements):
        if any(isinstance(value, MaskProvider) for value in vars(part).values()):
            return f"{type(part).__name__} reads masks, which another program makes of each picture"
    if segmenter.resizer == "pil":
        return "Pillow's resize is not in it; use resize cv2 or device"
    if segmenter.device.type != "cpu" or segmenter.backbone.dtype != torch.float32 or segmenter.backbone.compiled:
        return "it is traced on the CPU in float32, not compiled; load it with device cpu and precision fp32"
    reason = _beyond_windows(segmenter) if dynamic else ""
    return reason and f"{reason}; give the size of your pictures, such as --size 448 672 (in Python size=(448, 672))"


def _beyond_windows(segmenter: Segmenter) -> str:
    """What a segmenter does that is not in `_Windows`, in a few words; empty where all is."""
    whole = [segmenter.method] * segmenter.sees_images + segmenter.refinements
    if whole:
        return f"{type(whole[0]).__name__} works on whole pictures, in steps that depend on their size"
    if segmenter.resizer != "cv2":
        return f"any size is resized as OpenCV does it, not as resize {segmenter.resizer}"
    if not 0 < segmenter.crop <= segmenter.short_side:
        return "any size needs windows (crop) that fit into every picture (short_side)"
    if type(segmenter.method).decoder is not Method.decoder or segmenter.calibration or segmenter.area_threshold > 0:
        return "labels are made of the scores of a whole picture"
    return ""


def _traced(
    segmenter: Segmenter,
    queries: Queries,
    decoder: LabelDecoder,
    size: tuple[int, int] | None,
    output: str,
    floats: bool,
) -> tuple[ExportedProgram, int | str]:
    """A program, and how many pictures it takes at a time."""
    side = segmenter.short_side or 64
    height, width = size or (side + side // 3, 2 * side)
    example = torch.zeros(2, 3, height, width, dtype=torch.float32 if floats else torch.uint8)
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=1024)}
    if size is None:
        shape |= {2: Dim("height", min=2, max=LARGEST), 3: Dim("width", min=2, max=LARGEST)}
    fits = size is None or max(size) * side <= segmenter.long_side * min(size)
    if fits and type(decoder) is Decoder and not _beyond_windows(segmenter):
        try:
            return _export(segmenter, _Windows(segmenter, queries, decoder, output), example, shape), "B"
        except UserError:  # as a rule it looks at each window by itself: their number must be known
            if size is None:
                raise
    assert size is not None
    return _export(segmenter, _Road(segmenter, queries, decoder, output, size), example[:1]), 1


def _export(
    segmenter: Segmenter, module: nn.Module, example: Tensor, shape: dict[int, Any] | None = None
) -> ExportedProgram:
    try:
        return torch.export.export(module.eval(), (example,), dynamic_shapes=shape and (shape,))
    except Exception as error:  # whatever a tracer meets
        raise UserError(f"{segmenter.spec} cannot be exported: {cause(error)}") from error


def _bytes(images: Tensor) -> Tensor:
    """Images, uint8 or float32 in 0..1, to int32 in 0..255."""
    if images.dtype != torch.uint8:
        images = (images.clamp(0, 1) * 255).round()
    return images.to(torch.int32)


def _of_classes(scores: Tensor, query_class: Sequence[int]) -> Tensor:
    """Scores [B, Q, H, W] of queries to those of their classes, [B, C, H, W]: the largest of each one's."""
    if list(query_class) == list(range(len(query_class))):
        return scores
    owned: list[list[int]] = [[] for _ in set(query_class)]
    for query, owner in enumerate(query_class):
        owned[owner].append(query)
    return torch.stack([torch.stack([scores[:, q] for q in some]).amax(dim=0) for some in owned], dim=1)


class _Road(nn.Module):
    """One picture of one size, [1, 3, H, W], by the segmenter's own road: windows and operators are constants."""

    def __init__(
        self, segmenter: Segmenter, queries: Queries, decoder: LabelDecoder, output: str, size: tuple[int, int]
    ):
        super().__init__()
        self.backbone = segmenter.backbone
        self.segmenter, self.queries, self.decoder, self.output = segmenter, queries, decoder, output
        # What depends on the size alone is made and kept here, so that a tracer finds it made.
        self(torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        view = self.view(_bytes(images)[0])
        (dense,) = self.segmenter.look([view], self.queries)
        maps = self.segmenter.maps(view, dense, self.queries)
        if self.output == "scores":
            return _of_classes(maps.full()[None], self.queries.query_class)
        return self.segmenter.decoded(view, maps, self.decoder).labels[None]

    def view(self, image: Tensor) -> View:
        """An int32 image [3, H, W] as `Segmenter.view` has it, all windows in one batch."""
        segmenter, original = self.segmenter, image.to(torch.uint8)
        resized = None
        if segmenter.resizer != "device" and segmenter.short_side:
            shape = resized_shape(image.shape[1], image.shape[2], segmenter.short_side, segmenter.long_side)
            resized = opencv_resize(image[None], *shape)[0].to(torch.uint8)
        view = segmenter.view(original, resized=resized)
        return replace(view, window_batch=len(view.plan))


class _Windows(nn.Module):
    """Images [B, 3, H, W] to labels or scores, all their windows at once, as many as H and W ask for."""

    def __init__(self, segmenter: Segmenter, queries: Queries, decoder: Decoder, output: str):
        super().__init__()
        self.backbone, self.method, self.output = segmenter.backbone, segmenter.method, output
        self.crop, self.stride, self.short_side = segmenter.crop, segmenter.stride, segmenter.short_side
        # In the order of their classes the first best query belongs to the lowest best class.
        order = sorted(range(len(decoder.query_class)), key=lambda query: decoder.query_class[query])
        self.query_class = [decoder.query_class[query] for query in order]
        self.classes, self.threshold, self.scale = decoder.num_classes, decoder.threshold, decoder.logit_scale
        dtype = torch.uint8 if self.classes <= 256 else torch.int16
        self.text: Tensor
        self.order: Tensor
        self.label: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("text", queries.for_scores)
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("label", torch.tensor(self.query_class, dtype=dtype))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(segmenter.backbone, name))[:, None, None] * 255)
        self.axis = plan_axis(self.crop, self.crop, self.stride, segmenter.backbone.patch_size)
        grid = self.window_scores(torch.zeros(1, 3, self.axis.padded, self.axis.padded)).shape[2:]
        self.up_rows: Tensor
        self.up_columns: Tensor
        for name, patches in zip(("up_rows", "up_columns"), grid):
            up = resize_matrix(patches, self.axis.padded)[self.axis.before : self.axis.before + self.crop]
            self.register_buffer(name, up.clone())

    def forward(self, images: Tensor) -> Tensor:
        scores = self.full_scores(_bytes(images))[:, self.order]  # [B, Q, H, W]
        if self.output == "scores":
            return _of_classes(scores, self.query_class)
        labels = self.label[scores.argmax(dim=1)]
        if self.threshold > 0:
            share = ((scores - scores.amax(dim=1, keepdim=True)) * self.scale).exp().sum(dim=1)
            labels = torch.where(1 / share < self.threshold, torch.zeros_like(labels), labels)
        return labels

    def window_scores(self, cut: Tensor) -> Tensor:
        """Normalised windows [n, 3, h, w] to scores [n, Q, h', w']."""
        return self.method.scores(self.backbone.trunk(cut), self.text)

    def full_scores(self, images: Tensor) -> Tensor:
        """int32 images in 0..255 to the scores [B, Q, H, W] of all queries."""
        height, width = images.shape[2:]
        shorter = cast(int, torch.sym_min(height, width))  # a tracer's own kind of int
        h, w = ((2 * side * self.short_side + shorter) // (2 * shorter) for side in (height, width))  # rounded
        pixels = (opencv_resize(images, h, w).float() - self.mean) / self.std
        along, across = self.starts(cast(int, torch.sym_max(h, w)))
        tall = torch.full((), height) > torch.full((), width)
        tops, lefts = torch.where(tall, along, across), torch.where(tall, across, along)  # [N]
        within = torch.arange(self.crop)
        rows, columns = ((starts[:, None] + within)[:, :, None] for starts in (tops, lefts))  # [N, crop, 1]
        cut = pixels[:, :, rows, columns.mT].transpose(1, 2).flatten(0, 1)  # [B · N, 3, crop, crop]
        if self.axis.padded > self.crop:
            cut = F.pad(cut, [*_padding(self.axis)] * 2)
        scores = self.window_scores(cut).unflatten(0, (images.shape[0], tops.shape[0]))  # [B, N, Q, g, g]
        same = ((tops[:, None] == tops) & (lefts[:, None] == lefts)).float().sum(dim=0)  # [N], 1 but for a square
        scores = scores / same[:, None, None, None]
        left = self.operator(tops, h, height, self.up_rows).transpose(0, 1)[:, None]  # [N, 1, H, g]
        right = self.operator(lefts, w, width, self.up_columns).flatten(1)  # [W, N · g]
        return (left @ scores).permute(0, 2, 3, 1, 4).flatten(3) @ right.T

    def starts(self, length: int) -> tuple[Tensor, Tensor]:
        """Where windows start, as `plan_axis` has them: along the longer side of a length, and across, both [N].

        Along it there are two at least, of a square one twice: a tracer takes a size of 1 for a constant.
        """
        shorter = plan_axis(self.short_side, self.crop, self.stride, 1).starts
        count = torch.sym_max((length - self.crop + self.stride - 1) // self.stride + 1, 2)
        along = torch.minimum(torch.arange(count) * self.stride, torch.full((), length - self.crop))
        across = torch.tensor(shorter).expand(count, -1)
        return along[:, None].expand(-1, len(shorter)).flatten(), across.flatten()

    def operator(self, starts: Tensor, length: int, target: int, up: Tensor) -> Tensor:
        """What takes windows' scores along one axis of the resized picture to `target` pixels: [target, N, patches].

        Of one row of windows it is `stitch_operator`, whose length is not known yet.
        """
        low, high, share = linear(length, target)
        share = share[:, None, None]
        return (1 - share) * self.at(low, starts, up) + share * self.at(high, starts, up)

    def at(self, pixels: Tensor, starts: Tensor, up: Tensor) -> Tensor:
        """Each window's scores at pixels [P] of the resized picture, all that cover one sharing it: [P, N, patches].

        Windows that lie beside one another across this axis do not share.
        """
        offset = pixels[:, None] - starts  # [P, N]
        inside = ((offset >= 0) & (offset < self.crop)).float()
        beside = (starts[:, None] == starts).float().sum(dim=0)  # [N]
        covering = (inside / beside).sum(dim=1, keepdim=True)
        return up[offset.clamp(0, self.crop - 1)] * (inside / covering)[..., None]


def opencv_resize(images: Tensor, height: int, width: int) -> Tensor:
    """int32 images [B, 3, H, W] in 0..255 to [B, 3, height, width], bilinear, rounded as OpenCV rounds bytes."""
    top, bottom, share = linear(images.shape[2], height)
    left, right, part = linear(images.shape[3], width)
    share = share[:, None]
    near, far = _fixed(1 - part), _fixed(part)
    across = images.index_select(3, left) * near + images.index_select(3, right) * far
    across = across.div(16, rounding_mode="floor")
    near, far = _fixed(1 - share), _fixed(share)
    upper = (across.index_select(2, top) * near).div(65536, rounding_mode="floor")
    lower = (across.index_select(2, bottom) * far).div(65536, rounding_mode="floor")
    return (upper + lower + 2).div(4, rounding_mode="floor")


def linear(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bilinear resize of one axis: for each of `target` pixels two of `source`, and the share of the second."""
    # Of whole numbers as long as that is possible: what is symbolic would be divided in float32.
    place = (((2 * torch.arange(target) + 1) * source - target).double() / (2 * target)).float()
    low = place.floor()
    first = low.long()
    return first.clamp(min=0), (first + 1).clamp(max=source - 1), place - low


def _fixed(weights: Tensor) -> Tensor:
    return (weights * COEFFICIENT).round().to(torch.int32)


def _padding(axis: Axis) -> tuple[int, int]:
    return axis.before, axis.padded - axis.size - axis.before


def save_onnx(exported: Exported, path: str | Path) -> None:
    """Write an ONNX file whose metadata are `about`, its names as JSON.

    Raises UserError where the packages for it are missing, where an operation has no counterpart in ONNX, and where
    the file would exceed the 2 GB that one can hold.
    """
    for package in PACKAGES:
        need(package)
    output, method = str(exported.about["output"]), exported.about["method"]
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            made = torch.onnx.export(
                exported.program, (), input_names=["images"], output_names=[output],
                dynamo=True, verbose=False, optimize=False,
            )  # fmt: skip
            assert made is not None
            _tidy(made.model)
    except Exception as error:  # whatever a converter meets
        raise UserError(f"{method} cannot be written as ONNX: {cause(error)}") from error
    weights = sum(
        value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value is not None
    )
    if weights >= LARGEST_FILE:
        raise UserError(f"{method} has {weights / 1e9:.1f} GB of weights, and an ONNX file holds 2; write a .pt2 file")
    made.model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in exported.about.items()}
    )
    with atomic_write(Path(path)) as temporary:
        made.save(str(temporary), external_data=False)


def _tidy(model: Any) -> None:
    """Compute beforehand what is constant. The exporter's own rules take x + 1e-8 for x, and 0 / 0 for nothing."""
    optimizer = need("onnxscript.optimizer")
    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def need(package: str) -> Any:
    """A package that ONNX files need. Raises UserError where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f'ONNX files need {package}: pip install "clearclip[export]"') from None


def cause(error: BaseException) -> str:
    """Why a tracer or a converter gave up, in a few words: the first error of its chain says it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ANSI.sub("", str(error))
    if "data-dependent" in text or "data dependent" in text:
        return "its steps depend on what is in the picture, which a program made beforehand cannot know"
    if ".numpy()" in text:
        return "it takes the picture to a library other than PyTorch, which a program made of PyTorch's steps cannot"
    if operation := OPERATION.search(text):
        return f"its operation {operation[0]} has no counterpart"
    first = " ".join(text.strip().partition("\n")[0].split()) or type(error).__name__
    return first.partition(". ")[0].rstrip(".")[:200]


def save_program(exported: Exported, path: str | Path) -> None:
    """Write what `torch.export.load` reads; `about` is its extra file about.json."""
    about = json.dumps(dict(exported.about), ensure_ascii=False)
    with atomic_write(Path(path)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of views, whose storage it keeps as a whole
        torch.export.save(exported.program, str(temporary), extra_files={"about.json": about})


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what the converter says of its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


__all__ = ["Exported", "cause", "need", "obstacle", "save_onnx", "save_program", "trace"]
