"""Prompt-ensemble text embeddings, computed once and kept on disk."""

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clearclip.backbones import Backbone
from clearclip.errors import UserError, one_line
from clearclip.paths import atomic_write, cache_dir, check_regular, locked
from clearclip.vocabulary import LONG, Vocabulary, check_tokens, load_templates, plain
from clearclip.weights import EMBEDDED

if TYPE_CHECKING:
    from clearclip.offline.student import TextStudent

log = logging.getLogger(__name__)

CERTAIN_BYTES = 60  # a prompt of no more fits into any context: a token has one at least
BATCH_TOKENS = 4096  # of trimmed prompts in one pass of the text tower
PROVENANCE = ("model", "note", "backbone")
DOUBT = "; not to be trusted with "


@dataclass(frozen=True)
class Queries:
    """What is looked for.

    Attributes:
        text: [Q, dim], unit rows, as the vocabulary was embedded.
        query_class: the class index of each row.
        names: of the classes.
        prepared: the text as the method's `scores` takes it; by default `text`.
        everything_else: whether class 0 is what none of the names describes, see `clearclip.other`.
    """

    text: Tensor
    query_class: tuple[int, ...]
    names: tuple[str, ...]
    prepared: Tensor | None = None
    everything_else: bool = False

    @property
    def for_scores(self) -> Tensor:
        """What the method's `scores` takes."""
        return self.text if self.prepared is None else self.prepared


