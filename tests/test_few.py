"""FEW: the choice of classes by hand and in plain loops, and what the classes left out keep."""

import itertools

import pytest
import torch

from clearclip.decode import Decoder
from clearclip.errors import UserError
from clearclip.refine import pamr
from clearclip.refine.few import LOGIT, MOST, Few, best_of_classes, worthwhile
from clearclip.text import Queries
from clearclip.windows import Maps


@pytest.fixture
def seen(make):
    """A segmenter and a view of an image of 70 × 90 pixels."""
    torch.manual_seed(0)
    segmenter = make("ClearCLIP")
    return segmenter, segmenter.view(torch.randint(256, (3, 70, 90), dtype=torch.uint8))


def queries(*classes):
    return Queries(torch.zeros(len(classes), 4), classes, tuple(map(str, range(max(classes) + 1))))


def energy(scores, kept, cost):
    """What is to be large, in cosines: the mean of the best scores less what the classes cost."""
    return float(scores[list(kept)].amax(dim=0).mean()) - cost * LOGIT * len(kept)


def greedy(scores, cost):
    """The same choice in plain loops."""
    winners = scores.argmax(dim=0).tolist()
    kept = [max(range(len(scores)), key=winners.count)]
    while len(kept) < len(scores):
        added = {
            c: sum(max(0.0, scores[c, n] - max(scores[k, n] for k in kept)) for n in range(scores.shape[1]))
            / scores.shape[1]
            for c in range(len(scores))
        }
        best = max(added, key=added.__getitem__)
        if added[best] <= cost * LOGIT:
            break
        kept.append(best)
    return sorted(kept)


def test_a_class_must_be_worth_its_cost():
    scores = torch.tensor([[0.30, 0.30, 0.30, 0.10], [0.10, 0.10, 0.10, 0.14], [0.29, 0.32, 0.10, 0.10]])
    # Of four places the first class has two; the second would add 0.04 at one of them, the third 0.02.
    assert worthwhile(scores, 0.0).tolist() == [True, True, True]
    assert worthwhile(scores, 0.75).tolist() == [True, True, False]
    assert worthwhile(scores, 1.1).tolist() == [True, False, False]


def test_of_two_names_for_one_thing_one_stays():
    """Each is best at half of the places and adds nearly nothing to the other."""
    scores = torch.tensor([[0.30, 0.30, 0.29, 0.29, 0.1], [0.29, 0.29, 0.30, 0.30, 0.1], [0.1, 0.1, 0.1, 0.1, 0.3]])
    kept = worthwhile(scores, 1.0).tolist()
    assert kept == [True, False, True]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cost", [0.0, 0.2, 1.0, 4.0])
def test_plain_loops(seed, cost):
    scores = torch.randn(9, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 20
    assert worthwhile(scores, cost).nonzero().flatten().tolist() == greedy(scores, cost)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_near_the_best_choice(seed):
    """Among all sets of classes none is better by much, in the gain over one class alone."""
    scores, cost = torch.randn(7, 40, generator=torch.Generator().manual_seed(seed)) / 20, 0.5
    kept = worthwhile(scores, cost).nonzero().flatten().tolist()
    sets = itertools.chain.from_iterable(itertools.combinations(range(7), count) for count in range(1, 8))
    best = max(energy(scores, chosen, cost) for chosen in sets)
    alone = max(energy(scores, [one], cost) for one in range(7))
    assert best - energy(scores, kept, cost) <= 0.1 * (best - alone)


def test_no_more_than_that_many():
    scores = torch.eye(MOST + 6)
    assert worthwhile(scores, 0.0).sum() == MOST


def test_a_device_that_is_not_asked_chooses_the_same(monkeypatch):
    """Where to ask would be to wait, rounds go on that change nothing."""
    scores = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) / 20
    expected = worthwhile(scores, 0.4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(worthwhile(scores, 0.4), expected)
    assert 1 < expected.sum() < 20


def test_synonyms_count_for_their_class():
    scores = torch.tensor([[0.1, 0.5], [0.3, 0.2], [0.2, 0.4]])
    assert torch.equal(best_of_classes(scores, torch.tensor([1, 0, 1]), 2), torch.tensor([[0.3, 0.2], [0.2, 0.5]]))
    assert torch.equal(best_of_classes(scores, torch.tensor([2, 0, 1]), 3), scores[[1, 2, 0]])


def test_classes_left_out_stay_below_and_keep_the_rest(seen):
    segmenter, view = seen
    scores = torch.full((3, 70, 90), 0.1)
    scores[0, :, :60] = scores[1, :, 60:] = 0.3
    scores[2, :4, :4] = 0.4  # a corner: 16 pixels of 6300, ten logits
    maps = Few(segmenter.backbone, cost=0.1)(view, Maps.of(scores), queries(0, 1, 2))
    out = maps.full()
    assert torch.equal(out[:2], scores[:2])
    assert torch.allclose(out[2, :4, :4], torch.tensor(0.3 - LOGIT))
    assert torch.equal(out[2, 4:], scores[2, 4:])
    labels = Decoder((0, 1, 2)).labels(maps)
    assert labels.unique().tolist() == [0, 1]


def test_nothing_changes_where_all_are_worth_it(seen):
    segmenter, view = seen
    scores = torch.zeros(4, 70, 90)
    for index in range(4):
        scores[index, :, 22 * index : 22 * index + 23] = 0.3
    maps = Maps.of(scores)
    assert torch.equal(Few(segmenter.backbone)(view, maps, queries(0, 1, 2, 3)).full(), scores)


def test_every_query_of_a_class_stays(seen):
    segmenter, view = seen
    scores = torch.full((3, 70, 90), 0.1)
    scores[0], scores[2, :2, :2] = 0.3, 0.35  # of one class
    maps = Few(segmenter.backbone, cost=1.0)(view, Maps.of(scores), queries(0, 1, 0))
    assert torch.equal(maps.full(), scores)


def test_it_follows_any_method(make, seen):
    _, view = seen
    image, names = view.original.permute(1, 2, 0).numpy(), list("abcdefg")
    for method in ("ClearCLIP", "ClearCLIP+PAMR", "Overview:sides=(48)+EDGES:grid=20"):
        plain, few = (make(spec)(image, names) for spec in (method, f"{method}+FEW:cost=1"))
        assert set(few.labels.flatten().tolist()) < set(plain.labels.flatten().tolist())


def test_maps_that_are_made_late_stay_late(make, seen, monkeypatch):
    """Of all classes at full size PAMR makes some at a time; then classes are chosen by what it is given."""
    _, view = seen
    monkeypatch.setattr(pamr, "SCORE_BYTES", 0)
    image, names = view.original.permute(1, 2, 0).numpy(), list("abcdefg")
    late, before = (make(f"ClearCLIP+{spec}")(image, names) for spec in ("PAMR+FEW:cost=1", "FEW:cost=1+PAMR"))
    assert (late.labels == before.labels).all()
    assert len(set(late.labels.flatten().tolist())) < len(names)


def test_wrong_cost(make):
    with pytest.raises(UserError, match="at least 0"):
        make("ClearCLIP+FEW:cost=-1")
