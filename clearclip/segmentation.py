"""What comes of one image: its labels, and all that is made of them, from a heat map to a COCO annotation."""

import functools
import importlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import clearclip
from clearclip import coco, visualize
from clearclip.errors import UserError
from clearclip.features import Origin
from clearclip.images import read_image
from clearclip.paths import atomic_write, check_writable
from clearclip.visualize.labels import legend
from clearclip.visualize.legend import GREY
from clearclip.windows import Maps

OUTPUTS = ("labels", "overlay", "scores", "heat", "features", "coco", "json")  # what `Segmentation.save` can write
USUAL = ("labels", "overlay", "json")
ARRAYS = ("safetensors", "npy")
SHOWN = 1200  # pixels of the longer side of what a notebook shows
SAVED = 2048  # and of saved overlays and heat maps, at most; label maps keep the size of the image


@dataclass(frozen=True)
class Similarities:
    """Scores of classes at every pixel, as small as they were made: only what is asked for is brought to full size.

    Attributes:
        maps: of all queries.
        query_class: the class of each query.
    """

    maps: Maps
    query_class: tuple[int, ...]

    def of(self, label: int) -> np.ndarray:
        """[H, W] float32: the scores of a class, at each pixel those of the best of its names."""
        rows = [query for query, owner in enumerate(self.query_class) if owner == label]
        return replace(self.maps, scores=self.maps.scores[rows]).full().amax(dim=0).numpy()


