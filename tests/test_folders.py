"""A data set of one's own: every layout and every fault, on made-up trees."""

import contextlib
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmseg.registry import DATASETS
from PIL import Image

from clearclip.errors import UserError
from clearclip.evaluation.folders import LoadFolderLabels, describe, folder_dataset, scan
from clearclip.evaluation.masks import fill, from_run_lengths, rasterise, read_palette, read_pixels, unpack
from clearclip.vocabulary import Vocabulary

SHAPE = (6, 8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def picture(path, shape=SHAPE):
    return save(path, np.zeros((*shape, 3), np.uint8))


def labels(*values, shape=SHAPE, dtype=np.uint8):
    """A map [H, W] that has these values, each at least once."""
    return np.resize(np.array(values, dtype), shape)


@pytest.fixture
def root(tmp_path):
    """Three classes, two pictures and their masks."""
    (tmp_path / "classes.txt").write_text("grass, lawn\ncat\nsky\n")
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", labels(0, 1, 2, 255))
    return tmp_path


def build(root, images="images", masks="masks", **options):
    masks = masks and root / masks
    dataset = folder_dataset(root / images, masks, root / "classes.txt", **options)
    return DATASETS.build({**dataset, "pipeline": [], "serialize_data": False})  # which collects all garbage


def truth(dataset, index=0, shape=SHAPE):
    """The labels that reach the metric."""
    return LoadFolderLabels().transform(dataset.get_data_info(index) | {"ori_shape": shape})["gt_seg_map"]


def pairs(root, images="images", masks="masks", **options):
    found = scan(root / images, masks and root / masks, **options)
    return {str(s.image.relative_to(root)): str(s.mask.path.relative_to(root)) for s in found.samples}


def counts(root, **options):
    return {
        reason: len(paths)
        for reason, paths in scan(root / "images", root / "masks", **options).skipped.items()
        if paths
    }


def test_plain_folders(root):
    dataset = build(root)
    assert len(dataset) == 2
    assert dataset.metainfo["classes"] == ("grass", "cat", "sky")
    assert dataset.ignore_index == 255
    assert truth(dataset).flatten()[:4].tolist() == [0, 1, 2, 255]


@pytest.fixture
def load_image():
    from clearclip.evaluation import loading  # noqa: F401, registers LoadImage


@pytest.mark.usefixtures("load_image")
def test_its_pipeline_packs_pictures_and_labels(root):
    picture(root / "images" / "a.jpg", (3, 5))
    save(root / "masks" / "a.png", labels(0, 1, 255, shape=(3, 5)))
    settings = folder_dataset(root / "images", root / "masks", root / "classes.txt")
    dataset = DATASETS.build({**settings, "_scope_": "mmseg"})
    packed = dataset[0]
    assert packed["inputs"].shape == (3, 3, 5)
    sample = pickle.loads(pickle.dumps(packed["data_samples"]))
    assert sample.gt_sem_seg.data[0, 0].tolist() == [0, 1, 255, 0, 1]
    assert sample.ori_shape == (3, 5)


@pytest.mark.usefixtures("load_image")
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]])
def test_a_mask_is_of_a_turned_picture_as_stored_or_as_shown(root, shape):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "images" / "a.jpg", np.zeros((*SHAPE, 3), np.uint8), exif=exif)
    save(root / "masks" / "a.png", labels(0, 1, shape=shape))
    settings = folder_dataset(root / "images", root / "masks", root / "classes.txt")
    dataset = DATASETS.build({**settings, "_scope_": "mmseg"})
    assert dataset[0]["inputs"].shape == (3, *shape)


def test_a_config_may_give_paths_from_its_root(root):
    settings = dict(type="FolderDataset", data_root=str(root), class_file="classes.txt", pipeline=[])
    dataset = DATASETS.build({**settings, "data_prefix": dict(img_path="images", seg_map_path="masks")})
    assert len(dataset) == 2
    with pytest.raises(UserError, match="ignore_index must be 255 for 3 classes"):
        DATASETS.build({**settings, "ignore_index": 0})


