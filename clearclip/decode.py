"""Scores to labels: synonyms, temperature and threshold, streamed so that [classes, H, W] is never stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BAND_BYTES = 16 << 20  # of scores at once: small beside the image, large enough for the matrix product


@dataclass(frozen=True)
class Decoder:
    """How scores become labels.

    Softmax over queries of `temperature` × score; a class has the largest probability of its queries; a pixel
    takes its best class, the lowest index on ties; below `threshold` it takes class 0. Classes other than 0
    whose share of the pixels labelled other than 0 does not exceed `area_threshold` lose their probability
    first (SCLIP).
    """

    query_class: tuple[int, ...]
    temperature: float = 50.0
    threshold: float = 0.0
    area_threshold: float = 0.0

    def __post_init__(self):
        if sorted(set(self.query_class)) != list(range(max(self.query_class, default=-1) + 1)) or not self.query_class:
            raise ValueError("query_class must name every class from 0 on at least once")

    @property
    def num_classes(self) -> int:
        return max(self.query_class) + 1

    @property
    def has_synonyms(self) -> bool:
        return len(self.query_class) > self.num_classes

    def labels(self, scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Tiled scores [Q, a, b] and operators [H, a], [W, b] to labels [H, W], uint8 where they fit, else int16."""
        labels = self._labels(scores, rows, columns, None)
        if self.area_threshold > 0:
            area = torch.bincount(labels.flatten().int(), minlength=self.num_classes)[1:]
            small = area <= self.area_threshold * area.sum()
            if (small & (area > 0)).any():
                kept = torch.cat([small.new_ones(1), ~small])
                labels = self._labels(scores, rows, columns, kept)
        return labels

    def _labels(self, scores: Tensor, rows: Tensor, columns: Tensor, kept: Tensor | None) -> Tensor:
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int16
        labels = torch.empty(len(rows), len(columns), dtype=dtype, device=scores.device)
        # Without a threshold neither softmax nor temperature can change which class is best.
        need_probabilities = self.threshold > 0 or kept is not None
        for start, band in self._bands(scores, rows, columns):
            classes = self._classes(band.softmax(dim=0) if need_probabilities else band)  # [C, r, W]
            if kept is not None:
                classes = classes * kept[:, None, None]
            best, index = classes.max(dim=0)
            if self.threshold > 0:
                index = index.masked_fill(best < self.threshold, 0)
            labels[start : start + len(index)] = index.to(dtype)
        return labels

    def probabilities(self, scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Class probabilities [C, H, W] in float32, before any threshold. This does store what `labels` avoids."""
        bands = [self._classes(band.softmax(dim=0)) for _, band in self._bands(scores, rows, columns)]
        return torch.cat(bands, dim=1)

    def _bands(self, scores: Tensor, rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Bands of output rows: (first row, temperature × scores [Q, r, W])."""
        scores = scores.float() * self.temperature
        height = max(1, BAND_BYTES // (4 * len(scores) * len(columns)))
        across = scores @ columns.T  # [Q, a, W]
        for start in range(0, len(rows), height):
            yield start, torch.einsum("ra,qaw->qrw", rows[start : start + height], across)

    def _classes(self, queries: Tensor) -> Tensor:
        """The largest of each class's queries: [Q, r, W] to [C, r, W]."""
        if not self.has_synonyms:
            return queries if self.query_class == tuple(range(self.num_classes)) else queries[self._order()]
        index = torch.tensor(self.query_class, device=queries.device)
        shape = (self.num_classes, *queries.shape[1:])
        expanded = index[:, None, None].expand_as(queries)
        return queries.new_full(shape, -torch.inf).scatter_reduce_(0, expanded, queries, "amax")

    def _order(self) -> list[int]:
        return sorted(range(len(self.query_class)), key=self.query_class.__getitem__)