@dataclass(frozen=True)
class TextEmbeddings:
    """Names and their embeddings [Q, dim], unit rows, float32.

    `model` and `note` say in free words where they come from; `backbone`, as "arch:tag", says which of ours made them.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    model: str = ""
    note: str = ""
    backbone: str = ""

    def __post_init__(self) -> None:
        shape = tuple(self.embeddings.shape)
        if len(shape) != 2 or shape[0] != len(self.names):
            raise ValueError(f"{len(self.names)} names need embeddings [{len(self.names)}, dim], not {list(shape)}")

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file: tensor `embeddings`, metadata `names` (a JSON list) and the other fields."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        metadata = {"names": json.dumps(list(self.names)), **{key: getattr(self, key) for key in PROVENANCE}}
        with atomic_write(path) as temporary:
            try:
                save_file({"embeddings": self.embeddings.float().contiguous().cpu()}, temporary, metadata)
            except SafetensorError as error:  # a full disk, say
                raise OSError(None, str(error), str(path)) from error

    @classmethod
    def load(cls, path: str | Path) -> "TextEmbeddings":
        """Read what `save` wrote; rows are normalised. Raises UserError naming a file that is not of that form."""
        from safetensors import safe_open

        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names, embeddings = json.loads(metadata["names"]), file.get_tensor("embeddings")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("names are no list of strings")
            if not embeddings.is_floating_point():
                raise ValueError(f"embeddings are {str(embeddings.dtype).removeprefix('torch.')}")
            names, embeddings = tuple(names), F.normalize(embeddings.float(), dim=-1)
            _check_rows(names, embeddings)
            return cls(names, embeddings, *(metadata.get(key, "") for key in PROVENANCE))
        except FileNotFoundError:
            raise UserError(
                f"text embeddings {path} do not exist; give a file that TextEmbeddings.save wrote"
            ) from None
        except Exception as error:
            raise UserError(
                f"{path} does not hold text embeddings ({one_line(error)}); it must be a .safetensors file with "
                "a finite tensor `embeddings` [Q, dim] and the metadata `names`, a JSON list of Q names"
            ) from error

    def __contains__(self, name: object) -> bool:
        """Whether there is a row for a name. Case, spaces, hyphens and underscores do not count."""
        return isinstance(name, str) and plain(name) in self._known

    @functools.cached_property
    def _known(self) -> set[str]:
        return {plain(name) for name in self.names}

    def check(self, backbone: Backbone) -> None:
        """Raise UserError where the rows cannot be compared with a backbone's features; warn where another made them.

        Embeddings that do not say which backbone made them are not judged.
        """
        if self.embeddings.shape[1] != backbone.dim:
            raise UserError(
                f"the text embeddings have {self.embeddings.shape[1]} dimensions, {backbone.name} has {backbone.dim}; "
                "give embeddings of the same model"
            )
        if self.backbone not in ("", _identity(backbone)):
            warnings.warn(
                f"the text embeddings were made by {self.backbone}, the images are seen by {_identity(backbone)}: "
                "unless these are the same weights, give embeddings of the same model",
                stacklevel=3,
            )

    def select(
        self, vocabulary: Vocabulary, renamed: Mapping[str, str] | str | Path | None = None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Rows for a vocabulary, matched by name: embeddings [Q', dim] and the class index of each row.

        Case, spaces, hyphens and underscores do not count. A class takes those of its synonyms that are here.
        `renamed`, {name in the vocabulary: name here} or a JSON file of it, says which row a name takes.
        Raises UserError naming the classes of which no name is here, and a class that shares all its rows with
        earlier ones, which could never win.
        """
        other = _renamed(renamed)
        row = {plain(name): index for index, name in reversed(list(enumerate(self.names)))}
        found = [
            (row[plain(other.get(name, name))], index)
            for name, index in zip(vocabulary.queries, vocabulary.query_class)
            if plain(other.get(name, name)) in row
        ]
        present = {index for _, index in found}
        missing = [name for index, name in enumerate(vocabulary.classes) if index not in present]
        if missing:
            raise UserError(
                f"the text embeddings have no row for {', '.join(map(self._with_near, missing[:8]))}"
                f"{' …' if missing[8:] else ''}; add the name that they use to that line of the class file, after a "
                "comma, or say it by model.text_names"
            )
        rows, query_class = zip(*found)
        self._check_shared(vocabulary, rows, query_class)
        return self.embeddings[list(rows)], query_class

    def _check_shared(self, vocabulary: Vocabulary, rows: Sequence[int], query_class: Sequence[int]) -> None:
        """Raise UserError for a class that can never win, unless its names, as they are written, say so already."""
        present: list[list[str]] = [[] for _ in vocabulary.names]
        for row, index in zip(rows, query_class):
            present[index].append(self.names[row])
        shadowed = Vocabulary(tuple(map(tuple, present))).shadowed(rows)
        for late in shadowed.keys() - vocabulary.shadowed().keys():
            first, second = vocabulary.classes[shadowed[late]], vocabulary.classes[late]
            raise UserError(
                f"the text embeddings have one row for the classes {first!r} and {second!r}, of which the second can "
                "never win; give embeddings that tell them apart"
            )

    def _with_near(self, name: str) -> str:
        """A name with those of the rows that are written like it."""
        near = difflib.get_close_matches(name, self.names, n=2)
        return f"{name} (near: {', '.join(near)})" if near else name

    def rows(self, words: Sequence[str]) -> Tensor:
        """The rows [W, dim] of words that a method scores besides the classes.

        Raises UserError naming those that are not here.
        """
        row = {plain(name): index for index, name in enumerate(self.names)}
        if missing := [word for word in words if plain(word) not in row]:
            raise UserError(
                f"the text embeddings have no row for {', '.join(missing[:8])}{' …' if missing[8:] else ''}, which the "
                "method scores besides the classes; add these words to the file, or set its option words=None"
            )
        return self.embeddings[[row[plain(word)] for word in words]]


def _check_rows(names: Sequence[str], rows: Tensor) -> None:
    """Raise ValueError for rows [Q, dim] that are not finite, or all 0, and for a name with two different ones."""
    if not rows.isfinite().all():
        raise ValueError("not finite")
    if empty := [name for name, row in zip(names, rows) if not row.any()]:
        raise ValueError(f"the row of {_brief(empty[0])} is all 0")
    first: dict[str, Tensor] = {}
    for name, row in zip(names, rows):
        if not torch.equal(first.setdefault(name, row), row):
            raise ValueError(f"{_brief(name)} has two different rows")


def _renamed(renamed: Mapping[str, str] | str | Path | None) -> Mapping[str, str]:
    """Names of rows by names of a vocabulary, from a JSON file too. Raises UserError where it is no such mapping."""
    mapping: object = renamed
    if isinstance(renamed, str | Path):
        try:
            mapping = json.loads(Path(renamed).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a NUL in the path
            raise UserError(f"text_names {renamed} cannot be read ({error}); give a JSON object of names") from None
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping) or not all(isinstance(name, str) for pair in mapping.items() for name in pair):
        raise UserError(f"text_names must map names to names of rows, or be a JSON file that does, not {renamed!r}")
    return mapping


