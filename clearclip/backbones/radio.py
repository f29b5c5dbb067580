"""C-RADIOv3 (Heinrich et al., CVPR 2025, arXiv 2412.07679) and C-RADIOv4 (arXiv 2601.17237) as backbones.

They are ViTs that SigLIP2, among others, taught. The versions differ in their sizes, in how many tokens come before the
patches and in the other teachers: SAM taught the third, SAM 3 the fourth, which so has nothing for `+SAM:encoder=own`.

The head for SigLIP2's summary reads patches as well, and SigLIP2's text tower names what it sees (RADSeg, arXiv
2511.19704, with the third version). The weights (NVIDIA Open Model Licence) are read as data: no code of theirs runs.

Not run with real weights. The names of the ViT's tensors are those that timm and transformers read; those of the heads
are as RADIO's public checkpoints are described.
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from clearclip.backbones import register
from clearclip.backbones.base import Backbone, resize_position_embedding
from clearclip.backbones.timm import TimmBlock
from clearclip.errors import UserError
from clearclip.state import load_state_dict
from clearclip.weights import Checkpoint, hub_answers, named_weights

VERSIONS = {"3": ("B", "L", "H", "g"), "4": ("SO400M", "H")}
REPOSITORIES = {
    f"C-RADIOv{version}-{size}": f"nvidia/C-RADIOv{version}-{size}"
    for version, sizes in VERSIONS.items()
    for size in sizes
}
HEADS = {1152: 16, 1280: 16}  # by width; of the other sizes each head is 64 wide
TEXT_MODEL = "google/siglip2-giant-opt-patch16-384"
TEXT_FOLDER = "siglip2-text"  # beside the weights
MAX_TOKENS = 64  # of a prompt; shorter ones are padded, as SigLIP2 was trained
PARTS = ("embedder.", "patch_normalizer.", "blocks.", "norm.", "feature_normalizer.")
TEACHERS = {"text": "siglip2[^.]*", "sam": "sam"}  # whose heads are read
HEAD_KINDS = {"text": ("_heads", "head_mlp"), "sam": ("_feature_projections", "feat_mlp")}


class ResidualHead(nn.Module):
    """What turns the backbone's features into a teacher's: residual layers between two linear ones.

    Depth and widths are those of its tensors.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        hidden, width = state["fc1.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        out = state["final.2.weight"].shape[0]
        normed = any(name.startswith("pre_norm.") for name in state)
        self.pre_norm = nn.Sequential(nn.LayerNorm(width), nn.GELU()) if normed else nn.Identity()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(_activated(hidden, hidden) for _ in range(depth))
        self.final = _activated(hidden, out)
        self.width = out

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] to [..., width]."""
        hidden = self.fc1(self.pre_norm(states))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.final(hidden)


class PlainHead(nn.Module):
    """The heads of earlier checkpoints: linear layers with a norm and a ReLU between."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        hidden, width = state["fc1.weight"].shape
        depth = sum(name.startswith("inner.") and name.endswith("weight") for name in state) // 2
        self.width = state["fc2.weight"].shape[0]
        self.fc1, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        layers = [(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()) for _ in range(depth)]
        self.inner = nn.Sequential(*(layer for some in layers for layer in some))
        self.fc2 = nn.Linear(hidden, self.width)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] to [..., width]."""
        return self.fc2(self.inner(self.norm(self.fc1(states)).relu()))


def _activated(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, out))


class FeatureNormalizer(nn.Module):
    """Features [..., D] moved by a mean and turned by a matrix."""

    def __init__(self, width: int):
        super().__init__()
        self.mean, self.tx = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width, width))

    def forward(self, states: Tensor) -> Tensor:
        return (states - self.mean) @ self.tx.T


class ImageTower(nn.Module):
    """RADIO's ViT with the two heads that are read, as large as its tensors say, under names near RADIO's own."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        width, pixels = state["embedder.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        heads = HEADS.get(width, width // 64)
        ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
        norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)
        self.patch_size, self.width = math.isqrt(pixels // 3), width
        self.embedder = nn.Linear(pixels, width, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(state["pos_embed"].shape))  # [1, G·G, D]
        self.cls_token = nn.Parameter(torch.empty(state["cls_token"].shape))  # [P, D]
        self.patch_normalizer = nn.LayerNorm(width) if "patch_normalizer.weight" in state else nn.Identity()
        scale = 1.0 if "blocks.0.ls1.gamma" in state else None
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, qkv_bias=True, init_values=scale, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width) if "norm.weight" in state else nn.Identity()
        turned = "feature_normalizer.tx" in state
        self.feature_normalizer = FeatureNormalizer(width) if turned else nn.Identity()
        self.text_head = _head(state, "text_head.")
        self.sam_head = _head(state, "sam_head.") if any(name.startswith("sam_head.") for name in state) else None


