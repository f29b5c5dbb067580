import codecs
import itertools
import time
import zlib
from pathlib import Path

import clearclip.evaluation.mmseg  # noqa: F401, makes mmseg importable

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearclip import vocabulary as vocabulary_module
from clearclip.errors import UserError
from clearclip.evaluation.datasets import COCOObjectDataset, PascalVOC20Dataset
from clearclip.vocabulary import TEMPLATES, Vocabulary, check_tokens, load_templates, load_vocabulary

CONFIGS = Path(__file__).parents[1] / "configs"

letters = st.characters(categories=("L", "M", "N", "S", "Zs"), exclude_characters="\ufffd", include_characters="&;-'")
name = st.text(letters, min_size=1, max_size=8).map(str.strip).filter(bool)


def same_to_clip(name):
    return open_clip.tokenizer._clean_lower(name)


classes = st.lists(name, min_size=1, max_size=8, unique_by=same_to_clip)
classes = classes.flatmap(lambda names: st.builds(group, st.just(names), st.integers(1, 3)))


def group(names, size):
    return [names[start : start + size] for start in range(0, len(names), size)]


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\n\n \t\n"])
def test_encodings_and_line_ends(tmp_path, encoding, line_end):
    (tmp_path / "names.txt").write_bytes(line_end.join(["café, 喫茶店", "", "  dog  ", ""]).encode(encoding))
    assert load_vocabulary(tmp_path / "names.txt").names == (("café", "喫茶店"), ("dog",))


def test_a_comment_starts_where_a_word_does(tmp_path):
    path = write(tmp_path / "names.txt", "# classes\nC# book, F#  # languages\n\t#cat\ndog\t# hound\n")
    assert load_vocabulary(path).names == (("C# book", "F#"), ("dog",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n\n", "empty"),
        ("\ufeff", "empty"),
        ("cat\n\ndog,,hound", "line 3: empty name"),
        ("cat,", "line 1: empty name"),
        ("cat\n# \ncat, kitten", r"names\.txt, line 3: class 'cat' is at line 1 already"),
        ("cat, kitten ,cat", "line 1: a name is there twice"),
        (
            "cat\n\nCat",
            r"line 3: class 'Cat' can never win, as its name is in line 1 \('cat'\) already; give each name",
        ),
        ("cat, kitten\ndog\nkitten", r"line 3: class 'kitten' can never win, as its name is in line 1 \('cat'\)"),
        ("a, b\nc\nC, B", r"line 3: class 'C' .*its names are in earlier ones, such as line 2 \('c'\), already"),
        ("grass\ngra\tss", r"line 2: 'gra\\tss' holds U\+0009"),
        ("cat\ngra\u200bss", r"line 2: .* holds U\+200B \(zero width space\); delete or replace it"),
        ("cat\ngra\u2028ss", r"line 2: .* holds U\+2028"),
        ("cat\n\uffff", r"line 2: .* holds U\+FFFF \(not a character of text\)"),
        ("cat\ncaf\ufffd", r"line 2: .* holds U\+FFFD \(replacement character\)"),
        ("cat\n猫，狗", "line 2: '猫，狗' holds '，', which separates no names here; write a plain ,"),
        ("猫、狗", "line 1: .* holds '、'"),
        ("قط، كلب", "line 1: .* holds '،'"),
        ("قط؛ كلب", "line 1: .* holds '؛'"),
    ],
)
def test_bad_class_file_names_file_and_line(tmp_path, text, message):
    path = write(tmp_path / "names.txt", text)
    with pytest.raises(UserError, match=message) as error:
        load_vocabulary(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_letters_with_a_comma_and_joiners_are_text():
    names = ("șnur", "👩‍🌾", "می‌خواهم", "à la carte", "C#")
    assert Vocabulary.of(names).classes == names


def test_unreadable_class_file(tmp_path):
    (tmp_path / "latin.txt").write_bytes("cat\ndog\ncafé".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("cat\ndog".encode("utf-16-le"))
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "half.txt").write_bytes(codecs.BOM_UTF16_LE + b"c\0a")
    for name, message in (
        ("latin.txt", r"latin\.txt is not UTF-8 text \(line 3\): save it as UTF-8"),
        ("wide.txt", r"wide\.txt is not UTF-8 text"),
        ("picture.txt", r"picture\.txt is not UTF-8 text"),
        ("half.txt", r"half\.txt is not UTF-8 text"),
        ("missing.txt", r"missing\.txt: No such file or directory; give a text file"),
        ("", "Is a directory; give a text file"),
        ("a\0b", r"a\\x00b.*null"),
    ):
        with pytest.raises(UserError, match=message):
            load_vocabulary(f"{tmp_path}/{name}")


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_any_bytes_give_a_vocabulary_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(content)
    for load in (load_vocabulary, load_templates):
        try:
            loaded = load(path)
        except UserError as error:
            sentence = str(error)
        else:
            assert len(loaded) > 0
            continue
        assert str(path) in sentence
        assert "\n" not in sentence


@given(
    st.lists(st.text(max_size=6) | st.lists(st.text(max_size=6), max_size=3) | st.none() | st.integers(), max_size=5)
)
def test_any_list_gives_a_vocabulary_or_one_sentence(names):
    try:
        vocabulary = Vocabulary.of(names)
    except UserError as error:
        sentence = str(error)
    else:
        assert len(vocabulary) == len(names)
        assert Vocabulary.of(vocabulary.names) == vocabulary
        return
    assert "\n" not in sentence


# Names that two classes share


def test_one_name_may_belong_to_two_classes():
    vocabulary = Vocabulary.of(["wall, bed", "bed, cot", "cat", "Cat, kitten"])
    assert vocabulary.query_class == (0, 0, 1, 1, 2, 3, 3)
    assert vocabulary.shadowed() == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "Cat"),
        ("traffic light", "traffic  light"),
        ("traffic light", "traffic\u00a0light"),
        ("café", "cafe\u0301"),
        ("cat", "ｃａｔ"),
        ("men's shoe", "men’s shoe"),
        ("black & white", "black &amp; white"),
    ],
)
def test_names_that_are_one_to_the_text_encoder(one, other):
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    assert torch.equal(*tokenizer([one, other]))
    with pytest.raises(UserError, match=r"entry 3: class .* can never win, as its name is in entry 1"):
        Vocabulary.of([one, "dog", other])


