"""Kept patch features: the same labels without the network, files to be trusted, and the programs that use them."""

import dataclasses
import errno
import gc
import json
import os
import re
import shlex
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_near, picture
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clearclip import KeptFeatures, KeptFolder, UserError, keep_features
from clearclip.cli import features as program
from clearclip.cli import main as commands
from clearclip.cli.features import main as keep
from clearclip.cli.segment import main as segment
from clearclip.features import Origin, kept_in, save_kept

NAMES = list("abcdefg")
DOCUMENT = (Path(__file__).parents[1] / "docs/features.md").read_text(encoding="utf-8")


def write(path, height=70, width=90, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed)).save(path, **options)
    return path


@pytest.fixture
def photo(tmp_path):
    return write(tmp_path / "photo.png")


@pytest.fixture
def kept(make, photo, tmp_path):
    """A file of features of the photo."""
    keep_features(make(), photo).save(tmp_path / "kept" / "photo.safetensors")
    return tmp_path / "kept" / "photo.safetensors"


@pytest.fixture
def blind(monkeypatch, tiny_backbone):
    """Nothing goes through the network any more."""

    def refuse(*_, **__):
        raise AssertionError("the network was run")

    monkeypatch.setattr(type(tiny_backbone), "embed", refuse)


# The same labels


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ClearCLIP", {}),
        ("ClearCLIP", {"crop": 0}),
        ("ClearCLIP", {"crop": 0, "two_steps": True}),
        ("ClearCLIP", {"threshold": 0.3, "resize": "pil"}),
        ("SC-CLIP", {}),
        ("NACLIP+PAMR", {}),
        ("ClearCLIP+EDGES", {}),
        ("ClearCLIP+SCGA", {}),
        ("RADSeg", {}),
        ("Overview:sides=48", {}),
        ("Overview:sides=48,windows=True", {}),
    ],
)
def test_labels_are_those_of_the_direct_way(method, options, make, photo, request):
    segmenter = make(method, **options)
    direct = segmenter(photo, NAMES, scores=True, features=True)
    kept = keep_features(segmenter, photo)
    request.getfixturevalue("blind")
    again = segmenter(kept, NAMES, scores=True, features=True)
    assert_near(torch.from_numpy(again.features), torch.from_numpy(direct.features), 2e-3)
    assert_near(torch.from_numpy(again.similarity), torch.from_numpy(direct.similarity), 2e-3)
    assert (again.labels != direct.labels).mean() < 0.01
    assert again.labels.dtype == direct.labels.dtype


def test_a_file_a_folder_and_the_features_themselves(make, kept, blind):
    segmenter = make()
    features = KeptFeatures.load(kept)
    folder = KeptFolder(kept.parent)
    results = [
        segmenter(str(kept), NAMES), *segmenter([kept, features], NAMES), *segmenter(folder, NAMES),
        *segmenter.stream(folder, NAMES),
    ]  # fmt: skip
    assert len(results) == 5
    assert all(np.array_equal(one.labels, results[0].labels) for one in results)
    assert results[0].about["features"] == "kept as float16"
    assert features.features.shape == (6, 4, 4, 48)
    assert torch.allclose(features.features.float().norm(dim=-1), torch.ones(()), atol=1e-2)


def test_pictures_and_features_in_one_list(make, photo, kept, tmp_path):
    other = write(tmp_path / "other.png", 80, 80, seed=1)
    segmenter = make(window_batch=100)
    expected = [segmenter(one, NAMES).labels for one in (photo, other)]
    found = segmenter([kept, other, photo, kept], NAMES)
    for one, labels in zip(found, [expected[0], expected[1], expected[0], expected[0]]):
        assert (one.labels != labels).mean() < 0.01


def test_other_names_other_templates_and_thresholds(make, kept, tiny_backbone, blind):
    for options in ({"text_embeddings": None, "templates": "single"}, {"threshold": 0.9, "logit_scale": 20.0}):
        result = make(**options)(kept, ["a", "b, c"], scores=True)
        assert result.similarity.shape == (2, 70, 90)


