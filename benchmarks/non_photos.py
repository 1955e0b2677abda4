"""Pictures that are no photographs: `make(200)` -> name -> PIL image, 500 x 400, the same for the same seed.

Five kinds of equal number: noise, flat colours and gradients, pages of text, screenshots and plots, drawn with PIL
alone. A model that judges photos should say of each of them that it is unlike all it knows (`unlike`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 500, 400
Colour = tuple[int, int, int]
Random = np.random.Generator

TEXT = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no said what up its about into "
    "than them only other time new some could these two may then do first any my now such like our over man me even "
    "most made after also did many before must through back years where much your way well down should because each "
    "report value system window account number morning harbour letter garden engine village question answer science"
)
WORDS = TEXT.split()


def make(count: int = 200, seed: int = 0) -> dict[str, Image.Image]:
    """`count` pictures, named KIND-NUMBER; `count` must be a multiple of the number of kinds."""
    if count % len(KINDS):
        raise ValueError(f"expected a multiple of {len(KINDS)} pictures, got {count}")
    return {
        f"{kind}-{i:03}": draw(np.random.default_rng([seed, number, i]), i)
        for number, (kind, draw) in enumerate(KINDS.items())
        for i in range(count // len(KINDS))
    }


def _image(x: NDArray[np.float64]) -> Image.Image:
    """Numbers [H, W] or [H, W, 3], black at 0 and white at 1."""
    picture = Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    return picture if picture.size == (WIDTH, HEIGHT) else picture.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def _noise(rng: Random, i: int) -> Image.Image:
    """Uniform, normal, black and white, salt and pepper, coarse blocks, and clouds with a spectrum of 1/f."""
    shape = (HEIGHT, WIDTH, 3) if rng.random() < 0.5 else (HEIGHT, WIDTH)
    match i % 6:
        case 0:
            return _image(rng.random(shape))
        case 1:
            return _image(rng.normal(rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.3), shape))
        case 2:
            return _image((rng.random((HEIGHT, WIDTH)) < rng.uniform(0.2, 0.8)).astype(np.float64))
        case 3:
            x, dots = np.full(shape, rng.uniform(0.2, 0.8)), rng.random(shape[:2])
            x[dots < 0.05], x[dots > 0.95] = 0, 1
            return _image(x)
        case 4:
            size = int(rng.integers(4, 40))
            return _image(rng.random((HEIGHT // size, WIDTH // size, *shape[2:])))
        case _:
            far = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None])
            far[0, 0] = np.inf
            waves = np.fft.fft2(rng.normal(size=shape), axes=(0, 1))
            x = np.fft.ifft2(waves / far.reshape(HEIGHT, WIDTH, *[1] * (len(shape) - 2)), axes=(0, 1)).real
            return _image(0.5 + 0.2 * x / x.std())


def _colour(rng: Random) -> Colour:
    r, g, b = rng.integers(0, 256, 3).tolist()
    return r, g, b


def _flat(rng: Random, i: int) -> Image.Image:
    """One colour; two gradients; stripes; a board of squares."""
    first, second = (np.array(_colour(rng)) / 255 for _ in range(2))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    angle = rng.uniform(0, np.pi)
    along = (x - WIDTH / 2) * np.cos(angle) + (y - HEIGHT / 2) * np.sin(angle)
    match i % 5:
        case 0:
            share = np.zeros((HEIGHT, WIDTH))
        case 1:
            share = (along - along.min()) / np.ptp(along)
        case 2:
            middle = rng.uniform(0.2, 0.8, 2) * (WIDTH, HEIGHT)
            share = np.hypot(x - middle[0], y - middle[1])
            share = share / share.max()
        case 3:
            share = (along // rng.integers(8, 80) % 2).astype(np.float64)
        case _:
            size = int(rng.integers(10, 100))
            share = ((x // size + y // size) % 2).astype(np.float64)
    return _image(first + share[..., None] * (second - first))


def _sentence(rng: Random, words: int) -> str:
    return str(rng.choice(WORDS[:20])).capitalize() + " " + " ".join(rng.choice(WORDS, max(words - 1, 1)))


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, colour: Colour) -> None:
    draw.text(at, text, fill=colour, font=ImageFont.load_default(size))


def _lines(
    rng: Random, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int, colour: Colour, full: bool = True
) -> None:
    """Paragraphs that fill a box; not `full`: lines of different length, as in a program."""
    left, top, right, bottom = box
    font, y, space = ImageFont.load_default(size), top, round(1.4 * size)
    while y + size < bottom:
        last = rng.random() < 0.2
        room = (right - left) * (rng.uniform(0.2, 0.9) if last or not full else 1.0)
        indent = 0 if full else int(rng.integers(0, 4)) * 2 * size
        line = ""
        while draw.textlength(longer := f"{line} {rng.choice(WORDS)}".strip(), font=font) <= room - indent:
            line = longer
        draw.text((left + indent, y), line, fill=colour, font=font)
        y += space * (2 if last else 1)


def _text(rng: Random, i: int) -> Image.Image:
    """A page: a heading, one or two columns, black on white or the other way round."""
    dark = i % 5 == 4
    paper, ink = ((20, 20, 24), (220, 220, 220)) if dark else ((255, 255, 255 - 20 * (i % 3)), (20, 20, 20))
    page = Image.new("RGB", (WIDTH, HEIGHT), paper)
    draw, margin, size = ImageDraw.Draw(page), int(rng.integers(15, 50)), int(rng.integers(8, 18))
    top = margin
    if rng.random() < 0.6:
        _write(draw, (margin, top), _sentence(rng, 3), 2 * size, ink)
        top += 4 * size
    columns = 2 if size < 12 and rng.random() < 0.5 else 1
    step = (WIDTH - 2 * margin) // columns
    for column in range(columns):
        left = margin + column * step
        _lines(rng, draw, (left, top, left + step - (12 if columns > 1 else 0), HEIGHT - margin), size, ink, i % 4 != 3)
    return page


def _window(rng: Random, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], dark: bool) -> None:
    """A title bar, a menu, and text, a table, icons or buttons inside."""
    left, top, right, bottom = box
    accent = _colour(rng)
    paper, ink, bar = (
        ((40, 42, 46), (225, 225, 225), (60, 62, 68)) if dark else ((250, 250, 250), (30, 30, 30), (225, 228, 232))
    )
    draw.rectangle(box, fill=paper, outline=(110, 110, 110))
    draw.rectangle((left, top, right, top + 20), fill=accent)
    _write(draw, (left + 6, top + 3), _sentence(rng, 2), 12, (255, 255, 255))
    for k, colour in enumerate(((220, 70, 60), (235, 190, 60), (90, 190, 80))):
        draw.ellipse((right - 16 - 16 * k, top + 5, right - 6 - 16 * k, top + 15), fill=colour)
    draw.rectangle((left + 1, top + 20, right - 1, top + 36), fill=bar)
    for k, word in enumerate(("File", "Edit", "View", "Tools", "Help")):
        if left + 8 + 42 * k < right - 30:
            _write(draw, (left + 8 + 42 * k, top + 21), word, 11, ink)
    inside = (left + 8, top + 44, right - 8, bottom - 6)
    match int(rng.integers(0, 4)):
        case 0:
            _lines(rng, draw, inside, 10, ink, bool(rng.random() < 0.5))
        case 1:
            for y in range(inside[1], inside[3] - 14, 16):
                if (y - inside[1]) // 16 % 2:
                    draw.rectangle((inside[0], y, inside[2], y + 15), fill=bar)
                for x in range(inside[0], inside[2] - 50, 70):
                    _write(draw, (x + 3, y + 1), str(rng.choice(WORDS)) if x == inside[0] else f"{rng.normal():.2f}",
                           10, ink)  # fmt: skip
        case 2:
            for y in range(inside[1], inside[3] - 46, 56):
                for x in range(inside[0], inside[2] - 40, 56):
                    draw.rounded_rectangle((x + 6, y, x + 38, y + 30), 6, fill=_colour(rng))
                    draw.ellipse((x + 14, y + 7, x + 30, y + 23), fill=_colour(rng))
                    _write(draw, (x + 4, y + 32), str(rng.choice(WORDS))[:8], 9, ink)
        case _:
            for y in range(inside[1], inside[3] - 24, 30):
                _write(draw, (inside[0], y + 4), str(rng.choice(WORDS)).capitalize(), 11, ink)
                field = (inside[0] + 70, y, max(inside[0] + 71, inside[2] - 70), y + 20)
                draw.rectangle(field, outline=(140, 140, 140), fill=bar)
                draw.rounded_rectangle((max(field[2] + 6, inside[2] - 60), y, inside[2], y + 20), 5, fill=accent)


def _screenshot(rng: Random, i: int) -> Image.Image:
    """A desktop with a bar, icons, and one to three windows."""
    dark = i % 3 == 2
    screen = Image.new("RGB", (WIDTH, HEIGHT), _colour(rng))
    draw = ImageDraw.Draw(screen)
    for y in range(10, 300, 60):
        draw.rounded_rectangle((12, y, 44, y + 32), 6, fill=_colour(rng))
        _write(draw, (10, y + 34), str(rng.choice(WORDS))[:8], 10, (255, 255, 255))
    for _ in range(int(rng.integers(1, 4))):
        width, height = int(rng.integers(240, 420)), int(rng.integers(180, 340))
        left, top = int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - 24 - height + 1))
        _window(rng, draw, (left, top, left + width, top + height), dark)
    draw.rectangle((0, HEIGHT - 24, WIDTH, HEIGHT), fill=(30, 32, 38))
    for k in range(8):
        draw.rectangle((8 + 30 * k, HEIGHT - 20, 26 + 30 * k, HEIGHT - 4), fill=_colour(rng))
    _write(draw, (WIDTH - 48, HEIGHT - 19), f"{rng.integers(0, 24):02}:{rng.integers(0, 60):02}", 13, (240, 240, 240))
    return screen


def _plot(rng: Random, i: int) -> Image.Image:
    """Lines, bars or points between two axes with ticks, names and a title."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw, ink = ImageDraw.Draw(picture), (40, 40, 40)
    left, top, right, bottom = 60, 40, WIDTH - 20, HEIGHT - 50
    _write(draw, (left + 40, 12), _sentence(rng, 4), 16, ink)
    _write(draw, ((left + right) / 2 - 30, bottom + 26), str(rng.choice(WORDS)), 13, ink)
    for k in range(6):
        row, column = bottom - k * (bottom - top) / 5, left + k * (right - left) / 5
        if i % 2:
            draw.line((left, row, right, row), fill=(220, 220, 220))
        draw.line((left - 5, row, left, row), fill=ink)
        draw.line((column, bottom, column, bottom + 5), fill=ink)
        _write(draw, (left - 34, row - 7), f"{k * 0.2:.1f}", 12, ink)
        _write(draw, (column - 6, bottom + 8), f"{k * 10}", 12, ink)
    series = int(rng.integers(1, 5))
    colours = [_colour(rng) for _ in range(series)]

    def place(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
        """Points of the unit square on the picture."""
        return list(zip((left + x * (right - left)).tolist(), (bottom - y.clip(0, 1) * (bottom - top)).tolist(),
                        strict=True))  # fmt: skip

    match i % 3:
        case 0:
            x = np.linspace(0, 1, 60)
            for colour in colours:
                y = rng.uniform(0.2, 0.8) + np.cumsum(rng.normal(0, 0.03, 60))
                draw.line(place(x, y), fill=colour, width=int(rng.integers(1, 4)), joint="curve")
        case 1:
            bars = int(rng.integers(4, 12))
            for k in range(bars):
                for s, colour in enumerate(colours):
                    start = (k + 0.1 + 0.8 * s / series) / bars
                    ends = np.array([start, start + 0.75 / bars / series])
                    (x0, y0), (x1, _) = place(ends, np.array([rng.uniform(0.05, 1), 0.0]))
                    draw.rectangle((x0, y0, x1, bottom), fill=colour)
        case _:
            for colour in colours:
                x = rng.random(int(rng.integers(20, 120)))
                y = rng.uniform(0, 0.4) + rng.uniform(-0.4, 0.6) * x + rng.normal(0.2, 0.08, len(x))
                for px, py in place(x, y):
                    draw.ellipse((px - 3, py - 3, px + 3, py + 3), fill=colour)
    draw.line((left, top, left, bottom, right, bottom), fill=ink, width=2)
    for s, colour in enumerate(colours):
        draw.rectangle((right - 90, top + 4 + 16 * s, right - 78, top + 14 + 16 * s), fill=colour)
        _write(draw, (right - 72, top + 2 + 16 * s), str(rng.choice(WORDS)), 11, ink)
    return picture


KINDS: dict[str, Callable[[Random, int], Image.Image]] = {
    "noise": _noise,
    "flat": _flat,
    "text": _text,
    "screenshot": _screenshot,
    "plot": _plot,
}
