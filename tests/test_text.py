"""Prompt ensembles, their cache, and embeddings from a file."""

import dataclasses
import json
import warnings
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clearclip import text
from clearclip.backbones import load_backbone
from clearclip.errors import UserError
from clearclip.paths import cache_dir
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings, embed_names, encode_prompts
from clearclip.vocabulary import Vocabulary, load_templates

NAMES = ("cat", "traffic light", "a very long name of a thing that nobody has ever seen, not even at sea")
TEMPLATES = ("a photo of a {}.", "{}", "a bad and blurry low resolution photo of the large {}.")


@pytest.fixture(scope="module")
def library_model(tiny_folder):
    """The same weights in OpenCLIP's own model, which always computes all 77 columns."""
    return open_clip.create_model(f"local-dir:{tiny_folder}").eval()


@pytest.fixture
def calls(monkeypatch):
    """The number of prompts in each call of the text tower."""
    counts = []

    def counted(backbone, prompts):
        counts.append(len(prompts))
        return encode_prompts(backbone, prompts)

    monkeypatch.setattr(text, "encode_prompts", counted)
    return counts


@given(st.permutations([*range(1, 9), 1, 1, 90]), st.sampled_from([1, 40, 100, 4096]))
def test_prompts_are_independent_of_order_batch_and_trimming(tiny_backbone, library_model, words, batch_tokens):
    prompts = [" ".join(["cat"] * count) for count in words]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(text, "BATCH_TOKENS", batch_tokens)
        embeddings = encode_prompts(tiny_backbone, prompts)
        expected = library_model.encode_text(tiny_backbone.tokenizer(prompts))
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)


def test_batches_are_trimmed_and_bounded(tiny_backbone, monkeypatch):
    shapes = []
    encode = tiny_backbone.encode_text
    monkeypatch.setattr(text, "BATCH_TOKENS", 60)
    monkeypatch.setattr(
        type(tiny_backbone), "encode_text", lambda self, tokens: shapes.append(tuple(tokens.shape)) or encode(tokens)
    )
    encode_prompts(tiny_backbone, ["cat " * count for count in (20, 1, 3, 1, 200, 2)])
    assert shapes == [(4, 5), (1, 22), (1, 77)]  # "cat" is one token; each prompt has a start and an end as well


@pytest.mark.parametrize("templates", [TEMPLATES, TEMPLATES[:1]])
def test_an_ensemble_is_the_mean_of_unit_embeddings(templates, tiny_backbone, library_model):
    result = embed_names(tiny_backbone, NAMES, templates)
    assert result.names == NAMES
    for name, row in zip(NAMES, result.embeddings):
        with torch.inference_mode():
            prompts = tiny_backbone.tokenizer([template.replace("{}", name) for template in templates])
            units = F.normalize(library_model.encode_text(prompts), dim=-1)
        torch.testing.assert_close(row, F.normalize(units.mean(dim=0), dim=-1), rtol=1e-5, atol=1e-5)


def test_template_sets_and_files(tiny_backbone, tmp_path):
    (tmp_path / "mine.txt").write_text("a drawing of a {}\n")
    from_file = embed_names(tiny_backbone, ["cat"], tmp_path / "mine.txt")
    assert torch.equal(from_file.embeddings, embed_names(tiny_backbone, ["cat"], ["a drawing of a {}"]).embeddings)
    default = embed_names(tiny_backbone, ["cat"])
    assert default.note == "mean of 80 templates"
    expected = embed_names(tiny_backbone, ["cat"], load_templates("imagenet80"), cache=False)
    assert torch.equal(default.embeddings, expected.embeddings)


@pytest.mark.parametrize("templates", [[], ["a photo"], ["a photo of a {name}"], ["{} and {}"]])
def test_wrong_templates_are_refused(templates, tiny_backbone):
    with pytest.raises(UserError, match="template"):
        embed_names(tiny_backbone, ["cat"], templates)


def test_repeated_names_are_embedded_once(tiny_backbone, calls):
    result = embed_names(tiny_backbone, ["cat", "dog", "cat"], TEMPLATES)
    assert result.names == ("cat", "dog", "cat")
    assert calls == [2 * len(TEMPLATES)]
    assert torch.equal(result.embeddings[0], result.embeddings[2])
    assert not torch.equal(result.embeddings[0], result.embeddings[1])


def test_cache(tiny_backbone, calls):
    first = embed_names(tiny_backbone, NAMES, TEMPLATES)
    second = embed_names(tiny_backbone, NAMES, TEMPLATES)
    assert len(calls) == 1
    assert torch.equal(first.embeddings, second.embeddings)
    assert (first.names, first.model, first.note) == (second.names, second.model, second.note)
    embed_names(tiny_backbone, NAMES, TEMPLATES, cache=False)
    assert len(calls) == 2


