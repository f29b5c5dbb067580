"""OpenCLIP's ViTs, those of OpenAI's CLIP among them. The networks are OpenCLIP's own; only the road is ours."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbones import register
from clearclip.backbones.base import Backbone, Block, resize_position_embedding
from clearclip.errors import UserError
from clearclip.fused import fused
from clearclip.products import linear
from clearclip.state import load_state_dict
from clearclip.trunk import QKV
from clearclip.weights import COMMON, Checkpoint, find_checkpoint


class OpenCLIPBlock(Block):
    """OpenCLIP's ResidualAttentionBlock."""

    def __init__(self, module: Any):
        self.module = module
        self.heads = module.attn.num_heads

    def norm(self, tokens: Tensor) -> Tensor:
        return self.module.ln_1(tokens)

    def qkv(self, tokens: Tensor) -> QKV:
        attn = self.module.attn
        qkv = linear(self.norm(tokens), attn.in_proj_weight, attn.in_proj_bias)  # [B, T, 3·D]
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def parts(self, tokens: Tensor, letters: str) -> list[Tensor]:
        if len(letters) == 3:
            return super().parts(tokens, letters)
        attn, normed, width = self.module.attn, self.norm(tokens), tokens.shape[-1]
        firsts = ["qkv".index(letter) * width for letter in letters]
        parts = (linear(normed, attn.in_proj_weight, attn.in_proj_bias, slice(i, i + width)) for i in firsts)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def merge_heads(self, mixed: Tensor) -> Tensor:
        return self.module.attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def layer_scale(self, update: Tensor) -> Tensor:
        return self.module.ls_1(update)

    def mlp(self, tokens: Tensor) -> Tensor:
        module = self.module
        hidden = module.mlp.c_fc(module.ln_2(tokens))
        if type(module.mlp.gelu).__name__ != "QuickGELU":
            hidden = module.mlp.gelu(hidden)
        elif not torch.compiler.is_compiling() and (kernel := fused("quick_gelu_", hidden.device)):
            hidden = kernel(hidden)
        else:
            # x · sigmoid(1.702 x) is silu(1.702 x) / 1.702; OpenCLIP's allocates the hidden width three times.
            hidden = F.silu(hidden.mul_(1.702), inplace=True).div_(1.702)
        return module.ls_2(module.mlp.c_proj(hidden))


