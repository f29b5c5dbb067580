"""Masks of SAM 2 (Ravi et al., 2024, arXiv 2408.00714) for points all over an image, through transformers.

Not run with real weights: tested on small random networks against transformers' own pipeline for mask generation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from clearclip.masks import Masks, NetworkMasks, load_pretrained, register
from clearclip.masks.fusion import LARGEST, bounding_boxes

POINTS_AT_ONCE = 64
OFFSET = 1.0  # by which logits are raised and lowered to see whether a mask is stable


class SAM2(NetworkMasks):
    """One or three masks for every point of a grid, those that are unsure or double left out.

    The network sees the image squashed to a square. Stability and boxes are those of its own resolution, a quarter of
    that square, as in TextRegion; SAM 2's own generator takes them at the image's, which moves masks near the limits.

    Args:
        model: a repository of the model hub, or a folder in transformers' format.
        points: along each side.
        levels: masks for a point: 1, or 3, which are also kept as proposals that may overlap.
        iou, stability: the least predicted IoU and stability of a mask.
        overlap: the IoU of two boxes above which the surer mask alone stays.
    """

    def __init__(
        self,
        device: torch.device | str,
        model: str = "facebook/sam2-hiera-large",
        points: int = 8,
        levels: int = 1,
        iou: float = 0.4,
        stability: float = 0.4,
        overlap: float = 0.7,
    ):
        if points < 1 or levels not in (1, 3):
            raise ValueError(f"points {points} must be 1 or more, levels {levels} 1 or 3")
        self.points, self.levels, self.iou, self.stability, self.overlap = points, levels, iou, stability, overlap
        options = dict(points=points, levels=levels, iou=iou, stability=stability, overlap=overlap)
        super().__init__(device, model, options)

    def load(self) -> dict[str, Any]:
        from transformers import AutoImageProcessor, Sam2Model

        parts = load_pretrained({"model": Sam2Model, "processor": AutoImageProcessor}, self.model)
        parts["model"].to(self.device).eval().requires_grad_(False)
        return parts

    def make(self, image: Tensor) -> Masks:
        logits, level, iou = self.propose(image)
        ids = paint(logits, (image.shape[1], image.shape[2]))
        if self.levels == 1:
            return Masks(ids)
        return Masks(ids, logits.clamp(0, LARGEST).half(), level, iou)

    def propose(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [M, n, n], levels [M] and predicted IoU [M], on the CPU, of an RGB image [3, H, W], uint8."""
        model, processor = self.network["model"], self.network["processor"]
        pixels = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
        embeddings = model.get_image_embeddings(pixels.to(self.device, model.dtype))
        axis = (torch.arange(self.points) + 0.5) / self.points * pixels.shape[-1]
        grid = torch.cartesian_prod(axis, axis).flip(1).to(self.device)  # [P, (x, y)], row by row
        parts = []
        for points in grid.split(POINTS_AT_ONCE):
            seen = model(
                image_embeddings=embeddings,
                input_points=points[None, :, None].to(model.dtype),
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int, device=self.device),
                multimask_output=self.levels == 3,
            )
            logits, iou = seen.pred_masks[0].float(), seen.iou_scores[0].float()  # [P, m, n, n], [P, m]
            level = torch.arange(logits.shape[1], device=self.device).expand(iou.shape)
            kept = (iou >= self.iou) & (stability(logits) >= self.stability)
            parts.append([part[kept].cpu() for part in (logits, level, iou)])
        logits, level, iou = map(torch.cat, zip(*parts))
        kept = nms(bounding_boxes(logits > 0), iou, self.overlap)
        return logits[kept], level[kept], iou[kept]


def stability(logits: Tensor) -> Tensor:
    """How little masks [..., n, n] change with the limit of their logits, in 0..1: the IoU of a small and a large."""
    small, large = ((logits > limit).flatten(-2).sum(dim=-1) for limit in (OFFSET, -OFFSET))
    return small / large.clamp(min=1)


def paint(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Masks of logits [M, n, n] as one map of numbers [*shape], int32, from 1 on; the larger cover the smaller."""
    ids = torch.zeros(shape, dtype=torch.int32)
    areas = torch.tensor([int(_enlarged(mask, shape).sum()) for mask in logits])
    for number, index in enumerate(areas.argsort(stable=True).tolist(), 1):
        ids[_enlarged(logits[index], shape)] = number
    return ids


def _enlarged(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[None, None], size=shape, mode="bilinear")[0, 0] > 0


register("SAM2", SAM2, "one mask a point, as CorrCLIP has them", "Ravi et al., 2024")
register(
    "SAM2.1", SAM2, "three masks a point, as TextRegion has them", "Ravi et al., 2024",
    model="facebook/sam2.1-hiera-large", points=16, levels=3, iou=0.6, stability=0.6, overlap=0.9,
)  # fmt: skip
