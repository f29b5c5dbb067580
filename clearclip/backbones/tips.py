"""TIPSv2 (CVPR 2026, arXiv 2604.12012): a ViT whose patches were trained to match text, and its own text tower.

The image tower is timm's. The text tower is small enough to stand here whole, in OpenCLIP's residual blocks, under the
names that the published checkpoints have.

Patches are read after the final norm, without a projection. The authors' own reading ("values trick") keeps the last
block's residual and feed-forward network, and every patch attends to itself alone:
`ClearCLIP:attention=identity,residual=1,feed_forward=True`; their nine prompt templates are the set `tips9`.

Not run with real weights: tested on small random networks against transformers' own model.
"""

import contextlib
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbones import register
from clearclip.backbones.openclip import OpenCLIPBlock, fill
from clearclip.backbones.timm import TimmBackbone
from clearclip.errors import UserError
from clearclip.state import load_state_dict
from clearclip.weights import Checkpoint, hub_file, local_copy, named_weights, not_downloaded

REPOSITORIES = {
    "TIPSv2-B-14": "google/tipsv2-b14",
    "TIPSv2-L-14": "google/tipsv2-l14",
    "TIPSv2-SO400M-14": "google/tipsv2-so400m14",
    "TIPSv2-g-14": "google/tipsv2-g14",
}
NETWORKS = {  # timm's names of the image towers
    "TIPSv2-B-14": "vit_base_patch14_reg1_tipsv2",
    "TIPSv2-L-14": "vit_large_patch14_reg1_tipsv2",
    "TIPSv2-SO400M-14": "vit_so400m_patch14_reg1_tipsv2",
    "TIPSv2-g-14": "vit_giant_patch14_reg1_tipsv2",
}
FILES = ("model.safetensors",)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # the second is read by sentencepiece
MAX_TOKENS = 64  # of a prompt; longer ones lose their end
PAD = 0  # the id that fills up shorter ones


