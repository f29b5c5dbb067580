"""Published methods, by name. A method is a file in this folder; nothing else lists it."""

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from clearclip.backbone import Backbone
from clearclip.errors import UserError


class Method:
    """What turns images into class scores. Subclasses write `features`, or `scores` where text takes part earlier.

    One that labels in its own way has a method `decoder`, called with what `clearclip.decode.Decoder` is made of.
    """

    decoder = None

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def features(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to patch features [B, h, w, dim] in the joint space, not normalised."""
        raise NotImplementedError

    def scores(self, images: Tensor, text: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] and text [Q, dim], unit rows, to cosine scores [B, Q, h, w] in float32.

        h and w are the method's own patch grid.
        """
        features = F.normalize(self.features(images).float(), dim=-1)
        return (features @ text.to(features).T).permute(0, 3, 1, 2)  # [B, Q, h, w]

    def prepare(self, text: Tensor, query_class: tuple[int, ...], temperature: float) -> Tensor:
        """The text that `scores` takes, from that of the queries [Q, dim]: the same, but for methods that add to it."""
        return text


@dataclass(frozen=True)
class Entry:
    """A named method: how to build it, what it is and where it was published."""

    name: str
    build: Callable[..., Method]
    summary: str
    paper: str
    options: dict = field(default_factory=dict)


_ENTRIES: dict[str, Entry] = {}


def register(name: str, build: Callable[..., Method], summary: str, paper: str, **options) -> None:
    """Make `build(backbone, **options)` available as `name`."""
    _ENTRIES[name.lower()] = Entry(name, build, summary, paper, options)


@functools.cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def list_methods() -> list[Entry]:
    """All methods: each has `name`, a one-line `summary` and its `paper`.

    CLIP and what re-wires its last block come first, then the others by the module they are in.
    """
    _import_all()
    modules = {name: getattr(entry.build, "__module__", "") for name, entry in _ENTRIES.items()}
    order = sorted(_ENTRIES, key=lambda name: (modules[name] != f"{__name__}.final_block", modules[name]))
    return [_ENTRIES[name] for name in order]


def parse_method(text: str) -> tuple[Entry, dict]:
    """Split "ClearCLIP" or "ClearCLIP:attention=kk,residual=1" into a registered entry and options.

    Raises UserError for an unknown name and for an option that is not written key=value, that the method does not
    have, that is there twice or that is no number where its default is one.
    """
    name, _, rest = text.partition(":")
    known = {entry.name.lower(): entry for entry in list_methods()}
    if name.lower() not in known:
        raise UserError(f"unknown method {name!r}; use one of {', '.join(entry.name for entry in known.values())}")
    entry, options = known[name.lower()], {}
    parameters = sorted(list(inspect.signature(entry.build).parameters)[1:])  # after the backbone
    known_options = f"its options are {', '.join(parameters) or 'none'}"
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"method option {item!r} must be written key=value, as in {name}:residual=1")
        key = key.strip()
        if key not in parameters:
            raise UserError(f"method {text!r}: no option {key}; {known_options}")
        if key in options:
            raise UserError(f"method {text!r}: option {key} is there twice; give it once")
        try:
            options[key] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            options[key] = value
        if isinstance(entry.options.get(key), float) and not isinstance(options[key], int | float):
            raise UserError(f"method {text!r}: option {key} must be a number, not {value!r}; {known_options}")
    return entry, options


def create_method(text: str, backbone: Backbone) -> Method:
    """Build the method that `text` names, as `parse_method` reads it. Raises UserError for a wrong option."""
    entry, options = parse_method(text)
    try:
        return entry.build(backbone, **entry.options | options)
    except (TypeError, ValueError) as error:
        known = ", ".join(sorted(entry.options)) or "none"
        raise UserError(f"method {text!r}: {error}; its options are {known}") from error


def check_switches(**switches) -> None:
    """Raise ValueError naming the first option that is neither True nor False."""
    for name, switch in switches.items():
        if switch not in (True, False):
            raise ValueError(f"{name} must be True or False, not {switch!r}")


__all__ = ["Entry", "Method", "check_switches", "create_method", "list_methods", "parse_method", "register"]
