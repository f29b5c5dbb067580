"""A data set of one's own: pictures, their masks and a class file, in any of the usual layouts.

    dataset = folder_dataset("photos", "masks", "classes.txt")      # for test_dataloader.dataset of a config
    print("\n".join(describe(dataset)))                             # pictures with masks: 24; skipped: …

Layouts (`auto` tells which it is):

- `folders`: a mask has its picture's name, or that with `_mask`, `_labelTrainIds` or another of `MASK_TAILS`, in the
  same sub-folder of both folders, or in any. Suffixes may be mixed and in upper case.
- `voc`: one folder with JPEGImages, SegmentationClass and ImageSets/Segmentation/<split>.txt.
- `cityscapes`: one folder with leftImg8bit/<split> and gtFine/<split>; train ids are taken where they are there.
- `coco`: `masks` is a JSON of instances or stuff (polygons and run lengths, drawn by decreasing area; crowds count as
  their class) or a panoptic one, with its PNGs in the folder of its name. Categories are matched by name with the
  class file; pixels of others are ignored. Pixels in no object are `background` if the first class is called so and
  the JSON has no such category, and are ignored otherwise.
"""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image

from clearclip.errors import UserError
from clearclip.evaluation.masks import (
    BACKGROUND,
    Drawing,
    Mask,
    MaskReader,
    ignored_label,
    match_names,
    normal,
    palette_names,
    read_lines,
    read_palette,
)
from clearclip.images import read_image
from clearclip.vocabulary import Vocabulary, load_vocabulary

LAYOUTS = ("auto", "folders", "voc", "cityscapes", "coco")
PICTURES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
JPEGS = {".jpg", ".jpeg", ".jpe"}
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
IMAGE_TAILS = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
MASK_TAILS = (
    "_gtFine_labelTrainIds", "_gtFine_labelIds", "_labelTrainIds", "_instanceTrainIds", "_labelIds", "_segmentation",
    "_annotation", "_masks", "_mask", "_labels", "_label", "_seg", "_gt", "_L", "-mask", "-label", ".mask", ".label",
)  # fmt: skip
SURVEYED = 32  # masks that are read before the evaluation begins


@dataclass(frozen=True)
class Sample:
    """A picture and its ground truth. In what `scan` finds, COCO's masks have category ids in place of labels."""

    image: Path
    mask: Mask


@dataclass(frozen=True)
class Categories:
    """The names of COCO's categories by their ids, and the JSON that has them."""

    path: Path
    names: dict[int, str]


@dataclass(frozen=True)
class Scan:
    """What `scan` has found.

    Attributes:
        layout: one of `LAYOUTS` but "auto".
        samples: pictures with masks, sorted by picture.
        skipped: what is left out, {reason: paths}.
        categories: those of the masks, where the layout is `coco`.
    """

    layout: str
    samples: tuple[Sample, ...]
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    categories: Categories | None = None

    def summary(self) -> str:
        """`pictures with masks: 24; skipped: pictures without a mask: 2 (first photos/a.jpg)`."""
        parts = [f"{reason}: {len(paths)} (first {paths[0]})" for reason, paths in self.skipped.items() if paths]
        text = f"pictures with masks: {len(self.samples)}"
        return f"{text}; skipped: {', '.join(parts)}" if parts else text