def _identity(backbone: Backbone) -> str:
    """A backbone as "arch:tag"; the embedded image tower is OpenAI's."""
    return f"{backbone.name}:{'openai' if backbone.tag == EMBEDDED else backbone.tag}"


def embed_names(
    backbone: Backbone, names: Sequence[str], templates: str | Sequence[str] = "imagenet80", cache: bool = True
) -> TextEmbeddings:
    """Embed each name as the normalised mean of the normalised embeddings of its prompts.

    `templates` is a set's name, a template file or the templates themselves. With `cache`, results are kept
    under a key made of the weights' content, the templates and the names; an entry that is damaged is rebuilt.
    The embedded weights have no text tower: their text student reads names, whatever the templates.
    Raises UserError for a template set that does not exist and for a template without exactly one `{}`.
    """
    templates = load_templates(templates) if isinstance(templates, str | Path) else tuple(templates)
    wrong = [t for t in templates if t.count("{}") != 1 or t.count("{") + t.count("}") != 2]
    if wrong or not templates:
        raise UserError(f"each template must hold {{}} once and no other brace; given {(wrong or ['none'])[0]!r}")
    unique = tuple(dict.fromkeys(names))
    student = _student() if backbone.text_stand_in else None
    source = (student or backbone).content_hash
    identity = json.dumps([source, backbone.checkpoint.config, str(backbone.dtype), templates, unique], default=str)
    path = cache_dir() / "text" / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"

    def make() -> TextEmbeddings:
        if student:
            rows, note = student(list(unique)), _student_note(student, unique)
        else:
            rows, note = _embed(backbone, unique, templates), f"mean of {len(templates)} templates"
        return TextEmbeddings(unique, rows, f"{backbone.name} {backbone.tag}", note, _identity(backbone))

    known = _kept(path, unique, backbone.dim, make) if cache else make()
    warn_of_cut(backbone, unique, templates)
    if student:
        _say_stand_in()
        if DOUBT in known.note:
            _warn_once(known.note.partition(DOUBT)[2])
    row = {name: index for index, name in enumerate(unique)}
    rows = known.embeddings[[row[name] for name in names]]
    return TextEmbeddings(tuple(names), rows, known.model, known.note, _identity(backbone))


SAME = 1e-3  # distance of unit rows below which nothing but rounding tells them apart


def check_told_apart(vocabulary: Vocabulary, rows: Tensor, query_class: Sequence[int]) -> None:
    """Raise UserError for a class all of whose rows [Q, dim] earlier classes have: it could never win.

    So it is with names that agree as far as the text encoder reads. Those that are alike as they are written have been
    judged where the vocabulary was made, and are not judged again; in a vocabulary that is long all are only warned of.
    """
    nearest = [(torch.cdist(part, rows) < SAME).int().argmax(dim=1) for part in rows.float().cpu().split(1024)]
    counted = Counter(query_class)
    shadowed = Vocabulary(tuple(("",) * counted[index] for index in range(len(vocabulary)))).shadowed(
        torch.cat(nearest).tolist()
    )
    for late in shadowed.keys() - vocabulary.shadowed().keys():
        first, second = vocabulary.classes[shadowed[late]], vocabulary.classes[late]
        sentence = f"the classes {_brief(first)} and {_brief(second)} have the same text embedding"
        if len(vocabulary) > LONG:
            _warn_names(f"{sentence}: the second can never win")
            continue
        raise UserError(f"{sentence}, so that the second can never win: give names that differ in their first words")


def _brief(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:40]}…{name[-16:]}")