def test_suffixes_are_mixed_and_folders_nested(root):
    picture(root / "images" / "deep" / "a.JPG".lower()).rename(root / "images" / "deep" / "c.JPG")
    picture(root / "images" / "deep" / "d.jpeg")
    picture(root / "images" / "deep" / "a.png")
    save(root / "masks" / "deep" / "c_mask.png", labels(0)).rename(root / "masks" / "deep" / "c_mask.PNG")
    save(root / "masks" / "deep" / "d_labelTrainIds.tif", labels(0))
    save(root / "masks" / "deep" / "a.bmp", labels(0))
    assert pairs(root) == {
        "images/a.jpg": "masks/a.png",
        "images/b.jpg": "masks/b.png",
        "images/deep/a.png": "masks/deep/a.bmp",
        "images/deep/c.JPG": "masks/deep/c_mask.PNG",
        "images/deep/d.jpeg": "masks/deep/d_labelTrainIds.tif",
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("x_leftImg8bit.png", "x_gtFine_labelIds.png"),
        ("x.jpg", "x_gtFine_labelTrainIds.png"),
        ("x.jpg", "x_labelTrainIds.png"),
        ("x.jpg", "x_instanceTrainIds.png"),
        ("x_sat.jpg", "x_mask.png"),
        ("x.png", "x_L.png"),
        ("x.jpg", "x.mask.png"),
        ("x_mask.jpg", "x_mask.png"),
        ("x.y.jpg", "x.y.png"),
    ],
)
def test_usual_endings_of_masks(tmp_path, image, mask):
    picture(tmp_path / "images" / image)
    save(tmp_path / "masks" / mask, labels(0))
    assert pairs(tmp_path) == {f"images/{image}": f"masks/{mask}"}
    if (tmp_path / "images" / image).stem != (tmp_path / "masks" / mask).stem:
        save(tmp_path / "images" / mask, labels(0))  # all in one folder
        assert pairs(tmp_path, masks="images") == {f"images/{image}": f"images/{mask}"}


def test_masks_lie_beside_or_below_their_pictures(root):
    save(root / "images" / "a.png", labels(0))
    save(root / "images" / "b_mask.png", labels(0))
    picture(root / "images" / "c_mask.jpg")  # no picture c: this is one
    expected = {"images/a.jpg": "images/a.png", "images/b.jpg": "images/b_mask.png"}
    assert pairs(root, masks="images") == pairs(root, masks=None) == expected

    (root / "masks").rename(root / "images" / "masks")
    for name in ("a.png", "b_mask.png"):
        (root / "images" / name).unlink()
    expected = {"images/a.jpg": "images/masks/a.png", "images/b.jpg": "images/masks/b.png"}
    assert pairs(root, masks="images/masks") == expected


def test_sub_folders_may_differ_where_names_do_not_repeat(root):
    (root / "images" / "day").mkdir()
    for name in ("a", "b"):
        (root / "images" / f"{name}.jpg").rename(root / "images" / "day" / f"{name}.jpg")
    assert pairs(root) == {f"images/day/{name}.jpg": f"masks/{name}.png" for name in "ab"}
    picture(root / "images" / "night" / "a.jpg")
    with pytest.raises(UserError, match=r"a.png is the mask of .*day/a.jpg or of .*night/a.jpg"):
        scan(root / "images", root / "masks")


def test_a_mask_of_another_sub_folder_is_not_taken(root):
    picture(root / "images" / "x" / "c.jpg")
    save(root / "masks" / "y" / "c.png", labels(0))
    assert len(pairs(root)) == 2
    assert counts(root) == {"pictures without a mask": 1, "masks without a picture": 1}