class TextTower(nn.Module):
    """TIPSv2's text tower: every token sees all others, and their mean stands for the prompt.

    Args:
        state: its tensors, whose shapes say how large it is.
        heads: of each block.
        scaled: whether token embeddings are multiplied by √D before positions are added.
    """

    def __init__(self, state: dict[str, Tensor], heads: int, scaled: bool = True):
        from open_clip.transformer import Transformer

        super().__init__()
        words, width = state["token_embedding.weight"].shape
        blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
        ratio = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width
        self.token_embedding = nn.Embedding(words, width)
        self.transformer = Transformer(width, len(blocks), heads, ratio, act_layer=nn.ReLU)
        self.ln_final = nn.LayerNorm(width)
        self.scale = width**0.5 if scaled else 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L], `PAD` after a prompt's end, to embeddings [P, D]."""
        seen = tokens != PAD  # [P, L]
        x = self.scale * self.token_embedding(tokens)  # [P, L, D]
        x = x + sinusoids(*x.shape[1:]).to(x)
        for block in map(OpenCLIPBlock, self.transformer.resblocks):
            mixed = F.scaled_dot_product_attention(*block.qkv(x), attn_mask=seen[:, None, None])
            x = x + block.attention_output(mixed)
            x = x + block.mlp(x)
        x = self.ln_final(x) * seen[..., None]
        return x.sum(dim=1) / seen.sum(dim=1, keepdim=True).clamp(min=1)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions [L, D]: sines and then cosines of D/2 wavelengths, from 2π to 2π · 10⁴ tokens."""
    frequencies = torch.logspace(0, -4, width // 2)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TipsBackbone(TimmBackbone):
    """TIPSv2. Images are taken in 0..1 as they are, without mean and standard deviation.

    The position embedding is resampled bilinearly and with antialiasing, as transformers has it.
    """

    names = dict.fromkeys(REPOSITORIES, ("google",))
    position = "antialias-bilinear"

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        """The checkpoint of a name of `REPOSITORIES`; `pretrained` may be its file, or a folder with it.

        Files are the published ones, or timm's, which have no text tower. "openai" and "auto", which every other
        backbone starts from, mean "google".
        """
        arch, _, tag = name.partition(":")
        if arch not in REPOSITORIES:
            return None
        repository = REPOSITORIES[arch]
        tag, path = named_weights(arch, tag or pretrained, {"google": repository}, *FILES)
        if tag == "google" and not local_copy(f"{arch}.google"):
            with contextlib.suppress(Exception):  # it may be missing; the library raises whatever its transport raised
                hub_file(repository, "config.json")  # which then lies beside the weights
        return Checkpoint(arch, tag, repository, path, text_settings(path.parent), (0.0,) * 3, (1.0,) * 3)

    def load_image_tower(self) -> nn.Module:
        """The image tower with the checkpoint's weights, float32 on the CPU."""
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        network, path = NETWORKS[self.name], self.checkpoint.path
        if not timm.is_model(network):
            raise UserError(f"this timm, {timm.__version__}, has no {network}: pip install -U timm")
        state = load_state_dict(path, "vision_encoder.") or load_state_dict(path)
        # transformers, saving what it read, calls the image tower's layers as the text tower's are called.
        state = {key.replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2"): state[key] for key in state}
        with torch.device("meta"):
            tower: Any = timm.create_model(network, num_classes=0, dynamic_img_size=True)
        self.rope = None
        return fill(tower, checkpoint_filter_fn(state, tower), self.checkpoint)

    def load_text_tower(self) -> nn.Module:
        path, config = self.checkpoint.path, self.checkpoint.config
        state = load_state_dict(path, "text_encoder.")
        if not state:
            raise UserError(f"{path} holds no text tower; give text embeddings from a file (--text-embeddings)")
        heads = config.get("num_attention_heads", self.blocks[0].heads)  # of the published ones the image tower's
        try:
            with torch.device("meta"):
                tower = TextTower(state, heads, config.get("scale_sqrt_depth", True))
        except (KeyError, ValueError, AssertionError) as error:
            raise UserError(f"the text tower in {path} is none of TIPSv2's ({error}); fetch it again") from error
        return fill(tower, state, self.checkpoint)

    def load_tokenizer(self) -> Callable[[list[str]], Tensor]:
        """TIPSv2's tokenizer: a list of P prompts to token ids [P, L], padded to the longest, at most 64."""
        file = find_tokenizer(self.checkpoint)
        missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if file.name == "tokenizer.model" and missing:
            raise UserError(f"{file} is read by other packages: pip install sentencepiece protobuf")
        try:
            from transformers import Tipsv2Tokenizer
        except ImportError as error:
            raise UserError("this transformers has no tokenizer of TIPSv2: pip install -U transformers") from error
        return functools.partial(_tokenize, Tipsv2Tokenizer.from_pretrained(file.parent, local_files_only=True))

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """Columns [P] of token ids [P, L] up to the padding, which attention does not see."""
        return (tokens != PAD).sum(dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_tower(tokens.to(self.device))


def text_settings(folder: Path) -> dict[str, Any]:
    """What the config.json of a folder, if it has one, says of the text tower and its tensors do not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        config = json.loads((folder / "config.json").read_text())["text_config"]
        return {key: config[key] for key in ("num_attention_heads", "scale_sqrt_depth") if key in config}
    return {}


def find_tokenizer(checkpoint: Checkpoint) -> Path:
    """The tokenizer's file beside a checkpoint, or else the hub's. Raises UserError where there is none."""
    beside = (checkpoint.path.parent / name for name in TOKENIZERS)
    if file := next(filter(Path.is_file, beside), None):
        return file
    try:
        return hub_file(checkpoint.model, *TOKENIZERS)
    except Exception as error:  # the library raises whatever its transport raised
        how = f"put its tokenizer.model or tokenizer.json beside {checkpoint.path}"
        raise not_downloaded(f"the tokenizer of {checkpoint.arch} ({checkpoint.model})", how) from error


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


def _tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    options = dict(padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return tokenizer(prompts, **options)["input_ids"]


register(
    "TIPSv2", TipsBackbone, "ViTs whose patches were trained to match text, with their own text tower",
    "CVPR 2026, arXiv 2604.12012",
)  # fmt: skip
