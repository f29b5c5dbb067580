"""Makes the patch features that `clearclip.features` keeps: the network's way, once, without any names."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearclip.errors import UserError
from clearclip.features import KeptFeatures, Note, Origin
from clearclip.images import MAX_PIXELS, read_image
from clearclip.look import check_finite, each_window, image_features, trunk_features
from clearclip.segmentation import version
from clearclip.segmenter import Segmenter
from clearclip.view import View


def keep_features(segmenter: Segmenter, image: Any, max_pixels: int | None = MAX_PIXELS) -> KeptFeatures:
    """The patch features of one image, to be saved, and to be asked for any names, templates and thresholds later.

        kept = keep_features(segmenter, "photo.jpg")
        kept.save("features/photo.safetensors")
        segmenter(kept, ["cat", "grass, lawn"]).labels

    Refinements are no part of them: `ClearCLIP+PAMR` keeps what `ClearCLIP` does.

    Args:
        segmenter: whose they are; one with the same settings takes them in place of the image.
        image: as `Segmenter.__call__` takes it. Of a path, what needs its pixels later reads it again.
        max_pixels: as there.

    Raises:
        UserError: for an image that cannot be read, and a method whose scores are not made of features.
    """
    pixels = read_image(image, max_pixels)
    origin = Origin.of(image, pixels) if isinstance(image, str | os.PathLike) else Origin(pixels.shape[:2])
    view = segmenter.view(torch.from_numpy(pixels).permute(2, 0, 1), name=origin.path)
    return keep_views(segmenter, [view], [origin])[0]


def keep_views(segmenter: Segmenter, views: Sequence[View], origins: Sequence[Origin]) -> list[KeptFeatures]:
    """The same of several images, windows of all in common batches."""
    check_kept(segmenter)
    notes = [
        Note(origin, view.plan, segmenter.feature_settings, about(segmenter)) for origin, view in zip(origins, views)
    ]
    return [KeptFeatures.of(seen, note) for seen, note in zip(patch_features(segmenter, views), notes)]


def check_kept(segmenter: Segmenter) -> None:
    """Raise UserError for a segmenter whose scores are made of more than features."""
    method = segmenter.method
    if not method.compares_features:
        name = type(method).__name__ if segmenter.choice is None else segmenter.choice.name
        raise UserError(
            f"{name} makes its scores of more than patch features, so that it is not enough to keep these; keep those "
            "of another method, such as ClearCLIP"
        )


@torch.inference_mode()
def patch_features(segmenter: Segmenter, views: Sequence[View]) -> list[Tensor]:
    """Features [n, h, w, dim] of the windows of each view, or [h, w, dim] where the method sees it whole."""
    method = segmenter.method
    if method.sees_images:
        seen = [image_features(method, view) for view in views]
    else:
        seen = [parts[0] for parts in each_window(views, [functools.partial(trunk_features, method)])]
    check_finite(method, all(bool(one.isfinite().all()) for one in seen))
    return seen


def about(segmenter: Segmenter) -> dict[str, Any]:
    """What a note says of a segmenter besides what decides features."""
    backbone = segmenter.backbone
    checkpoint, load = backbone.checkpoint, {}
    if checkpoint.model.startswith(("local-dir:", "hf-hub:")):  # these name their weights
        load["backbone"] = checkpoint.model
    else:
        of_file = backbone.tag == Path(checkpoint.path).name
        load |= {"backbone": backbone.name, "pretrained": str(checkpoint.path) if of_file else backbone.tag}
    if segmenter.choice is not None:
        load["method"] = str(segmenter.choice)
    return {"load": load, "precision": str(backbone.dtype).removeprefix("torch."), "version": version()}
