"""Masks vote on their labels: all pixels of one take the label that most of them have.

The map correction of CorrCLIP (Zhang et al., ICCV 2025, arXiv 2411.10086), for any method.
"""

import dataclasses

import torch
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.decode import Decoded
from clearclip.masks import MaskProvider, load_masks
from clearclip.refine import Refinement, register
from clearclip.view import View


class MapVote(Refinement):
    """Labels agree within each mask, after the threshold; scores stay as they are.

    The smallest number of an image means "no mask" and is left alone, as published, even where masks cover it whole.

    Args:
        masks: where masks come from, as `clearclip.masks.load_masks` reads it: "SAM2", "EoMT" or a folder.
    """

    def __init__(self, backbone: Backbone, masks: str | MaskProvider = "SAM2"):
        super().__init__(backbone)
        self.masks = load_masks(masks, backbone.device)

    def files(self) -> dict[str, str]:
        return {"masks": self.masks.identity}

    def labels(self, view: View, decoded: Decoded) -> Decoded:
        labels = vote(decoded.labels, self.masks(view).at(view.shape), decoded.classes)
        return dataclasses.replace(decoded, labels=labels)


def vote(labels: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Labels [H, W] of `classes` classes, and what is none, such as 255, brought to agree within masks [H, W].

    Of equally many the smallest wins. The masks lie on the CPU, where they are counted, so that nothing waits for the
    device of the labels.
    """
    region, count = number(ids)
    region = region.to(labels.device, non_blocking=True)
    label = labels.long().clamp(max=classes)  # what is no class counts as one more
    votes = torch.zeros(count * (classes + 1), dtype=torch.int32, device=labels.device)
    cell = (region * (classes + 1) + label).flatten()
    votes.scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
    winner = votes.view(-1, classes + 1).argmax(dim=1)[region].to(labels.dtype)
    none = labels.amax()  # where there is such a pixel at all
    return torch.where(region == 0, labels, torch.where(winner == classes, none, winner))


def number(ids: Tensor) -> tuple[Tensor, int]:
    """Masks [H, W] numbered from 0 in their order, and how many there are."""
    distinct, region = ids.unique(return_inverse=True)
    return region, len(distinct)


register("MAPVOTE", MapVote, "all pixels of a mask take its commonest label", "Zhang et al., ICCV 2025")
