"""Train the text student from CLIP text embeddings: saved ones, or those of a text tower at hand.

    python tools/distil_text.py EMBEDDINGS... --target 85templates --output head.safetensors
    python tools/distil_text.py --words names.txt --backbone ViT-B-16 --pretrained openai --output head.safetensors

EMBEDDINGS are files that `TextEmbeddings.save` wrote, or folders of them, of one CLIP model. The same names were
often embedded with different prompt templates. Files are named `<vocabulary>.<templates>.safetensors`; those of one
template set are pooled, and a linear map fitted on the names that two sets share moves every set to the target set.
"""

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from clearclip.errors import UserError, program
from clearclip.offline import embedded
from clearclip.offline.student import Head, SentenceEncoder, meaning, plain
from clearclip.text import TextEmbeddings, embed_names
from clearclip.vocabulary import load_vocabulary

MAP_RIDGE = 0.1  # of the linear map between template sets
NOISE = 0.1  # of an embedding in the target set, against a kernel of 1
NOISE_PER_DISTANCE = 5.0  # more of it for an embedding that was moved: times 1 - cosine of the map on new names

Embedded = dict[str, Tensor]  # name → unit embedding [D]


@program
def main(arguments: Sequence[str] | None = None):
    args = parse(arguments)
    sets = read_sets(args.embeddings)
    if args.words:
        sets = {"words": embed_words(args)} | sets
    if not sets:
        raise UserError("nothing to train on: give files of text embeddings, or --words FILE")
    target = args.target or next(iter(sets))
    if target not in sets:
        raise UserError(f"no embeddings of the template set {target}; there are {', '.join(sets)}")
    excluded = {plain(name) for name in load_vocabulary(args.exclude_names).queries} if args.exclude_names else set()

    truth = dict(zip(*merge(sets, target)[:2]))
    meanings = Meanings(truth, SentenceEncoder(args.encoder or embedded.sentence_encoder_dir()))
    head = train(sets, target, excluded, meanings)
    print(f"{len(head.names)} names, moved to {target}; mean cosine and share of names at rank 1")
    report("trained names", [score(head, head.names, truth, meanings, args.candidates)])
    unseen = [name for name in truth if name in excluded]
    if unseen:
        report("excluded names", [score(head, unseen, truth, meanings, args.candidates)])
    if args.folds > 1:
        report(f"unseen, {args.folds} folds", list(cross_validate(sets, target, truth, meanings, excluded, args)))
    head.save(args.output, target=target, encoder=args.encoder or embedded.SENTENCES.requirement)
    print(f"wrote {args.output} ({Path(args.output).stat().st_size / 1e6:.1f} MB)")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", nargs="*", type=Path, help="files of saved text embeddings, or folders of them")
    parser.add_argument("--output", required=True, help="the head, a .safetensors file")
    parser.add_argument("--target", help="template set that the student stands for (default: the first)")
    parser.add_argument("--exclude-names", metavar="FILE", help="class file of names to keep out of training")
    parser.add_argument("--folds", type=int, default=5, help="of cross-validation; 0 for none (default: 5)")
    parser.add_argument("--candidates", type=int, default=590, help="names in the rank-1 test (default: 590)")
    parser.add_argument("--encoder", help="folder of a sentence encoder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--words", metavar="FILE", help="class file of names to embed with a text tower")
    parser.add_argument("--backbone", default="ViT-B-16", help="of the text tower (default: ViT-B-16)")
    parser.add_argument("--pretrained", default="openai", help="weights of the text tower (default: openai)")
    parser.add_argument("--templates", default="imagenet80", help="for --words (default: imagenet80)")
    parser.add_argument("--device", default="auto", help="for --words (default: auto)")
    return parser.parse_args(arguments)


