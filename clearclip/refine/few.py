"""FEW: label costs (Delong, Osokin, Isack & Boykov, IJCV 2012) on one image; of this project.

Large vocabularies lose to chance: each of a hundred names that are not in a picture is best somewhere. So a name has to
be worth what it adds to the scores of the whole picture. Names are taken one after the other, the one that adds most
first, until none adds enough: the greedy way to place facilities (Cornuéjols, Fisher & Nemhauser 1977). What they were
asked for stays: names that were left out still have nearly their share in a softmax, and so thresholds their meaning.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.refine import Refinement, register
from clearclip.refine.tlp import pooled
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import LateMaps, Maps

LOGIT = 0.01  # a cosine that changes CLIP's own logit, with its temperature, by 1
BLOCKS = 112  # along the short side, nearly, on which scores are looked at to choose the classes
MOST = 32  # classes of an image


class Few(Refinement):
    """Classes that add little to an image's scores cannot win there: elsewhere they come out below the best that stays.

    The scores must be on a cosine's scale, as those of most methods.

    Args:
        cost: what a class has to add to the best scores of the others, on average over the image, in CLIP's logits,
            cosines times 100: 0.01 is a logit on one pixel in a hundred. 0 keeps every class that is best somewhere.
    """

    def __init__(self, backbone: Backbone, cost: float = 0.01):
        super().__init__(backbone)
        if cost < 0:
            raise ValueError(f"cost {cost} must be at least 0")
        self.cost = cost

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        if isinstance(maps, LateMaps):  # too many to be made: what they are made of changes in their place
            return LateMaps(self(view, maps.maps, queries), maps.change)
        block = max(1, round(min(maps.shape) / BLOCKS))
        blocks = Maps(maps.scores, pooled(maps.rows, block), pooled(maps.columns, block)).full()  # [Q, h, w]
        classes = view.backbone.constants.get(
            ("query classes", queries.query_class), lambda: torch.tensor(queries.query_class).to(blocks.device)
        )
        kept = worthwhile(best_of_classes(blocks.flatten(1), classes, len(queries.names)), self.cost)[classes]
        kept, scores = kept[:, None, None], maps.scores.float()
        below = scores.masked_fill(~kept, -torch.inf).amax(dim=0) - LOGIT
        return replace(maps, scores=torch.where(kept, scores, scores.minimum(below)))


def best_of_classes(scores: Tensor, classes: Tensor, count: int) -> Tensor:
    """Scores [Q, N] of queries to the best of each of `count` classes, [C, N]; `classes` [Q] are the queries'."""
    if len(scores) == count:  # no synonyms: in the order of the queries, each has its class
        return torch.empty_like(scores).index_copy_(0, classes, scores)
    places = classes[:, None].expand_as(scores)
    return scores.new_full((count, scores.shape[1]), -torch.inf).scatter_reduce_(0, places, scores, "amax")


def worthwhile(scores: Tensor, cost: float) -> Tensor:
    """Which of C classes to keep, [C], by their cosines [C, N] at N places: one at least, at most `MOST`."""
    first = F.one_hot(scores.argmax(dim=0), len(scores)).sum(dim=0).argmax()  # best at most places
    numbers = torch.arange(len(scores), device=scores.device)
    kept, best = numbers == first, scores.index_select(0, first[None])[0]
    for _ in range(min(MOST, len(scores)) - 1):
        added = (scores - best).clamp_(min=0).mean(dim=1)  # by each class, to the best of those that are kept
        most, which = added.max(dim=0)
        worth = most > cost * LOGIT
        if scores.device.type == "cpu" and not torch.compiler.is_compiling() and not worth:
            break  # on a GPU to ask would be to wait
        kept = kept | ((numbers == which) & worth)
        best = torch.where(worth, best.maximum(scores.index_select(0, which[None])[0]), best)
    return kept


register(
    "FEW", Few, "classes that add little to an image's scores cannot win there: label costs, greedily", "this project"
)
