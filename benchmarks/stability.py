"""How a score changes when the photo does not, or hardly; and what the models do with what they were not made for.

    python benchmarks/stability.py PHOTOS --models pocket standard -o stability.json

PHOTOS: unrated photos; 50 of bsds500 and 75 of imagen in tools/pocket/left_out.txt are used, which neither the pool nor
the pocket network has seen. First table: changes that ought to change nothing. Second: changes that make
another picture of it; the mean change says which way the score goes. Third: pictures that are no photographs, and what
of them is flagged (`unlike` above .97).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from in_the_box import LEFT_OUT
from milnet.doubt import UNLIKE
from milnet.images import open_photo
from milnet.scoring import Score, Scorer
from non_photos import make
from timing import machine

Change = Callable[[Image.Image], "Image.Image | bytes"]


def resized(times: float) -> Change:
    """The photo at another size."""
    return lambda image: image.resize(
        (round(image.width * times), round(image.height * times)), Image.Resampling.LANCZOS
    )


def jpeg(quality: int) -> Change:
    """Saved again, as bytes."""

    def change(image: Image.Image) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return stream.getvalue()

    return change


def turned(image: Image.Image) -> bytes:
    """Lying in the file, upright by its EXIF orientation; PNG, so that the pixels stay."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    return stream.getvalue()


def cropped(share: float) -> Change:
    """Without a border of this share of each side."""

    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def noisy(image: Image.Image) -> Image.Image:
    """Strong grain."""
    noise = np.random.default_rng(0).normal(0, 30, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image, np.float64) + noise).clip(0, 255).astype(np.uint8))


def painted(image: Image.Image) -> Image.Image:
    """Like a painting: flat patches of few colours with dark outlines."""
    flat = image.filter(ImageFilter.ModeFilter(9)).quantize(16).convert("RGB")
    lines = ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES)).point(lambda x: 255 if x > 200 else 60)
    return Image.composite(flat, Image.new("RGB", image.size, (20, 20, 30)), lines)


def upscaled(image: Image.Image) -> Image.Image:
    """From a quarter of its sides back to its size: soft everywhere."""
    small = image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.BICUBIC)


STABLE: dict[str, Change] = {
    "half size": resized(0.5),
    "double size": resized(2.0),
    "JPEG 75": jpeg(75),
    "rotated by EXIF": turned,
    "2 % cropped off each side": cropped(0.02),
    "5 % cropped off each side": cropped(0.05),
    "mirrored": ImageOps.mirror,
}
OTHER: dict[str, Change] = {
    "black and white": lambda image: image.convert("L").convert("RGB"),
    "colours doubled": lambda image: ImageEnhance.Color(image).enhance(2.0),
    "darker (half)": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "upscaled 4x from a quarter": upscaled,
    "blurred (radius 3)": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "grain (deviation 30)": noisy,
    "JPEG 10": jpeg(10),
    "like a painting": painted,
    "upside down": ImageOps.flip,
}


def changes(before: list[Score], after: list[Score]) -> dict[str, float]:
    """Of scores in their units: mean, mean absolute and largest change; share that is flagged as unlike."""
    off = np.array([b.score - a.score for a, b in zip(before, after, strict=True)])
    return {
        "mean": float(off.mean()),
        "absolute": float(np.abs(off).mean()),
        "worst": float(np.abs(off).max()),
        "unlike": float(np.mean([(score.unlike or 0) > UNLIKE for score in after])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", nargs="+", default=["pocket", "standard"])
    parser.add_argument("--weights", help="of mobilenetv2_100, where they were not added")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(machine())
    lines = LEFT_OUT.read_text().splitlines()
    names = [line for line in lines if line.startswith("bsds500/")][::2]
    names += [line for line in lines if line.startswith("imagen/")][:150:2]
    photos = [open_photo(options.photos / name).pixels for name in names]
    no_photos = make(200)
    result: dict[str, Any] = {"machine": machine(), "photos": len(photos), "models": {}}
    for model in options.models:
        scorer = Scorer.load(model, weights=options.weights if model == "standard" else None)
        before = scorer.score(photos)
        found: dict[str, Any] = {
            "scores": {
                "mean": float(np.mean([score.score for score in before])),
                "deviation": float(np.std([score.score for score in before])),
                "unlike": float(np.mean([(score.unlike or 0) > UNLIKE for score in before])),
            },
            "changes": {},
            "no photos": {},
        }
        print(f"{model}: {found['scores']}")
        for name, change in {**STABLE, **OTHER}.items():
            found["changes"][name] = changes(before, scorer.score([change(photo) for photo in photos]))
            print(f"  {name:28}", "  ".join(f"{k} {v:+.3f}" for k, v in found["changes"][name].items()), flush=True)
        kinds = {name.rsplit("-", 1)[0] for name in no_photos}
        for kind in sorted(kinds):
            scores = scorer.score([picture for name, picture in no_photos.items() if name.startswith(kind)])
            found["no photos"][kind] = {
                "score": float(np.mean([score.score for score in scores])),
                "highest": float(np.max([score.score for score in scores])),
                "unlike": float(np.mean([(score.unlike or 0) > UNLIKE for score in scores])),
            }
            print(f"  {kind:28}", "  ".join(f"{k} {v:.3f}" for k, v in found["no photos"][kind].items()), flush=True)
        result["models"][model] = found
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