def test_what_is_left_out_is_counted_and_junk_is_not(root):
    for folder in ("images", "masks"):
        for name in ("Thumbs.db", ".DS_Store", "._a.png", "desktop.ini"):
            (root / folder / name).write_bytes(b"\0")
        (root / folder / ".hidden").mkdir()
        (root / folder / ".hidden" / "h.png").write_bytes(b"\0")
        (root / folder / "__MACOSX").mkdir()
        (root / folder / "__MACOSX" / "h.png").write_bytes(b"\0")
    picture(root / "images" / "unlabelled.jpg")
    save(root / "masks" / "alone.png", labels(0))
    (root / "images" / "notes.txt").write_text("")
    os.mkfifo(root / "images" / "pipe.jpg")
    found = scan(root / "images", root / "masks")
    assert counts(root) == {"pictures without a mask": 1, "masks without a picture": 1, "files of other kinds": 2}
    assert "pictures with masks: 2; skipped: pictures without a mask: 1 (first" in found.summary()
    assert "unlabelled.jpg" in found.summary()


def test_folders_that_link_to_one_another_end(root):
    (root / "images" / "again").symlink_to(root / "images")
    (root / "images" / "linked").symlink_to(root / "elsewhere")
    picture(root / "elsewhere" / "c.jpg")
    save(root / "masks" / "linked" / "c.png", labels(0))
    assert set(pairs(root)) == {"images/a.jpg", "images/b.jpg", "images/linked/c.jpg"}


def test_two_pictures_of_one_name(root):
    picture(root / "images" / "a.png")
    with pytest.raises(UserError, match=r"masks/a.png is the mask of .*images/a.jpg or of .*images/a.png: rename one"):
        scan(root / "images", root / "masks")


def test_two_masks_of_one_picture_are_told_apart_by_their_suffix(root):
    save(root / "masks" / "a_labelTrainIds.png", labels(2))
    with pytest.raises(UserError, match=r"a.jpg has the masks .*a.png and .*a_labelTrainIds.png.*'_labelTrainIds'"):
        scan(root / "images", root / "masks")
    assert pairs(root, mask_suffix="_labelTrainIds") == {"images/a.jpg": "masks/a_labelTrainIds.png"}
    assert pairs(root, mask_suffix="")["images/a.jpg"] == "masks/a.png"
    save(root / "masks" / "b_mine.png", labels(2))
    assert pairs(root, mask_suffix="_mine") == {"images/b.jpg": "masks/b_mine.png"}


def test_nothing_fits(root):
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"mask of {path.name}"))
    with pytest.raises(UserError, match=r"no picture in .* has a mask in .*: a mask needs its picture's name"):
        build(root)
    with pytest.raises(UserError, match=r"--masks .*nowhere does not exist"):
        build(root, masks="nowhere")
    with pytest.raises(UserError, match=r"--layout tree: there are auto, folders"):
        build(root, layout="tree")


# Label maps


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_types_of_label_maps(root, dtype):
    for name in ("a", "b"):
        (root / "masks" / f"{name}.png").unlink()
        save(root / "masks" / f"{name}.tif", labels(0, 1, 2, 255, dtype=dtype))
    assert truth(build(root)).flatten()[:4].tolist() == [0, 1, 2, 255]


