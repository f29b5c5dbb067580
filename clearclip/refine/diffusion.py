"""Stable Diffusion's self-attention: maps follow what a generator of images holds to be one thing.

The fine-grained compensation of CLIPer (Sun et al., ICCV 2025). A noised image goes through the U-Net once; every
head of two self-attention layers of 64×64 positions says which positions belong together, and maps are averaged by
one head after another. This needs the library diffusers, an optional extra.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from clearclip.errors import UserError
from clearclip.weights import hub_answers

MODELS = {
    "sd21": "stabilityai/stable-diffusion-2-1-base",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd14": "CompVis/stable-diffusion-v1-4",
}
STEP, STEPS = 45, 50  # which of the sampler's steps, the first being pure noise, tells how much noise is added


class DiffusionAttention:
    """Refine maps of an image by the self-attention of a Stable Diffusion U-Net.

    `model` is a name of `MODELS`, a repository of the model hub or a folder in diffusers' format. `combine` says how
    the heads act: "product" applies all, one after another; "mean" applies their mean; a number applies that head
    alone. `layers` names the self-attention modules whose heads are taken, in this order: by default the second
    and the first of the U-Net's last block, which are CLIPer's. The image is resized to the square that the model was
    trained on (512 pixels); the noise is that of `seed`, the same for every image (CLIPer's is not seeded, so that its
    numbers vary).

    Not verified: which sampler's steps the authors count (here DDIM's, with the model's own schedule), on which end
    of the product the first head stands (here on the left, so it acts last), and which layers theirs are. They write
    −4 and −6: of all attention layers in the order they run, as here; in the order of `named_modules`, which puts the
    middle block last, these would be the third and the second of the last block. CLIPer hands over the image as CLIP
    sees it, resized.

    Raises UserError where diffusers or the model is missing, and ValueError for a wrong `combine`.
    """

    def __init__(
        self,
        model: str | Path = "sd21",
        combine: str | int = "product",
        layers: Sequence[str] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if combine not in ("product", "mean") and type(combine) is not int:
            raise ValueError(f"combine must be product, mean or the number of a head, not {combine!r}")
        self.combine, self.seed, self.device, self.dtype = combine, seed, device, dtype
        self.unet, self.vae, self.scheduler, prompt = load_model(model, dtype)
        self.unet.to(device).requires_grad_(False)
        self.vae.to(device).requires_grad_(False)
        self.prompt = prompt.to(device)
        self.size = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        last = f"up_blocks.{len(self.unet.up_blocks) - 1}.attentions"
        layers = layers or [f"{last}.{index}.transformer_blocks.0.attn1" for index in (1, 0)]
        for name in layers:
            if name not in dict(self.unet.named_modules()):
                raise UserError(f"the U-Net of {model} has no self-attention {name}; use a Stable Diffusion 1 or 2")
        self.layers = [self.unet.get_submodule(name) for name in layers]
        heads = sum(layer.heads for layer in self.layers)
        if type(combine) is int and not 0 <= combine < heads:
            raise ValueError(f"combine={combine} names no head: there are {heads}, counted from 0")

    @torch.inference_mode()
    def __call__(self, image: Tensor, maps: Tensor, threshold: float = 0.1) -> Tensor:
        """An image [3, H, W] in 0..1 and maps [Q, h, w] of it to refined maps [Q, n, n], float32.

        n is the side of the layers' grid (64). A head's weights below `threshold` times the largest of their column
        count as 0.
        """
        heads = self.heads(image)
        side = math.isqrt(len(heads[0][0]))
        flat = F.interpolate(maps[None].float(), size=(side, side), mode="bilinear")[0].flatten(1).T  # [N, Q]
        if self.combine == "product":
            for q, k in reversed(heads):  # the matrices themselves are never multiplied
                flat = head_attention(q, k, threshold) @ flat
        elif self.combine == "mean":
            flat = torch.stack([head_attention(q, k, threshold) @ flat for q, k in heads]).mean(dim=0)
        else:
            assert isinstance(self.combine, int)
            flat = head_attention(*heads[self.combine], threshold) @ flat
        return flat.T.unflatten(1, (side, side))

    def heads(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Queries, scaled, and keys [N, d] of every head of the layers, for an image [3, H, W] in 0..1."""
        seen = {}

        def look(layer: Any, arguments: tuple[Tensor, ...]) -> None:
            q, k = (project(arguments[0])[0].unflatten(-1, (layer.heads, -1)) for project in (layer.to_q, layer.to_k))
            seen[layer] = zip((q * layer.scale).unbind(1), k.unbind(1))  # [N, heads, d]

        hooks = [layer.register_forward_pre_hook(look) for layer in self.layers]
        try:
            self.unet(*self.noised(image), encoder_hidden_states=self.prompt)
        finally:
            for hook in hooks:
                hook.remove()
        return [head for layer in self.layers for head in seen[layer]]

    def noised(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [1, C, n, n] of an image [3, H, W] in 0..1 with the noise of a timestep, and that timestep."""
        image = F.interpolate(image[None].to(self.device, self.dtype), size=(self.size, self.size), mode="bilinear")
        latents = self.vae.encode(2 * image - 1).latent_dist.mean * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(self.seed)).to(latents)
        timestep = self.scheduler.timesteps[STEP]
        return self.scheduler.add_noise(latents, noise, timestep[None]), timestep


def head_attention(q: Tensor, k: Tensor, threshold: float) -> Tensor:
    """Weights [N, N] of one head, float32, from its scaled queries and keys [N, d].

    softmax(q kᵀ), every column divided by its largest, what is then below `threshold` set to 0, rows to sum 1.
    """
    weights = (q.float() @ k.float().T).softmax(dim=-1)
    weights /= weights.amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny)  # 0 where none attends
    weights.masked_fill_(weights < threshold, 0)
    return weights.div_(weights.sum(dim=-1, keepdim=True).clamp(min=1e-12))


def load_model(name: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any, Tensor]:
    """A Stable Diffusion's U-Net, VAE and DDIM scheduler, and its text embedding [1, L, D] of the empty prompt.

    Raises UserError where diffusers is not installed and where the model cannot be loaded.
    """
    try:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    except ImportError as error:
        raise UserError("refinement by diffusion needs the library diffusers: pip install diffusers") from error
    from transformers import CLIPTextModel, CLIPTokenizer

    source = MODELS.get(str(name), str(name))
    options: dict[str, Any] = {"local_files_only": Path(source).is_dir() or not hub_answers()}
    weights = options | {"use_safetensors": True}
    network = weights | {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    try:
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", **network)
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **network)
        scheduler = DDIMScheduler.from_pretrained(source, subfolder="scheduler", **options)
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **options)
        text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", **weights)
        if tokenizer.model_max_length != text_encoder.config.max_position_embeddings:  # a missing one is made up
            raise ValueError("its tokenizer is not its text encoder's")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if options["local_files_only"] and not Path(source).is_dir():
            reason += "; only the hub's cache was searched, for the hub does not answer"
        raise UserError(
            f"Stable Diffusion {name} cannot be loaded ({reason}); use one of {', '.join(MODELS)} where the model hub "
            "answers, or give a folder in diffusers' format with its weights as .safetensors"
        ) from error
    scheduler.set_timesteps(STEPS)
    tokens = tokenizer("", padding="max_length", truncation=True, return_tensors="pt").input_ids  # [1, L]
    with torch.inference_mode():
        prompt = text_encoder(tokens)[0]
    return unet.eval(), vae.eval(), scheduler, prompt.to(dtype)
