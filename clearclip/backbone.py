"""An image–text ViT opened up: token embedding, blocks, projection and text encoder, each on its own.

The networks are OpenCLIP's own, unmodified; only the road through them is ours.
"""

import functools
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.errors import UserError
from clearclip.weights import Checkpoint, content_hash, find_checkpoint, load_state_dict


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, then Apple's MPS, then the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device  # "cuda" with its number
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available here; use auto or cpu") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is float16 on CUDA and float32 elsewhere; scores are accumulated in float32 always."""
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    try:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    except KeyError:
        raise UserError(f"unknown precision {precision!r}; use auto, fp32, fp16 or bf16") from None


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int], mode: str = "offset") -> Tensor:
    """Resampling of a position embedding [1+G·G, D] (class token first) to [1+h·w, D], bicubic but for `bilinear`.

    `offset` passes the scale (h + 0.1) / G to the sampler, as the published pipelines do: the sampling points
    then lie slightly off those of the plain `size` mode, and their numbers depend on it. `antialias` is `size`
    with torch's antialiasing, whose cubic kernel is another one even where the grid grows.
    """
    class_token, patches = embedding[:1], embedding[1:]
    side = round(len(patches) ** 0.5)
    if grid == (side, side):
        return embedding
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, G, G]
    if mode == "offset":
        scale = tuple((length + 0.1) / side for length in grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    elif mode in ("size", "antialias"):
        patches = F.interpolate(patches, size=grid, mode="bicubic", antialias=mode == "antialias")
    elif mode == "bilinear":
        patches = F.interpolate(patches, size=grid, mode="bilinear")
    else:
        raise ValueError(f"unknown position embedding mode {mode!r}; use offset, size, antialias or bilinear")
    return torch.cat([class_token, patches.flatten(2)[0].T])  # [1 + h·w, D]


class Backbone(nn.Module):
    """The image tower of a CLIP-like model, and its text tower when that is first asked for.

    Attributes: `patch_size` (pixels), `heads`, `width` (D of the tokens), `dim` (D of the joint space),
    `blocks` (the residual blocks), `mean` and `std` (of RGB in 0..1), `name`, `tag`, `content_hash`; `run_block`, the
    function of that name, compiled where `compiled` says so.
    """

    position = "offset"  # how the position embedding is resampled, see resize_position_embedding

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        position: str | None = None,
        compile: bool = False,
    ):
        super().__init__()
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.position = position or self.position
        self.name, self.tag = checkpoint.arch, checkpoint.tag
        self.mean, self.std = checkpoint.mean, checkpoint.std
        self.visual = self.load_image_tower().to(device, dtype).eval().requires_grad_(False)
        self.blocks = self.visual.transformer.resblocks
        self.patch_size = self.visual.patch_size[0]
        self.width = self.visual.class_embedding.shape[0]
        self.heads = self.blocks[0].attn.num_heads
        self.dim = self.visual.output_dim
        # One function for all blocks: they compile once. A second batch size or grid makes that size a variable.
        self.run_block = torch.compile(run_block) if compile else run_block
        self.compiled = compile
        # Resampled once per grid, in float32 on the CPU whatever the device: the numbers are then the same.
        embedding = self.visual.positional_embedding.float().cpu()
        self._position_embedding = functools.lru_cache(maxsize=64)(
            lambda grid, mode: resize_position_embedding(embedding, grid, mode).to(device, dtype)
        )

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the weights file."""
        return content_hash(Path(self.checkpoint.path))

    def embed(self, images: Tensor, position: str | None = None) -> Tensor:
        """Normalised images [B, 3, H, W], H and W multiples of the patch, to tokens [B, 1+N, D] after ln_pre.

        `position` takes the place of the backbone's own mode of resampling the position embedding.
        """
        x = self.visual.conv1(images.to(self.device, self.dtype))  # [B, D, h, w]
        grid = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)  # [B, N, D]
        class_token = self.visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._position_embedding(grid, position or self.position)
        return self.visual.ln_pre(x)

    def trunk(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to the tokens [B, 1+N, D] that enter the last block."""
        tokens = self.embed(images)
        for block in self.blocks[:-1]:
            tokens = self.run_block(block, tokens)
        return tokens

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images [B, 3, H, W]."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] to the joint space [..., dim]: ln_post, then the projection."""
        return self.visual.ln_post(tokens) @ self.visual.proj

    @functools.cached_property
    def text_tower(self) -> nn.Module:
        """The text tower, loaded when first used. Raises UserError where the checkpoint has none."""
        try:
            return self.load_text_tower().to(self.device, self.dtype).eval().requires_grad_(False)
        except OSError as error:  # a text tower of transformers looks for its configuration on the hub
            raise UserError(
                f"the text tower of {self.name} cannot be built ({' '.join(str(error).split())[:200]}); fill the hub's "
                "cache, or give text embeddings from a file (--text-embeddings)"
            ) from error

    def load_image_tower(self) -> nn.Module:
        """OpenCLIP's image tower with the checkpoint's weights, float32 on the CPU."""
        return _image_tower(self.checkpoint)

    def load_text_tower(self) -> nn.Module:
        """OpenCLIP's text tower with the checkpoint's weights, float32 on the CPU."""
        return _text_tower(self.checkpoint)

    @functools.cached_property
    def tokenizer(self):
        """The model's own tokenizer: a list of P prompts to token ids [P, context length]."""
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
        for block in tower.transformer.resblocks:
            # Attention alone sees whole prompts: [P, heads, L, d], and [S, heads, d] again after it.
            q, k, v = (part[0][:, state].transpose(0, 1) for part in split_heads(block, x[None]))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed = mixed.transpose(1, 2).flatten(0, 1)[first]
            x = feed_forward(block, x + merge_heads(block, mixed.transpose(0, 1)[None])[0])
        x = tower.ln_final(x[state[torch.arange(len(end)), end]])
        projection = tower.text_projection
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection  # [P, dim]


