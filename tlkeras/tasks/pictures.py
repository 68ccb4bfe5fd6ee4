"""Reads one image file: its header, and its pixels as 8-bit RGB.

Grey is repeated over the channels, transparent images are laid over white, palettes and CMYK are
converted, an animation gives its first frame, and photographs are turned upright as their EXIF
entry says. Values of more than 8 bits per channel are scaled so that `white` becomes 255. It is the
largest value that the bits in use can hold (many 16-bit files use only 12 bits), and the same for
all files of a folder, so that they stay comparable.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

SUFFIXES = {
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
}
ORIENTATION, WIDTH, HEIGHT, BITS_PER_SAMPLE = 0x0112, 256, 257, 258  # entries of EXIF and TIFF
WHITE = 65535.0  # of 16 bits
_HANDLING = {
    "RGB": "",
    **dict.fromkeys(("L", "I;16", "I;16B", "I", "F"), "grey: repeated over three channels"),
    "LA": "transparent: laid over white",
    "RGBA": "transparent: laid over white",
    "P": "palette: converted to RGB",
    "1": "black and white: repeated over three channels",
    "CMYK": "CMYK: converted to RGB without a colour profile",
}


@dataclass(frozen=True)
class Header:
    """What is known about an image before it is decoded.

    Attributes:
        size: (height, width) once upright.
        handling: how the file differs from plain 8-bit RGB, one entry per difference.
        peak: the largest value in files of more than 8 bits per channel; else 0.
        fractions: True if its values are floats.
        problem: why it cannot be read, or "".
    """

    size: tuple[int, int] = (0, 0)
    handling: tuple[str, ...] = ()
    peak: float = 0.0
    fractions: bool = False
    problem: str = ""


def inspect(path: Path) -> Header:
    """Read the header and, with more than 8 bits per channel, the pixels for their range."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = _size(image)
            orientation = _orientation(image)
            handling = [_HANDLING.get(image.mode, f"mode {image.mode}: converted to RGB")]
            if image.mode in ("P", "LA", "PA", "RGBA") and image.has_transparency_data:
                handling = ["transparent: laid over white"]
            deep = _deep(path, image)
            if deep is not None:
                depth = "16" if deep.dtype.itemsize == 2 else "more than 8"
                handling.append(f"{depth} bits a channel: {{scaled}}")
            elif _bits(path, image) > 8:
                handling.append("16 bits a channel: reduced to 8 by dropping the low byte")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                handling.append("of several frames or pages: the first taken")
            if orientation != 1:
                handling.append("turned upright as its EXIF entry says")
            if orientation >= 5:
                width, height = height, width
            return Header(
                (height, width),
                tuple(filter(None, handling)),
                _peak(deep),
                deep is not None and deep.dtype.kind == "f",
            )
    except Exception as error:  # for a damaged file Pillow raises nearly any type
        return Header(problem=_first_line(error, path))


def decode(path: Path, size: tuple[int, int], white: float = WHITE) -> np.ndarray:
    """Return the image as uint8 RGB, (*size, 3).

    Args:
        path: path of the file.
        size: (height, width) to resize to; the aspect ratio is not kept.
        white: the value that becomes 255 in files of more than 8 bits per channel.

    Raises:
        ValueError: the file cannot be read; the message says why.
    """
    try:
        # An open file, not its path: given a path, Pillow 13 maps a TIFF into memory and turns it
        # wrongly.
        with path.open("rb") as file, Image.open(file) as opened:
            # A large JPEG is decoded at reduced size.
            opened.draft("RGB", size if _orientation(opened) >= 5 else size[::-1])
            opened.load()  # also turns a TIFF upright
            image = _upright(_eight_bits(path, opened, white), _orientation(opened))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                background = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(background, image)
            image = image.convert("RGB")
            if image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # for a damaged file Pillow raises nearly any type
        raise ValueError(_first_line(error, path)) from None


def white_of(headers: list[Header]) -> float:
    """Return the value that becomes 255: the largest that the bits in use can hold.

    It is 1 if all files of more than 8 bits per channel hold floats up to 1.
    """
    deep = [header for header in headers if header.peak]
    peak = max((header.peak for header in deep), default=WHITE)
    if peak <= 1 and all(header.fractions for header in deep):
        return 1.0
    return float(max(255, 2 ** int(peak).bit_length() - 1))


def scaling(white: float) -> str:
    """Describe in words the scaling for this value of `white`."""
    bits = "" if white == 1 else f" ({int(white).bit_length()} bits, by the largest value in them)"
    return f"0 to {white:,.0f}{bits} becomes 0 to 255"


def _eight_bits(path: Path, image: Image.Image, white: float) -> Image.Image:
    deep = _deep(path, image)
    if deep is None:
        return image
    colours, alpha = _split_alpha(np.nan_to_num(deep.astype("float64")))
    scaled = np.concatenate([colours * (255 / white), alpha * (255 / WHITE)], -1)
    values = np.round(np.clip(scaled, 0, 255)).astype("uint8")
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _peak(deep: np.ndarray | None) -> float:
    if deep is None:
        return 0.0
    colours, _ = _split_alpha(deep)
    return float(colours.max(where=np.isfinite(colours), initial=0))


def _split_alpha(deep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return colours and alpha, which has its own range, each (height, width, channels)."""
    channels = deep.shape[-1]
    last = channels - 1 if channels in (2, 4) else channels
    return deep[..., :last], deep[..., last:]


def _size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as stored; for a TIFF, `image.size` is that of the upright image."""
    if image.format != "TIFF":
        return image.size
    tags = getattr(image, "tag_v2", {})
    return tags[WIDTH], tags[HEIGHT]


def _orientation(image: Image.Image) -> int:
    """Return how the image must be turned, as an EXIF orientation number; 1 means not at all."""
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    image.getexif()[ORIENTATION] = orientation  # missing if the image was made from an array
    return ImageOps.exif_transpose(image)


def _deep(path: Path, image: Image.Image) -> np.ndarray | None:
    """Return values of more than 8 bits per channel, (height, width, channels), or None."""
    if image.format == "PNG" and _bits(path, image) == 16:  # Pillow would drop colour bits
        return tf.io.decode_png(path.read_bytes(), dtype=tf.uint16).numpy()
    return np.asarray(image)[..., None] if image.mode.startswith(("I", "F")) else None


def _bits(path: Path, image: Image.Image) -> int:
    """Return the bits per channel in the header of a PNG or TIFF; 8 for other formats."""
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
    if image.format != "PNG":
        return 8
    with path.open("rb") as file:
        return file.read(25)[24]


def _first_line(error: Exception, path: Path) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    for name in (f"<_io.BufferedReader name={str(path)!r}>", f": {str(path)!r}"):
        text = text.replace(name, "")
    return " ".join(text.split())
