"""`other`: a real everything else, for pixels that none of the names describes.

Every pixel takes the best of the names that there are, however badly it fits. So names compete with a list of common
things and stuff, `other.txt`, and whatever one of these wins is other. Words of the list that mean what one of the
names means take no part: they are found by the similarity of their text embeddings. docs/usage.md has what this was
measured against: thresholds on the scores of the names alone.
"""

import functools
import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from clearclip.errors import UserError
from clearclip.vocabulary import Vocabulary, plain

log = logging.getLogger(__name__)

OTHER = "other"
NAMES = (OTHER, "background", "everything else")  # a class so called is other
SHIPPED = Path(__file__).with_name("other.txt")
SAME = 0.45  # from this cosine on, without what all names have in common, two names mean the same
ENOUGH = 20  # words whose mean is what all names have in common


@dataclass(frozen=True)
class OtherWords:
    """Words for what else there is.

    Attributes:
        words: [W] each once.
        groups: [W] for each word that of its group, such as "animal" for "dog".
        alike: whether words that mean what a name means take no part, or only those that are written like it.
    """

    words: tuple[str, ...]
    groups: tuple[str, ...]
    alike: bool = False

    @classmethod
    def of(cls, words: Iterable[str]) -> "OtherWords":
        """From words of one's own, each in a group of its own. Raises UserError as `Vocabulary.of` does."""
        listed = Vocabulary.of(words).queries
        return cls(listed, listed)

    @classmethod
    @functools.cache
    def shipped(cls) -> "OtherWords":
        """The list of this package: a line is `group: word, word`."""
        groups: dict[str, str] = {}
        for line in SHIPPED.read_text(encoding="utf-8").splitlines():
            group, _, words = line.partition("#")[0].partition(":")
            groups |= {word.strip(): group.strip() for word in words.split(",") if word.strip()}
        return cls(tuple(groups), tuple(groups.values()), alike=True)

    def among(self, known: Container[str]) -> "OtherWords":
        """Those that text embeddings have. Raises UserError where there are none; says once that some are missing."""
        kept = [(word, group) for word, group in zip(self.words, self.groups) if word in known]
        if not kept:
            raise UserError(
                "the text embeddings have none of the words for other, such as "
                f"{', '.join(self.words[:3])}: give embeddings that have them, or a list of words that are there"
            )
        if len(kept) < len(self.words):
            _warn_missing(len(kept), len(self.words))
        words, groups = zip(*kept)
        return replace(self, words=words, groups=groups)

    def kept(self, names: Sequence[str], text: Tensor, own: Tensor) -> list[int]:
        """Which words mean something else than all of `names`.

        text [Q, dim] and own [W, dim] are the embeddings, unit rows, of names and words. A whole group is left out
        where its own word is one of the names: "dog" is no other to "animal".
        """
        known = {plain(name) for name in names}
        near = [False] * len(self.words)
        if self.alike and len(self.words) >= ENOUGH:
            common = own.mean(dim=0)  # CLIP's text has a large part that all names share
            alike = F.normalize(own - common, dim=-1) @ F.normalize(text - common, dim=-1).T  # [W, Q]
            near = (alike.amax(dim=1) >= SAME).tolist()
        return [
            row
            for row, (word, group) in enumerate(zip(self.words, self.groups))
            if not near[row] and not {plain(word), plain(group)} & known
        ]


@functools.cache
def _warn_missing(kept: int, count: int) -> None:
    log.warning(
        "the text embeddings have %d of the %d words for other: what the missing ones would claim goes to the names",
        kept, count,
    )  # fmt: skip


def read_other(other: object) -> OtherWords | None:
    """The setting `other`: True for the shipped words, a list of one's own, False or None for no such class.

    Raises UserError for anything else.
    """
    if other is None or other is False:
        return None
    if other is True:
        return OtherWords.shipped()
    if isinstance(other, OtherWords):
        return other
    if isinstance(other, list | tuple):
        return OtherWords.of(other)
    raise UserError(f"other must be True, False or a list of words for what else there is, not {other!r}")


def set_apart(vocabulary: Vocabulary) -> tuple[str, tuple[str, ...], Vocabulary]:
    """A vocabulary without its class that is called other, background or everything else.

    Returns what that class is called, "other" where there is none; those of its names that say what is looked for;
    and the other classes. Raises UserError where there are none.
    """
    general = {plain(name) for name in NAMES}
    chosen = [names for names in vocabulary.names if plain(names[0]) in general]
    rest = tuple(names for names in vocabulary.names if names not in chosen)
    if not rest:
        raise UserError(f"{vocabulary.classes[0]!r} alone leaves nothing to look for; name something else, too")
    own = chosen[0] if chosen else (OTHER,)
    return own[0], tuple(name for name in own if plain(name) not in general), Vocabulary(rest)


def class_names(vocabulary: Vocabulary, other: bool) -> tuple[str, ...]:
    """The names of a result's classes, in the order of its labels."""
    if not other:
        return vocabulary.classes
    called, _, rest = set_apart(vocabulary)
    return (called, *rest.classes)
