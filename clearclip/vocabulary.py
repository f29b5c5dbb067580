"""Class names and prompt templates: what the text encoder reads.

A class may have several names (synonyms). Each name is one query for the text encoder, so a vocabulary of
C classes has Q ≥ C queries. Where two classes have the same name, the first wins; a class whose names all belong to
earlier classes can never win, and is refused.
"""

import codecs
import functools
import hashlib
import html
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clearclip.errors import UserError

if TYPE_CHECKING:  # bad names should be found before PyTorch is imported
    from torch import Tensor

log = logging.getLogger(__name__)

# Lists in which a class can never win, and that are read all the same, with a warning: two published ones, in which
# "bed" is a class and one of the words for background; and long ones, in which synonyms overlap as a rule.
PUBLISHED = (  # `Vocabulary.hash` of SCLIP's and ProxyCLIP's COCO-Object
    "7387645e07a0dbb4fe9af5f6621ce0972da02c8828ddc2fad1947adc1f5eccae",
    "f642995d02bc360ab4babb440e970b952c11c4ad9a69e7bc787c64b62fa7f142",
)
LONG = 255  # classes

# Name → templates, or the open_clip list that holds them (importing open_clip takes seconds).
TEMPLATES: dict[str, str | tuple[str, ...]] = {
    "imagenet80": "OPENAI_IMAGENET_TEMPLATES",
    "imagenet7": "SIMPLE_IMAGENET_TEMPLATES",
    "single": ("a photo of a {}.",),
    "tips9": (  # of TIPSv2's zero-shot segmentation
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    ),
    "car15": (  # CLIPer's "car"
        "a clean origami {}.",
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        *(f"a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"This is a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"There is a {size} {{}} in the scene." for size in ("small", "medium", "large")),
    ),
}


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """The names of each class: `(("person", "man"), ("cat",))`. The first name of a class stands for it."""

    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, names: Iterable[str | Iterable[str]]) -> "Vocabulary":
        """From Python: `["cat", "grass, lawn"]` or `[["cat"], ["grass", "lawn"]]`.

        Raises UserError for a name that is empty, no string, twice in one class or holds a character that is not
        text; for two classes of one name or a class that can never win; and where the order is not clear.
        """
        if isinstance(names, str | bytes | Mapping | set | frozenset) or not isinstance(names, Iterable):
            raise UserError(f"class names must be a list of names, not {_no_list(names)}")
        entries = list(enumerate(names, 1))
        if not entries:
            raise UserError("class names must be a list of at least one name")
        return _vocabulary("class names", "entry", entries)

    def __repr__(self) -> str:
        shown = [repr(first) + f" (+{len(others)})" * bool(others) for first, *others in self.names[:6]]
        dots = ", …" if len(self) > 6 else ""
        return f"Vocabulary({len(self)} classes, {len(self.queries)} names: {', '.join(shown)}{dots})"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        """[C] the first name of each class."""
        return tuple(synonyms[0] for synonyms in self.names)

    @property
    def queries(self) -> tuple[str, ...]:
        """[Q] all names, class after class."""
        return tuple(name for synonyms in self.names for name in synonyms)

    @property
    def query_class(self) -> tuple[int, ...]:
        """[Q] the class index of each query."""
        return tuple(i for i, synonyms in enumerate(self.names) for _ in synonyms)

    @property
    def hash(self) -> str:
        """SHA-256, in hex, of the names and their order: the same for the same names on any machine."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()

    def shadowed(self, keys: Sequence[Hashable] | None = None) -> dict[int, int]:
        """Classes that can never win, each with the earlier class that has its first name.

        `keys`, [Q], are equal where two queries have the same embedding: rows of tokens, say, or of a table.
        Left out, they are what CLIP's tokenizer makes of the names.
        """
        keys = [_text(query) for query in self.queries] if keys is None else keys
        owner: dict[Hashable, int] = {}
        owners: dict[int, list[int]] = {}
        for key, index in zip(keys, self.query_class, strict=True):
            owners.setdefault(index, []).append(owner.setdefault(key, index))
        return {index: of_names[0] for index, of_names in owners.items() if index not in of_names}

    def misplaced(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Pairs i, j where `names[i]`, of a data set's classes in their order, is a name of class j and not of i here.

        Such a pair says that the orders differ. Case, spaces, hyphens and underscores do not count.
        """
        classes = [{plain(name) for name in synonyms} for synonyms in self.names]
        place = {name: index for index, known in reversed(list(enumerate(classes))) for name in known}
        wanted = [plain(name) for name in names]
        own = [index < len(classes) and name in classes[index] for index, name in enumerate(wanted)]
        return [(i, place[name]) for i, name in enumerate(wanted) if not own[i] and name in place]


