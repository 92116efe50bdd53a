"""From an image file's bytes to a small RGB image, and from that to a store's record."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transrec.errors import TransrecError

KINDS = ("jpeg", "raw")
FORMATS = ("JPEG", "PNG", "WEBP")
HUGE_PIXELS = 64 * 2**20
# Vision transformers read 224 to 1024 pixels per side; a batch of 256 images of this size fills 12 GiB.
LARGEST_SIZE = 4096
GREY = (128, 128, 128)
PNG_BIT_DEPTH = 24  # Where a PNG says it: every PNG begins with the same chunk.


# What only --convert takes, and how to tell it from an opened image and its file's bytes.
UNCOMMON = {
    # Cameras put a preview behind the picture (MPO); that is no animation.
    "animated": lambda picture, data: getattr(picture, "is_animated", False) and picture.format != "MPO",
    "CMYK": lambda picture, data: picture.mode == "CMYK",
    "palette": lambda picture, data: picture.mode in ("P", "PA"),
    "16-bit": lambda picture, data: picture.format == "PNG" and data[PNG_BIT_DEPTH] == 16,
}


class Problem(Exception):
    """Why an image cannot be used: the fault ("truncated"), and after a colon its details where known."""


def check_pixels(width: int, height: int) -> None:
    """Raises Problem for an image too large to decode."""
    if width * height > HUGE_PIXELS:
        raise Problem(f"huge: {width} x {height} pixels")


@dataclass(frozen=True)
class Recipe:
    """How a store's records are made.

    Attributes:
        size: S, the records are of S x S pixels.
        kind: "jpeg" (4:4:4) or "raw" (uint8 [3, S, S]).
        quality: of JPEG.
        convert: take animated (first frame), CMYK, palette and 16-bit images too.
    """

    size: int
    kind: str
    quality: int = 95
    convert: bool = False

    def __post_init__(self):
        if not 1 <= self.size <= LARGEST_SIZE:
            raise TransrecError(
                f"--size {self.size}: must be from 1 to {LARGEST_SIZE} pixels per side; "
                f"image backbones read 224 to 1024"
            )
        if self.kind not in KINDS:
            raise TransrecError(f"--store {self.kind}: must be one of {', '.join(KINDS)}")
        if not 1 <= self.quality <= 100:
            raise TransrecError(f"--quality {self.quality}: must be from 1 to 100")

    def record(self, picture: Image.Image) -> bytes:
        """The record of an RGB image of any size: squeezed to S x S, bilinear with antialiasing."""
        square = (self.size, self.size)
        if picture.size != square:
            picture = picture.resize(square, Image.Resampling.BILINEAR)
        if self.kind == "raw":
            return np.asarray(picture).transpose(2, 0, 1).tobytes()
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=self.quality, subsampling=0)
        return jpeg.getvalue()

    def grey(self) -> bytes:
        """The record that stands in for an image that cannot be used."""
        return self.record(Image.new("RGB", (self.size, self.size), GREY))


def jpeg_size(data: bytes | bytearray) -> tuple[int, int]:
    """Width and height that a JPEG declares, read without decoding it.

    Raises ValueError for segments in an impossible order.
    """
    position = 2
    while data[:2] == b"\xff\xd8" and position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[position + at : position + at + 2]) for at in (5, 7))
            return width, height
        position += 2 + length
    raise ValueError("not a JPEG")


def decode(data: bytes, convert: bool) -> tuple[Image.Image, str]:
    """The RGB image in a JPEG, PNG or WebP file's bytes, and what was converted ("" if nothing).

    It is turned as its EXIF orientation says; what is transparent becomes white.

    Raises Problem for an image that is unreadable, truncated or huge; also, without `convert`, for one that is
    animated, CMYK, palette or 16-bit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                check_pixels(*picture.size)
                uncommon = ", ".join(name for name, is_so in UNCOMMON.items() if is_so(picture, data))
                if uncommon and not convert:
                    raise Problem(uncommon)
                ImageOps.exif_transpose(picture, in_place=True)
                return _to_rgb(picture), uncommon
        except (Problem, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise Problem(f"huge: {error}") from error
        except UnidentifiedImageError as error:
            raise Problem("unreadable: not a JPEG, PNG or WebP image") from error
        # Decoders of damaged files raise nearly anything.
        except Exception as error:
            kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
            raise Problem(f"{kind}: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.int32) >> 8).astype(np.uint8))
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
