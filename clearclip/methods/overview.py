"""Overview: the picture seen whole and small, and three cheap corrections; a method of this project.

CLIP was trained on small whole pictures. Its patches name things best where a picture looks like those: seen whole, at
half again CLIP's own size, not in enlarged windows. That takes fewer patches, too. What they say is corrected twice:

- names have much in common, as texts of one model do. The cosine is taken to texts less a share of their mean, so that
  it measures what sets a name apart;
- a name that no patch stands for is less likely at every patch. A share of the mean probability of each query over the
  image, as a prior, is added to its scores: one step of Saerens et al. (Neural Computation 2002), on one image.

Patch features are those of SC-CLIP or another method. `docs/overview.md` has what each part is worth.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.methods import Method, check_features, create_method, register, similarity
from clearclip.trunk import Trunk
from clearclip.view import View, normalise

TEMPERATURE = 100.0  # CLIP's own: what multiplied its cosines in training
LEAST = 1e-6  # a probability below it counts as this


class Overview(Method):
    """Features of `base`, mostly of the whole image, averaged where there are several; scores with a prior.

    Scores stay on the cosine's scale. A method that works on whole images, or has scores of its own, cannot be the
    base.

    Args:
        base: the method whose features these are.
        sides: short sides, in pixels, at which the whole image is seen; both sides become multiples of the patch.
        windows: whether the windows of the protocol are looked at, too.
        centring: the share of the mean text that is taken off each text, below 1.
        prior: the power of the prior; 0 leaves it out.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: str = "SC-CLIP",
        sides: tuple[int, ...] = (336,),
        windows: bool = False,
        centring: float = 0.6,
        prior: float = 0.1,
    ):
        super().__init__(backbone)
        self.name, self.base = base, create_method(base, backbone)
        if self.base.sees_images or type(self.base).scores is not Method.scores:
            raise ValueError(f"base {base!r} must be a method whose scores are made of the features of single windows")
        if any(side < 1 for side in sides) or not (sides or windows):
            raise ValueError(f"sides {sides} must be 1 or more, and one at least unless windows=True")
        if not 0 <= centring < 1 or prior < 0:
            raise ValueError(f"centring {centring} must be at least 0 and below 1, prior {prior} at least 0")
        self.sides, self.windows, self.centring, self.prior = sides, windows, centring, prior

    def files(self) -> dict[str, str]:
        return self.base.files()

    def prepare(self, text: Tensor, query_class: tuple[int, ...], logit_scale: float) -> Tensor:
        return centred(text, self.centring)

    def compare(self, features: Tensor, text: Tensor) -> Tensor:
        """Scores [B, Q, h, w], float32, for features of whole images [B, h, w, dim] and prepared text [Q, dim]."""
        scores = similarity(features, text)
        return with_prior(scores, self.prior) if self.prior else scores

    def image_features(self, view: View) -> Tensor:
        """The mean of the unit features of all looks at the image, [h, w, dim], on the finest of their grids."""
        looks = [view.once((self.name, side), lambda side=side: self.whole(view, side)) for side in self.sides]  # type: ignore[misc]
        if self.windows:
            looks.append(view.once((self.name, "windows"), lambda: self.stitched(view)))
        return averaged(looks)

    def whole(self, view: View, side: int) -> Tensor:
        """Unit features [h, w, dim] of the whole image, its short side about `side` pixels."""
        shape = whole_shape(view.original.shape[1], view.original.shape[2], side, self.backbone.patch_size)
        image = F.interpolate(normalise(view.original, self.backbone)[None], size=shape, mode="bilinear")
        return self.unit_features(self.backbone.trunk(image))[0]

    def stitched(self, view: View) -> Tensor:
        """Unit features [h, w, dim] of the protocol's windows."""
        return F.normalize(view.stitch(torch.cat([self.unit_features(trunk) for trunk in view.trunks])), dim=-1)

    def unit_features(self, trunk: Trunk) -> Tensor:
        """Unit features [B, h, w, dim], float32, of the windows of a trunk."""
        return F.normalize(check_features(self.base, self.base.features(trunk), len(trunk.images)).float(), dim=-1)


def whole_shape(height: int, width: int, side: int, patch: int) -> tuple[int, int]:
    """The size at which an image's short side is about `side` pixels and both are multiples of the patch."""
    scale = side / min(height, width) / patch
    rows, columns = (max(1, math.floor(length * scale + 0.5)) * patch for length in (height, width))
    return rows, columns


def averaged(looks: list[Tensor]) -> Tensor:
    """The mean of features [h, w, dim], each resized to the finest of their grids."""
    finest = max((look.shape[:2] for look in looks), key=math.prod)
    resized = [
        F.interpolate(look.permute(2, 0, 1)[None], size=finest, mode="bilinear")[0].permute(1, 2, 0) for look in looks
    ]
    return torch.stack(resized).mean(dim=0)


def centred(text: Tensor, share: float) -> Tensor:
    """Text [Q, dim], unit rows, less a share of its mean, all rows of one length, so that differences keep theirs."""
    rest = text - share * text.mean(dim=0)
    return F.normalize(rest, dim=-1) * rest.norm(dim=-1).mean()


def with_prior(scores: Tensor, power: float) -> Tensor:
    """Scores […, Q, h, w] and, on the same scale, the logarithm of each query's mean probability, times `power`."""
    probabilities = (TEMPERATURE * scores).softmax(dim=-3).mean(dim=(-2, -1), keepdim=True)  # […, Q, 1, 1]
    return scores + power / TEMPERATURE * probabilities.clamp(min=LEAST).log()


register(
    "Overview", Overview,
    "SC-CLIP's features of the whole image seen small; texts less their mean; a prior of what is in the image",
    "this project, 2026",
)  # fmt: skip
