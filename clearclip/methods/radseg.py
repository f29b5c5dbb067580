"""RADSeg (arXiv 2511.19704, 2025): a RADIO backbone whose last block attends twice, stitched before text is met.

What the last block's attention gives says in a second pass which tokens it averages. The windows' features are
stitched, averaged with all others of the image that are like them, and only then read by the language head. Classes
that nowhere are likely are dropped.

It is made for C-RADIOv3 (`clearclip.backbones.radio`) and runs on every backbone. RADSeg+ is `RADSeg+SAM:encoder=own`.
Not run with real weights: parts and chain agree with an independent implementation on random networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clearclip.attention import self_correlating_output
from clearclip.backbones import Backbone
from clearclip.decode import DEVICE_BAND_BYTES
from clearclip.errors import UserError
from clearclip.methods import Method, register
from clearclip.refine.scga import aggregate
from clearclip.tensors import TensorCache
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.windows import Maps, average, covering_shape


class RADSeg(Method):
    """Features of the whole image. The softmax over names is taken patch by patch, before probabilities are resized.

    Images are stretched so that both sides are multiples of the stride, which must be one of the patch.

    Args:
        scale: sharpness of the second attention.
        aggregation: sharpness of the mean over the image (SCGA); 0 leaves it out.
        denoise: a class whose probability is nowhere this large is not in the image; 0 keeps all.
    """

    def __init__(self, backbone: Backbone, scale: float = 10.0, aggregation: float = 10.0, denoise: float = 0.5):
        super().__init__(backbone)
        if scale < 0 or aggregation < 0:
            raise ValueError(f"scale {scale} and aggregation {aggregation} must be 0 or more")
        if not 0 <= denoise <= 1:
            raise ValueError(f"denoise must be a probability, not {denoise}")
        self.scale, self.aggregation, self.denoise = scale, aggregation, denoise

    def image_features(self, view: View) -> Tensor:
        stitched = self.stitched(view)  # [h, w, D]
        if self.aggregation:
            stitched = aggregate(stitched, self.aggregation)
        return self.backbone.head(stitched.to(self.backbone.dtype))

    def stitched(self, view: View) -> Tensor:
        """The backbone's features [h, w, D] of the whole image, before its language head, float32."""
        patch, plan = self.backbone.patch_size, view.plan
        multiple = plan.stride if plan.crop else patch
        if multiple % patch:
            raise UserError(f"RADSeg needs a stride that is a multiple of the patch, {patch}, not {multiple}")
        height, width = view.image.shape[1:]
        view = view.stretched(*covering_shape(height, width, multiple, plan.crop))
        return average(torch.cat([self.states(trunk) for trunk in view.trunks]), view.plan, patch)

    def states(self, trunk: Trunk) -> Tensor:
        """The normed output [B, h, w, D] of the last block, patches only."""
        tokens = self_correlating_output(trunk, self.scale)[:, trunk.prefix :]
        return self.backbone.final_norm(tokens).unflatten(1, trunk.grid)

    def decoder(
        self, query_class: tuple[int, ...], logit_scale: float, threshold: float, area_threshold: float
    ) -> "DenoisingDecoder":
        if area_threshold:
            raise UserError("RADSeg drops classes by their probability; set area_threshold to 0")
        return DenoisingDecoder(query_class, logit_scale, threshold, self.denoise)


@dataclass(frozen=True)
class DenoisingDecoder:
    """How RADSeg's maps become labels; `labels` and `probabilities` are those of `clearclip.decode.Decoder`.

    Softmax over queries of `logit_scale` × score where the scores are, a class having the largest of its queries; what
    is resized are probabilities. A class whose largest is below `denoise` has 0 everywhere. A pixel takes its best
    class, the lowest index on ties; below `threshold` it takes class 0.
    """

    query_class: tuple[int, ...]
    logit_scale: float
    threshold: float = 0.0
    denoise: float = 0.5
    _tables: TensorCache = field(default_factory=lambda: TensorCache(1 << 20), init=False, repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        return max(self.query_class) + 1

    def labels(self, maps: Maps) -> Tensor:
        """Maps [Q, H, W] to labels [H, W], uint8 where they fit, else int16."""
        maps = self._denoised(maps)
        labels = []
        for band in _bands(maps):
            label = band.argmax(dim=0)
            labels.append(label.masked_fill(band.amax(dim=0) < self.threshold, 0) if self.threshold else label)
        return torch.cat(labels).to(torch.uint8 if self.num_classes <= 256 else torch.int16)

    def probabilities(self, maps: Maps) -> Tensor:
        """Maps [Q, H, W] to class probabilities [C, H, W], float32, before any threshold."""
        return self._denoised(maps).full()

    def _denoised(self, maps: Maps) -> Maps:
        """Maps [C, H, W] of class probabilities, those of absent classes 0."""
        scores = maps.scores.float().mul(self.logit_scale).softmax(dim=0)
        classes = self._tables.get(scores.device, lambda: torch.tensor(self.query_class, device=scores.device))
        classes = classes[:, None, None].expand_as(scores)
        empty = scores.new_zeros(self.num_classes, *scores.shape[1:])
        merged = Maps(empty.scatter_reduce(0, classes, scores, "amax"), maps.rows, maps.columns)
        if not self.denoise:
            return merged
        largest = torch.stack([band.amax(dim=(1, 2)) for band in _bands(merged)]).amax(dim=0)  # [C]
        return Maps(merged.scores * (largest >= self.denoise)[:, None, None], maps.rows, maps.columns)


def _bands(maps: Maps) -> Iterator[Tensor]:
    """Maps [C, H, W] in rows [C, r, W], so that they need not all be in memory."""
    rows = max(1, DEVICE_BAND_BYTES // (4 * len(maps.scores) * maps.shape[1]))
    for some in maps.rows.split(rows):
        yield Maps(maps.scores, some, maps.columns).full()


register(
    "RADSeg", RADSeg,
    "a second attention made of the first's output; stitched features averaged over the image; no unlikely classes",
    "arXiv 2511.19704, 2025",
)  # fmt: skip
