"""LoRA+: LoRA whose matrix B learns faster than A (Hayou, Ghosh and Yu, ICML 2024).

A method that trains two groups of parameters at rates of their own: `insert` names the groups, `rates` their rates.
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
    rate_ratio: float = flag(16.0, "Learning rate of B divided by that of A; the paper recommends 16.")


@register("lora_plus")
class LoRAPlus(LoRA):
    """W x + b + scaling B A x as in LoRA; B trains at --rate_ratio times the rate of A."""

    Options = LoRAPlusOptions

    def insert(self, place: Place, options: LoRAPlusOptions) -> dict[str, list[nn.Parameter]]:
        trained = super().insert(place, options)
        sites = [site for block in place.blocks for site in (block.query, block.value)]
        of_b = [site.module.lora_B for site in sites if isinstance(site.module, LowRankLinear)]
        others = [parameter for parameter in trained if all(parameter is not b for b in of_b)]
        return {"adapter": others, "B": of_b}

    def rates(self, options: LoRAPlusOptions) -> dict[str, float]:
        return super().rates(options) | {"B": options.rate_ratio * options.adapter_lr}
