import itertools
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clearclip.evaluation  # noqa: F401, makes mmseg importable
from clearclip.errors import UserError
from clearclip.evaluation.datasets import COCOObjectDataset, PascalVOC20Dataset
from clearclip.vocabulary import TEMPLATES, Vocabulary, load_templates, load_vocabulary

CONFIGS = Path(__file__).parents[1] / "configs"

name = st.text(st.characters(codec="utf-8", exclude_characters=",#\r\n"), min_size=1, max_size=8)
name = name.map(str.strip).filter(bool)
classes = st.lists(
    st.lists(name, min_size=1, max_size=3, unique=True),
    min_size=1,
    max_size=5,
    unique_by=lambda names: names[0],
)


def write(path, text):
    path.write_bytes(text.encode())
    return path


@given(
    classes,
    st.sampled_from(["\n", "\r\n", "\n\n", " # note\n", "\n# cat\n"]),
    st.sampled_from([",", ", ", " ,\t"]),
)
@settings(deadline=None)
def test_file_round_trip(tmp_path_factory, names, line_end, comma):
    text = "# classes\n" + line_end.join(comma.join(synonyms) for synonyms in names)
    vocabulary = load_vocabulary(write(tmp_path_factory.getbasetemp() / "names.txt", text))
    assert vocabulary == Vocabulary.of(names) == Vocabulary.of([",".join(synonyms) for synonyms in names])
    assert len(vocabulary) == len(names)
    assert vocabulary.classes == tuple(synonyms[0] for synonyms in names)
    assert vocabulary.queries == tuple(itertools.chain(*names))
    assert list(vocabulary.query_class) == sorted(vocabulary.query_class)
    assert all(query in names[i] for query, i in zip(vocabulary.queries, vocabulary.query_class, strict=True))


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert load_vocabulary(write(tmp_path / "names.txt", "\ufeffcat\ndog")).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n\n", "empty"),
        ("cat\n\ndog,,hound", "line 3: empty name"),
        ("cat,", "line 1: empty name"),
        ("cat\n# \ncat, kitten", r"names\.txt, line 3: class 'cat' is at line 1 already"),
        ("cat, kitten ,cat", "line 1: a name is there twice"),
    ],
)
def test_bad_class_file_names_file_and_line(tmp_path, text, message):
    path = write(tmp_path / "names.txt", text)
    with pytest.raises(UserError, match=message) as error:
        load_vocabulary(path)
    assert str(path) in str(error.value)


