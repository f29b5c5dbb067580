"""EDGES: PAMR (Araslanov & Roth, CVPR 2020, arXiv 2005.08104) on the means of blocks of pixels; of this project.

At full size PAMR moves all classes' scores about hundreds of times. Patches are some 16 pixels wide: a grid a few times
finer than theirs holds all that their scores can gain, for a small part of the cost.
"""

import torch.nn.functional as F

from clearclip.backbones import Backbone
from clearclip.refine import Refinement, register
from clearclip.refine.pamr import pamr
from clearclip.refine.tlp import pooled
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import Maps

DILATIONS = (1, 3)  # in blocks


class Edges(Refinement):
    """PAMR where the short side has about `grid` blocks; the result is enlarged.

    Args:
        grid: blocks of whole pixels along the short side, nearly.
        iterations: how often every block takes the mean of those around it.
    """

    def __init__(self, backbone: Backbone, grid: int = 112, iterations: int = 5):
        super().__init__(backbone)
        if grid < 1 or iterations < 1:
            raise ValueError(f"grid {grid} and iterations {iterations} must be 1 or more")
        self.grid, self.iterations = grid, iterations

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        block = max(1, round(min(maps.shape) / self.grid))
        scores = Maps(maps.scores, pooled(maps.rows, block), pooled(maps.columns, block)).full()  # [Q, h, w]
        image = F.avg_pool2d(view.resized_pixels(maps.shape)[None], block)[0]  # [3, h, w]
        return view.stitcher.resized(pamr(image, scores, self.iterations, DILATIONS), maps.shape)


register(
    "EDGES",
    Edges,
    "scores averaged along edges, on blocks of pixels: PAMR for a small part of its cost",
    "this project",
)