def test_the_picture_is_looked_at_only_where_it_must_be(make, photo, kept, blind):
    segmenter = make()
    assert segmenter(kept, NAMES).overlay(max_side=64)
    photo.rename(photo.with_name("moved.png"))
    result = segmenter(kept, NAMES)
    assert result.manifest()["picture"] == str(photo)
    for use in (result.overlay, lambda: make("ClearCLIP+PAMR")(kept, NAMES)):
        with pytest.raises(UserError, match=r"photo.png, whose features are kept, is gone: overlays .* put it back"):
            use()
    write(photo, seed=7)
    with pytest.raises(UserError, match=r"photo.png is not the picture whose features are kept"):
        segmenter(kept, NAMES).overlay()


def test_pictures_and_features_may_move_together(make, photo, kept, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for path in (photo, kept.parent):
        shutil.move(path, new / path.name)
    result = make()(new / "kept" / "photo.safetensors", NAMES)
    assert result.image.shape == (70, 90, 3)


def test_features_of_what_is_no_file(make, blind, request):
    with pytest.raises(AssertionError, match="network"):
        keep_features(make(), picture(70, 90))


def test_features_of_an_array(make, tmp_path):
    keep_features(make(), picture(70, 90)).save(tmp_path / "a.safetensors")
    result = make()(tmp_path / "a.safetensors", NAMES)
    assert result.labels.shape == (70, 90)
    with pytest.raises(UserError, match="does not know its image"):
        result.overlay()
    with pytest.raises(UserError, match="the picture of these features was no file"):
        make("ClearCLIP+PAMR")(tmp_path / "a.safetensors", NAMES)


@pytest.mark.parametrize("method", ["CLIPer", "ResCLIP"])
def test_methods_with_other_scores_are_refused(method, make, photo):
    with pytest.raises(UserError, match=f"{method} makes its scores of more than patch features"):
        keep_features(make(method), photo)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("SC-CLIP", {}, "was kept with method ClearCLIP, not SC-CLIP: use the same"),
        ("ClearCLIP:residual=1", {}, "was kept with option residual 0.0, not 1.0"),
        ("ClearCLIP", {"short_side": 96}, "was kept with short_side 80, not 96"),
        ("ClearCLIP", {"crop": 0}, "was kept with crop 64, not 0"),
        ("ClearCLIP", {"stride": 16}, "was kept with stride 32, not 16"),
        ("ClearCLIP", {"resize": "device"}, "was kept with resize cv2, not device"),
    ],
)
def test_other_settings_are_refused(method, options, message, make, kept):
    with pytest.raises(UserError, match=f"{kept} {message}"):
        make(method, **options)(kept, NAMES)


def test_other_weights_are_refused(make, kept, monkeypatch, tiny_backbone):
    monkeypatch.setitem(tiny_backbone.__dict__, "content_hash", "0" * 64)
    with pytest.raises(UserError, match=r"was kept with weights [0-9a-f]{12}…, not 000000000000…"):
        make()(kept, NAMES)


# Files


def test_a_note_says_what_the_features_are_of(make, photo, kept):
    note = kept_in(kept)[0].note
    assert note.origin.shape == (70, 90)
    assert (note.origin.path, note.origin.stored) == (str(photo), False)
    assert (note.plan.rows.length, note.plan.columns.length) == (80, 103)
    assert note.plan.columns.starts == (0, 32, 39)
    assert {"method", "option", "weights", "short_side", "crop", "stride", "resize"} <= note.settings.keys()
    assert note.options["short_side"] == 80
    with safe_open(kept, "pt") as file:  # for readers without this package
        assert file.get_slice("features").get_dtype() == "F16"
        assert json.loads(file.metadata()["pictures"])[0]["note"]["about"]["precision"] == "float32"


def test_several_pictures_in_one_file(make, photo, tmp_path):
    other = write(tmp_path / "other.png", 80, 80, seed=1)
    segmenter = make()
    several = [keep_features(segmenter, one) for one in (photo, other)]
    save_kept(several, tmp_path / "kept" / "both.safetensors")
    found = segmenter(KeptFolder(tmp_path / "kept"), NAMES)
    assert [one.source.path for one in found] == [str(photo), str(other)]
    with pytest.raises(UserError, match=r"both.safetensors holds features of 2 pictures: give its folder"):
        KeptFeatures.load(tmp_path / "kept" / "both.safetensors")