def test_unreadable_class_file(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8"):
        load_vocabulary(tmp_path / "latin.txt")
    with pytest.raises(UserError, match=r"missing\.txt: No such file or directory; give a text file"):
        load_vocabulary(tmp_path / "missing.txt")


def test_one_name_may_belong_to_two_classes():
    assert Vocabulary.of(["wall, bed", "bed"]).query_class == (0, 0, 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one"),
        ("cat", "not the one string 'cat'"),
        (None, "a list of names, not None"),
        (3, "a list of names, not 3"),
        ([1, 2], "class names, entry 1: 1 is no class name"),
        (["cat", ["dog", None]], r"entry 2: \['dog', None\] is no class name"),
        (["cat", " "], "entry 2: empty name"),
        ([["cat", ""]], "entry 1: empty name"),
        ([[]], "entry 1: empty name"),
        (["dog", "cat", "cat, kitten"], "entry 3: class 'cat' is at entry 2 already; write it once"),
        (["cat, cat"], "twice"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(UserError, match=message):
        Vocabulary.of(names)


def test_template_sets_are_the_library_s():
    assert {key: len(load_templates(key)) for key in TEMPLATES} == {
        "imagenet80": 80,
        "imagenet7": 7,
        "car15": 15,
        "single": 1,
    }
    for key, library in (
        ("imagenet80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("imagenet7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert [template.format("cat") for template in load_templates(key)] == [t("cat") for t in library]


def test_template_file(tmp_path):
    path = write(tmp_path / "mine.txt", "# mine\na {} in the fog\n\n{}\n")
    assert load_templates(path) == ("a {} in the fog", "{}")


@pytest.mark.parametrize("line", ["a photo", "{} and {}", "a {name}", "a {0} {}", "{{}}", "a }{"])
def test_bad_template_names_file_and_line(tmp_path, line):
    path = write(tmp_path / "mine.txt", f"a {{}}\n{line}")
    with pytest.raises(UserError, match=r"mine\.txt, line 2"):
        load_templates(path)


def test_unknown_template_set_lists_the_known():
    with pytest.raises(UserError, match="imagenet80, imagenet7, single"):
        load_templates("imagenet81")


# The vocabularies of the published protocols, as rules on MMSegmentation's own class names.

BACKGROUND = (
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, lamp, "
    "door, window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence"
)
OMITTED = ("lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "fence")
PERSON = (
    "person, person in shirt, person in jeans, person in dress, person in sweater, person in skirt, person in jacket"
)
MONITOR = "television monitor, tv monitor, monitor, television, screen"


def mmseg_classes():
    from mmseg.datasets import (
        ADE20KDataset,
        CityscapesDataset,
        COCOStuffDataset,
        PascalContextDataset,
        PascalContextDataset59,
        PascalVOCDataset,
    )

    datasets = {
        "voc20": PascalVOC20Dataset,
        "voc21": PascalVOCDataset,
        "context59": PascalContextDataset59,
        "context60": PascalContextDataset,
        "coco_object": COCOObjectDataset,
        "coco_stuff164k": COCOStuffDataset,
        "city_scapes": CityscapesDataset,
        "ade20k": ADE20KDataset,
    }
    return {key: dataset.METAINFO["classes"] for key, dataset in datasets.items()}


def renamed(names, changes):
    return Vocabulary.of([changes.get(name, name) for name in names])


def test_class_files_follow_the_rules():
    names = mmseg_classes()
    assert {key: len(value) for key, value in names.items()} == {
        "voc20": 20,
        "voc21": 21,
        "context59": 59,
        "context60": 60,
        "coco_object": 81,
        "coco_stuff164k": 171,
        "city_scapes": 19,
        "ade20k": 150,
    }
    assert names["voc21"] == ("background", *names["voc20"])
    assert names["context60"] == ("background", *names["context59"])
    assert names["coco_object"] == ("background", *names["coco_stuff164k"][:80])
    spaced = {key: [name for name in names[key] if " " in name] for key in ("ade20k", "coco_stuff164k", "city_scapes")}
    assert {key: len(value) for key, value in spaced.items()} == {
        "ade20k": 16,  # `bed ` among them
        "coco_stuff164k": 15,
        "city_scapes": 2,
    }

    plain = {key: load_vocabulary(CONFIGS / f"cls_{key}.txt") for key in names}
    for key, spaced_names in spaced.items():
        assert plain[key] == renamed(names[key], {name: name.replace(" ", "") for name in spaced_names})
    for key in ("context59", "context60", "coco_object"):
        assert plain[key] == Vocabulary.of(names[key])
    for key in ("voc20", "voc21"):
        assert plain[key] == renamed(names[key], {"boat": "ship", "diningtable": "table"})

    engineered = {path.stem: load_vocabulary(path) for path in (CONFIGS / "sclip").glob("cls_*.txt")}
    changes = {"background": BACKGROUND, "person": PERSON, "tvmonitor": MONITOR}
    assert engineered == {
        "cls_voc20": renamed(plain["voc20"].classes, changes),
        "cls_voc21": renamed(plain["voc21"].classes, changes),
        "cls_coco_object": renamed(plain["coco_object"].classes, changes | {"person": PERSON + ", body"}),
    }
    proxy = {path.stem: load_vocabulary(path) for path in (CONFIGS / "proxyclip").glob("cls_*.txt")}
    few = ", ".join(word for word in BACKGROUND.split(", ") if word not in OMITTED)
    assert proxy == {
        "cls_voc21": renamed(plain["voc21"].classes, {"background": BACKGROUND}),
        "cls_coco_object": renamed(plain["coco_object"].classes, {"background": few}),
    }


def test_trailing_spaces_of_the_original_names_change_no_token():
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    for template in load_templates("imagenet80"):
        assert torch.equal(*tokenizer([template.format("wood "), template.format("wood")]))
