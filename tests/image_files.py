"""Small image files for the tests of folders."""

import struct
import zlib

import numpy as np
from PIL import Image


def save(path, value=128, size=(12, 10), mode="RGB", **options):
    """A real image file of one value; `dpi` makes the bytes of two equal images differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def scene(path, seed, size=(64, 64), **options):
    """A real image file with something to see: random blobs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blobs = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype="uint8")
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).save(path, **options)


def photos(root, classes=("cat", "dog"), count=8, suffix="png"):
    for label, name in enumerate(classes):
        for number in range(count):
            value = 40 + 100 * label + number
            save(root / name / f"{number}.{suffix}", (value, value, value))
    return root


def png16(path, values):
    """Writes a 16-bit PNG byte by byte: (height, width), or with 3 or 4 channels."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else {3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
