"""The text of names, from a text tower and templates, or out of text embeddings that were given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.other import OtherWords
from clearclip.text import TextEmbeddings, check_told_apart, embed_names
from clearclip.vocabulary import Vocabulary


class Embedder:
    """Rows of text, unit length, on the CPU, for vocabularies that come again with every image.

    Args:
        templates, embeddings, renamed: as `templates`, `text_embeddings` and `text_names` of a `Segmenter`.

    Raises:
        UserError: where embeddings do not belong to the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        templates: str | Sequence[str] = "imagenet80",
        embeddings: str | Path | TextEmbeddings | None = None,
        renamed: Mapping[str, str] | str | Path | None = None,
    ):
        if embeddings is not None and not isinstance(embeddings, TextEmbeddings):
            embeddings = TextEmbeddings.load(embeddings)
        if embeddings is not None:
            embeddings.check(backbone)
        self.backbone, self.templates = backbone, templates
        self.embeddings, self.renamed = embeddings, renamed
        self._kept: dict[tuple[str, ...], TextEmbeddings] = {}
        self._told_apart: Vocabulary | None = None

    def text(self, vocabulary: Vocabulary, words: Sequence[str] = ()) -> tuple[Tensor, tuple[int, ...]]:
        """The text [Q + W, dim] of a vocabulary's names, W words after them, and the class of each of the Q."""
        if self.embeddings is not None:
            text, query_class = self.embeddings.select(vocabulary, self.renamed)
            text = torch.cat([text, self.embeddings.rows(words)]) if words else text
        else:
            text, query_class = self._embed((*vocabulary.queries, *words)), vocabulary.query_class
        if vocabulary != self._told_apart:  # once: images come one by one
            check_told_apart(vocabulary, text[: len(query_class)], query_class)
            self._told_apart = vocabulary
        return text, query_class

    def other(self, own: tuple[str, ...], words: OtherWords, names: Sequence[str], text: Tensor) -> Tensor:
        """The text [W, dim] of what else there is: `own` words of that class, and those that mean none of `names`."""
        if self.embeddings is not None:
            words = words.among(self.embeddings)
            own = tuple(name for name in own if name in self.embeddings)
            mine, against = self.embeddings.rows(own), self.embeddings.rows(words.words)
        else:
            mine, against = self._embed(own), self._embed(words.words)
        return torch.cat([mine, against[words.kept(names, text, against)]])

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        """[Q, dim]. The last two are kept: images come one by one, and the cache on disk may be one not to write to."""
        if not names:
            return torch.empty(0, self.backbone.dim)
        if names not in self._kept:
            while len(self._kept) > 2:
                self._kept.pop(next(iter(self._kept)))
            self._kept[names] = embed_names(self.backbone, names, self.templates)
        return self._kept[names].embeddings
