"""The flags that all imports share."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

from transrec.data.moments import seconds_of
from transrec.errors import TransrecError
from transrec.options import Options, flag

BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LEAST_BYTES = 250 * 10**6


@dataclass(frozen=True)
class ImportOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"k_core": 0, "min_length": 0, "max_length": 0, "threads": 0}

    out: str = flag("", "Folder of the new dataset (required).")
    overwrite: bool = flag(False, "Replace the dataset that an earlier import wrote to --out.")
    plugin: list[str] = flag([], "Python files that register formats of your own.", action="extend")
    min_rating: float | None = flag(
        None, "Keep interactions with at least this rating; interactions without a rating are dropped."
    )
    since: str | None = flag(
        None, "Keep interactions from this time on: 2019-09-01, 2019-09-01T12:00 or seconds since 1970 (UTC)."
    )
    until: str | None = flag(None, "Keep interactions before this time, given like --since.")
    duplicates: Literal["drop", "consecutive", "keep"] = flag(
        "drop",
        "Repeated interactions of a user with an item: drop all but the earliest, drop only those that directly follow "
        "one another (consecutive), or keep all.",
    )
    k_core: int = flag(
        0, "Keep users and items with at least this many interactions with one another, repeated until nothing changes."
    )
    min_length: int = flag(0, "Drop users with fewer interactions than this.")
    max_length: int = flag(0, "Drop users with more interactions than this, such as bots (0: no limit).")
    ties: Literal["item", "row"] = flag(
        "item", "Order of a user's interactions at equal times: by item id, or in the order of the source's rows."
    )
    untouched: Literal["auto", "keep", "drop"] = flag(
        "auto", "Keep or drop items of the source without interactions; auto drops them only with --k_core."
    )
    encoding: str = flag(
        "", "Encoding of the source's text files, such as latin-1 (default: as the format says, otherwise UTF-8)."
    )
    memory: str = flag("4GB", "Memory to use, mostly by DuckDB; data that does not fit goes to files next to --out.")
    threads: int = flag(0, "Number of threads of DuckDB (0: one per usable CPU).")

    def __post_init__(self):
        super().__post_init__()
        if not self.out:
            raise TransrecError("--out: missing; give the folder of the new dataset, such as --out Dataset/Mine")
        if self.max_length and self.max_length < max(self.min_length, self.k_core):
            raise TransrecError(
                f"--max_length {self.max_length}: below --min_length or --k_core, so no user would stay"
            )
        if self.encoding:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise TransrecError(f"--encoding {self.encoding}: unknown; give one such as latin-1") from None
        if self.memory_bytes < LEAST_BYTES:
            raise TransrecError(f"--memory {self.memory}: too little to work with; give 250MB or more")
        since, until = self.since_seconds, self.until_seconds
        if since is not None and until is not None and since >= until:
            raise TransrecError(f"--since {self.since}: not before --until {self.until}")

    @property
    def memory_bytes(self) -> int:
        """--memory in bytes. Raises TransrecError if it is not an amount of memory."""
        match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]i?B)\s*", self.memory, re.IGNORECASE)
        try:
            return int(float(match[1]) * BYTES[match[2].upper()]) if match else int(self.memory)
        except ValueError:
            raise TransrecError(f"--memory {self.memory}: no amount of memory; give one such as 4GB") from None

    @property
    def since_seconds(self) -> float | None:
        """--since in seconds since 1970, UTC."""
        return _seconds("since", self.since)

    @property
    def until_seconds(self) -> float | None:
        """--until in seconds since 1970, UTC."""
        return _seconds("until", self.until)

    @property
    def shortest(self) -> int:
        """The minimum number of interactions of a user."""
        return max(self.min_length, self.k_core)

    @property
    def keeps_untouched(self) -> bool:
        """True if items.tsv includes items of the source that have no interactions."""
        return self.untouched == "keep" or (self.untouched == "auto" and not self.k_core)


def _seconds(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    if re.fullmatch(r"(19|20)\d\d(\d{4})?", text):
        raise TransrecError(f"--{name} {text}: may be a date or seconds since 1970; write a date as 2019-09-01")
    for read in (float, seconds_of):
        with suppress(ValueError):
            if math.isfinite(seconds := read(text)):
                return seconds
    raise TransrecError(f"--{name} {text}: no time; give one such as 2019-09-01, or seconds since 1970")