def test_indices_and_shades_of_grey_are_labels(root):
    image = Image.fromarray(labels(0, 1, 2), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(root / "masks" / "a.png")
    save(root / "masks" / "b.png", np.repeat(labels(2, 1, 0)[..., None], 4, axis=2))
    dataset = build(root)
    assert truth(dataset, 0).flatten()[:3].tolist() == [0, 1, 2]
    assert truth(dataset, 1).flatten()[:3].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            labels(0, 7),
            r"a.png holds 7, which is none of the 3 classes of .*classes.txt \(0 to 2\) nor ignored \(255\)",
        ),
        (labels(1, 2, 3), r"a.png holds 3, .*: pass --first-label 1"),
        (labels(0, 300, dtype=np.uint16), r"a.png holds 300, which is none"),
        (labels(0, 1, shape=(8, 6)), r"mask .*a.png is 8x6, its picture 6x8 \(height x width\)"),
        (np.arange(144, dtype=np.uint8).reshape(6, 8, 3), r"a.png is a picture in 48 colours.*--palette FILE"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(root, mask, message):
    save(root / "masks" / "a.png", mask)
    with pytest.raises(UserError, match=message):
        build(root)


@pytest.mark.parametrize("value", [70_000, -1])
def test_a_label_of_32_bits_that_does_not_fit_is_named(root, value):
    (root / "masks" / "a.png").unlink()
    save(root / "masks" / "a.tif", labels(0, value, dtype=np.int32))
    with pytest.raises(UserError, match=f"a.tif holds {value}, which is none"):
        build(root)


@pytest.mark.parametrize("values", [(0.0, 1 / 255), (0.0, np.nan)])
def test_fractions_are_refused(root, values):
    (root / "masks" / "a.png").unlink()
    save(root / "masks" / "a.tif", labels(*values, dtype=np.float32))
    with pytest.raises(UserError, match=r"a.tif holds .*, no whole label: save labels as integers"):
        build(root)


def test_files_that_are_no_masks(root):
    (root / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read mask .*a.png"):
        build(root)
    whole = save(root / "masks" / "a.png", np.random.default_rng(0).integers(0, 3, SHAPE, np.uint8)).read_bytes()
    (root / "masks" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read mask .*a.png"):
        build(root)
    (root / "masks" / "a.png").unlink()
    save(root / "masks" / "a.jpg", labels(0))
    with pytest.raises(UserError, match=r"a.jpg is a JPEG, whose compression alters labels"):
        build(root)


def test_a_fault_beyond_the_masks_looked_at_first_is_named_when_it_is_met(root):
    for number in range(70):
        picture(root / "images" / f"c{number:02}.jpg")
        save(root / "masks" / f"c{number:02}.png", labels(0, 9 if number == 2 else 1))
    dataset = build(root)
    index = [info["img_path"].endswith("c02.jpg") for info in map(dataset.get_data_info, range(len(dataset)))].index(
        True
    )
    with pytest.raises(UserError, match=r"c02.png holds 9"):
        truth(dataset, index)


def test_binary_masks(root):
    for name in ("a", "b"):
        save(root / "masks" / f"{name}.png", labels(0, 255))
    with pytest.raises(UserError, match=r"255 is the object, pass --ignore none and name two classes in .*classes.txt"):
        build(root)
    with pytest.raises(UserError, match=r"holds 255, .*: pass --ignore 255 if 255 is unlabelled"):
        build(root, ignore=None)
    (root / "classes.txt").write_text("background\nlesion\n")
    save(root / "masks" / "b.png", labels(0, 1))
    dataset = build(root, ignore=None)
    assert truth(dataset, 0).flatten()[:2].tolist() == [0, 1]
    assert truth(dataset, 1).flatten()[:2].tolist() == [0, 1]
    save(root / "masks" / "b.png", labels(0, 1, 255))
    with pytest.raises(UserError, match=r"b.png holds 255"):
        build(root, ignore=None)


def test_one_mask_with_another_label_shows_that_masks_are_not_binary(root):
    for number in range(70):
        picture(root / "images" / f"c{number:02}.jpg")
        save(root / "masks" / f"c{number:02}.png", labels(0, 255))
    save(root / "masks" / "a.png", labels(0, 255))
    save(root / "masks" / "b.png", labels(0, 255))
    save(root / "masks" / "c02.png", labels(1))
    assert len(build(root)) == 72


def test_labels_that_begin_at_one(root):
    for name in ("a", "b"):
        save(root / "masks" / f"{name}.png", labels(0, 1, 2, 3))
    with pytest.raises(UserError, match=r"holds 0, .*\(1 to 3\).*: pass --ignore 0 255 if 0 is unlabelled"):
        build(root, first_label=1)
    assert truth(build(root, first_label=1, ignore=(0, 255))).flatten()[:4].tolist() == [255, 0, 1, 2]
    with pytest.raises(UserError, match=r"--ignore 0 is the label of class 'grass'"):
        build(root, ignore=(0, 255))


def test_masks_without_any_label(root):
    for name in ("a", "b"):
        save(root / "masks" / f"{name}.png", labels(255))
    with pytest.raises(UserError, match=r"no pixel of the masks in .* is of a class"):
        build(root)


def test_more_than_255_classes(root):
    (root / "classes.txt").write_text("".join(f"thing {number}\n" for number in range(300)))
    for name in ("a", "b"):
        save(root / "masks" / f"{name}.png", labels(0, 255, 299, 65535, dtype=np.uint16))
    dataset = build(root, ignore=65535)
    assert dataset.ignore_index == 65535
    assert truth(dataset).flatten()[:4].tolist() == [0, 255, 299, 65535]
    with pytest.raises(UserError, match=r"--ignore 255 is the label of class 'thing 255'"):
        build(root)


def test_what_a_person_should_know(root):
    (root / "classes.txt").write_text("grass\ncat\nsky\nunicorn\n")
    picture(root / "images" / "c.jpg")
    lines = describe(folder_dataset(root / "images", root / "masks", root / "classes.txt"))
    assert lines[0].startswith("pictures with masks: 2; skipped: pictures without a mask: 1")
    assert lines[1] == "classes without a pixel in the 2 masks looked at: unicorn"


# Colours


@pytest.fixture
def coloured(root):
    mask = np.array([[0, 128, 0], [255, 0, 10], [0, 0, 255], [1, 2, 3]], np.uint8)
    for name in ("a", "b"):
        save(root / "masks" / f"{name}.png", np.resize(mask, (*SHAPE, 3)))
    return root


@pytest.mark.parametrize(
    "palette",
    [
        "lawn 0 128 0\nCat\t255 0 10\nsky 0 0 255\nvoid 1 2 3\n",
        "\ufeff# as CamVid has it\r\n0 128 0\tGrass\r\n\r\n255 0 10\tcat\r\n0 0 255 sky\r\n1 2 3 road\r\n",
        "grass,0,128,0\ncat,255,0,10\nsky,0,0,255\nvoid,1,2,3",
    ],
)
def test_colour_coded_masks(coloured, palette):
    file = coloured / "palette.txt"
    file.write_text(palette, encoding="utf-8", newline="")
    dataset = build(coloured, palette=file)
    assert truth(dataset).flatten()[:4].tolist() == [0, 1, 2, 255]
    lines = describe(folder_dataset(coloured / "images", coloured / "masks", coloured / "classes.txt", palette=file))
    assert lines[1].startswith("ignored, for they are no classes of the class file: ")


def test_colours_in_the_order_of_the_class_file(coloured):
    file = coloured / "palette.txt"
    file.write_text("0 128 0\n255 0 10\n0 0 255\n")
    with pytest.raises(UserError, match=r"a.png has the colour 1 2 3, which is not in the palette: .*`void`"):
        build(coloured, palette=file)
    for name in ("a", "b"):
        save(coloured / "masks" / f"{name}.png", np.resize(np.array([[0, 0, 255], [0, 128, 0]], np.uint8), (*SHAPE, 3)))
    assert truth(build(coloured, palette=file)).flatten()[:2].tolist() == [2, 0]


def test_a_palette_for_masks_that_are_labels(root):
    file = root / "palette.txt"
    file.write_text("0 128 0\n255 0 10\n0 0 255\n")
    with pytest.raises(UserError, match=r"a.png is a map of labels, not of colours: leave out --palette"):
        build(root, palette=file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grass 0 1\n", r"line 1: 'grass 0 1' is not of the form `name R G B`"),
        ("grass 0 1 256\n", r"line 1: .* above 255"),
        ("grass 0 1 2\n3 4 5\n", r"line 2 has no name, others have"),
        ("0 1 2\n", r"has 1 colours without names, the class file 3 classes"),
        ("grass 0 1 2\ncats 3 4 5\nsky 6 7 8", r"has no 'cat', a class of the class file: did you mean 'cats'\?"),
        ("grass 0 1 2\ncat 0 1 2\nsky 6 7 8", r"line 2: 0 1 2 stands for another class already"),
        ("# nothing\n", r"is empty"),
    ],
)
def test_faults_of_a_palette_are_named(tmp_path, text, message):
    file = tmp_path / "palette.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_palette(file, Vocabulary.of(["grass", "cat", "sky"]))


def test_a_class_may_have_two_colours_and_a_name_end_in_a_number(tmp_path):
    file = tmp_path / "palette.txt"
    file.write_text("area 51 1 0 0\narea 51 2 0 0\ncat 3 0 0\n")
    assert read_palette(file, Vocabulary.of(["cat", "area 51"])) == {1: 1, 2: 1, 3: 0}


def only_user_errors(function, *args):
    with contextlib.suppress(UserError):
        function(*args)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_as_a_mask(tmp_path_factory, content, colours):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    path.write_bytes(content)
    only_user_errors(read_pixels, path, colours)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from([b"", b"a 1 2 3\n"]))
def test_any_bytes_as_a_palette(tmp_path_factory, content, before):
    path = tmp_path_factory.getbasetemp() / "palette.txt"
    path.write_bytes(before + content)
    only_user_errors(read_palette, path, Vocabulary.of(["a"]))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.fixed_dictionaries({"size": st.just(list(SHAPE)) | inner, "counts": inner | st.lists(st.integers(-9, 50))})
    ),
)


