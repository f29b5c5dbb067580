"""demo.py: what it writes, and what it refuses before it loads weights."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearclip.cli.segment import output_paths
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
    assert f"overlay: {photo.parent / 'cat_overlay.png'}, labels: {photo.parent / 'cat_labels.png'}" in printed.out
    assert "one name" not in printed.err

    main([str(argument) for argument in [photo, "--names", "cat", *settings]])
    assert "one name takes every pixel" in capsys.readouterr().err


def test_pictures_of_one_name_get_a_number(tmp_path):
    paths = output_paths([Path("x/a.jpg"), Path("y/A.png"), Path("b.jpg")], tmp_path)
    assert [overlay.name for overlay, _ in paths] == ["1-a_overlay.png", "2-A_overlay.png", "b_overlay.png"]
    assert [labels.name for _, labels in paths] == ["1-a_labels.png", "2-A_labels.png", "b_labels.png"]


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
