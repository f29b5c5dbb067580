"""GLA-CLIP (CVPR 2026, arXiv 2603.23030): ProxyCLIP's attention, reaching across all windows of an image.

A patch attends to the patches of every window, by the similarity of a vision model's features. So that a small object
is not outvoted by all that is now in sight, its query first moves to the mean of what is much like it, and the
smaller that group is, the sharper its attention. The last block has no residual and no feed-forward network.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.methods import Method, register, similarity
from clearclip.methods.proxyclip import values_on
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.vision import Eyes, hashes

CHUNK_BYTES = 32 << 20  # of similarities at once


class GLACLIP(Method):
    """CLIP's last values, averaged over all windows by the similarity of external features, on those features' grid.

    Args:
        vfm, vfm_weights: the vision model, as ProxyCLIP reads it.
        steps: how often a query moves to the mean of the patches alike.
        alike: the cosine above which a patch is.
        beta: shift of the similarity, in means of its row; None: 1 + 0.3 · ln(1 + n) of n windows.
        gamma: its sharpness; None: 1 + 30 / c of a query that found c patches alike.
    """

    def __init__(
        self,
        backbone: Backbone,
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb8",
        vfm_weights: str | None = None,
        steps: int = 2,
        alike: float = 0.6,
        beta: float | None = None,
        gamma: float | None = None,
    ):
        super().__init__(backbone)
        if steps < 0 or not alike < 1:
            raise ValueError(f"steps {steps} must be 0 or more, alike {alike} below 1, a patch's cosine with itself")
        if not steps and gamma is None:
            raise ValueError("steps=0 finds no patches alike that gamma could follow; give gamma a number")
        self.steps, self.alike, self.beta, self.gamma = steps, alike, beta, gamma
        self.external = vfm if callable(vfm) else Eyes(backbone, vfm, vfm_weights)

    def files(self) -> dict[str, str]:
        return hashes(vfm=self.external)

    def features(self, trunk: Trunk) -> Tensor:
        """Features [B, h', w', dim] of the windows of a trunk, which are taken for all those of one image."""
        return self.across([trunk])

    def window_features(self, view: View) -> Tensor:
        return view.trunks[0].once((self, "across"), lambda: self.across(view.trunks)).float()

    def image_scores(self, view: View, text: Tensor) -> Tensor:
        return view.stitch_scores(similarity(self.window_features(view), text))

    def across(self, trunks: Sequence[Trunk]) -> Tensor:
        """Features [n, h', w', dim] of an image's n windows, which come in the batches of `trunks`."""
        external = torch.cat([trunk.vision(self.external) for trunk in trunks])  # [n, D', h', w']
        count, grid = len(external), (external.shape[2], external.shape[3])
        keys = F.normalize(external.float().flatten(2), dim=1).transpose(1, 2).flatten(0, 1)  # [n·h'·w' = N, D']
        v = torch.cat([values_on(grid, trunk) for trunk in trunks]).flatten(0, 1)  # [N, D]
        beta = 1 + 0.3 * math.log(1 + count) if self.beta is None else self.beta
        rows = max(1, CHUNK_BYTES // (4 * len(keys)))
        mixed = torch.cat([self.attention(queries, keys, beta).to(v) @ v for queries in keys.split(rows)])
        output = self.backbone.blocks[-1].attention_output(mixed.unflatten(0, (count, 1, -1)))  # [n, h'·w', D]
        return self.backbone.project(output).unflatten(1, grid)

    def attention(self, queries: Tensor, keys: Tensor, beta: float) -> Tensor:
        """Weights [M, N], rows summing to 1, of unit keys [N, D'] for some of them [M, D'].

        softmax(γ (S − β · mean S)) over the keys where that is not negative, the mean and γ being each row's own;
        where it is negative everywhere, of the largest alone.
        """
        anchors, counts = find_anchors(queries, keys, self.alike, self.steps)
        gamma = 1 + 30 / counts if self.gamma is None else self.gamma  # [M, 1]
        s = anchors @ keys.T  # [M, N]
        s = gamma * (s - beta * s.mean(dim=1, keepdim=True).clamp(min=0))
        return s.masked_fill_(s < s.amax(dim=1, keepdim=True).clamp(max=0), -torch.inf).softmax(dim=1)


def find_anchors(queries: Tensor, keys: Tensor, alike: float, steps: int) -> tuple[Tensor, Tensor]:
    """Unit queries [M, D'], moved `steps` times to the mean of the unit keys [N, D'] of a cosine above `alike`.

    Returns where they are, [M, D'], unit, and how many keys the last step took the mean of, [M, 1].
    """
    counts = torch.ones_like(queries[:, :1])
    for _ in range(steps):
        near = (queries @ keys.T > alike).to(keys)  # [M, N]
        counts = near.sum(dim=1, keepdim=True).clamp(min=1)
        queries = F.normalize(near @ keys, dim=1)
    return queries, counts


register(
    "GLA-CLIP", GLACLIP,
    "ProxyCLIP's attention across all windows of an image, from the mean of patches alike, sharper where these are few",
    "GLA-CLIP, CVPR 2026",
)  # fmt: skip