class OpenCLIPBackbone(Backbone):
    """A ViT of OpenCLIP's own, which all have a class token.

    Of models that average their patches (CLIPA) it is a prefix like any other: features are those of the patches.
    """

    names = COMMON
    prefix_tokens = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        position: str | None = None,
        compile: bool = False,
    ):
        super().__init__(checkpoint, device, dtype, position, compile)
        self.visual: Any = None
        self.open_up(self.cast(self.load_image_tower()))

    def open_up(self, tower: Any) -> None:
        """Set `visual`, the image tower, and what is read from it."""
        self.visual = tower
        self.blocks = [OpenCLIPBlock(module) for module in tower.transformer.resblocks]
        self.patch_size = tower.patch_size[0]
        self.width = tower.class_embedding.shape[0]
        self.dim = tower.output_dim

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        return find_checkpoint(name, pretrained, plain_vit)

    def load_image_tower(self) -> nn.Module:
        """The image tower with the checkpoint's weights, float32 on the CPU."""
        tower = skeleton(self.checkpoint.config, {}).visual
        return fill(tower, load_state_dict(self.checkpoint.path, "visual."), self.checkpoint)

    def load_text_tower(self) -> nn.Module:
        return _text_tower(self.checkpoint)

    def embed(self, images: Tensor, position: str | None = None) -> Tensor:
        x = self.visual.conv1(images.to(self.device, self.dtype))  # [B, D, h, w]
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # [B, N, D]
        class_token = self.visual.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._position_embedding(grid, position or self.position)
        return self.visual.ln_pre(x)  # [B, 1+N, D]

    def _position_embedding(self, grid: tuple[int, int], mode: str) -> Tensor:
        """Resampled in float32 on the CPU whatever the device: the numbers are then the same."""

        def resize() -> Tensor:
            embedding, prefix = self.position_table()
            resized = resize_position_embedding(embedding.float().cpu(), grid, mode, prefix)
            return resized.to(self.device, self.dtype)

        return self.constants.get(("position", grid, mode), resize)

    def position_table(self) -> tuple[Tensor, int]:
        """The position embedding as it was learnt, [P+G·G, D], and its P."""
        return self.visual.positional_embedding, 1

    def project(self, tokens: Tensor) -> Tensor:
        return self.head(self.final_norm(tokens))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.visual.ln_post(tokens)

    def head(self, states: Tensor) -> Tensor:
        return states @ self.visual.proj

    def load_tokenizer(self) -> Callable[[list[str]], Tensor]:
        import open_clip

        return open_clip.get_tokenizer(self.checkpoint.model)

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """How many columns [P] of token ids [P, L] bear on the embeddings; `encode_text` can do without the rest."""
        if can_trim(self.text_tower):
            return tokens.argmax(dim=1) + 1  # up to the end-of-text token, whose id is the largest
        return torch.full((len(tokens),), tokens.shape[1])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L], cut to any L that keeps each end-of-text token, to embeddings [P, dim], not normalised.

        The transformer is causal: a token's state depends on what stands before it alone. So columns after the
        end-of-text token are not needed, and prompts that begin alike share their states up to where they part.
        Towers that pool otherwise get their full context back.
        """
        tower = self.text_tower
        if not can_trim(tower):
            full = F.pad(tokens, (0, tower.context_length - tokens.shape[1]), value=getattr(tower, "pad_id", 0))
            return tower(full.to(self.device))
        end = tokens.argmax(dim=1)  # the end-of-text id is the largest
        state, first = (index.to(self.device) for index in shared_prefixes(tokens, end))
        tokens, end = tokens.to(self.device), end.to(self.device)
        x = tower.token_embedding(tokens) + tower.positional_embedding[: tokens.shape[1]]  # [P, L, D]
        x = x.flatten(0, 1)[first]  # [S, D], one row a state
        for block in map(OpenCLIPBlock, tower.transformer.resblocks):
            # Attention alone sees whole prompts: [P, heads, L, d], and [S, heads, d] again after it.
            q, k, v = (part[0][:, state].transpose(0, 1) for part in block.qkv(x[None]))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed = mixed.transpose(1, 2).flatten(0, 1)[first]
            x = x + block.attention_output(mixed.transpose(0, 1)[None])[0]
            x = x + block.mlp(x)
        x = tower.ln_final(x[state[torch.arange(len(end)), end]])
        projection = tower.text_projection
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection  # [P, dim]


def plain_vit(arch: str, config: dict[str, Any]) -> bool:
    """Whether a model's image tower is a ViT of OpenCLIP's own; of timm's towers another family knows.

    Raises UserError for a network that is none of these.
    """
    vision = config["vision_cfg"]
    altered = ("attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner")
    if vision.get("timm_model_name"):
        return False
    if (
        not isinstance(vision.get("layers", 12), int)  # a ResNet lists its stages
        or vision.get("pool_type", "tok") not in ("tok", "avg")
        or any(vision.get(key) for key in (*altered, "scale_attn", "scale_fc"))
    ):
        raise UserError(
            f"backbone {arch} is not supported: it is a ResNet, or pools by attention, or alters attention; use a ViT, "
            "such as ViT-B-16"
        )
    return True


def shared_prefixes(tokens: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct beginnings of prompts [P, L] that end at the columns `end` [P].

    Returns which of the S beginnings stops at each token, [P, L], and where each is first found, [S], an index into
    the flattened tokens. What follows an end counts as one beginning per column.
    """
    beginning, found, count = torch.zeros_like(end), [], 0
    for column, ids in enumerate(tokens.T):
        key = torch.where(column <= end, beginning * (int(tokens.max()) + 1) + ids, -1)
        distinct, beginning = key.unique(return_inverse=True)
        found.append(beginning + count)
        count += len(distinct)
    state = torch.stack(found, dim=1)  # [P, L]
    position = torch.arange(state.numel(), device=state.device)
    return state, position.new_empty(count).scatter_reduce_(0, state.flatten(), position, "amin", include_self=False)


def skeleton(config: dict[str, Any], text_config: dict[str, Any]) -> Any:
    """OpenCLIP's network without storage: parameters get theirs from a checkpoint."""
    import open_clip

    with torch.device("meta"):
        return open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=text_config,
            quick_gelu=config.get("quick_gelu", False),
        )


def fill(tower: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint) -> nn.Module:
    """Give a tower without storage its parameters, in float32. Raises UserError where they do not fit."""
    try:
        tower.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{checkpoint.path} does not hold a {checkpoint.arch}: {reason}") from None
    quick = checkpoint.config.get("quick_gelu", False)
    for name, module in tower.named_modules():
        if name.endswith("mlp.gelu") and (type(module).__name__ == "QuickGELU") != quick:
            raise AssertionError(f"{name} computes {type(module).__name__}, the weights want quick_gelu={quick}")
    return tower


def _text_tower(checkpoint: Checkpoint) -> nn.Module:
    state = load_state_dict(checkpoint.path)
    own = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    if not own:  # OpenCLIP's `CLIP` keeps its text tower's parameters at the top level
        other = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
        own = {key: value for key, value in state.items() if not key.startswith(other)}
    if not own:
        raise UserError(f"{checkpoint.path} holds no text tower; give text embeddings from a file (--text-embeddings)")
    tower: Any = skeleton(checkpoint.config, checkpoint.config["text_cfg"]).text
    own.pop("attn_mask", None)
    fill(tower, own, checkpoint)
    if getattr(tower, "attn_mask", None) is not None:  # a buffer that no checkpoint holds
        tower.attn_mask = torch.full(tower.attn_mask.shape, float("-inf")).triu_(1)
    return tower


def can_trim(tower: nn.Module) -> bool:
    """Whether a text tower reads only its end-of-text token, through a causal mask, in plain residual blocks."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return (
        all(type(block).__name__ == "ResidualAttentionBlock" for block in blocks)
        and getattr(tower, "pool_type", "") == "argmax"
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and tower.text_projection is not None
    )


register("OpenCLIP", OpenCLIPBackbone, "ViTs with a class token", "Radford et al., ICML 2021; Ilharco et al., 2021")