def split_heads(block, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, 1+N, d] of a residual block for its input tokens [B, 1+N, D]."""
    attn = block.attn
    qkv = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias)  # [B, 1+N, 3·D]
    return qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(block, mixed: Tensor) -> Tensor:
    """Mixed values [B, heads, 1+N, d] through the block's output projection: [B, 1+N, D]."""
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


def run_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """A residual block as it was trained, [B, 1+N, D] to the same: `block(tokens)` to rounding, but faster.

    On a CPU the inference path of nn.MultiheadAttention stores the attention weights.
    """
    mixed = F.scaled_dot_product_attention(*split_heads(block, tokens))
    return feed_forward(block, tokens + merge_heads(block, mixed))


def feed_forward(block: nn.Module, tokens: Tensor) -> Tensor:
    """The second half of a residual block, its skip connection included: [..., D] to the same."""
    hidden = block.mlp.c_fc(block.ln_2(tokens))
    if type(block.mlp.gelu).__name__ == "QuickGELU":
        # x · sigmoid(1.702 x) is silu(1.702 x) / 1.702; OpenCLIP's allocates the hidden width three times.
        hidden = F.silu(hidden.mul_(1.702), inplace=True).div_(1.702)
    else:
        hidden = block.mlp.gelu(hidden)
    return tokens + block.ls_2(block.mlp.c_proj(hidden))


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


def _skeleton(config: dict, text_config: dict) -> nn.Module:
    """OpenCLIP's network without storage: parameters get theirs from a checkpoint."""
    import open_clip

    with torch.device("meta"):
        return open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=text_config,
            quick_gelu=config.get("quick_gelu", False),
        )


def fill(tower: nn.Module, state: dict, checkpoint: Checkpoint) -> nn.Module:
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


def _image_tower(checkpoint: Checkpoint) -> nn.Module:
    return fill(_skeleton(checkpoint.config, {}).visual, load_state_dict(checkpoint.path, "visual."), checkpoint)


def _text_tower(checkpoint: Checkpoint) -> nn.Module:
    state = load_state_dict(checkpoint.path)
    own = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    if not own:  # OpenCLIP's `CLIP` keeps its text tower's parameters at the top level
        other = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
        own = {key: value for key, value in state.items() if not key.startswith(other)}
    if not own:
        raise UserError(f"{checkpoint.path} holds no text tower; give text embeddings from a file (--text-embeddings)")
    tower = _skeleton(checkpoint.config, checkpoint.config["text_cfg"]).text
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


def load_backbone(
    name: str = "ViT-B-16",
    pretrained: str = "openai",
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    position: str | None = None,
) -> Backbone:
    """Load a backbone by architecture and weights, as `clearclip.weights.find_checkpoint` names them.

    `compile` runs the residual blocks through torch.compile: seconds at the first image, and no gain on a CPU.
    `position` is a mode of `resize_position_embedding`; by default the one of the model's published pipeline.
    Raises UserError for an unknown or unsupported architecture and for weights that cannot be had.
    """
    if compile not in (True, False):
        raise UserError(f"compile must be True or False, not {compile!r}")
    if compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise UserError("compile=True needs a C++ compiler and finds none; install g++ or leave compile off")
    chosen = choose_device(device)
    checkpoint = find_checkpoint(name, pretrained)
    kind = Backbone
    if checkpoint.config.get("model_type") == "blip":
        from clearclip.blip import BlipBackbone as kind  # transformers is slow to import
    return kind(checkpoint, chosen, choose_precision(precision, chosen), position, compile)
