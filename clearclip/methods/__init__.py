"""Published methods, by name. A method is a file in this folder; nothing else lists it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.decode import Decoder, LabelDecoder
from clearclip.errors import UserError
from clearclip.registry import Entry, Registry
from clearclip.trunk import Trunk
from clearclip.view import View


class Method:
    """What turns images into class scores. A subclass writes one of these, the others follow from it:

    - `features(trunk)`: patch features of each window, as most do;
    - `scores(trunk, text)`: where text takes part before there are features;
    - `image_features(view)`: features of the whole image, from those of all its windows, their places and the image
      at its own size; `view.stitch(self.window_features(view))` are the stitched features of its windows;
    - `image_scores(view, text)`: the same where text takes part;
    - `compare(features, text)`: besides features, where scores are made of them in another way than by their cosine.

    Attributes:
        backbone: whose trunks it reads.
        blocks: the blocks before the last that it reads. It runs without them; methods that share a trunk run faster.
        words: names whose text `prepare` takes besides that of the queries, after it.

    An example, value-value attention in the last block:

        class Mine(Method):
            def features(self, trunk):
                block, (_, _, v) = self.backbone.blocks[-1], trunk.qkv()
                mixed = mix(Attention.parse("vv"), *trunk.qkv(), trunk)  # [B, heads, P+N, d]
                return trunk.project(block.attention_output(mixed)[:, trunk.prefix :])
    """

    blocks: Sequence[int] = ()
    words: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def features(self, trunk: Trunk) -> Tensor:
        """Patch features [B, h, w, dim] in the joint space, not normalised, of the windows of a trunk."""
        raise NotImplementedError

    def scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        """Cosine scores [B, Q, h, w], float32, of the windows of a trunk for text [Q, dim], unit rows.

        h and w are the method's own grid.
        """
        features = trunk.once(self, lambda: self.features(trunk))  # for several vocabularies
        return self.compare(check_features(self, features, trunk.images.shape[0]), text)

    def image_features(self, view: View) -> Tensor:
        """Features [h, w, dim] of a whole image: its windows', averaged where they overlap, once a patch."""
        return view.stitch(self.window_features(view))

    def image_scores(self, view: View, text: Tensor) -> Tensor:
        """Cosine scores [Q, h, w], float32, of a whole image for text [Q, dim], unit rows."""
        return self.compare(check_features(self, self.image_features(view))[None], text)[0]

    def compare(self, features: Tensor, text: Tensor) -> Tensor:
        """Cosine scores [B, Q, h, w], float32, of features [B, h, w, dim] for text [Q, dim]: what `scores` end in."""
        return similarity(features, text)

    def window_features(self, view: View) -> Tensor:
        """Features [n, h, w, dim], float32, of all windows of an image."""
        return torch.cat(
            [check_features(self, self.features(trunk), trunk.images.shape[0]).float() for trunk in view.trunks]
        )

    def files(self) -> dict[str, str]:
        """What its scores depend on besides the backbone's weights: the SHA-256 of files, by name."""
        return {}

    @property
    def sees_images(self) -> bool:
        """Whether it works on whole images rather than on one window after the other."""
        cls = type(self)
        return cls.image_features is not Method.image_features or cls.image_scores is not Method.image_scores

    @property
    def compares_features(self) -> bool:
        """Whether its scores are what `compare` makes of its features: these can be kept, and asked again."""
        cls = type(self)
        return cls.scores is Method.scores and cls.image_scores is Method.image_scores

    def prepare(self, text: Tensor, query_class: tuple[int, ...], logit_scale: float) -> Tensor:
        """The text that its scores take, made of that of the queries [Q, dim], `words` after them; by default the same.

        `query_class` has Q entries, one for each row that is no word's.
        """
        return text

    def decoder(
        self, query_class: tuple[int, ...], logit_scale: float, threshold: float, area_threshold: float
    ) -> LabelDecoder:
        """What turns its maps into labels."""
        return Decoder(query_class, logit_scale, threshold, area_threshold)


def similarity(features: Tensor, text: Tensor) -> Tensor:
    """Features [B, h, w, dim] of any length and unit text [Q, dim] to cosine scores [B, Q, h, w], float32."""
    features = F.normalize(features.float(), dim=-1)
    return (features @ text.to(features).T).permute(0, 3, 1, 2)


def check_features(method: Method, features: Tensor, *batch: int) -> Tensor:
    """Features, if they are [*batch, h, w, dim] and floating-point; of a whole image there is no batch.

    Raises UserError naming the method if not.
    """
    shape = (*batch, method.backbone.dim)
    if _is_float(features, len(shape) + 2) and (*features.shape[:-3], features.shape[-1]) == shape:
        return features
    wanted = ", ".join(map(str, (*batch, "h", "w", method.backbone.dim)))
    raise _unfit(method, "features" if batch else "image_features", f"[{wanted}]", features)


def check_scores(method: Method, scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scores, if they are [*shape, h, w], shape (B, Q) or, of a whole image, (Q,), and floating-point.

    Raises UserError naming the method if not.
    """
    if _is_float(scores, len(shape) + 2) and tuple(scores.shape[:-2]) == shape:
        return scores
    wanted = ", ".join(map(str, (*shape, "h", "w")))
    raise _unfit(method, "scores" if len(shape) == 2 else "image_scores", f"[{wanted}]", scores)


def _is_float(tensor: object, dimensions: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim == dimensions


def _unfit(method: Method, what: str, wanted: str, got: object) -> UserError:
    given = f"{list(got.shape)} {got.dtype}" if isinstance(got, Tensor) else type(got).__name__
    return UserError(
        f"method {type(method).__name__} must return {what} {wanted} of a floating-point type, not {given}; check its "
        f"`{what}`"
    )


METHODS: Registry[Method] = Registry("method", __name__)
register = METHODS.register


def list_methods() -> list[Entry[Method]]:
    """All methods: each has `name`, a one-line `summary` and its `paper`.

    CLIP and what re-wires its last block come first, then the others by the module they are in.
    """
    first = f"{__name__}.final_block"
    return sorted(METHODS.entries(), key=lambda entry: (entry.build.__module__ != first, entry.build.__module__))


def create_method(text: str, backbone: Backbone) -> Method:
    """Build the method that `text` names, such as "ClearCLIP:attention=kk". Raises UserError where that cannot be."""
    return METHODS.create(text, backbone)


__all__ = ["METHODS", "Entry", "Method", "create_method", "list_methods", "register", "similarity"]
