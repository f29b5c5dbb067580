"""One registry for all that grows: methods, refinements, vision models, backbones.

What is registered lives in a file of its own in the registry's package; nothing else lists it. It is written
`Name:key=value,…` on a command line, in a config and in Python alike; its options are those parameters of what builds
it that have a default, and are read as their annotations say.
"""

import ast
import importlib
import inspect
import math
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from clearclip.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered thing: its name, what builds it, a one-line summary and where it was published."""

    name: str
    build: Callable[..., T]
    summary: str
    paper: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)  # defaults of this name, before those of the signature

    @property
    def options(self) -> dict[str, Any]:
        """Each option with its default."""
        return {name: self.preset.get(name, p.default) for name, p in _options(self.build).items()}


@dataclass(frozen=True)
class Choice(Generic[T]):
    """An entry with the options that were given; `str` writes it as `Registry.parse` reads it."""

    entry: Entry[T]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def settings(self) -> dict[str, Any]:
        """All options, those not given at their defaults."""
        return {**self.entry.options, **self.options}

    def __str__(self) -> str:
        options = ",".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


class Registry(Generic[T]):
    """Named entries of one `kind`, registered by the modules of `package`, which are imported when first needed."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry[T]] = {}
        self._imported = False

    def register(self, name: str, build: Callable[..., T], summary: str, paper: str = "", /, **preset: Any) -> None:
        """Make `build` available as `name`; `preset` are defaults that differ from those of its signature."""
        if unknown := preset.keys() - _options(build).keys():
            raise TypeError(f"{self.kind} {name}: {', '.join(sorted(unknown))} is no option of {build}")
        self._entries[name.lower()] = Entry(name, build, summary, paper, preset)

    def entries(self) -> list[Entry[T]]:
        """All entries, module by module, as each registers them."""
        if not self._imported:
            self._imported = True
            folders = getattr(importlib.import_module(self.package), "__path__", [])  # a module has none
            for module in pkgutil.iter_modules(folders):
                importlib.import_module(f"{self.package}.{module.name}")
        return list(self._entries.values())

    def __contains__(self, name: str) -> bool:
        self.entries()
        return name.lower() in self._entries

    def find(self, name: str) -> Entry[T]:
        """The entry of that name, in any case. Raises UserError where there is none."""
        if name not in self:
            names = ", ".join(entry.name for entry in self.entries())
            raise UserError(f"unknown {self.kind} {name!r}; use one of {names}")
        return self._entries[name.lower()]

    def parse(self, text: str) -> Choice[T]:
        """Read "Name" or "Name:key=value,key=value".

        Raises UserError for an unknown name and for an option that is not written key=value, does not exist, is there
        twice or has a value that it cannot have.
        """
        name, _, rest = text.partition(":")
        entry = self.find(name.strip())
        parameters = _options(entry.build)
        there = f"its options are {', '.join(sorted(parameters)) or 'none'}"
        options: dict[str, Any] = {}
        for item in filter(None, split(rest, ",")):
            key, equals, value = item.partition("=")
            key, value = key.strip(), value.strip()
            if not equals:
                raise UserError(f"option {item!r} of {text!r} must be written key=value; {there}")
            if key not in parameters:
                raise UserError(f"{self.kind} {text!r} has no option {key}; {there}")
            if key in options:
                raise UserError(f"{self.kind} {text!r}: option {key} is there twice; give it once")
            try:
                options[key] = _read(value, parameters[key].annotation)
            except ValueError as error:
                raise UserError(f"{self.kind} {text!r}: option {key} must be {error}, not {value!r}; {there}") from None
        return Choice(entry, options)

    def create(self, choice: str | Choice[T], *arguments: Any) -> T:
        """Build what `choice` names; `arguments` come before its options. Raises UserError for a wrong option."""
        if isinstance(choice, str):
            choice = self.parse(choice)
        try:
            return choice.entry.build(*arguments, **choice.settings)
        except (TypeError, ValueError) as error:
            there = ", ".join(sorted(choice.settings)) or "none"
            raise UserError(f"{self.kind} {str(choice)!r}: {error}; its options are {there}") from error


def import_modules(names: Iterable[str]) -> None:
    """Import user modules, which register methods, refinements, vision models or backbones.

    Raises UserError for one that cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module is Python and may raise anything
            raise UserError(
                f"module {name} cannot be imported ({type(error).__name__}: {error}); run where Python finds it, or "
                "put its folder into PYTHONPATH"
            ) from error


def split(text: str, separator: str) -> list[str]:
    """Split at a one-character separator outside of brackets: "a=(1,2),b=3" at "," is ["a=(1,2)", "b=3"]."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == separator and not depth:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _options(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that have a default, their annotations as types; without one, that of the default."""
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    return {
        name: parameter.replace(annotation=hints.get(name, _type_of(parameter.default)))
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is not parameter.empty
    }


def _type_of(default: Any) -> Any:
    return Any if default is None else type(default)


def _read(text: str, annotation: Any) -> Any:
    """The value that `text` writes for an option of that type; ValueError saying what it must be."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds:
        return _switch(text)
    if int in kinds and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if float in kinds:
        return _number(text)
    if str in kinds or Any in kinds:
        return text
    if int in kinds:
        raise ValueError("a whole number")
    return _numbers(text)


def _switch(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("True or False") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    """ "(8,16)", "[8,16]" or "8"."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    value = (value,) if isinstance(value, int) else value
    if not isinstance(value, tuple | list) or not all(type(number) is int for number in value):
        raise ValueError("whole numbers, such as (8,16)")
    return tuple(value)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).replace(" ", "") if isinstance(value, tuple) else str(value)
