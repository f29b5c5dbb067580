"""A vocabulary doctor: which names CLIP cannot tell apart, which synonyms help, and what in pictures has no name.

examination = Examination(segmenter, load_vocabulary("classes.txt"))
for path in paths:
    examination.look_at(path)
print(examination.diagnosis())
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from clearclip.errors import UserError
from clearclip.images import MAX_PIXELS, read_image
from clearclip.look import scores_features
from clearclip.segmenter import Segmenter, grid_step
from clearclip.text import embed_names
from clearclip.vocabulary import Vocabulary

WORDS = Path(__file__).with_name("words.txt")
TEMPLATE = ("a photo of a {}.",)  # one, for names and words alike: 2,000 words by 80 templates take minutes
CLOSE = 2.0  # a pixel whose two best classes are nearer than this ratio of probabilities is contested
SMALLEST = 0.02  # share of a picture that a region without a name must have
MARGIN = 0.02  # cosine by which a word must beat every name
ALIKE = 0.01  # cosine by which a patch's best word may beat the word of its region
LISTED = 10  # pairs, regions and words that a report shows


@dataclass(frozen=True)
class Pair:
    """Two classes that are hard to tell apart.

    Attributes:
        one, other: their names.
        cosine: of the nearest two of their names' embeddings.
        share: with ground truth, the share of `one`'s pixels that get `other`; without, the share of pixels labelled
            `one` for which `other` is nearly as good. None where `one` has no pixel.
    """

    one: str
    other: str
    cosine: float
    share: float | None


@dataclass(frozen=True)
class Synonym:
    """What one of several names of a class does.

    Attributes:
        name, of: the name and its class.
        claims: share of all pixels for which this name is the best of all.
        kept: of these, the share that would stay with the class without this name.
        gain: with ground truth, what the name adds to mIoU, in percentage points.
        class_gain: the same for the IoU of its class.
    """

    name: str
    of: str
    claims: float
    kept: float | None
    gain: float | None = None
    class_gain: float | None = None


@dataclass(frozen=True)
class Region:
    """A part of a picture that words outside of the vocabulary fit better than any name in it.

    Attributes:
        image: the picture's path.
        share: of the picture, 0 to 1.
        box: left, top, right, bottom, as shares of width and height.
        label: the class that it gets.
        words: the nearest words, the best first.
        margin: by how much the first of them beats the best name, in cosine.
    """

    image: str
    share: float
    box: tuple[float, float, float, float]
    label: str
    words: tuple[str, ...]
    margin: float


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        images, pixels: how many were looked at.
        truth: whether there was ground truth.
        mIoU: with ground truth, of the pixels looked at, in percent.
        by_text, by_pixels: pairs of classes, the nearest by their names and the most confused first.
        synonyms: of classes with several names.
        claims: by class, its share of all pixels.
        regions: without a name, the largest first.
        words: how many regions each nearest word has.
    """

    images: int
    pixels: int
    truth: bool
    mIoU: float | None
    by_text: tuple[Pair, ...]
    by_pixels: tuple[Pair, ...]
    synonyms: tuple[Synonym, ...]
    claims: dict[str, float]
    regions: tuple[Region, ...]
    words: dict[str, int]

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON."""
        from clearclip.paths import atomic_write

        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        known = f", mIoU {self.mIoU:.2f} of these" if self.mIoU is not None else ", no ground truth"
        lines = [f"{self.images} images, {self.pixels} pixels{known}"]
        share = "of its pixels get the other" if self.truth else "of its pixels are contested by the other"
        lines += ["", f"nearest names (text cosine; share of the first that {share.partition('pixels ')[2]})"]
        lines += [_line(pair) for pair in self.by_text[:LISTED]]
        title = "most confused (share of the first's pixels that get the second)"
        lines += ["", title if self.truth else "most contested (share of the first's pixels where the second is close)"]
        lines += [_line(pair) for pair in self.by_pixels[:LISTED]]
        if self.synonyms:
            lines += ["", "synonyms, the most harmful first" if self.truth else "synonyms, by what they claim"]
            lines += [_synonym_line(one) for one in self.synonyms[: 3 * LISTED]]
        idle = [name for name, share in self.claims.items() if not share]
        if idle:
            lines += ["", f"without a pixel: {', '.join(idle[: 3 * LISTED])}{' …' * (len(idle) > 3 * LISTED)}"]
        lines += [
            "",
            "regions that words outside of the list fit better" if self.regions else "every region has a name",
        ]
        lines += [_region_line(region) for region in self.regions[:LISTED]]
        if self.words:
            common = list(self.words.items())[:LISTED]
            lines += ["nearest words, by number of regions: " + ", ".join(f"{word} {n}" for word, n in common)]
        return "\n".join(lines)


def _line(pair: Pair) -> str:
    share = "  –" if pair.share is None else f"{pair.share:4.0%}"
    return f"  {pair.cosine:.3f}  {share}  {pair.one} / {pair.other}"


def _synonym_line(one: Synonym) -> str:
    kept = "" if one.kept is None else f", {one.kept:.0%} of that stays without it"
    gain = "" if one.gain is None else f"; mIoU {one.gain:+.2f}, {one.of} {one.class_gain:+.2f} by it"
    return f"  {one.name} (of {one.of}): claims {one.claims:.1%}{kept}{gain}"


def _region_line(region: Region) -> str:
    left, top, right, bottom = region.box
    where = f"x {left:.0%}–{right:.0%}, y {top:.0%}–{bottom:.0%}"
    words = ", ".join(region.words)
    return f"  {region.image}: {region.share:.0%} ({where}), now {region.label}: {words} (+{region.margin:.3f})"


def plain_words(path: str | Path = WORDS) -> tuple[str, ...]:
    """The words of a list: separated by commas or lines, `#` starts a comment. Raises UserError where it has none.

    The list of the package has about 2,000 plain words for what photographs show; it was written for this project.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"word list {path} cannot be read ({error}); give a text file of words") from None
    words = [word.strip() for line in lines for word in line.partition("#")[0].split(",")]
    if not any(words):
        raise UserError(f"word list {path} is empty; write words separated by commas or lines")
    return tuple(dict.fromkeys(filter(None, words)))


