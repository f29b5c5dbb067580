"""BLIP (Li et al., ICML 2022) as a backbone: the image and text encoders of its image–text retrieval models.

Its ViT differs from CLIP's in small things: the patch embedding has a bias, no layer norm precedes the blocks, and the
projection is a linear layer with a bias. Its blocks compute what OpenCLIP's do, so they become OpenCLIP's, and every
method finds what it looks for. The text encoder is transformers'.

Windows keep their size: the original code stretches those of small images to the full crop instead.
"""

import functools
import re

import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from transformers import BertTokenizerFast, BlipConfig, BlipTextModel
from transformers.activations import ACT2FN

from clearclip.backbone import Backbone, fill
from clearclip.errors import UserError
from clearclip.weights import Checkpoint, find_tokenizer, load_state_dict

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

    def __init__(self, config: BlipConfig):
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

    def __init__(self, config: BlipConfig):
        super().__init__()
        config.text_config.is_decoder = False  # a "decoder" is what has cross-attention
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.pad = config.text_config.pad_token_id

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L] to the projected class token [P, dim]."""
        hidden = self.text_encoder(tokens, attention_mask=(tokens != self.pad).long()).last_hidden_state
        return self.text_proj(hidden[:, 0])


class BlipBackbone(Backbone):
    """A BLIP retrieval model behind the interface of `Backbone`.

    The position embedding is resampled to the size of the grid, without the offset of the CLIP pipelines, as the
    original code and transformers do.
    """

    position = "size"

    def load_image_tower(self) -> nn.Module:
        state = image_state(load_state_dict(self.checkpoint.path))
        return fill(_skeleton(ImageTower, self.checkpoint), state, self.checkpoint)

    def load_text_tower(self) -> nn.Module:
        state = {
            name: value
            for name, value in load_state_dict(self.checkpoint.path).items()
            if name.startswith(("text_encoder.", "text_proj.")) and not re.search(r"crossattention|position_ids", name)
        }
        tower = fill(_skeleton(TextTower, self.checkpoint), state, self.checkpoint)
        embeddings = tower.text_encoder.embeddings
        embeddings.position_ids = torch.arange(len(embeddings.position_embeddings.weight))[None]  # no checkpoint has it
        return tower

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] to the joint space [..., dim]: ln_post, then the projection."""
        return self.visual.proj(self.visual.ln_post(tokens))

    @functools.cached_property
    def tokenizer(self):
        """BERT's tokenizer: a list of P prompts to token ids [P, L], padded to the longest, at most 35."""
        tokenizer = BertTokenizerFast.from_pretrained(find_tokenizer(self.checkpoint))

        def tokenize(prompts: list[str]) -> Tensor:
            options = dict(padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            return tokenizer(prompts, **options)["input_ids"]

        return tokenize

    def prompt_lengths(self, tokens: Tensor) -> Tensor:
        """Columns [P] of token ids [P, L] up to the padding, which attention does not see."""
        return (tokens != self.text_tower.pad).sum(dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [P, L], padded to any L, to embeddings [P, dim], not normalised."""
        return self.text_tower(tokens.to(self.device))


def _skeleton(tower: type, checkpoint: Checkpoint) -> nn.Module:
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