def flip(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def other_note(content):
    return content.replace(b'\\"shape\\": [70, 90]', b'\\"shape\\": [71, 90]')


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], flip, other_note, lambda c: b"", lambda c: b"no tensors" * 9],
    ids=["half", "one bit", "another note", "empty", "no tensors"],
)
def test_damaged_files_are_one_sentence(damage, make, kept):
    content = kept.read_bytes()
    assert damage(content) != content
    kept.write_bytes(damage(content))
    with pytest.raises(UserError) as error:
        make()(kept, NAMES)
    assert str(error.value).startswith(f"{kept} does not hold kept features (")
    assert str(error.value).endswith("it is damaged, or of something else; clearclip features makes it anew")
    assert "\n" not in str(error.value)


def test_files_that_are_something_else(make, tmp_path):
    save_file({"features": torch.zeros(3, 3, 8)}, tmp_path / "x_features.safetensors")
    with pytest.raises(UserError, match="it says nothing of pictures"):
        make()(tmp_path / "x_features.safetensors", NAMES)
    with pytest.raises(UserError, match=r"gone.safetensors cannot be read: No such file or directory"):
        make()(tmp_path / "gone.safetensors", NAMES)
    assert len(KeptFolder(tmp_path)) == 0


def test_shapes_that_no_note_allows(kept):
    found = KeptFeatures.load(kept)
    dataclasses.replace(found, features=found.features[:5], norms=found.norms[:5]).save(kept)
    with pytest.raises(UserError, match=r"features \[5, 4, 4, 48\] are not of 6 windows"):
        KeptFeatures.load(kept)


# clearclip features


@pytest.fixture
def settings(tiny_folder, tmp_path, monkeypatch):
    """Arguments of the programs: small windows, and where features go."""
    monkeypatch.chdir(tmp_path)
    return ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu"]


@pytest.fixture
def small(settings):
    return [*settings, "--short-side", "80", "--crop", "64", "--stride", "32", "-o", "kept"]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("photos/a.png", "photos/a.jpg", "photos/more/A.png", "photos/b.png")):
        write(tmp_path / name, 60 + number, seed=number)
    (tmp_path / "photos/broken.png").write_bytes(b"no picture")
    (tmp_path / "photos/notes.txt").write_text("")
    return tmp_path / "photos"


def files(folder="kept"):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


def test_pictures_of_a_folder_are_kept_once(photos, small, capsys):
    keep(["photos", "--recursive", *small])
    out, err = capsys.readouterr()
    assert re.search(r"^kept: features of 4 pictures \(\d\.\d MB\)$", out.strip())
    assert "left out: 1 file (1 no picture by its name)" in err
    assert "left out: photos/broken.png is not a picture" in err
    assert "1 of 5 pictures could not be read" in err
    before = files()
    assert len(before) == 4
    assert {name.casefold()[0] for name in before} == {"a", "b"}
    assert {Path(kept.note.origin.path).relative_to(photos).as_posix() for kept in KeptFolder("kept")} == {
        "a.jpg", "a.png", "more/A.png", "b.png",
    }  # fmt: skip

    write(photos / "c.png", seed=9)
    keep(["photos", "--recursive", *small])
    assert "kept: features of 1 pictures" in (out := capsys.readouterr().out)
    assert "4 were there already" in out
    assert {name: files()[name] for name in before} == before

    keep(["photos", "--recursive", *small, "--stride", "16"])
    assert "kept: features of 5 pictures" in capsys.readouterr().out
    assert files().keys() == before.keys() | {"c.safetensors"}
    keep(["photos", "--recursive", *small, "--stride", "16", "--fresh"])
    assert "kept: features of 5 pictures" in capsys.readouterr().out


