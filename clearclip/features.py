"""Patch features of pictures, kept in files: new names, templates and thresholds then need no network.

    kept = keep_features(segmenter, "photo.jpg")
    kept.save("features/photo.safetensors")
    segmenter("features/photo.safetensors", ["cat", "grass, lawn"]).labels

A file is safetensors (https://huggingface.co/docs/safetensors). Of each picture it holds `features`, float16 of unit
length, and `norms`, float32, the lengths that they had; of several pictures these names begin with a number, such as
`7.features`. The metadata `pictures`, JSON, says of each what it was made of and how: see `Note`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.errors import UserError, one_line
from clearclip.images import StrPath, read_image, read_stored
from clearclip.paths import atomic_write, check_regular, check_writable
from clearclip.view import View
from clearclip.windows import Axis, Plan, Stitcher

FORMAT = "clearclip features 1"
SUFFIX = ".safetensors"
LONGEST = 200  # bytes of a picture's name that go into that of its file
REMEDY = "clearclip features makes it anew"


@dataclass(frozen=True)
class Origin(os.PathLike[str]):
    """The picture that features are of. It is read where somebody looks at it, and nowhere else.

    Attributes:
        shape: (H, W) of the picture.
        path: of its file; None where there was none.
        sha256: of its file.
        stored: whether pixels count as they are stored, EXIF's orientation ignored.
    """

    shape: tuple[int, int]
    path: str | None = None
    sha256: str = ""
    stored: bool = False

    @classmethod
    def of(cls, path: StrPath, pixels: np.ndarray, stored: bool = False, sha256: str | None = None) -> "Origin":
        """Of a file and its pixels [H, W, 3]; `sha256` is that of the file where it is known."""
        return cls(pixels.shape[:2], os.path.abspath(path), sha256 or file_hash(path), stored)

    def __fspath__(self) -> str:
        return self.path or ""

    def read(self) -> np.ndarray:
        """The picture, RGB, uint8 [H, W, 3]. Raises UserError where its file is gone, or another."""
        need = "overlays and refinements that follow its edges need it"
        if not self.path:
            raise UserError(f"the picture of these features was no file: {need}; keep features of a file")
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}, whose features are kept, is gone: {need}; put it back, or do without these")
        if file_hash(self.path) != self.sha256:
            raise UserError(f"{self.path} is not the picture whose features are kept; {REMEDY}")
        read = read_stored if self.stored else read_image
        return read(self.path, None)


def file_hash(path: StrPath) -> str:
    """SHA-256 of a file. Raises UserError where it cannot be read."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise UserError(f"cannot read image {path}: {one_line(error)}; give the path of a picture") from None


