"""demo.py: what it writes, and what it refuses before it loads weights."""

import io
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from clearclip.cli.inputs import check_names, find_inputs, left_out
from clearclip.cli.outputs import kinds, stems
from clearclip.cli.status import Status
from clearclip.visualize import read_legend
from demo import main


@pytest.fixture
def photo(tmp_path):
    """A small PNG, whose name an overlay could take."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("clearclip.segmenter.load_backbone", refuse)


def refused(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    return error[0]


def test_pictures_are_written_beside_the_photograph(photo, tiny_folder, capsys):
    before = photo.read_bytes()
    settings = ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--output", photo.parent]
    main([str(argument) for argument in [photo, "--names", "cat", "sky", *settings]])
    assert photo.read_bytes() == before
    assert {path.name for path in photo.parent.iterdir()} == {"cat.png", "cat_overlay.png", "cat_labels.png"}
    with Image.open(photo.parent / "cat_labels.png") as labels:
        assert labels.size == (60, 40)
        assert set(np.unique(np.array(labels))) <= {0, 1}
    with Image.open(photo.parent / "cat_overlay.png") as overlay:
        assert overlay.width * overlay.height > 60 * 40  # the legend's part
    printed = capsys.readouterr()
    assert f"  {photo.parent / 'cat_overlay.png'}, {photo.parent / 'cat_labels.png'}" in printed.out
    assert "one name" not in printed.err

    main([str(argument) for argument in [photo, "--names", "cat", *settings]])
    assert "one name takes every pixel" in capsys.readouterr().err


def test_pictures_of_one_name_get_a_number():
    assert stems([Path("x/a.jpg"), Path("y/A.png"), Path("b.jpg")]) == ["1-a", "2-A", "b"]


def test_no_picture_is_written_over_another(photo, no_weights, capsys):
    for name in ("cat_overlay.png", "cat_labels.png"):
        other = photo.with_name(name)
        other.write_bytes(photo.read_bytes())
        error = refused([photo, other, "--names", "cat", "sky", "--output", photo.parent], capsys)
        assert error == f"error: {other} would be written over one of the pictures; give another --output"
    copies = [photo, photo.with_name("1-cat.png"), photo.parent / "deep/cat.png"]
    for copy in copies[1:]:
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(photo.read_bytes())
    error = refused([*copies, "--names", "cat", "sky", "--output", photo.parent / "new"], capsys)
    assert (
        error == f"error: {photo.parent / 'new' / '1-cat_overlay.png'} would be written for two pictures; rename "
        "one of them"
    )
    assert not (photo.parent / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "PHOTO"], "cat_overlay.png cannot be written, "),
        (["--method", "ClearClap"], "unknown method 'ClearClap'"),
        (["--compare", "CLIP", "NACLAP+PAMR"], "unknown method 'NACLAP'"),
        (["--method", "ClearCLIP:foo=1"], "no option foo"),
        (["--precision", "half"], "unknown precision 'half'"),
        (["--device", "abacus"], "device 'abacus' is not available here"),
        (["--short-side", "-1"], "short_side must be a whole number"),
        (["--threshold", "nan"], "threshold must be a number within 0..1"),
        (["--import", "not_a_module"], "module not_a_module cannot be imported"),
        (["--classes", "gone.txt"], "give class names by --names or by --classes"),
        (["--save", "labels,masks"], "nothing called 'masks' can be saved"),
        (["--arrays", "mat"], "arrays are saved as safetensors or npy"),
        (["--smooth", "0.5"], "--smooth averages over the frames of a video, and there is none"),
    ],
)
def test_wrong_options_do_not_wait_for_weights(options, message, photo, no_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [str(photo) if option == "PHOTO" else option for option in options]
    assert message in refused([photo, "--names", "cat", "sky", *options], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


def test_a_picture_that_is_missing_does_not_wait_for_weights(photo, no_weights, tmp_path, capsys):
    error = refused([photo, tmp_path / "gone.png", "--names", "cat", "sky"], capsys)
    assert "gone.png" in error


def test_a_folder_of_pictures(photo, tiny_folder, tmp_path, capsys):
    photo.with_name("notes.txt").write_text("")
    photo.with_name("DOG.PNG").write_bytes(photo.read_bytes())
    main([
        str(photo.parent), "--names", "cat", "sky", "--backbone", f"local-dir:{tiny_folder}", "--device", "cpu",
        "--output", str(tmp_path / "out"),
    ])  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*_labels.png")} == {"cat_labels.png", "DOG_labels.png"}
    assert "left out: " in capsys.readouterr().err


def test_a_damaged_picture_costs_no_other(photo, tiny_folder, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    other = photo.with_name("dog.png")
    other.write_bytes(photo.read_bytes())
    pictures = [photo, tmp_path / "damaged.png", other]
    settings = ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--output", tmp_path / "out"]
    error = refused([*pictures, "--names", "cat", "sky", *settings], capsys)
    assert "damaged.png" in error
    assert {path.name for path in (tmp_path / "out").glob("*_labels.png")} == {"cat_labels.png", "dog_labels.png"}


def run(*arguments):
    main([str(argument) for argument in arguments])


@pytest.fixture
def settings(tiny_folder, tmp_path):
    return ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--output", tmp_path / "out"]


def test_a_name_that_is_a_file_is_refused(photo, no_weights, monkeypatch, capsys):
    monkeypatch.chdir(photo.parent)
    Path("cat").mkdir()
    assert refused(["--names", "cat", "cat.png"], capsys) == "error: cat.png is a file; put pictures before --names"
    assert check_names(["cat", "sky"]) == ""


def test_one_argument_with_commas_is_explained():
    words = check_names(["cat, dog,traffic light"])
    assert words.startswith('"cat, dog,traffic light" is 3 synonyms of one class; separate classes by spaces: ')
    assert words.endswith('--names cat dog "traffic light"')
    assert check_names(["grass, lawn", "sky"]) == ""


def test_what_folders_hold_besides_is_counted(photo, tmp_path):
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "empty.jpg", "deep/DOG.PNG", "film.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if name == "empty.jpg" else photo.read_bytes())
    flat, deep = (find_inputs([str(tmp_path)], recursive) for recursive in (False, True))
    assert [path.name for path in flat.pictures] == ["cat.png"]
    assert [path.name for path in deep.pictures] == ["cat.png", "DOG.PNG"]
    assert left_out(flat.skipped).startswith("left out: 5 files (3 no picture by its name, 1 ")
    assert left_out([]) == ""


def test_numbers_are_cameras_unless_they_are_files(photo, monkeypatch):
    monkeypatch.chdir(photo.parent)
    Path("7").mkdir()
    photo.rename("7/a.png")
    Path("Clip.MP4").write_bytes(b"x")
    found = find_inputs(["7", "0", "Clip.MP4"])
    assert (found.pictures, found.films) == ([Path("7/a.png")], [0, Path("Clip.MP4")])


def test_kinds_are_separated_by_commas_or_spaces():
    assert kinds(["labels,heat", "json", "heat"]) == ["labels", "heat", "json"]


def test_a_damaged_picture_of_a_folder_is_counted_and_not_fatal(photo, settings, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "cat.png")
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    run(tmp_path / "in", "--names", "cat", "sky", *settings)
    error = capsys.readouterr().err
    assert "a.png is not a picture" in error
    assert "1 of 2 pictures are done, 1 could not be read" in error


def test_all_kinds_for_all_pictures(photo, settings, tmp_path):
    other = photo.with_name("dog.png")
    other.write_bytes(photo.read_bytes())
    run(photo, other, "--names", "cat", "grass", "--threshold", "0.4", "--save", "labels,heat,json", "coco", *settings)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    one = {"_labels.png", "_heat_1-cat.png", "_heat_2-grass.png", ".json"}
    assert names == {stem + end for stem in ("cat", "dog") for end in one} | {"coco.json"}
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["cat.png", "dog.png"]
    assert [one["id"] for one in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    inside = read_legend(tmp_path / "out/cat_labels.png")
    assert [one["name"] for one in inside["classes"]] == ["other", "cat", "grass"]
    assert inside["threshold"] == 0.4


def test_methods_side_by_side(photo, settings, tmp_path):
    run(photo, "--names", "cat", "grass", "--compare", "CLIP", "SCLIP", *settings)
    with Image.open(tmp_path / "out/cat_overlay.png") as sheet:
        assert sheet.width > 2 * 60


def test_a_video(photo, settings, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for seed in range(4):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    run(clip, "--names", "cat", "grass", "--smooth", "0.5", "--save", "overlay,json", "--frames", "3", *settings)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"clip_overlay.mp4", "clip_frames"}
    assert {path.name for path in (out / "clip_frames").iterdir()} == {f"00000{n}.json" for n in range(3)}
    assert cv2.VideoCapture(str(out / "clip_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert "3 frames, " in capsys.readouterr().out
    for options, message in (
        (["--compare", "CLIP"], "--compare shows methods side by side on pictures"),
        (["--save", "heat"], "--save heat is for pictures; a video may have json, labels, overlay"),
        (["--smooth", "1"], "smooth must be a number from 0"),
    ):
        assert message in refused([clip, "--names", "cat", "grass", *options, *settings], capsys)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_for_terminals(photo, settings, monkeypatch, capsys):
    run(photo, "--names", "cat", "grass", *settings)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run(photo, "--names", "cat", "grass", *settings)
    said = terminal.getvalue()
    stages = ("starting PyTorch", "loading local-dir:", "embedding 2 names × 80 templates", "segmenting cat.png")
    assert [said.index(stage) for stage in stages] == sorted(said.index(stage) for stage in stages)
    assert said.endswith("\r\x1b[K")
    with Status() as status:
        status.say("waiting")
        logging.getLogger("clearclip.text").warning("a thing to know")
    assert terminal.getvalue().endswith("waiting …\r\x1b[Ka thing to know\n")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    run(photo, "--names", "cat", "grass", "--quiet", *settings)
    assert terminal.getvalue() == ""