@pytest.mark.parametrize("other", ["traffic-light", "traffic_light", "trafficlight", "traffic lights"])
def test_names_that_are_two_to_the_text_encoder(other):
    assert not torch.equal(*open_clip.get_tokenizer("ViT-B-16")(["traffic light", other]))
    vocabulary = Vocabulary.of(["traffic light", other, "dog"])
    assert vocabulary.shadowed() == {}
    assert vocabulary.shadowed([7, 7, 8]) == {1: 0}  # where a table of embeddings has one row for both


def test_shadowed_needs_every_name_to_be_taken_earlier():
    vocabulary = Vocabulary.of([["a", "b"], ["c"], ["d", "e"]])
    assert vocabulary.shadowed("abcba") == {2: 0}
    assert vocabulary.shadowed("abcce") == {}
    assert vocabulary.shadowed("ddddd") == {1: 0, 2: 0}


@pytest.mark.parametrize("folder", ["sclip", "proxyclip"])
def test_published_lists_in_which_bed_can_never_win(folder, caplog):
    vocabulary_module._warn_once.cache_clear()
    path = CONFIGS / folder / "cls_coco_object.txt"
    for _ in range(2):
        vocabulary = load_vocabulary(path)
        assert vocabulary.shadowed() == {60: 0}
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}, line 62: class 'bed' can never win, as its name is in line 2 ('sky') already"
    )
    with pytest.raises(UserError, match="'bed' can never win"):  # an edited list is no published one
        Vocabulary.of([*vocabulary.names, ("cup cake",)])


def test_long_lists_may_have_classes_that_can_never_win(caplog):
    names = [["thing", *(f"thing {i}" for i in range(300))], *([f"thing {i}"] for i in range(300))]
    assert len(Vocabulary.of(names)) == 301
    assert "class names, entry 2: class 'thing 0' can never win" in caplog.text
    assert "; 300 in all" in caplog.text
    with pytest.raises(UserError, match="; 254 in all; give each name"):
        Vocabulary.of(names[:255])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one"),
        ("cat", "not the one string 'cat'"),
        (b"cat", "not the one string b'cat'"),
        (None, "a list of names, not None"),
        (3, "a list of names, not 3"),
        (Path("names.txt"), r"not the path names\.txt; read a class file by load_vocabulary"),
        ({0: "cat", 1: "dog"}, r"not a dict; give list\(names\) or list\(names\.values\(\)\)"),
        ({"cat", "dog"}, "not a set, which has no order; give a list"),
        ([1, 2], "class names, entry 1: 1 is no class name"),
        (["cat", ["dog", None]], r"entry 2: \['dog', None\] is no class name"),
        (["cat", ["dog", ["hound"]]], "entry 2: .* is no class name"),
        (["cat", {"dog", "hound"}], "entry 2: the names of a class must be a list, not a set"),
        (["cat", {"dog": "hound"}], "entry 2: the names of a class must be a list, not a dict"),
        (["cat", b"dog"], "entry 2: the names of a class must be a list, not the one string b'dog'"),
        (["cat", " "], "entry 2: empty name"),
        ([["cat", ""]], "entry 1: empty name"),
        ([[]], "entry 1: empty name"),
        (["dog", "cat", "cat, kitten"], "entry 3: class 'cat' is at entry 2 already; write it once"),
        (["cat, cat"], "twice"),
        (["cat", "\ud800"], r"entry 2: '\\ud800' holds U\+D800"),
        (["cat", "a\0b"], r"entry 2: 'a\\x00b' holds U\+0000"),
        (["cat", "dog\nhound"], r"entry 2: .* holds U\+000A"),
        (["cat", ["\x1b[31mred"]], r"entry 2: .* holds U\+001B"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(UserError, match=message) as error:
        Vocabulary.of(names)
    str(error.value).encode()  # it can be printed


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "grass, lawn"),
        (name for name in ("cat", "grass, lawn")),
        {"cat": 1, "grass, lawn": 2}.keys(),
        np.array(["cat", "grass, lawn"]),
        [["cat"], ["grass", "lawn"]],
        [("cat",), (name for name in ("grass", "lawn"))],
        [np.array(["cat"]), np.array(["grass", "lawn"])],
    ],
    ids=["tuple", "generator", "keys", "array", "nested", "nested generator", "nested arrays"],
)
def test_lists_of_all_kinds(names):
    vocabulary = Vocabulary.of(names)
    assert vocabulary.names == (("cat",), ("grass", "lawn"))
    assert all(type(name) is str for name in vocabulary.queries)


