"""AVA and its two test sets that the published code names (Murray, Marchesotti and Perronnin, CVPR 2012).

    ava-19928   the official split: `aesthetics_image_lists/generic_test.jpgl` lists 20,000 ids, training is the rest
    ava-19998   the split of ILGnet: `ILG_train.txt` (217,110 ids) and `ILG_test.txt` (19,998)

Labels, `AVA.txt`, one row a photo in one of two forms, fields separated by blanks:

    15 fields, the release: index, image id, counts of 1..10, tag, tag (0 = none), challenge id (0 = none)
    12 fields, as the published code reads it: image id, fractions of 1..10, mean

Lists: one id a line. Ids are numbers, so "007" and "7" are the same photo. The index column numbers the rows of one
file and is not used: merged or cut files repeat it, which is no defect. Nothing known to be missing or damaged in
common copies is written here: that is found on the user's disk.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from milnet.annotations import Problems, Table
from milnet.artifacts import digest_text
from milnet.datasets.imported import Imported, files_below, first_few, require_photos
from milnet.datasets.text import number, read_lines
from milnet.errors import AnnotationError, UsageError

Protocol = Literal["19928", "19998"]

VALUES = np.arange(1, 11, dtype=np.float64)
THRESHOLD = 5.0

_ROW = re.compile(r"[ \t]*[0-9]{1,9}(?:[ \t]+[0-9]{1,9}){14}[ \t]*")
_SHARES = re.compile(r"[ \t]*[^ \t]+(?:[ \t]+[^ \t]+){11}[ \t]*")
_WHOLE = re.compile(r"[0-9]{1,9}")
_LISTED = re.compile(r"[ \t]*([0-9]{1,9})(?:\.jpg)?[ \t]*", re.IGNORECASE)
_NAMED = re.compile(r"[ \t]*([0-9]{1,9})[ \t]+(\S.*?)[ \t]*")

_LABELS = ("AVA.txt", "AVA_sample.txt")
_TEST: dict[Protocol, tuple[str, ...]] = {
    "19928": ("aesthetics_image_lists/generic_test.jpgl", "generic_test.jpgl", "test_19928.txt"),
    "19998": ("ILG_test.txt", "test_19998.txt"),
}
_TRAIN: dict[Protocol, tuple[str, ...]] = {
    "19928": ("train_19928.txt",),  # not needed: without it, all photos that are not listed for testing
    "19998": ("ILG_train.txt", "train_19998.txt"),
}


@dataclass(frozen=True)
class AvaOptions:
    """Where the files of AVA are, when they are not found by the names of its release."""

    labels: Path | None = None  # the list of votes, AVA.txt
    train_list: Path | None = None  # the ids of the training photos
    test_list: Path | None = None  # the ids of the test photos
    images: Path | None = None  # folder of the photos ID.jpg; else `images/` beside the labels, when it is there


def seed_layout(root: Path, protocol: Protocol) -> tuple[Path, AvaOptions]:
    """Labels and options for `read_ava` from a folder laid out as the project page has it, with N 19928 or 19998.

        ROOT/N_aesthetic_image_list/   AVA_N.txt  train_N.txt  test_N.txt     (or these three in ROOT)
        ROOT/images/                   ID.jpg                                 (or image/, the list folder, ROOT)

    The page prints `test_19998.txt` in the folder of 19928 too: it is taken there when there is no `test_19928.txt`.
    The names of AVA's release are found as well; without photos `images` is None. Raises UsageError when a file is not
    there.
    """
    below = root / f"{protocol}_aesthetic_image_list"
    folders = [folder for folder in (below, root) if folder.is_dir()]

    def first(names: Sequence[str], what: str, *, needed: bool = True) -> Path | None:
        for folder in folders:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        if needed:
            places = " or ".join(str(folder) for folder in folders)
            raise UsageError(f"expected {what} in {places} as {' or '.join(names)}")
        return None

    labels = first((f"AVA_{protocol}.txt", *_LABELS), "the labels")
    assert labels is not None
    tests = (f"test_{protocol}.txt", *_TEST[protocol], "test_19998.txt")
    trains = (f"train_{protocol}.txt", *_TRAIN[protocol])
    places = [root / "images", root / "image", *folders]
    photos = next((place for place in places if place.is_dir() and any(_photos(place))), None)
    train_list = first(trains, "the list of training photos", needed=protocol == "19998")
    return labels, AvaOptions(train_list=train_list, test_list=first(tests, "the list of test photos"), images=photos)


def _has_seed_layout(folder: Path, protocol: Protocol) -> bool:
    own = (folder / f"AVA_{protocol}.txt").is_file() and not any((folder / name).is_file() for name in _LABELS)
    return own or (folder / f"{protocol}_aesthetic_image_list").is_dir()


def _photos(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() == ".jpg")


@dataclass
class _Labels:
    """What AVA.txt says, row by row. `counts` are votes or fractions; `lines` where each photo stands."""

    sha256: str
    lines: dict[str, int] = field(default_factory=dict)
    counts: array[float] = field(default_factory=lambda: array("d"))  # 10 a photo; flat, for a quarter million rows
    rest: list[tuple[str, ...]] = field(default_factory=list)  # tag, tag, challenge; empty in the form with fractions


def read_ava(
    source: Path, problems: Problems, options: AvaOptions | None = None, *, protocol: Protocol = "19928"
) -> Imported:
    """Read AVA from its folder, from one laid out as `seed_layout` says, or from the label file with lists beside it.

    Gives values 1..10, the threshold 5, columns split ("train", "test", or "" for neither) and, where the labels have
    them, challenge, tag1, tag2 ("" for none; tags by name when tags.txt is there). The source names the protocol and
    the sha256 of its sorted ids, those of the table, one a line. Raises UsageError when a file is not found or several
    fit, AnnotationError for a defect of a line and for a photo in both the training and the test list.
    """
    options = options or AvaOptions()
    if source.is_file() and options.labels is not None:
        raise UsageError(f"the labels are named twice: {source} and --labels {options.labels}")
    folder = source.parent if source.is_file() else source
    if not folder.is_dir():
        raise UsageError(f"expected the folder of AVA or its AVA.txt, got {source}")
    if source.is_dir() and _has_seed_layout(source, protocol):
        source, found = seed_layout(source, protocol)
        source = options.labels or source
        options = AvaOptions(
            train_list=options.train_list or found.train_list,
            test_list=options.test_list or found.test_list,
            images=options.images or found.images,
        )
        folder = source.parent
    labels_file = (
        source
        if source.is_file()
        else _find(folder, (*_LABELS, f"AVA_{protocol}.txt"), options.labels, "the labels", "--labels")
    )
    test_file = _find(folder, _TEST[protocol], options.test_list, "the list of test photos", "--test-list")
    train_file: Path | None = None
    if protocol == "19998" or options.train_list or any((folder / name).exists() for name in _TRAIN[protocol]):
        train_file = _find(folder, _TRAIN[protocol], options.train_list, "the list of training photos", "--train-list")

    labels = _read_labels(labels_file, problems)
    require_photos(len(labels.lines), labels_file)
    report = [f"{len(labels.lines):,} photos in {labels_file.name}"]
    inputs = {"labels": labels.sha256}
    test, inputs["test_list"] = _read_list(test_file, problems)
    report += _compare("test", test, test_file, labels)
    if train_file is None:
        train = {photo: 0 for photo in labels.lines if photo not in test}
        report.append(f"training: the other {len(train):,} photos")
    else:
        train, inputs["train_list"] = _read_list(train_file, problems)
        report += _compare("training", train, train_file, labels)
        _refuse_overlap(train, train_file, test, test_file)
    if protocol == "19928":
        report.append(
            "the 19,928 in the name of this split: 20,000 listed, less 70 that are not in the labels (19,930), less 2 "
            "that do not decode (277832 is one); photos that do not decode are found when features are made, none is "
            "left out here"
        )
    columns = {"split": ["test" if photo in test else "train" if photo in train else "" for photo in labels.lines]}
    neither = columns["split"].count("")
    if neither:
        report.append(f"{neither:,} photos are in neither list")
    if labels.rest:
        columns |= _tags(folder, labels, problems, inputs, report)
    images, root = _images(options.images, folder, labels, report)
    parts = {
        side: [photo for photo in labels.lines if photo in ids] for side, ids in (("train", train), ("test", test))
    }
    table = Table(
        name="ava",
        ids=tuple(labels.lines),
        votes=np.array(labels.counts).reshape(len(labels.lines), 10),
        values=VALUES,
        columns={name: tuple(column) for name, column in columns.items()},
        images=images,
        image_root=root,
        threshold=THRESHOLD,
        source={
            "format": f"ava-{protocol}",
            "protocol": f"AVA {protocol}",
            **{
                f"{side}_ids_sha256": digest_text("".join(f"{i}\n" for i in sorted(p, key=int)))
                for side, p in parts.items()
            },
            **{f"{side}_photos": len(ids) for side, ids in parts.items()},
        },
    )
    return Imported(table, inputs, tuple(report))


def _find(folder: Path, names: Sequence[str], given: Path | None, what: str, option: str) -> Path:
    """The one file of `names` in `folder`, unless one is given."""
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{option} {given}: there is no such file")
        return given
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"expected {what} in {folder} as {' or '.join(names)}: say where with {option} FILE")
    raise UsageError(
        f"several files in {folder} could be {what}: {', '.join(str(f.relative_to(folder)) for f in found)}; "
        f"say which with {option} FILE"
    )


def _read_labels(file: Path, problems: Problems) -> _Labels:
    lines, sha256 = read_lines(file)
    labels = _Labels(sha256)
    fields_expected = 0  # 15 or 12, by the first row that has one of them
    for place, line in enumerate(lines, 1):
        fields = line.split()
        if not fields_expected and len(fields) in (12, 15):
            fields_expected = len(fields)
        if fields_expected == 15 and _ROW.fullmatch(line):
            photo = str(int(fields[1]))
            counts: Sequence[float] | str = list(map(int, fields[2:12]))
            if not any(counts):
                counts = "expected at least one vote, got none"
        elif fields_expected == 12 and len(fields) == 12 and _SHARES.fullmatch(line):
            photo, counts = fields[0], _fractions(fields)
            if not isinstance(counts, str):
                photo = str(int(photo))
        else:
            photo, counts = "", _explain(line, fields, fields_expected)
        if isinstance(counts, str):
            problems.add(counts, file=file, line=place)
        elif photo in labels.lines:
            problems.add(f"image id {photo} appears twice: first on line {labels.lines[photo]}", file=file, line=place)
        else:
            labels.lines[photo] = place
            labels.counts.extend(counts)
            if fields_expected == 15:
                labels.rest.append(tuple(fields[12:]))
    return labels


def _explain(line: str, fields: list[str], expected: int) -> str:
    """Why a row is not of the expected form."""
    wanted = f"{expected} fields" if expected else "15 fields (counts) or 12 (fractions and mean)"
    if not fields:
        return f"expected {wanted}, got a blank line"
    if len(fields) != (expected or 15):
        return f"expected {wanted} separated by blanks, got {len(fields)}: {line[:80]!r}"
    names = ("index", "image id", *(f"count of {v}" for v in range(1, 11)), "tag", "tag", "challenge")
    for at, (name, text) in enumerate(zip(names, fields, strict=False), 1):
        if expected == 15 and not _WHOLE.fullmatch(text):
            return f"expected a whole number >= 0 of at most 9 digits in field {at} ({name}), got {text!r}"
    return f"expected fields separated by blanks, got {line[:80]!r}"


def _fractions(fields: list[str]) -> list[float] | str:
    """The fractions of 1..10, summing to 1, of a row of 12 fields; or why they cannot be used."""
    if not _WHOLE.fullmatch(fields[0]):
        return f"expected a whole number of at most 9 digits as image id, got {fields[0]!r}"
    numbers = [number(field) for field in fields[1:]]
    if None in numbers:
        at = numbers.index(None) + 1
        return f"expected a number in field {at + 1}, got {fields[at]!r}"
    *shares, mean = [x for x in numbers if x is not None]
    if min(shares) < 0:
        return f"expected fractions >= 0, got {min(shares):g}"
    total = sum(shares)
    if abs(total - 1) > 1e-3:
        return f"expected fractions that sum to 1 within 0.001, got {total:.6g}"
    shares = [share / total for share in shares]
    actual = float(np.dot(shares, VALUES))
    if abs(actual - mean) > 1e-2:
        return f"expected the mean of the fractions, {actual:.4f}, in the last field, got {mean:g}"
    return shares


def _read_list(file: Path, problems: Problems) -> tuple[dict[str, int], str]:
    """Ids of a list, each with its line, and the sha256 of the file."""
    lines, sha256 = read_lines(file)
    ids: dict[str, int] = {}
    for place, line in enumerate(lines, 1):
        match = _LISTED.fullmatch(line)
        photo = "" if match is None else str(int(match[1]))
        if not photo:
            problems.add(f"expected one image id, got {line[:80]!r}", file=file, line=place)
        elif photo in ids:
            problems.add(f"image id {photo} appears twice: first on line {ids[photo]}", file=file, line=place)
        else:
            ids[photo] = place
    return ids, sha256


def _compare(side: str, ids: dict[str, int], file: Path, labels: _Labels) -> list[str]:
    """How many of the listed photos have labels; none at all means the list is of other photos."""
    missing = [photo for photo in ids if photo not in labels.lines]
    if len(missing) == len(ids):
        raise AnnotationError(
            f"none of its {len(ids):,} ids is in the labels: is it a list of other photos?", file=file
        )
    report = f"{side}: {len(ids):,} listed in {file.name}, {len(ids) - len(missing):,} found in the labels"
    return [report + (f", {len(missing):,} missing: {first_few(missing)}" if missing else "")]


def _refuse_overlap(train: dict[str, int], train_file: Path, test: dict[str, int], test_file: Path) -> None:
    """A photo in both lists is refused whatever is asked: the split would have no honest meaning."""
    both = [photo for photo in train if photo in test]
    if both:
        raise AnnotationError(
            f"{len(both):,} photos are also in {test_file.name} (line {test[both[0]]}): {first_few(both)}",
            file=train_file,
            line=train[both[0]],
        )


def _tags(
    folder: Path, labels: _Labels, problems: Problems, inputs: dict[str, str], report: list[str]
) -> dict[str, list[str]]:
    """The columns challenge, tag1 and tag2; tags by name where tags.txt has one, else their number."""
    names: dict[str, str] = {}
    file = folder / "tags.txt"
    if file.is_file():
        lines, inputs["tags"] = read_lines(file)
        for place, line in enumerate(lines, 1):
            match = _NAMED.fullmatch(line)
            if match is None or not match[2].isprintable():
                problems.add(f"expected the number of a tag and its name, got {line[:80]!r}", file=file, line=place)
            elif (tag := str(int(match[1]))) in names:
                problems.add(f"tag {tag} appears twice", file=file, line=place)
            else:
                names[tag] = match[2]
    rest = [[text.lstrip("0") for text in texts] for texts in labels.rest]
    unnamed = sorted({tag for row in rest for tag in row[:2] if tag and tag not in names}, key=int)
    if names and unnamed:
        report.append(f"tags that have no name in {file.name} keep their number: {first_few(unnamed)}")
    return {
        "challenge": [row[2] for row in rest],
        "tag1": [names.get(row[0], row[0]) for row in rest],
        "tag2": [names.get(row[1], row[1]) for row in rest],
    }


def _images(
    given: Path | None, folder: Path, labels: _Labels, report: list[str]
) -> tuple[tuple[str, ...], Path | None]:
    """The photo files, "" where the folder has none; the names alone when the folder is not known."""
    root = given or (folder / "images" if (folder / "images").is_dir() else None)
    wanted = [f"{photo}.jpg" for photo in labels.lines]
    if root is None:
        report.append("photos: not looked for, no folder was named")
        return tuple(wanted), None
    there = files_below(root, deep=False)
    missing = [name for name in wanted if name not in there]
    report.append(
        f"photos: {len(wanted) - len(missing):,} in {root}"
        + (f", {len(missing):,} missing: {first_few(missing)}" if missing else "")
    )
    return tuple(name if name in there else "" for name in wanted), root
