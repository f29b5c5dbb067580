"""CLIPer (Sun et al., ICCV 2025, arXiv 2411.13836): every layer's tokens through the last block.

The query-key attention of the blocks before the last, summed and balanced so that no token draws more than others,
takes the place of the last block's own. Not only the tokens that enter the last block go through it, but those of
every layer; each layer is classified, one layer's maps are sharpened and carried along the attention, and the mean
of all layers is added. Optionally the maps then follow the self-attention of Stable Diffusion, or DINO's features.

CLIPer labels in its own way, `ImageLevelDecoder`, and has images resized in its own way (`resize="pil"` of
`clearclip.segmenter.Segmenter`). Three habits of the authors' code bear on its numbers and are
reproduced: the attention is balanced once more for every layer, so that layer l uses one that was balanced l + 1
times (`iterate=False`: once); the tokens of all layers but the last are normalised twice, by their own block and by
the last; and what is below the threshold in the selected layer is missing in the mean as well.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip import windows
from clearclip.backbones import Backbone
from clearclip.decode import DEVICE_BAND_BYTES
from clearclip.errors import UserError
from clearclip.methods import Method, register
from clearclip.methods.proxyclip import ProxyCLIP
from clearclip.products import HEAD_ROWS, product
from clearclip.refine.diffusion import MODELS, DiffusionAttention
from clearclip.trunk import Trunk
from clearclip.windows import Maps

ATTENTIONS = ("fused", "qk", "qq", "kk", "vv", "identity")
POSITION = "bilinear"  # how the position embedding is resampled
STRIDE = 112  # of windows, in pixels
WORDS = {  # what takes part in the softmax besides the classes of sets without background, by name
    "voc": "ground;land;grass;tree;building;wall;sky;lake;water;river;sea;railway;railroad;keyboard;helmet;cloud;house;"
    "mountain;ocean;road;rock;street;valley;bridge;sign",
}

Refine = Callable[[Tensor, Tensor], Tensor]  # an image [3, H, W], normalised, and maps [Q, h, w] to maps


class CLIPer(Method):
    """Class maps of CLIPer, whose softmax over names is a part of the method.

    - `attention`: "fused", or for comparison the last block's own: qk, qq, kk, vv, identity.
    - `select`: the layer whose maps are carried along the attention, −1 the last.
    - `attention_threshold`: of that layer, what is below this share of a map's largest value is set to 0; the same
      threshold is that of the diffusion model's attention.
    - `iterate`: balance the attention once more for every layer, as published, or once for all.
    - `window`: the size in pixels of windows, every 112 pixels (smaller ones: side by side), whose probabilities are
      mixed in equal parts with those of the whole image, before the maps are carried; 0: none.
    - `background`: class 0 is no class but a list of background words, whose probability is dropped.
    - `words`: where there is no such class, words all the same that take part in the softmax and win no pixel:
      "background", as published for all sets but VOC20; "voc", VOC21's 25 words, as published there; or others,
      with semicolons between them.
    - `score_threshold`, `normalise`: see `ImageLevelDecoder`.
    - `refine`: a Stable Diffusion ("sd21", "sd15", "sd14" or what else `DiffusionAttention` reads), a vision model
      as ProxyCLIP reads it ("dino_vitb8"), or a function from an image [3, H, W], normalised, and maps [Q, h, w] to
      maps; None: nothing. `refine_weights` is the vision model's file, `combine` how diffusion's heads act.

    The whole image goes through at once (`crop=0`), without the pixels beyond its last full patch: of an image that
    was resized as the authors do there are none. The position embedding is resampled bilinearly.
    """

    def __init__(
        self,
        backbone: Backbone,
        attention: str = "fused",
        select: int = -1,
        attention_threshold: float = 0.1,
        iterate: bool = True,
        window: int = 0,
        background: bool = False,
        words: str | None = None,
        score_threshold: float = 0.0,
        normalise: bool = False,
        refine: str | Refine | None = None,
        refine_weights: str | None = None,
        combine: str | int = "product",
    ):
        super().__init__(backbone)
        depth = len(backbone.blocks)
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, not {attention!r}")
        if not -depth <= select < depth:
            raise ValueError(f"select must be the index of one of {depth} layers, not {select}")
        patch = backbone.patch_size
        if window < 0 or (window and (window % patch or STRIDE % patch)):
            raise ValueError(f"window must be 0 or, as {STRIDE} must, a multiple of the patch, {patch}, not {window}")
        if words and background:
            raise ValueError("words are for sets without background; with background=True they are those of class 0")
        self.blocks = range(depth - 1)
        self.words = tuple(word.strip() for word in WORDS.get(words, words).split(";")) if words else ()
        self.attention, self.select, self.iterate, self.window = attention, select, iterate, window
        self.background, self.normalise = background, normalise
        self.attention_threshold, self.score_threshold = attention_threshold, score_threshold
        self.refine: Refine | None = (
            refine if callable(refine) or refine is None else self._refinement(refine, refine_weights, combine)
        )

    def prepare(self, text: Tensor, query_class: tuple[int, ...], logit_scale: float) -> Tensor:
        """The text [Q+W+1, dim] that `scores` takes, W words after the queries: rows of length `logit_scale`.

        The last is the mean of all classes, which takes the probability of what could be any.
        """
        foreground = [row for row, index in enumerate(query_class) if index > 0 or not self.background]
        if not foreground:
            raise UserError("CLIPer with background=True takes class 0 for background words; name a class after it")
        return logit_scale * torch.cat([text, F.normalize(text[foreground].mean(dim=0, keepdim=True), dim=-1)])

    def decoder(
        self, query_class: tuple[int, ...], logit_scale: float, threshold: float, area_threshold: float
    ) -> "ImageLevelDecoder":
        if area_threshold:
            raise UserError("CLIPer decides which classes are in an image by their scores; set area_threshold to 0")
        return ImageLevelDecoder(query_class, threshold, self.score_threshold, self.normalise, self.background)

    def features(self, trunk: Trunk) -> Tensor:
        features, _ = self.layers(trunk.repositioned(POSITION))
        return features[-1, :, trunk.prefix :].unflatten(1, trunk.grid)  # [B, h, w, dim]

    def scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        """Maps [B, Q, h, w], float32, for prepared text [Q+W+1, dim]; with `refine`, on its grid.

        A map's largest value is its query's score for the whole image.
        """
        trunk = trunk.repositioned(POSITION)
        features, attention = self.layers(trunk)
        probabilities = layer_scores(features[:, :, trunk.prefix :], text).softmax(dim=2)  # [L, B, Q+W+1, N]
        if self.window:
            scores = torch.stack([self.window_scores(image, text) for image in trunk.images], dim=1)
            probabilities = (probabilities + scores.softmax(dim=2)) / 2
        selected = probabilities[self.select]
        selected.masked_fill_(selected < self.attention_threshold * selected.amax(dim=2, keepdim=True), 0)
        coarse = selected @ attention + probabilities.mean(dim=0)  # [B, Q+W+1, N]
        coarse = coarse[:, : -1 - len(self.words)].unflatten(2, trunk.grid)  # [B, Q, h, w]
        if self.refine is None:
            return coarse
        return torch.stack([self.refined(image, maps) for image, maps in zip(trunk.images, coarse)])

    def refined(self, image: Tensor, coarse: Tensor) -> Tensor:
        """Maps [Q, h, w] of an image [3, H, W] refined, their largest values halfway back to what they were."""
        assert self.refine is not None
        refined = self.refine(image, coarse)
        largest = refined.amax(dim=(1, 2), keepdim=True)
        level = (largest + coarse.amax(dim=(1, 2), keepdim=True)) / 2
        return refined * (level / largest.clamp(min=1e-12))

    def window_scores(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores [L, Q+W+1, N] of an image [3, H, W] from windows.

        Scores are averaged where windows overlap, attentions for every pair of patches that share a window, and then
        the scores are carried along the attention, as the maps of the whole image will be.
        """
        patch, grid = self.backbone.patch_size, self.backbone.grid(image[None])
        plan = windows.plan(image.shape[1], image.shape[2], self.window, min(STRIDE, self.window), patch)
        h, w = (side // patch for side in plan.window_shape)
        corners = [(y // patch, x // patch) for y in plan.rows.starts for x in plan.columns.starts]
        scores = text.new_zeros(len(self.backbone.blocks), len(text), *grid, dtype=torch.float32)
        attention = scores.new_zeros(*grid, *grid)
        count, pairs = torch.zeros_like(scores[0, 0]), torch.zeros_like(attention)
        for (y, x), window in zip(corners, windows.cut(image, plan)):
            rows, columns = slice(y, y + h), slice(x, x + w)
            trunk = self.backbone.trunk(window[None]).repositioned(POSITION)
            features, weights = self.layers(trunk)
            scores[:, :, rows, columns] += layer_scores(features[:, 0, trunk.prefix :], text).unflatten(2, (h, w))
            attention[rows, columns, rows, columns] += weights.reshape(h, w, h, w)
            count[rows, columns] += 1
            pairs[rows, columns, rows, columns] += 1
        attention = (attention / pairs.clamp(min=1)).flatten(0, 1).flatten(1)  # [N, N]
        attention = attention / attention.sum(dim=1, keepdim=True).clamp(min=1e-12)
        return (scores / count).flatten(2) @ attention

    def layers(self, trunk: Trunk) -> tuple[Tensor, Tensor]:
        """Every layer's features [L, B, P+N, dim], and the patches' attention [B, N, N] of the last.

        The attention is the mean of its heads.
        """
        fused = self.attention == "fused"
        entering: list[Tensor] = []
        total = None
        for index in self.blocks:  # in their order, so that the trunk mixes by the same attention
            entering.append(self.backbone.blocks[index].norm(trunk.tokens(index)))
            if fused:
                total = trunk.add_attention(total, index)  # [B, heads, P+N, P+N]
        balanced = None if total is None else Balanced(total)
        last, patches = trunk.block(), slice(trunk.prefix, None)
        features: list[Tensor] = []
        for x in [*entering, trunk.tokens()]:
            if balanced is not None:
                if self.iterate or not features:
                    balanced.step()
                mixed = balanced.mix(*last.parts(x, "v"))
            else:
                q, k, v = last.qkv(x)
                if self.attention == "identity":
                    weights = torch.eye(q.shape[2], device=q.device).expand(*q.shape[:2], -1, -1)
                else:
                    named = {"q": q, "k": k, "v": v}
                    weights = softmax_attention(*(named[letter] for letter in self.attention))
                mixed = weights.to(v) @ v
            features.append(self.backbone.project(last.attention_output(mixed)))
        mean = weights.mean(dim=1) if balanced is None else balanced.mean()
        return torch.stack(features), mean[:, patches, patches]

    def _refinement(self, name: str, weights: str | None, combine: str | int) -> Refine:
        if name in MODELS or "/" in name:
            return ByDiffusion(self.backbone, name, combine, self.attention_threshold)
        return ByVisionModel(ProxyCLIP(self.backbone, name, weights))


class ByDiffusion:
    """Maps [Q, h, w] carried along the self-attention of Stable Diffusion for an image [3, H, W], normalised."""

    def __init__(self, backbone: Backbone, model: str, combine: str | int, threshold: float):
        self.diffusion = DiffusionAttention(model, combine, device=backbone.device, dtype=backbone.dtype)
        self.mean, self.std = (
            torch.tensor(s, device=backbone.device)[:, None, None] for s in (backbone.mean, backbone.std)
        )
        self.threshold = threshold

    def __call__(self, image: Tensor, maps: Tensor) -> Tensor:
        return self.diffusion(image * self.std + self.mean, maps, self.threshold)


class ByVisionModel:
    """Maps [Q, h, w] averaged by the similarity of a vision model's features as ProxyCLIP's: [Q, h', w']."""

    def __init__(self, proxy: ProxyCLIP):
        self.proxy = proxy

    def __call__(self, image: Tensor, maps: Tensor) -> Tensor:
        features = self.proxy.external(image[None])[0]  # [D', h', w']
        grid = (features.shape[1], features.shape[2])
        resized = F.interpolate(maps[None], size=grid, mode="bilinear")[0].flatten(1)  # [Q, N]
        return (resized @ self.proxy.attention(features).T).unflatten(1, grid)


def softmax_attention(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) [B, heads, T, T], float32, for queries and keys [B, heads, T, d]."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(dim=-1)


class Balanced:
    """Attention A [B, heads, T, T], balanced: diag(r) A diag(c), of which only r and c change.

    What it averages by, fused, is this made symmetric, what exceeds the mean of its column, rows to sum 1.
    """

    def __init__(self, attention: Tensor):
        self.attention, self.turned = attention, attention.mT.contiguous()
        self.rows = self.columns = attention.new_ones(*attention.shape[:2], 1, attention.shape[3])  # r, c
        # Of the columns of diag(r) A: a row times a matrix is faster than a sum over rows.
        self.sums = self.rows @ self.attention

    def step(self) -> None:
        """One step of Sinkhorn's iteration: columns to sum 1, then rows."""
        self.columns = 1 / self.sums
        self.rows = 1 / (self.columns @ self.turned)
        self.sums = self.rows @ self.attention

    def mix(self, values: Tensor) -> Tensor:
        """Values [B, heads, T, d] averaged by what is fused."""
        batch, heads, count, width = values.shape
        out = values.new_empty(batch, count, heads, width).transpose(1, 2)
        values = values.mT.contiguous()
        for (image, head, rows), weights in self._fused():
            out[image, head, rows] = product(weights.to(values), values[image, head])
        return out

    def mean(self) -> Tensor:
        """What is fused, [B, T, T], the mean of the heads."""
        batch, heads, count = self.attention.shape[:3]
        out = self.attention.new_zeros(batch, count, count)
        for (image, _, rows), weights in self._fused():
            out[image, rows] += weights if weights.ndim == 2 else weights.sum(dim=1)
        return out.div_(heads)

    def _fused(self) -> Iterator[tuple[tuple[Any, Any, slice], Tensor]]:
        """What is fused, a head's rows after the other's on a CPU, whose cache holds them; else all at once.

        Half of r_i A_ij c_j + r_j A_ji c_i, less m_j, the mean of column j, is divided by c_i / 2, which the sums of
        rows undo: then there is one factor for each of the two.
        """
        means = (self.columns * self.sums + 1) / self.rows.shape[3]  # 2 m, for balanced rows sum to 1
        ratio, inverse = (self.rows / self.columns).mT, (1 / self.columns).mT  # [B, heads, T, 1]
        for some in pieces(self.attention):
            across = some[:2]
            weights = self.attention[some] * self.columns[across]
            weights.mul_(ratio[some]).addcmul_(self.turned[some], self.rows[across])
            weights.addcmul_(inverse[some], means[across], value=-1).clamp_(min=0)
            yield some, weights.div_(weights.sum(dim=-1, keepdim=True).clamp_(min=1e-12))


def pieces(attention: Tensor) -> Iterator[tuple[Any, Any, slice]]:
    """Indices of [B, heads, T, ...]: of some rows of a head on a CPU, else of all."""
    batch, heads, count = attention.shape[:3]
    if attention.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(None), slice(None), slice(None)
        return
    for image, head, first in itertools.product(range(batch), range(heads), range(0, count, HEAD_ROWS)):
        yield image, head, slice(first, first + HEAD_ROWS)


def layer_scores(features: Tensor, text: Tensor) -> Tensor:
    """Patch features [..., N, dim] and text [Q, dim] of any length to scores [..., Q, N], float32."""
    return (F.normalize(features.float(), dim=-1) @ text.float().T).transpose(-1, -2)


@dataclass(frozen=True)
class ImageLevelDecoder:
    """How CLIPer's maps become labels; `labels` and `probabilities` are those of `clearclip.decode.Decoder`.

    A class has the largest map of its queries. Its score for the image is that map's largest value; classes whose
    score does not exceed `score_threshold` are not in the image. A map is resized, divided by its largest value and
    multiplied by the score; with `normalise` it is then scaled to 0..1, which undoes both; what is now below
    `threshold` is 0. A pixel takes its best class. Where all are 0 it has none: it is class 0 if that is `background`,
    whose own map does not count; else its label is no class's, 255 or, with more than 255 classes, 65535.
    """

    query_class: tuple[int, ...]
    threshold: float = 0.0
    score_threshold: float = 0.0
    normalise: bool = False
    background: bool = False

    @property
    def num_classes(self) -> int:
        return max(self.query_class) + 1

    def labels(self, maps: Maps) -> Tensor:
        """Maps [Q, H, W] to labels [H, W], uint8 up to 255 classes, else int32."""
        many = self.num_classes > 255
        nothing = 0 if self.background else 65535 if many else 255
        dtype = torch.int32 if many else torch.uint8
        labels = torch.full(maps.shape, nothing, dtype=dtype, device=maps.scores.device)
        best = torch.zeros(maps.shape, device=maps.scores.device)
        for first, values in self._values(maps):
            value, index = (values[0], 0) if len(values) == 1 else values.max(dim=0)  # the first of equals
            better = value > best  # of equals of two groups, too, the first stays
            labels = torch.where(better, index + first, labels).to(dtype)
            best = torch.where(better, value, best)
        return labels

    def probabilities(self, maps: Maps) -> Tensor:
        """Values [C, H, W] as they compete for a pixel, float32; the background's is `threshold`."""
        out = torch.zeros(self.num_classes, *maps.shape, device=maps.scores.device)
        if self.background:
            out[0] = self.threshold
        for first, values in self._values(maps):
            out[first : first + len(values)] = values
        return out

    def _values(self, maps: Maps) -> Iterator[tuple[int, Tensor]]:
        """Classes from the first of a group on with their values [G, H, W], 0 for those that are not in the image: to
        ask which are would wait for them."""
        rows: list[list[int]] = [[] for _ in range(self.num_classes)]
        for row, index in enumerate(self.query_class):
            rows[index].append(row)
        size = group_size(maps)
        for first in range(int(self.background), self.num_classes, size):
            group = [functools.reduce(torch.maximum, [maps.scores[row] for row in of]) for of in rows[first:][:size]]
            tiled = torch.stack(group).float()  # [G, h, w]
            score = tiled.amax(dim=(-2, -1), keepdim=True)
            values = maps.rows @ (tiled if size > 1 else tiled[0]) @ maps.columns.T  # of one a plain product
            values = values * (score / values.amax(dim=(-2, -1), keepdim=True).clamp(min=1e-12))
            if self.normalise:
                values = values - values.amin(dim=(-2, -1), keepdim=True)
                values = values / values.amax(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
            yield first, values.masked_fill((values < self.threshold) | (score <= self.score_threshold), 0)


def group_size(maps: Maps) -> int:
    """Classes to be decoded at once: on a CPU one, whose map its cache holds; on a GPU every group is launched anew."""
    if maps.scores.device.type == "cpu":
        return 1
    return max(1, DEVICE_BAND_BYTES // (4 * maps.shape[0] * maps.shape[1]))


register(
    "CLIPer", CLIPer,
    "attention of all earlier layers, balanced, applied to every layer's tokens; optional refinement by diffusion",
    "Sun et al., ICCV 2025",
)  # fmt: skip