def _head(state: dict[str, Tensor], prefix: str) -> Any:
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return ResidualHead(own) if "final.2.weight" in own else PlainHead(own)


class RadioBackbone(Backbone):
    """C-RADIOv3 or v4. Its patches are read by the head that SigLIP2's summary taught it: the joint space is SigLIP2's.

    Its position embedding is that of a large square, resampled bilinearly to the longer side and cut to the other.
    """

    names = dict.fromkeys(REPOSITORIES, ("nvidia",))
    position = "cut"

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        position: str | None = None,
        compile: bool = False,
    ):
        super().__init__(checkpoint, device, dtype, position, compile)
        visual = self.cast(load_image_tower(checkpoint))
        self.visual = visual
        self.blocks = [TimmBlock(module) for module in visual.blocks]
        self.patch_size, self.width, self.dim = visual.patch_size, visual.width, visual.text_head.width
        self.prefix_tokens = len(visual.cls_token)

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        """The checkpoint of a name of `REPOSITORIES`; `pretrained` may be its file, or a folder with it.

        "openai" and "auto", which every other backbone starts from, mean "nvidia".
        """
        arch, _, tag = name.partition(":")
        if arch not in REPOSITORIES:
            return None
        tag, path = named_weights(arch, tag or pretrained, {"nvidia": REPOSITORIES[arch]}, *files(arch))
        return _checkpoint(arch, tag, path)

    def embed(self, images: Tensor, position: str | None = None) -> Tensor:
        visual, patch = self.visual, self.patch_size
        weight = visual.embedder.weight.unflatten(1, (3, patch, patch))
        x = F.conv2d(images.to(self.device, self.dtype), weight, stride=patch)  # [B, D, h, w]
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2) + self._position_embedding(grid, position or self.position)
        return torch.cat([visual.cls_token.expand(len(x), -1, -1), visual.patch_normalizer(x)], dim=1)

    def _position_embedding(self, grid: tuple[int, int], mode: str) -> Tensor:
        """[h·w, D], resampled in float32 on the CPU whatever the device: the numbers are then the same."""

        def resize() -> Tensor:
            embedding = self.visual.pos_embed[0].float().cpu()
            if mode != "cut":
                return resize_position_embedding(embedding, grid, mode, prefix=0).to(self.device, self.dtype)
            return cut_position_embedding(embedding, grid).to(self.device, self.dtype)

        return self.constants.get(("position", grid, mode), resize)

    def project(self, tokens: Tensor) -> Tensor:
        return self.head(self.final_norm(tokens))

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.visual.feature_normalizer(self.visual.norm(tokens))

    def head(self, states: Tensor) -> Tensor:
        return self.visual.text_head(states)

    def sam_features(self, states: Tensor) -> Tensor:
        """Normed patches [..., D] as what SAM's neck reads, [..., D']. Raises UserError where no head makes that."""
        if self.visual.sam_head is None:
            raise UserError(f"{self.checkpoint.path} has no head for SAM; use the refinement SAM with its own encoder")
        return self.visual.sam_head(states)

    def load_text_tower(self) -> nn.Module:
        from transformers import SiglipTextModel

        source = self.checkpoint.config["text_model"]
        options: dict[str, Any] = {"local_files_only": _is_local(source), "use_safetensors": True}
        tower = _from_hub(self.checkpoint, lambda: SiglipTextModel.from_pretrained(source, **options)).float()
        if tower.config.projection_size != self.dim:
            raise UserError(
                f"the text model {source} has {tower.config.projection_size} dimensions, {self.name} {self.dim}; give "
                f"that of {TEXT_MODEL}"
            )
        return tower

    def load_tokenizer(self) -> Callable[[list[str]], Tensor]:
        """SigLIP2's tokenizer: a list of P prompts to token ids [P, 64]."""
        from transformers import AutoTokenizer

        source = self.checkpoint.config["text_model"]
        options = {"local_files_only": _is_local(source), "trust_remote_code": False}  # by default it asks
        load = functools.partial(AutoTokenizer.from_pretrained, source, **options)
        return functools.partial(_tokenize, _from_hub(self.checkpoint, load))

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """All columns [P]: SigLIP2 sees its padding, and the last token stands for the prompt."""
        return torch.full((len(tokens),), tokens.shape[1])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_tower(tokens.to(self.device)).pooler_output