@given(values | st.lists(st.lists(st.floats() | st.integers(), min_size=6, max_size=6), max_size=2))
def test_any_value_as_a_segmentation(segmentation):
    only_user_errors(rasterise, segmentation, SHAPE, "a.json")


@given(st.fixed_dictionaries({key: values | st.lists(st.fixed_dictionaries({
    "id": values | st.just(1), "name": values, "image_id": values | st.just(1), "category_id": values | st.just(1),
    "segmentation": values, "file_name": values | st.just("a.jpg"), "height": values, "width": values,
}), max_size=2) for key in ("images", "annotations", "categories")}))  # fmt: skip
def test_any_value_as_a_coco_file(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "coco"
    picture(folder / "images" / "a.jpg")
    (folder / "a.json").write_text(json.dumps(content))
    only_user_errors(scan, folder / "images", folder / "a.json")


# VOC and Cityscapes


@pytest.fixture
def voc(root):
    for name in ("x", "y", "z"):
        picture(root / "voc" / "JPEGImages" / f"{name}.jpg")
        save(root / "voc" / "SegmentationClass" / f"{name}.png", labels(0, 1, 255))
    lists = root / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_bytes(b"\xef\xbb\xbfz\r\n\r\nx\r\n")
    return root


def test_voc(voc):
    assert pairs(voc, "voc", None) == {
        "voc/JPEGImages/x.jpg": "voc/SegmentationClass/x.png",
        "voc/JPEGImages/z.jpg": "voc/SegmentationClass/z.png",
    }
    assert scan(voc / "voc").layout == "voc"
    assert len(build(voc, "voc", None)) == 2
    (voc / "voc" / "SegmentationClass" / "z.png").unlink()
    assert scan(voc / "voc").skipped["pictures without a mask"] == [voc / "voc" / "JPEGImages" / "z.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x\ngone\n", r"val.txt, line 2: no picture .*gone.jpg"),
        (b"x\ny\nx\n", r"val.txt, line 3: 'x' is in line 1 already"),
        ("x\n".encode("utf-16"), r"val.txt is not UTF-8 text"),
    ],
)
def test_faults_of_an_image_list_name_it(voc, content, message):
    (voc / "voc" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(voc, "voc", None)


def test_an_image_list_that_is_a_folder_or_missing(voc):
    with pytest.raises(UserError, match=r"no image list .*test.txt: --split can be val"):
        build(voc, "voc", None, split="test")
    path = voc / "voc" / "ImageSets" / "Segmentation" / "val.txt"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"image list .*val.txt is not a file"):
        build(voc, "voc", None)