@dataclass(frozen=True)
class Note:
    """What features are of, and what made them.

    Attributes:
        origin: the picture.
        plan: where its windows lie in the resized picture, in pixels.
        settings: what the features depend on, as `Segmenter.feature_settings` has it.
        about: what else is known: how to `load` it, its precision, the version of this package.
    """

    origin: Origin
    plan: Plan
    settings: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def check(self, settings: Mapping[str, Any], name: str = "the given features") -> None:
        """Raise UserError naming a setting in which a segmenter differs from the one that made the file `name`."""
        wanted = _flat(settings)
        for key, kept in _flat(self.settings).items():
            if key in wanted and wanted[key] != kept:
                raise UserError(
                    f"{name} was kept with {key} {_brief(kept)}, not {_brief(wanted[key])}: use the same, or keep it "
                    "anew by clearclip features"
                )

    @property
    def options(self) -> dict[str, Any]:
        """What `Segmenter(**note.options)` needs to be the segmenter that made these features."""
        keys = ("short_side", "long_side", "crop", "stride", "two_steps", "resize")
        return {**self.about["load"], **{key: self.settings[key] for key in keys}}

    def written(self, folder: Path) -> dict[str, Any]:
        """For the JSON of a file in `folder`."""
        written = dataclasses.asdict(self)
        if self.origin.path and (beside := _relative(self.origin.path, folder)):
            written["origin"]["beside"] = beside  # pictures and features may move together
        return written

    @classmethod
    def read(cls, written: Mapping[str, Any], folder: Path) -> "Note":
        """From the JSON of a file in `folder`. Raises KeyError, TypeError or ValueError for what is none."""
        origin, plan = dict(written["origin"]), dict(written["plan"])
        beside = origin.pop("beside", None)
        if beside and not os.path.isfile(origin["path"]):
            moved = os.path.normpath(folder.absolute() / beside)
            origin["path"] = moved if os.path.isfile(moved) else origin["path"]
        origin["shape"] = tuple(origin["shape"])
        axes = {name: Axis(**{**plan[name], "starts": tuple(plan[name]["starts"])}) for name in ("rows", "columns")}
        return cls(Origin(**origin), Plan(**{**plan, **axes}), dict(written["settings"]), dict(written["about"]))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"option": {"residual": 0}}` as `{"option residual": 0}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key} {name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _brief(value: Any) -> str:
    """A setting in a sentence; hashes by their first digits."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _relative(path: str, folder: Path) -> str | None:
    try:
        return Path(os.path.relpath(path, folder.absolute())).as_posix()
    except ValueError:  # on another drive
        return None


@dataclass(frozen=True)
class KeptFeatures:
    """Patch features of one picture: what a segmenter takes in its place.

        kept = KeptFeatures.load("features/photo.safetensors")
        kept.features.shape  # [2, 28, 28, 512] of a picture in two windows
        kept.note.origin.path  # "/home/me/photos/photo.jpg"

    Attributes:
        features: float16, unit length: [n, h, w, dim] of its windows, row by row, or [h, w, dim] where the method sees
            the picture whole.
        norms: float32, the lengths that they had: [n, h, w] or [h, w].
        note: what they are of.
        name: of their file, for errors.
    """

    features: Tensor
    norms: Tensor
    note: Note
    name: str = "the given features"

    @classmethod
    def of(cls, features: Tensor, note: Note) -> "KeptFeatures":
        """Of features as a method makes them, of any length and type."""
        features = features.float()
        unit = F.normalize(features, dim=-1)
        return cls(unit.half().contiguous().cpu(), features.norm(dim=-1).contiguous().cpu(), note)

    @property
    def whole(self) -> bool:
        """Whether they are of the whole picture, not of its windows."""
        return self.features.ndim == 3

    def save(self, path: StrPath) -> None:
        """Write a file, whole or not at all. Raises UserError or OSError where that cannot be done."""
        save_kept([self], path)

    @classmethod
    def load(cls, path: StrPath) -> "KeptFeatures":
        """Read what `save` wrote. Raises UserError for a file that is missing, damaged or none of features."""
        found = kept_in(path)
        if len(found) > 1:
            raise UserError(f"{path} holds features of {len(found)} pictures: give its folder")
        return found[0].load()


@dataclass(frozen=True)
class Kept:
    """Features of one picture in their file, of which only the note is read; segmenters take it as it is.

    Attributes:
        path: the file.
        note: what they are of.
        digest: SHA-256 of note and features.
        prefix: of their tensors' names.
    """

    path: Path
    note: Note
    digest: str
    prefix: str = ""

    @property
    def named(self) -> Path:
        """The file and, where there are several pictures in it, the picture's name."""
        return self.path / Path(self.note.origin).name if self.prefix else self.path

    def load(self) -> KeptFeatures:
        """Read them. Raises UserError where the file is missing or damaged."""
        with _reading(self.path), safe_open(self.path, framework="pt") as file:
            features, norms = (file.get_tensor(f"{self.prefix}{name}") for name in ("features", "norms"))
            kept = KeptFeatures(features, norms, self.note, str(self.path))
            written = next(one for one in _headers(file.metadata()) if one["tensors"] == self.prefix)
            if _digest(written["note"], features, norms) != self.digest:
                raise ValueError("its checksum is another")
            _check_shapes(kept)
        return kept


def save_kept(several: Sequence[KeptFeatures], path: StrPath) -> None:
    """Write the features of one picture, or of several, into one file, whole or not at all."""
    check_writable(path)
    tensors: dict[str, Tensor] = {}
    pictures = []
    folder = Path(path).absolute().parent
    for number, kept in enumerate(several):
        prefix = f"{number}." if len(several) > 1 else ""
        tensors |= {f"{prefix}features": kept.features, f"{prefix}norms": kept.norms}
        note = kept.note.written(folder)
        pictures.append({"tensors": prefix, "sha256": _digest(note, kept.features, kept.norms), "note": note})
    content = save(tensors, {"format": FORMAT, "pictures": json.dumps(pictures)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)  # and not `save_file`, whose errors do not say that the disk is full


def kept_in(path: StrPath) -> list[Kept]:
    """What a file of features holds. Raises UserError where it is missing, damaged or none."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return [
            Kept(Path(path), Note.read(one["note"], Path(path).parent), str(one["sha256"]), str(one["tensors"]))
            for one in _headers(file.metadata())
        ]


def is_kept(source: object) -> bool:
    """Whether something in the place of a picture is kept features, or by its name a file of them."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source).lower().endswith(SUFFIX)
    return isinstance(source, Kept | KeptFeatures)


def load_kept(source: StrPath | Kept | KeptFeatures) -> KeptFeatures:
    """Kept features from what `is_kept` takes for them. Raises UserError where they cannot be read."""
    if isinstance(source, KeptFeatures):
        return source
    return source.load() if isinstance(source, Kept) else KeptFeatures.load(source)


class KeptFolder(Sequence[Kept]):
    """All features that are kept in the files of a folder, by their names; of one picture, the latest.

        for kept, result in zip(folder := KeptFolder("features"), segmenter.stream(folder, ["cat", "grass"])):
            result.save("results", stem=kept.path.stem)

    Attributes:
        damaged: files that are left out, and why, in a sentence. Those of something else are passed over.
    """

    def __init__(self, folder: StrPath):
        self.folder = Path(folder)
        self.damaged: dict[Path, str] = {}
        self._found: dict[tuple[str, str], Kept] = {}
        self._taken: set[str] = set()  # names of files, as a file system sees them that knows no case
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path)):
            try:
                self._note(kept_in(path))
            except UserError as error:
                if _is_of_features(path):
                    self.damaged[path] = str(error)  # its place is free
                else:
                    self._taken.add(path.name.casefold())

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Kept: ...

    @overload
    def __getitem__(self, index: slice) -> list[Kept]: ...

    def __getitem__(self, index: int | slice) -> Kept | list[Kept]:
        return sorted(self._found.values(), key=lambda kept: (kept.path, len(kept.prefix), kept.prefix))[index]

    def __iter__(self) -> Iterator[Kept]:
        return iter(self[:])

    def find(self, path: StrPath, sha256: str | None = None) -> Kept | None:
        """What is kept of a picture, wherever it lies: its name and its content tell it."""
        return self._found.get((Path(path).name, sha256 or file_hash(path)))

    def add(self, *several: KeptFeatures) -> Path:
        """Keep more pictures, in place of what was kept of them, in one file, whose path is returned.

        Raises UserError or OSError where that cannot be written.
        """
        path = self._place(several)
        save_kept(several, path)
        self._note(kept_in(path))
        return path

    def _place(self, several: Sequence[KeptFeatures]) -> Path:
        """A file of their own: by the first picture's name and, where another has that name, by its content too."""
        origin = several[0].note.origin
        before = self._found.get(_key(origin))
        if before is not None and not before.prefix and len(several) == 1:
            return before.path
        stem = Path(origin.path or "picture").stem
        short = os.fsencode(stem)[:LONGEST].decode(errors="ignore")
        if len(several) > 1:
            short += f"+{len(several) - 1}"
        taken = short != stem or f"{stem}{SUFFIX}".casefold() in self._taken
        return self.folder / f"{short}-{origin.sha256[:12]}{SUFFIX}" if taken else self.folder / f"{stem}{SUFFIX}"

    def _note(self, found: Sequence[Kept]) -> None:
        for kept in found:
            self._found[_key(kept.note.origin)] = kept
            self._taken.add(kept.path.name.casefold())


