"""transrec: adapt foundation models to sequential recommendation cheaply.

These names are for scripts and other programs to call. Each is imported on first use, so that `import transrec` alone
takes no time:

    pretrain, adapt     run the command line of a script
    load_run            load the recommender of a finished run, for recommendations, embeddings and metrics
    results             read finished runs into a pandas DataFrame, one row per run
    load_original       load the recommender of a checkpoint of the papers' released programs
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transrec.finished import load_run
    from transrec.interop import load_original
    from transrec.reports.results import results
    from transrec.runner import adapt, pretrain

__all__ = ["adapt", "load_original", "load_run", "pretrain", "results"]
__version__ = "0.1.0"

_HOMES = {
    "adapt": "transrec.runner",
    "load_original": "transrec.interop",
    "load_run": "transrec.finished",
    "pretrain": "transrec.runner",
    "results": "transrec.reports.results",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562). Raises AttributeError for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
