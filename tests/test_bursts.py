"""Bursts: capture times against Pillow, likeness against loops, grouping by made scenes, ranks by their definition."""

from __future__ import annotations

import io
import itertools
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from made import photo
from milnet.bursts import (
    GAP,
    SOFT,
    Place,
    capture_time,
    cosine,
    find_bursts,
    join,
    layout,
    likeness,
    rank_burst,
    rank_bursts,
)
from milnet.errors import UsageError
from milnet.images import open_photo

ORIGINAL, DIGITIZED, SUB_ORIGINAL, SUB_DIGITIZED, EXIF = 0x9003, 0x9004, 0x9291, 0x9292, 0x8769


def block(inner: dict[int, Any], outer: dict[int, Any] | None = None, order: str = "<") -> bytes:
    """EXIF as Pillow writes it."""
    exif = Image.Exif()
    exif.endian = order
    for tag, value in (outer or {}).items():
        exif[tag] = value
    exif.get_ifd(EXIF).update(inner)
    return exif.tobytes()


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_times_as_pillow_writes_them(order: str, prefix: bytes) -> None:
    rng = random.Random(0)
    for _ in range(50):
        moment = datetime.fromtimestamp(rng.randrange(0, 4_000_000_000), UTC)
        part = rng.choice(["", "5", "05", "123", "123456"])
        inner = {ORIGINAL: f"{moment:%Y:%m:%d %H:%M:%S}", DIGITIZED: "1999:01:01 00:00:00", SUB_DIGITIZED: "9"}
        data = block(inner | ({SUB_ORIGINAL: part} if part else {}), {0x010F: "A camera", 0x0112: 6}, order)
        found = capture_time(prefix + data.removeprefix(b"Exif\0\0"))
        assert found == moment.timestamp() + (float(f"0.{part}") if part else 0)


def test_which_time_counts() -> None:
    then, later = "2024:05:06 07:08:09", "2025:01:01 00:00:00"
    expected = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp()
    assert capture_time(block({DIGITIZED: then, SUB_DIGITIZED: "25", SUB_ORIGINAL: "9"})) == expected + 0.25
    assert capture_time(block({ORIGINAL: "0000:00:00 00:00:00", DIGITIZED: then})) == expected
    assert capture_time(block({ORIGINAL: "2024-05-06 07:08:09.5"})) == expected + 0.5
    assert capture_time(block({ORIGINAL: then, SUB_ORIGINAL: "x"})) == expected
    assert capture_time(block({}, {0x0132: later})) is None  # DateTime: when the file was changed
    for wrong in ("", "    :  :     :  :  ", "2023:02:31 00:00:00", "2023:01:01 25:00:00", "yesterday", "2023:01:01"):
        assert capture_time(block({ORIGINAL: wrong})) is None
    assert capture_time(block({ORIGINAL: 7})) is None  # a number
    for nothing in (b"", b"Exif\0\0", b"II*\0", b"MM\0*\0\0\0\x08", b"GIF89a", bytes(100)):
        assert capture_time(nothing) is None


def test_damaged_exif_is_no_time_and_no_error() -> None:
    """Cut anywhere, or any bytes changed. (A warning would be an error here.)"""
    whole = block({ORIGINAL: "2024:05:06 07:08:09", SUB_ORIGINAL: "25"}, {0x010F: "A camera"})
    right = capture_time(whole)
    assert right is not None
    for length in range(len(whole)):
        assert capture_time(whole[:length]) in (None, right - 0.25)
    rng = random.Random(1)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found = capture_time(bytes(data))
        assert found is None or np.isfinite(found)


