"""Videos and cameras: frames decoded in another thread, segmented in batches, averaged over time, written as MP4."""

import contextlib
import dataclasses
import itertools
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from clearclip.errors import UserError
from clearclip.look import Dense
from clearclip.paths import atomic_write
from clearclip.segmentation import Segmentation
from clearclip.segmenter import Segmenter
from clearclip.visualize.canvas import paste, text_size
from clearclip.visualize.legend import legend_panel
from clearclip.vocabulary import Vocabulary

AHEAD = 16  # frames that are decoded before they are needed
SIDE = 1920  # a film's longer side at most, in pixels
CODEC = "mp4v"  # the one MP4 codec that every build of OpenCV can write
USUAL_FPS = 25.0  # where a camera does not say


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """OpenCV and FFmpeg print a page on what they cannot open: our own sentence is enough."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class Frames:
    """The frames of a video file or of a camera, RGB uint8 [H, W, 3], turned upright; another thread decodes them.

        with Frames("clip.mp4") as frames:
            for frame in frames: ...

    Attributes:
        fps: frames a second.
        count: how many there are by the file's header, or None.

    Raises UserError for what cannot be opened and for a video without a frame. A camera has no end; `limit` is the
    largest number of frames.
    """

    def __init__(self, source: str | Path | int, limit: int | None = None):
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        with _silent():
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            remedy = "is it plugged in, and free?" if isinstance(source, int) else "convert it to MP4"
            raise UserError(f"{self.name} cannot be opened: {remedy}")
        fps, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if 0 < fps < 1000 else USUAL_FPS
        known = int(count) if 0 < count < 1e9 and not isinstance(source, int) else None
        self.count = min(filter(None, (known, limit)), default=None)
        self.limit = limit
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="decode", daemon=True)

    def _decode(self) -> None:
        numbers: Iterable[int] = itertools.count() if self.limit is None else range(self.limit)
        for _ in numbers:
            found, frame = self._capture.read()
            if not found or frame is None or not self._put(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)):
                break
        self._put(None)

    def _put(self, frame: np.ndarray | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(frame, timeout=0.1)
                return True
        return False

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self._thread.is_alive():
            self._thread.start()
        seen = 0
        while (frame := self._queue.get()) is not None:
            seen += 1
            yield frame
        if not seen:
            raise UserError(f"{self.name} holds no frame that can be decoded; convert it to MP4")

    def close(self) -> None:
        """Let the file or the camera go."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._capture.release()

    def __enter__(self) -> "Frames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclasses.dataclass
class Smoother:
    """An exponential average of scores over the previous frames: share · what was + (1 − share) · what is.

    It looks neither ahead nor after motion: a thing that moves leaves a trace of about 1 / (1 − share) frames.
    """

    share: float
    last: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"smooth must be a number from 0, nothing, to below 1, not {self.share}")

    def __call__(self, dense: Dense) -> Dense:
        """A frame's scores, averaged with those before; frames of another size begin anew."""
        if self.last is not None and self.last.shape == dense.scores.shape:
            dense = dataclasses.replace(dense, scores=torch.lerp(dense.scores.float(), self.last, self.share))
        self.last = dense.scores.float() if self.share else None
        return dense


def segment_frames(
    segmenter: Segmenter, frames: Iterable[np.ndarray], names: Any, smooth: float = 0.0, other: Any = None
) -> Iterator[Segmentation]:
    """Segment frames in their order, several in a batch of windows.

        with Frames("clip.mp4") as frames:
            for result in segment_frames(segmenter, frames, ["cat", "grass"], smooth=0.8): ...

    Args:
        frames: RGB, uint8 [H, W, 3].
        names, other: as `Segmenter` has them.
        smooth: the share of the frames before in the scores of each, see `Smoother`.
    """
    smoother = Smoother(smooth)
    queries = segmenter.queries(names if isinstance(names, Vocabulary) else Vocabulary.of(names), other)
    decoder, rest = segmenter.decoder(queries), iter(frames)
    batch = 1
    while group := list(itertools.islice(rest, batch)):
        views = [segmenter.view(torch.from_numpy(frame).permute(2, 0, 1)) for frame in group]
        for frame, view, dense in zip(group, views, segmenter.look(views, queries)):
            yield segmenter.result(view, smoother(dense), queries, decoder, scores=False, source=frame)
        batch = max(1, segmenter.window_batch // len(views[0].plan))


class Film:
    """An MP4 file of overlays: frames in their colours above a legend that stays the same. It has no sound.

        with Film("out.mp4", fps=25) as film:
            film.add(result)

    The file is there, whole, when the `with` ends; also where that is by an exception, with the frames so far.
    Raises UserError where OpenCV cannot write it.
    """

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = Path(path), fps
        self.frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._temporary = self.path
        self._stack = contextlib.ExitStack()

    def add(self, result: Segmentation) -> None:
        """One more frame."""
        frame = np.asarray(film_frame(result))
        height, width = (side - side % 2 for side in frame.shape[:2])  # codecs want even sides
        if self._writer is None:
            self._temporary = self._stack.enter_context(atomic_write(self.path))
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*CODEC), self.fps, self._size)
            if not self._writer.isOpened():
                raise UserError(
                    f"{self.path}: this OpenCV writes no MP4; install opencv-python or opencv-python-headless"
                )
        frame = frame[:height, :width]
        if (width, height) != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def __enter__(self) -> "Film":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if not self.frames:
            self._stack.__exit__(kind, error, trace)
        elif cv2.VideoCapture(str(self._temporary)).isOpened():
            self._stack.close()  # an exception must not undo the frames so far
        else:  # OpenCV does not say that it could not write
            with self._stack:
                raise UserError(f"{self.path} could not be written to its end; make room on the disk")


def film_frame(result: Segmentation) -> Any:
    """A frame in its colours, and below it a legend of all names: neither jumps from frame to frame."""
    picture = result.overlay(legend=False, write=False, max_side=SIDE)
    count = len(result.names)
    everything = np.append(np.arange(count, 0, -1), 0)  # in their order
    size = text_size((picture.height, picture.width))
    panel = legend_panel(everything, result.names, size, result.colours, max_width=picture.width, notes=[""] * count)
    return paste([(picture, 0, 0), (panel, 0, picture.height)]).crop(
        (0, 0, picture.width, picture.height + panel.height)
    )