def test_other_names_templates_weights_or_precision_are_other_entries(tiny_backbone, tiny_folder, tmp_path, calls):
    embed_names(tiny_backbone, NAMES, TEMPLATES)
    embed_names(tiny_backbone, NAMES[:2], TEMPLATES)
    embed_names(tiny_backbone, NAMES, TEMPLATES[:2])
    embed_names(tiny_backbone, NAMES, TEMPLATES[::-1])
    assert len(calls) == 4

    folder = tmp_path / tiny_folder.name  # same name, other weights
    folder.mkdir()
    (folder / "open_clip_config.json").write_text((tiny_folder / "open_clip_config.json").read_text())
    state = load_file(tiny_folder / "open_clip_model.safetensors")
    state["ln_final.bias"] += torch.arange(32.0)
    save_file(state, folder / "open_clip_model.safetensors")
    other = load_backbone(f"local-dir:{folder}", device="cpu", precision="fp32")
    assert other.name == tiny_backbone.name
    changed = embed_names(other, NAMES, TEMPLATES)
    assert len(calls) == 5
    assert not torch.allclose(changed.embeddings, embed_names(tiny_backbone, NAMES, TEMPLATES).embeddings, atol=1e-3)

    low = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="bf16")
    embed_names(low, NAMES, TEMPLATES)
    assert len(calls) == 6


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def scribble(path):
    path.write_bytes(b"no tensors here")


def poison(path):
    metadata = {"names": json.dumps(NAMES)}
    save_file({"embeddings": torch.full((3, 48), float("nan"))}, path, metadata)


def rename(path):
    save_file({"embeddings": torch.ones(3, 48)}, path, {"names": json.dumps(NAMES[::-1])})


def reshape(path):
    save_file({"embeddings": torch.ones(3, 24)}, path, {"names": json.dumps(NAMES)})


