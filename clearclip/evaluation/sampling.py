"""Scores and ground truth on a grid of an image's pixels: what is fitted or looked into, without an evaluation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clearclip.evaluation.passes import Benchmark, Pass, Picture, load
from clearclip.evaluation.run import Run
from clearclip.segmenter import Segmenter, grid_step
from clearclip.text import Queries


@dataclass(frozen=True)
class Sampled:
    """One image of a benchmark.

    Attributes:
        path: of its file.
        scores: [Q, h, w] of pixels on a grid, as the decoder has them, on the CPU.
        truth: [h, w], int64, their labels; −1 where there is none.
        features: [h', w', dim], unit patch features, where they were asked for.
    """

    path: str
    scores: Tensor
    truth: Tensor
    features: Tensor | None


@torch.inference_mode()
def sample(
    run: Run,
    segmenter: Segmenter,
    queries: Queries,
    benchmark: Benchmark,
    indices: Iterable[int],
    features: bool = False,
) -> Iterator[Sampled]:
    """The images of a benchmark at these indices, one after the other.

    Raises UserError for what cannot be read.
    """
    one = Pass([run], [benchmark], [0], [])
    for index in indices:
        loaded = load(one, Picture({0: index}))[1][0]
        if isinstance(loaded, Exception):
            raise loaded
        known = loaded["data_samples"]
        view = segmenter.view(loaded["inputs"].flip(0), known.ori_shape, known.get("img_path"))
        dense = segmenter.look([view], queries, features)[0]
        step = grid_step(view.shape)
        truth = known.gt_sem_seg.data[0][step // 2 :: step, step // 2 :: step].cpu().long()
        labelled = (truth >= 0) & (truth < len(benchmark.classes)) & (truth != benchmark.evaluators.ignore_index)
        yield Sampled(
            known.img_path,
            segmenter.maps(view, dense, queries).every(step).cpu(),
            truth.masked_fill(~labelled, -1),
            None if dense.features is None else dense.features.cpu(),
        )
