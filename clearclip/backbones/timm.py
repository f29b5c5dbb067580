"""timm's ViTs as OpenCLIP uses them for image towers: SigLIP and SigLIP 2, EVA-CLIP, PE-Core, MobileCLIP2.

The networks are timm's own; only the road is ours. What the cells of ClearCLIP's grid mean here:

- *last block*: the last of the ViT's blocks, before the final norm. Attention, residual and feed-forward are its own;
  queries and keys are those that its attention compares, after any norm of their own and turned by their places
  (EVA02, PE-Core). The norm that EVA02 has between attention and its output projection stays.
- *projection*: the final norm, then the head. A head that pools by attention (MAP: SigLIP, PE-Core) weighs values of
  patches; read for one patch alone, its weights are 1 and what is left is W_o W_v x, and PE-Core's projection after it.
  The feed-forward network of that head, made for the pooled vector, is left out, as in TextRegion (arXiv 2505.23769).
- *class token*: PE-Core and EVA have one, SigLIP has none; where a method wants one, the mean patch stands in.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbones import register
from clearclip.backbones.base import Block
from clearclip.backbones.openclip import OpenCLIPBackbone, fill
from clearclip.errors import UserError
from clearclip.products import linear
from clearclip.state import load_state_dict
from clearclip.trunk import QKV
from clearclip.weights import Checkpoint, find_checkpoint

COMMON: dict[str, tuple[str, ...]] = {
    "ViT-B-16-SigLIP2": ("webli",),
    "ViT-L-16-SigLIP2-256": ("webli",),
    "ViT-B-16-SigLIP": ("webli",),
    "EVA02-B-16": ("merged2b_s8b_b131k",),
    "EVA02-L-14": ("merged2b_s4b_b131k",),
    "PE-Core-B-16": ("meta",),
    "PE-Core-L-14-336": ("meta",),
    "MobileCLIP2-L-14": ("dfndr2b",),
}


class TimmBlock(Block):
    """A block of timm's ViTs: norms before (most) or after (EVA02-E) its halves, LayerScale, rotary positions.

    Args:
        module: timm's.
        rotary: sines and cosines [N, 2·d] by which queries and keys of the last N tokens are turned.
    """

    def __init__(self, module: Any, rotary: Callable[[tuple[int, int]], Tensor] | None = None):
        self.module, self.rotary = module, rotary
        self.heads = module.attn.num_heads
        self.post_norm = type(module).__name__ == "EvaBlockPostNorm"
        self.turns: Tensor | None = None

    def at(self, grid: tuple[int, int]) -> "TimmBlock":
        if self.rotary is None:
            return self
        block = TimmBlock(self.module, self.rotary)
        block.turns = self.rotary(grid)
        return block

    def norm(self, tokens: Tensor) -> Tensor:
        return tokens if self.post_norm else self.module.norm1(tokens)

    def qkv(self, tokens: Tensor) -> QKV:
        attn, x = self.module.attn, self.norm(tokens)
        if attn.qkv is None:
            parts = [layer(x) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
        else:
            separate = getattr(attn, "q_bias", None) is not None  # EVA01: keys have none
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if separate else attn.qkv.bias
            parts = list(linear(x, attn.qkv.weight, bias).chunk(3, dim=-1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, heads, T, d]
        return self.turned(attn.q_norm(q)), self.turned(attn.k_norm(k)), v

    def turned(self, x: Tensor) -> Tensor:
        """Queries or keys [B, heads, T, d], those of the patches, which come last, turned by their places."""
        if self.turns is None or x.shape[2] < len(self.turns):  # fewer: none of them has a place
            return x
        from timm.layers import apply_rot_embed_cat

        prefix, patches = x.split([x.shape[2] - len(self.turns), len(self.turns)], dim=2)
        half = getattr(self.module.attn, "rotate_half", False)
        return torch.cat([prefix, apply_rot_embed_cat(patches, self.turns, half=half).to(x)], dim=2)

    def merge_heads(self, mixed: Tensor) -> Tensor:
        attn = self.module.attn
        return attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2)))

    def layer_scale(self, update: Tensor) -> Tensor:
        return self._scaled(update, "ls1", "gamma_1", "norm1")

    def mlp(self, tokens: Tensor) -> Tensor:
        hidden = tokens if self.post_norm else self.module.norm2(tokens)
        return self._scaled(self.module.mlp(hidden), "ls2", "gamma_2", "norm2")

    def _scaled(self, update: Tensor, scale: str, gamma: str, norm: str) -> Tensor:
        if self.post_norm:
            return getattr(self.module, norm)(update)
        if hasattr(self.module, scale):
            return getattr(self.module, scale)(update)
        factor = getattr(self.module, gamma)
        return update if factor is None else factor * update


class TimmBackbone(OpenCLIPBackbone):
    """A model of OpenCLIP's whose image tower is a ViT of timm's; its text tower is OpenCLIP's, as everywhere.

    The position embedding is resampled to the size of the grid, without the offset of the CLIP pipelines, whose numbers
    nobody has published for these models.
    """

    names = COMMON
    position = "size"
    rope: Any  # its rotary positions, in float32 on the CPU, if it has any

    def open_up(self, tower: Any) -> None:
        self.visual = tower
        rotary = None if self.rope is None else self._turns
        self.blocks = [TimmBlock(module, rotary) for module in tower.blocks]
        self.patch_size = tower.patch_embed.patch_size[0]
        self.prefix_tokens = tower.num_prefix_tokens
        self.width = tower.embed_dim
        self.dim = tower.num_classes or tower.num_features

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        return find_checkpoint(name, pretrained, timm_vit)

    def load_image_tower(self) -> nn.Module:
        """The image tower with the checkpoint's weights, float32 on the CPU."""
        with torch.device("meta"):
            tower = image_tower(self.checkpoint.config)
        tower = fill(tower, load_state_dict(self.checkpoint.path, "visual.trunk."), self.checkpoint)
        make_buffers(tower)
        self.rope = tower._modules.pop("rope", None)
        return tower

    def embed(self, images: Tensor, position: str | None = None) -> Tensor:
        tower: Any = self.visual
        x = tower.patch_embed(images.to(self.device, self.dtype))  # [B, h, w, D]
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        first = [part.expand(len(x), -1, -1) for part in (tower.cls_token, tower.reg_token) if part is not None]
        if tower.pos_embed is None:
            return tower.norm_pre(torch.cat([*first, x], dim=1))
        embedding = self._position_embedding(grid, position or self.position)
        if tower.no_embed_class:
            return tower.norm_pre(torch.cat([*first, x + embedding], dim=1))
        return tower.norm_pre(torch.cat([*first, x], dim=1) + embedding)  # [B, P+N, D]

    def position_table(self) -> tuple[Tensor, int]:
        return self.visual.pos_embed[0], 0 if self.visual.no_embed_class else self.prefix_tokens

    def _turns(self, grid: tuple[int, int]) -> Tensor:
        """Sines and cosines [N, 2·d] of a grid, float32."""
        return self.constants.get(("turns", grid), lambda: self.rope.get_embed(grid).to(self.device))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.visual.norm(tokens)

    def head(self, states: Tensor) -> Tensor:
        tower, pool = self.visual, self.visual.attn_pool
        if pool is not None:
            states = pool.proj(F.linear(states, *(part.chunk(2)[1] for part in (pool.kv.weight, pool.kv.bias))))
        return tower.head(tower.fc_norm(states))


