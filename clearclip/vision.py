"""Patch features of vision models that know no text: DINO, DINOv2 and other ViTs, through the timm library."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbones.base import CONSTANT_BYTES, Backbone, resize_position_embedding
from clearclip.errors import UserError
from clearclip.registry import Registry
from clearclip.state import content_hash, load_state_dict
from clearclip.tensors import TensorCache
from clearclip.weights import SUFFIXES, find_weights, local_copy


class VisionModel(nn.Module):
    """A vision model as methods see it.

    Attributes:
        patch_size: rows and columns, in pixels.
        mean, std: of RGB in 0..1, what images are normalised by.
    """

    patch_size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the model's normalisation to features [B, D, h, w], not normalised to length."""
        raise NotImplementedError

    def last_qkv(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, D, h, w] of the last block's attention, heads side by side."""
        raise NotImplementedError


VISION: Registry[VisionModel] = Registry("vision model", __name__)
register = VISION.register


class TimmViT(VisionModel):
    """A timm ViT read out at its last layer, after the final normalisation, patches only."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.device, self.dtype = device, dtype
        self.patch_size = tuple(model.patch_embed.patch_size)
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self.embedding = _position_embedding(model)
        self.positions = TensorCache(CONSTANT_BYTES)
        self.model: Any = model.to(device, dtype).eval().requires_grad_(False)
        self.file: Path | None = getattr(model, "file", None)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the model's normalisation to features [B, D, h, w], not normalised to length.

        Where H or W is no multiple of the patch, the image is resized to the nearest size that is.
        """
        size = tuple(max(1, round(side / patch)) * patch for side, patch in zip(images.shape[2:], self.patch_size))
        if size != images.shape[2:]:
            images = F.interpolate(images, size=size, mode="bilinear")
        model, images = self.model, images.to(self.dtype)
        if self.embedding is None:
            return model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        x = model.patch_embed(images)  # [B, h, w, D]
        grid = (x.shape[1], x.shape[2])
        x = torch.cat([model.cls_token.expand(x.shape[0], 1, -1), x.flatten(1, 2)], dim=1)
        x = x + self.positions.get(grid, lambda: self._resized(grid))  # [B, 1+N, D]
        if model.reg_token is not None:
            x = torch.cat([x[:, :1], model.reg_token.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        x = model.norm(model.blocks(model.norm_pre(x)))
        return x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def last_qkv(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, D, h, w] of the last block's attention, heads side by side."""
        seen: list[Tensor] = []
        attention = self.model.blocks[-1].attn
        if getattr(attention, "qkv", None) is None or getattr(attention, "q_bias", None) is not None:
            raise UserError(f"the attention of {type(self.model).__name__} has no common qkv; use a DINO or DINOv2")
        hook = attention.qkv.register_forward_hook(lambda module, arguments, output: seen.append(output))
        try:
            grid = self(images).shape[2:]
        finally:
            hook.remove()
        patches = seen[0][:, self.model.num_prefix_tokens :].transpose(1, 2)  # [B, 3·D, N]
        q, k, v = patches.unflatten(2, grid).chunk(3, dim=1)
        return q, k, v

    def _resized(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding [1+N, D] as the authors of DINO and DINOv2 resample it."""
        assert self.embedding is not None
        mode = "offset" if self.model.reg_token is None else "antialias"
        return resize_position_embedding(self.embedding, grid, mode).to(self.device, self.dtype)


def _position_embedding(model: Any) -> Tensor | None:
    """The learned position embedding [1+N, D], float32 on the CPU.

    None where timm is to resample it in its own way, as for all that have none or no class token.
    """
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer or model.cls_token is None or model.pos_embed is None:
        return None
    embedding = model.pos_embed[0].detach().float().cpu()
    return F.pad(embedding, (0, 0, 1, 0)) if model.no_embed_class else embedding  # timm's class token has its own


def load_vision_model(
    name: str = "dino_vitb8",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VisionModel:
    """Load a vision model by its registered name, or timm's name of a ViT.

    `weights` is a checkpoint in timm's or the authors' own format; a `name` that is a file stands for both, the
    file being called as the model is. Without it `<name>.safetensors`, `.pt` or `.pth` in the folders of
    `$CLEARCLIP_WEIGHTS` is used, then the model hub's cache, then the hub.
    Raises UserError for an unknown model and for weights that are missing or of another model.
    """
    name = str(name)
    if weights is None and name.endswith(SUFFIXES):
        name, weights = Path(name).stem, name
    if name in VISION:
        entry = VISION.find(name)
        return entry.build(name, weights, torch.device(device), dtype, **entry.preset)
    return load_timm(name, weights, torch.device(device), dtype)


def load_timm(
    name: str, weights: str | Path | None, device: torch.device, dtype: torch.dtype, architecture: str = ""
) -> VisionModel:
    """A ViT by its `architecture` in timm, by default `name`."""
    return TimmViT(build_timm(name, weights, architecture, dynamic_img_size=True), device, dtype)


def build_timm(
    name: str, weights: str | Path | None, architecture: str = "", option: str = "vfm_weights", **options: Any
) -> Any:
    """timm's network `architecture`, by default `name`, built with `options`, with its weights, on the CPU.

    `option` is what a user calls `weights`; the file they come from is the network's `file`. Raises UserError as
    `load_vision_model` does.
    """
    model = _create(name, architecture or name, option, options)
    path = _find_weights(name, weights, model.pretrained_cfg, option)
    try:
        state = {key: value.float() for key, value in load_state_dict(path).items()}
        # timm's own converter for this kind of network: it knows the authors' formats.
        state = importlib.import_module(type(model).__module__).checkpoint_filter_fn(state, model)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head")})
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold a {name}: {reason}") from None
    model.file = path
    return model


def _create(name: str, architecture: str, option: str, options: dict[str, Any]) -> Any:
    import timm

    try:
        if not timm.is_model(architecture):
            raise RuntimeError
        return timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError):  # unknown to timm; known, but no ViT
        names = ", ".join(entry.name for entry in VISION.entries())
        raise UserError(
            f"unknown vision model {name!r}; use one of {names} or timm's name of a ViT, and give a file as "
            f"{option}=PATH"
        ) from None


def _find_weights(name: str, weights: str | Path | None, config: Any, option: str) -> Path:
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"weights file {weights} does not exist; give the path of a checkpoint of {name}")
        return path
    repository = config.get("hf_hub_id")
    if repository:
        how = f"give the path of a copy as {option}=PATH"
        return find_weights(name, name, repository, "model.safetensors", how=how)
    if found := local_copy(name):
        return found
    raise UserError(f"there are no public weights of {name}; give a file as {option}=PATH")


class Eyes:
    """A vision model for images [B, 3, H, W] in a backbone's normalisation: features [B, D', h', w']."""

    def __init__(self, backbone: Backbone, name: str, weights: str | None = None):
        self.model: VisionModel = load_vision_model(name, weights, backbone.device, backbone.dtype)
        self.mean, self.std, self.own_mean, self.own_std = (
            torch.tensor(statistic, device=backbone.device)[:, None, None]
            for statistic in (backbone.mean, backbone.std, self.model.mean, self.model.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(self.as_seen(images))

    def as_seen(self, images: Tensor) -> Tensor:
        """Images in the backbone's normalisation to the model's own."""
        return (images.to(self.mean.device) * self.std + self.mean - self.own_mean) / self.own_std


def hashes(**seers: Any) -> dict[str, str]:
    """The SHA-256 of the file of each that has one, a network or `Eyes`, by the names they are given under."""
    files = {name: getattr(getattr(seer, "model", seer), "file", None) for name, seer in seers.items()}
    return {name: content_hash(file) for name, file in files.items() if file}


class ValueEyes(Eyes):
    """The same that gives the values of the last block's attention, [B, D', h', w']."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.model.last_qkv(self.as_seen(images))[2]


_DINO = ("DINO", "Caron et al., ICCV 2021")
_DINO2 = ("DINOv2", "Oquab et al., TMLR 2024")
_REGISTERS = ("DINOv2 with registers", "Darcet et al., ICLR 2024")
# The names the papers use.
for _name, _architecture, (_summary, _paper) in (
    ("dino_vits8", "vit_small_patch8_224.dino", _DINO),
    ("dino_vits16", "vit_small_patch16_224.dino", _DINO),
    ("dino_vitb8", "vit_base_patch8_224.dino", _DINO),
    ("dino_vitb16", "vit_base_patch16_224.dino", _DINO),
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", _DINO2),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", _DINO2),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", _DINO2),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", _REGISTERS),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", _REGISTERS),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", _REGISTERS),
    ("mae_vitb16", "vit_base_patch16_224.mae", ("MAE", "He et al., CVPR 2022")),
):
    register(_name, load_timm, _summary, _paper, architecture=_architecture)