def test_cityscapes(root):
    for name in ("ulm_0", "ulm_1"):
        picture(root / "city" / "leftImg8bit" / "val" / "ulm" / f"{name}_leftImg8bit.png")
        folder = root / "city" / "gtFine" / "val" / "ulm"
        save(folder / f"{name}_gtFine_labelIds.png", labels(7, 8))
        save(folder / f"{name}_gtFine_color.png", np.zeros((*SHAPE, 3), np.uint8))
        (folder / f"{name}_gtFine_polygons.json").write_text("{}")
    found = pairs(root, "city", None)
    assert found["city/leftImg8bit/val/ulm/ulm_1_leftImg8bit.png"] == "city/gtFine/val/ulm/ulm_1_gtFine_labelIds.png"
    with pytest.raises(UserError, match=r"labelIds.png holds 7"):
        build(root, "city", None)
    for name in ("ulm_0", "ulm_1"):
        save(folder / f"{name}_gtFine_labelTrainIds.png", labels(0, 1))
    dataset = build(root, "city", None)
    assert truth(dataset).flatten()[:2].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"no folder .*leftImg8bit/test"):
        build(root, "city", None, split="test")


# COCO


def write_json(path, images, annotations, categories):
    content = dict(
        images=[dict(id=index, file_name=name, height=SHAPE[0], width=SHAPE[1]) for index, name in images.items()],
        annotations=annotations,
        categories=[dict(id=index, name=name) for index, name in categories.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask):
    """COCO's run lengths of a mask, by definition."""
    flat = np.asarray(mask).T.ravel().astype(int)
    counts, value = [0], 0
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def pack(counts):
    """COCO's characters for run lengths."""
    text = ""
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + (32 if more else 0) + 48)
    return text