def read_sets(paths: Iterable[Path]) -> dict[str, Embedded]:
    """Template set → its names and embeddings, averaged where files repeat a name."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for path in paths:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no .safetensors file")
        for file in files:
            text = TextEmbeddings.load(file)
            names = found.setdefault(file.stem.rpartition(".")[2], {})
            for name, embedding in zip(text.names, text.embeddings):
                if not name.startswith("["):  # a tokenizer's markers, such as [PAD]
                    names.setdefault(plain(name), []).append(embedding)
    return {key: {name: _mean(rows) for name, rows in names.items()} for key, names in found.items()}


def embed_words(args: argparse.Namespace) -> Embedded:
    from clearclip.backbones import load_backbone

    backbone = load_backbone(args.backbone, args.pretrained, args.device)
    if backbone.text_stand_in:
        raise UserError(f"{args.pretrained} has no text tower to learn from; give weights that have one")
    text = embed_names(backbone, load_vocabulary(args.words).queries, args.templates)
    return {plain(name): embedding for name, embedding in zip(text.names, text.embeddings)}


def merge(sets: dict[str, Embedded], target: str, exclude: Collection[str] = ()) -> tuple[list[str], Tensor, Tensor]:
    """One embedding a name, in the target set: names, embeddings [N, D] and noise [N].

    A name in several sets gets their average, each weighted by how well its set maps onto the target's.
    """
    total: dict[str, Tensor] = {}
    weight: dict[str, float] = {}
    for key, embedded_names in sets.items():
        names = [name for name in embedded_names if name not in exclude]
        rows = torch.stack([embedded_names[name] for name in names])
        distance = 1e-3
        if key != target:
            shared = [i for i, name in enumerate(names) if name in sets[target]]
            if len(shared) < 2:
                raise UserError(f"the template sets {key} and {target} share no names to be compared by")
            goal = torch.stack([sets[target][names[i]] for i in shared])
            distance += map_distance(rows[shared], goal)
            rows = move(rows[shared], goal, rows)
        for name, row in zip(names, rows):
            total[name] = total.get(name, 0) + row / distance
            weight[name] = weight.get(name, 0) + 1 / distance
    noise = torch.tensor([NOISE + NOISE_PER_DISTANCE / weight[name] for name in total])
    return list(total), F.normalize(torch.stack(list(total.values())), dim=1), noise


def move(source: Tensor, goal: Tensor, rows: Tensor) -> Tensor:
    """Unit rows [N, D] under the ridge regression that takes source to goal, both [n, D]."""
    centred = source - source.mean(dim=0)
    change = goal - goal.mean(dim=0) - centred  # shrinks to "add the difference of the means"
    linear = torch.linalg.solve(centred.T @ centred + MAP_RIDGE * torch.eye(source.shape[1]), centred.T @ change)
    rows = rows - source.mean(dim=0)
    return F.normalize(rows + rows @ linear + goal.mean(dim=0), dim=1)


def map_distance(source: Tensor, goal: Tensor) -> float:
    """Mean of 1 - cosine between moved rows and their goal, on rows that the map has not seen."""
    index = torch.arange(len(source)) % min(5, len(source))
    folds = [(index == fold, index != fold) for fold in index.unique()]
    moved = [(move(source[seen], goal[seen], source[new]) * goal[new]).sum(dim=1) for new, seen in folds]
    return 1 - torch.cat(moved).mean().item()


class Meanings(dict):
    """Name → its meaning [E]."""

    def __init__(self, names: Iterable[str], encoder: SentenceEncoder):
        names = list(names)
        super().__init__(zip(names, meaning(names, encoder)))

    def of(self, names: Iterable[str]) -> Tensor:
        return torch.stack([self[name] for name in names])


def train(sets: dict[str, Embedded], target: str, exclude: Collection[str], meanings: Meanings) -> Head:
    names, embeddings, noise = merge(sets, target, exclude)
    return Head.fit(names, meanings.of(names), embeddings, noise)


def score(head: Head, names: Sequence[str], truth: Embedded, meanings: Meanings, candidates: int) -> dict[str, float]:
    """Of `names`: mean cosine of student and truth, and how often one is the nearest to the other.

    The contest for rank 1 is among `names` and as many trained names as make up `candidates`.
    """
    rivals = [name for name in head.names if name not in set(names)][: max(0, candidates - len(names))]
    pool = [*names, *rivals]
    true = torch.stack([truth[name] for name in pool])
    cosine = head(pool, meanings.of(pool)) @ true.T  # [student, true]
    n = torch.arange(len(names))
    return {
        "names": len(names),
        "candidates": len(pool),
        "cosine": cosine[n, n].mean().item(),
        "truth finds student": (cosine[:, n].argmax(dim=0) == n).float().mean().item(),
        "student finds truth": (cosine[n].argmax(dim=1) == n).float().mean().item(),
    }


def cross_validate(
    sets: dict[str, Embedded],
    target: str,
    truth: Embedded,
    meanings: Meanings,
    excluded: set[str],
    args: argparse.Namespace,
) -> Iterable[dict[str, float]]:
    names = [name for name in truth if name not in excluded]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    for fold in range(args.folds):
        unseen = [names[i] for i in order[fold :: args.folds]]
        yield score(train(sets, target, excluded | set(unseen), meanings), unseen, truth, meanings, args.candidates)


def report(title: str, scores: list[dict[str, float]]) -> None:
    mean = {key: sum(score[key] for score in scores) / len(scores) for key in scores[0]}
    print(
        f"{title:<18} {mean['names']:6.0f} names  cosine {mean['cosine']:.4f}  rank 1 of {mean['candidates']:.0f}: "
        f"truth finds student {mean['truth finds student']:.1%}, student finds truth {mean['student finds truth']:.1%}"
    )


def _mean(rows: list[Tensor]) -> Tensor:
    return F.normalize(torch.stack(rows).mean(dim=0), dim=0)


if __name__ == "__main__":
    main()
