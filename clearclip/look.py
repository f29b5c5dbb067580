"""What methods make of images: windows of all of them in common batches, each state of the network computed once."""

import functools
import logging
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip import windows
from clearclip.backbones import Backbone
from clearclip.errors import UserError
from clearclip.features import KeptView
from clearclip.methods import Method, check_features, check_scores
from clearclip.refine import Refinement
from clearclip.text import Queries
from clearclip.trunk import Trunk
from clearclip.view import View

log = logging.getLogger(__name__)

WINDOW_BATCH = {"mps": 8, "cpu": 4}
MOST_WINDOWS = 256  # at once on a GPU, whose matrix products gain nothing from more


@dataclass(frozen=True)
class Dense:
    """What a method makes of one image.

    Attributes:
        scores: [n, Q, h, w] of its windows or, `whole`, [Q, h, w] of the image.
        features: [h, w, dim] unit patch features, or None where they were not asked for.
        finite: a tensor, whether all scores are.
    """

    scores: Tensor
    features: Tensor | None
    whole: bool

    @functools.cached_property
    def finite(self) -> Tensor:
        return self.scores.isfinite().all()


@dataclass(frozen=True)
class Look:
    """A method, what refines its features, and the queries that it looks for."""

    method: Method
    refinements: tuple[Refinement, ...]
    queries: Queries

    @property
    def key(self) -> Hashable:
        """Equal where what is seen is."""
        return self.method, id(self.queries.for_scores), self.refinements

    @property
    def sees_images(self) -> bool:
        """Whether it needs whole images."""
        return self.method.sees_images or bool(self.refinements)

    def scores(self, trunk: Trunk) -> Tensor:
        """[B, Q, h, w] of the windows of a trunk."""
        scores = self.method.scores(trunk, self.queries.for_scores)
        return check_scores(self.method, scores, (trunk.images.shape[0], len(self.queries.text)))

    def whole(self, view: View, features: bool) -> Dense:
        """Of a whole image; with `features`, these too."""
        if self.method.compares_features:
            return self.refined(view, image_features(self.method, view), features)
        scores = self.method.image_scores(view, self.queries.for_scores)
        scores = check_scores(self.method, scores, (len(self.queries.text),))
        return Dense(scores, F.normalize(image_features(self.method, view), dim=-1) if features else None, whole=True)

    def recalled(self, view: KeptView, features: bool) -> Dense:
        """Of kept features, as if the network had made them now."""
        seen = view.features
        if view.kept.whole or self.refinements:
            return self.refined(view, seen if view.kept.whole else view.stitch(seen), features)
        unit = F.normalize(view.stitch(seen), dim=-1) if features else None
        return Dense(self.compared(seen), unit, whole=False)

    def refined(self, view: View, seen: Tensor, features: bool) -> Dense:
        """Of the features [h, w, dim] of a whole image, which are yet to be refined."""
        for refinement in self.refinements:
            seen = refinement.features(view, seen)
        scores = self.compared(seen[None])[0]
        return Dense(scores, F.normalize(seen, dim=-1) if features else None, whole=True)

    def compared(self, features: Tensor) -> Tensor:
        """Scores [B, Q, h, w] of features [B, h, w, dim]."""
        scores = self.method.compare(features, self.queries.for_scores)
        return check_scores(self.method, scores, (len(features), len(self.queries.text)))


def trunk_features(method: Method, trunk: Trunk) -> Tensor:
    """A method's features [B, h, w, dim], float32, of the windows of a trunk."""
    features = trunk.once(method, lambda: method.features(trunk))
    return check_features(method, features, trunk.images.shape[0]).float()


def image_features(method: Method, view: View) -> Tensor:
    """A method's features [h, w, dim], float32, of a whole image."""
    return check_features(method, method.image_features(view)).float()


