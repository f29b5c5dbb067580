"""Which proposals of a promptable network are one thing: those that are all but contained in a better one join it.

As TextRegion does it (Xiao et al., TMLR 2025, arXiv 2505.23769).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

AREA = 100  # positive pixels of a proposal at the network's resolution, which it must exceed
CONTAINED = 0.8  # the share of the smaller of two that lies in the other, above which they are one
BOXES = 0.2  # the least overlap of their boxes
LARGEST = 3.0  # logits are bounded by it


def fuse(logits: Tensor, level: Tensor, iou: Tensor, shape: tuple[int, int], contained: float = CONTAINED) -> Tensor:
    """Proposals [M, n, n] of levels [M] and predicted IoU [M] to regions [R, *shape], which may overlap, in 0..3.

    They are taken in the `order` of what is likely whole. Each takes all later ones that are contained in it, not in
    what it has become; together they are the larger value at every pixel.
    """
    taken_in_order = order(logits, level, iou)
    logits = logits[taken_in_order].clamp(0, LARGEST)
    if not len(logits):
        return torch.zeros(0, *shape)
    boxes = bounding_boxes(logits > 0)
    close = box_iou(boxes, boxes) > BOXES
    full = F.interpolate(logits[None], size=shape, mode="bilinear")[0].flatten(1)  # [M, H·W]
    areas = full.sum(dim=1)
    free = torch.ones(len(full), dtype=torch.bool)
    regions = []
    for index in range(len(full)):
        if not free[index]:
            continue
        later = (close[index] & free).nonzero().flatten()
        later = later[later > index]
        common = torch.stack([torch.minimum(full[index], full[j]).sum() for j in later]) if len(later) else areas[:0]
        joined = later[common / torch.minimum(areas[index], areas[later]) > contained]
        free[joined] = False
        regions.append(full[[index, *joined.tolist()]].amax(dim=0))
    return torch.stack(regions).unflatten(1, shape)


def order(logits: Tensor, level: Tensor, iou: Tensor) -> Tensor:
    """Indices of the proposals [M, n, n] that are large enough, those of whole things first, the surest of each."""
    large = ((logits > 0).flatten(1).sum(dim=1) > AREA).nonzero().flatten()
    by_iou = large[iou[large].argsort(descending=True, stable=True)]
    return by_iou[level[by_iou].argsort(descending=True, stable=True)]


def bounding_boxes(masks: Tensor) -> Tensor:
    """Boxes [M, 4] (left, top, right, bottom: the first and last pixel) of masks [M, n, n]; of an empty one 0."""
    sides = []
    for axis in (1, 2):  # columns, then rows
        inside = masks.any(dim=axis).int()
        last = inside.shape[1] - 1 - inside.flip(1).argmax(dim=1)
        sides.append((inside.argmax(dim=1), torch.where(inside.any(dim=1), last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()