def test_a_name_in_a_list_of_its_own_may_hold_any_comma():
    assert Vocabulary.of([["salt, pepper"], ["猫，狗"]]).queries == ("salt, pepper", "猫，狗")


def test_hash_is_of_the_names_and_their_order():
    vocabulary = Vocabulary.of(["cat, kitten", "喫茶店"])
    assert vocabulary.hash == "e0fe31986140b4f34201b81f48c7a5f4396e7e782e77e82ceb1fecdf76caf4e9"
    assert Vocabulary.of([["cat", "kitten"], ["喫茶店"]]).hash == vocabulary.hash
    others = (
        ["kitten, cat", "喫茶店"],
        ["喫茶店", "cat, kitten"],
        ["cat", "kitten", "喫茶店"],
        ["Cat, kitten", "喫茶店"],
    )
    assert len({Vocabulary.of(names).hash for names in others} | {vocabulary.hash}) == 5


def test_repr_is_short():
    assert repr(Vocabulary.of(["cat", "grass, lawn, turf"])) == "Vocabulary(2 classes, 4 names: 'cat', 'grass' (+2))"
    assert repr(load_vocabulary(CONFIGS / "cls_voc20.txt")) == (
        "Vocabulary(20 classes, 20 names: 'aeroplane', 'bicycle', 'bird', 'ship', 'bottle', 'bus', …)"
    )


def test_many_names_are_quick(tmp_path):
    path = write(tmp_path / "many.txt", "\n".join(f"thing {i}, Ding {i} für {i}" for i in range(20_000)))
    start = time.process_time()
    vocabulary = load_vocabulary(path)
    assert len(vocabulary.queries) == 40_000
    assert len(vocabulary.hash) == 64
    assert repr(vocabulary).startswith("Vocabulary(20000 classes, 40000 names: 'thing 0' (+1)")
    assert time.process_time() - start < 10


# What the tokenizer leaves of them


def test_check_tokens_finds_names_that_are_cut():
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    long = " ".join(["cat"] * 80)
    fits = " ".join(["cat"] * 74)
    names = ["cat", "Cat", "dog", f"{long} one", f"{long} two", fits]
    assert check_tokens(names, tokenizer) == (
        (f"{long} one", f"{long} two"),
        (("cat", "Cat"), (f"{long} one", f"{long} two")),
    )
    assert check_tokens(names, tokenizer, "a photo of a {}.").cut == (f"{long} one", f"{long} two", fits)
    assert check_tokens(["cat", "cat"], tokenizer) == ((), ())


def test_check_tokens_of_other_tokenizers():
    def words(prompts):  # padded to the longest, at most 4, as BERT's
        rows = [[zlib.crc32(word.encode()) for word in prompt.split()][:4] for prompt in prompts]
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    names = ["a b c", "a b c d e", "a b c d f"]
    assert check_tokens(names, words) == (tuple(names[1:]), (tuple(names[1:]),))


def test_template_sets_are_the_library_s():
    assert {key: len(load_templates(key)) for key in TEMPLATES} == {
        "imagenet80": 80,
        "imagenet7": 7,
        "car15": 15,
        "tips9": 9,
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


@pytest.mark.parametrize("name", ["imagenet81", "a\0b", "x" * 5000])
def test_unknown_template_set_lists_the_known(name):
    with pytest.raises(UserError, match="imagenet80, imagenet7, single"):
        load_templates(name)


def test_templates_hold_text(tmp_path):
    with pytest.raises(UserError, match=r"mine\.txt, line 2: .* holds U\+0007"):
        load_templates(write(tmp_path / "mine.txt", "a {}\na\x07 {}"))
    with pytest.raises(UserError, match="Is a directory"):
        load_templates(tmp_path)


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


def test_no_shipped_list_is_in_another_order_than_its_data_set():
    for key, names in mmseg_classes().items():
        for path in CONFIGS.rglob(f"cls_{key}.txt"):
            vocabulary = load_vocabulary(path)
            assert vocabulary.misplaced(names) == [], path
            swapped = Vocabulary((*vocabulary.names[1:], vocabulary.names[0]))
            assert len(swapped.misplaced(names)) > len(names) / 2
    assert Vocabulary.of(["cat", "traffic-light"]).misplaced(["Traffic Light", "dog", "cat"]) == [(0, 1), (2, 0)]


def test_trailing_spaces_of_the_original_names_change_no_token():
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    for template in load_templates("imagenet80"):
        assert torch.equal(*tokenizer([template.format("wood "), template.format("wood")]))
