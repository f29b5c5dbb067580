"""What is measured on: pictures of the benchmarks' typical sizes, text near what a model sees, random weights."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import open_clip
import torch
import torch.nn.functional as F

from clearclip.backbones import choose_device, choose_precision, load_backbone
from clearclip.backbones.openclip import OpenCLIPBackbone
from clearclip.errors import UserError
from clearclip.text import Queries
from clearclip.view import normalise
from clearclip.weights import Checkpoint


@dataclass(frozen=True)
class Case:
    """An image of a benchmark's typical size, its classes and its windows."""

    name: str
    height: int
    width: int
    classes: int
    crop: int = 448
    suffix: str = ".jpg"
    stride: int = 224


CASES = {
    case.name: case
    for case in (
        Case("VOC20", 375, 500, 20),
        Case("ADE20K", 512, 683, 150),
        Case("COCO-Stuff", 480, 640, 171),
        Case("Cityscapes", 1024, 2048, 19, 224, ".png"),
        Case("847 classes, 1 MP", 1024, 1024, 847),
        Case("847 classes, 4 MP", 2048, 2048, 847),
    )
}


def smooth_image(height, width):
    """Random colours [height, width, 3], uint8, that change slowly."""
    small = torch.rand(1, 3, height // 48 + 2, width // 48 + 2)
    large = F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (large * 255).byte().permute(1, 2, 0).contiguous().numpy()


def make_image(case, folder):
    """An image file and its ground truth [H, W]."""
    torch.manual_seed(0)
    path = Path(folder) / f"{case.height}x{case.width}{case.suffix}"
    cv2.imwrite(str(path), smooth_image(case.height, case.width))
    blocks = torch.randint(0, case.classes, (1, 1, 8, 8)).float()
    return path, F.interpolate(blocks, size=(case.height, case.width))[0, 0].int()


def make_queries(classes, segmenter):
    """Random unit text near what the model sees, so that many classes win somewhere: with random weights all
    features point nearly one way, and any other text would give the whole image to one class."""
    torch.manual_seed(1)
    images = torch.stack([torch.from_numpy(smooth_image(224, 224)).permute(2, 0, 1) for _ in range(4)])
    pixels = torch.stack([normalise(image, segmenter.backbone) for image in images])
    features = segmenter.method.features(segmenter.backbone.trunk(pixels)).flatten(0, 2).float()
    features = F.normalize(features, dim=-1)
    spread = features - features.mean(dim=0)
    mixed = torch.randn(classes, len(spread)).to(spread) @ spread
    return Queries(F.normalize(mixed, dim=-1), tuple(range(classes)), tuple(f"class {i}" for i in range(classes)))


def make_backbone(name, pretrained, device, precision):
    """The named weights, or random ones of the real architecture: what they are does not change the cost."""
    if pretrained or name.startswith("local-dir:"):
        return load_backbone(name, pretrained or "openai", device, precision)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"unknown backbone {name!r}; use an OpenCLIP ViT such as ViT-B-16")
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(quick_gelu=True, **{k: v for k, v in config.items() if k != "custom_text"})

    class RandomBackbone(OpenCLIPBackbone):
        content_hash = "random weights"

        def load_image_tower(self):
            return model.visual

        def load_text_tower(self):
            return model.text

    device = choose_device(device)
    return RandomBackbone(Checkpoint(name, "random", name, Path(), config), device, choose_precision(precision, device))
