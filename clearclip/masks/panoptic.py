"""Masks of networks for panoptic segmentation, through transformers.

EoMT (Kerssies et al., CVPR 2025, arXiv 2503.19108) and Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527). Their
classes are not used, but they were trained with COCO's masks: results with them should say so. Not run with real
weights: tested on small random networks.
"""

from typing import Any

import torch
from torch import Tensor

from clearclip.masks import Masks, NetworkMasks, load_pretrained, register


class PanopticMasks(NetworkMasks):
    """The segments that a network finds; no two overlap.

    Args:
        model: a repository of the model hub, or a folder in transformers' format.
        sure: the least probability of a segment's class.
    """

    def __init__(
        self,
        device: torch.device | str,
        model: str = "tue-mps/coco_panoptic_eomt_large_640",
        sure: float = 0.8,
    ):
        self.sure = sure
        super().__init__(device, model, dict(sure=sure))

    def load(self) -> dict[str, Any]:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        kinds = {"model": AutoModelForUniversalSegmentation, "processor": AutoImageProcessor}
        parts = load_pretrained(kinds, self.model)
        parts["model"].to(self.device).eval().requires_grad_(False)
        return parts

    def make(self, image: Tensor) -> Masks:
        model, processor = self.network["model"], self.network["processor"]
        inputs = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt")
        seen = model(pixel_values=inputs["pixel_values"].to(self.device, model.dtype))
        (found,) = processor.post_process_panoptic_segmentation(
            seen, target_sizes=[(image.shape[1], image.shape[2])], threshold=self.sure
        )
        segmentation = found["segmentation"].cpu().int()  # -1 or 0 is none, by the version of transformers
        ids = torch.zeros_like(segmentation)
        for number, segment in enumerate(found["segments_info"], 1):
            ids[segmentation == segment["id"]] = number
        return Masks(ids)


register("EoMT", PanopticMasks, "segments; trained on COCO's masks", "Kerssies et al., CVPR 2025")
register(
    "Mask2Former", PanopticMasks, "segments; trained on COCO's masks", "Cheng et al., CVPR 2022",
    model="facebook/mask2former-swin-large-coco-panoptic",
)  # fmt: skip