class Examination:
    """Collects what pictures say about a vocabulary, one picture after the other.

    Args:
        segmenter: by whose scores names are judged; thresholds play no part.
        vocabulary: the names.
        words: what else there may be in pictures; empty: regions without a name are not looked for.
    """

    def __init__(self, segmenter: Segmenter, vocabulary: Vocabulary, words: Sequence[str] | None = None):
        self.segmenter, self.vocabulary = segmenter, vocabulary
        self.queries = segmenter.queries(vocabulary)
        words = plain_words() if words is None else tuple(words)
        known = {name.lower() for name in vocabulary.queries}
        new = [index for index, word in enumerate(words) if word.lower() not in known]
        self.words = tuple(words[index] for index in new)
        self.searches = bool(self.words) and scores_features(segmenter.method)
        self._best: list[Tensor] = []  # of each image, the two best queries [2, p]
        self._odds: list[Tensor] = []  # [p] how much more probable the best class is than the next
        self._truth: list[Tensor] = []
        self._regions: list[Region] = []
        if self.searches:
            self._name_text = embed_names(segmenter.backbone, vocabulary.queries, TEMPLATE).embeddings
            self._word_text = embed_names(segmenter.backbone, words, TEMPLATE).embeddings[new]  # kept for all lists
            self._name_class = vocabulary.query_class

    @torch.inference_mode()
    def look_at(self, image: Any, max_pixels: int | None = MAX_PIXELS) -> None:
        """Take in one picture, as `Segmenter.__call__` takes them. Raises UserError for one that cannot be read."""
        pixels = torch.from_numpy(read_image(image, max_pixels)).permute(2, 0, 1)
        view = self.segmenter.view(pixels, name=str(image) if isinstance(image, str | Path) else None)
        dense = self.segmenter.look([view], self.queries, self.searches)[0]
        scores = self.segmenter.maps(view, dense, self.queries).every(grid_step(view.shape)).cpu()
        self.add(view.name or "picture", scores, None, None if dense.features is None else dense.features.cpu())

    def add(self, name: str, scores: Tensor, truth: Tensor | None, features: Tensor | None) -> None:
        """Take in the scores [Q, h, w] of some pixels, their labels [h, w], −1 being none, and unit patch features.

        Either all images have labels, or none.
        """
        if self._best and bool(self._truth) != (truth is not None):
            raise ValueError("either all images have labels, or none")
        flat = scores.float().flatten(1)  # [Q, p]
        if truth is not None:
            labelled = truth.flatten() >= 0
            flat = flat[:, labelled]
            self._truth.append(truth.flatten()[labelled])
        self._best.append(_two_best(flat))
        self._odds.append(self._closeness(flat))
        if self.searches and features is not None:
            self._regions += self._unexplained(name, features)

    def diagnosis(self) -> Diagnosis:
        """What all pictures so far say. Raises UserError where there were none."""
        if not self._best or not sum(part.shape[1] for part in self._best):
            raise UserError("there is no pixel to judge names by; give pictures, and masks that label something")
        classes = len(self.vocabulary)
        index = torch.tensor(self.queries.query_class)
        queries = torch.cat([part for part in self._best], dim=1)  # [2, P] or [1, P] of a single query
        odds = torch.cat(self._odds, dim=1)  # [2, P]: the next class, and whether it is close
        label = index[queries[0]]
        truth = torch.cat(self._truth) if self._truth else None
        rows, columns = (label, odds[0]) if truth is None else (truth, label)
        chosen = (odds[1] > 0) if truth is None else torch.ones_like(label, dtype=torch.bool)
        counts = _count(rows[chosen], columns[chosen], classes)
        totals = torch.bincount(rows, minlength=classes)
        shares = counts / totals[:, None].clamp_min(1)
        cosine = self._cosines()
        names = self.queries.names
        by_text = [
            Pair(names[i], names[j], float(cosine[i, j]), float(shares[i, j]) if totals[i] else None)
            for i, j in _ordered(torch.triu(cosine, 1), 3 * LISTED)
        ]
        off_diagonal = shares.masked_fill(torch.eye(classes, dtype=torch.bool), 0)
        # A pair matters by how many pixels it is about.
        weight = (off_diagonal * totals[:, None]).float()
        by_pixels = [
            Pair(names[i], names[j], float(cosine[i, j]), float(shares[i, j])) for i, j in _ordered(weight, 3 * LISTED)
        ]
        claimed = torch.bincount(label, minlength=classes) / len(label)
        regions = sorted(self._regions, key=lambda region: -region.share)
        return Diagnosis(
            len(self._best),
            len(label),
            truth is not None,
            None if truth is None else _mean_iou(truth, label, classes),
            tuple(by_text),
            tuple(by_pixels),
            tuple(self._synonyms(queries, index, truth)),
            {name: float(share) for name, share in zip(names, claimed)},
            tuple(regions),
            dict(Counter(region.words[0] for region in regions).most_common()),
        )

    def _closeness(self, scores: Tensor) -> Tensor:
        """Of each pixel [Q, p] the second-best class, and 1 where it is close: [2, p], int64."""
        index = torch.tensor(self.queries.query_class)
        best = scores.new_full((len(self.vocabulary), scores.shape[1]), -torch.inf)
        best = best.scatter_reduce(0, index[:, None].expand_as(scores), scores, "amax")
        if len(best) == 1:
            return torch.zeros(2, scores.shape[1], dtype=torch.int64)
        top = best.topk(2, dim=0)
        close = self.segmenter.logit_scale * (top.values[0] - top.values[1]) < np.log(CLOSE)
        return torch.stack([top.indices[1], close.long()])

    def _cosines(self) -> Tensor:
        """[C, C] the cosine of the nearest names of two classes."""
        text = self.queries.text.float().cpu()
        classes, index = len(self.vocabulary), torch.tensor(self.queries.query_class)
        pairs = (index[:, None] * classes + index).flatten()
        found = torch.full((classes * classes,), -1.0).scatter_reduce(0, pairs, (text @ text.T).flatten(), "amax")
        return found.view(classes, classes)

    def _synonyms(self, queries: Tensor, index: Tensor, truth: Tensor | None) -> list[Synonym]:
        """What each name of a class that has several does: without it, a pixel has its next best query."""
        names = self._query_names()
        several = {c for c, count in enumerate(torch.bincount(index).tolist()) if count > 1}
        label, classes, found = index[queries[0]], len(self.vocabulary), []
        before = None if truth is None else _ious(truth, label, classes)
        for query, name in enumerate(names):
            own = int(index[query])
            if own not in several:
                continue
            claimed = queries[0] == query
            without = torch.where(claimed, index[queries[1]], label)
            kept = float((without[claimed] == own).float().mean()) if claimed.any() else None
            gains: tuple[float | None, float | None] = (None, None)
            if truth is not None and before is not None:
                after = _ious(truth, without, classes)
                occurs = ~before.isnan()
                gains = (
                    float((before[occurs].mean() - after[occurs].nan_to_num().mean()) * 100),
                    float((before[own] - after[own]) * 100) if occurs[own] else 0.0,
                )
            found.append(Synonym(name, self.queries.names[own], float(claimed.float().mean()), kept, *gains))
        return sorted(found, key=lambda one: (one.gain if one.gain is not None else 0.0, -one.claims))

    def _query_names(self) -> list[str]:
        """The name of each query; text embeddings may lack some synonyms, and then a class says which number it is."""
        if len(self.queries.query_class) == len(self.vocabulary.queries):
            return list(self.vocabulary.queries)
        seen: Counter[int] = Counter()
        names = []
        for index in self.queries.query_class:
            seen[index] += 1
            names.append(f"name {seen[index]} of {self.queries.names[index]}")
        return names

    def _unexplained(self, name: str, features: Tensor) -> list[Region]:
        """Regions of patches [h, w, dim] for which some word is better than all names, word after word."""
        features = features.float()
        named = features @ self._name_text.T  # [h, w, Q]
        other = features @ self._word_text.T
        best = other.amax(dim=-1)
        left = best - named.amax(dim=-1) > MARGIN  # [h, w] patches that no region has yet
        found: list[Region] = []
        while float(left.float().mean()) >= SMALLEST:
            gains = (other - named.amax(dim=-1, keepdim=True)).clamp_min(0)
            word = int(gains[left].sum(dim=0).argmax())
            alike = left & (other[..., word] > best - ALIKE)  # no other word is much better there
            if not alike.any():
                break
            found += [self._region(name, part, named, other) for part in _parts(alike)]
            left &= ~alike
        return found

    def _region(self, name: str, inside: Tensor, named: Tensor, other: Tensor) -> Region:
        """The region of the patches `inside` [h, w], given the cosines of names and words [h, w, any]."""
        height, width = inside.shape
        rows, columns = inside.nonzero().T
        words, names = other[inside].mean(dim=0), named[inside].mean(dim=0)
        best = words.topk(min(5, len(self.words)))
        box = (
            float(columns.min()) / width, float(rows.min()) / height,
            float(columns.max() + 1) / width, float(rows.max() + 1) / height,
        )  # fmt: skip
        label = self.vocabulary.classes[self._name_class[int(names.argmax())]]
        near = tuple(self.words[i] for i in best.indices.tolist())
        return Region(name, float(inside.float().mean()), box, label, near, float(best.values[0] - names.max()))


