"""What the technical signals say of photos that were changed in a known way, and how long they take.

    python benchmarks/signals.py DATA/oasis/images DATA/photos/bsds500 -o signals.json

200 photos of each folder, drawn with a fixed seed. First table: sharpness after Gaussian and motion blur, and for how
many photos each step lowers it (or leaves it at 0); after noise, darkening, shrinking and JPEG, of the photo as it is
and blurred by 2 pixels. `told apart`: the chance that a photo as it is measures sharper than another photo blurred.
Second: the noise that was found against that added to the photo's own (root of the sum of squares). Third: times.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from milnet.images import open_photo
from milnet.signals import measure
from timing import machine

Change = Callable[[Image.Image, int], Image.Image]  # of a photo and its number
RADII = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LENGTHS = (3, 5, 9, 15)
NOISES = (2.0, 5.0, 10.0, 20.0)


def blurred(radius: float) -> Change:
    """By a Gaussian of this deviation in pixels."""
    return lambda image, i: image.filter(ImageFilter.GaussianBlur(radius))


def shaken(length: float) -> Change:
    """Moved evenly over `length` pixels, every second photo across, the others down."""

    def change(image: Image.Image, i: int) -> Image.Image:
        x = np.asarray(image, np.float64)
        x = x if i % 2 == 0 else x.swapaxes(0, 1)
        sums = np.cumsum(np.pad(x, [(int(length), 0), (0, 0), (0, 0)], mode="edge"), axis=0)
        x = (sums[int(length) :] - sums[: -int(length)]) / length
        return Image.fromarray((x if i % 2 == 0 else x.swapaxes(0, 1)).round().astype(np.uint8))

    return change


def noisy(deviation: float) -> Change:
    """With noise of the brightness: the same in the three channels of a pixel."""

    def change(image: Image.Image, i: int) -> Image.Image:
        noise = np.random.default_rng(i).normal(0, deviation, (image.height, image.width, 1))
        return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))

    return change


def darker(times: float) -> Change:
    """Times as bright."""
    return lambda image, i: image.point(lambda x: round(x * times))


def smaller(times: float) -> Change:
    """Times as large."""
    return lambda image, i: image.resize(
        (round(image.width * times), round(image.height * times)), Image.Resampling.LANCZOS
    )


def jpeg(quality: int) -> Change:
    """Saved and read again."""

    def change(image: Image.Image, i: int) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB")

    return change


def changed(images: list[Image.Image], change: Change) -> list[Image.Image]:
    """All of them."""
    return [change(image, i) for i, image in enumerate(images)]


def sharpness(images: list[Image.Image]) -> NDArray[np.float64]:
    """Of each image."""
    return np.array([measure(image, image.size).sharpness for image in images])


def told_apart(sharp: NDArray[np.float64], soft: NDArray[np.float64]) -> float:
    """Chance that one of `sharp` is above one of `soft`, ties half."""
    return float((sharp[:, None] > soft).mean() + (sharp[:, None] == soft).mean() / 2)


def of_sharpness(images: list[Image.Image]) -> dict[str, Any]:
    """The first table."""
    plain = sharpness(images)
    result: dict[str, Any] = {"as they are": np.quantile(plain, (0.1, 0.5, 0.9)).tolist()}
    print("as they are: 10 %, median, 90 %:", " ".join(f"{x:.1f}" for x in result["as they are"]))
    for kind, steps, make in (("Gaussian blur", RADII, blurred), ("motion blur", LENGTHS, shaken)):
        before = plain
        for step in steps:
            after = sharpness(changed(images, make(step)))
            row = {
                "median": float(np.median(after)),
                "lower": float(np.mean((after < before) | (after == 0))),
                "told apart": told_apart(plain, after),
            }
            result[f"{kind} {step:g}"] = row
            print(f"{kind} {step:4g} pixels:", ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
            before = after
    soft = changed(images, blurred(2.0))
    of_soft = sharpness(soft)
    changes: dict[str, Change] = {
        **{f"noise {d:g}": noisy(d) for d in NOISES[1:]},
        **{f"times {t:g} as bright": darker(t) for t in (0.5, 0.7)},
        **{f"times {t:g} as large": smaller(t) for t in (0.5, 0.7)},
        **{f"JPEG {q}": jpeg(q) for q in (30, 60, 90)},
    }
    for name, change in changes.items():
        off = sharpness(changed(images, change)) - plain
        row = {"change": float(np.median(off)), "absolute": float(np.median(np.abs(off)))}
        if "large" not in name:  # a blurred photo made smaller is sharper, and rightly so
            of_both = sharpness(changed(soft, change))
            row |= {"change of blurred": float(np.median(of_both - of_soft)), "told apart": told_apart(plain, of_both)}
        result[name] = row
        print(f"{name:22}", ", ".join(f"{k} {v:+.3f}" for k, v in row.items()), flush=True)
    return result


def of_noise(images: list[Image.Image]) -> dict[str, Any]:
    """The second table."""
    own = np.array([measure(image, image.size).noise for image in images])
    result: dict[str, Any] = {"own": np.quantile(own, (0.5, 0.9)).tolist()}
    print("noise of the photos themselves: median, 90 %:", " ".join(f"{x:.2f}" for x in result["own"]))
    for deviation in NOISES:
        found = np.array([measure(image, image.size).noise for image in changed(images, noisy(deviation))])
        off = found / np.hypot(own, deviation) - 1
        row = {
            "median": float(np.median(found)),
            "relative error": float(np.median(np.abs(off))),
            "95 % below": float(np.quantile(np.abs(off), 0.95)),
        }
        result[f"added {deviation:g}"] = row
        print(f"added {deviation:4g}:", ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    return result


def times(image: Image.Image) -> dict[str, float]:
    """Milliseconds a photo, the median of 20, at several sizes."""
    result = {}
    for size in ((500, 400), (2400, 1800), (4000, 3000), (6000, 4000)):
        large = image.resize(size, Image.Resampling.BICUBIC)
        taken = []
        for _ in range(21):
            began = time.perf_counter()
            measure(large, size)
            taken.append(time.perf_counter() - began)
        result[f"{size[0]}x{size[1]}"] = float(np.median(taken[1:]) * 1e3)
        print(f"{size[0]} x {size[1]}: {result[f'{size[0]}x{size[1]}']:.2f} ms")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="folders of photos")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(machine())
    images = []
    for folder in options.photos:
        paths = sorted(folder.rglob("*.jpg"))
        picks = np.random.default_rng(0).permutation(len(paths))[:200]
        images += [open_photo(paths[i]).pixels for i in sorted(picks)]
    result = {
        "machine": machine(),
        "photos": len(images),
        "sharpness": of_sharpness(images),
        "noise": of_noise(images),
        "milliseconds": times(images[0]),
    }
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
