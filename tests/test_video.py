"""Videos: frames in, smoothing, films out."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from conftest import picture

from clearclip.errors import UserError
from clearclip.look import Dense
from clearclip.video import Film, Frames, Smoother, segment_frames


@pytest.fixture
def clip(tmp_path):
    """A video of 7 frames, 64 × 48, each of one grey."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for level in range(0, 210, 30):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def test_frames_come_in_order_and_end(clip):
    with Frames(clip) as frames:
        assert (frames.fps, frames.count) == (10.0, 7)
        seen = list(frames)
    assert [frame.shape for frame in seen] == [(48, 64, 3)] * 7
    np.testing.assert_allclose([frame.mean() for frame in seen], range(0, 210, 30), atol=3)
    with Frames(clip, limit=3) as frames:
        assert (frames.count, len(list(frames))) == (3, 3)


def test_who_stops_early_waits_for_nothing(clip):
    with Frames(clip) as frames:
        next(iter(frames))
        thread = frames._thread
    assert not thread.is_alive()


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_what_is_no_video_is_said(content, tmp_path):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.mp4 cannot be opened: convert it to MP4"):
        Frames(tmp_path / "x.mp4")


def test_opencv_is_silent_of_what_cannot_be_opened(tmp_path, capfd):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for source in (tmp_path / "x.mp4", 99):
        with pytest.raises(UserError, match="cannot be opened"):
            Frames(source)
    assert capfd.readouterr().err == ""


def test_a_film_that_a_full_disk_cut_short_takes_no_place(make, clip, tmp_path, monkeypatch):
    class Full:
        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, path, *_):
            self.path = path

        def isOpened(self):
            return True

        def write(self, frame):
            with open(self.path, "ab") as file:
                file.write(frame.tobytes()[:100])

        def release(self):
            pass

    path = tmp_path / "out.mp4"
    path.write_bytes(b"what was there")
    segmenter = make()
    with Frames(clip, limit=2) as frames:
        results = list(segment_frames(segmenter, frames, list("abcdefg")))
    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(UserError, match=r"out\.mp4 could not be written to its end"), Film(path, 10.0) as film:
        film.add(results[0])
    assert path.read_bytes() == b"what was there"
    assert sorted(tmp_path.iterdir()) == [clip, path]


def test_a_camera_is_a_number(monkeypatch):
    class Camera:
        def __init__(self, source):
            assert source == 1

        def isOpened(self):
            return True

        def get(self, key):
            return -1.0

        def read(self):
            return True, np.zeros((4, 4, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with Frames(1, limit=20) as frames:
        assert (frames.name, frames.count, frames.fps) == ("camera 1", 20, 25.0)
        assert len(list(frames)) == 20


def dense(value, shape=(1, 2, 3, 3)):
    return Dense(torch.full(shape, float(value)), None, whole=False)


def test_smoothing_looks_back_alone():
    smoother = Smoother(0.75)
    seen = [smoother(dense(value)).scores.mean().item() for value in (1, 0, 0, 4)]
    assert seen == pytest.approx([1, 0.75, 0.5625, 0.75 * 0.5625 + 1])
    assert smoother(dense(8, (1, 2, 5, 5))).scores.mean().item() == 8  # of another size
    off = Smoother(0.0)
    assert [off(dense(value)).scores.mean().item() for value in (1, 0, 5)] == [1, 0, 5]
    with pytest.raises(UserError, match=r"smooth must be a number from 0, nothing, to below 1, not 1\.0"):
        Smoother(1.0)


@pytest.mark.parametrize("window_batch", [1, 5])
def test_frames_give_what_their_pictures_give(make, window_batch):
    frames = [picture(64, 96, seed) for seed in range(4)]
    segmenter = make(window_batch=window_batch)
    names = ["a", "b", "c"]
    for frame, result in zip(frames, segment_frames(segmenter, frames, names), strict=True):
        alone = segmenter(frame, names)
        assert (result.labels != alone.labels).mean() < 1e-3
        assert result.image is frame


def test_smoothing_settles_what_noise_stirs(make):
    still, random = picture(64, 96), np.random.default_rng(0)
    frames = [np.clip(still + random.normal(0, 25, still.shape), 0, 255).astype(np.uint8) for _ in range(12)]

    def flips(smooth):
        labels = [one.labels for one in segment_frames(make(), frames, list("abcdefg"), smooth)]
        return np.mean([(one != two).mean() for one, two in itertools.pairwise(labels[4:])])

    assert flips(0.8) < 0.6 * flips(0.0)


def test_a_film_is_read_back(make, tmp_path):
    frames = [picture(65, 97, seed) for seed in range(3)]
    results = list(segment_frames(make(), frames, ["a", "b"], other=["c", "d"]))
    with Film(tmp_path / "new" / "film.mp4", fps=5) as film:
        for result in results:
            film.add(result)
    with Frames(tmp_path / "new" / "film.mp4") as written:
        assert written.fps == 5
        shown = list(written)
    assert len(shown) == 3
    height, width = shown[0].shape[:2]
    assert (width, height % 2) == (96, 0)
    assert height > 66  # the legend's part
    expected = np.asarray(results[0].overlay(legend=False, write=False))[:64, :96].astype(int)
    assert np.abs(shown[0][:64].astype(int) - expected).mean() < 12


def test_frames_so_far_are_kept(make, tmp_path):
    (result,) = segment_frames(make(), [picture(64, 96)], ["a", "b"])

    def broken():
        with Film(tmp_path / "film.mp4", fps=5) as film:
            film.add(result)
            raise RuntimeError("a frame could not be read")

    with pytest.raises(RuntimeError):
        broken()
    with Frames(tmp_path / "film.mp4") as written:
        assert len(list(written)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    with Film(tmp_path / "empty.mp4", fps=5):
        pass
    assert not (tmp_path / "empty.mp4").exists()