def timm_vit(arch: str, config: dict[str, Any]) -> bool:
    """Whether a model's image tower is a ViT of timm's. Raises UserError for another network of timm's."""
    name = config["vision_cfg"].get("timm_model_name")
    if not name:
        return False
    with torch.device("meta"):
        problem = unsupported(config["vision_cfg"])
    if problem:
        raise UserError(f"backbone {arch} is not supported: {problem}; use a ViT, such as ViT-B-16-SigLIP2")
    return True


def unsupported(vision: dict[str, Any]) -> str | None:
    """Why the image tower of a configuration cannot be opened up, if it cannot."""
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    name = vision["timm_model_name"]
    if not timm.is_model(name):
        return f"this timm has no {name}"
    if vision.get("timm_proj", "linear") not in (None, "", "none"):
        return f"it projects {name} by layers of its own"
    tower = timm.create_model(name)
    blocks = {type(block).__name__ for block in getattr(tower, "blocks", ())}
    if not isinstance(tower, Eva | VisionTransformer) or not blocks <= {"Block", "EvaBlock", "EvaBlockPostNorm"}:
        return f"{name} is no plain ViT"
    if any(getattr(block.attn, "gate", None) is not None for block in tower.blocks):
        return f"the attention of {name} is gated"
    return None


def image_tower(config: dict[str, Any]) -> nn.Module:
    """timm's network as OpenCLIP makes it, for images of any size."""
    import timm

    vision = config["vision_cfg"]
    classes = 0 if vision.get("timm_proj") == "none" else config["embed_dim"]
    return timm.create_model(
        vision["timm_model_name"], num_classes=classes, global_pool=vision["timm_pool"], dynamic_img_size=True
    )


def make_buffers(tower: nn.Module) -> None:
    """Compute what no checkpoint holds of a tower made without storage, such as frequencies of rotary positions."""
    for module in tower.modules():
        empty = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        for name, buffer in empty.items():
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if empty:
            module.init_non_persistent_buffers()  # type: ignore[operator]


register(
    "timm", TimmBackbone,
    "ViTs of timm that OpenCLIP has text towers for: SigLIP, SigLIP 2, EVA, PE-Core, MobileCLIP2",
    "Zhai et al., ICCV 2023; Sun et al., 2023; Bolya et al., 2025",
)  # fmt: skip
