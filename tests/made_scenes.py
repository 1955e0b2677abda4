"""Photos that differ from each other by what a network sees: shapes, textures and colours, not colours alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Stripes, blobs, noise, boxes or lines, in colours of their own."""
    rng = np.random.default_rng(seed)
    colours = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(6)]
    image = Image.new("RGB", (width, height), colours[0])
    draw = ImageDraw.Draw(image)
    kind = seed % 6
    for i in range(int(rng.integers(3, 40))):
        x, y, w, h = (int(v) for v in rng.integers(0, [width, height, width // 2, height // 2]))
        colour = colours[1 + i % 5]
        if kind == 0:
            draw.ellipse((x, y, x + w + 4, y + h + 4), fill=colour)
        elif kind == 1:
            draw.rectangle((x, y, x + w + 4, y + h + 4), fill=colour)
        elif kind == 2:
            draw.line((x, y, w * 2, h * 2), fill=colour, width=1 + i % 9)
        elif kind == 3:
            draw.rectangle((i * 14, 0, i * 14 + 7, height), fill=colour)
        elif kind == 4:
            draw.polygon([(x, y), (x + w, y), (w, y + h)], fill=colour)
        else:
            draw.text((x, y), "milnet " * 4, fill=colour, font_size=8 + h // 2)
    if seed % 5 == 1:
        image = image.filter(ImageFilter.GaussianBlur(6))
    if seed % 4 == 2:
        noise = rng.normal(0, 50, (height, width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image


def scene_jpeg(seed: int, width: int = 320, height: int = 240, exif: bytes = b"", **options: Any) -> bytes:
    """As a JPEG; `exif`: a TIFF block."""
    stream = io.BytesIO()
    how = {"exif": b"Exif\0\0" + exif} if exif else {}
    scene(seed, width, height).save(stream, "JPEG", **{"quality": 90, **how, **options})
    return stream.getvalue()
