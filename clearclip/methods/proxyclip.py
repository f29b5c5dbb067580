"""ProxyCLIP (Lan et al., ECCV 2024, arXiv 2408.04883): a vision model says which patches belong together.

The last block's values are averaged not by CLIP's own attention but by the similarity of another model's patch
features, on that model's grid, which may be finer; there is no residual and no feed-forward network.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import similarity_attention
from clearclip.backbones import Backbone
from clearclip.methods import Method, register
from clearclip.trunk import Trunk
from clearclip.vision import Eyes, hashes


class ProxyCLIP(Method):
    """CLIP's last values [B, N, D], averaged by the similarity of external features, on those features' grid.

    Args:
        vfm: the vision model, as `clearclip.vision.load_vision_model` reads it together with `vfm_weights`, or a
            function from images in CLIP's normalisation [B, 3, H, W] to features [B, D', h', w'].
        vfm_weights: its file.
        beta, gamma: shift and sharpness of the similarity.
    """

    def __init__(
        self,
        backbone: Backbone,
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb8",
        vfm_weights: str | None = None,
        beta: float = 1.2,
        gamma: float = 3.0,
    ):
        super().__init__(backbone)
        self.beta, self.gamma = beta, gamma
        self.external = vfm if callable(vfm) else Eyes(backbone, vfm, vfm_weights)

    def files(self) -> dict[str, str]:
        return hashes(vfm=self.external)

    def features(self, trunk: Trunk) -> Tensor:
        external = trunk.vision(self.external)  # [B, D', h', w']
        grid = (external.shape[2], external.shape[3])
        v = values_on(grid, trunk)  # [B, h'·w', D]
        # One window at a time: the similarity of a fine grid with itself is large.
        mixed = torch.stack([self.attention(f).to(v) @ values for f, values in zip(external, v)])
        output = self.backbone.blocks[-1].attention_output(mixed.unsqueeze(1))
        return self.backbone.project(output).unflatten(1, grid)  # [B, h', w', dim]

    def attention(self, features: Tensor) -> Tensor:
        """One window's external features [D', h', w'] to weights [N, N] of its N = h'·w' patches, float32.

        It is `similarity_attention` of their cosine similarity.
        """
        f = F.normalize(features.float().flatten(1), dim=0)  # [D', N]
        return similarity_attention(f.T @ f, self.beta, self.gamma)


def values_on(grid: tuple[int, int], trunk: Trunk) -> Tensor:
    """Values [B, h'·w', D] of the last block's patches, heads side by side, resized to another grid (h', w')."""
    _, _, v = trunk.qkv()
    v = v[:, :, trunk.prefix :].transpose(2, 3).flatten(1, 2).unflatten(2, trunk.grid)  # [B, D, h, w]
    return F.interpolate(v, size=grid, mode="bilinear").flatten(2).transpose(1, 2)


register(
    "ProxyCLIP", ProxyCLIP,
    "values averaged by the similarity of a vision model's features (DINO), on that model's grid",
    "Lan et al., ECCV 2024",
)  # fmt: skip
