"""What may follow the scores: refinements of an image's maps, for any method, written after it as `METHOD+NAME`.

A refinement is a file in this folder; nothing else lists it.
"""

from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.registry import Registry
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import Maps


class Refinement:
    """Refines the maps of one image after the other, or the labels made of them. A subclass writes either."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        """Maps of all queries [Q, H, W] at the size of the labels to maps of the same shape."""
        return maps

    def labels(self, view: View, labels: Tensor, queries: Queries) -> Tensor:
        """Labels [H, W], as the decoder made them of the maps of all refinements, to the same."""
        return labels

    def files(self) -> dict[str, str]:
        """What it depends on besides the backbone's weights: the SHA-256 of files, or their versions, by name."""
        return {}


REFINEMENTS: Registry[Refinement] = Registry("refinement", __name__)
register = REFINEMENTS.register

__all__ = ["REFINEMENTS", "Refinement", "register"]
