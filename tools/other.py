#!/usr/bin/env python
"""How well ways to tell `other` do, on a benchmark with a background:

    python tools/other.py voc21 --pretrained openai-int8 --images 33

Each of them sees the names of the other classes alone. They are compared where all names of the benchmark are given,
where those are that occur in the image, and, by the mean IoU of its region, where one of these is given alone:

    words               what the shipped words win is other (`Segmenter(other=True)`)
    background          the word "background" competes, and a best probability below a threshold is other
    probability         a best probability below a threshold is other
    cosine              a best cosine below a threshold is other
    cosine − mean       the same, less the cosine of the mean of the words: calibrated for each pixel

A row for each threshold shows how much there is to choose; words have none.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from clearclip import Segmenter, TextEmbeddings
from clearclip.evaluation.evaluate import open_benchmark
from clearclip.evaluation.run import load_config
from clearclip.other import OtherWords, set_apart
from clearclip.text import embed_names
from clearclip.vocabulary import Vocabulary, load_vocabulary

PROBABILITIES, COSINES, MARGINS = (0.4, 0.5, 0.6, 0.7, 0.8), (0.25, 0.26, 0.27, 0.28, 0.29), (0.04, 0.05, 0.06, 0.07)
IGNORED, SCALE = 255, 50.0
STEP = 4  # every fourth pixel of every fourth row counts


def is_other(names: Tensor, words: Tensor, background: Tensor, mean: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each way and threshold, and which pixels [H, W] it calls other; cosines [N, H, W] of names and of words."""
    best = names.amax(dim=0)
    yield "words", words.amax(dim=0) > best
    rivals = (SCALE * torch.cat([names, background])).softmax(dim=0)
    alone = (SCALE * names).softmax(dim=0).amax(dim=0)
    for threshold in PROBABILITIES:
        named = rivals[:-1].amax(dim=0)
        yield f"background {threshold}", (rivals[-1] > named) | (named < threshold)
        if len(names) > 1:
            yield f"probability {threshold}", alone < threshold
    for threshold in COSINES:
        yield f"cosine {threshold}", best < threshold
    for threshold in MARGINS:
        yield f"cosine − mean {threshold}", best - mean[0] < threshold


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to tell what is other.")
    parser.add_argument("config", help="of a benchmark whose class 0 is the background")
    parser.add_argument("--method", default="ClearCLIP")
    parser.add_argument("--pretrained", default="openai")
    parser.add_argument("--images", type=int, metavar="N", help="the first N alone")
    arguments = parser.parse_args()

    run = load_config(
        arguments.config, {"method": arguments.method, "pretrained": arguments.pretrained}, limit=arguments.images
    )
    dataset = open_benchmark(run, {}).dataset
    segmenter = Segmenter(arguments.method, pretrained=arguments.pretrained)
    names = set_apart(load_vocabulary(run.config.model.vocabulary))[2].classes
    shipped = OtherWords.shipped()
    rows = embed_names(segmenter.backbone, (*names, "background", *shipped.words)).embeddings
    text, word_text = rows[: len(names)], rows[len(names) + 1 :]
    mean = torch.nn.functional.normalize(word_text.mean(dim=0, keepdim=True), dim=-1)
    everything = (*names, "background", "mean of the words", *shipped.words)
    known = TextEmbeddings(everything, torch.cat([rows[: len(names) + 1], mean, word_text]))
    segmenter = Segmenter(arguments.method, segmenter.backbone, text_embeddings=known)
    # One class each; what is a name and a word, as "dog", once.
    queries = segmenter.queries(Vocabulary(tuple((name,) for name in dict.fromkeys(everything))))
    place = {name: index for index, name in enumerate(queries.names)}

    confusions: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((len(names) + 1,) * 2, np.int64))
    regions: dict[str, list[float]] = defaultdict(list)
    for index in range(len(dataset)):
        sample = dataset[index]
        whole = sample["data_samples"].gt_sem_seg.data[0].long()
        truth = whole[STEP // 2 :: STEP, STEP // 2 :: STEP]
        view = segmenter.view(sample["inputs"].flip(0), tuple(whole.shape))
        (dense,) = segmenter.look([view], queries)
        maps = segmenter.maps(view, dense, queries)
        thin = [operator[STEP // 2 :: STEP] for operator in (maps.rows, maps.columns)]
        cosines = replace(maps, rows=thin[0], columns=thin[1]).full()

        def ways(chosen: list[int], cosines: Tensor = cosines) -> Iterator[tuple[str, Tensor]]:
            kept = shipped.kept([names[i] for i in chosen], text[chosen], word_text)
            words = cosines[[place[shipped.words[row]] for row in kept]]
            one = [cosines[[place[name]]] for name in ("background", "mean of the words")]
            return is_other(cosines[chosen], words, *one)

        present = [i for i in range(len(names)) if (truth == i + 1).any()]
        for setting, chosen in (("all", list(range(len(names)))), ("present", present)):
            if not chosen:
                continue
            labels = torch.tensor(chosen)[cosines[chosen].argmax(dim=0)] + 1
            for way, other in ways(chosen):
                count(confusions[setting, way], truth, labels.masked_fill(other, 0))
        for i in present:
            for way, other in ways([i]):
                regions[way].append(region_iou(truth, i + 1, ~other))

    print(f"{len(dataset)} images of {run.config.benchmark.name}, {arguments.method}, {arguments.pretrained}")
    print("mIoU with all names, with those that occur, and mean IoU of a region whose name is given alone")
    for way in dict.fromkeys(way for _, way in confusions):
        scores = [mean_iou(confusions[setting, way]) for setting in ("all", "present")]
        scores += [100 * float(np.mean(regions[way]))] if way in regions else []
        print(f"{way:20}", *(f"{score:6.1f}" for score in scores))


def count(confusion: np.ndarray, truth: Tensor, labels: Tensor) -> None:
    """Add an image to a confusion matrix, truth down."""
    kept = truth != IGNORED
    pairs = truth[kept] * len(confusion) + labels[kept]
    confusion += np.bincount(pairs.numpy(), minlength=confusion.size).reshape(confusion.shape)


def mean_iou(confusion: np.ndarray) -> float:
    """In percent, of the classes that occur."""
    hits, there = confusion.diagonal(), confusion.sum(axis=1) > 0
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return 100 * float((hits[there] / union[there]).mean())


def region_iou(truth: Tensor, label: int, found: Tensor) -> float:
    kept = truth != IGNORED
    wanted, found = truth[kept] == label, found[kept]
    return float((wanted & found).sum() / (wanted | found).sum())


if __name__ == "__main__":
    main()
