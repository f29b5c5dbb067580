"""A calibration fitted on some images of a benchmark, and the runs that say what it gives on the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clearclip.calibration import Calibration, Fit, Pixels, fit, text_hash
from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.evaluation.evaluate import build_segmenter
from clearclip.evaluation.passes import Benchmark
from clearclip.evaluation.run import Run
from clearclip.evaluation.sampling import sample
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vocabulary import Vocabulary, load_vocabulary


def split(benchmark: Benchmark, images: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of images to fit on, drawn at random, and of the others, both in order.

    Raises UserError where fewer than one would be left.
    """
    count = len(benchmark.samples)
    if images >= count:
        raise UserError(f"--images {images} leaves none of the {count} images to report on; give fewer")
    drawn = np.random.default_rng(seed).permutation(count)
    return sorted(drawn[:images].tolist()), sorted(drawn[images:].tolist())


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
    for one in sample(run, segmenter, queries, benchmark, indices):
        labelled = one.truth >= 0
        sampled.append((one.scores[:, labelled], one.truth[labelled]))
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
