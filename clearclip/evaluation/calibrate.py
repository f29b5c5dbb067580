"""A calibration fitted on some images of a benchmark, and the runs that say what it gives on the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearclip.calibration import Calibration, Fit, Pixels, fit, text_hash
from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.evaluation.evaluate import build_segmenter
from clearclip.evaluation.passes import Benchmark, Pass, Picture, load
from clearclip.evaluation.run import Run
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vocabulary import Vocabulary, load_vocabulary
from clearclip.windows import Maps

PIXELS = 2000  # of an image, on a regular grid


def split(benchmark: Benchmark, images: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of images to fit on, drawn at random, and of the others, both in order.

    Raises UserError where fewer than one would be left.
    """
    count = len(benchmark.samples)
    if images >= count:
        raise UserError(f"--images {images} leaves none of the {count} images to report on; give fewer")
    drawn = np.random.default_rng(seed).permutation(count)
    return sorted(drawn[:images].tolist()), sorted(drawn[images:].tolist())


def sample(
    run: Run, segmenter: Segmenter, queries: Queries, benchmark: Benchmark, indices: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image, scores [Q, p] and labels [p] of its labelled pixels on a grid, as the decoder sees them."""
    one = Pass([run], [benchmark], [0], [])
    for index in indices:
        loaded = load(one, Picture({0: index}))[1][0]
        if isinstance(loaded, Exception):
            raise loaded
        known = loaded["data_samples"]
        view = segmenter.view(loaded["inputs"].flip(0), known.ori_shape, known.get("img_path"))
        maps = segmenter.maps(view, segmenter.look([view], queries)[0], queries)
        step = max(1, round((known.ori_shape[0] * known.ori_shape[1] / PIXELS) ** 0.5))
        rows, columns = (operator[step // 2 :: step] for operator in (maps.rows, maps.columns))
        scores = Maps(maps.scores, rows, columns).full().cpu()  # [Q, h, w]
        truth = known.gt_sem_seg.data[0][step // 2 :: step, step // 2 :: step].cpu().long()
        labelled = (truth >= 0) & (truth < len(benchmark.classes)) & (truth != benchmark.evaluators.ignore_index)
        yield scores[:, labelled], truth[labelled]


@torch.inference_mode()
def gather(
    run: Run, segmenter: Segmenter, benchmark: Benchmark, indices: Sequence[int], tick: Any = None
) -> tuple[Pixels, Queries, Vocabulary]:
    """The labelled pixels of some images, for `fit`.

    Raises UserError for a method whose labels are not those of the best class.
    """
    vocabulary = load_vocabulary(run.config.model.vocabulary)
    queries = segmenter.queries(vocabulary)
    if not isinstance(segmenter.decoder(queries), Decoder):
        raise UserError(f"{run.method} has a decoder of its own, which offsets do not fit: calibrate another method")
    sampled = []
    for part in sample(run, segmenter, queries, benchmark, indices):
        sampled.append(part)
        if tick:
            tick()
    return Pixels.of(sampled, queries.query_class, segmenter.logit_scale), queries, vocabulary


def calibrate(
    run: Run, backbone: Any, benchmark: Benchmark, indices: Sequence[int], seed: int = 0, tick: Any = None
) -> tuple[Calibration, Fit]:
    """Fit a calibration on images of a benchmark; `tick` is called after each.

    A threshold is fitted where the run has one: there class 0 is for all that is nothing else.
    """
    segmenter = build_segmenter(run, backbone, {})
    pixels, queries, vocabulary = gather(run, segmenter, benchmark, indices, tick)
    if not len(pixels.truth):
        raise UserError(f"no pixel of the {len(indices)} images has a label; give more --images")
    found = fit(pixels, segmenter.threshold, seed)
    calibration = Calibration(
        vocabulary.names,
        tuple(round(value, 6) for value in found.offsets.tolist()),
        found.threshold if segmenter.threshold else None,
        segmenter.settings | {"method": run.method},
        text_hash(queries),
        dict(
            benchmark=run.config.benchmark.name,
            protocol=run.config.benchmark.protocol,
            seed=seed,
            pixels=len(pixels.truth),
            doubt=None if found.doubt == float("inf") else found.doubt,
            folds_plain=round(found.plain, 3),
            folds_calibrated=round(found.calibrated, 3),
            images=[benchmark.samples[index] for index in indices],
        ),
    )
    return calibration, found
