"""What every backbone is: an image–text ViT opened up into embedding, blocks, projection and text encoder."""

import functools
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.errors import UserError, one_line
from clearclip.products import attend, quicken
from clearclip.state import content_hash, load_state_dict, overflowing
from clearclip.tensors import TensorCache
from clearclip.trunk import QKV, Trunk
from clearclip.weights import Checkpoint

POSITIONS = ("size", "antialias", "bilinear", "antialias-bilinear")  # resampling of its embedding, besides "offset"
CONSTANT_BYTES = 256 << 20  # of position embeddings and neighbourhoods


class Block:
    """A residual block in the pieces that methods re-wire.

    As trained, x becomes y = x + `attention_output`(softmax(q kᵀ / √d) v), then y + `mlp`(y).
    """

    heads: int

    def at(self, grid: tuple[int, int]) -> "Block":
        """The block for tokens of a grid of patches: itself, but for one that turns queries and keys by their place."""
        return self

    def norm(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] as its attention sees them."""
        raise NotImplementedError

    def qkv(self, tokens: Tensor) -> QKV:
        """Queries, keys and values, each [B, heads, T, d], for the tokens [B, T, D] that enter."""
        raise NotImplementedError

    def parts(self, tokens: Tensor, letters: str) -> list[Tensor]:
        """Those of `qkv` that `letters` name, such as "qv", each [B, heads, T, d], and no more where a block can."""
        named = dict(zip("qkv", self.qkv(tokens)))
        return [named[letter] for letter in letters]

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Mixed values [B, heads, T, d] through the output projection: [B, T, D], the skip not included."""
        return self.layer_scale(self.merge_heads(mixed))

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """The same before any LayerScale. A block that has none need not write this."""
        return self.attention_output(mixed)

    def layer_scale(self, update: Tensor) -> Tensor:
        """The LayerScale [..., D] of the attention output, if there is one."""
        return update

    def mlp(self, tokens: Tensor) -> Tensor:
        """The feed-forward network with the norm before it, [..., D] to the same, the skip not included."""
        raise NotImplementedError

    def __call__(self, tokens: Tensor) -> Tensor:
        """The block as trained, [B, T, D] to the same."""
        tokens = tokens + self.attention_output(attend(*self.qkv(tokens)))
        return tokens + self.mlp(tokens)


