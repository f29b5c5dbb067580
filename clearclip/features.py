"""Patch features of vision models that know no text: DINO, DINOv2 and other ViTs, through the timm library."""

import functools
import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbone import resize_position_embedding
from clearclip.errors import UserError
from clearclip.weights import SUFFIXES, hub_file, load_state_dict, local_copy

# The names the papers use; any other of timm's ViTs goes by timm's name.
VISION_MODELS = {
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_vitl14": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    "mae_vitb16": "vit_base_patch16_224.mae",
}


class VisionModel(nn.Module):
    """A timm ViT read out at its last layer, after the final normalisation, patches only.

    Attributes: `patch_size` (rows and columns, in pixels), `mean` and `std` (of RGB in 0..1).
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.patch_size = tuple(model.patch_embed.patch_size)
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self._position_embedding = _position_embedding(model, device, dtype)
        self.model = model.to(device, dtype).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the model's normalisation to features [B, D, h, w], not normalised to length.

        Where H or W is no multiple of the patch, the image is resized to the nearest size that is.
        """
        size = tuple(max(1, round(side / patch)) * patch for side, patch in zip(images.shape[2:], self.patch_size))
        if size != images.shape[2:]:
            images = F.interpolate(images, size=size, mode="bilinear")
        model, images = self.model, images.to(self.dtype)
        if self._position_embedding is None:
            return model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        x = model.patch_embed(images)  # [B, h, w, D]
        grid = tuple(x.shape[1:3])
        x = torch.cat([model.cls_token.expand(len(x), 1, -1), x.flatten(1, 2)], dim=1)
        x = x + self._position_embedding(grid)  # [B, 1+N, D]
        if model.reg_token is not None:
            x = torch.cat([x[:, :1], model.reg_token.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        x = model.norm(model.blocks(model.norm_pre(x)))
        return x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)


def _position_embedding(model: nn.Module, device: torch.device, dtype: torch.dtype):
    """A grid to the position embedding [1+N, D] as the authors of DINO and DINOv2 resample it.

    timm resamples all models in one way; it is left to it for those that have no learned embedding or no class
    token (None).
    """
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer or model.cls_token is None or model.pos_embed is None:
        return None
    embedding = model.pos_embed[0].detach().float().cpu()
    if model.no_embed_class:  # timm has added the class token's to the token
        embedding = F.pad(embedding, (0, 0, 1, 0))
    mode = "offset" if model.reg_token is None else "antialias"
    return functools.lru_cache(maxsize=64)(
        lambda grid: resize_position_embedding(embedding, grid, mode).to(device, dtype)
    )


def load_vision_model(
    name: str = "dino_vitb8",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VisionModel:
    """Load a vision model by a name of `VISION_MODELS`, or timm's name of a ViT.

    `weights` is a checkpoint in timm's or the authors' own format; a `name` that is a file stands for both, the
    file being called as the model is. Without it `<name>.safetensors`, `.pt` or `.pth` in the folders of
    `$CLEARCLIP_WEIGHTS` is used, then the model hub's cache, then the hub.
    Raises UserError for an unknown model and for weights that cannot be had or are of another model.
    """
    name = str(name)
    if weights is None and name.endswith(SUFFIXES):
        name, weights = Path(name).stem, name
    model = _create(name)
    path = _find_weights(name, weights, model.pretrained_cfg)
    try:
        state = {key: value.float() for key, value in load_state_dict(path).items()}
        # timm's own converter for this kind of network: it knows the authors' formats.
        state = importlib.import_module(type(model).__module__).checkpoint_filter_fn(state, model)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head")})
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold a {name}: {reason}") from None
    return VisionModel(model, torch.device(device), dtype)


def _create(name: str) -> nn.Module:
    import timm

    known = VISION_MODELS.get(name, name)
    try:
        if not timm.is_model(known):
            raise RuntimeError
        return timm.create_model(known, pretrained=False, num_classes=0, dynamic_img_size=True)
    except (RuntimeError, TypeError):  # unknown to timm; known, but no ViT
        raise UserError(
            f"unknown vision model {name!r}; use one of {', '.join(VISION_MODELS)} or timm's name of a ViT, and give "
            f"a file as vfm_weights=PATH"
        ) from None


def _find_weights(name: str, weights: str | Path | None, config: dict) -> Path:
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"weights file {weights} does not exist; give the path of a checkpoint of {name}")
        return path
    if path := local_copy(name):
        return path
    repository = config.get("hf_hub_id")
    if not repository:
        raise UserError(f"there are no public weights of {name}; give a file as vfm_weights=PATH")
    try:
        return hub_file(repository, "model.safetensors")
    except Exception as error:  # the library raises whatever its transport raised
        raise UserError(
            f"the weights of {name} ({repository}) could not be downloaded: give the path of a copy as "
            f"vfm_weights=PATH, or put it into a folder named by $CLEARCLIP_WEIGHTS as {name}.safetensors (or .pt, "
            ".pth), or fill the hub's cache on a machine that reaches it"
        ) from error