def look_together(looks: Sequence[Look], views: Sequence[View], features: bool = False) -> list[list[Dense]]:
    """What several looks see in the same images: `[look][image]`; with `features`, these too.

    They are of one backbone and one geometry of windows, that of the views. What they share is computed once: the
    blocks of the network, a method's features for several vocabularies, its scores for several thresholds.

    Where memory does not hold a batch of windows, it is halved until it does, which `window_batch` of the views then
    tells.
    """
    batch = wanted = views[0].window_batch if views else 1
    while True:
        try:
            seen = _look_together(looks, views, features)
            break
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        # Here, where the error no longer holds the memory of what failed.
        batch = max(1, min(batch, sum(len(view.plan) for view in views)) // 2)
        for view in views:
            view.take_smaller_batches(batch)
        if views[0].backbone.device.type == "cuda":
            torch.cuda.empty_cache()
    if batch < wanted:
        log.warning("memory does not hold %d windows at once: from here on %d (option window_batch)", wanted, batch)
    return seen


@torch.inference_mode()
def _look_together(looks: Sequence[Look], views: Sequence[View], features: bool) -> list[list[Dense]]:
    by_image: dict[Hashable, list[Dense]] = {}
    functions: dict[Hashable, Callable[[Trunk], Tensor]] = {}
    kept = [view for view in views if isinstance(view, KeptView)]  # all views or none
    for look in {look.key: look for look in looks}.values():
        if kept:
            by_image[look.key] = [look.recalled(view, features) for view in kept]
            continue
        if look.sees_images:
            by_image[look.key] = [look.whole(view, features) for view in views]
            continue
        functions[look.key] = look.scores
        if features:
            functions[look.key, "features"] = functools.partial(trunk_features, look.method)
    methods = {look.method for look in looks}
    shared = {block for method in methods for block in method.blocks} if len(methods) > 1 else ()
    by_window = dict(zip(functions, zip(*each_window(views, list(functions.values()), shared)))) if functions else {}

    def dense(key: Hashable, index: int) -> Dense:
        if key in by_image:
            return by_image[key][index]
        seen = by_window[key, "features"][index] if features else None
        unit = None if seen is None else F.normalize(views[index].stitch(seen), dim=-1)
        return Dense(by_window[key][index], unit, whole=False)

    return [[dense(look.key, index) for index in range(len(views))] for look in looks]


def each_window(
    views: Sequence[View], functions: Sequence[Callable[[Trunk], Tensor]], keep: Collection[int] = ()
) -> list[list[Tensor]]:
    """What each function makes of the windows of each image, `[view][function]`, windows first.

    Windows of one shape go through the backbone in common batches, whatever image they are of; all functions read
    one trunk. `keep` names the blocks that more than one of them reads.
    """
    results: list[list[Tensor]] = [[] for _ in views]
    for shape in dict.fromkeys(view.plan.window_shape for view in views):
        members = [i for i, view in enumerate(views) if view.plan.window_shape == shape]
        first = views[members[0]]
        stacked = torch.cat([windows.cut(views[i].pixels, views[i].plan) for i in members])
        trunks = (first.backbone.trunk(batch, keep) for batch in stacked.split(first.window_batch))
        batches = [[function(trunk) for function in functions] for trunk in trunks]
        for parts in zip(*batches):
            for i, part in zip(members, torch.cat(parts).split([len(views[i].plan) for i in members])):
                results[i].append(part)
    return results


def scores_features(method: Method) -> bool:
    """Whether a method's scores are nothing but the cosine of its features and the text."""
    return method.compares_features and type(method).compare is Method.compare


def check_finite(method: Method, finite: bool) -> None:
    """Raise UserError where scores were not finite."""
    if not finite:
        raise UserError(
            f"method {type(method).__name__} gives scores that are not finite: use precision fp32, and weights and "
            "options without NaN or infinity"
        )


def fitting_windows(backbone: Backbone, side: int) -> int:
    """How many square windows of `side` pixels the device is to see at once: on a GPU by its free memory."""
    if backbone.device.type != "cuda":
        return WINDOW_BATCH[backbone.device.type]
    free, _ = torch.cuda.mem_get_info(backbone.device)
    return max(1, min(MOST_WINDOWS, free // 2 // window_bytes(backbone, side)))


def window_bytes(backbone: Backbone, side: int) -> int:
    """What a square window may need: every block's tokens, a block's wide layers, and its attention, twice, float32."""
    tokens = (side // backbone.patch_size) ** 2 + backbone.prefix_tokens
    heads, depth = backbone.blocks[0].heads, len(backbone.blocks)
    return tokens * ((depth + 16) * backbone.width * backbone.dtype.itemsize + 2 * heads * tokens * 4)