def _key(origin: Origin) -> tuple[str, str]:
    return Path(origin.path or "").name, origin.sha256


def _is_of_features(path: Path) -> bool:
    """Whether a file says so. Raises nothing: one that says nothing may be damaged, and reading it tells."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        with open(path, "rb") as head:
            return FORMAT.encode() in head.read(4096)


class KeptView(View):
    """A view of a picture whose features are kept: the picture is read and resized only where somebody looks at it."""

    kept: KeptFeatures
    resize: Callable[[Tensor], Tensor]

    def __init__(
        self,
        kept: KeptFeatures,
        backbone: Backbone,
        shape: tuple[int, int] | None,
        window_batch: int,
        stitcher: Stitcher,
        resize: Callable[[Tensor], Tensor],
    ):
        origin, plan = kept.note.origin, kept.note.plan
        fields = dict(
            backbone=backbone, shape=shape or origin.shape, plan=plan, window_batch=window_batch, stitcher=stitcher,
            name=origin.path, _made={}, kept=kept, resize=resize,
        )  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # views are frozen

    @functools.cached_property
    def original(self) -> Tensor:
        return torch.from_numpy(self.kept.note.origin.read()).permute(2, 0, 1)

    @functools.cached_property
    def image(self) -> Tensor:
        return self.resize(self.original)

    @property
    def features(self) -> Tensor:
        """[n, h, w, dim] or, of the whole picture, [h, w, dim], float32 on the backbone's device."""
        device = self.backbone.device
        return self.kept.features.to(device).float() * self.kept.norms.to(device)[..., None]


# Files


@contextlib.contextmanager
def _reading(path: StrPath) -> Iterator[None]:
    """Turn whatever a bad file causes into one sentence that names it."""
    try:
        check_regular(path)
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"features {path} cannot be read: {error.strerror}; check the path") from None
        raise UserError(
            f"{path} does not hold kept features ({one_line(error)}): it is damaged, or of something else; {REMEDY}"
        ) from error


def _headers(metadata: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """What a file says of each picture. Raises ValueError where it is none of features."""
    if metadata is None or metadata.get("format") != FORMAT:
        raise ValueError("it says nothing of pictures")
    headers: list[dict[str, Any]] = json.loads(metadata["pictures"])
    return headers


def _digest(note: Mapping[str, Any], features: Tensor, norms: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for tensor in (features, norms):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _check_shapes(kept: KeptFeatures) -> None:
    """Raise ValueError for tensors that are not what a note says."""
    features, norms = kept.features, kept.norms
    count = () if kept.whole else (len(kept.note.plan),)
    if features.dtype != torch.float16 or norms.dtype != torch.float32 or features.shape[:-1] != norms.shape:
        raise ValueError(f"features are {list(features.shape)}, norms {list(norms.shape)}")
    if features.ndim not in (3, 4) or tuple(features.shape[: len(count)]) != count:
        raise ValueError(f"features {list(features.shape)} are not of {len(kept.note.plan)} windows")


__all__ = ["Kept", "KeptFeatures", "KeptFolder", "KeptView", "Note", "Origin", "is_kept", "kept_in", "load_kept"]