class Backbone(nn.Module):
    """The image tower of an image–text model, and its text tower when that is first asked for.

    A family of models is a subclass in a file of its own, see `clearclip.backbones`.

    Attributes:
        name, tag: what results call the architecture and its weights.
        patch_size: in pixels.
        width: D, of tokens.
        dim: of the joint space.
        prefix_tokens: P, the class and register tokens that come before the patches; 0 is allowed.
        blocks: the residual blocks.
        mean, std: of RGB in 0..1, what images are normalised by.
        device, dtype: where it lies, what it computes in.
        position: how the position embedding is resampled, see `resize_position_embedding`.
        constants: tensors that methods make once for a grid, see `Trunk.constant`.
    """

    names: ClassVar[Mapping[str, Sequence[str]]] = {}  # common architectures of the family, each with its weights' tags
    position: str = "offset"
    patch_size: int
    width: int
    dim: int
    prefix_tokens: int
    blocks: Sequence[Block]

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
        self.compiled = compile
        self.constants = TensorCache(CONSTANT_BYTES)

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        """The checkpoint of an architecture and weights of this family; None where the name is another family's.

        Raises UserError for weights that cannot be found.
        """
        raise NotImplementedError

    def embed(self, images: Tensor, position: str | None = None) -> Tensor:
        """Normalised images [B, 3, H, W], H and W multiples of the patch, to the tokens [B, P+N, D] of block 0.

        `position` takes the place of the backbone's own mode of resampling the position embedding.
        """
        raise NotImplementedError

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] of the last block's output to the joint space [..., dim]."""
        raise NotImplementedError

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The first part of `project`, [..., D] to the same: the network's last norm."""
        return tokens

    def head(self, states: Tensor) -> Tensor:
        """The rest of `project`: normed tokens [..., D] to the joint space [..., dim]."""
        return self.project(states)

    def load_text_tower(self) -> nn.Module:
        """The text tower with the checkpoint's weights, float32 on the CPU."""
        raise NotImplementedError

    def load_tokenizer(self) -> Callable[[list[str]], Tensor]:
        """The model's own tokenizer: a list of P prompts to token ids [P, L]."""
        raise NotImplementedError

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """How many columns [P] of token ids [P, L] bear on the embeddings; `encode_text` can do without the rest."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L] to embeddings [P, dim], not normalised."""
        raise NotImplementedError

    def trunk(self, images: Tensor, keep: Collection[int] = ()) -> Trunk:
        """The way of normalised images [B, 3, H, W] through the blocks; nothing is computed yet."""
        return Trunk(self, images, keep=keep)

    def run(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Block `index` as trained, [B, T, D] to the same; compiled where `load_backbone` was asked to."""
        block = self.blocks[index].at(grid)
        return self._compiled_block(block, tokens) if self.compiled else block(tokens)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images [B, 3, H, W]."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    @property
    def text_stand_in(self) -> bool:
        """Whether names are embedded by the text student (`clearclip.offline`), for want of a text tower."""
        return self.checkpoint.text_stand_in

    @functools.cached_property
    def logit_scale(self) -> float | None:
        """What the model multiplied cosines by when its training ended; None where its file does not say."""
        scale = self._logit_constants.get("scale")
        return None if scale is None else scale.double().exp().item()

    @functools.cached_property
    def logit_bias(self) -> float | None:
        """What it added then, in models trained by a sigmoid of each pair (SigLIP); None in others.

        It is the same for all names, so that no softmax over names sees it.
        """
        bias = self._logit_constants.get("bias")
        return None if bias is None else bias.double().item()

    @functools.cached_property
    def _logit_constants(self) -> dict[str, Tensor]:
        return load_state_dict(self.checkpoint.path, "logit_")

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the weights file."""
        return content_hash(Path(self.checkpoint.path))

    def cast(self, tower: Any) -> Any:
        """A tower on the backbone's device, in its precision, for inference.

        Raises UserError for a weight that is too large for the precision: every score would be NaN.
        """
        name = None if self.dtype == torch.float32 else overflowing(dict(tower.named_parameters()), self.dtype)
        if name:
            raise UserError(
                f"{self.checkpoint.path}: {name} has numbers too large for {str(self.dtype).removeprefix('torch.')}; "
                "use --precision fp32 or bf16"
            )
        return quicken(tower.to(self.device, self.dtype).eval().requires_grad_(False))

    @functools.cached_property
    def text_tower(self) -> Any:
        """The text tower, loaded when first used. Raises UserError where the checkpoint has none."""
        try:
            return self.cast(self.load_text_tower())
        except OSError as error:  # a text tower of transformers looks for its configuration on the hub
            raise UserError(
                f"the text tower of {self.name} cannot be built ({' '.join(str(error).split())[:200]}); fill the hub's "
                "cache, or give text embeddings from a file (--text-embeddings)"
            ) from error

    @functools.cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """`load_tokenizer()`, once. Raises UserError where it would have to be downloaded and cannot be."""
        try:
            return self.load_tokenizer()
        except OSError as error:
            raise UserError(
                f"the tokenizer of {self.name} could not be downloaded ({one_line(error)[:200]}); fill the hub's cache "
                "on a machine that reaches it, or give text embeddings from a file (--text-embeddings)"
            ) from error

    @functools.cached_property
    def _compiled_block(self) -> Callable[[Block, Tensor], Tensor]:
        # One function for all blocks: they compile once. A second batch size or grid makes that size a variable.
        return torch.compile(lambda block, tokens: block(tokens))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded or compiled when first used, of which not all can be copied."""
        lazy = ("_compiled_block", "tokenizer")
        return {key: value for key, value in self.__dict__.items() if key not in lazy}


def check_compiler() -> None:
    """Raise UserError where torch.compile finds no compiler to work with."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise UserError("compile=True needs a C++ compiler and finds none; install g++ or leave compile off")


def resize_position_embedding(
    embedding: Tensor, grid: tuple[int, int], mode: str = "offset", prefix: int = 1
) -> Tensor:
    """Resampling of a position embedding [P+G·G, D], P = `prefix`, to [P+h·w, D].

    It is bicubic where the mode does not say bilinear. `offset` passes the scale (h + 0.1) / G to the sampler, as the
    published pipelines do: the sampling points then lie slightly off those of the plain `size` mode, and their numbers
    depend on it. `antialias` is `size` with torch's antialiasing, whose cubic kernel is another one even where the grid
    grows; `bilinear` and `antialias-bilinear` are these two with a linear kernel.
    """
    first, patches = embedding[:prefix], embedding[prefix:]
    side = round(patches.shape[0] ** 0.5)
    if grid == (side, side):
        return embedding
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, G, G]
    if mode == "offset":
        scale = [(length + 0.1) / side for length in grid]
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    elif mode in POSITIONS:
        kernel = "bilinear" if mode.endswith("bilinear") else "bicubic"
        patches = F.interpolate(patches, size=grid, mode=kernel, antialias=mode.startswith("antialias"))
    else:
        raise ValueError(f"unknown position embedding mode {mode!r}; use offset, {', '.join(POSITIONS)}")
    return torch.cat([first, patches.flatten(2)[0].T])  # [P + h·w, D]
