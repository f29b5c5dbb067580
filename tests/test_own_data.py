"""`clearclip eval --images DIR --masks DIR --classes FILE`, in this process."""

import json

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from clearclip.cli.eval import main

pytestmark = pytest.mark.slow  # evaluations


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three photographs, two masks, a class file and what macOS and Windows leave behind."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for index, name in enumerate(("a.JPG", "b.png", "c.jpeg")):
        Image.fromarray(picture(48, 64, index)).save(tmp_path / "photos" / name)
    for name in ("a_mask.png", "b.PNG"):
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 32:], labels[0] = 1, 255
        Image.fromarray(labels).save(tmp_path / "masks" / name)
    (tmp_path / "photos/Thumbs.db").write_bytes(b"x")
    (tmp_path / "photos/._a.JPG").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("field, meadow\nsky\n")
    return tmp_path


def arguments(folders, tiny_folder, *more):
    own = ["--images", folders / "photos", "--masks", folders / "masks", "--classes", folders / "classes.txt"]
    settings = ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--work-dir", folders / "run"]
    return [str(part) for part in [*own, *settings, *more]]


def test_a_data_set_of_ones_own(folders, tiny_folder, capsys):
    main(arguments(folders, tiny_folder))
    printed = capsys.readouterr()
    assert "pictures with masks: 2; skipped: pictures without a mask: 1 (first " in printed.err
    result = json.loads((folders / "run/result.json").read_text())
    assert (result["dataset"], result["images"], result["published"]) == ("photos", 2, None)
    assert (result["names"], result["settings"]["altered"]) == ([["field", "meadow"], ["sky"]], [])
    assert (len(result["names_hash"]), len(result["templates"])) == (64, 80)

    main([str(folders / "run/config.py"), "--work-dir", str(folders / "again"), "--fresh"])  # the same as a config
    again = json.loads((folders / "again/result.json").read_text())
    assert (again["mIoU"], again["per_class_IoU"]) == (result["mIoU"], result["per_class_IoU"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ignore", "many"], "--ignore 'many' must be labels separated by commas"),
        (["--ignore", "1"], "--ignore 1 is the label of class 'sky'"),
        (["--images", "gone"], "--images"),
        (["--classes", "gone.txt"], "gone.txt does not exist"),
    ],
)
def test_what_does_not_fit_is_one_sentence(more, message, folders, tiny_folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments(folders, tiny_folder, *more))
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith("error: ")
    assert message in line


def test_a_colour_mask_says_how_to_give_the_palette(folders, tiny_folder, capsys):
    Image.fromarray(picture(48, 64)).save(folders / "masks/b.PNG")
    with pytest.raises(SystemExit):
        main(arguments(folders, tiny_folder))
    error = capsys.readouterr().err
    assert "b.PNG" in error
    assert "--palette" in error
