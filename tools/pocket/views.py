"""Random views of unrated photos with what the teacher sees in them: what `train.py` learns from.

    python tools/pocket/views.py PHOTOS WEIGHTS OUT [--shards N] [--workers N]

A view is one crop, or two to four crops side by side, turned, recoloured, blurred or grained, of 224x224 pixels for the
teacher (`mobilenetv2_100`), whose maps of 7x7 cells are kept; the pupil gets the same view at half the size, each pixel
the mean of four. So pupil and teacher always see the same (Beyer et al., CVPR 2022: consistent teaching), cell by cell.

Shard k depends on k alone: a run that was stopped goes on with the shards that are missing.
OUT/targets.npz (what the numbers mean), OUT/learn-0000.npz, ... and OUT/choose-0000.npz, ... are written.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from milnet.artifacts import atomic_path
from milnet.backbones import load_backbone
from milnet.images import open_photo, to_array
from milnet.pocket import SEMANTIC

HERE = Path(__file__).parent
SIDE = 224  # of a view, in the teacher's pixels; the pupil sees half of it
CELLS = 7
SHARD = 1024  # views
# Maps that the pupil's own depths learn from, and their channels: of 1/8, 1/16 and 1/32 of the teacher's input.
LEVELS = {"blocks.2.2": 32, "blocks.4.2": 96, "blocks.5.2": 160}
_STEP, _ZERO = 20.0, 128.0  # a number in standard deviations as a byte: 1/20 a step, -6.4 .. 6.35

Rgb = NDArray[np.uint8]


def listed(name: str) -> list[str]:
    """The lines of a list beside this file, without comments."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def split_photos(folder: Path) -> dict[str, list[str]]:
    """Files below `folder`, sorted: `learn`, `choose` (choices are made on them) and `out` (seen by nothing here)."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    choose, out = set(listed("held_out.txt")), set(listed("left_out.txt"))
    missing = (choose | out) - set(files)
    if missing:
        raise SystemExit(f"{folder} lacks {len(missing)} photos of the lists, for example {min(missing)}")
    return {
        "learn": [file for file in files if file not in choose | out],
        "choose": [file for file in files if file in choose],
        "out": [file for file in files if file in out],
    }


def decoded(folder: Path, files: list[str]) -> list[Rgb]:
    """The photos [H, W, 3]."""
    return [to_array(open_photo(folder / file).pixels) for file in files]


def crop(photo: Rgb, width: int, height: int, rng: random.Random) -> Image.Image:
    """A random part of a photo at `width` x `height`: 12 to 100 % of its area, or (one in eight) nearly all."""
    rows, columns = photo.shape[:2]
    if rng.random() < 0.125:
        cut = [rng.uniform(0, 0.06) * side for side in (columns, rows, columns, rows)]
        box = (cut[0], cut[1], columns - cut[2], rows - cut[3])
    else:
        area = rng.uniform(0.12, 1.0) * rows * columns
        aspect = width / height * np.exp(rng.uniform(-0.35, 0.35))
        w, h = min((area * aspect) ** 0.5, columns), min((area / aspect) ** 0.5, rows)
        x, y = rng.uniform(0, columns - w), rng.uniform(0, rows - h)
        box = (x, y, x + w, y + h)
    image = Image.fromarray(photo)
    if rng.random() < 0.12:
        image = image.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    kind = Image.Resampling.BICUBIC if rng.random() < 0.8 else Image.Resampling.BILINEAR
    image = image.resize((width, height), kind, box=box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.04:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def recolour(pixels: NDArray[Any], rng: random.Random) -> NDArray[Any]:
    """Other exposure, contrast, gamma, saturation, white balance or hue of pixels in [0, 1]."""
    if rng.random() < 0.7:
        if rng.random() < 0.5:
            pixels = np.clip(pixels, 0, 1) ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
        if rng.random() < 0.6:
            mean = pixels.mean()
            pixels = (pixels - mean) * np.float32(np.exp(rng.uniform(-0.5, 0.4))) + mean * np.float32(
                np.exp(rng.uniform(-0.4, 0.4))
            )
        if rng.random() < 0.6:
            grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
            pixels = grey[..., None] + (pixels - grey[..., None]) * np.float32(rng.uniform(0.1, 1.9))
        if rng.random() < 0.4:
            pixels = pixels * np.exp(np.array([rng.uniform(-0.2, 0.2) for _ in range(3)], np.float32))
    odd = rng.random()
    if odd < 0.04:  # other hues altogether
        order = [0, 1, 2]
        rng.shuffle(order)
        pixels = pixels[..., order]
    elif odd < 0.09:  # black and white
        grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    elif odd < 0.10:
        pixels = 1 - pixels
    return pixels


def view(photos: list[Rgb], rng: random.Random) -> Rgb:
    """One view [SIDE, SIDE, 3]."""

    def part(width: int, height: int) -> NDArray[Any]:
        image = crop(photos[rng.randrange(len(photos))], width, height, rng)
        return recolour(np.asarray(image, np.float32) / 255, rng)

    kind = rng.random()
    if kind < 0.66:
        pixels = part(SIDE, SIDE)
    elif kind < 0.80:  # two side by side, one above the other
        at = rng.randrange(SIDE // 4, SIDE * 3 // 4)
        pixels = np.concatenate([part(at, SIDE), part(SIDE - at, SIDE)], axis=1)
        if rng.random() < 0.5:
            at = rng.randrange(SIDE // 4, SIDE * 3 // 4)
            pixels = np.concatenate([part(SIDE, at), part(SIDE, SIDE - at)], axis=0)
    elif kind < 0.88:  # four
        x, y = (rng.randrange(SIDE // 3, SIDE * 2 // 3) for _ in range(2))
        rows = [np.concatenate([part(x, h), part(SIDE - x, h)], axis=1) for h in (y, SIDE - y)]
        pixels = np.concatenate(rows, axis=0)
    else:  # two on top of each other
        share = np.float32(rng.uniform(0.15, 0.5))
        pixels = part(SIDE, SIDE) * (1 - share) + part(SIDE, SIDE) * share
    odd = rng.random()
    if odd < 0.06:
        pixels = pixels + np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0.01, 0.12), pixels.shape)
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if 0.06 <= odd < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    elif 0.12 <= odd < 0.16:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=rng.randrange(10, 60))
        image = Image.open(stream)
    return np.asarray(image)


def halved(views: Tensor) -> Tensor:
    """uint8 [B, 3, 2h, 2w] -> [B, 3, h, w], each pixel the mean of four."""
    return torch.nn.functional.avg_pool2d(views.float(), 2).round().to(torch.uint8)


class Teacher:
    """The maps of the teacher in CELLS x CELLS cells: its last map [B, 1280, ...] and its LEVELS, standardised."""

    def __init__(self, weights: str) -> None:
        backbone = load_backbone("timm/mobilenetv2_100", weights)
        self.mean, self.std, self.digest = backbone.mean, backbone.std, backbone.digest
        self.network: Any = backbone.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast
        self.found: dict[str, Tensor] = {}
        for name in LEVELS:
            self.network.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: self.found.__setitem__(name, output)
            )

    @torch.inference_mode()
    def maps(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> last map [B, 1280, h, w] and levels [B, 288, h, w] in its cells."""
        x = ((views.float() - self.mean) / self.std).to(memory_format=torch.channels_last)
        last = self.network.forward_features(x)
        levels = [torch.nn.functional.adaptive_avg_pool2d(self.found[name], last.shape[2:]) for name in LEVELS]
        return last, torch.cat(levels, 1)


