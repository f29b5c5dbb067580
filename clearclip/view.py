"""One image as methods and refinements see it that look beyond single windows."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip import windows
from clearclip.backbones import Backbone
from clearclip.trunk import Trunk
from clearclip.windows import Plan, Stitcher

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """One image: at its own size, resized, in windows with their places, and on its way through the backbone.

    Attributes:
        backbone: what sees it.
        image: [3, h, w], RGB in 0..255, resized as the network is to see it.
        original: [3, H, W], the same before it was resized.
        shape: (H, W) of the labels that are wanted.
        plan: where the windows lie in `image`, row by row.
        window_batch: windows that go through the network at once.
        name: the path of its file, where it is one.
    """

    backbone: Backbone
    image: Tensor
    original: Tensor
    shape: tuple[int, int]
    plan: Plan
    window_batch: int
    stitcher: Stitcher
    name: str | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def uploaded(self) -> Tensor:
        """`image` on the backbone's device, where it goes once."""
        return self.image.to(self.backbone.device)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """`image` in the backbone's normalisation, float32 on its device."""
        return normalise(self.uploaded, self.backbone)

    def resized_pixels(self, shape: tuple[int, int]) -> Tensor:
        """`pixels` at another size, bilinear: [3, *shape]."""
        return F.interpolate(self.pixels[None], size=shape, mode="bilinear")[0]

    @functools.cached_property
    def trunks(self) -> list[Trunk]:
        """The windows on their way through the blocks, in batches."""
        batches = windows.cut(self.pixels, self.plan).split(self.window_batch)
        return [self.backbone.trunk(batch) for batch in batches]

    def stretched(self, height: int, width: int) -> "View":
        """The same with `image` at another size, bilinear, and windows laid anew."""
        if self.image.shape[1:] == (height, width):
            return self
        image = F.interpolate(self.uploaded.float()[None], size=(height, width), mode="bilinear")
        plan = windows.plan(height, width, self.plan.crop, self.plan.stride, self.backbone.patch_size)
        return dataclasses.replace(self, image=image[0], plan=plan, _made={})

    def take_smaller_batches(self, window_batch: int) -> None:
        """Let fewer windows go through the network at once; those on their way start anew."""
        object.__setattr__(self, "window_batch", window_batch)
        self.__dict__.pop("trunks", None)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several readers want of this image, such as its masks, made for the first of them."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def stitch(self, features: Tensor) -> Tensor:
        """Features of all windows [n, h, w, C], averaged where they overlap, sampled once a patch: [h', w', C]."""
        if len(self.plan) == 1:
            return features[0]
        sides = (self.plan.rows.length, self.plan.columns.length)  # of `image`
        height, width = (max(1, round(side / self.backbone.patch_size)) for side in sides)
        maps = self.stitcher.maps(features.permute(0, 3, 1, 2), self.plan, (height, width))
        return maps.full().permute(1, 2, 0)

    def stitch_scores(self, scores: Tensor) -> Tensor:
        """Scores of all windows [n, Q, h, w], averaged where they overlap: [Q, h', w'], one for each pixel of `image`.

        Of a whole image that is one window they stay as they are, to be resized once.
        """
        if self.plan.rows.whole:
            return scores[0]
        return self.stitcher.maps(scores, self.plan, (self.image.shape[1], self.image.shape[2])).full()


def normalise(image: Tensor, backbone: Backbone) -> Tensor:
    """RGB [3, h, w] in 0..255 to the backbone's normalisation, float32 on its device."""
    constants, device = backbone.constants, backbone.device
    mean, std = (
        constants.get(("statistic", statistic), lambda s=statistic: torch.tensor(s, device=device)[:, None, None] * 255)  # type: ignore[misc]
        for statistic in (backbone.mean, backbone.std)
    )
    return (image.to(device).float() - mean) / std
