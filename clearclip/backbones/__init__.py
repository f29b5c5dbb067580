"""Image–text models. A family of them is a file in this folder, one subclass of `Backbone`; nothing else lists it."""

from collections.abc import Sequence

import torch

from clearclip.backbones.base import Backbone, Block, check_compiler, resize_position_embedding
from clearclip.errors import UserError
from clearclip.products import bfloat16_pays
from clearclip.registry import Registry

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

BACKBONES: Registry[Backbone] = Registry("backbone family", __name__)
register = BACKBONES.register


def load_backbone(
    name: str = "ViT-B-16",
    pretrained: str = "openai",
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    position: str | None = None,
) -> Backbone:
    """Load a backbone.

    Args:
        name: an OpenCLIP architecture ("ViT-B-16"), "arch:tag", "local-dir:FOLDER", or a name of `list_backbones()`.
        pretrained: a tag of its weights, a weights file, "openai-int8" or "auto", see `clearclip.weights`.
        device: "auto" (CUDA, then MPS, then CPU), or a device of torch.
        precision: "auto" (fp16 on CUDA; bf16 on a CPU where `bfloat16_pays`; else fp32), "fp32", "fp16" or "bf16".
        compile: run the blocks through torch.compile: seconds at the first image, and no gain on a CPU.
        position: a mode of `resize_position_embedding`; by default that of the model's published pipeline.

    Returns:
        The backbone, on its device, without gradients.

    Raises:
        UserError: for an unknown or unsupported architecture and for weights that cannot be found or downloaded.

        backbone = load_backbone("ViT-B-16", "openai-int8")
    """
    if compile not in (True, False):
        raise UserError(f"compile must be True or False, not {compile!r}")
    if compile:
        check_compiler()
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen)
    for family in BACKBONES.entries():
        kind = family.build
        assert isinstance(kind, type)
        assert issubclass(kind, Backbone)
        if checkpoint := kind.find(name, pretrained):
            return kind(checkpoint, chosen, dtype, position, compile)
    if name.startswith("local-dir:"):
        raise UserError(
            f"{name.removeprefix('local-dir:')} is not a model folder that can be used; it must hold OpenCLIP's "
            "open_clip_config.json, with model_cfg, and open_clip_model.safetensors, or what transformers saves of a "
            "BLIP retrieval model"
        )
    names = ", ".join(arch for arch, _ in list_backbones())
    raise UserError(f"unknown backbone {name!r}; use one of {names} or another OpenCLIP ViT as arch:tag")


def list_backbones() -> list[tuple[str, Sequence[str]]]:
    """The common backbones, each with the tags of its weights."""
    return [pair for family in BACKBONES.entries() for pair in family.build.names.items()]  # type: ignore[attr-defined]


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, then Apple's MPS, then the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device  # "cuda" with its number
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available here; use auto or cpu") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type that a network computes in; scores are accumulated in float32 always.

    `auto` is float16 on CUDA, bfloat16 on a CPU that multiplies it much faster (AMX), else float32.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "bf16" if device.type == "cpu" and bfloat16_pays() else "fp32"
    try:
        return PRECISIONS[precision]
    except KeyError:
        raise UserError(f"unknown precision {precision!r}; use auto, fp32, fp16 or bf16") from None


__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "choose_device",
    "choose_precision",
    "list_backbones",
    "load_backbone",
    "register",
    "resize_position_embedding",
]