def warn_of_cut(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> None:
    """Say which names the text encoder does not read to their end. Names that surely fit are not tokenised."""
    if backbone.text_stand_in:
        return
    longest = max(templates, key=len)
    long = [name for name in names if len(longest.format(name).encode()) > CERTAIN_BYTES]
    cut = check_tokens(long, backbone.tokenizer, longest).cut if long else ()
    if cut:
        _warn_names(f"the text encoder does not read {', '.join(map(_brief, cut[:4]))} to the end: give shorter names")


@functools.cache  # to say it once is enough
def _warn_names(sentence: str) -> None:
    log.warning(sentence)


@functools.cache  # to say it once is enough
def _warn_not_kept(folder: Path, reason: str) -> None:
    log.warning("text embeddings are not kept in %s: %s; set CLEARCLIP_CACHE to a folder to write to", folder, reason)


def _student_note(student: "TextStudent", names: Sequence[str]) -> str:
    """Where rows of the student come from; which names it cannot be trusted with is kept with them."""
    doubts = student.doubts(names)
    shown = "; ".join(doubts[:8]) + f"; {len(doubts)} in all" * (len(doubts) > 8)
    return "text student, which stands for an ensemble of templates" + (f"{DOUBT}{shown}" if doubts else "")


@functools.cache
def _say_stand_in() -> None:
    log.warning(
        "text: a small text student stands in for CLIP's text tower, which openai-int8 does not have; it reads plain "
        "English names well, attributes hardly and sentences not at all"
    )


@functools.cache
def _warn_once(names: str) -> None:
    log.warning("text: do not trust what the text student makes of %s", names)


def _student() -> "TextStudent":
    from clearclip.offline.student import TextStudent

    return TextStudent()


def _kept(path: Path, names: tuple[str, ...], dim: int, make: Callable[[], TextEmbeddings]) -> TextEmbeddings:
    """The cache's entry, which is made first where there is none: by one of all processes that want it.

    The others wait for it. Each for itself, several ranks would take several times as long on one processor, and might
    get other digits, which are another run's.
    """
    known = _load_cached(path, names, dim, warn=False)
    if known is not None:
        return known
    with contextlib.ExitStack() as stack:
        try:
            # One for all entries of a first letter: files of locks stay.
            stack.enter_context(locked(path.parent.with_name(f".{path.parent.name}-{path.name[0]}.lock")))
            known = _load_cached(path, names, dim)
        except (OSError, NotImplementedError) as error:  # no folder to write to, or a file system without locks
            log.debug("text embeddings are made without a lock: %s", error)
        if known is None:
            known = make()
            try:
                known.save(path)
                known = TextEmbeddings.load(path)  # normalised once more: the first run gives what later ones will
            except OSError as error:
                _warn_not_kept(path.parent, error.strerror)
    return known


def _load_cached(path: Path, names: tuple[str, ...], dim: int, warn: bool = True) -> TextEmbeddings | None:
    if not path.is_file():
        return None
    try:
        known = TextEmbeddings.load(path)
    except UserError as error:
        if warn:
            log.warning("rebuilding a damaged cache entry: %s", error)
        return None
    return known if known.names == names and known.embeddings.shape[1] == dim else None


@torch.inference_mode()
def _embed(backbone: Backbone, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
    """[Q, dim] on the CPU, in float32."""
    prompts = [template.format(name) for name in names for template in templates]
    embeddings = encode_prompts(backbone, prompts)  # [Q · T, dim]
    ensemble = F.normalize(embeddings, dim=-1).unflatten(0, (len(names), len(templates))).mean(dim=1)
    return F.normalize(ensemble, dim=-1)


@torch.inference_mode()
def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Embeddings [P, dim] of prompts, float32 on the CPU, not normalised.

    What follows a prompt's end cannot change it, so prompts are sorted by length and each batch is cut to its
    longest prompt.
    """
    tokens = backbone.tokenizer(list(prompts))  # [P, context length]
    lengths = backbone.prompt_lengths(tokens)
    order = lengths.argsort(stable=True)
    out = torch.empty(len(tokens), backbone.dim)
    with tqdm(total=len(tokens), desc="embedding prompts", unit="prompt", leave=False, disable=None) as bar:
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * int(lengths[order[stop]]) <= BATCH_TOKENS:
                stop += 1
            batch = order[start:stop]
            out[batch] = backbone.encode_text(tokens[batch, : int(lengths[batch].max())]).float().cpu()
            bar.update(stop - start)
            start = stop
    return out
