"""Divides interactions into training, validation and test: the choices of --split (docs/protocol.md)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from transrec.data.interactions import PARTS, Interactions, Sequences, Split, cut_sequences, kept_users, leave_one_out
from transrec.data.moments import moment, seconds_of
from transrec.errors import TransrecError

Kind = Literal["loo", "time", "ratio", "given"]
# Where test and validation targets start by default.
SHARES = {"split_at": 0.9, "validate_at": 0.8}


@dataclass(frozen=True)
class Splitting:
    """The settings of a split, except for the sequence lengths.

    Attributes:
        kind: "loo", "time", "ratio" or "given".
        split_at: where test interactions start: a share of the interactions such as "0.9"; for "time" also a moment,
            as a date or in seconds since 1970.
        validate_at: where validation interactions start, in the same form.
        catalogue: "touched" to rank only the items of kept interactions, "all" to rank every listed item.

    Raises TransrecError if `split_at` or `validate_at` is invalid, or is set for a kind that does not use it.
    """

    kind: Kind = "loo"
    split_at: str | None = None
    validate_at: str | None = None
    catalogue: Literal["touched", "all"] = "touched"

    def __post_init__(self):
        for flag in SHARES:
            if self.kind not in ("time", "ratio") and getattr(self, flag) is not None:
                raise TransrecError(f"--{flag} {getattr(self, flag)}: is read by --split time and --split ratio only")
            self.place(flag)
        test, validation = self.place("split_at"), self.place("validate_at")
        if isinstance(test, float) == isinstance(validation, float) and not validation < test:
            raise TransrecError(
                f"--validate_at {self.validate_at or validation}: must come before --split_at {self.split_at or test}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The data that the split needs in addition to the order of interactions: "times" or "parts"."""
        return {"time": ("times",), "given": ("parts",)}.get(self.kind, ())

    def place(self, flag: str) -> float | int:
        """Return the value of a flag: a share of the interactions (float), or a moment in seconds since 1970 (int)."""
        value = getattr(self, flag)
        if value is None:
            return SHARES[flag]
        try:
            if 0 < float(value) < 1:
                return float(value)
            is_moment = self.kind == "time" and float(value).is_integer()
        except ValueError:
            is_moment = False
        if is_moment:
            return int(float(value))
        try:
            if self.kind != "time":
                raise ValueError
            return int(seconds_of(value))
        except ValueError:
            dates = ", or a date such as 2018-09-01 or 2018-09-01T12:00" if self.kind == "time" else ""
            raise TransrecError(f"--{flag} {value}: must be a share above 0 and below 1, such as 0.9{dates}") from None

    def split(self, interactions: Interactions, catalog_size: int, max_seq_len: int, min_seq_len: int) -> Split:
        """Split the interactions.

        Args:
            catalog_size: how many items the catalogue lists.

        Raises TransrecError if no user is left. Kinds other than "loo" also raise it if nothing is left to train on or
        if validation or test has no target, and "time" if the interactions are not ordered by time. Times or parts must
        have been read if the split `needs` them.
        """
        ranked = catalog_size if self.catalogue == "all" else None
        if self.kind == "loo":
            return leave_one_out(interactions, max_seq_len, min_seq_len, ranked)
        if self.kind == "given":
            interactions = _by_part(interactions)
        users = kept_users(interactions, min_seq_len)
        starts, rule = STARTS[self.kind](self, interactions, users)
        split = replace(cut_sequences(interactions, users, starts, max_seq_len, ranked), rule=rule)
        _check(split, interactions, self)
        return split