class Targets:
    """What the teacher's maps become: `SEMANTIC` principal components and standardised levels, all of deviation 1."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self.parts = {name: torch.from_numpy(value) for name, value in arrays.items()}

    @classmethod
    def fit(cls, last: Tensor, levels: Tensor) -> Targets:
        """From maps of many views."""
        cells = last.movedim(1, -1).flatten(0, 2).double()
        mean = cells.mean(0)
        values, vectors = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
        values, vectors = values.flip(0)[:SEMANTIC], vectors.flip(1)[:, :SEMANTIC]
        return cls(
            {
                "mean": mean.float().numpy(),
                "variance": values.float().numpy(),  # of each component
                "total": (cells.var(0).sum()).float().numpy()[None],
                "directions": vectors.float().contiguous().numpy(),  # [1280, SEMANTIC]
                "level_mean": levels.mean((0, 2, 3)).numpy(),
                "level_deviation": levels.std((0, 2, 3)).numpy(),
            }
        )

    def __call__(self, last: Tensor, levels: Tensor) -> Tensor:
        """[B, h, w, SEMANTIC + 288], in deviations."""
        p = self.parts
        semantic = (last.movedim(1, -1) - p["mean"]) @ p["directions"] / p["variance"].sqrt()
        return torch.cat([semantic, (levels.movedim(1, -1) - p["level_mean"]) / p["level_deviation"]], -1)


def to_bytes(numbers: Tensor) -> NDArray[np.uint8]:
    """Numbers in deviations as bytes."""
    return (numbers * _STEP + _ZERO).round().clamp(0, 255).to(torch.uint8).numpy()


def from_bytes(codes: Tensor) -> Tensor:
    """The numbers again, float32."""
    return (codes.float() - _ZERO) / _STEP


def make_views(photos: list[Rgb], seed: int, count: int) -> Tensor:
    """uint8 [count, 3, SIDE, SIDE]."""
    rng = random.Random(seed)
    return torch.stack([torch.from_numpy(view(photos, rng).copy()).permute(2, 0, 1) for _ in range(count)])


def make_shard(photos: list[Rgb], teacher: Teacher, targets: Targets, path: Path, seed: int) -> None:
    """Write one shard."""
    views = make_views(photos, seed, SHARD)
    codes = [to_bytes(targets(*teacher.maps(part))) for part in torch.split(views, 32)]
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, views=halved(views).permute(0, 2, 3, 1).numpy(), targets=np.concatenate(codes))


def work(photos: Path, weights: str, out: Path, mine: list[tuple[str, int]], number: int) -> None:
    """Make the shards `mine`; runs in a process of its own."""
    torch.set_num_threads(1)
    teacher = Teacher(weights)
    with np.load(out / "targets.npz") as file:
        targets = Targets(dict(file))
    files = split_photos(photos)
    pixels = {kind: decoded(photos, files[kind]) for kind in {kind for kind, _ in mine}}
    began = time.monotonic()
    for done, (kind, k) in enumerate(mine, 1):
        seed = k + (1_000_000 if kind == "choose" else 0)
        make_shard(pixels[kind], teacher, targets, out / f"{kind}-{k:04d}.npz", seed)
        print(
            f"worker {number}: {done}/{len(mine)} shards, {done * SHARD / (time.monotonic() - began):.0f} views/s",
            flush=True,
        )


def make(photos: Path, weights: str, out: Path, shards: int, workers: int) -> None:
    """All shards that are missing."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "targets.npz").exists():
        teacher = Teacher(weights)
        views = make_views(decoded(photos, split_photos(photos)["learn"]), 2_000_000, 1500)
        last, levels = (torch.cat(parts) for parts in zip(*map(teacher.maps, torch.split(views, 32)), strict=True))
        with atomic_path(out / "targets.npz") as part, part.open("wb") as file:
            np.savez(file, **Targets.fit(last, levels).arrays)  # type: ignore[arg-type]
    wanted = [("choose", k) for k in range(2)] + [("learn", k) for k in range(shards)]
    missing = [(kind, k) for kind, k in wanted if not (out / f"{kind}-{k:04d}.npz").exists()]
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=work, args=(photos, weights, out, missing[number::workers], number)
        )
        for number in range(workers)
        if missing[number::workers]
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a worker failed: see above; run the same command again to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    make(args.photos, args.weights, args.out, args.shards, args.workers)


if __name__ == "__main__":
    main()
