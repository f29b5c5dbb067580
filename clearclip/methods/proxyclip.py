"""ProxyCLIP (Lan et al., ECCV 2024): a vision model says which patches belong together, CLIP says what they are.

The last block's values are averaged not by CLIP's own attention but by the similarity of another model's patch
features, on that model's grid, which may be finer; there is no residual and no feed-forward network.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import similarity_attention
from clearclip.backbone import Backbone, merge_heads, split_heads
from clearclip.features import load_vision_model
from clearclip.methods import Method, register


class ProxyCLIP(Method):
    """CLIP's last values [B, N, D], averaged by the similarity of external features, on those features' grid.

    `vfm` names the vision model, as `clearclip.features.load_vision_model` reads it together with `vfm_weights`,
    or is a function from images in CLIP's normalisation [B, 3, H, W] to features [B, D', h', w']. `beta` and
    `gamma` shift and sharpen the similarity.
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
        self.beta, self.gamma = float(beta), float(gamma)
        self.external = vfm if callable(vfm) else self._load(vfm, vfm_weights)

    def features(self, images: Tensor) -> Tensor:
        block = self.backbone.blocks[-1]
        external = self.external(images)  # [B, D', h', w']
        grid = tuple(external.shape[2:])
        _, _, v = split_heads(block, self.backbone.trunk(images))
        v = v[:, :, 1:].transpose(2, 3).flatten(1, 2).unflatten(2, self.backbone.grid(images))  # [B, D, h, w]
        v = F.interpolate(v, size=grid, mode="bilinear").flatten(2).transpose(1, 2)  # [B, h'·w', D]
        # One window at a time: the similarity of a fine grid with itself is large.
        mixed = torch.stack([self.attention(f).to(v) @ values for f, values in zip(external, v)])
        return self.backbone.project(merge_heads(block, mixed.unsqueeze(1))).unflatten(1, grid)

    def attention(self, features: Tensor) -> Tensor:
        """One window's external features [D', h', w'] to weights [N, N] of its N = h'·w' patches, float32.

        It is `similarity_attention` of their cosine similarity.
        """
        f = F.normalize(features.float().flatten(1), dim=0)  # [D', N]
        return similarity_attention(f.T @ f, self.beta, self.gamma)

    def _load(self, name: str, weights: str | None) -> Callable[[Tensor], Tensor]:
        backbone = self.backbone
        model = load_vision_model(name, weights, backbone.device, backbone.dtype)
        mean, std, other_mean, other_std = (
            torch.tensor(statistic, device=backbone.device)[:, None, None]
            for statistic in (backbone.mean, backbone.std, model.mean, model.std)
        )
        return lambda images: model((images.to(backbone.device) * std + mean - other_mean) / other_std)


register(
    "ProxyCLIP", ProxyCLIP,
    "values averaged by the similarity of a vision model's features (DINO), on that model's grid",
    "Lan et al., ECCV 2024",
    vfm="dino_vitb8", vfm_weights=None, beta=1.2, gamma=3.0,
)  # fmt: skip
