"""Methods that insert nothing and train one kind of parameter: `bitfit` (Ben Zaken et al., 2022) and `layernorm`."""

from dataclasses import dataclass

from torch import nn

from transrec.methods.base import InsertOptions, Method, Place, parameters_of, register
from transrec.options import flag


@dataclass(frozen=True)
class PartOptions(InsertOptions):
    adapter_lr: float = flag(4e-4, "Learning rate of the parameters that the method trains.")


@register("bitfit")
class BitFit(Method):
    """Trains all biases, including those of LayerNorms."""

    Options = PartOptions
    tokenwise = True
    trains_existing = "biases"

    def insert(self, place: Place, options: PartOptions) -> list[nn.Parameter]:
        named = [pair for module in place.modules for pair in module.named_parameters()]
        return [parameter for name, parameter in named if name.rpartition(".")[2] == "bias"]


@register("layernorm")
class LayerNorm(Method):
    """Trains all LayerNorms."""

    Options = PartOptions
    tokenwise = True
    trains_existing = "LayerNorms"

    def insert(self, place: Place, options: PartOptions) -> list[nn.Parameter]:
        return parameters_of(place.layer_norms)
