"""The networks behind the page: which are loaded, what is asked of them, and what they answer."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clearclip.analysis import Explanation, explain_patch, window_pixels
from clearclip.app.answers import Answer
from clearclip.app.limits import Limits
from clearclip.backbones import Backbone, list_backbones, load_backbone
from clearclip.config import sanity_folder
from clearclip.look import scores_features
from clearclip.methods import list_methods
from clearclip.refine import REFINEMENTS
from clearclip.segmenter import Segmenter, see_together
from clearclip.vocabulary import Vocabulary, load_vocabulary

BACKBONES, SEGMENTERS = 2, 8  # that are kept loaded
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What answers a question.

    Attributes:
        method: as `Spec.parse` reads it.
        backbone: one of `Studio.backbones`.
        short_side: pixels to which pictures are resized for the network.
        other: whether there is a class for what none of the names describes.
    """

    method: str
    backbone: str
    short_side: int = 448
    other: bool = True


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture that was looked at.

    Attributes:
        picture: [H, W, 3], uint8.
        vocabulary: what was looked for.
        setting: of the first answer.
        answers: of each method, the one that was asked for first.
        notes: what there is to know about them, a sentence each.
        name: of the picture, for files.
    """

    picture: np.ndarray
    vocabulary: Vocabulary
    setting: Setting
    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()
    name: str = "picture"


@dataclass(frozen=True)
class Why:
    """Why a patch gets its class.

    Attributes:
        explanation: see `clearclip.analysis.explain_patch`.
        window: [h, w, 3], uint8, what the network saw of the picture.
    """

    explanation: Explanation
    window: np.ndarray


@dataclass
class Studio:
    """Segmenters by what is asked of them, made when first asked for.

    The backbone that it starts with stays loaded, and one more; a third takes that one's place. One call at a time.

    Attributes:
        method: the first of `methods`.
        first: the backbone that is loaded at the start.
        device, precision: of all backbones.
        limits: of what is asked.
    """

    method: str
    first: Backbone
    device: str = "auto"
    precision: str = "auto"
    limits: Limits = field(default_factory=Limits)
    _backbones: dict[str, Backbone] = field(default_factory=dict, repr=False)
    _segmenters: dict[Setting, Segmenter] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._backbones[backbone_name(self.first.name, self.first.tag)] = self.first

    @property
    def methods(self) -> list[tuple[str, str]]:
        """(name, summary) of all methods, the studio's own first."""
        known = {entry.name: entry.summary for entry in list_methods()}
        return [(name, known.get(name, "")) for name in dict.fromkeys([self.method, *known])]

    @property
    def refinements(self) -> list[tuple[str, str]]:
        """(name, summary) of what may follow a method."""
        return [(entry.name, entry.summary) for entry in REFINEMENTS.entries()]

    @property
    def backbones(self) -> dict[str, tuple[str, str]]:
        """Names of backbones with their weights, the loaded ones first: {"ViT-B-16 openai": ("ViT-B-16", "openai")}."""
        named = {backbone_name(name, tag): (name, tag) for name, tags in list_backbones() for tag in tags}
        loaded = {name: named.get(name, (one.name, one.tag)) for name, one in self._backbones.items()}
        return {**loaded, **named}

    @property
    def loaded(self) -> list[str]:
        """The names of loaded backbones."""
        return list(self._backbones)

    def look(
        self,
        picture: np.ndarray,
        vocabulary: Vocabulary,
        setting: Setting,
        against: str = "",
        say: Say = lambda _: None,
    ) -> Seen:
        """Segment a picture [H, W, 3], uint8, by a method and, in the same pass, by one to compare it with.

        `against` is that method, "" for none; `say` is told what is waited for. Raises UserError as `Segmenter` does.
        """
        settings = [setting]
        if against and against != setting.method:
            settings.append(Setting(against, setting.backbone, setting.short_side, setting.other))
        with heard() as notes:
            if len(vocabulary) == 1 and not setting.other:
                notes.append("one name takes every pixel: name what else is in the picture, or turn other on")
            if setting.backbone not in self._backbones:
                say(f"loading {setting.backbone}")
            segmenters = [self.segmenter(one) for one in settings]
            say(f"embedding {len(vocabulary.queries)} names")
            seers = [(segmenter, segmenter.queries(vocabulary)) for segmenter in segmenters]
            say("segmenting")
            view = segmenters[0].view(torch.from_numpy(picture).permute(2, 0, 1))
            features = all(scores_features(segmenter.method) for segmenter in segmenters)
            answers = [
                Answer.of(segmenter.result(view, dense, queries, segmenter.decoder(queries), True, picture))
                for (segmenter, queries), [dense] in zip(seers, see_together(seers, [view], features))
            ]
        return Seen(picture, vocabulary, setting, tuple(answers), tuple(notes))

    def why(self, seen: Seen, point: tuple[float, float]) -> Why:
        """Why the patch at `point` (y, x), in pixels of the picture, gets its class."""
        segmenter = self.segmenter(seen.setting)
        explanation = explain_patch(segmenter, seen.picture, seen.vocabulary, point)
        return Why(explanation, window_pixels(segmenter, seen.picture, explanation.place))

    def segmenter(self, setting: Setting) -> Segmenter:
        if setting not in self._segmenters:
            backbone = self._backbone(setting.backbone)
            while len(self._segmenters) >= SEGMENTERS:
                self._segmenters.pop(next(iter(self._segmenters)))
            made = Segmenter(setting.method, backbone, short_side=setting.short_side, other=setting.other)
            self._segmenters[setting] = made
        return self._segmenters[setting]

    def _backbone(self, name: str) -> Backbone:
        if name not in self._backbones:
            arch, tag = self.backbones[name]
            loaded = load_backbone(arch, tag, self.device, self.precision)
            for gone in list(self._backbones)[BACKBONES - 1 :]:
                del self._backbones[gone]
                self._segmenters = {key: one for key, one in self._segmenters.items() if key.backbone != gone}
            self._backbones[name] = loaded
        return self._backbones[name]


def backbone_name(arch: str, tag: str) -> str:
    return f"{arch} {tag}"


@dataclass(frozen=True)
class Example:
    """A sample picture and the names of what is in it."""

    path: Path
    names: tuple[str, ...]


def examples() -> list[Example]:
    """The photographs of the sanity set with the classes of their label maps."""
    folder = sanity_folder()
    classes = [", ".join(names) for names in load_vocabulary(folder / "classes.txt").names]
    found = []
    for path in sorted((folder / "images").iterdir()):
        labels = np.unique(np.asarray(Image.open(folder / "labels" / f"{path.stem}.png")))
        found.append(Example(path, tuple(classes[label] for label in labels if label < len(classes))))
    return found


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What this package logs in this thread meanwhile, from warnings on."""
    notes: list[str] = []
    handler = _Listener(notes)
    logger = logging.getLogger("clearclip")
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)


class _Listener(logging.Handler):
    def __init__(self, notes: list[str]):
        super().__init__(logging.WARNING)
        self.notes, self.thread = notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.notes.append(record.getMessage())


__all__: Sequence[str] = ["Example", "Seen", "Setting", "Studio", "Why", "examples"]