def test_a_picture_that_was_replaced_is_kept_anew(photos, small, capsys):
    keep(["photos/b.png", *small])
    write(photos / "b.png", seed=5)
    keep(["photos/b.png", *small])
    assert "features of 1 pictures" in capsys.readouterr().out
    assert KeptFolder("kept").find(photos / "b.png") is not None


def test_a_damaged_file_is_made_anew(photos, small, capsys):
    keep(["photos/b.png", *small])
    path = Path("kept/b.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    keep(["photos/b.png", *small])
    assert "made anew: kept/b.safetensors does not hold" in capsys.readouterr().err
    KeptFeatures.load(path)
    assert len(files()) == 1


def test_other_files_are_not_written_over(photos, small):
    Path("kept").mkdir()
    save_file({"x": torch.zeros(1)}, "kept/b.safetensors")
    keep(["photos/b.png", *small])
    assert load_file("kept/b.safetensors").keys() == {"x"}
    assert len(files()) == 2


def test_long_names_find_a_place(tmp_path, small):
    name = "ä" * 120 + ".png"
    write(tmp_path / name)
    keep([name, *small])
    assert len(KeptFolder("kept")) == 1


def refused(arguments, capsys, run=keep):
    with pytest.raises(SystemExit) as end:
        run([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_many_pictures_in_a_file(photos, small, capsys):
    keep(["photos", "--recursive", "--per-file", "3", *small])
    assert "kept: features of 4 pictures" in capsys.readouterr().out
    assert sorted(len(kept_in(path)) for path in Path("kept").iterdir()) == [1, 3]
    keep(["photos", "--recursive", *small])
    assert "features of 0 pictures (0.0 MB), 4 were there already" in capsys.readouterr().out
    keep(["photos", "--recursive", *small, "--stride", "16"])
    again = KeptFolder("kept")
    assert len(again) == 4
    assert {kept.note.settings["stride"] for kept in again} == {16}  # the latest


def test_what_is_made_when_something_ends_it_is_written(photos, small, monkeypatch):
    plain = program.Keeper._take

    def take(self, picture):
        if picture.path.name == "b.png":
            raise KeyboardInterrupt
        plain(self, picture)

    monkeypatch.setattr(program.Keeper, "_take", take)
    with pytest.raises(SystemExit):
        keep(["photos", "--per-file", "9", *small])
    assert len(KeptFolder("kept")) == 2


def test_a_full_disk_leaves_nothing_half_written(photos, small, monkeypatch, capsys):
    plain, written = Path.write_bytes, []

    def full(self, content):
        if len(written) == 2:
            plain(self, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(self)
        return plain(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    error = refused(["photos", "--recursive", *small], capsys)[-1]
    assert error == (
        "error: kept cannot be written (No space left on device): make room and run again, what is kept is not made "
        "again"
    )
    assert len(files()) == 2
    assert not KeptFolder("kept").damaged
    monkeypatch.undo()


def test_no_more_than_a_batch_is_in_memory(tmp_path, small, monkeypatch):
    """Pictures and features are let go of: what is alive when one is read is that one and a batch at most."""
    for number in range(12):
        write(tmp_path / f"many/{number}.png", 80, 80, seed=number)
    views, made, most = [], [], []
    take, write_file = program.Keeper._take, KeptFolder.add

    def take_and_count(self, picture):
        take(self, picture)
        views.append(weakref.ref(self._batch[-1][1]))
        gc.collect()
        most.append((sum(one() is not None for one in views), sum(one() is not None for one in made)))

    def add_and_count(self, *several):
        made.extend(map(weakref.ref, several))
        return write_file(self, *several)

    monkeypatch.setattr(program.Keeper, "_take", take_and_count)
    monkeypatch.setattr(KeptFolder, "add", add_and_count)
    keep(["many", *small])
    assert len(views) == len(made) == 12
    assert max(views for views, _ in most) == 1  # a picture has four windows, as many as a batch on a CPU
    assert max(made for _, made in most) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say of what to keep features"),
        (["photos", "--config", "voc20"], "say of what to keep features"),
        (["gone"], "'gone' does not exist"),
        (["photos", "--limit", "3"], "--limit and --cfg-options are of a benchmark"),
        (["photos", "--method", "ClearClap"], "unknown method 'ClearClap'"),
        (["photos", "--stride", "900"], "stride 900 must be between"),
        (["photos", "-o", "photos/b.png"], "cannot be written, "),
    ],
)
def test_wrong_options(arguments, message, photos, settings, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("clearclip.segmenter.load_backbone", refuse)
    assert message in refused([*arguments, *settings], capsys)[-1]


def test_methods_with_other_scores_are_refused_here_too(photos, small, capsys):
    assert "CLIPer makes its scores of more than" in refused(["photos", "--method", "CLIPer", *small], capsys)[-1]
    assert not Path("kept").exists()


def test_a_named_picture_that_cannot_be_read_is_an_error(photos, small, capsys):
    errors = refused(["photos/broken.png", "photos/b.png", *small], capsys)
    assert any(line.startswith("error: photos/broken.png is not a picture") for line in errors)
    assert files().keys() == {"b.safetensors"}


# clearclip segment


def labels(folder):
    return {path.name: np.array(Image.open(path)) for path in Path(folder).glob("*_labels.png")}


def test_segment_takes_features_in_place_of_pictures(photos, settings, capsys):
    (photos / "broken.png").unlink()
    keep(["photos", *settings, "--short-side", "80", "-o", "kept", "--method", "sc-clip"])
    names = ["--names", "cat", "grass, lawn", "--threshold", "0.4"]
    segment(["photos", *names, *settings, "--short-side", "80", "--method", "SC-CLIP", "--output", "direct"])
    segment(["kept", *names, "--device", "cpu", "--output", "again"])  # all else is in the files
    assert "kept/b.safetensors: " in capsys.readouterr().out
    direct, again = labels("direct"), labels("again")
    assert len(direct) == len(again) == 3
    assert (direct["b_labels.png"] != again["b_labels.png"]).mean() < 0.01
    assert Path("again/b_overlay.png").is_file()

    assert "--compare needs pictures" in refused(["kept", *names, "--compare", "CLIP"], capsys, segment)[-1]
    error = refused(["kept", *names, "--short-side", "96"], capsys, segment)[-1]
    assert "was kept with short_side 80, not 96" in error
    segment(["kept", *names, "--device", "cpu", "--method", "SC-CLIP+PAMR", "--output", "refined"])
    shutil.rmtree(photos)
    segment(["kept", *names, "--device", "cpu", "--save", "labels", "--output", "blind"])
    assert len(labels("blind")) == 3
    errors = refused(["kept", *names, "--device", "cpu", "--output", "sheets"], capsys, segment)
    assert "is gone: overlays and refinements" in errors[0]


def test_damaged_features_of_a_folder_are_counted(photos, small, capsys):
    keep(["photos/a.png", "photos/b.png", *small])
    Path("kept/a.safetensors").write_bytes(Path("kept/a.safetensors").read_bytes()[:-9])
    capsys.readouterr()
    segment(["kept", "--names", "cat", "grass", "--device", "cpu", "--save", "labels"])
    assert "left out: 1 file (1 damaged features), such as kept/a.safetensors" in capsys.readouterr().err
    assert labels("demo_output").keys() == {"b_labels.png"}


def test_features_beside_their_pictures_leave_these_first(photos, small, capsys):
    keep(["photos/b.png", *small[:-1], "photos"])
    assert "is no picture: features are kept of pictures" in refused(["photos/b.safetensors", *small], capsys)[-1]
    from clearclip.cli.inputs import find_inputs

    found = find_inputs(["photos"])
    assert not found.kept
    assert len(found.pictures) == 4


def test_features_of_several_pictures_in_one_file_are_segmented(photos, make, tmp_path, settings):
    several = [keep_features(make(text_embeddings=None), photos / name) for name in ("a.png", "b.png")]
    save_kept(several, "kept/shard.safetensors")
    segment(["kept/shard.safetensors", "--names", "cat", "grass", "--device", "cpu", "--save", "labels"])
    assert labels("demo_output").keys() == {"a_labels.png", "b_labels.png"}


# clearclip eval


@pytest.fixture
def data(tmp_path, monkeypatch):
    from benchmarks import make_benchmark

    make_benchmark(tmp_path / "data", "voc20")
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path / "data"))
    return tmp_path / "data/VOCdevkit/VOC2012"


@pytest.fixture
def evaluate(settings):
    from clearclip.cli.eval import main
    from clearclip.evaluation.results import read_result

    def evaluate(*arguments, work_dir="run"):
        options = ["--cfg-options", "model.templates=single", "test_dataloader.num_workers=0"]
        main(["voc20", *settings, "--work-dir", work_dir, *arguments, *options])
        return read_result(f"{work_dir}/result.json")

    return evaluate


@pytest.mark.slow
def test_eval_takes_features_in_place_of_the_network(data, evaluate, settings, capsys, monkeypatch):
    from clearclip.evaluation.results import as_text, table

    keep(["--config", "voc20", *settings, "-o", "kept"])
    assert "kept: features of 3 pictures" in capsys.readouterr().out
    direct = evaluate()
    monkeypatch.setattr(
        "clearclip.backbones.openclip.OpenCLIPBackbone.embed", lambda *_: pytest.fail("the network was run")
    )
    again = evaluate("--features", "kept", work_dir="again")
    assert again.keys() == direct.keys()
    for score in ("mIoU", "aAcc", "mAcc"):
        assert again[score] == pytest.approx(direct[score], abs=0.5)
    assert set(again["settings"]["altered"]) - set(direct["settings"]["altered"]) == {"features"}
    assert again["settings"]["features"] == "float16"
    assert (again["published"], again["images"]) == (None, 3)
    assert again["record"] != direct["record"]
    assert "altered features=float16," in " ".join(as_text(table([again])).split())
    evaluate("--features", "kept", work_dir="again")
    assert "3 of 3 images are counted already" in capsys.readouterr().err


@pytest.mark.slow
def test_eval_refuses_features_that_are_missing_or_others(data, evaluate, settings, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit):
            evaluate(*arguments)
        return capsys.readouterr().err.splitlines()[-1]

    assert "features kept: there is no such folder" in error("--features", "kept")
    keep(["--config", "voc20", *settings, "-o", "kept", "--limit", "2"])
    missing = error("--features", "kept")
    assert "kept has no features of 1 images, such as " in missing
    assert "keep them by clearclip features --config " in missing
    assert evaluate("--features", "kept", "--limit", "2")["images"] == 2
    keep(["--config", "voc20", *settings, "-o", "kept"])
    assert "was kept with method ClearCLIP, not NACLIP" in error("--features", "kept", "--method", "NACLIP")
    assert "CLIPer makes its scores of more than" in error("--features", "kept", "--method", "CLIPer")


@pytest.mark.slow
def test_a_picture_counts_as_its_label_map_is_turned(data, evaluate, settings, capsys):
    """Of a picture that EXIF turns, a label map of the stored pixels decides: both ways are kept."""
    path = data / "JPEGImages/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    direct = evaluate()
    keep(["--config", "voc20", *settings, "-o", "kept"])
    kept = KeptFolder("kept").find(path)
    assert (kept.note.origin.stored, kept.note.origin.shape) == (True, (48, 64))
    assert evaluate("--features", "kept", work_dir="again")["mIoU"] == pytest.approx(direct["mIoU"], abs=0.5)
    assert Origin.read(kept.note.origin).shape == (48, 64, 3)

    keep([str(path), *settings, "-o", "kept"])  # as it is shown
    with pytest.raises(SystemExit):
        evaluate("--features", "kept")
    assert "turned otherwise than its label map is" in capsys.readouterr().err


# docs/features.md


@pytest.mark.slow
def test_the_page_runs(desk, tmp_path):
    blocks = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    (desk / "photos" / "more" / "b.jpg").unlink()
    for language, block in blocks:
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                if line and "voc20" not in line:
                    commands.main(shlex.split(line)[1:])
        elif language == "python":
            exec(compile(block, "docs/features.md", "exec"), {})
    assert {path.name for path in (desk / "features").iterdir()} >= {"a.safetensors"}
    assert list((desk / "results").glob("a*"))