@dataclass(frozen=True)
class Segmentation:
    """One image's result, in NumPy arrays.

        result = segmenter("cat.jpg", ["cat", "grass, lawn", "sky"], scores=True)
        result.areas  # {"cat": 0.31, "grass": 0.55, "sky": 0.14}
        result.heat("cat").save("where.png")
        result.save("results", ["labels", "overlay", "coco"])

    A notebook shows its overlay.

    Attributes:
        labels: [H, W], which index `names`: uint8 where that fits (up to 256 names), else int16. CLIPer, which may give
            a pixel no class, labels it 255; with more than 255 names, 65535 and all labels in int32.
        names: of the classes. Where `everything_else`, the first is "other".
        scores: [C, H, W] float32 class probabilities, of one class alone its `similarity` (or its own probability, see
            `logit_scale` of `Segmenter`); None unless asked for.
        features: [h, w, dim] unit patch features; None unless asked for.
        similarities: what `similarity` and `heat` read; None unless scores were asked for.
        source: the image as it was given, of a file its path.
        about: what made it, for the files that `save` writes: method, backbone, weights and so on.
        everything_else: whether class 0 is what none of the names describes.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None = None
    features: np.ndarray | None = None
    similarities: Similarities | None = field(default=None, repr=False)
    source: Any = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    everything_else: bool = False

    @property
    def similarity(self) -> np.ndarray:
        """[C, H, W] float32: what competed for each pixel before any softmax, of a class the best of its names.

        The cosine of patch features and text; of methods that score otherwise, such as CLIPer, their own scores. A
        refinement such as PAMR has refined it. Raises UserError where scores were not asked for.
        """
        return np.stack([self._similarity(label) for label in range(len(self.names))])

    @property
    def areas(self) -> dict[str, float]:
        """The share of the image that each class takes, the largest first; classes that are not there are left out."""
        counts = visualize.areas(self.labels, len(self.names))[:-1]
        order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
        return {self.names[label]: float(counts[label] / self.labels.size) for label in order}

    @property
    def colours(self) -> np.ndarray:
        """[C, 3] uint8: that of each class in all pictures. What is "other" is grey, and the names have what they have
        without it."""
        named = visualize.palette(len(self.names) - self.everything_else)
        return np.concatenate([np.array([GREY] * self.everything_else, np.uint8).reshape(-1, 3), named])

    @functools.cached_property
    def image(self) -> np.ndarray:
        """[H, W, 3] uint8: the image itself, of a file read once more. Raises UserError where it is not at hand."""
        if self.source is None:
            raise UserError("this Segmentation does not know its image; set `source` to it")
        pixels = self.source.read() if isinstance(self.source, Origin) else read_image(self.source, max_pixels=None)
        if pixels.shape[:2] != self.labels.shape:
            raise UserError(
                f"{_name(self.source) or 'the image'} is not the image that was segmented, its size differs"
            )
        return pixels

    def overlay(self, **options: Any) -> Image.Image:
        """The image under the colours and names of its classes; `options` as `clearclip.visualize.overlay` has them.

        What is "other" keeps the photograph's look.
        """
        named = {"nothing": self.names[0]} if self.everything_else else {}
        options = {"colours": self.colours, **named, **options}
        return visualize.overlay(self.image, self._shown, self.names, **options)

    def heat(self, name: str | int, **options: Any) -> Image.Image:
        """Where the image is how similar to one of the `names`, or to the class of that index, as a heat map.

        `options` as `clearclip.visualize.heat_map` has them. Raises UserError for a name that was not looked for, and
        where scores were not asked for.
        """
        return visualize.heat_map(self.image, self._similarity(self._label(name)), **options)

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> dict[str, Any]:
        """A data set of this image in COCO's format: `images`, `categories` and `annotations`, ready for JSON.

        The id of a category is its label + 1; annotations, one a class, have ids from `first_id` on. What is "other"
        has none.
        """
        height, width = self.labels.shape
        name = Path(_name(self.source) or "image").name
        return dict(
            images=[dict(id=image_id, file_name=name, height=height, width=width)],
            categories=coco.categories(self.names, self._named),
            annotations=coco.annotations(self.labels, self._named, image_id, first_id),
        )

    def to_supervision(self) -> Any:
        """`supervision.Detections`: of each class that is there a mask, a box, `class_id` and `class_name`.

        The package supervision is to be installed. With scores, `confidence` is their mean in the mask.
        """
        sv = _supervision()
        found = [label for label in self._named if (self.labels == label).any()]
        if not found:
            return sv.Detections.empty()
        masks = np.stack([self.labels == label for label in found])
        boxes = np.array([coco.box(mask) for mask in masks], float)  # [N, 4] left, top, width, height
        confidence = None
        if self.scores is not None:
            confidence = np.array([self.scores[label][mask].mean() for label, mask in zip(found, masks)])
        return sv.Detections(
            xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            mask=masks,
            class_id=np.array(found),
            confidence=confidence,
            data={"class_name": np.array([self.names[label] for label in found])},
        )

    def manifest(self) -> dict[str, Any]:
        """The label map in words, for JSON: classes with label, name, colour and area, and what `about` says."""
        name = _name(self.source)
        picture = {} if name is None else {"picture": name}
        return {**picture, **legend(self.labels, self.names, self.colours), **self.about}

    def save(
        self,
        folder: str | os.PathLike[str],
        what: Sequence[str] = USUAL,
        stem: str | None = None,
        arrays: str = "safetensors",
    ) -> dict[str, list[Path]]:
        """Write files into a folder, which is made where it is missing; each is written whole or not at all.

        Args:
            what: any of
                labels: `<stem>_labels.png`, with a palette, and the manifest inside as text;
                overlay: `<stem>_overlay.png`, its longer side at most 2048 pixels;
                scores: `<stem>_scores.safetensors`, tensor `similarity` [C, H, W];
                heat: `<stem>_heat_<label>-<name>.png` for each name;
                features: `<stem>_features.safetensors`, tensor `features` [h, w, dim];
                coco: `<stem>_coco.json`;
                json: `<stem>.json`, the manifest.
            stem: what their names begin with, by default that of the image's file.
            arrays: "npy" writes arrays as .npy, without the manifest that .safetensors have in their metadata.

        Returns:
            The paths of each kind.

        Raises:
            UserError: for a kind that does not exist, for one that was not computed, such as features, and for a file
                that cannot be written.
        """
        stem = Path(_name(self.source) or "image").stem if stem is None else stem
        targets = output_files(stem, what, self.names, self.everything_else, arrays)
        paths = {kind: [Path(folder) / name for name in names] for kind, names in targets.items()}
        for path in itertools.chain(*paths.values()):
            check_writable(path)
        with ThreadPoolExecutor(1) as beside:  # a label map needs no picture, and compressing holds no other thread up
            label_map = beside.submit(self._write, "labels", paths["labels"]) if "labels" in paths else None
            for kind, of_kind in paths.items():
                if kind != "labels":
                    self._write(kind, of_kind)
            if label_map is not None:
                label_map.result()
        return paths

    def _write(self, kind: str, paths: Sequence[Path]) -> None:
        first = paths[0] if paths else Path()
        if kind == "labels":
            visualize.save_label_map(self.labels, first, self.names, self.colours, info=self.about)
        elif kind == "overlay":
            visualize.save_picture(self.overlay(max_side=SAVED), first)
        elif kind == "scores":
            self._save_array(first, "similarity", self.similarity)
        elif kind == "heat":
            for label, path in zip(self._named, paths):
                visualize.save_picture(self.heat(label, max_side=SAVED), path)
        elif kind == "features":
            if self.features is None:
                raise UserError("features were not asked for; call the segmenter with features=True")
            self._save_array(first, "features", self.features)
        elif kind == "coco":
            save_json(first, self.to_coco())
        else:
            save_json(first, self.manifest())

    def _save_array(self, path: Path, key: str, array: np.ndarray) -> None:
        with atomic_write(path) as temporary:
            if path.suffix == ".npy":
                np.save(temporary, array)
            else:
                from safetensors.numpy import save_file

                words = {"names": json.dumps(self.names), "manifest": json.dumps(self.manifest())}
                save_file({key: np.ascontiguousarray(array)}, temporary, words)

    def _similarity(self, label: int) -> np.ndarray:
        if self.similarities is None:
            raise UserError("scores were not asked for; call the segmenter with scores=True")
        return self.similarities.of(label)

    def _label(self, name: str | int) -> int:
        if isinstance(name, int) and 0 <= name < len(self.names):
            return name
        if name not in self.names:
            raise UserError(f"{name!r} was not looked for; the names are {', '.join(self.names)}")
        return self.names.index(str(name))

    @property
    def _named(self) -> range:
        """The labels of what was looked for."""
        return range(int(self.everything_else), len(self.names))

    @property
    def _shown(self) -> np.ndarray:
        """Labels in which what is other is ignored."""
        if not self.everything_else:
            return self.labels
        nothing = visualize.ignored(len(self.names))
        return np.where(self.labels == 0, nothing, self.labels.astype(np.int32))

    def _repr_png_(self) -> bytes | None:
        if self.source is None:
            return None
        return visualize.encode_picture(self.overlay(max_side=SHOWN))


def check_outputs(what: Iterable[str], arrays: str = ARRAYS[0]) -> None:
    """Raise UserError naming what `Segmentation.save` cannot write."""
    for kind in what:
        if kind not in OUTPUTS:
            raise UserError(f"nothing called {kind!r} can be saved; there are {', '.join(OUTPUTS)}")
    if arrays not in ARRAYS:
        raise UserError(f"arrays are saved as {' or '.join(ARRAYS)}, not as {arrays!r}")


def output_files(
    stem: str, what: Sequence[str], names: Sequence[str], everything_else: bool = False, arrays: str = ARRAYS[0]
) -> dict[str, list[str]]:
    """The names of the files that `Segmentation.save` writes, by kind. Raises UserError as `check_outputs` does."""
    check_outputs(what, arrays)
    endings = dict(
        labels=["_labels.png"],
        overlay=["_overlay.png"],
        scores=[f"_scores.{arrays}"],
        heat=[f"_heat_{label}-{_slug(name)}.png" for label, name in enumerate(names)][everything_else:],
        features=[f"_features.{arrays}"],
        coco=["_coco.json"],
        json=[".json"],
    )
    return {kind: [stem + ending for ending in endings[kind]] for kind in dict.fromkeys(what)}


def save_json(path: Path, content: Any) -> None:
    """Write JSON for people too: indented, letters of any script as they are."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def version() -> str:
    """What made a file, for its manifest."""
    return f"clearclip {clearclip.__version__}"


def _slug(name: str) -> str:
    """A name as a part of a file's: at most 40 letters and digits, the rest is -."""
    return re.sub(r"[\W_]+", "-", name)[:40].strip("-")


def _name(source: Any) -> str | None:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def _supervision() -> Any:
    try:
        return importlib.import_module("supervision")
    except ImportError:
        raise UserError("to_supervision needs the package supervision: pip install supervision") from None