def folder_dataset(
    images: str | Path,
    masks: str | Path | None,
    classes: str | Path,
    palette: str | Path | None = None,
    layout: str = "auto",
    ignore: int | Sequence[int] | None = 255,
    first_label: int = 0,
    split: str = "val",
    mask_suffix: str | None = None,
) -> dict:
    """The `test_dataloader.dataset` of a config that evaluates on pictures of one's own.

    Its `ignore_index`, 255 or, with more than 255 classes, 65535, is the one for `test_evaluator`.

    Args:
        images: folder of the pictures, or the data set's root for the layouts `voc` and `cityscapes`.
        masks: folder of the masks, COCO's JSON, or None where `images` is the root.
        classes: class file, a line for each label.
        palette: palette file of colour-coded masks (`read_palette` has its form).
        layout: one of `LAYOUTS`.
        ignore: values of label maps that stand for no class; None for none, as in masks of 0 and 255.
        first_label: the value of the first class in label maps.
        split: of the layouts `voc` and `cityscapes`.
        mask_suffix: what follows a picture's name in its mask's, without file type: "" or "_labelTrainIds". It
            chooses where several masks fit.

    Raises UserError for a missing file or a wrong setting. Pictures and masks are read when the data set is built.
    """
    root = _existing(images, "--images")
    mask_root = root if masks is None else _existing(masks, "--masks")
    class_file = _existing(classes, "--classes")
    palette_file = None if palette is None else _existing(palette, "--palette")
    reader = _reader(class_file, palette_file, ignore, first_label)
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: there are {', '.join(LAYOUTS)}")
    return dict(
        type="FolderDataset",
        data_root=str(root),
        data_prefix=dict(img_path=str(root), seg_map_path=str(mask_root)),
        class_file=str(class_file),
        palette_file=palette_file and str(palette_file),
        layout=layout,
        ignore=list(reader.ignore),
        first_label=first_label,
        split=split,
        mask_suffix=mask_suffix,
        ignore_index=reader.ignored,
        pipeline=[dict(type="LoadImage"), dict(type="LoadFolderLabels"), dict(type="PackSegInputs")],
    )


def _existing(path: str | Path, option: str) -> Path:
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{option} {path} does not exist: give the path of a folder or file")
    return path


def _reader(class_file: Path, palette: Path | None, ignore: int | Sequence[int] | None, first_label: int) -> MaskReader:
    vocabulary = load_vocabulary(class_file)
    values = () if ignore is None else (ignore,) if isinstance(ignore, int) else tuple(ignore)
    if not all(isinstance(value, int) and 0 <= value < 65536 for value in (*values, first_label)):
        raise UserError(f"--ignore {values} and --first-label {first_label} must be labels, 0 to 65535")
    clash = set(values) & set(range(first_label, first_label + len(vocabulary)))
    if clash:
        raise UserError(
            f"--ignore {min(clash)} is the label of class {vocabulary.classes[min(clash) - first_label]!r} in "
            f"{class_file}: pass --first-label {min(clash) + 1} or another --ignore (none is possible)"
        )
    colours = read_palette(palette, vocabulary) if palette else None
    return MaskReader(len(vocabulary), str(class_file), values, first_label, colours)


@DATASETS.register_module()
class FolderDataset(BaseSegDataset):
    """Pictures and masks of one's own; `folder_dataset` says what the settings are.

    Paths are taken from `data_root`. Raises UserError where no picture has a mask and where the masks looked at
    first (`survey`) do not fit the class file.
    """

    def __init__(
        self,
        class_file: str,
        data_root: str,
        data_prefix: dict | None = None,
        palette_file: str | None = None,
        layout: str = "auto",
        ignore: int | Sequence[int] | None = 255,
        first_label: int = 0,
        split: str = "val",
        mask_suffix: str | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ):
        root = Path(data_root)
        self.class_file = root / class_file
        self.vocabulary = load_vocabulary(self.class_file)
        palette = root / palette_file if palette_file else None
        self.reader = _reader(self.class_file, palette, ignore, first_label)
        self.scan = functools.partial(scan, layout=layout, split=split, mask_suffix=mask_suffix)
        if ignore_index not in (None, self.reader.ignored):
            raise UserError(
                f"ignore_index must be {self.reader.ignored} for {len(self.vocabulary)} classes, in the data set and "
                f"in test_evaluator, not {ignore_index}"
            )
        super().__init__(
            metainfo=dict(classes=self.vocabulary.classes, palette=self.reader.palette or []),
            data_root=data_root,
            data_prefix=data_prefix or dict(img_path="", seg_map_path=""),
            ignore_index=self.reader.ignored,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        images, masks = (Path(self.data_prefix[key]) for key in ("img_path", "seg_map_path"))
        self.found = self.scan(images, masks)
        samples = labelled(self.found, self.vocabulary)
        self.seen, self.surveyed = survey(samples, self.reader)
        return [
            dict(
                img_path=str(sample.image),
                seg_map_path=str(sample.mask.path),
                mask=sample.mask,
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
            )
            for sample in samples
        ]

    def get_data_info(self, idx: int) -> dict:
        return super().get_data_info(idx) | {"mask_reader": self.reader}


@TRANSFORMS.register_module()
class LoadFolderLabels(BaseTransform):
    """The labels [H, W] of a `FolderDataset`'s mask as `gt_seg_map`. Raises UserError as `MaskReader.read` does."""

    def transform(self, results: dict) -> dict:
        results["gt_seg_map"] = results["mask_reader"].read(results["mask"], results["ori_shape"][:2])
        results["seg_fields"].append("gt_seg_map")
        return results


def describe(dataset: dict) -> list[str]:
    """Lines for the screen: what a person should know of the data set that `folder_dataset` gave.

    Raises UserError where it does not fit its class file, as the evaluation would.
    """
    built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True, "_scope_": "mmseg"})
    built.load_data_list()
    classes, found = built.vocabulary.classes, built.found
    names: list[str] = []
    if found.categories:
        names = list(found.categories.names.values())
    elif dataset.get("palette_file"):
        names = palette_names(Path(dataset["palette_file"]))
    known = {normal(name) for synonyms in built.vocabulary.names for name in synonyms}
    foreign = [name for name in names if normal(name) not in known]
    lines = [found.summary()]
    if foreign:
        lines.append(f"ignored, for they are no classes of the class file: {_brief(foreign)}")
    unseen = [name for label, name in enumerate(classes) if label not in built.seen]
    if unseen:
        lines.append(f"classes without a pixel in the {built.surveyed} masks looked at: {_brief(unseen)}")
    return lines


