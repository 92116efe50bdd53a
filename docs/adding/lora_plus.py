"""LoRA+: LoRA in which matrix B learns faster than A (Hayou, Ghosh and Yu, ICML 2024).

An example of a method that trains two groups of parameters at different learning rates: `insert` names the groups, and
`rates` gives the learning rate of each.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from transrec.methods import Place, register
from transrec.methods.lora import LoRA, LoRAOptions, LowRankLinear
from transrec.options import flag


@dataclass(frozen=True)
class LoRAPlusOptions(LoRAOptions):
    _minimum: ClassVar[dict[str, float]] = {"rate_ratio": 0}

    adapter_lr: float = flag(1e-4, "Learning rate of A.")
    rate_ratio: float = flag(16.0, "Ratio of B's learning rate to A's; the paper recommends 16.")


@register("lora_plus")
class LoRAPlus(LoRA):
    """Computes W x + b + scaling B A x as LoRA does; B is trained at --rate_ratio times the learning rate of A."""

    Options = LoRAPlusOptions

    def insert(self, place: Place, options: LoRAPlusOptions) -> dict[str, list[nn.Parameter]]:
        trained = super().insert(place, options)
        sites = [site for block in place.blocks for site in (block.query, block.value)]
        b_matrices = [site.module.lora_B for site in sites if isinstance(site.module, LowRankLinear)]
        others = [parameter for parameter in trained if all(parameter is not b for b in b_matrices)]
        return {"adapter": others, "B": b_matrices}

    def rates(self, options: LoRAPlusOptions) -> dict[str, float]:
        return super().rates(options) | {"B": options.rate_ratio * options.adapter_lr}
