"""Models to decode with: a target, drafters below it, and transformers' own modules over the same weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from stepladder.decoding.bench.shapes import random_network
from stepladder.decoding.laws import Sampling
from stepladder.decoding.models import LanguageModel
from stepladder.decoding.rounds import Rounds, Turn
from stepladder.errors import UsageError

CONTEXT = 1024
CLOSE, TRIES = 0.02, 10
"""How near to the acceptance that is asked for a dial has to come, in how many trials at most."""


@dataclass
class Dial:
    """Output projections of layers that only the upper models have, and what they were."""

    weights: list[tuple[torch.nn.Parameter, torch.Tensor]]

    def turn(self, share: float) -> None:
        """Scale what those layers add by a share of what they would."""
        with torch.no_grad():
            for weight, original in self.weights:
                torch.mul(original, share, out=weight.data)


@dataclass
class Family:
    """``models``, the cheapest first, and ``stock``, transformers' own modules over the same weights.

    ``dials[i]`` sets how often model i + 1 keeps what model i drafts; none where weights are trained ones. ``ends`` are
    the tokens that end an answer.
    """

    models: tuple[LanguageModel, ...]
    stock: tuple[Any, ...]
    dials: tuple[Dial, ...] = ()
    ends: frozenset[int] = frozenset()

    @property
    def target(self) -> LanguageModel:
        """The model that answers."""
        return self.models[-1]

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self.target.device


def random_family(shape: str, layers: Sequence[int], *, device: str, sharpness: float, rows: int) -> Family:
    """A target of a shape with random weights, whose first layers are its drafters.

    ``layers``: of each drafter, fewest first. Raises UsageError for numbers of layers that do not rise.
    """
    network = random_network(shape, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    depth = len(network.model.layers)
    bounds = [*layers, depth]
    if any(low >= high for low, high in zip([0, *layers], bounds, strict=True)):
        raise UsageError(f"layers: should rise from 1 to less than the {depth} of the target, not {list(layers)}")
    with torch.no_grad():
        network.lm_head.weight.mul_(sharpness)
    dials = tuple(
        Dial(
            [
                (weight, weight.detach().clone())
                for layer in network.model.layers[low:high]
                for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
            ]
        )
        for low, high in pairwise(bounds)
    )
    networks = [*(_shortened(network, count) for count in layers), network]
    names = [*(f"{shape}/{count} layers" for count in layers), shape]
    models = tuple(
        LanguageModel(each, name=name, context=CONTEXT, slots=rows, narrow=True)
        for each, name in zip(networks, names, strict=True)
    )
    own = _twin(network)  # last, so that it shares the matrices that were joined
    return Family(models, (*(_shortened(own, count) for count in layers), own), dials)


def trained_family(models: Sequence[LanguageModel], ends: frozenset[int]) -> Family:
    """Trained models of one vocabulary, the cheapest first."""
    return Family(tuple(models), tuple(_twin(each.model) for each in models), (), ends)


def dialled(family: Family, level: int, alpha: float, sampling: Sampling, prompts: Sequence[list[int]]) -> float:
    """Set a dial so that acceptance comes near ``alpha``; the share of what the upper layers add that it took."""
    low, high = 1e-3, 4.0
    share = 0.0 if alpha >= 1 else high
    for _ in range(TRIES):
        family.dials[level].turn(share)
        found = kept_share(family, level, sampling, prompts)
        if abs(found - alpha) < CLOSE or alpha >= 1:
            break
        low, high = (low, share) if found < alpha else (share, high)
        share = (low * high) ** 0.5
    return share


def kept_share(family: Family, level: int, sampling: Sampling, prompts: Sequence[list[int]], length: int = 4) -> float:
    """Share of the drafts of model ``level`` that the one above judges and keeps."""
    rounds, kept, judged = Rounds(family.models[level : level + 2]), 0, 0
    for index, prompt in enumerate(prompts):
        answer, chance = rounds.open(prompt), random.Random(index).random  # noqa: S311 - sampling, no secret
        for _ in range(20):
            wrote = rounds.round([Turn(answer, sampling, chance)], (length,))[0]
            kept += wrote.accepted
            judged += min(length, wrote.accepted + 1)
        rounds.close(answer)
    return kept / judged


def _twin(network: Any) -> Any:
    """Another module over the same weights, with transformers' own attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(network.config.to_dict())
    with torch.device("meta"):
        twin = LlamaForCausalLM(config)
    twin.load_state_dict(network.state_dict(), assign=True)
    twin.tie_weights()
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config).to(network.device)
    twin.set_attn_implementation("sdpa")
    return twin.eval().requires_grad_(False)


def _shortened(network: Any, layers: int) -> Any:
    """The first layers of a network, with its embedding, norm and head: the same objects."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(network.config.to_dict() | {"num_hidden_layers": layers})
    with torch.device("meta"):
        short = LlamaForCausalLM(config)
    short.model.embed_tokens, short.model.norm = network.model.embed_tokens, network.model.norm
    short.model.rotary_emb, short.lm_head = network.model.rotary_emb, network.lm_head
    short.model.layers = torch.nn.ModuleList(network.model.layers[:layers])
    short.set_attn_implementation("sdpa")
    return short.eval()