def _parts(inside: Tensor) -> list[Tensor]:
    """The connected parts [h, w] of a mask that are no smaller than a region must be."""
    count, places = cv2.connectedComponents(inside.numpy().astype(np.uint8), connectivity=8)
    parts = [torch.from_numpy(places == number) for number in range(1, count)]
    return [part for part in parts if float(part.float().mean()) >= SMALLEST]


def _two_best(scores: Tensor) -> Tensor:
    """The two best queries of each pixel [Q, p], [2, p]; a single query is both."""
    best = scores.topk(min(2, len(scores)), dim=0).indices
    return best if len(scores) > 1 else best.expand(2, -1)


def _count(rows: Tensor, columns: Tensor, classes: int) -> Tensor:
    return torch.bincount(rows * classes + columns, minlength=classes * classes).view(classes, classes)


def _ordered(values: Tensor, count: int) -> list[tuple[int, int]]:
    """Places of the largest entries above 0 of a matrix, the largest first."""
    best = values.flatten().topk(min(count, values.numel()))
    width = values.shape[1]
    return [(i // width, i % width) for i, value in zip(best.indices.tolist(), best.values.tolist()) if value > 0]


def _ious(truth: Tensor, label: Tensor, classes: int) -> Tensor:
    """IoU [C], NaN for a class that is in neither."""
    hit = torch.bincount(label[label == truth], minlength=classes)
    union = torch.bincount(label, minlength=classes) + torch.bincount(truth, minlength=classes) - hit
    return hit / union.float().masked_fill(union == 0, torch.nan)


def _mean_iou(truth: Tensor, label: Tensor, classes: int) -> float:
    return float(_ious(truth, label, classes).nanmean() * 100)