def _brief(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def survey(samples: Sequence[Sample], reader: MaskReader) -> tuple[set[int], int]:
    """Read some masks, evenly spread, so that what is wrong with all is found at once.

    Returns the classes seen and the number of masks read. Raises UserError as `MaskReader.read` does, for masks of 0
    and 255 alone, and for masks that label nothing.
    """
    step = -(-len(samples) // SURVEYED)
    first = samples[::step]
    labels: set[int] = set().union(*(_labels(sample, reader) for sample in first))
    rest = iter([sample for index, sample in enumerate(samples) if index % step])
    read = len(first)
    while labels <= {0, reader.ignored} and (sample := next(rest, None)):  # so it is where all masks are binary
        labels |= _labels(sample, reader)
        read += 1
    mask = samples[0].mask
    is_map = reader.colours is None and mask.segments is None and mask.drawing is None
    if is_map and 255 in reader.ignore and labels == {0, reader.ignored}:
        raise UserError(
            f"the masks in {mask.path.parent} hold one class and ignored pixels alone; if they are of 0 and 255 and "
            f"255 is the object, pass --ignore none and name two classes in {reader.class_file}: what 0 is, what 255 is"
        )
    if labels == {reader.ignored}:
        raise UserError(f"no pixel of the masks in {mask.path.parent} is of a class: give other masks or --ignore")
    return labels - {reader.ignored}, read


def _labels(sample: Sample, reader: MaskReader) -> set[int]:
    height, width, _ = read_image(sample.image).shape
    try:
        labels = reader.read(sample.mask, (height, width))
    except UserError:
        if not _is_turned(sample.image):
            raise
        labels = reader.read(sample.mask, (width, height))  # the mask is of the pixels as stored
    return set(np.unique(labels).tolist())


def _is_turned(path: Path) -> bool:
    """Whether EXIF exchanges a picture's height and width."""
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) >= 5


def labelled(found: Scan, vocabulary: Vocabulary) -> list[Sample]:
    """The samples of a scan with labels where COCO has category ids. Raises UserError for names that do not fit."""
    if found.categories is None:
        return list(found.samples)
    ignored = ignored_label(len(vocabulary))
    names = found.categories.names.values()
    free = normal(vocabulary.classes[0]) == BACKGROUND and BACKGROUND not in map(normal, names)
    matched = match_names(names, vocabulary, found.categories.path, optional=[0] if free else [])
    labels = {index: matched.get(name, ignored) for index, name in found.categories.names.items()}
    elsewhere = 0 if free else None
    return [replace(sample, mask=_labelled(sample.mask, labels, elsewhere)) for sample in found.samples]


def _labelled(mask: Mask, labels: dict[int, int], elsewhere: int | None) -> Mask:
    """One of COCO's masks with the labels of its category ids."""
    segments, drawing = mask.segments, mask.drawing
    if segments is not None:
        segments = {segment: labels[index] for segment, index in segments.items()}
    if drawing is not None:
        objects = tuple((labels[index], segmentation) for index, segmentation in drawing.objects)
        drawing = replace(drawing, objects=objects, elsewhere=elsewhere)
    return replace(mask, segments=segments, drawing=drawing)


# Finding pictures and masks


def scan(
    images: str | Path,
    masks: str | Path | None = None,
    *,
    layout: str = "auto",
    split: str = "val",
    mask_suffix: str | None = None,
) -> Scan:
    """Pair pictures with masks; the arguments are those of `folder_dataset`.

    Hidden files, Thumbs.db and the like are passed over; pictures without a mask, masks without a picture and files
    of other kinds are in `skipped`. Raises UserError where a pair is uncertain and where there is none.
    """
    images = Path(images)
    masks = images if masks is None or _same(images, Path(masks)) else Path(masks)
    layout = detect_layout(images, masks) if layout == "auto" else layout
    if layout == "voc":
        found = _scan_voc(images, split)
    elif layout == "cityscapes":
        found = _scan_cityscapes(images, split, mask_suffix)
    elif layout == "coco":
        found = _scan_coco(images, _annotation_file(masks))
    else:
        found = _scan_folders(images, masks, mask_suffix)
    if not found.samples:
        raise UserError(
            f"no picture in {images} has a mask in {masks}; {found.summary()}: a mask needs its picture's name, with "
            "one of the usual endings or the one given by --mask-suffix"
        )
    return found


def _same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def detect_layout(images: Path, masks: Path) -> str:
    """One of `LAYOUTS` but "auto", by what is there."""
    if masks.suffix.lower() == ".json" or ("panoptic" in masks.name and _panoptic_file(masks).is_file()):
        return "coco"
    if images == masks and (images / "JPEGImages").is_dir():
        return "voc"
    if images == masks and (images / "leftImg8bit").is_dir():
        return "cityscapes"
    return "folders"


def _panoptic_file(folder: Path) -> Path:
    """COCO has the PNGs of panoptic_val2017.json in the folder panoptic_val2017 beside it."""
    return folder.with_name(f"{folder.name}.json")


def _annotation_file(masks: Path) -> Path:
    return masks if masks.suffix.lower() == ".json" else _panoptic_file(masks)


def walk(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """The files in `folder` and below, links followed, but for hidden files, Thumbs.db and the folder `leave_out`."""

    def stop(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename} ({error.strerror}): give a folder that can be read") from None

    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(parent)
        kept = [] if real in visited else [name for name in sorted(folders) if not _is_junk(name)]
        folders[:] = [name for name in kept if Path(parent, name) != leave_out]
        if real not in visited:
            yield from (Path(parent, name) for name in sorted(names) if not _is_junk(name))
        visited.add(real)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


@dataclass(frozen=True)
class _Folder:
    """The files below a folder: pictures, by their suffix, some of which may be masks, and files of other kinds."""

    root: Path
    pictures: list[Path]
    others: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path, leave_out: Path | None = None) -> "_Folder":
        folder = cls(root, [])
        for path in walk(root, leave_out):
            is_picture = path.suffix.lower() in PICTURES and path.is_file()
            (folder.pictures if is_picture else folder.others).append(path)
        return folder

    def only(self, stems: Container[str]) -> "_Folder":
        """Without the pictures that have other names."""
        return replace(self, pictures=[path for path in self.pictures if path.stem in stems])


def _scan_folders(images: Path, masks: Path, mask_suffix: str | None) -> Scan:
    if images != masks:
        found = _Folder.read(images, leave_out=masks), _Folder.read(masks, leave_out=images)
        return _paired("folders", *found, mask_suffix)
    both = _Folder.read(images)
    pictures, found_masks = _part(both.pictures, mask_suffix)
    return _paired("folders", replace(both, pictures=pictures), _Folder(masks, found_masks), mask_suffix)


def _part(paths: list[Path], mask_suffix: str | None) -> tuple[list[Path], list[Path]]:
    """The pictures and the masks of one folder: a mask has a tail, or is the PNG beside a JPEG."""
    stems = {path.with_suffix("") for path in paths}
    jpegs = {path.with_suffix("") for path in paths if path.suffix.lower() in JPEGS}
    tails = MASK_TAILS if mask_suffix is None else (mask_suffix,)
    pictures: list[Path] = []
    masks: list[Path] = []
    for path in paths:
        bare = path.with_name(_without(path.stem, tails))
        others = {bare.with_name(bare.name + tail) for tail in ("", *IMAGE_TAILS)}
        beside = path.suffix.lower() not in JPEGS and path.with_suffix("") in jpegs
        is_mask = (bare.name != path.stem and stems & others) or (beside and not mask_suffix)
        (masks if is_mask else pictures).append(path)
    return pictures, masks


def _without(stem: str, tails: Sequence[str]) -> str:
    """`stem` without the first of the `tails` that it ends in."""
    for tail in tails:
        if tail and stem.lower().endswith(tail.lower()) and len(stem) > len(tail):
            return stem[: -len(tail)]
    return stem


def _paired(layout: str, images: _Folder, masks: _Folder, mask_suffix: str | None) -> Scan:
    tails = MASK_TAILS if mask_suffix is None else (mask_suffix,)
    if mask_suffix:
        fitting = [path for path in masks.pictures if path.stem.lower().endswith(mask_suffix.lower())]
        masks = replace(masks, pictures=fitting)
    pairs, lonely = _pair(images, masks, tails, same_folder=True)
    if not pairs:  # the sub-folders differ
        pairs, lonely = _pair(images, masks, tails, same_folder=False)
    samples = tuple(Sample(picture, Mask(pairs[picture])) for picture in images.pictures if picture in pairs)
    skipped = {
        "pictures without a mask": [picture for picture in images.pictures if picture not in pairs],
        "masks without a picture": lonely,
        "files of other kinds": images.others + masks.others,
    }
    return Scan(layout, samples, skipped)


def _pair(
    images: _Folder, masks: _Folder, tails: Sequence[str], same_folder: bool
) -> tuple[dict[Path, Path], list[Path]]:
    """Masks by picture, and masks left over. With `same_folder`, both must be in sub-folders of the same name."""

    def key(path: Path, root: Path, name: str) -> tuple[Path | None, str]:
        return path.parent.relative_to(root) if same_folder else None, name

    by_name, by_part = defaultdict(list), defaultdict(list)
    for picture in images.pictures:
        by_name[key(picture, images.root, picture.stem)].append(picture)
        by_part[key(picture, images.root, _without(picture.stem, IMAGE_TAILS))].append(picture)
    candidates = by_part | by_name
    pairs: dict[Path, Path] = {}
    lonely = []
    for mask in masks.pictures:
        keys = (key(mask, masks.root, name) for name in (mask.stem, _without(mask.stem, tails)))
        fitting = next((candidates[key] for key in keys if key in candidates), [])
        if not fitting:
            lonely.append(mask)
        elif len(fitting) > 1:
            raise UserError(f"{mask} is the mask of {fitting[0]} or of {fitting[1]}: rename one, or take one away")
        elif fitting[0] in pairs:
            raise UserError(
                f"{fitting[0]} has the masks {pairs[fitting[0]]} and {mask}: say which with --mask-suffix, such as "
                f"{_tail(mask, fitting[0])!r}, or take one away"
            )
        else:
            pairs[fitting[0]] = mask
    return pairs, lonely


def _tail(mask: Path, picture: Path) -> str:
    return mask.stem.removeprefix(_without(picture.stem, IMAGE_TAILS))


def _scan_voc(root: Path, split: str) -> Scan:
    lists = root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in lists.glob("*.txt") if not _is_junk(file.name)))
        raise UserError(f"no image list {path}: {f'--split can be {there}' if there else 'VOC has one for each split'}")
    images, masks = _Folder.read(root / "JPEGImages"), _Folder.read(root / "SegmentationClass")
    names: dict[str, int] = {}  # and the line of each
    for number, line in read_lines(path, "image list"):
        if line in names:
            raise UserError(
                f"image list {path}, line {number}: {line!r} is in line {names[line]} already; name it once"
            )
        names[line] = number
    stems = {picture.stem for picture in images.pictures}
    for name, number in names.items():
        if name not in stems:
            raise UserError(
                f"image list {path}, line {number}: no picture {root / 'JPEGImages' / name}.jpg; correct the list"
            )
    return _paired("voc", images.only(names), masks.only(names), mask_suffix="")