def cut_position_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square position embedding [G·G, D] to [h·w, D]: bilinear to the longer side, then its upper left part."""
    side = math.isqrt(len(embedding))
    if grid == (side, side):
        return embedding
    square = embedding.T.unflatten(1, (side, side))  # [D, G, G]
    resized = F.interpolate(square[None], size=(max(grid), max(grid)), mode="bilinear")[0]
    return resized[:, : grid[0], : grid[1]].flatten(1).T


def canonical(prompt: str) -> str:
    """A prompt as SigLIP2 was trained on: lower case, no punctuation, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", prompt.replace("_", " ")).lower().split())


def _tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    options = dict(padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return tokenizer([canonical(prompt) for prompt in prompts], **options)["input_ids"]


def load_image_tower(checkpoint: Checkpoint) -> Any:
    """The image tower with a checkpoint's weights, float32 on the CPU. Raises UserError where they are not RADIO's."""
    path = checkpoint.path
    state = image_state(load_state_dict(path), path)
    try:
        with torch.device("meta"):
            tower = ImageTower(state)
        tower.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold a {checkpoint.arch}: {reason}") from None
    return tower


def image_state(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The parts of a checkpoint that are used, under the names of `ImageTower`.

    RADIO's own files and those in transformers' form are read; heads for other teachers are left out. Raises UserError
    where there is no head for SigLIP2.
    """
    state = {re.sub(r"^((radio_)?model\.|base_model\.)+", "", name): value for name, value in state.items()}
    own = {}
    for name, value in state.items():
        name = name.removeprefix("patch_generator.").replace("cls_token.token", "cls_token")
        name = name.replace(".grandma", ".gamma")  # as the hub's files call it: transformers once renamed a gamma
        if name in ("pos_embed", "cls_token") or name.startswith(PARTS):
            own[name] = value
    for kind, teacher in TEACHERS.items():
        own |= {f"{kind}_head.{name}": value for name, value in _teacher_head(state, kind, teacher).items()}
    if not any(name.startswith("text_head.") for name in own):
        raise UserError(
            f"{path} has no head that is named for SigLIP2, which reads text; use a checkpoint with the heads for its "
            "teachers (_heads.siglip2-g.… or adaptors.siglip2-g.head_mlp.…)"
        )
    return own


def _teacher_head(state: dict[str, Tensor], kind: str, teacher: str) -> dict[str, Tensor]:
    first, second = HEAD_KINDS[kind]
    pattern = re.compile(rf"(?:{first}\.{teacher}|adaptors\.{teacher}\.{second})\.(.+)")
    return {match[1]: value for name, value in state.items() if (match := pattern.fullmatch(name))}


def files(arch: str) -> tuple[str, str]:
    """What a repository calls its weights: NVIDIA's own form, which has the teachers' heads, and transformers'."""
    return f"{arch.lower().replace('radiov', 'radio_v')}_half.pth.tar", "model.safetensors"


def _checkpoint(arch: str, tag: str, path: Path) -> Checkpoint:
    folder = path.absolute().parent / TEXT_FOLDER
    text_model = str(folder) if folder.is_dir() else TEXT_MODEL
    return Checkpoint(arch, tag, REPOSITORIES[arch], path, {"text_model": text_model})


def _is_local(source: str) -> bool:
    return Path(source).is_dir() or not hub_answers()


def _from_hub(checkpoint: Checkpoint, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"SigLIP2's text model ({checkpoint.config['text_model']}) cannot be had "
            f"({' '.join(str(error).split())[:200]}); put it, as transformers saves it, into a folder {TEXT_FOLDER} "
            f"beside {checkpoint.path}, or give text embeddings from a file (--text-embeddings)"
        ) from error


register("RADIO", RadioBackbone, "C-RADIOv3 and v4, with the text tower of SigLIP2", "Heinrich et al., CVPR 2025")
