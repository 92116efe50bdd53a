"""Registry of methods, and the one place that decides which parameters train.

A method is one file of this package: it registers itself under its name, declares its settings in an options dataclass,
and places modules at the sites of a stack. No other code needs to know about it.
"""

from transrec.methods.base import (
    METHODS,
    PLACES,
    ROUNDING,
    AdapterOptions,
    InsertOptions,
    Method,
    MethodOptions,
    Place,
    Rates,
    TrainableGroup,
    apply,
    get,
    names,
    plain_linear,
    register,
)

__all__ = [
    "METHODS",
    "PLACES",
    "ROUNDING",
    "AdapterOptions",
    "InsertOptions",
    "Method",
    "MethodOptions",
    "Place",
    "Rates",
    "TrainableGroup",
    "apply",
    "get",
    "names",
    "plain_linear",
    "register",
]
