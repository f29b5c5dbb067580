"""A small stand-in for the text tower of CLIP ViT-B/16, for machines that reach no model hub.

A new name is placed in CLIP's joint space by a vote of names whose embeddings are known: kernel ridge
regression, where two names are alike when a sentence encoder finds them alike in meaning and when they share
runs of letters. `tools/distil_text.py` trains it; `assets/text_student.md` says on what and how good it is.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.errors import UserError
from clearclip.offline.embedded import sentence_encoder_dir
from clearclip.paths import atomic_write

HEAD = Path(__file__).with_name("assets") / "text_student.safetensors"
PROMPTS = ("{}", "a photo of a {}")
WIDTH = 0.35  # of the meaning kernel, in cosine
SPELLING = 0.2  # share of the spelling kernel
RUNS = (2, 3, 4)  # letters
FAMILIAR = 0.24  # likeness to the nearest known name; made-up words have 0.17 to 0.24, "meadow" and "woman" more
RELATIONS = frozenset((
    *("above", "against", "behind", "below", "beneath", "beside", "between", "by", "carrying", "from", "holding", "in"),
    *("inside", "left", "near", "next", "not", "of", "on", "over", "riding", "right", "that", "to", "toward", "under"),
    *("upon", "wearing", "which", "who", "with", "without"),
))  # fmt: skip


class TextStudent:
    """Names → embeddings that stand for CLIP's prompt ensembles. The sentence encoder loads at the first call."""

    def __init__(self, head: str | Path = HEAD, encoder_dir: str | Path | None = None):
        """Raises UserError when `head` is not a file that `Head.save` wrote."""
        self.head = Head.load(head)
        self.dim = self.head.mean.shape[0]
        self.content_hash = hashlib.sha256(Path(head).read_bytes()).hexdigest()
        self._encoder_dir = encoder_dir

    @cached_property
    def encoder(self) -> "SentenceEncoder":
        return SentenceEncoder(self._encoder_dir or sentence_encoder_dir())

    def __call__(self, names: Sequence[str]) -> Tensor:
        """[Q, dim] float32, unit rows. Raises UserError when the sentence encoder cannot be fetched."""
        names = [self.head.spelling_of(name) for name in names]
        return self.head(names, meaning(names, self.encoder))

    def doubts(self, names: Sequence[str]) -> list[str]:
        """Names that it cannot be trusted with, each with the reason: "dog left of a cat (a relation)".

        It reads names in English. What it makes of relations and sentences is little more than their nouns, and of a
        word that is like none it knows, in meaning or in spelling, it makes nothing certain.
        """
        spelt = [self.head.spelling_of(name) for name in names]
        unknown = [name for name in spelt if not self.head.knows(name) and not reason_to_doubt(name)]
        alike = self.head.likeness(unknown, meaning(unknown, self.encoder)).amax(dim=1).tolist() if unknown else []
        strange = {name for name, likeness in zip(unknown, alike) if likeness < FAMILIAR}
        found = []
        for name, as_spelt in zip(names, spelt):
            reason = "" if self.head.knows(as_spelt) else reason_to_doubt(as_spelt)
            if reason or as_spelt in strange:
                found.append(f"{name} ({reason or 'unlike all names that it knows'})")
        return found


def reason_to_doubt(name: str) -> str:
    """Why a name is one that the student cannot read, by its words alone; empty for most."""
    if any(letter.isalpha() and not unicodedata.name(letter, "").startswith("LATIN") for letter in name):
        return "not English"
    words = plain(name).split()
    if len(words) > 2 and RELATIONS & set(words[1:-1]):
        return "a relation"
    return "a sentence" if len(words) > 4 else ""


class SentenceEncoder:
    """A BERT-like encoder in a local folder, its token outputs averaged, as all-MiniLM-L6-v2 was trained."""

    def __init__(self, folder: str | Path):
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
        if bar:
            logging.enable_progress_bar()

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str], batch_size: int = 64) -> Tensor:
        """[S, E] mean token output of each sentence."""
        out = torch.empty(len(sentences), self.model.config.hidden_size)
        for start in range(0, len(sentences), batch_size):
            batch = list(sentences[start : start + batch_size])
            inputs = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            tokens = self.model(**inputs).last_hidden_state  # [B, T, E]
            mask = inputs["attention_mask"].unsqueeze(-1)  # [B, T, 1]
            out[start : start + len(batch)] = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
        return out


def meaning(names: Sequence[str], encoder: SentenceEncoder) -> Tensor:
    """[Q, E] unit rows: the sentence embeddings of a name's prompts, averaged."""
    prompts = [F.normalize(encoder([prompt.format(name) for name in names]), dim=1) for prompt in PROMPTS]
    return F.normalize(torch.stack(prompts).sum(dim=0), dim=1)