# ---- how alike -------------------------------------------------------------------------------------------------------


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A picture with parts of many sizes, different for each seed."""
    rng = np.random.default_rng(seed)
    x = np.zeros((height, width, 3))
    for side in (3, 6, 12, 24):
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        x += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(x.round().astype(np.uint8))


def frame(of: Image.Image, right: float = 0.0, down: float = 0.0, zoom: float = 1.0, power: float = 1.0) -> Image.Image:
    """What a camera that moved by shares of the picture sees of it; `power`: another exposure."""
    width, height = of.size
    side = 0.8 / zoom
    left, top = (0.5 + right - side / 2) * width, (0.5 + down - side / 2) * height
    seen = of.resize((256, 192), Image.Resampling.BICUBIC, box=(left, top, left + side * width, top + side * height))
    return seen.point(lambda x: round(255 * (x / 255) ** power))


def slow_likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Its definition with numpy's own correlation."""

    def details(ranks: NDArray[np.uint8]) -> NDArray[np.float64]:
        x = ranks.reshape(16, 16).astype(float)
        wide = np.pad(x, 2, mode="edge")
        return np.array([[x[i, j] - wide[i : i + 5, j : j + 5].mean() for j in range(16)] for i in range(16)])

    a, b = details(first), details(second)
    best = -1.0
    for down, right in itertools.product(range(-3, 4), repeat=2):
        parts = [
            x[max(s * down, 0) : 16 + min(s * down, 0), max(s * right, 0) : 16 + min(s * right, 0)].ravel()
            for x, s in ((a, 1), (b, -1))
        ]
        best = max(best, float(np.corrcoef(*parts)[0, 1]))
    return best


def test_likeness_is_what_loops_give() -> None:
    for seed in range(4):
        a, b = layout(frame(scene(seed))), layout(frame(scene(seed + seed % 2), 0.1, -0.05))
        assert likeness(a, b) == pytest.approx(slow_likeness(a, b), abs=1e-5)
        assert likeness(a, b) == pytest.approx(likeness(b, a), abs=1e-6)
        assert likeness(a, a) == pytest.approx(1, abs=1e-5)