@given(st.lists(st.integers(0, 100_000), max_size=12))
def test_run_lengths_from_characters(counts):
    assert unpack(pack(counts)) == counts


def test_characters_that_cocos_own_tools_write():
    assert unpack("T3") == [100]  # 10x10, empty
    assert unpack("01400000") == [0, 1, 4, 1, 4, 1, 4, 1]  # the diagonal of 4x4


@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_run_lengths(height, width, random):
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    np.testing.assert_array_equal(from_run_lengths(runs(mask), mask.shape), mask)


def test_polygons_take_the_pixels_whose_centres_they_hold():
    square = fill(np.array([[1, 1], [4, 1], [4, 3], [1, 3]], float), SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(square, expected)
    everything = fill(np.array([[-5, -5], [50, -5], [50, 50], [-5, 50]], float), SHAPE)
    assert everything.all()
    triangle = fill(np.array([[0, 0], [8, 0], [0, 6]], float), SHAPE)
    y, x = np.indices(SHAPE) + 0.5
    np.testing.assert_array_equal(triangle, x / 8 + y / 6 < 1)
    assert not fill(np.array([[0.6, 0.6], [1.4, 0.6], [1.4, 1.4], [0.6, 1.4]], float), SHAPE).any()


CATEGORIES = {18: "Cat", 3: "grass", 90: "car", 7: "sky"}


@pytest.fixture
def coco(root):
    """a: grass all over and, later in the file but smaller, a cat and a car; b: nothing."""
    crowd = np.zeros(SHAPE, int)
    crowd[5, 7] = 1
    annotations = [
        dict(image_id=1, category_id=18, segmentation=[box(1, 1, 3, 3)], iscrowd=0),
        dict(image_id=1, category_id=3, segmentation=[box(0, 0, 8, 3), box(0, 3, 8, 6)], iscrowd=0),
        dict(image_id=1, category_id=90, segmentation=dict(size=SHAPE, counts=runs(crowd)), iscrowd=1),
        dict(image_id=1, category_id=18, segmentation=dict(size=SHAPE, counts=pack(runs(crowd[:, ::-1]))), iscrowd=1),
    ]
    write_json(root / "instances.json", {1: "a.jpg", 2: "b.jpg", 9: "gone.jpg"}, annotations, CATEGORIES)
    return root


def test_coco_instances(coco):
    dataset = build(coco, masks="instances.json")
    expected = np.zeros(SHAPE, int)
    expected[1:3, 1:3] = 1
    expected[5, 7] = 255  # a car, no class here
    expected[5, 0] = 1
    np.testing.assert_array_equal(truth(dataset), expected)
    assert (truth(dataset, 1) == 255).all()
    found = scan(coco / "images", coco / "instances.json")
    assert found.layout == "coco"
    assert found.skipped["annotated pictures that are not there"] == [coco / "images" / "gone.jpg"]
    lines = describe(folder_dataset(coco / "images", coco / "instances.json", coco / "classes.txt"))
    assert "ignored, for they are no classes of the class file: car" in lines


def test_coco_pixels_in_no_object_are_background_where_that_is_a_class(coco):
    (coco / "classes.txt").write_text("background\ncat\ngrass\nsky\ncar\n")
    dataset = build(coco, masks="instances.json")
    assert (truth(dataset, 1) == 0).all()
    assert np.unique(truth(dataset, 0)).tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (dict(size=[8, 6], counts=[48]), r"of a.jpg in .*instances.json has a segmentation that is not COCO's"),
        (dict(size=SHAPE, counts=[47]), r"run lengths of 47 pixels for 6 times 8"),
        (dict(size=SHAPE, counts="\u00e9"), r"not COCO's"),
        ([[1, 2, 3]], r"not COCO's"),
        ([[1, 2, 3, 4]], r"a polygon needs three points"),
        (7, r"not COCO's"),
        ([["x"] * 6], r"not COCO's"),
    ],
)
def test_faults_of_a_segmentation_are_named(coco, segmentation, message):
    annotations = [dict(image_id=1, category_id=3, segmentation=segmentation)]
    write_json(coco / "instances.json", {1: "a.jpg"}, annotations, CATEGORIES)
    with pytest.raises(UserError, match=message):
        build(coco, masks="instances.json")


