import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clearclip import backbones
from clearclip.errors import UserError
from clearclip.offline import student
from clearclip.offline.student import Head, SentenceEncoder, Spelling, TextStudent, letter_runs, meaning, plain
from clearclip.text import TextEmbeddings

ROOT = Path(__file__).parents[1]
DIM = 16


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory):
    """A tiny random BERT whose tokens are letters."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    letters = string.ascii_lowercase
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_dir):
    return SentenceEncoder(encoder_dir)


@pytest.fixture(scope="session")
def world(encoder):
    """120 made-up names and "true" embeddings [120, DIM] that are a smooth function of their meaning."""
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(26, (120, 6), generator=generator).tolist()
    names = ["".join(string.ascii_lowercase[i] for i in row) for row in letters]
    names[:20] = [f"{name[:3]} {name[3:]}" for name in names[:20]]
    meanings = meaning(names, encoder)
    projection = torch.randn(32, DIM, generator=generator)
    return names, F.normalize(1 + (meanings - meanings.mean(dim=0)) @ projection, dim=1)


@pytest.fixture(scope="session")
def head(world, encoder):
    names, embeddings = world
    return Head.fit(names[:100], meaning(names[:100], encoder), embeddings[:100], torch.full((100,), 0.01))


@pytest.mark.slow
def test_import_leaves_transformers_alone():
    program = "import sys; from clearclip.offline.student import TextStudent; TextStudent()"
    code = f"{program}; print('transformers' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "False\n"


def test_padding_does_not_count(encoder):
    alone = encoder(["cat"])
    padded = encoder(["cat", "a much longer sentence than that"])[:1]
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


def test_batches_do_not_count(encoder, world):
    torch.testing.assert_close(encoder(world[0], batch_size=7), encoder(world[0]), rtol=1e-4, atol=1e-5)


def test_mean_pooling(encoder):
    inputs = encoder.tokenizer(["cat"], return_tensors="pt")
    tokens = encoder.model(**inputs).last_hidden_state[0]  # [T, E]
    torch.testing.assert_close(encoder(["cat"])[0], tokens.mean(dim=0))


def test_letter_runs_come_in_one_order():
    assert letter_runs("cat") == (" c", "ca", "at", "t ", " ca", "cat", "at ", " cat", "cat ")
    assert letter_runs("anan") == (" a", "an", "na", "n ", " an", "ana", "nan", "an ", " ana", "anan", "nan ")


@pytest.mark.slow
def test_every_process_makes_the_same_digits():
    """Processes of one job tell by them that they evaluate the same."""
    names = ["traffic light", "swivel chair", "escalator", "hovel", "minibike", "conveyer belt"]
    program = "from clearclip.offline.student import Head, HEAD; spelling = Head.load(HEAD)._spelling"
    code = f"{program}; print(spelling({names}).sum(dim=1).tolist())"
    seen = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    ]
    assert seen[0] == seen[1] == seen[2]


words = st.lists(st.text("abc ", min_size=1, max_size=8), min_size=1, max_size=8)


@given(words, words)
def test_spelling_is_the_cosine_of_tf_idf(known, queries):
    runs = sorted({run for name in [*known, *queries] for run in letter_runs(name)})
    frequency = {run: max(1, sum(run in letter_runs(name) for name in known)) for run in runs}
    weights = torch.tensor([1 + len(known) / frequency[run] for run in runs]).log()

    def vectors(names):
        return F.normalize(
            torch.stack([weights * torch.tensor([float(run in letter_runs(n)) for run in runs]) for n in names]), dim=1
        )

    torch.testing.assert_close(Spelling(known)(queries), vectors(queries) @ vectors(known).T)


def test_known_names_are_recovered(head, world, encoder):
    names, embeddings = world[0][:100], world[1][:100]
    cosine = head(names, meaning(names, encoder)) @ embeddings.T
    assert cosine.diag().min() > 0.995
    assert (cosine.argmax(dim=1) == torch.arange(100)).all()


def test_new_names_are_placed_better_than_at_the_mean(head, world, encoder):
    names, embeddings = world[0][100:], world[1][100:]
    out = head(names, meaning(names, encoder))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(20))
    student, at_mean = (out * embeddings).sum(dim=1), embeddings @ F.normalize(head.mean, dim=0)
    assert student.mean() > at_mean.mean()
    centred = F.cosine_similarity(out - head.mean, embeddings - head.mean, dim=1)
    assert centred.mean() > 0.5


def test_noise_is_trust(world, encoder):
    names, embeddings = world
    wrong = embeddings.clone()
    wrong[0] = F.normalize(-embeddings[0] + 2 * embeddings.mean(dim=0), dim=0)
    centres = meaning(names, encoder)
    errors = []
    for noise in (0.01, 100.0):
        variances = torch.full((len(names),), 0.01)
        variances[0] = noise
        out = Head.fit(names, centres, wrong, variances)(names[:1], centres[:1])
        errors.append(1 - (out[0] @ wrong[0]).item())
    assert errors[0] < 0.01 < errors[1]


def test_saved_head_answers_the_same(head, world, encoder, tmp_path):
    head.save(tmp_path / "head.safetensors", note="made")
    loaded = Head.load(tmp_path / "head.safetensors")
    meanings = meaning(world[0], encoder)
    assert loaded.names == head.names
    assert (loaded(world[0], meanings) * head(world[0], meanings)).sum(dim=1).min() > 0.999


def test_spelling_of():
    head = Head(("traffic light", "pottedplant", "potted plant"), torch.eye(3), torch.eye(3), torch.zeros(3), 1.0)
    assert head.spelling_of("TrafficLight") == "traffic light"
    assert head.spelling_of("Traffic_Light ") == "traffic light"
    assert head.spelling_of("pottedplant") == "pottedplant"
    assert head.spelling_of("potted plant") == "potted plant"
    assert head.spelling_of("lamp  post") == "lamp post"


def test_text_student(head, world, encoder_dir, tmp_path):
    head.save(tmp_path / "a.safetensors")
    head.save(tmp_path / "b.safetensors", note="other")
    a, b = (TextStudent(tmp_path / f"{x}.safetensors", encoder_dir) for x in "ab")
    assert a.dim == DIM
    assert a.content_hash == TextStudent(tmp_path / "a.safetensors").content_hash != b.content_hash
    out = a(world[0][:5])
    assert out.shape == (5, DIM)
    assert ((out * world[1][:5]).sum(dim=1) > 0.99).all()
    torch.testing.assert_close(a([world[0][0].upper().replace(" ", "")]), out[:1])
    assert a([]).shape == (0, DIM)


def test_file_that_is_no_head(tmp_path):
    (tmp_path / "head.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"head\.safetensors is not a text student"):
        TextStudent(tmp_path / "head.safetensors")


def test_shipped_head():
    assert student.HEAD.stat().st_size <= 3e6
    head = Head.load(student.HEAD)
    assert len(head.names) > 2000
    assert {"person", "cat", "dining table", "traffic light", "sky"} <= set(head.names)
    assert head.spelling_of("trafficlight") == "traffic light"
    names = ["cat", "dog", "road", *head.names[::100]]
    known = head(names, head.centres[[head.names.index(name) for name in names]])
    assert known.shape == (len(names), 512)
    assert known.isfinite().all()
    assert known[0] @ known[1] > known[0] @ known[2]


# tools/distil_text.py


@pytest.fixture(scope="session")
def distil():
    sys.path.insert(0, str(ROOT / "tools"))
    import distil_text

    return distil_text


@pytest.fixture
def files(world, tmp_path):
    """Names 0..79 in the set "many" (over two files), 40..119 in the set "one": another template, so an offset."""
    names, embeddings = world
    offset = torch.randn(DIM, generator=torch.Generator().manual_seed(2)) / 4
    one = F.normalize(embeddings + offset, dim=1)
    TextEmbeddings(tuple(names[:50]), embeddings[:50]).save(tmp_path / "text" / "a.many.safetensors")
    TextEmbeddings((*names[50:80], "[PAD]"), embeddings[50:81]).save(tmp_path / "text" / "b.many.safetensors")
    TextEmbeddings(tuple(names[40:]), one[40:]).save(tmp_path / "text" / "c.one.safetensors")
    return tmp_path / "text"


def test_sets_are_pooled_and_moved_to_the_target(distil, files, world):
    names, embeddings = world
    sets = distil.read_sets([files])
    assert {key: len(rows) for key, rows in sets.items()} == {"many": 80, "one": 80}
    merged, rows, noise = distil.merge(sets, "many")
    assert sorted(merged) == sorted(map(plain, names))
    truth = embeddings[[names.index(name) for name in merged]]
    only_one = torch.tensor([name in names[80:] for name in merged])
    assert (rows * truth).sum(dim=1).min() > 0.99
    unmoved = torch.stack([sets["one"][name] for name in names[80:]])
    assert (unmoved * embeddings[80:]).sum(dim=1).mean() < 0.98
    assert noise[only_one].min() > noise[~only_one].max()


def test_repeated_names_are_averaged(distil, tmp_path):
    for x, row in (("a", [1.0, 0.0]), ("b", [0.0, 1.0])):
        TextEmbeddings(("Some_Name",), torch.tensor([row])).save(tmp_path / f"{x}.t.safetensors")
    sets = distil.read_sets([tmp_path / "a.t.safetensors", tmp_path / "b.t.safetensors"])
    torch.testing.assert_close(sets["t"]["some name"], torch.full((2,), 0.5**0.5))


@pytest.mark.slow
def test_distil_end_to_end(files, world, encoder_dir, tmp_path):
    names, embeddings = world
    (tmp_path / "unseen.txt").write_text(f"{names[0]}, {names[1].upper()}\n{names[90]}\n")
    output = tmp_path / "head.safetensors"
    command = [sys.executable, "tools/distil_text.py", files, "--target", "many", "--output", output, "--folds", "3"]
    command += ["--encoder", encoder_dir, "--exclude-names", tmp_path / "unseen.txt"]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    cosines = {line[:7]: float(re.search(r"cosine (\S+)", line)[1]) for line in run.stdout.splitlines()[1:4]}
    assert cosines["trained"] > 0.98
    assert cosines["trained"] > cosines["unseen,"] > 0.8
    assert "excluded names          3 names" in run.stdout
    student = TextStudent(output, encoder_dir)
    assert len(student.head.names) == 117
    assert not {names[0], names[1], names[90]} & set(student.head.names)
    assert (student(names[2:40]) * embeddings[2:40]).sum(dim=1).mean() > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to train on"),
        (["{files}", "--target", "85templates"], "no embeddings of the template set 85templates; there are many, one"),
        (["{files}/a.many.safetensors", "{other}"], "other and many share no names"),
        (["{empty}"], "holds no .safetensors file"),
    ],
)
def test_distil_mistakes(arguments, message, distil, files, world, tmp_path, capsys):
    other = tmp_path / "z.other.safetensors"
    TextEmbeddings(("elsewhere",), world[1][:1]).save(other)
    (tmp_path / "empty").mkdir()
    places = {"files": files, "other": other, "empty": tmp_path / "empty"}
    with pytest.raises(SystemExit) as end:
        distil.main([*(argument.format(**places) for argument in arguments), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_distil_from_a_text_tower(distil, world, encoder_dir, tmp_path, monkeypatch):
    names, embeddings = world

    def embed_names(_, queries, templates):
        assert templates == "imagenet80"
        return TextEmbeddings(tuple(queries), torch.stack([embeddings[names.index(name)] for name in queries]))

    class Tower:
        text_stand_in = False

    monkeypatch.setattr(backbones, "load_backbone", lambda *_: Tower)
    monkeypatch.setattr(distil, "embed_names", embed_names)
    (tmp_path / "words.txt").write_text("\n".join(names[:60]))
    output = tmp_path / "head.safetensors"
    distil.main(
        ["--words", str(tmp_path / "words.txt"), "--output", str(output), "--encoder", str(encoder_dir), "--folds", "0"]
    )
    assert (TextStudent(output, encoder_dir)(names[:60]) * embeddings[:60]).sum(dim=1).mean() > 0.98
    Tower.text_stand_in = True
    with pytest.raises(SystemExit):
        distil.main(["--words", str(tmp_path / "words.txt"), "--output", str(output)])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat", ""),
        ("a red car", ""),
        ("left wing", ""),  # the word alone is no relation
        ("dog left of a cat", "a relation"),
        ("man holding an umbrella", "a relation"),
        ("my small old white house", "a sentence"),
        ("猫", "not English"),
        ("Käse", ""),
    ],
)
def test_names_that_cannot_be_read_are_known_by_their_words(name, reason):
    assert student.reason_to_doubt(name) == reason


def test_what_is_unlike_all_known_names_is_doubted(head, world, encoder_dir, tmp_path, monkeypatch):
    head.save(tmp_path / "head.safetensors")
    one = TextStudent(tmp_path / "head.safetensors", encoder_dir)
    known = head.names[0]
    assert one.doubts([known, "cat on a mat"]) == ["cat on a mat (a relation)"]
    monkeypatch.setattr(student, "FAMILIAR", 1.1)
    assert one.doubts([known, known + "zzz"]) == [f"{known}zzz (unlike all names that it knows)"]
    monkeypatch.setattr(student, "FAMILIAR", -1.1)
    assert one.doubts([known + "zzz"]) == []
    assert one.doubts([]) == []
