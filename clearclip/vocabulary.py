"""Class names and prompt templates: what the text encoder reads.

A class may have several names (synonyms). Each name is one query for the text encoder, so a vocabulary of
C classes has Q ≥ C queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clearclip.errors import UserError

# Name → templates, or the open_clip list that holds them (importing open_clip takes seconds).
TEMPLATES = {
    "imagenet80": "OPENAI_IMAGENET_TEMPLATES",
    "imagenet7": "SIMPLE_IMAGENET_TEMPLATES",
    "single": ("a photo of a {}.",),
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


@dataclass(frozen=True)
class Vocabulary:
    """The names of each class: `(("person", "man"), ("cat",))`. The first name of a class stands for it."""

    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, names: Iterable[str | Iterable[str]]) -> "Vocabulary":
        """From Python: `["cat", "grass, lawn"]` or `[["cat"], ["grass", "lawn"]]`.

        Raises UserError for a name that is empty, no string or twice in one class, two classes of one name, or none.
        """
        if isinstance(names, str) or not isinstance(names, Iterable):
            what = f"the one string {names!r}" if isinstance(names, str) else repr(names)
            raise UserError(f"class names must be a list of names, not {what}")
        entries = list(enumerate(names, 1))
        if not entries:
            raise UserError("class names must be a list of at least one name")
        return cls(_classes("class names", "entry", entries))

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


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read a class file: one class a line, synonyms separated by `,`; `#` starts a comment.

    Raises UserError, naming file and line, where `Vocabulary.of` would, and for a file that cannot be read.
    """
    return Vocabulary(_classes(path, "line", _lines(path, "class file")))


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
    if not Path(name_or_path).exists():
        raise UserError(f"no template set or file {name_or_path}: the sets are {', '.join(TEMPLATES)}")
    lines = _lines(name_or_path, "template file")
    for number, line in lines:
        before, found, after = line.partition("{}")
        if not found or set(before + after) & set("{}"):
            raise UserError(f"{name_or_path}, line {number}: {line!r} must hold {{}} once and no other brace")
    return tuple(line for _, line in lines)


def _lines(path, what) -> list[tuple[int, str]]:
    """Line number and text of each line that holds more than a comment."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}; give a text file, one entry a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text: save it as UTF-8") from None
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{what} {path} is empty: write one entry a line")
    return lines


def _classes(source, unit: str, entries) -> tuple[tuple[str, ...], ...]:
    """Check pairs of (number, names), written as the `unit` of that number of `source`, and return the names."""
    first_seen = {}
    classes = []
    for number, entry in entries:
        where = f"{source}, {unit} {number}"
        names = entry.split(",") if isinstance(entry, str) else entry
        names = tuple(names) if isinstance(names, Iterable) else (names,)
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: {entry!r} is no class name; write names as strings")
        names = tuple(name.strip() for name in names)
        if not all(names) or not names:
            raise UserError(f"{where}: empty name in {entry!r}; write names separated by single commas")
        if len(set(names)) < len(names):
            raise UserError(f"{where}: a name is there twice in {entry!r}; write it once")
        if names[0] in first_seen:
            raise UserError(f"{where}: class {names[0]!r} is at {unit} {first_seen[names[0]]} already; write it once")
        first_seen[names[0]] = number
        classes.append(names)
    return tuple(classes)
