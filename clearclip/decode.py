"""Scores to labels: synonyms, logit_scale and threshold, streamed so that [classes, H, W] is never stored."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.fused import fused
from clearclip.tensors import TensorCache
from clearclip.windows import LateMaps, Maps

BAND_BYTES = 1 << 20  # of scores at once on a CPU, whose second-level cache should hold them
DEVICE_BAND_BYTES = 64 << 20  # elsewhere, where a launch costs more than memory does; of all that goes in pieces
LATE_BYTES = 64 << 20  # of maps at full size that are made late
ENLARGED = 1024  # pixels to a score, from which on a block of pixels is looked at before its scores are made
BAND_ROWS = 32  # so many at once let the matrix product reuse what it reads


@dataclass(frozen=True)
class Decoded:
    """What a decoder makes of the maps of an image.

    Attributes:
        labels: [H, W].
        classes: how many there are; a label beyond them is none of them.
        make: makes `probabilities`, which hold all classes at full size: few ask for them.
    """

    labels: Tensor
    classes: int
    make: Callable[[], Tensor]

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """What competes for a pixel, [C, H, W], float32."""
        return self.make()


class LabelDecoder(Protocol):
    """What turns the maps of an image into labels."""

    @property
    def num_classes(self) -> int: ...

    def labels(self, maps: Maps) -> Tensor:
        """Maps [Q, H, W] to labels [H, W]."""
        ...

    def probabilities(self, maps: Maps) -> Tensor:
        """Maps [Q, H, W] to what competes for a pixel, [C, H, W], float32."""
        ...


@dataclass(frozen=True)
class Decoder:
    """How scores become labels.

    Softmax over queries of `logit_scale` × score; a class has the largest probability of its queries; a pixel
    takes its best class, the lowest index on ties; below `threshold` it takes class 0. Classes other than 0
    that are best in no more than `area_threshold` of the pixels where such a class is best lose their
    probability first (SCLIP).
    """

    query_class: tuple[int, ...]
    logit_scale: float = 50.0
    threshold: float = 0.0
    area_threshold: float = 0.0
    _tables: TensorCache = field(default_factory=lambda: TensorCache(1 << 20), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if sorted(set(self.query_class)) != list(range(max(self.query_class, default=-1) + 1)) or not self.query_class:
            raise ValueError("query_class must name every class from 0 on at least once")

    @property
    def num_classes(self) -> int:
        return max(self.query_class) + 1

    def labels(self, maps: Maps) -> Tensor:
        """Maps of all queries [Q, H, W] to labels [H, W], uint8 where they fit, else int16."""
        if self.area_threshold <= 0:
            return self._labels(maps, self.threshold)
        best = self._labels(maps, 0.0)
        area = tally(best.flatten().long(), self.num_classes)[1:]
        kept = area > self.area_threshold * area.sum()
        return self._labels(maps, self.threshold, F.pad(kept, (1, 0), value=True))

    def _labels(self, maps: Maps, threshold: float, kept: Tensor | None = None) -> Tensor:
        """Labels by the classes that are `kept` [C], by default all."""
        # With queries in the order of their classes the first best query belongs to the lowest best class, and
        # neither synonyms nor softmax nor logit_scale change which one that is.
        order = sorted(range(len(self.query_class)), key=lambda q: self.query_class[q])
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int16
        if isinstance(maps, LateMaps):
            return self._late_labels(maps, order, threshold, kept).to(dtype)
        scores, device = maps.scores.float().permute(1, 2, 0), maps.scores.device  # [a, b, Q]
        if order != list(range(len(order))):
            scores = scores[..., self._table("order", order, torch.int64, device)]
        classes = self._table("classes", sorted(self.query_class), dtype, device)
        kernel = fused("best_query", device) if kept is None and threshold <= 0 and maps.taps else None
        if kernel:
            assert maps.taps is not None
            best = kernel(torch.matmul(maps.columns, scores), maps.taps.sources, maps.taps.weights)
            return best.to(dtype) if len(order) == self.num_classes else classes[best]
        enlarged = maps.shape[0] * maps.shape[1] >= ENLARGED * scores.shape[0] * scores.shape[1]
        if kept is None and threshold <= 0 and enlarged and device.type == "cpu" and not torch.compiler.is_compiling():
            return _best_of_few(scores, maps.rows, maps.columns, classes)
        # What is not kept cannot win, and yet has its share of the softmax.
        excluded = (
            None
            if kept is None
            else torch.zeros(len(order), device=device).masked_fill(~kept[classes.long()], -torch.inf)
        )
        plain = self.query_class == tuple(range(len(order)))  # no synonyms: a query's place is its class
        labels = scores.new_empty(maps.shape, dtype=dtype)
        for y, x, band in _bands(scores, maps.rows, maps.columns, maps.whole):
            query = _argmax(band if excluded is None else band + excluded)  # [r, w]
            label = query.to(dtype) if plain else classes[query]
            if threshold > 0:
                # The best probability is 1 / Σ exp(score - best score): the softmax itself is never needed.
                best = band.gather(-1, query[..., None])
                share = band.sub_(best).mul_(self.logit_scale).exp_().sum(dim=-1)
                label.masked_fill_(1 / share < threshold, 0)
            labels[y, x] = label
        return labels

    def _late_labels(self, maps: LateMaps, order: list[int], threshold: float, kept: Tensor | None) -> Tensor:
        """As `_labels`, by the best query so far, its score, and Σ exp(score − best score) over all so far."""
        best = torch.full(maps.shape, -torch.inf, device=maps.maps.scores.device)
        labels, total = torch.zeros_like(best, dtype=torch.int32), torch.zeros_like(best)
        size = max(1, LATE_BYTES // best.nbytes)
        for some in (order[first : first + size] for first in range(0, len(order), size)):
            for query, scores in zip(some, maps.part(some)):
                label = self.query_class[query]
                better = scores > best  # the first of equals stays
                if kept is not None:
                    better &= kept[label]
                highest = torch.where(better, scores, best)
                if threshold > 0:
                    total *= ((best - highest) * self.logit_scale).exp()
                    total += ((scores - highest) * self.logit_scale).exp()
                labels.masked_fill_(better, label)
                best = highest
        return labels.masked_fill_(1 / total < threshold, 0) if threshold > 0 else labels

    def probabilities(self, maps: Maps) -> Tensor:
        """Class probabilities [C, H, W] in float32, before any threshold. This does store what `labels` avoids."""
        scores, rows, columns = maps.scores, maps.rows, maps.columns
        classes = self._table("class of", self.query_class, torch.int64, scores.device)[:, None, None]
        out = scores.new_zeros(self.num_classes, len(rows), len(columns), dtype=torch.float32)
        for y, x, band in _bands(scores.float().permute(1, 2, 0).contiguous(), rows, columns, maps.whole):
            queries = band.mul_(self.logit_scale).softmax(dim=-1).permute(2, 0, 1)  # [Q, r, w]
            out[:, y, x] = out[:, y, x].scatter_reduce(0, classes.expand_as(queries), queries, "amax")
        return out

    def _table(self, name: str, numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Numbers on the device, uploaded for the first image alone."""
        return self._tables.get((name, dtype, device), lambda: torch.tensor(numbers, dtype=dtype, device=device))