@pytest.mark.parametrize("damage", [truncate, scribble, poison, rename, reshape])
def test_a_damaged_cache_entry_is_rebuilt(damage, tiny_backbone, calls):
    first = embed_names(tiny_backbone, NAMES, TEMPLATES)
    (entry,) = (cache_dir() / "text").iterdir()
    damage(entry)
    again = embed_names(tiny_backbone, NAMES, TEMPLATES)
    assert len(calls) == 2
    assert torch.equal(again.embeddings, first.embeddings)
    embed_names(tiny_backbone, NAMES, TEMPLATES)
    assert len(calls) == 2  # the entry is whole again
    assert list((cache_dir() / "text").iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_is_done_without(tiny_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLEARCLIP_CACHE", str(tmp_path / "file" / "cache"))
    backbone = load_backbone(f"local-dir:{tiny_folder}", device="cpu", precision="fp32")
    result = embed_names(backbone, NAMES, TEMPLATES)
    assert torch.equal(result.embeddings, embed_names(backbone, NAMES, TEMPLATES, cache=False).embeddings)
    embed_names(backbone, NAMES, ["a {}"])
    assert caplog.text.count("set CLEARCLIP_CACHE") == 1


def test_file_round_trip(tmp_path):
    rows = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    saved = TextEmbeddings(("cat", "crème brûlée", "猫"), rows, "ViT-B-16 openai", "a note", "ViT-B-16:openai")
    saved.save(tmp_path / "deep" / "text.safetensors")
    loaded = TextEmbeddings.load(tmp_path / "deep" / "text.safetensors")
    for key in ("names", *text.PROVENANCE):
        assert getattr(loaded, key) == getattr(saved, key)
    torch.testing.assert_close(loaded.embeddings, rows)


def test_loaded_rows_have_unit_length(tmp_path):
    TextEmbeddings(("cat",), torch.tensor([[3.0, 4.0]])).save(tmp_path / "text.safetensors")
    torch.testing.assert_close(
        TextEmbeddings.load(tmp_path / "text.safetensors").embeddings, torch.tensor([[0.6, 0.8]])
    )


def names(*values):
    return {"names": json.dumps(values)}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"embeddings": torch.ones(2, 4)}, None),
        ({"embeddings": torch.ones(2, 4)}, {"names": "cat, dog"}),
        ({"embeddings": torch.ones(2, 4)}, names("cat")),
        ({"embeddings": torch.ones(2, 4, 1)}, names("cat", "dog")),
        ({"embeddings": torch.full((2, 4), torch.inf)}, names("cat", "dog")),
        ({"rows": torch.ones(2, 4)}, names("cat", "dog")),
    ],
)
def test_files_of_another_form_are_refused(tensors, metadata, tmp_path):
    path = tmp_path / "text.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match=f"{path} does not hold text embeddings"):
        TextEmbeddings.load(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors do not exist"):
        TextEmbeddings.load(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.txt").write_text("cat")
    for path in (tmp_path / "text.txt", tmp_path):
        with pytest.raises(UserError, match=f"{path} does not hold text embeddings"):
            TextEmbeddings.load(path)


def test_embeddings_of_another_model_are_told(tiny_backbone, tiny_folder, tmp_path, recwarn):
    other = tmp_path / "other"
    other.symlink_to(tiny_folder)
    other = load_backbone(f"local-dir:{other}", device="cpu", precision="fp32")
    embed_names(tiny_backbone, NAMES, "single").save(tmp_path / "text.safetensors")
    loaded = TextEmbeddings.load(tmp_path / "text.safetensors")
    loaded.check(tiny_backbone)
    assert not recwarn
    with pytest.warns(UserWarning, match=f"made by {tiny_backbone.name}:.* seen by other:.* of the same model"):
        Segmenter("CLIP", other, text_embeddings=tmp_path / "text.safetensors")
    embed_names(other, NAMES, "single").check(other)  # its weights are the same, and so is the cache entry
    TextEmbeddings(NAMES, loaded.embeddings, "openai ViT-B-16", "somebody else's").check(tiny_backbone)
    with pytest.raises(UserError, match="have 24 dimensions, other has 48"):
        TextEmbeddings(NAMES, torch.ones(3, 24)).check(other)
    assert not recwarn


def test_the_embedded_image_tower_takes_openai_s_text():
    openai, embedded = (SimpleNamespace(name="ViT-B-16", tag=tag, dim=4) for tag in ("openai", "openai-int8"))
    with warnings.catch_warnings(action="error"):
        TextEmbeddings(("cat",), torch.ones(1, 4), backbone="ViT-B-16:openai").check(embedded)
        TextEmbeddings(("cat",), torch.ones(1, 4), backbone="ViT-B-16:openai").check(openai)
        with pytest.raises(UserWarning, match="made by ViT-B-32:openai, the images are seen by ViT-B-16:openai"):
            TextEmbeddings(("cat",), torch.ones(1, 4), backbone="ViT-B-32:openai").check(embedded)


def test_names_and_rows_must_agree():
    with pytest.raises(ValueError, match="2 names"):
        TextEmbeddings(("cat", "dog"), torch.ones(3, 4))


ROWS = TextEmbeddings(("cat", "traffic light", "man", "Diningtable", "cat"), torch.eye(5))


def test_select_by_name_and_synonym():
    vocabulary = Vocabulary.of(["traffic-light", "person, man, woman", "dining table", "Cat"])
    rows, query_class = ROWS.select(vocabulary)
    assert rows.argmax(dim=1).tolist() == [1, 2, 3, 0]  # of two rows of one name the first
    assert query_class == (0, 1, 2, 3)
    rows, query_class = ROWS.select(Vocabulary.of(["man, person, cat", "traffic light"]))
    assert rows.argmax(dim=1).tolist() == [2, 0, 1]
    assert query_class == (0, 0, 1)


def test_select_names_what_is_missing():
    with pytest.raises(UserError, match="no row for dog, sky; add the name"):
        ROWS.select(Vocabulary.of(["cat", "dog, puppy", "sky"]))
    many = [f"thing {index}" for index in range(20)]
    with pytest.raises(UserError, match="thing 7 …; "):
        ROWS.select(Vocabulary.of(many))


def test_what_stands_in_for_the_text_tower_is_said_once(tiny_backbone, caplog, monkeypatch):
    class Student:
        content_hash = "x"

        def __call__(self, names):
            return torch.nn.functional.normalize(torch.ones(len(names), tiny_backbone.dim), dim=1)

        def doubts(self, names):
            return ["cat on a mat (a relation)"] if "cat on a mat" in names else []

    stand_in = dataclasses.replace(tiny_backbone.checkpoint, text_stand_in=True)
    monkeypatch.setattr(tiny_backbone, "checkpoint", stand_in)
    monkeypatch.setattr(text, "_student", Student)
    text._say_stand_in.cache_clear()
    text._warn_once.cache_clear()
    for _ in range(2):  # computed, and of the cache
        embed_names(tiny_backbone, ["cat"])
        embed_names(tiny_backbone, ["cat on a mat", "dog"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "stands in for CLIP's text tower" in said[0]
    assert said[1] == "text: do not trust what the text student makes of cat on a mat (a relation)"


# Names that the encoder cannot tell apart


LONG_NAME = "a very " * 80


def test_names_that_agree_as_far_as_the_encoder_reads_are_refused(tiny_backbone, caplog):
    segmenter = Segmenter(backbone=tiny_backbone, templates="single")
    with pytest.raises(UserError, match="have the same text embedding, so that the second can never win"):
        segmenter.queries(Vocabulary.of([f"{LONG_NAME}big cat", "sky", f"{LONG_NAME}small dog"]))
    assert "does not read" in caplog.text
    assert segmenter.queries(Vocabulary.of([f"{LONG_NAME}big cat", "sky", f"{LONG_NAME}small dog, dog"])).names


def test_rows_of_a_file_that_are_the_same_are_refused(tiny_backbone):
    rows = torch.nn.functional.normalize(torch.randn(3, tiny_backbone.dim), dim=1)[[0, 1, 0]]
    segmenter = Segmenter(backbone=tiny_backbone, text_embeddings=TextEmbeddings(("cat", "sky", "dog"), rows))
    with pytest.raises(UserError, match="the classes 'cat' and 'dog' have the same text embedding"):
        segmenter.queries(Vocabulary.of(["cat", "sky", "dog"]))
