"""Converts an image file's bytes to a small RGB image, and that image to a record of a store."""

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
PNG_BIT_DEPTH = 24  # Offset of the bit depth in a PNG file: every PNG begins with the same chunk.


# Forms that only --convert accepts, and how to recognise them from an opened image and the bytes of its file.
UNCOMMON_FORMS = {
    # Cameras append a preview to the picture (MPO), which is not an animation.
    "animated": lambda picture, data: getattr(picture, "is_animated", False) and picture.format != "MPO",
    "CMYK": lambda picture, data: picture.mode == "CMYK",
    "palette": lambda picture, data: picture.mode in ("P", "PA"),
    "16-bit": lambda picture, data: picture.format == "PNG" and data[PNG_BIT_DEPTH] == 16,
}


class Problem(Exception):
    """The reason why an image is unusable: the fault ("truncated") and, if known, details after a colon."""


def check_pixels(width: int, height: int) -> None:
    """Raise Problem if an image is too large to decode."""
    if width * height > HUGE_PIXELS:
        raise Problem(f"huge: {width} x {height} pixels")


@dataclass(frozen=True)
class Recipe:
    """Settings for the records of a store.

    Attributes:
        size: S; records are images of S x S pixels.
        kind: "jpeg" (4:4:4) or "raw" (uint8 [3, S, S]).
        quality: JPEG quality, 1 to 100.
        convert: accept animated (first frame), CMYK, palette and 16-bit images too.
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
        """Return the record of an RGB image of any size, squeezed to S x S by bilinear resampling with antialiasing."""
        square = (self.size, self.size)
        if picture.size != square:
            picture = picture.resize(square, Image.Resampling.BILINEAR)
        if self.kind == "raw":
            return np.asarray(picture).transpose(2, 0, 1).tobytes()
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=self.quality, subsampling=0)
        return jpeg.getvalue()

    def grey(self) -> bytes:
        """Return the grey record that replaces an unusable image."""
        return self.record(Image.new("RGB", (self.size, self.size), GREY))


def jpeg_size(data: bytes | bytearray) -> tuple[int, int]:
    """Return the width and height that a JPEG declares, without decoding it.

    Raises ValueError if the data is not a JPEG or declares no size.
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
    """Return the RGB image in the bytes of a JPEG, PNG or WebP file, and what was converted ("" if nothing).

    The image is rotated by its EXIF orientation, and transparency becomes white.

    Raises Problem if the image is unreadable, truncated or huge; without `convert`, also if it is animated, CMYK,
    palette or 16-bit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                check_pixels(*picture.size)
                uncommon = ", ".join(name for name, is_so in UNCOMMON_FORMS.items() if is_so(picture, data))
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
        # Decoders raise almost any exception for damaged files.
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
