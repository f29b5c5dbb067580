"""LPOSS (CVPR 2025, arXiv 2503.19777): scores flow between the patches that a vision model finds alike.

CLIP's patches are read as their own values, the residual and the feed-forward network kept, and scored. Then label
propagation makes one image of all windows: a patch's scores flow to those that look like it, in any window. `LPOSS+LPP`
is the paper's LPOSS+, which then propagates between pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.decode import Decoder, LabelDecoder
from clearclip.methods import Method, register, similarity
from clearclip.methods.final_block import FinalBlock
from clearclip.refine.propagation import ALPHA, NEIGHBOURS, Propagation
from clearclip.tensors import TensorCache
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.vision import ValueEyes, hashes
from clearclip.windows import Maps


class LPOSS(Method):
    """Scores of CLIP's patches after label propagation. It is made for OpenCLIP's weights of LAION, not for OpenAI's.

    The nodes are CLIP's patches in all windows; where the vision model has another grid, its values are resized to
    theirs. A class has the best score of its queries before these are resized to the labels.

    Args:
        vfm, vfm_weights: the vision model, as ProxyCLIP reads it, or a function that gives its last block's values.
        neighbours: how many a patch has, itself included.
        alpha: α, below 1: how far scores flow.
    """

    def __init__(
        self,
        backbone: Backbone,
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb16",
        vfm_weights: str | None = None,
        neighbours: int = NEIGHBOURS,
        alpha: float = ALPHA,
    ):
        super().__init__(backbone)
        self.reading = FinalBlock(backbone, "identity", residual=1.0, feed_forward=True)
        self.propagation = Propagation(neighbours, alpha)
        self.external = vfm if callable(vfm) else ValueEyes(backbone, vfm, vfm_weights)

    def files(self) -> dict[str, str]:
        return hashes(vfm=self.external)

    def features(self, trunk: Trunk) -> Tensor:
        return self.reading.features(trunk.repositioned("size"))  # [B, h, w, dim]

    def image_scores(self, view: View, text: Tensor) -> Tensor:
        scores = similarity(self.window_features(view), text)  # [n, Q, h, w]
        grid = (scores.shape[2], scores.shape[3])
        external = torch.cat([trunk.vision(self.external) for trunk in view.trunks])  # [n, D', h', w']
        return view.stitch_scores(self.propagation(view, scores, F.interpolate(external, size=grid, mode="bilinear")))

    def decoder(
        self, query_class: tuple[int, ...], logit_scale: float, threshold: float, area_threshold: float
    ) -> LabelDecoder:
        classes = tuple(range(max(query_class) + 1))
        return ClassDecoder(Decoder(classes, logit_scale, threshold, area_threshold), query_class)


class ClassDecoder:
    """What decodes the maps of classes, after each has become the largest of its queries, at the size they have."""

    def __init__(self, decoder: LabelDecoder, query_class: tuple[int, ...]):
        self.decoder, self.query_class = decoder, query_class
        self._tables = TensorCache(1 << 20)

    @property
    def num_classes(self) -> int:
        return self.decoder.num_classes

    def labels(self, maps: Maps) -> Tensor:
        return self.decoder.labels(self.merged(maps))

    def probabilities(self, maps: Maps) -> Tensor:
        return self.decoder.probabilities(self.merged(maps))

    def merged(self, maps: Maps) -> Maps:
        """Maps of all queries [Q, H, W] to those of the classes [C, H, W]."""
        scores = maps.scores
        classes = self._tables.get(scores.device, lambda: torch.tensor(self.query_class, device=scores.device))
        classes = classes[:, None, None].expand_as(scores)
        out = scores.new_empty(self.num_classes, *scores.shape[1:])
        merged = out.scatter_reduce(0, classes, scores, "amax", include_self=False)
        return Maps(merged, maps.rows, maps.columns, maps.taps, maps.whole)


register(
    "LPOSS", LPOSS,
    "values with residual and feed-forward; scores then flow between patches that look alike to a vision model (DINO)",
    "LPOSS, CVPR 2025",
)  # fmt: skip