class TokenCheck(NamedTuple):
    """Names of which the text encoder does not see the end, and groups of names that it cannot tell apart."""

    cut: tuple[str, ...]
    equal: tuple[tuple[str, ...], ...]


def check_tokens(names: Sequence[str], tokenizer: "Callable[[list[str]], Tensor]", template: str = "{}") -> TokenCheck:
    """What a tokenizer, a list of P prompts to tokens [P, context length], leaves of names in a template.

    A name that fills the context to its last token counts as cut.
    """
    prompts = [template.format(name) for name in names]
    longer = [template.format(f"{name} and more") for name in names]
    rows = [row.numpy().tobytes() for row in tokenizer(prompts + longer).cpu()]
    cut = [name for name, row, grown in zip(names, rows, rows[len(names) :]) if row == grown]
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(names, rows):
        groups.setdefault(row, []).append(name)
    unique = [tuple(dict.fromkeys(group)) for group in groups.values()]
    return TokenCheck(tuple(dict.fromkeys(cut)), tuple(group for group in unique if len(group) > 1))


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read a class file: one class a line, synonyms separated by `,`; `#` at the start of a word starts a comment.

    Raises UserError, naming file and line, where `Vocabulary.of` would, and for a file that cannot be read.
    """
    return _vocabulary(path, "line", _lines(path, "class file"))


def class_lines(path: str | Path) -> list[int]:
    """The line of each class in a class file. Raises UserError for a file that cannot be read."""
    return [number for number, _ in _lines(path, "class file")]


def load_templates(name_or_path: str | Path) -> tuple[str, ...]:
    """The prompt templates of a set in `TEMPLATES` or of a file: one a line, `{}` where the name goes.

    Raises UserError for an unknown name, a file that cannot be read and a line without exactly one `{}`.
    """
    templates = TEMPLATES.get(str(name_or_path))
    if isinstance(templates, str):
        import open_clip

        return tuple(template("{}") for template in getattr(open_clip, templates))
    if templates is not None:
        return templates
    if not os.path.exists(name_or_path):
        raise UserError(f"no template set or file {name_or_path}: the sets are {', '.join(TEMPLATES)}")
    lines = _lines(name_or_path, "template file")
    for number, line in lines:
        _check_characters(f"{name_or_path}, line {number}", line)
        before, found, after = line.partition("{}")
        if not found or set(before + after) & set("{}"):
            raise UserError(f"{name_or_path}, line {number}: {line!r} must hold {{}} once and no other brace")
    return tuple(line for _, line in lines)


def _lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """Line number and text of each line that holds more than a comment."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}; give a text file, one entry a line") from None
    except ValueError as error:  # a NUL in the path
        raise UserError(f"cannot read {what} {str(path)!r}: {error}; give a text file, one entry a line") from None
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        if "\0" in text:  # UTF-16 that does not say so, or no text at all
            raise UnicodeDecodeError("utf-8", content, content.find(b"\0"), len(content), "NUL")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{what} {path} is not UTF-8 text (line {number}): save it as UTF-8") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, re.sub(r"(^|\s)#.*", "", line).strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{what} {path} is empty: write one entry a line")
    return lines