def test_faults_of_a_coco_file_are_named(coco):
    path = coco / "instances.json"
    for content in ("", "[]", "{}", "\udcff"):
        path.write_text(content, errors="surrogateescape")
        with pytest.raises(UserError, match=r"instances.json"):
            build(coco, masks="instances.json")
    write_json(path, {1: "a.jpg"}, [dict(image_id=1, category_id=5, segmentation=[])], CATEGORIES)
    with pytest.raises(UserError, match="annotations of category 5"):
        build(coco, masks="instances.json")
    write_json(path, {1: "a.jpg"}, [], {1: "cat", 2: "grass", 3: "skies"})
    with pytest.raises(
        UserError, match=r"instances.json has no 'sky', a class of the class file: did you mean 'skies'"
    ):
        build(coco, masks="instances.json")
    picture(coco / "images" / "a.jpg", (7, 8))
    write_json(path, {1: "a.jpg"}, [], CATEGORIES)
    with pytest.raises(UserError, match=r"mask of a.jpg in .*instances.json is 6x8, its picture 7x8"):
        build(coco, masks="instances.json")


@pytest.fixture
def panoptic(root):
    ids = labels(0, 70_000, 300, 5, dtype=np.int64)
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    infos = [dict(id=70_000, category_id=18, iscrowd=0), dict(id=300, category_id=3, iscrowd=1)]
    infos += [dict(id=5, category_id=90, iscrowd=0)]
    annotations = []
    for index, name in {1: "a", 2: "b"}.items():
        save(root / "panoptic_val" / f"{name}.png", png)
        annotations.append(dict(image_id=index, file_name=f"{name}.png", segments_info=infos))
    picture(root / "images" / "c.jpg")
    write_json(root / "panoptic_val.json", {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}, annotations, CATEGORIES)
    return root


@pytest.mark.parametrize("masks", ["panoptic_val.json", "panoptic_val"])
def test_coco_panoptic(panoptic, masks):
    dataset = build(panoptic, masks=masks)
    assert len(dataset) == 2
    assert truth(dataset).flatten()[:4].tolist() == [255, 1, 0, 255]
    found = scan(panoptic / "images", panoptic / masks)
    assert found.skipped["pictures without annotations"] == [panoptic / "images" / "c.jpg"]


def test_panoptic_files_that_do_not_fit(panoptic):
    save(panoptic / "panoptic_val" / "b.png", np.full((*SHAPE, 3), 9, np.uint8))
    with pytest.raises(UserError, match=r"b.png has the segment 592137, which the JSON does not list"):
        build(panoptic, masks="panoptic_val")
    (panoptic / "panoptic_val" / "b.png").unlink()
    with pytest.raises(UserError, match=r"mask .*b.png is missing"):
        build(panoptic, masks="panoptic_val")
