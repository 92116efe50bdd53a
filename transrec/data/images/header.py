"""The header of an image store."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import lmdb

from transrec.data.images.pictures import KINDS, LARGEST_SIZE
from transrec.errors import TransrecError
from transrec.untrusted import parse_json

# Item ids contain no spaces.
HEADER_KEY = b" header"
FORMAT = 1


@dataclass(frozen=True)
class Header:
    """The metadata of a store. It is written last, so a store that has a header is complete.

    Attributes:
        count: number of images, one for each item of the items file.
        size: S; every image is S x S pixels.
        kind: "jpeg", or "raw" for uint8 [3, S, S].
        quality: JPEG quality; None if raw.
        source_hash: hex SHA-256 of the items file's hash and of the name and byte count of each item's image files (of
            the content, if they come from an original program's LMDB), in the order of the items file.
        grey: ids whose image was unusable and is replaced with a plain grey one.
        converted: ids whose image was in an uncommon form and was converted.
        format: version of the store format.
    """

    count: int
    size: int
    kind: str
    quality: int | None
    source_hash: str
    grey: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def serves(self, wanted: "Header", convert: bool, allow_missing: bool) -> bool:
        """Return whether a build with the header `wanted` would produce the same store."""
        plain = replace(self, grey=[], converted=[])
        return plain == wanted and (allow_missing or not self.grey) and (convert or not self.converted)


def read_header(transaction: lmdb.Transaction, path: Path) -> Header:
    """Return the header of the store at `path`. Raises TransrecError if it is missing, damaged or of a newer format."""
    value = transaction.get(HEADER_KEY)
    if value is None:
        raise TransrecError(
            f"{path}: an LMDB, but not an image store of transrec; make one with Dataset/build_lmdb.py "
            f"(--import_original takes the LMDBs of Adapter4Rec and IISAN)"
        )
    try:
        values = parse_json(bytes(value))
        if values["format"] > FORMAT:
            raise TransrecError(
                f"{path}: image store of format {values['format']}, this transrec reads up to {FORMAT}; "
                f"update transrec, or make the store again with Dataset/build_lmdb.py"
            )
        header = Header(**values)
        if not (
            isinstance(header.size, int)
            and 1 <= header.size <= LARGEST_SIZE
            and header.kind in KINDS
            and isinstance(header.count, int)
            and all(isinstance(item, str) for item in (header.source_hash, *header.grey, *header.converted))
        ):
            raise ValueError("it describes no images")
        return header
    except (ValueError, KeyError, TypeError) as error:
        raise TransrecError(f"{path}: the header is damaged ({error}); make or copy the store again") from error