def _vocabulary(source: str | Path, unit: str, entries: Sequence[tuple[int, object]]) -> Vocabulary:
    """Check pairs of (number, names), written as the `unit` of that number of `source`."""
    place: dict[str, int] = {}  # of each class, by its first name
    classes = []
    for number, entry in entries:
        where = f"{source}, {unit} {number}"
        names = _names(where, entry)
        if names[0] in place:
            raise UserError(f"{where}: class {names[0]!r} is at {unit} {place[names[0]]} already; write it once")
        place[names[0]] = number
        classes.append(names)
    vocabulary = Vocabulary(tuple(classes))
    sentences = []
    for late, early in vocabulary.shadowed().items():
        first, *others = classes[late]
        earlier = f"{unit} {place[classes[early][0]]} ({classes[early][0]!r})"
        which = f"its names are in earlier ones, such as {earlier}," if others else f"its name is in {earlier}"
        sentences.append(f"{unit} {place[first]}: class {first!r} can never win, as {which} already")
    some = "; ".join(sentences[:8]) + f"; {len(sentences)} in all" * (len(sentences) > 8)
    if sentences and (len(vocabulary) > LONG or vocabulary.hash in PUBLISHED):
        _warn_once(f"{source}, {some}")
    elif sentences:
        raise UserError(f"{source}, {some}; give each name to one class (case and spaces make no difference)")
    return vocabulary


@functools.cache
def _warn_once(sentence: str) -> None:
    log.warning(sentence)


def _names(where: str, entry: object) -> tuple[str, ...]:
    """The checked names of one class, from a string with commas or from the names themselves."""
    given: Sequence[object]
    if isinstance(entry, str):
        given = entry.split(",")
        foreign = next((character for character in entry if _is_foreign_comma(character)), None)
        if foreign:
            raise UserError(f"{where}: {entry!r} holds {foreign!r}, which separates no names here; write a plain ,")
    elif isinstance(entry, bytes | Mapping | set | frozenset):
        raise UserError(f"{where}: the names of a class must be a list, not {_no_list(entry)}")
    else:
        given = list(entry) if isinstance(entry, Iterable) else [entry]
    if not all(isinstance(name, str) for name in given):
        raise UserError(f"{where}: {entry!r} is no class name; write names as strings")
    names = tuple(str(name).strip() for name in given)  # str of NumPy's strings
    if not all(names) or not names:
        raise UserError(f"{where}: empty name in {entry!r}; write names separated by single commas")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: a name is there twice in {entry!r}; write it once")
    for name in names:
        _check_characters(where, name)
    return names


def _no_list(names: object) -> str:
    """Words for what was given in place of a list of names, and what to give instead."""
    if isinstance(names, str | bytes):
        return f"the one string {names!r}"
    if isinstance(names, Mapping):
        return f"a {type(names).__name__}; give list(names) or list(names.values()), whichever holds the names"
    if isinstance(names, set | frozenset):
        return f"a {type(names).__name__}, which has no order; give a list"
    if isinstance(names, os.PathLike):
        return f"the path {names}; read a class file by load_vocabulary"
    return repr(names)


def _is_foreign_comma(character: str) -> bool:
    """Whether a character separates names in a script other than Latin, as ， 、 and ، do."""
    if character.isascii() or unicodedata.category(character) != "Po":
        return False
    name = unicodedata.name(character, "")
    return "COMMA" in name or "SEMICOLON" in name


def _check_characters(where: str, text: str) -> None:
    """Raise UserError for a character that is not text: one that neither shows nor can be written to a workbook."""
    if text.isprintable() and "\ufffd" not in text:  # nearly always
        return
    for character in text:
        code, category = ord(character), unicodedata.category(character)
        joiner = code in (0x200C, 0x200D)  # of Persian, Indic scripts and emoji
        unassigned = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
        if (category in ("Cc", "Cf", "Cs", "Zl", "Zp") and not joiner) or unassigned or code == 0xFFFD:
            name = unicodedata.name(character, "not a character of text")
            raise UserError(f"{where}: {text!r} holds U+{code:04X} ({name.lower()}); delete or replace it")


def _text(name: str) -> str:
    """What CLIP's tokenizer makes of a name before it looks up tokens: names with the same text are the same to it."""
    if not name.isascii():
        import ftfy

        name = ftfy.fix_text(name)
    return " ".join(html.unescape(html.unescape(name)).split()).lower()


def plain(name: str) -> str:
    """A name without what class files write in different ways: case, spaces, hyphens and underscores."""
    return "".join(character for character in name.lower() if character not in " -_")