def _bands(scores: Tensor, rows: Tensor, columns: Tensor, whole: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """From scores [a, b, Q], pieces [r, w, Q] at full size, with their rows and columns; each overwrites the last.

    The queries of a pixel lie side by side in memory, so that comparing them needs no strides. Where the scores are
    `whole` they have their full size.
    """
    height, width, queries = len(rows), len(columns), scores.shape[-1]
    if torch.compiler.is_compiling():  # a tracer knows no buffer that is written over
        across = (columns @ scores).flatten(1)
        yield slice(None), slice(None), (rows @ across).unflatten(1, (-1, scores.shape[-1]))
        return
    size = (BAND_BYTES if scores.device.type == "cpu" else DEVICE_BAND_BYTES) // 4
    w = min(width, max(1, size // (queries * BAND_ROWS)))
    r = min(height, max(1, size // (queries * w)))
    if whole:
        for top, left in itertools.product(range(0, height, r), range(0, width, w)):
            some = slice(top, top + r), slice(left, left + w)
            yield *some, scores[some].clone(memory_format=torch.contiguous_format)
        return
    buffer = scores.new_empty(r * w * queries)
    bands = [(slice(y, y + r), *_nonzero(rows[y : y + r])) for y in range(0, height, r)]
    for x in range(0, width, w):
        operator, used = _nonzero(columns[x : x + w])
        across = (operator @ scores[:, used]).flatten(1)  # [a, w · Q]
        for y, operator, used in bands:
            band = buffer[: len(operator) * across.shape[1]].view(len(operator), -1)
            torch.mm(operator, across[used], out=band)
            yield y, slice(x, x + w), band.unflatten(1, (-1, queries))


def _best_of_few(scores: Tensor, rows: Tensor, columns: Tensor, classes: Tensor) -> Tensor:
    """Labels [H, W], the `classes` [Q] of the best query, the first of equals, of scores [a, b, Q] much enlarged.

    A pixel's scores are means of a few that lie around it. In most blocks of pixels few queries can be the best by
    these, often one: only they are enlarged there.
    """
    labels, table = np.empty((len(rows), len(columns)), classes.numpy().dtype), classes.numpy()
    steps = (max(1, 2 * len(operator) // operator.shape[1]) for operator in (rows, columns))
    down, across = (
        [(slice(i, i + step), *_nonzero(operator[i : i + step])) for i in range(0, len(operator), step)]
        for operator, step in zip((rows, columns), steps)
    )
    # For each block the columns of scores around it, as many for all: the last of them several times.
    each = [near for *_, near in across if isinstance(near, Tensor)]
    columns_near = nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=-1)  # [blocks, K]
    columns_near = torch.where(columns_near < 0, columns_near.amax(dim=1, keepdim=True), columns_near)
    lost = 1e-5 * scores.abs().max()  # more than rounding can lose
    for y, by_rows, near in down:
        around = scores[near][:, columns_near].transpose(0, 1).flatten(1, 2)  # [blocks, k, Q]
        likely = (around - around.amax(dim=2, keepdim=True)).amin(dim=1).argmax(dim=1)  # [blocks], the best throughout
        # How far one query is ahead of another is enlarged as scores are: if nowhere around, then nowhere between.
        ahead = around - around.gather(2, likely[:, None, None].expand(-1, around.shape[1], 1))
        hopeless = ahead.amax(dim=1) < -lost  # [blocks, Q]
        wide = (columns @ scores[near]).transpose(1, 2)  # [k, Q, W]
        for (x, *_), hopeful in zip(across, (~hopeless).numpy()):
            queries = hopeful.nonzero()[0]
            block = labels[y, x]
            block[:] = table[queries[0]]
            if len(queries) == 1:
                continue
            enlarged = (by_rows @ wide[:, queries, x].flatten(1)).unflatten(1, (len(queries), -1)).numpy()  # [r, n, w]
            best, better = enlarged[:, 0], np.empty(block.shape, bool)
            for place, query in enumerate(queries[1:], 1):
                np.greater(enlarged[:, place], best, out=better)
                np.copyto(block, table[query], where=better)
                np.maximum(best, enlarged[:, place], out=best)
    return torch.from_numpy(labels)


def _nonzero(operator: Tensor) -> tuple[Tensor, Tensor | slice]:
    """The columns of an operator's rows that are not all zero, and where they are: neighbouring rows share a few.

    Elsewhere than on a CPU all columns, for to ask which they are would wait for the device.
    """
    if operator.device.type != "cpu":
        return operator, slice(None)
    used = operator.any(dim=0).nonzero().flatten()
    return operator[:, used], used


def tally(index: Tensor, bins: int) -> Tensor:
    """How often each of 0 … bins − 1 is in `index` [N], int64: [bins]. Nothing waits for the device."""
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.bincount(index, minlength=bins)
    one = torch.ones((), dtype=torch.int64, device=index.device)
    return torch.zeros(bins, dtype=torch.int64, device=index.device).scatter_add_(0, index, one.expand_as(index))


def _argmax(scores: Tensor) -> Tensor:
    """Arg-max over the last axis, the first of equals. On a CPU NumPy's is vectorised, that of torch is not."""
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(dim=-1)
