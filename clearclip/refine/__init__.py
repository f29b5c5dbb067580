"""What may follow a method: refinements of an image's features, maps or labels, written after it as `METHOD+NAME`.

A refinement is a file in this folder; nothing else lists it.
"""

from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.decode import Decoded
from clearclip.registry import Registry
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import Maps


class Refinement:
    """Refines one image after the other. A subclass writes one of these:

    - `features(view, features)`: before they meet text. It can follow methods whose scores are made of features;
    - `__call__(view, maps, queries)`: the maps of all queries;
    - `labels(view, decoded)`: the labels that the decoder has made of them.

    Refinements of features come first and those of labels last, each kind in the order that is written.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def features(self, view: View, features: Tensor) -> Tensor:
        """Features [h, w, dim] of the whole image, float32, of any length, to features of the same shape."""
        return features

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        """Maps of all queries [Q, H, W] at the size of the labels to maps of the same shape."""
        return maps

    def labels(self, view: View, decoded: Decoded) -> Decoded:
        """Labels [H, W], as the decoder made them of the maps of all refinements, to the same."""
        return decoded

    def files(self) -> dict[str, str]:
        """What it depends on besides the backbone's weights: the SHA-256 of files, or their versions, by name."""
        return {}

    @property
    def sees_features(self) -> bool:
        return type(self).features is not Refinement.features


REFINEMENTS: Registry[Refinement] = Registry("refinement", __name__)
register = REFINEMENTS.register

__all__ = ["REFINEMENTS", "Refinement", "register"]