def test_a_layout_is_the_ranks_of_the_parts() -> None:
    found = layout(scene(0))
    assert found.shape == (256,)
    assert found.dtype == np.uint8
    assert found.astype(int).sum() == pytest.approx(256 * 127.5, rel=0.01)
    assert np.array_equal(layout(photo(3).convert("L")), layout(photo(3).convert("L").convert("RGB")))
    brighter = scene(0).convert("L").point(lambda x: x // 2 + 100)
    assert likeness(found, layout(brighter)) > 0.99
    means = np.asarray(scene(0, 320, 320).convert("L"), float).reshape(16, 20, 16, 20).mean((1, 3)).ravel()
    assert np.corrcoef(np.argsort(np.argsort(means)), layout(scene(0, 320, 320)))[0, 1] > 0.999


def test_flat_pictures_are_like_nothing() -> None:
    flat = layout(Image.new("RGB", (50, 40), "grey"))
    assert len(set(flat.tolist())) == 1
    assert likeness(flat, flat) == 0
    assert likeness(flat, layout(scene(0))) == 0
    assert layout(Image.new("RGB", (1, 1))).shape == (256,)


def test_moves_zoom_and_exposure_stay_alike_and_scenes_do_not() -> None:
    plain = [layout(frame(scene(seed))) for seed in range(12)]
    for seed, one in enumerate(plain):
        for change in ({"right": 0.06, "down": -0.05}, {"zoom": 1.1}, {"power": 2.5}, {"power": 0.4, "right": 0.04}):
            assert likeness(one, layout(frame(scene(seed), **change))) > 0.6
    assert max(likeness(a, b) for a, b in itertools.combinations(plain, 2)) < 0.5


# ---- which belong together -------------------------------------------------------------------------------------------


def shots(*of: tuple[int, float]) -> tuple[list[float | None], NDArray[np.uint8]]:
    """(scene, seconds) of photos by a hand that shakes -> times, layouts."""
    rng = np.random.default_rng(0)
    return [time for _, time in of], np.stack([layout(frame(scene(s), *rng.uniform(-0.03, 0.03, 2))) for s, _ in of])


def test_time_and_likeness_both_count() -> None:
    given = shots((1, 0), (1, 1), (2, 2), (2, 2.5), (3, 3), (1, 4000), (1, 4003))
    assert find_bursts(*given) == [1, 1, 2, 2, None, 3, 3]
    assert find_bursts(*shots((1, 0), (1, GAP), (1, 2 * GAP + 0.1), (1, 3 * GAP))) == [1, 1, 2, 2]
    assert find_bursts(*shots((1, 0), (1, 5)), gap=4) == [None, None]
    assert find_bursts(*shots((1, 0), (2, 1), (1, 2), (2, 3), (1, 4))) == [1, 2, 1, 2, 1]  # two cameras
    assert find_bursts([], np.zeros((0, 256), np.uint8)) == []


def test_photos_without_a_time_stand_alone() -> None:
    times, layouts = shots((1, 0), (1, 1), (1, 2))
    assert find_bursts([None, times[1], times[2]], layouts) == [None, 1, 1]
    assert find_bursts([None] * 3, layouts) == [None] * 3


def test_the_order_of_the_photos_does_not_matter() -> None:
    times, layouts = shots(*((s, 2.0 * k + t) for k in range(8) for s, t in ((k % 3, 0.0), (k % 3, 0.0), (k % 5, 1.0))))
    features = np.random.default_rng(0).normal(size=(len(times), 4)).astype(np.float32)
    for given in (None, features):
        expected = find_bursts(times, layouts, given)
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(len(times))
            again = find_bursts([times[i] for i in order], layouts[order], None if given is None else given[order])
            assert [again[k] for k in np.argsort(order)] == expected


def test_a_pan_is_one_burst_and_one_chance_likeness_joins_nothing() -> None:
    """`join` compares with the latest photos, and wants half of them."""
    times = [(float(i), i) for i in range(12)]
    assert join(times, lambda i, j: abs(i - j) <= 2, gap=5) == [list(range(12))]
    # Two bursts of six; the first of the second is like one photo of the first burst.
    two = join(times, lambda i, j: i // 6 == j // 6 or {i, j} == {4, 6}, gap=50)
    assert two == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    # A bracket: dark and light are like the middle one, not like each other.
    assert join(times[:3], lambda i, j: 0 in (i, j), gap=5) == [[0, 1, 2]]
    assert join(times[:3], lambda i, j: False, gap=5) == [[0], [1], [2]]
    assert join([(0.0, 7), (9.0, 3), (18.0, 5)], lambda i, j: True, gap=9) == [[7, 3, 5]]


def test_of_two_bursts_the_one_that_is_more_alike() -> None:
    alike = {frozenset(pair) for pair in ((0, 1), (2, 3), (4, 0), (4, 2), (4, 3))}
    times = [(float(i), i) for i in range(5)]
    assert join(times, lambda i, j: frozenset((i, j)) in alike, gap=9) == [[0, 1], [2, 3, 4]]
    alike.remove(frozenset((4, 3)))
    assert join(times, lambda i, j: frozenset((i, j)) in alike, gap=9) == [[0, 1], [2, 3, 4]]  # equal: the younger


def test_features_find_bursts_in_which_much_moves() -> None:
    base = np.asarray(scene(4), float)
    moving = [Image.fromarray((0.4 * base + 0.6 * np.asarray(scene(s), float)).astype(np.uint8)) for s in (5, 6)]
    layouts = np.stack([layout(frame(one)) for one in moving])
    assert 0.2 < likeness(*layouts) < 0.45
    same = np.array([[1, 0.1], [1, 0.2]], np.float32)
    assert find_bursts([0, 1], layouts) == [None, None]
    assert find_bursts([0, 1], layouts, same) == [1, 1]
    assert find_bursts([0, 1], layouts, np.array([[1, 0], [1, 1]], np.float32)) == [None, None]
    assert find_bursts([0, 100], layouts, same) == [None, None]
    different = np.stack([layout(frame(scene(5))), layout(frame(scene(9)))])
    assert likeness(*different) < 0.2
    assert find_bursts([0, 1], different, same) == [None, None]  # features alone are not enough
    assert cosine(np.zeros(2, np.float32), same[0]) == 0


def test_thousands_of_one_moment_take_no_thousands_of_comparisons_each() -> None:
    asked = 0

    def alike(i: int, j: int) -> bool:
        nonlocal asked
        asked += 1
        return False

    assert len(join([(0.0, i) for i in range(3000)], alike, gap=GAP)) == 3000
    assert asked <= 3000 * 32


def test_wrong_lengths_are_told() -> None:
    times, layouts = shots((1, 0), (1, 1))
    with pytest.raises(UsageError, match=r"bursts of 3 photos: expected layouts of 3 x 256 .* got layouts of 2 x 256"):
        find_bursts([*times, 3.0], layouts)
    with pytest.raises(UsageError, match="1 features"):
        find_bursts(times, layouts, np.zeros((1, 5), np.float32))
    with pytest.raises(UsageError, match="each of 2 photos, got 1 and 2"):
        rank_bursts([1, 1], [3.0], [50.0, 50.0])


# ---- which to keep ---------------------------------------------------------------------------------------------------


def test_ranks_go_by_score_and_soft_photos_come_last() -> None:
    assert rank_burst([5.0, 6.0, 4.0], [50, 50, 50]) == [2, 1, 3]
    assert rank_burst([5.0, 6.0, 4.0], [50, 50 - SOFT - 0.1, 50]) == [1, 3, 2]
    assert rank_burst([5.0, 6.0, 4.0], [50, 50 - SOFT, 50]) == [2, 1, 3]
    assert rank_burst([5.0, 5.0, 5.0], [50, 52, 50]) == [2, 1, 3]
    assert rank_burst([5.0 + 4e-6, 5.0, 5.0 + 4e-5], [50, 52, 50]) == [3, 2, 1]  # the last bits say nothing
    assert rank_burst([5.0], [0.0]) == [1]
    assert rank_burst([], []) == []
    rng = np.random.default_rng(0)
    for _ in range(50):  # the whole definition, against pairs
        scores, sharp = rng.integers(0, 5, 6).astype(float), rng.uniform(20, 60, 6)
        ranks = rank_burst(scores.tolist(), sharp.tolist())
        assert sorted(ranks) == list(range(1, 7))
        soft = sharp < sharp.max() - SOFT
        for i, j in itertools.permutations(range(6), 2):
            if (bool(soft[i]), -scores[i], -sharp[i]) < (bool(soft[j]), -scores[j], -sharp[j]):
                assert ranks[i] < ranks[j]


def test_places_and_advice() -> None:
    groups = [2, None, 1, 2, 1, 2]
    scores, sharp = [5.0, 9.0, 4.0, 5.1, 3.9, 5.2], [60.0, 60.0, 40.0, 60.0, 40.0, 40.0]
    assert rank_bursts(groups, scores, sharp) == [
        Place(2, 2, False), None, Place(1, 1, True), Place(2, 1, True), Place(1, 2, False), Place(2, 3, False),
    ]  # fmt: skip
    near = rank_bursts(groups, scores, sharp, near=0.15)
    assert [place.keep if place else None for place in near] == [True, None, True, True, True, False]
    assert rank_bursts([None], [1.0], [1.0]) == [None]
    copies = rank_bursts([1, 1, 1], [5.0, 5.0 + 1e-6, 4.9], [50.0, 50.0, 50.0])
    assert copies == [Place(1, 1, True), Place(1, 2, True), Place(1, 3, False)]


# ---- photos ----------------------------------------------------------------------------------------------------------


def test_photos_with_exif(test_data: Path) -> None:
    """From files as cameras write them to bursts: each photo's frames together, photos seconds apart told apart."""
    paths = sorted((test_data / "data/photos/bsds500").glob("*.jpg"))[::25]
    rng = np.random.default_rng(0)
    times: list[float | None] = []
    layouts, expected = [], []
    clock = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp()
    for number, path in enumerate(paths, 1):
        original = open_photo(path).pixels
        for _ in range(4):
            clock += rng.uniform(0.2, 8)
            seen = frame(original, *rng.uniform(-0.04, 0.04, 2), rng.uniform(0.97, 1.05), rng.choice([0.5, 1.0, 2.0]))
            moment, stream = datetime.fromtimestamp(clock, UTC), io.BytesIO()
            inner = {ORIGINAL: f"{moment:%Y:%m:%d %H:%M:%S}", SUB_ORIGINAL: f"{moment.microsecond:06}"}
            seen.save(stream, "JPEG", quality=80, exif=block(inner))
            opened = open_photo(stream.getvalue())
            assert capture_time(opened.exif) == pytest.approx(clock, abs=2e-6)
            times.append(capture_time(opened.exif))
            layouts.append(layout(opened.pixels))
            expected.append(number)
    found = find_bursts(times, np.stack(layouts))
    pairs = list(itertools.combinations(range(len(found)), 2))
    together = [found[i] is not None and found[i] == found[j] for i, j in pairs]
    truth = [expected[i] == expected[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(together, truth, strict=True))
    assert both / sum(together) > 0.95
    assert both / sum(truth) > 0.9
