"""Methods by name, and the one place that decides what trains.

A method is one file of this package: it registers itself under its name, says in an options dataclass what can be set,
and places modules at the sites of a stack. Nothing else needs to know of it.
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