def _starts_in_time(splitting: Splitting, interactions: Interactions, users: np.ndarray):
    """Cut all users' sequences at the same two moments; interactions before the first are for training."""
    times, sequences = interactions.times, interactions.sequences.select(users)
    assert times is not None
    _check_order(interactions)
    sorted_times = None
    moments = []
    for flag in ("validate_at", "split_at"):
        place = splitting.place(flag)
        if isinstance(place, float):
            if sorted_times is None:
                sorted_times = np.sort(Sequences(times, sequences.starts, sequences.stops).flat())
            place = int(sorted_times[int(place * len(sorted_times))])
        moments.append(place)
    if not moments[0] < moments[1]:
        raise TransrecError(
            f"--split time: validation would start at {moment(moments[0])} and test at {moment(moments[1])}; choose "
            f"other places by --validate_at and --split_at"
        )
    validation, test = (_first_after(times < at, sequences) for at in moments)
    return (validation, test), f"by time, validation from {moment(moments[0])}, test from {moment(moments[1])}"


def _starts_by_share(splitting: Splitting, interactions: Interactions, users: np.ndarray):
    """Cut each user's sequence at the same shares, rounded to leave training and test one interaction or more."""
    sequences = interactions.sequences.select(users)
    lengths = sequences.lengths
    shares = splitting.place("validate_at"), splitting.place("split_at")
    test = np.clip(np.round(shares[1] * lengths).astype(np.int64), 1, lengths - 1)
    validation = np.clip(np.round(shares[0] * lengths).astype(np.int64), 1, test)
    rule = f"by shares of each user, validation from {shares[0]:g}, test from {shares[1]:g}"
    return (sequences.starts + validation, sequences.starts + test), rule


def _starts_given(splitting: Splitting, interactions: Interactions, users: np.ndarray):
    """Cut where the publisher's parts start; each user's interactions are already ordered by part."""
    sequences, parts = interactions.sequences.select(users), interactions.parts
    assert parts is not None
    validation, test = (_first_after(parts < part, sequences) for part in (1, 2))
    rule = "as given by its publisher"
    if not (validation < test).any():
        validation -= validation - sequences.starts > 1
        rule += ", the last training interaction of each user for validation"
    return (validation, test), rule


def _first_after(is_earlier: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Return the index of each sequence's first value that is not earlier: int64 [U]. Earlier ones must come first."""
    running = np.concatenate([[0], np.cumsum(is_earlier)])
    return sequences.starts + running[sequences.stops] - running[sequences.starts]


LEAVE_ONE_OUT = Splitting()
STARTS = {"time": _starts_in_time, "ratio": _starts_by_share, "given": _starts_given}


def _by_part(interactions: Interactions) -> Interactions:
    """Order each user's interactions by part (training, validation, test), keeping the order within a part."""
    parts, sequences = interactions.parts, interactions.sequences
    assert parts is not None
    falls = np.diff(parts, prepend=parts[:1]) < 0
    falls[sequences.starts[sequences.lengths > 0]] = False
    if not falls.any():
        return interactions
    order = np.lexsort((parts, sequences.owners()))
    return replace(
        interactions,
        sequences=Sequences(sequences.values[order], sequences.starts, sequences.stops),
        times=None if interactions.times is None else interactions.times[order],
        parts=parts[order],
    )


def _check_order(interactions: Interactions) -> None:
    times, sequences = interactions.times, interactions.sequences
    assert times is not None
    falls = np.diff(times, prepend=times[:1]) < 0
    falls[sequences.starts[sequences.lengths > 0]] = False
    if falls.any():
        user = int(np.searchsorted(sequences.stops, int(np.argmax(falls)), side="right"))
        raise TransrecError(
            f"{interactions.path}: the interactions of user {interactions.users[user]!r} are not in the order of their "
            f"times, oldest first, which --split time needs; sort them, or import the dataset again"
        )


def _check(split: Split, interactions: Interactions, splitting: Splitting) -> None:
    """Raise TransrecError if nothing is left to train on, or if validation or test has no target."""
    remedy = (
        "choose other places by --validate_at and --split_at" if splitting.kind != "given" else "use another --split"
    )
    if not (split.train.lengths > 1).any():
        raise TransrecError(
            f"{interactions.path}: split {split.rule}, no user has two interactions to train on; {remedy}"
        )
    for part in PARTS[1:]:
        if not len(split.targets(part)[0]):
            raise TransrecError(f"{interactions.path}: split {split.rule}, {part} has no target; {remedy}")