class Spelling:
    """Cosine similarity of names as sets of letter runs, in which rarer runs count more (tf-idf)."""

    def __init__(self, names: Sequence[str]):
        self.count = len(names)
        self.rows: dict[str, list[int]] = {}  # letter run → the names that have it
        for row, name in enumerate(names):
            for run in letter_runs(name):
                self.rows.setdefault(run, []).append(row)
        self.norms = torch.tensor([self._norm(name) for name in names])

    def __call__(self, names: Sequence[str]) -> Tensor:
        """[Q, N] similarity of Q names to the N known ones."""
        out = torch.zeros(len(names), self.count)
        for row, name in zip(out, names):
            for run in letter_runs(name):
                row[self.rows.get(run, [])] += self._weight(run) ** 2
            row /= self._norm(name) * self.norms
        return out

    def _weight(self, run: str) -> float:
        return math.log(1 + self.count / len(self.rows.get(run, "?")))  # an unknown run is as rare as can be

    def _norm(self, name: str) -> float:
        return math.sqrt(sum(self._weight(run) ** 2 for run in letter_runs(name)))


def letter_runs(name: str) -> tuple[str, ...]:
    """The runs of 2 to 4 characters in a name, its ends marked by spaces, each once.

    In one order, not a set's, which differs from process to process: what is summed over them then has the same digits.
    """
    text = f" {name} "
    return tuple(dict.fromkeys(text[at : at + length] for length in RUNS for at in range(len(text) - length + 1)))


def plain(name: str) -> str:
    """Lower case, single spaces, no underscores: "Alarm_Clock" → "alarm clock"."""
    return " ".join(name.lower().replace("_", " ").split())


@dataclass(frozen=True)
class Head:
    """Kernel ridge regression from names to CLIP's joint space."""

    names: tuple[str, ...]  # the N known names
    centres: Tensor  # [N, E] their meaning, unit rows
    votes: Tensor  # [N, D] how far each pulls a name that is like it away from the mean
    mean: Tensor  # [D] mean of the known embeddings
    spread: float  # mean distance of the known embeddings from it

    @classmethod
    def fit(cls, names: Sequence[str], centres: Tensor, embeddings: Tensor, noise: Tensor) -> "Head":
        """From the names, their `meaning` [N, E], embeddings [N, D] and noise variances [N] of a kernel of 1."""
        mean = embeddings.mean(dim=0)
        offsets = embeddings - mean  # [N, D]
        likeness = _likeness(centres, centres, Spelling(names)(names))  # [N, N]
        votes = torch.linalg.solve(likeness + noise.diag(), offsets)
        return cls(tuple(names), centres, votes, mean, offsets.norm(dim=1).mean().item())

    def __call__(self, names: Sequence[str], meanings: Tensor) -> Tensor:
        """Names and their `meaning` [Q, E] → embeddings [Q, D], unit rows."""
        likeness = self.likeness(names, meanings)
        offsets = likeness @ self.votes  # [Q, D]
        # The ridge leaves a name nearer to the mean the less it is like any known one, and there it would lose to
        # familiar names: lengthen its offset towards the usual length.
        length = offsets.norm(dim=1, keepdim=True).clamp_min(1e-6)
        unfamiliar = 1 - likeness.amax(dim=1, keepdim=True).clamp(max=1)
        return F.normalize(self.mean + offsets * (self.spread / length) ** (unfamiliar / 2), dim=1)

    def likeness(self, names: Sequence[str], meanings: Tensor) -> Tensor:
        """[Q, N] how alike names, whose `meaning` is [Q, E], are to the known ones; 1 for the same name."""
        return _likeness(meanings, self.centres, self._spelling(names))

    def spelling_of(self, name: str) -> str:
        """The known spelling of a name written without its spaces ("trafficlight"), else the `plain` name."""
        name = plain(name)
        return name if name in self._known else self._joined.get(name.replace(" ", ""), name)

    def knows(self, name: str) -> bool:
        """Whether a name, as `spelling_of` gives it, is one of the known ones."""
        return name in self._known

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.names)

    @cached_property
    def _known(self) -> set[str]:
        return set(self.names)

    @cached_property
    def _joined(self) -> dict[str, str]:
        return {name.replace(" ", ""): name for name in self.names}

    def save(self, path: str | Path, **notes: str) -> None:
        """Write a .safetensors file, matrices as int8 with a scale a row; `notes` go into its metadata."""
        from safetensors.torch import save_file

        tensors = {"mean": self.mean, "spread": torch.tensor(self.spread)}
        for name in ("centres", "votes"):
            matrix = getattr(self, name)
            scale = matrix.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127  # [N, 1]
            tensors |= {name: (matrix / scale).round().to(torch.int8).contiguous(), f"{name}_scale": scale}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"names": json.dumps(self.names)} | notes)

    @classmethod
    def load(cls, path: str | Path) -> "Head":
        """Read what `save` wrote. Raises UserError naming a file that is not of that form."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = tuple(json.loads(file.metadata()["names"]))
                centres, votes = (file.get_tensor(x) * file.get_tensor(f"{x}_scale") for x in ("centres", "votes"))
                return cls(names, centres, votes, file.get_tensor("mean"), file.get_tensor("spread").item())
        except Exception as error:
            raise UserError(
                f"{path} is not a text student ({type(error).__name__}); tools/distil_text.py writes one"
            ) from error


def _likeness(a: Tensor, b: Tensor, spelling: Tensor) -> Tensor:
    """The kernel [Q, N] of meanings a [Q, E] and b [N, E] and their spelling similarity; 1 for the same name."""
    return (1 - SPELLING) * torch.exp((a @ b.T - 1) / WIDTH) + SPELLING * spelling