def _scan_cityscapes(root: Path, split: str, mask_suffix: str | None) -> Scan:
    images, masks = (root / name / split for name in ("leftImg8bit", "gtFine"))
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: Cityscapes has one; --split names another part than {split!r}")
    found = _Folder.read(masks)
    if mask_suffix is None:
        suffixes = ("_gtFine_labelTrainIds", "_gtFine_labelIds")
        there = (suffix for suffix in suffixes if any(path.stem.endswith(suffix) for path in found.pictures))
        mask_suffix = next(there, suffixes[0])
    return _paired("cityscapes", _Folder.read(images), found, mask_suffix)


def _scan_coco(images: Path, path: Path) -> Scan:
    content = _read_json(path)
    try:
        return _match_coco(images, path, content)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no COCO file of instances, stuff or panoptic segments ({error!r})") from error


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"--masks {path} is not a file: give COCO's JSON")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON
        raise UserError(f"cannot read {path} ({error}): give COCO's JSON") from error


def _match_coco(images: Path, path: Path, content: dict) -> Scan:
    categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    panoptic = any("segments_info" in annotation for annotation in content["annotations"])
    found = _Folder.read(images, leave_out=path.with_suffix(""))  # the PNGs of a panoptic one
    pictures = found.pictures
    by_path = {picture.relative_to(images).as_posix(): picture for picture in pictures}
    by_name = {} if len({path.name for path in pictures}) < len(pictures) else {path.name: path for path in pictures}
    samples, absent = [], []
    for entry in content["images"]:
        name, own = entry["file_name"], annotations[entry["id"]]
        picture = by_path.get(name) or by_name.get(Path(name).name)
        if picture is None:
            absent.append(images / name)
        elif own or not panoptic:
            make = _panoptic_mask if panoptic else _object_mask
            samples.append(Sample(picture, make(path, entry, own, categories)))
    used = {sample.image for sample in samples}
    if len(used) < len(samples):
        raise UserError(f"{path} lists a picture twice: name each once")
    skipped = {
        "pictures without annotations": [picture for picture in pictures if picture not in used],
        "annotated pictures that are not there": absent,
        "files of other kinds": found.others,
    }
    in_order = tuple(sorted(samples, key=lambda sample: sample.image))
    return Scan("coco", in_order, skipped, Categories(path, categories))


def _panoptic_mask(path: Path, entry: dict, annotations: list[dict], categories: dict[int, str]) -> Mask:
    segments = {int(segment["id"]): segment["category_id"] for segment in annotations[0]["segments_info"]}
    _check_categories(path, segments.values(), categories)
    return Mask(path.with_suffix("") / annotations[0]["file_name"], segments=segments)


def _object_mask(path: Path, entry: dict, annotations: list[dict], categories: dict[int, str]) -> Mask:
    objects = tuple((annotation["category_id"], annotation["segmentation"]) for annotation in annotations)
    _check_categories(path, (category for category, _ in objects), categories)
    drawing = Drawing(objects, size=(entry["height"], entry["width"]))
    return Mask(path, drawing=drawing, name=f"of {entry['file_name']} in {path}")


def _check_categories(path: Path, used: Iterable[int], categories: dict[int, str]) -> None:
    unknown = set(used) - categories.keys()
    if unknown:
        raise UserError(
            f"{path} has annotations of category {min(unknown)}, which its categories lack: use files that fit"
        )
