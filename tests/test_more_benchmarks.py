"""Benchmarks beyond the eight: each made from a tree in the layout of its archives, and evaluated."""

import os
import subprocess
import sys
from pathlib import Path

import clearclip.evaluation.mmseg  # noqa: F401, registers the data sets

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from clearclip.config import read_config
from clearclip.evaluation.results import read_result
from clearclip.evaluation.run import load_config
from clearclip.vocabulary import load_vocabulary
from eval import main

# isort: split
from mmseg.registry import DATASETS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FOLDERS = ("remote_sensing", "segearth", "driving", "food", "mess")
PATHS = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("cfg_*.py"))
pytestmark = pytest.mark.slow

ISPRS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
ISAID = [
    (0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63),
    (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255), (0, 100, 155),
]  # fmt: skip
UAVID = [
    (0, 0, 0), (128, 0, 0), (128, 64, 128), (192, 0, 192), (0, 128, 0), (128, 128, 0), (64, 64, 0), (64, 0, 128),
]  # fmt: skip
CITY_IDS = [0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
SUIM = [(255 * r, 255 * g, 255 * b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
POTSDAM = [
    "5_15",
    "6_15",
    "6_13",
    "3_13",
    "4_14",
    "6_14",
    "5_14",
    "2_13",
    "4_15",
    "2_14",
    "5_13",
    "4_13",
    "3_14",
    "7_13",
]
INRIA = dict(
    vienna=(3, 20, 9, 18, 11, 15, 6), chicago=(10, 14, 23, 26), austin=(1, 22, 7, 12, 36, 24),
    kitsap=(36, 35, 34, 14, 25, 9), **{"tyrol-w": (25, 3, 1, 36)},
)  # fmt: skip
VAIHINGEN = [6, 24, 35, 16, 14, 22, 10, 4, 2, 20, 8, 31, 33, 27, 38, 12, 29]


def blocks(values, height=64, width=96):
    """All values in blocks of 4 × 4 pixels, over and over: [height, width], or [height, width, 3] for colours."""
    values = np.asarray(values, np.uint8)
    places = np.resize(np.arange(len(values)), (-(-height // 4), -(-width // 4)))
    return values[places.repeat(4, 0).repeat(4, 1)[:height, :width]]


class Tree:
    """Files below a data root."""

    def __init__(self, root):
        self.root = root

    def save(self, path, pixels):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path)

    def pair(self, image, label, values, height=64, width=96):
        """A picture, and its labels or colours."""
        self.save(image, np.full((height, width, 3), 90))
        self.save(label, blocks(values, height, width))

    def text(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)


# The trees, by the names of their configs


def loveda(tree):
    for name, scene in ((1, "Rural"), (2, "Urban")):
        tree.pair(f"loveDA/Val/{scene}/images_png/{name}.png", f"loveDA/Val/{scene}/masks_png/{name}.png", range(8))


def potsdam(tree):
    for name in POTSDAM:
        label = f"potsdam/5_Labels_all_noBoundary/top_potsdam_{name}_label_noBoundary.tif"
        tree.pair(f"potsdam/2_Ortho_RGB/top_potsdam_{name}_RGB.tif", label, ISPRS, 520, 512)


def vaihingen(tree):
    for number in [*VAIHINGEN, 9]:
        name = f"top_mosaic_09cm_area{number}"
        tree.pair(f"vaihingen/top/{name}.tif", f"vaihingen/gts/{name}_noBoundary.tif", ISPRS, 512, 520)
        tree.save(f"vaihingen/gts_for_participants/{name}.tif", np.zeros((9, 9, 3)))


def isaid(tree):
    for name, height, width in (("P0003", 900, 1000), ("P0004", 400, 500)):
        label = f"iSAID/val/Semantic_masks/images/{name}_instance_color_RGB.png"
        tree.pair(f"iSAID/val/images/{name}.png", label, ISAID, height, width)


def openearthmap(tree):
    for name in ("aachen_1", "aachen_2"):
        tree.pair(f"OpenEarthMap/aachen/images/{name}.tif", f"OpenEarthMap/aachen/labels/{name}.tif", range(9))
    tree.text("OpenEarthMap/val.txt", "aachen_2.tif\nof_xBD_7.tif\n")


def uavid(tree):
    tree.pair("UAVid/test_gt/seq21/Images/000000.png", "UAVid/test_gt/seq21/Labels/000000.png", UAVID, 1090, 1300)


def udd5(tree):
    tree.pair("UDD/UDD5/val/src/DJI_0285.JPG", "UDD/UDD5/val/gt/DJI_0285.png", range(5))


def in_place(root, masks="label", images="image", mask="a.png", image="a.png"):
    return lambda tree: tree.pair(f"{root}/{images}/{image}", f"{root}/{masks}/{mask}", [0, 255])


def inria(tree):
    for city, numbers in INRIA.items():
        for name in (f"{city}{number}.tif" for number in numbers):
            root = "AerialImageDataset/train"
            tree.pair(f"{root}/images/{name}", f"{root}/gt/{name}", [0, 255], 24, 1100)


def xbd(tree):
    root = "xBD/test"
    tree.pair(f"{root}/images/a_pre_disaster.png", f"{root}/targets/a_pre_disaster_target.png", [0, 1, 4])
    tree.pair(f"{root}/images/a_post_disaster.png", f"{root}/targets/a_post_disaster_target.png", [0, 1, 4])


def wbs_si(tree):
    """Masks are JPEG, hence not quite 0 and 255; pictures that the list does not name are for training."""
    for name in ("water_body_1", "water_body_2"):
        tree.pair(f"WBS-SI/Images/{name}.jpg", f"WBS-SI/Masks/{name}.jpg", [0, 0, 255, 255])
    tree.text("WBS-SI/wbs-si_val.txt", "water_body_2\n")


def vdd(tree):
    tree.pair("VDD/test/src/a.JPG", "VDD/test/gt/a.png", range(7))


def bdd100k(tree):
    tree.pair("bdd100k/images/10k/val/a.jpg", "bdd100k/labels/sem_seg/masks/val/a.png", [*range(19), 255])


def dark_zurich(tree):
    folder = "val/night/GOPR0356"
    label = f"dark_zurich/gt/{folder}/a_gt_labelTrainIds.png"
    tree.pair(f"dark_zurich/rgb_anon/{folder}/a_rgb_anon.png", label, [*range(19), 255])


def night_driving(tree):
    label = "NighttimeDrivingTest/gtCoarse_daytime_trainvaltest/test/night/a_gtCoarse_labelTrainIds.png"
    image = "NighttimeDrivingTest/leftImg8bit/test/night/a_leftImg8bit.png"
    tree.pair(image, label, [*range(19), 255])


def acdc(condition):
    def make(tree):
        image, label = (f"acdc/{kind}/{condition}/val/GOPR0475/a_{kind}" for kind in ("rgb_anon", "gt"))
        tree.pair(f"{image}.png", f"{label}_labelTrainIds.png", [*range(19), 255])

    return make


def mapillary(version, classes):
    def make(tree):
        label = tree.root / f"mapillary/validation/{version}/labels/a.png"
        tree.save("mapillary/validation/images/a.jpg", np.full((64, 96, 3), 90))
        label.parent.mkdir(parents=True)
        image = Image.fromarray(blocks(range(classes)))
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        image.save(label)

    return make


def foodseg103(tree):
    tree.pair("FoodSeg103/Images/img_dir/test/a.jpg", "FoodSeg103/Images/ann_dir/test/a.png", range(104))


def mess_dark_zurich(tree):
    folder = "val/night/GOPR0356"
    tree.pair(f"Dark_Zurich/rgb_anon/{folder}/a_rgb_anon.png", f"Dark_Zurich/gt/{folder}/a_gt_labelIds.png", CITY_IDS)
    unseen = np.zeros((64, 96))
    unseen[:2] = 255
    tree.save(f"Dark_Zurich/gt/{folder}/a_gt_invGray.png", unseen)


def mhp(tree):
    tree.save("LV-MHP-v1/images/0001.jpg", np.full((64, 96, 3), 90))
    persons = blocks(range(19)), blocks(range(19))
    persons[0][:, 48:] = persons[1][:, :48] = 0
    for number, labels in enumerate(persons, 1):
        tree.save(f"LV-MHP-v1/annotations/0001_02_{number:02}.png", labels)
    tree.text("LV-MHP-v1/test_list.txt", "0001.jpg\n")


def atlantis(tree):
    tree.pair("atlantis/images/test/canal/a.jpg", "atlantis/masks/test/canal/a.png", range(57))


def mess_isaid(tree):
    label = "isaid/val/Semantic_masks/images/P0003_instance_color_RGB.png"
    tree.pair("isaid/val/images/P0003.png", label, ISAID, 100, 1030)


def mess_potsdam(tree):
    colours = [tuple(min(value, 250) for value in colour) for colour in ISPRS[1:]]  # not quite pure
    for name in POTSDAM:
        label = f"ISPRS_Potsdam/5_Labels_all/top_potsdam_{name}_label.tif"
        tree.pair(f"ISPRS_Potsdam/3_Ortho_IRRG/top_potsdam_{name}_IRRG.tif", label, colours)


def floodnet(tree):
    folder = "FloodNet-Supervised_v1.0/test"
    tree.pair(f"{folder}/test-org-img/6336.jpg", f"{folder}/test-label-img/6336_lab.png", range(10), 64, 1030)


def mess_uavid(tree):
    folder = "uavid_v1.5/uavid_val/seq16"
    tree.pair(f"{folder}/Images/000000.png", f"{folder}/Labels/000000.png", UAVID)


def kvasir(tree):
    tree.save("kvasir-instrument/images/a.jpg", np.full((64, 96, 3), 90))
    tree.save("kvasir-instrument/masks/a.png", blocks([(0, 0, 0), (255, 255, 255)]))
    tree.text("kvasir-instrument/test.txt", "a\n")


def chase_db1(tree):
    for number in range(1, 6):
        for side in "LR":
            image = f"CHASEDB1/Image_{number:02}{side}"
            tree.save(f"{image}.jpg", np.full((64, 96, 3), 90))
            (tree.root / f"{image}_1stHO.png").parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(blocks([0, 255])).convert("1").save(tree.root / f"{image}_1stHO.png")


def cryonuseg(tree):
    name = "Annotator 1 (biologist second round of manual marks up)"
    tree.pair("CryoNuSeg/tissue images/a.tif", f"CryoNuSeg/{name}/{name}/mask binary/a.png", [0, 255])


def corrosion(tree):
    folder = "Corrosion Condition State Classification/original/Test"
    tree.pair(f"{folder}/images/1.jpeg", f"{folder}/masks/1.png", range(4))


def deepcrack(tree):
    tree.pair("DeepCrack/test_img/11.jpg", "DeepCrack/test_lab/11.png", [0, 255])


def pst900(tree):
    tree.save("PST900_RGBT_Dataset/test/thermal/a.png", np.full((64, 96), 90))
    tree.save("PST900_RGBT_Dataset/test/labels/a.png", blocks(range(5)))


def zerowaste(tree):
    folder = "zerowaste-f/splits_final_deblurred/test"
    tree.pair(f"{folder}/data/a.PNG", f"{folder}/sem_seg/a.PNG", range(5))


def suim(tree):
    tree.pair("SUIM/TEST/images/a.jpg", "SUIM/TEST/masks/a.bmp", SUIM)


def cub200(tree):
    """The first species and the last; a picture shows one."""
    paths = [f"{number:03}.A_{number}/A_{number}" for number in (1, 200)]
    for path in paths:
        tree.pair(f"CUB_200_2011/images/{path}.jpg", f"CUB_200_2011/segmentations/{path}.png", [0, 100, 204, 255])
    tree.text("CUB_200_2011/images.txt", "".join(f"{i} {path}.jpg\n" for i, path in enumerate([*paths, "3.B/b"], 1)))
    tree.text("CUB_200_2011/train_test_split.txt", "1 0\n2 0\n3 1\n")


def cwfid(tree):
    for number in range(1, 61):
        name = f"cwfid/images/{number:03}_image.png", f"cwfid/annotations/{number:03}_annotation.png"
        tree.pair(*name, [(0, 0, 0), (255, 0, 0), (0, 255, 0)], 24, 24)


TREES = {
    "remote_sensing": dict(
        loveda=loveda, potsdam=potsdam, vaihingen=vaihingen, isaid=isaid, openearthmap=openearthmap, uavid=uavid,
        udd5=udd5, vdd=vdd, inria=inria, xbd=xbd, wbs_si=wbs_si,
        whu_aerial=in_place("WHU-BD/val"),
        whu_sat2=in_place("WHU-Sat-II/1.cropped/test", mask="a.tif", image="a.tif"),
        chn6_cug=in_place("CHN6-CUG/val", "gt", "images", "a_mask.png", "a_sat.jpg"),
        deepglobe=in_place("GlobalRoadSet_Val/DeepGlobe_test_1530", ".", ".", "1_mask.png", "1_sat.jpg"),
        massachusetts=in_place("GlobalRoadSet_Val/Massachusetts_test_49", images="img", image="a.jpg"),
        spacenet=in_place("GlobalRoadSet_Val/SpaceNet_test_567", images="img", image="a.jpg"),
    ),
    "driving": dict(
        bdd100k=bdd100k, dark_zurich=dark_zurich, night_driving=night_driving, mapillary_v1=mapillary("v1.2", 66),
        mapillary_v2=mapillary("v2.0", 124), mapillary19=mapillary("v1.2", 66),
        **{f"acdc_{condition}": acdc(condition) for condition in ("fog", "night", "rain", "snow")},
    ),
    "food": dict(foodseg103=foodseg103),
    "mess": dict(
        dark_zurich=mess_dark_zurich, mhp=mhp, atlantis=atlantis, isaid=mess_isaid, potsdam=mess_potsdam,
        floodnet=floodnet, uavid=mess_uavid, kvasir=kvasir, chase_db1=chase_db1, cryonuseg=cryonuseg,
        corrosion=corrosion, deepcrack=deepcrack, pst900=pst900, zerowaste=zerowaste, suim=suim, cub200=cub200,
        cwfid=cwfid,
    ),
}  # fmt: skip
TREES["segearth"] = TREES["remote_sensing"]
EXTRACTION = {
    "whu_aerial", "whu_sat2", "inria", "xbd", "chn6_cug", "deepglobe", "massachusetts", "spacenet", "wbs_si",
}  # fmt: skip
READY = {"udd5", "vdd", "corrosion", "pst900", "zerowaste"}  # no converter
# What a converter makes of a tree, where it is not one picture of one: pictures, height and width of the first.
TILED = {
    ("remote_sensing", "loveda"): (2, 64, 96),
    ("remote_sensing", "potsdam"): (28, 512, 512),
    ("remote_sensing", "vaihingen"): (34, 512, 512),
    ("remote_sensing", "isaid"): (5, 896, 896),
    ("remote_sensing", "uavid"): (4, 1080, 1280),
    ("remote_sensing", "inria"): (54, 1000, 1000),
    ("mess", "isaid"): (2, 1024, 1024),
    ("mess", "potsdam"): (14, 1024, 1024),
    ("mess", "floodnet"): (2, 1024, 1024),
    ("mess", "uavid"): (1, 1024, 1024),
    ("mess", "chase_db1"): (2, 64, 96),
    ("mess", "cub200"): (2, 64, 96),
    ("mess", "cwfid"): (21, 24, 24),
}


def prepare(folder, name, root):
    """A data root with one benchmark, made as a user makes it."""
    TREES[folder][name](Tree(root))
    group = "remote_sensing" if folder == "segearth" else folder
    if group not in ("remote_sensing", "mess") or name in READY:
        return
    script = ROOT / "datasets" / ("cvt_extraction.py" if name in EXTRACTION else f"cvt_{group}.py")
    done = subprocess.run(
        [sys.executable, script, name, "--workers", "1"], env=os.environ | {"CLEARCLIP_DATA": str(root)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_config_has_a_tree():
    assert {(path.parent.name, path.stem[4:]) for path in PATHS} == {
        (folder, name) for folder in FOLDERS for name in TREES[folder]
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem[4:]}")
def test_benchmark(path, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder, name = path.parent.name, path.stem[4:]
    prepare(folder, name, tmp_path)
    config = read_config(path)
    dataset, vocabulary = config.test_dataloader.dataset, load_vocabulary(config.model.vocabulary)
    assert config.benchmark.name == name
    assert config.benchmark.names == vocabulary.hash

    pictures, height, width = TILED.get((folder.replace("segearth", "remote_sensing"), name), (1, 64, 96))
    root = Path(dataset.data_root)
    maps = sorted(
        (root / dataset.data_prefix.seg_map_path).rglob(f"*{Path(dataset.get('seg_map_suffix', '.png')).suffix}")
    )
    if name not in ("dark_zurich", "zerowaste", "corrosion") and "ann_file" not in dataset:
        assert len(maps) == pictures
    for label in maps[:1]:
        with Image.open(label) as image:
            assert image.mode in ("L", "P")  # and "P" only as the archive has it
            assert (image.height, image.width) == (height, width)

    with DefaultScope.overwrite_default_scope("mmseg"):
        truth = DATASETS.build(load_config(path).config.test_dataloader.dataset)[0]["data_samples"].gt_sem_seg.data
    labels = range(2) if name == "cub200" else range(len(vocabulary))
    assert {*truth.unique().tolist()} - {255} == {*labels}  # each has come through

    main([
        str(path), "--backbone", f"local-dir:{tiny_folder}", "--work-dir", "run", "--limit", "1", "--cfg-options",
        "test_dataloader.num_workers=0", "model.device=cpu", "model.templates=single", "model.short_side=64",
        "model.crop=64", "model.stride=64",
    ])  # fmt: skip
    result = read_result("run/result.json")
    assert result["images"] == 1
    assert len(result["per_class_IoU"]) == len(vocabulary)


@pytest.mark.parametrize("path", sorted((CONFIGS / "segearth").glob("cfg_*.py")), ids=lambda path: path.stem[4:])
def test_segearth_resizes_the_long_side(path):
    model = read_config(path).model
    assert (model.short_side, model.long_side, model.crop, model.stride, model.logit_scale) == (448, 448, 224, 112, 50)


def test_labels_of_the_other_sets_are_refused(tmp_path):
    tree = Tree(tmp_path)
    uavid(tree)
    tree.save("UAVid/test_gt/seq21/Labels/000000.png", np.full((1090, 1300, 3), 7))
    done = subprocess.run(
        [sys.executable, ROOT / "datasets/cvt_remote_sensing.py", "uavid", tmp_path / "UAVid"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has the colour (7, 7, 7), which is none of this data set's" in done.stderr
    assert not list(tmp_path.rglob("ann_dir/*/*.png"))


def extract(name, root):
    command = [sys.executable, ROOT / "datasets/cvt_extraction.py", name, root, "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_mask_of_0_and_1_has_the_class_where_it_is_1(tmp_path):
    Tree(tmp_path).save("label/a.png", blocks([0, 1]))
    Tree(tmp_path).save("label/b.png", blocks([0, 100, 128]))
    assert extract("massachusetts", tmp_path).returncode == 0
    for name, expected in (("a", [0, 1]), ("b", [0, 0, 1])):
        with Image.open(tmp_path / f"label_cvt/{name}.png") as image:
            assert (image.mode, np.array(image).tolist()) == ("L", blocks(expected).tolist())


def test_a_mask_without_a_picture_is_named(tmp_path):
    Tree(tmp_path).save("gt/7_mask.png", blocks([0, 255]))
    done = extract("chn6_cug", tmp_path)
    assert done.returncode == 2
    assert "7_mask.png has no picture 7*.jpg below" in done.stderr
    done = extract("massachusetts", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no masks in {tmp_path} where `-h` says" in done.stderr
