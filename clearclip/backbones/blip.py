"""BLIP (Li et al., ICML 2022) as a backbone: the image and text encoders of its image–text retrieval models.

Its ViT differs from CLIP's in small things: the patch embedding has a bias, no layer norm precedes the blocks, and the
projection is a linear layer with a bias. Its blocks compute what OpenCLIP's do, so they become OpenCLIP's, and every
method finds what it looks for. The text encoder is transformers'.

Windows keep their size: the original code stretches those of small images to the full crop instead.
"""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clearclip.backbones import register
from clearclip.backbones.openclip import OpenCLIPBackbone, fill
from clearclip.errors import UserError
from clearclip.state import load_state_dict
from clearclip.weights import OPENAI_MEAN, OPENAI_STD, Checkpoint, hub_file, named_weights, weights_in

# The retrieval models, by the data they were tuned on; the first is the default.
BLIP = {
    "BLIP-B": {"coco": "Salesforce/blip-itm-base-coco", "flickr": "Salesforce/blip-itm-base-flickr"},
    "BLIP-L": {"coco": "Salesforce/blip-itm-large-coco", "flickr": "Salesforce/blip-itm-large-flickr"},
}
FILES = ("model.safetensors", "pytorch_model.bin")
MAX_TOKENS = 35  # of a prompt, as BLIP was trained; longer ones lose their end

# Names in the original checkpoints and in transformers', to those of OpenCLIP.
RENAMES = (
    (r"^(visual_encoder|vision_model)\.", ""),
    (r"^vision_proj\.", "proj."),
    (r"^(embeddings\.class_embedding|cls_token)$", "class_embedding"),
    (r"^(embeddings\.position_embedding|pos_embed)$", "positional_embedding"),
    (r"^(embeddings\.patch_embedding|patch_embed\.proj)\.", "conv1."),
    (r"^(encoder\.layers|blocks)\.", "transformer.resblocks."),
    (r"\.(self_attn|attn)\.qkv\.", ".attn.in_proj_"),
    (r"\.(self_attn\.projection|attn\.proj)\.", ".attn.out_proj."),
    (r"\.(layer_norm|norm)([12])\.", r".ln_\2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^(post_layernorm|norm)\.", "ln_post."),
)


