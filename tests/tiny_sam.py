"""SAM, tiny: as timm's image encoder, known to timm by the name `tiny_samvit`, and as transformers' whole model."""

import torch
from timm.models import register_model
from timm.models.vision_transformer_sam import VisionTransformerSAM

SIDE = 64  # of the square that both see


@register_model
def tiny_samvit(pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, pretrained=False, **options):
    size = dict(img_size=SIDE, embed_dim=32, depth=3, num_heads=2, neck_chans=16)
    blocks = dict(use_rel_pos=True, window_size=3, global_attn_indexes=(2,))
    model = VisionTransformerSAM(**size, **blocks, **options)
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return model


def tiny_sam():
    """transformers' SAM, random."""
    from transformers import SamConfig, SamModel

    vision = dict(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=16,
        mlp_dim=64, window_size=2, global_attn_indexes=[1], num_pos_feats=8,
    )  # fmt: skip
    prompt = dict(hidden_size=16, image_size=SIDE, patch_size=16, mask_input_channels=16)
    decoder = dict(hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = SamModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # as they start, masks are all but 0
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model
