"""A method and what follows it, written `METHOD:key=value,…+REFINEMENT:key=value,…+…`: one grammar for all programs."""

import re
from dataclasses import dataclass
from typing import Any

from clearclip.backbones import Backbone
from clearclip.errors import UserError
from clearclip.methods import METHODS, Method
from clearclip.refine import REFINEMENTS, Refinement
from clearclip.registry import Choice, split


@dataclass(frozen=True)
class Spec:
    """What `Spec.parse` read; `str` writes it in one way, whatever the case of names and the form of numbers.

    spec = Spec.parse("naclip+pamr:iterations=20")
    str(spec)  # "NACLIP+PAMR:iterations=20"
    spec.create(backbone)  # a method and its refinements
    """

    method: Choice[Method]
    refinements: tuple[Choice[Refinement], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Read the written form. Raises UserError for an unknown name or a wrong option.

        A "+" inside an option, as in "ClearCLIP:attention=qq+kk", is followed by no refinement's name.
        """
        method, *rest = split(text, "+")
        refinements: list[str] = []
        for part in rest:
            if re.split("[:,]", part)[0].strip() in REFINEMENTS:
                refinements.append(part)
            elif refinements:
                refinements[-1] += f"+{part}"
            elif ":" in method:
                method += f"+{part}"
            else:
                names = ", ".join(entry.name for entry in REFINEMENTS.entries())
                raise UserError(f"unknown refinement {part!r} after {method}; use one of {names}")
        return cls(METHODS.parse(method), tuple(map(REFINEMENTS.parse, refinements)))

    @property
    def choices(self) -> tuple[Choice[Any], ...]:
        """The method and then its refinements, in the order in which they run."""
        return self.method, *self.refinements

    @property
    def settings(self) -> list[list[Any]]:
        """For JSON: the name and all options of the method and of each refinement."""
        return [[choice.name, dict(choice.settings)] for choice in self.choices]

    def __str__(self) -> str:
        return "+".join(map(str, self.choices))

    def create(self, backbone: Backbone) -> tuple[Method, list[Refinement]]:
        """The method and its refinements on a backbone. Raises UserError for an option that they refuse."""
        return METHODS.create(self.method, backbone), [REFINEMENTS.create(r, backbone) for r in self.refinements]