class ImageTower(nn.Module):
    """BLIP's ViT under the names of OpenCLIP's, `proj` a linear layer."""

    def __init__(self, config: Any):
        from open_clip.transformer import Transformer
        from transformers.activations import ACT2FN

        super().__init__()
        vision = config.vision_config
        width, patch = vision.hidden_size, vision.patch_size
        norm = functools.partial(nn.LayerNorm, eps=vision.layer_norm_eps)
        self.patch_size, self.output_dim = (patch, patch), config.image_text_hidden_size
        self.conv1 = nn.Conv2d(3, width, patch, patch)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + (vision.image_size // patch) ** 2, width))
        self.ln_pre = nn.Identity()
        self.transformer = Transformer(
            width,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.intermediate_size / width,
            act_layer=lambda: ACT2FN[vision.hidden_act],
            norm_layer=norm,
        )
        self.ln_post = norm(width)
        self.proj = nn.Linear(width, self.output_dim)


class TextTower(nn.Module):
    """BLIP's text encoder without the cross-attention to an image, which only its matching head uses."""

    def __init__(self, config: Any):
        from transformers import BlipTextModel

        super().__init__()
        config.text_config.is_decoder = False  # a "decoder" is what has cross-attention
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.pad = config.text_config.pad_token_id

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L] to the projected class token [P, dim]."""
        hidden = self.text_encoder(tokens, attention_mask=(tokens != self.pad).long()).last_hidden_state
        return self.text_proj(hidden[:, 0])


class BlipBackbone(OpenCLIPBackbone):
    """A BLIP retrieval model behind the interface of `Backbone`.

    The position embedding is resampled to the size of the grid, without the offset of the CLIP pipelines, as the
    original code and transformers do.
    """

    names = {name: tuple(tags) for name, tags in BLIP.items()}  # noqa: RUF012
    position = "size"

    @classmethod
    def find(cls, name: str, pretrained: str) -> Checkpoint | None:
        """The checkpoint of "BLIP-B", "BLIP-L" or "local-dir:FOLDER" with what transformers saved.

        `pretrained` may be a tag, a weights file in transformers' form or the original's, or a folder that transformers
        saved; "openai" and "auto", which every other backbone starts from, mean "coco".
        """
        if name.startswith("local-dir:"):
            return _from_folder(Path(name.removeprefix("local-dir:")).expanduser())
        arch, _, tag = name.partition(":")
        return _from_name(arch, tag or pretrained) if arch in BLIP else None

    def load_image_tower(self) -> nn.Module:
        state = image_state(load_state_dict(self.checkpoint.path))
        return fill(_skeleton(ImageTower, self.checkpoint), state, self.checkpoint)

    def load_text_tower(self) -> nn.Module:
        state = {
            name: value
            for name, value in load_state_dict(self.checkpoint.path).items()
            if name.startswith(("text_encoder.", "text_proj.")) and not re.search(r"crossattention|position_ids", name)
        }
        tower: Any = fill(_skeleton(TextTower, self.checkpoint), state, self.checkpoint)
        embeddings = tower.text_encoder.embeddings
        embeddings.position_ids = torch.arange(len(embeddings.position_embeddings.weight))[None]  # no checkpoint has it
        return tower

    def head(self, states: Tensor) -> Tensor:
        return self.visual.proj(states)

    def load_tokenizer(self) -> Callable[[list[str]], Tensor]:
        """BERT's tokenizer: a list of P prompts to token ids [P, L], padded to the longest, at most 35."""
        from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # an alias since 5.0, found lazily

        return functools.partial(_tokenize, BertTokenizerFast.from_pretrained(_find_tokenizer(self.checkpoint)))

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """Columns [P] of token ids [P, L] up to the padding, which attention does not see."""
        return (tokens != self.text_tower.pad).sum(dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L], padded to any L, to embeddings [P, dim], not normalised."""
        return self.text_tower(tokens.to(self.device))


def _tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    options = dict(padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return tokenizer(prompts, **options)["input_ids"]


def _skeleton(tower: Callable[[Any], nn.Module], checkpoint: Checkpoint) -> Any:
    from transformers import BlipConfig

    try:
        with torch.device("meta"):
            return tower(BlipConfig.from_dict(checkpoint.config))
    except Exception as error:  # what a wrong config raises depends on the version of transformers
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the config.json beside {checkpoint.path} does not describe a BLIP model: {reason}") from error


def image_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a retrieval checkpoint, the original's or transformers', under OpenCLIP's names.

    The text encoder, the matching head, momentum copies and queues are left out.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith(("visual_encoder.", "vision_model.", "vision_proj.")):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            if name == "class_embedding":
                value = value.flatten()  # [1, 1, D] to [D]
            if name == "positional_embedding":
                value = value.squeeze(0)  # [1, 1+N, D] to [1+N, D]
            renamed[name] = value
    return renamed


def _config(arch: str) -> dict[str, Any]:
    width, layers, heads = {"BLIP-B": (768, 12, 12), "BLIP-L": (1024, 24, 16)}[arch]
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision |= {"intermediate_size": 4 * width, "image_size": 384, "patch_size": 16}
    # As BLIP was trained: transformers' defaults are an epsilon of 1e-5 and 8 text heads.
    return {
        "model_type": "blip",
        "vision_config": vision | {"layer_norm_eps": 1e-6},
        "text_config": {"num_attention_heads": 12},
        "image_text_hidden_size": 256,
    }


def _from_name(arch: str, pretrained: str) -> Checkpoint:
    original = f"model_{'base' if arch == 'BLIP-B' else 'large'}_retrieval_coco.pth"
    how = f"give the path of a copy, or of an original checkpoint such as {original}, as --pretrained"
    tag, path = named_weights(arch, pretrained, BLIP[arch], *FILES, how=how)
    repository = BLIP[arch].get(tag, next(iter(BLIP[arch].values())))
    return Checkpoint(arch, tag, repository, path, _config(arch))


def _from_folder(folder: Path) -> Checkpoint | None:
    if not (folder / "config.json").is_file() or (folder / "open_clip_config.json").is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
        preprocess_file = folder / "preprocessor_config.json"
        preprocess = json.loads(preprocess_file.read_text()) if preprocess_file.is_file() else {}
        if config["model_type"] != "blip":
            return None
        mean, std = preprocess.get("image_mean", OPENAI_MEAN), preprocess.get("image_std", OPENAI_STD)
        path = weights_in(folder, FILES)
        return Checkpoint(folder.name, path.name, str(folder), path, config, tuple(mean), tuple(std))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}/config.json does not describe a BLIP model ({type(error).__name__})") from None


def _find_tokenizer(checkpoint: Checkpoint) -> Path:
    """The folder with the tokenizer of a BLIP checkpoint: that of the weights, or the hub's copy.

    Raises UserError where there is none.
    """
    folder = checkpoint.path.parent
    if any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return folder
    try:
        return hub_file(checkpoint.model, "vocab.txt").parent
    except Exception as error:  # as above
        raise UserError(
            f"the tokenizer of {checkpoint.arch} is missing: put the vocab.txt of bert-base-uncased beside "
            f"{checkpoint.path}"
        ) from error


register("BLIP", BlipBackbone, "image–text retrieval models", "Li et al., ICML 2022")
