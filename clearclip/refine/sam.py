"""Labels redrawn by Segment Anything: the refinement of Trident (arXiv 2411.09219) and of RADSeg+ (2511.19704).

Every connected region of a label is a prompt for SAM (Kirillov et al., ICCV 2023, arXiv 2304.02643): its box, its most
probable pixel, and the probabilities of its class. The masks that come back, those that SAM itself trusts, decide which
class a pixel takes. This needs SAM's weights, in transformers' form (Apache 2.0).

Not run with real weights: all but SAM itself agrees with an independent implementation on random arrays, and SAM is
transformers'.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clearclip.attention import self_correlating_output
from clearclip.backbones import Backbone
from clearclip.decode import Decoded
from clearclip.errors import UserError
from clearclip.masks import hub_model
from clearclip.refine import Refinement, register
from clearclip.view import View, normalise
from clearclip.weights import hub_answers
from clearclip.windows import resize_matrix

MODELS = {"vit_b": "facebook/sam-vit-base", "vit_l": "facebook/sam-vit-large", "vit_h": "facebook/sam-vit-huge"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what SAM's images are normalised by
MASK_SCALE = 0.005  # of probabilities, where SAM expects the logits of a mask
NONE = -1  # the label of what no class is likely enough to be

# Points [n, 2], boxes [n, 4] and one mask [m, m] to logits [n, m, m] and predicted IoUs [n].
Decode = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class SAM(Refinement):
    """Labels that follow SAM's masks, for any method.

    Args:
        model: a name of `MODELS`, a repository of the model hub, or a folder as transformers saves it.
        encoder: "sam", or "own": the backbone is a RADIO, whose head for SAM takes the place of SAM's ViT (RADSeg+,
            with vit_h). SAM's neck, prompts and masks stay.
        coarse_threshold: what no class is more likely than this prompts nothing; a probability. The papers' are 0.05
            (COCO-Stuff, ADE20K), 0.1 (Cityscapes; all sets of RADSeg+), 0.15 (Context) and 0.2 (VOC), 0.25
            (COCO-Object).
        minimal_area: pixels of the smallest region that prompts, at half the size of the labels.
        iou_threshold: what SAM must predict of its mask's quality; RADSeg+ takes 0.9.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: str = "vit_b",
        encoder: str = "sam",
        coarse_threshold: float = 0.1,
        minimal_area: int = 225,
        iou_threshold: float = 0.8,
    ):
        super().__init__(backbone)
        if encoder not in ("sam", "own"):
            raise ValueError(f"encoder must be sam or own, not {encoder!r}")
        if encoder == "own" and not hasattr(backbone, "sam_features"):
            raise ValueError(f"encoder=own needs a RADIO backbone, such as C-RADIOv3-B, not {backbone.name}")
        if not 0 <= coarse_threshold <= 1 or minimal_area < 1:
            raise ValueError(f"coarse_threshold {coarse_threshold} must be a probability, minimal_area 1 or more")
        self.encoder, self.rules = encoder, Rules(coarse_threshold, minimal_area, iou_threshold)
        self.network = SAMNetwork(load_sam(model), backbone.device, backbone.dtype)
        self.version = hub_model(MODELS.get(model, model))

    def files(self) -> dict[str, str]:
        return {"sam": self.version}

    def labels(self, view: View, decoded: Decoded) -> Decoded:
        network = self.network
        if self.encoder == "sam":
            image = rounded_up(view.original, self.backbone.patch_size)
            embedding = network.encode(image)
        else:
            image = view.original
            embedding = network.through_neck(self.own_features(image))

        def decode(points: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            return network.decode(embedding, points, boxes, mask)

        given = (image.shape[1], image.shape[2])
        labels, probabilities = redraw(
            decoded.labels, decoded.probabilities, decode, self.rules, given, network.square.side, network.mask_side
        )
        return Decoded(labels, decoded.classes, lambda: probabilities)

    def own_features(self, image: Tensor) -> Tensor:
        """The RADIO backbone's features for SAM of an image [3, H, W], uint8, whole, on SAM's grid: [G, G, D'].

        Its last block has RADSeg's self-correlating attention. Below and to the right of the image they are 0.
        """
        backbone: Any = self.backbone
        side, patch = self.network.square.side, backbone.patch_size
        grid, longer = side // patch, max(image.shape[1:])
        shape = [max(1, length * grid // longer) * patch for length in image.shape[1:]]
        pixels = F.interpolate(normalise(image, backbone)[None], size=shape, mode="bilinear")
        trunk = backbone.trunk(pixels)
        patches = self_correlating_output(trunk)[:, trunk.prefix :]
        features = backbone.sam_features(backbone.final_norm(patches))[0].unflatten(0, trunk.grid)  # [h, w, D']
        return F.pad(features, (0, 0, 0, grid - features.shape[1], 0, grid - features.shape[0]))


@dataclass(frozen=True)
class Rules:
    """Which regions prompt and which masks count, see `SAM`."""

    coarse_threshold: float
    minimal_area: int
    iou_threshold: float


@dataclass(frozen=True)
class Regions:
    """The regions of one image that prompt SAM, at half its size, class by class.

    Attributes:
        classes: of the regions [n].
        points: [n, 2], column and row of the most probable pixel.
        boxes: [n, 4], first column and row, last column and row.
        index: [h, w], which region a pixel is of, or −1.
    """

    classes: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    index: np.ndarray


def redraw(
    labels: Tensor,
    probabilities: Tensor,
    decode: Decode,
    rules: Rules,
    given: tuple[int, int],
    side: int = 1024,
    mask_side: int = 256,
) -> tuple[Tensor, Tensor]:
    """Labels [H, W] and probabilities [C, H, W] by the masks that `decode` makes of the labels' regions.

    `given` is the size (H, W) of the image that SAM saw, which fills the upper left of its square of `side` pixels.

    A class is worth its probability times the sigmoid of its best mask's logit, inside of its masks, and nothing
    elsewhere. A pixel takes the class of most worth; where none has any, its label stays. Where a region's mask is not
    trusted, no class is worth less than its probability, but only in what is returned as probabilities: the labels
    know nothing of it, as published. Where no mask is trusted, nothing changes.
    """
    height, width = labels.shape
    half = (max(1, height // 2), max(1, width // 2))
    small = F.interpolate(probabilities.float()[None], size=half, mode="bilinear")[0]  # [C, h, w]
    regions = find_regions(F.interpolate(labels[None, None].float(), size=half)[0, 0].long(), small, rules)
    if not len(regions.classes):
        return labels, probabilities
    device = labels.device
    zoom = np.array([new / old for new, old in zip(fit(half, side), half)][::-1])  # of columns, of rows
    points = torch.from_numpy(regions.points * zoom).float().to(device)
    boxes = torch.from_numpy(regions.boxes * np.tile(zoom, 2)).float().to(device)
    index = torch.from_numpy(regions.index).to(device)  # [h, w]
    rows, columns = (
        axis.to(device) for axis in mask_operators(given, (height, width), fit(given, side), side, mask_side)
    )
    worth, trusted = torch.zeros_like(probabilities, dtype=torch.float32), []
    for label, some in _by_class(regions.classes):
        mask = mask_prompt(small[label], fit((height, width), mask_side), mask_side, rules.coarse_threshold)
        logits, ious = decode(points[some], boxes[some], mask)
        sure = ious.float() > rules.iou_threshold  # [n]
        best = torch.full((height, width), -torch.inf, device=device)
        for logit, ok in zip(logits.float(), sure):  # one at a time, for each has the size of the image
            best = torch.maximum(best, torch.where(ok, rows @ logit @ columns.T, -torch.inf))
        worth[label] = torch.where(best > 0, best.sigmoid() * probabilities[label], 0)
        trusted.append(sure)
    return _decide(labels, probabilities, worth, index, torch.cat(trusted))


def _decide(
    labels: Tensor, probabilities: Tensor, worth: Tensor, index: Tensor, trusted: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels and probabilities by what classes are worth [C, H, W] and which regions' masks are trusted [n].

    `index` [h, w] says which region a pixel is of, or −1.
    """
    redrawn = torch.where(worth.amax(dim=0) > 0, worth.argmax(dim=0).to(labels.dtype), labels)
    failed = ((index >= 0) & ~trusted[index.clamp(min=0)]).float()
    failed = F.interpolate(failed[None, None], size=labels.shape)[0, 0] > 0  # [H, W]
    worth = torch.where(failed, torch.maximum(worth, probabilities), worth)
    changed = trusted.any()
    return torch.where(changed, redrawn, labels), torch.where(changed, worth.to(probabilities), probabilities)


def find_regions(labels: Tensor, probabilities: Tensor, rules: Rules) -> Regions:
    """The connected regions of labels [h, w] that are to prompt, given probabilities [C, h, w].

    Pixels touch at corners too. How many regions there are decides the shape of what follows, and no device labels
    components: so this is on the CPU, with one wait for the device.
    """
    count = len(probabilities)
    known = (labels >= 0) & (labels < count)
    own = probabilities.gather(0, labels.clamp(0, count - 1)[None])[0]  # of each pixel's label
    likely = probabilities.amax(dim=0) >= rules.coarse_threshold
    labels = torch.where(known & likely, labels, NONE)
    packed = torch.cat([labels.flatten().float(), own.flatten(), probabilities.amax(dim=(1, 2))]).cpu().numpy()
    size, shape = labels.numel(), tuple(labels.shape)
    label_map, own_map = packed[:size].astype(np.int64).reshape(shape), packed[size : 2 * size].reshape(shape)
    largest = packed[2 * size :]
    index = np.full(shape, -1)
    classes: list[int] = []
    points, boxes = [], []
    for label in np.unique(label_map):
        if label == NONE or largest[label] < rules.coarse_threshold:
            continue
        for region in _components(label_map == label, rules.minimal_area):
            y, x = np.nonzero(region)
            best = own_map[y, x].argmax()  # the first of equals
            index[region] = len(classes)
            classes.append(label)
            points.append((x[best], y[best]))
            boxes.append((x.min(), y.min(), x.max(), y.max()))
    return Regions(np.array(classes, np.int64), np.array(points), np.array(boxes), index)


def _components(mask: np.ndarray, minimal_area: int) -> Iterator[np.ndarray]:
    """The components of a mask [h, w] that are large enough, each a mask, in the order of their first pixels."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    numbers, first, areas = np.unique(parts, return_index=True, return_counts=True)
    for position in np.argsort(first):
        if numbers[position] and areas[position] >= minimal_area:
            yield parts == numbers[position]


def _by_class(classes: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each class with the place of its regions, which lie side by side."""
    labels, starts, counts = np.unique(classes, return_index=True, return_counts=True)
    for label, start, count in zip(labels.tolist(), starts.tolist(), counts.tolist()):
        yield label, slice(start, start + count)


def mask_prompt(probability: Tensor, shape: tuple[int, int], side: int, threshold: float) -> Tensor:
    """A class's probability [h, w] as SAM takes a mask: [side, side], the image `shape` large at the upper left."""
    resized = F.interpolate(probability[None, None], size=shape, mode="bilinear")[0, 0]
    padded = F.pad(resized, (0, side - shape[1], 0, side - shape[0]))
    return torch.where(padded > threshold, MASK_SCALE * padded, 0)


def mask_operators(
    given: tuple[int, int], shape: tuple[int, int], inside: tuple[int, int], side: int, mask_side: int
) -> tuple[Tensor, Tensor]:
    """What takes SAM's logits [m, m] to `shape` (H, W), as a product from the left and one from the right.

    They are resized to SAM's square, cut to what the image filled of it (`inside`), and resized to the image that SAM
    was given and to `shape`, bilinearly each time.
    """
    up = resize_matrix(mask_side, side)

    def axis(filled: int, size: int, target: int) -> Tensor:
        shown = resize_matrix(filled, size) @ up[:filled]
        return shown if size == target else resize_matrix(size, target) @ shown

    rows, columns = map(axis, inside, given, shape)
    return rows, columns


class SAMNetwork:
    """transformers' SAM, taken apart where a refinement needs it."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.square = Square(model.config.vision_config.image_size, MEAN, STD)
        self.mask_side = 4 * model.config.prompt_encoder_config.image_embedding_size

    def encode(self, image: Tensor) -> Tensor:
        """An image [3, H, W], uint8, to its embedding [1, C, G, G]."""
        pixels = self.square(image, self.model.vision_encoder.pos_embed)[None]
        with self.device:  # where transformers makes the indices of each block's relative positions
            return self.model.get_image_embeddings(pixels)

    def through_neck(self, features: Tensor) -> Tensor:
        """What stands for the output of SAM's ViT, [G, G, D'], to an embedding [1, C, G, G]."""
        neck = self.model.vision_encoder.neck
        if features.shape[-1] != neck.conv1.in_channels:
            raise UserError(
                f"the backbone's features for SAM are {features.shape[-1]} wide and this SAM's are "
                f"{neck.conv1.in_channels}; use SAM:encoder=own,model=vit_h"
            )
        return neck(features[None].to(self.dtype))

    def decode(self, embedding: Tensor, points: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `Decode`: one mask for each of the prompts, each a box and a point in it, that share a mask."""
        out = self.model(
            image_embeddings=embedding,
            input_points=points[None, :, None],
            input_labels=torch.ones(1, len(points), 1, dtype=torch.int, device=self.device),
            input_boxes=boxes[None],
            input_masks=mask[None, None].to(self.dtype),
            multimask_output=False,
        )
        return out.pred_masks[0, :, 0], out.iou_scores[0, :, 0]


def load_sam(name: str) -> Any:
    """A SAM of `MODELS`, of the model hub or of a folder, on the CPU. Raises UserError where it cannot be had."""
    from safetensors import SafetensorError
    from transformers import SamModel

    source = MODELS.get(name, name)
    local = Path(source).is_dir() or not hub_answers()
    try:
        return SamModel.from_pretrained(source, local_files_only=local, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"SAM {name} cannot be had ({reason}); use one of {', '.join(MODELS)} where the model hub answers, fill "
            "its cache on a machine that does, or give a folder in transformers' format with model.safetensors"
        ) from error


def fit(shape: Sequence[int], side: int) -> tuple[int, int]:
    """The size (H, W) of an image whose longer side becomes `side`."""
    longer = max(shape)
    height, width = (int(length * side / longer + 0.5) for length in shape)
    return height, width


def rounded_up(image: Tensor, multiple: int) -> Tensor:
    """An image [3, H, W], uint8, resized by OpenCV so that both sides are multiples of a number of pixels."""
    height, width = (-(-side // multiple) * multiple for side in image.shape[1:])
    if image.shape[1:] == (height, width):
        return image
    resized = cv2.resize(image.permute(1, 2, 0).cpu().numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1)


class Square:
    """Images as SAM sees them: in the upper left of a square of `side` pixels, and beside them 0.

    They are resized as Pillow does, by which the published numbers were made, on the CPU, where images lie.
    """

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float]):
        self.side = side
        # Of levels in 0..255, so that what is uploaded are bytes.
        self.mean, self.std = (torch.tensor(statistic)[:, None, None] * 255 for statistic in (mean, std))

    def __call__(self, image: Tensor, like: Tensor) -> Tensor:
        """An image [3, H, W], uint8, to [3, side, side] in the type of `like` and on its device."""
        pixels = self.fitted(image).to(like.device).permute(2, 0, 1)
        self.mean, self.std = self.mean.to(like.device), self.std.to(like.device)
        margins = (0, self.side - pixels.shape[2], 0, self.side - pixels.shape[1])
        return F.pad((pixels - self.mean) / self.std, margins).to(like.dtype)

    def fitted(self, image: Tensor) -> Tensor:
        """An image [3, H, W], uint8, resized into the square: [h, w, 3], on the CPU."""
        height, width = fit(image.shape[1:], self.side)
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        return torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BILINEAR)))


register(
    "SAM", SAM,
    "labels redrawn by the masks of Segment Anything, prompted with them",
    "Trident, ICCV 2025; Kirillov et al., ICCV 2023",
)  # fmt: skip
