"""`milnet serve`, the real command over real sockets: its answers against `Scorer`, and who may ask for them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import made
import made_files
from made_scenes import scene, scene_jpeg
from milnet.album import remember
from milnet.bursts import ROUNDING
from milnet.files import score_files
from milnet.images import open_photo
from milnet.scoring import Score, Scorer
from milnet.version import __version__
from served import Answer, Served, form_of, service

NDJSON = "application/x-ndjson"
HERE = socket.gethostname()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """In a format of Pillow's."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photos() -> dict[str, bytes]:
    """Name -> file, of many kinds and shapes."""
    turned = made_files.exif_block(orientation=6)
    deep = np.random.default_rng(0).integers(0, 1 << 16, (90, 120), dtype=np.uint16)
    return {
        "plain.jpg": scene_jpeg(1),
        "large.jpg": scene_jpeg(2, 2400, 1600),
        "portrait.jpg": scene_jpeg(3, 240, 320),
        "panorama.jpg": scene_jpeg(4, 2000, 120),
        "tiny.png": encoded(scene(5, 12, 9), "PNG"),
        "turned.jpg": scene_jpeg(6, exif=turned),
        "in/a folder/scan 16 bit.png": encoded(Image.fromarray(deep), "PNG"),
        "print (CMYK).jpg": encoded(scene(7).convert("CMYK"), "JPEG"),
        "logo, see-through.png": encoded(scene(8).convert("RGBA"), "PNG"),
        "grey.tif": encoded(scene(9).convert("L"), "TIFF"),
        "colours.gif": encoded(scene(10), "GIF"),
        "web.webp": encoded(scene(11), "WEBP"),
        "phone.heic": made_files.heic(np.asarray(scene(12, 160, 128))),
        "camera.dng": made_files.dng(np.asarray(scene(13, 160, 120))),
        "J\u00fcrgen \u2603 \U0001f600 \u65e5\u672c.jpg": scene_jpeg(14),
        'say "cheese"; name=x.jpg': scene_jpeg(15),
        "back\\slash.jpg": scene_jpeg(16),
    }


FILES = photos()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with the shipped model."""
    with service(tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """The same model, here."""
    return Scorer.load("pocket")


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> dict[str, Score]:
    """Name -> what `Scorer` says of a file."""
    return dict(zip(FILES, scorer.score(list(FILES.values())), strict=True))


def assert_score(found: dict[str, Any], one: Score, what: str, *, alone: bool = False) -> None:
    """All members of an answer are the score's."""
    for name in ("score", "low", "high", "spread"):
        assert found[name] == pytest.approx(getattr(one, name), abs=1e-5), (what, name)
    # shares of the pool's 677 photos: rounding takes a photo over one of them or two
    assert found["unlike"] == pytest.approx(one.unlike, abs=2 / 677), what
    assert found["percentile"] == pytest.approx(one.percentile, abs=0.3), what
    assert found["stars"] == one.stars
    assert found["outside"] is (found["unlike"] is not None and found["unlike"] > 0.97)
    np.testing.assert_allclose(found["distribution"], one.distribution, atol=1e-5)
    assert one.signals is not None
    assert found["signals"] == pytest.approx(asdict(one.signals), abs=1e-6)
    if alone:
        assert found["group"] is found["rank"] is found["keep"] is None


def ok(answer: Answer) -> Any:
    """What a good answer says."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_one_by_one(served: Served, expected: dict[str, Score]) -> None:
    """Each photo as the body of a call: what `milnet score` says of the file."""
    for i, (name, data) in enumerate(FILES.items()):
        kind = ("image/jpeg", "application/octet-stream", "image/whatever")[i % 3]
        said = ok(served.post("/v1/score?name=a%2Fb%20c.jpg" if i % 2 else "/v1/score", data, kind))
        assert said["model"] == "pocket" and said["failures"] == []
        (one,) = said["scores"]
        assert (one["index"], one["photo"]) == (0, "a/b c.jpg" if i % 2 else "photo")
        assert one["id"] == hashlib.sha256(data).hexdigest()
        assert_score(one, expected[name], name, alone=True)
        assert "references" not in one and "base" not in one


def test_a_form(served: Served, expected: dict[str, Score]) -> None:
    """Many at once, with their names, in the order sent; the same photo twice; one that is none."""
    sent = [*FILES.items(), ("again.jpg", FILES["plain.jpg"]), ("no photo.txt", b"no photo"), ("", scene_jpeg(17))]
    said = ok(served.form("/v1/score", sent))
    names = [name for name, data in sent if data != b"no photo"]
    names[-1] = f"photo {len(sent)}"  # it has none
    assert [one["photo"] for one in said["scores"]] == names
    assert [one["index"] for one in said["scores"]] == [i for i, (_, data) in enumerate(sent) if data != b"no photo"]
    (failure,) = said["failures"]
    assert failure["index"] == len(sent) - 2 and failure["photo"] == "no photo.txt"
    assert failure["id"] == hashlib.sha256(b"no photo").hexdigest()
    assert failure["reason"].startswith("not an image of a format that is read here")
    by_name = {one["photo"]: one for one in said["scores"]}
    for name, one in expected.items():
        assert_score(by_name[name], one, name)
    # in another batch: on some processors a convolution of one photo has other last bits than one of four
    assert by_name["again.jpg"]["score"] == pytest.approx(by_name["plain.jpg"]["score"], abs=1e-6)
    assert by_name["again.jpg"]["id"] == by_name["plain.jpg"]["id"]
    scores = np.array([one["score"] for one in said["scores"]])
    for one in said["scores"]:
        others = np.delete(scores, [place for place, other in enumerate(said["scores"]) if other is one])
        tie = abs(others - one["score"]) <= ROUNDING
        lower = 100 * np.where(tie, 0.5, others < one["score"]).mean()
        assert one["folder_percentile"] == pytest.approx(lower, abs=1e-6)


def test_names_with_line_breaks(served: Served) -> None:
    """As browsers write them, and as nobody should."""
    body, kind = form_of([("a\r\nb.jpg", FILES["plain.jpg"])])
    assert ok(served.post("/v1/score", body, kind))["scores"][0]["photo"] == "a%0D%0Ab.jpg"
    for raw in (b"a\x0bb\x7f.jpg", b"a\x1b[31mb.jpg"):
        answer = served.post("/v1/score", body.replace(b"a%0D%0Ab.jpg", raw), kind)
        assert answer.status in (200, 400)
        if answer.status == 200:
            assert not re.search(r"[\x00-\x1f\x7f]", answer.json()["scores"][0]["photo"])


def test_ids(served: Served, expected: dict[str, Score]) -> None:
    """What was sent before need not be sent again."""
    names = list(FILES)
    sent = ok(served.form("/v1/score", list(FILES.items())))["scores"]
    wanted = [sent[2]["id"], "0" * 64, sent[0]["id"], sent[2]["id"]]
    said = ok(served.post("/v1/score", {"ids": wanted}))
    assert [one["index"] for one in said["scores"]] == [0, 2, 3]
    assert [one["photo"] for one in said["scores"]] == [names[2], names[0], names[2]]
    assert said["failures"] == [
        {"index": 1, "photo": "0" * 12, "id": "0" * 64, "unknown": True,
         "reason": "not remembered: send the photo itself"}
    ]  # fmt: skip
    assert_score(said["scores"][1], expected[names[0]], names[0])
    answer = served.post("/v1/score", {"ids": ["0" * 64, "1" * 64]})
    assert answer.status == 422 and answer.headers["content-type"] == "application/problem+json"
    assert [one["unknown"] for one in answer.json()["failures"]] == [True, True]
    assert answer.json()["detail"].startswith("none of 2 photos could be scored; the first: not remembered")


def test_lines(served: Served, expected: dict[str, Score]) -> None:
    """NDJSON: a line a photo, in any order, and a last one that counts them."""
    sent = [*FILES.items(), ("none", b"none")]
    for path in ("/v1/score", "/v1/explain"):
        answer = served.form(path, sent, Accept=NDJSON)
        assert answer.status == 200 and answer.headers["content-type"] == NDJSON
        assert answer.body.endswith(b"\n")
        *lines, last = [json.loads(line) for line in answer.body.splitlines()]
        assert last == {"done": {"scored": len(FILES), "failed": 1}}
        assert sorted(next(iter(line.values()))["index"] for line in lines) == list(range(len(sent)))
        (failure,) = (line["failure"] for line in lines if "failure" in line)
        assert (failure["index"], failure["photo"]) == (len(FILES), "none")
        for line in lines:
            if "score" in line:
                one = line["score"]
                assert_score(one, expected[one["photo"]], one["photo"], alone=True)
                assert one["folder_percentile"] is None
                assert ("references" in one) == (path == "/v1/explain")
    alone = served.post("/v1/score", b"none", Accept=NDJSON)
    assert alone.status == 200 and alone.body.splitlines()[-1] == b'{"done":{"scored":0,"failed":1}}'


def test_explain(served: Served, scorer: Scorer, expected: dict[str, Score]) -> None:
    """Parts, references and influences are those of `milnet explain`, and the parts are the score."""
    said = ok(served.form("/v1/explain", list(FILES.items())))["scores"]
    for one, (name, score) in zip(said, expected.items(), strict=True):
        assert_score(one, score, name)
        parts = one["base"] + one["own"] + sum(part["influence"] for part in one["references"]) + one["rest"]
        assert parts == pytest.approx(one["score"], abs=1e-4), name
        for part in ("base", "own", "rest"):
            assert one[part] == pytest.approx(getattr(score, part), abs=1e-5)
        assert 1 <= len(one["references"]) <= 8
        strength = [abs(part["influence"]) for part in one["references"]]
        assert strength == sorted(strength, reverse=True)  # of a whole pool: what moved the score most
        assert {part["id"] for part in one["references"]} == {part.id for part in score.references}
        by_id = {part.id: part for part in score.references}
        for part in one["references"]:
            assert scorer.pool.ids[part["number"]] == part["id"] and part["photo"] is None
            assert part["similarity"] == pytest.approx(by_id[part["id"]].similarity, abs=1e-5)
            assert part["influence"] == pytest.approx(by_id[part["id"]].influence, abs=1e-5)
            assert part["votes"] == pytest.approx(by_id[part["id"]].votes)


def test_real_photos(served: Served, scorer: Scorer, test_data: Path) -> None:
    """As `score_files` (`milnet score`), signals and bursts included; those with a time were taken by cameras."""
    files = sorted((test_data / "data" / "photos").rglob("*.jp*g"))[::7][:40]
    scored = score_files(scorer, files)
    said = ok(served.form("/v1/score", [(file.name, file.read_bytes()) for file in files]))
    assert [one["photo"] for one in said["scores"]] == [Path(one.photo).name for one in scored.scores]
    for one, score in zip(said["scores"], scored.scores, strict=True):
        assert_score(one, score, score.photo)
        assert (one["group"], one["rank"], one["keep"]) == (score.group, score.rank, score.keep)
        assert one["folder_percentile"] == pytest.approx(score.folder_percentile, abs=3)  # two neighbours may swap


def test_many_clients_at_once(served: Served, expected: dict[str, Score]) -> None:
    """Other people's photos in the same batches change nothing."""
    found: list[tuple[str, Any]] = []

    def client(number: int) -> None:
        names = list(FILES)[number::2] + list(FILES)[:number]
        for name in names:
            # other bytes, the same pixels: it has to pass again
            data = FILES[name] + b"\0" * (1 + number) if name.endswith((".jpg", ".png", ".webp")) else FILES[name]
            found.append((name, ok(served.post("/v1/score", data))["scores"][0]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) > 50
    for name, one in found:
        assert_score(one, expected[name], name, alone=True)


# ---- bursts ----------------------------------------------------------------------------------------------------------


def burst(folder: Path) -> list[Path]:
    """Two bursts and two photos that stand alone, with times."""
    folder.mkdir()
    wide, tall = scene(40, 480, 360), scene(41, 480, 360)
    shots = [(wide, 0, 0), (wide, 6, 1), (tall, 0, 300), (wide, 12, 2), (tall, 5, 301), (scene(42, 420, 320), 0, 302)]
    files = []
    for i, (of, move, second) in enumerate(shots):
        exif = b"Exif\0\0" + made_files.exif_block(f"2024:05:06 07:{8 + second // 60:02}:{second % 60:02}")
        files.append(folder / f"{i}.jpg")
        of.crop((move, move, move + 400, move + 300)).save(files[-1], quality=95 - i, exif=exif)
    files.append(folder / "no time.jpg")
    wide.crop((3, 3, 403, 303)).save(files[-1], quality=95)
    return files


def test_bursts(served: Served, scorer: Scorer, tmp_path: Path) -> None:
    """In one call, and afterwards by ids, as in a folder."""
    files = burst(tmp_path / "shots")
    scores = score_files(scorer, files).scores
    assert [one.group for one in scores] == [1, 1, 2, 1, 2, None, None]
    said = ok(served.form("/v1/score", [(file.name, file.read_bytes()) for file in files]))["scores"]
    assert [(one["group"], one["rank"], one["keep"]) for one in said] == [
        (one.group, one.rank, one.keep) for one in scores
    ]
    ids = [one["id"] for one in said]
    placed = ok(served.post("/v1/bursts", {"ids": [*ids, "0" * 64, ids[0]]}))["bursts"]
    assert placed == [
        {"id": digest, "group": one.group, "rank": one.rank, "keep": one.keep}
        for digest, one in zip(ids, scores, strict=True)
        if one.group is not None
    ]
    assert ok(served.post("/v1/bursts", {"ids": ["0" * 64]})) == {"bursts": []}
    assert served.post("/v1/bursts", {"ids": []}).status == 422
    # sent one by one, no one knows of the others
    alone = ok(served.post("/v1/score", files[0].read_bytes()))["scores"][0]
    assert alone["group"] is None


# ---- tastes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rated(served: Served) -> list[dict[str, Any]]:
    """Ratings of photos that were sent."""
    names = [
        "a \u2028 b.jpg",
        "n\x85l.jpg",
        "dup.jpg",
        "dup.jpg",
        "- x: {}.jpg",
        "#=1+1.jpg",
        "  space .jpg",
        "a,b.jpg",
    ]
    names += [f"in/{i}.jpg" for i in range(16)]
    sent = [(name, scene_jpeg(200 + i)) for i, name in enumerate(names)]
    scores = ok(served.form("/v1/score", sent))["scores"]
    return [{"id": one["id"], "rating": 1 + (i * 7) % 5} for i, one in enumerate(scores)]


def test_a_taste(served: Served, rated: list[dict[str, Any]], tmp_path: Path) -> None:
    """Taught, asked, downloaded, loaded elsewhere with the same scores, removed."""
    answer = served.post("/v1/tastes", {"name": "Mine, not".replace(",", ""), "ratings": rated})
    assert answer.status == 201, answer
    made_here = answer.json()
    assert (made_here["name"], made_here["kind"], made_here["removable"]) == ("Mine not", "taste", True)
    assert made_here["values"] == [1, 2, 3, 4, 5] and made_here["pool"] == len(rated)
    checked = made_here["checked"]
    assert checked["photos"] == len(rated) and isinstance(checked["beats"], bool) and checked["verdict"]
    assert ok(served.get("/v1/models"))["models"][1] == made_here

    ids = [one["id"] for one in rated]
    files = {hashlib.sha256(data).hexdigest(): data for data in [scene_jpeg(200 + i) for i in range(len(rated))]}
    assert list(files) == ids
    said = ok(served.post("/v1/explain?model=Mine%20not", {"ids": ids}))
    assert said["model"] == "Mine not"
    own = {one["id"]: one["photo"] for one in said["scores"]}
    for one in said["scores"]:
        assert 1 <= one["score"] <= 5
        parts = one["base"] + one["own"] + sum(part["influence"] for part in one["references"]) + one["rest"]
        assert parts == pytest.approx(one["score"], abs=1e-4)
        for part in one["references"]:
            assert part["photo"] == ids[part["number"]] != one["id"]  # never itself
            assert part["id"].startswith(own[part["photo"]])
            assert sum(part["votes"]) == 1 and part["votes"].index(1) + 1 == rated[part["number"]]["rating"]

    download = served.get("/v1/tastes/Mine%20not/download")
    assert download.status == 200 and download.headers["content-type"] == "application/zip"
    assert download.headers["content-disposition"] == 'attachment; filename="Mine not.zip"'
    with zipfile.ZipFile(io.BytesIO(download.body)) as archive:
        assert all(name.startswith("Mine not/") and ".." not in name for name in archive.namelist())
        archive.extractall(tmp_path)
    elsewhere = Scorer.load(tmp_path / "Mine not")
    assert elsewhere.digest == made_here["digest"]
    for one, score in zip(said["scores"], elsewhere.score(list(files.values())), strict=True):
        assert one["score"] == pytest.approx(score.score, abs=1e-5)
        assert one["low"] == pytest.approx(score.low, abs=1e-5)
        assert one["stars"] == score.stars

    removed = served.ask("DELETE", "/v1/tastes/Mine%20not")
    assert removed.status == 204 and removed.body == b""
    assert served.ask("DELETE", "/v1/tastes/Mine%20not").status == 404
    assert served.get("/v1/tastes/Mine%20not/download").status == 404
    assert served.post("/v1/score?model=Mine%20not", {"ids": ids}).status == 404
    assert [one["name"] for one in ok(served.get("/v1/models"))["models"]] == ["pocket"]


def test_what_cannot_be_taught(served: Served, rated: list[dict[str, Any]]) -> None:
    """Each with what was expected."""

    def refused(status: int, says: str, **lesson: Any) -> Any:
        answer = served.post("/v1/tastes", {"ratings": rated, **lesson})
        assert answer.status == status, answer
        assert answer.headers["content-type"] == "application/problem+json"
        assert says in answer.json()["detail"], answer.json()
        return answer.json()

    missing = [{"id": digit * 64, "rating": 3} for digit in "ab"]
    assert refused(409, "not remembered", ratings=[*rated, *missing])["missing"] == ["a" * 64, "b" * 64]
    refused(422, "rated photos, got 9", ratings=rated[:9])
    refused(422, "ratings are 3", ratings=[{**one, "rating": 3} for one in rated])
    refused(422, "rated twice", ratings=[*rated, rated[0]])
    for rating in (0, 6, 2.5, "x", None, True, 1e300):
        refused(422, "ratings.0.rating", ratings=[{"id": rated[0]["id"], "rating": rating}, *rated[1:]])
    for digest in ("", "x" * 64, rated[0]["id"].upper(), 5, None):
        refused(422, "ratings.0.id", ratings=[{"id": digest, "rating": 3}, *rated[1:]])
    for name in ("", " ", ".", "..", "../x", "a/b", "a\\b", "a\0b", "-x", "x.", "x ", "\u00fc", "a\nb", "C:", "~"):
        refused(422, "not a name", name=name)
    refused(422, "name", name="x" * 61)
    refused(409, "there already", name="pocket")
    refused(404, "no such model", model="none")
    refused(422, "ratings", ratings=[])
    refused(422, "ratings", ratings=None)
    assert len(ok(served.get("/v1/models"))["models"]) == 1


def test_one_taste_at_a_time(served: Served, rated: list[dict[str, Any]]) -> None:
    """429 for others; names are given where none is said; a taste is no general model."""
    scores = ok(served.form("/v1/score", [(str(i), scene_jpeg(400 + i)) for i in range(90)]))["scores"]
    ratings = [{"id": one["id"], "rating": 1 + i % 5} for i, one in enumerate(scores)]
    statuses: list[int] = []

    def teach(barrier: threading.Barrier) -> None:
        barrier.wait()
        answer = served.post("/v1/tastes", {"ratings": ratings})
        statuses.append(answer.status)
        if answer.status == 429:
            assert int(answer.headers["retry-after"]) >= 1

    for _ in range(4):
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=teach, args=(barrier,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    made_here = [one["name"] for one in ok(served.get("/v1/models"))["models"] if one["removable"]]
    assert set(statuses) == {201, 429} and statuses.count(201) == len(made_here)
    assert made_here[0] == "taste-1"
    again = served.post("/v1/tastes", {"model": "taste-1", "ratings": ratings})
    assert again.status == 422 and "a taste itself" in again.json()["detail"]
    assert served.post("/v1/tastes", {"name": "taste-1", "ratings": ratings}).status == 409
    for name in made_here:
        assert served.ask("DELETE", f"/v1/tastes/{name}").status == 204


def test_a_taste_that_was_downloaded(served: Served, rated: list[dict[str, Any]], tmp_path: Path) -> None:
    """It can be served beside the general model, and says the same; only what is taught there can be removed there."""
    assert served.post("/v1/tastes", {"name": "kept", "ratings": rated}).status == 201
    with zipfile.ZipFile(io.BytesIO(served.get("/v1/tastes/kept/download").body)) as archive:
        archive.extractall(tmp_path)
    said = ok(served.post("/v1/score?model=kept", FILES["plain.jpg"]))
    known = {one["name"]: one for one in ok(served.get("/v1/models"))["models"]}["kept"]
    assert served.ask("DELETE", "/v1/tastes/kept").status == 204
    with service(tmp_path / "served", "--model", tmp_path / "kept") as one:
        models = ok(one.get("/v1/models"))
        assert [(m["name"], m["kind"], m["removable"]) for m in models["models"]] == [
            ("pocket", "model", False),
            ("kept", "taste", False),
        ]
        assert models["default"] == "pocket"
        assert {**known, "removable": False} == models["models"][1]
        again = ok(one.post("/v1/score?model=kept", FILES["plain.jpg"]))
        assert again["scores"][0]["stars"] == said["scores"][0]["stars"]
        assert again["scores"][0]["score"] == pytest.approx(said["scores"][0]["score"], abs=1e-5)
        assert one.ask("DELETE", "/v1/tastes/kept").status == 404
        assert one.get("/v1/tastes/kept/download").status == 404
        # what the one model has seen, the other one need not see again
        assert ok(one.post("/v1/score", {"ids": [again["scores"][0]["id"]]}))["model"] == "pocket"


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_preview(served: Served) -> None:
    """A WebP of any photo, upright, at most 1,024 pixels."""
    for name in ("large.jpg", "turned.jpg", "phone.heic", "camera.dng", "grey.tif", "print (CMYK).jpg"):
        answer = served.post("/v1/preview", FILES[name])
        assert answer.status == 200 and answer.headers["content-type"] == "image/webp"
        original = open_photo(FILES[name]).pixels
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.format == "WEBP"
            shrink = max(1, max(original.size) / 1024)
            assert picture.size == pytest.approx([side / shrink for side in original.size], abs=1)
            difference = np.asarray(picture.convert("RGB"), float) - np.asarray(original.resize(picture.size), float)
            assert np.abs(difference).mean() < 14, name
    answer = served.post("/v1/preview", b"none")
    assert answer.status == 422 and answer.json()["detail"].startswith("not an image")
    assert served.form("/v1/preview", [("a", FILES["plain.jpg"])]).status == 415


def test_pictures_of_a_pool(served: Served, rated: list[dict[str, Any]], tmp_path: Path, monkeypatch: Any) -> None:
    """Shown where they are known on this machine and unchanged; else 404."""
    assert served.get("/v1/models/pocket/pool/0").status == 404  # nobody has said where they are
    assert served.post("/v1/tastes", {"name": "pictures", "ratings": rated}).status == 201
    files = []
    for i in range(4):
        files.append(tmp_path / f"{i}.jpg")
        files[i].write_bytes(scene_jpeg(200 + i))
    monkeypatch.setenv("MILNET_HOME", str(served.home))
    remember({open_photo(file).digest: file for file in files})
    made.photo(1).save(files[1])
    files[2].unlink()
    files[3].write_bytes(b"no photo")
    answer = served.get("/v1/models/pictures/pool/0")
    assert answer.status == 200 and answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert picture.size == (320, 240)
        assert np.abs(np.asarray(picture.convert("RGB"), float) - np.asarray(scene(200), float)).mean() < 14
    for number in (1, 2, 3, 4, 999_999, -1):
        answer = served.get(f"/v1/models/pictures/pool/{number}")
        assert answer.status == 404, number
        assert answer.headers["content-type"] == "application/problem+json"
    assert served.get("/v1/models/pictures/pool/x").status == 422
    assert served.get("/v1/models/none/pool/0").status == 404
    served.ask("DELETE", "/v1/tastes/pictures")
    (served.home / "photos.json").write_text("{")
    assert served.get("/v1/models/pocket/pool/0").status == 404
    (served.home / "photos.json").unlink()


def test_pictures_of_the_shipped_pool(
    served: Served, scorer: Scorer, test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published photos, once it is known where they are."""
    from milnet.album import match_photos

    found = match_photos(scorer.pool, test_data / "data" / "oasis" / "images").found
    monkeypatch.setenv("MILNET_HOME", str(served.home))
    remember(dict(list(found.items())[:5]))
    known = [number for number, digest in enumerate(scorer.pool.pixels) if digest in list(found)[:5]]
    assert len(known) >= 5
    for number in known:
        answer = served.get(f"/v1/models/pocket/pool/{number}")
        assert answer.status == 200 and answer.headers["cache-control"].startswith("private")
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert max(picture.size) == 320
    (served.home / "photos.json").unlink()


# ---- about itself ----------------------------------------------------------------------------------------------------


def test_models(served: Served, scorer: Scorer) -> None:
    """What is known of the model."""
    said = ok(served.get("/v1/models"))
    assert said["default"] == "pocket"
    assert said["limits"] == {"bytes": 64 << 20, "pixels": 120_000_000, "photos": 100}
    (one,) = said["models"]
    assert one["introduction"] in served.said()
    assert one["digest"] == scorer.digest and one["pool"] == len(scorer.pool) == 677
    assert (one["values"], one["stars"], one["stars_of"]) == ([1, 2, 3, 4, 5, 6, 7], [10, 35, 65, 90], "percentile")
    assert (one["table"], one["kind"], one["whole"], one["removable"]) == ("oasis", "model", True, False)
    assert (one["coverage"], one["unlike_limit"]) == (0.9, 0.97)
    assert one["quality"]["srcc"] == pytest.approx(scorer.doubt.srcc)
    assert served.post("/v1/score?model=none", FILES["plain.jpg"]).json()["expected"] == "pocket"


def test_health_and_figures(served: Served) -> None:
    """Figures for Prometheus count what happens, and nothing that a client makes up becomes a name in them."""
    assert ok(served.get("/v1/health")) == {"status": "ok", "version": __version__}
    assert ok(served.get("/v1/ready")) == {"status": "ready", "version": __version__}
    before = served.figures()
    sent = [(str(i), scene_jpeg(600 + i)) for i in range(5)]
    ids = [one["id"] for one in ok(served.form("/v1/score", [*sent, ("none", b"none")]))["scores"]]
    ok(served.post("/v1/score", {"ids": [*ids, "0" * 64]}))
    served.form("/v1/score", [(name, data + b"\0") for name, data in sent[:2]], Accept=NDJSON)
    served.post("/v1/score", b"none")
    served.get("/made/up")
    served.get("/v1/made/up?token=x")
    after = served.figures()

    def more(name: str, *labels: str) -> float:
        return after.get((name, *labels), 0) - before.get((name, *labels), 0)

    assert more("milnet_photos_total", "model", "pocket", "result", "scored") == 12
    assert more("milnet_photos_total", "model", "pocket", "result", "failed") == 2
    assert more("milnet_photos_total", "model", "pocket", "result", "unknown") == 1
    assert more("milnet_requests_total", "route", "/v1/score", "status", "200") == 3
    assert more("milnet_requests_total", "route", "/v1/score", "status", "422") == 1
    assert more("milnet_requests_total", "route", "other", "status", "404") == 2
    assert more("milnet_request_seconds_count", "route", "/v1/score") == 4
    assert more("milnet_photo_seconds_count") == 9
    assert more("milnet_batch_photos_sum") == 7
    assert more("milnet_remembered_photos") == 7
    assert more("milnet_refused_total") == more("milnet_decoders_died_total") == 0
    assert after[("milnet_held_bytes",)] == after[("milnet_waiting_photos",)] == 0
    assert not [key for key in after if "made" in str(key)]
    assert served.get("/v1/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_log_has_no_names(served: Served) -> None:
    """A line a request: method, route, status, time."""
    ok(served.form("/v1/score?name=secret-name", [("secret-name.jpg", FILES["plain.jpg"])]))
    served.post("/v1/score?model=secret-name", FILES["plain.jpg"])
    served.get("/secret-name")
    lines = served.log().splitlines()
    assert "secret" not in served.log() and len(lines) > 3
    assert all(re.fullmatch(r"\S+ \S+ INFO [A-Z]+ \S+ (\d{3}|closed) \d+ ms", line) for line in lines)


# ---- pages -----------------------------------------------------------------------------------------------------------

OWN = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def test_pages(served: Served) -> None:
    """With all that they name, and nothing inline that the policy forbids."""
    for path in ("/", "/about"):
        page = served.get(path)
        assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        text = page.body.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:|https?://", text)
        names = re.findall(r'(?:src|href)="/?static/([^"]+)"', text)
        assert names
        for name in names:
            file = served.get(f"/static/{name}")
            assert file.status == 200, name
            assert file.headers["content-type"].startswith("text/css" if name.endswith(".css") else "text/javascript")
            again = served.get(f"/static/{name}", {"If-None-Match": file.headers["etag"]})
            assert again.status == 304 and again.body == b"" and again.headers["etag"] == file.headers["etag"]
    assert served.get("/favicon.ico").status in (200, 204)


@pytest.mark.parametrize(
    "name",
    ["../__init__.py", "..%2f__init__.py", "%2e%2e/serve.py", "..\\x", "%5c..", "/etc/passwd", "%2fetc%2fpasswd",
     "serve.js/", "serve.js%00", "serve.html.jinja", "serve.JS", ".", "..", "", "%", "a" * 5000],
)  # fmt: skip
def test_no_other_file(served: Served, name: str) -> None:
    answer = served.get(f"/static/{name}")
    assert answer.status == 404 and answer.headers["content-type"] == "application/problem+json"
    assert b"import" not in answer.body and b"root:" not in answer.body


# ---- who may ask -----------------------------------------------------------------------------------------------------


def test_headers_of_every_answer(served: Served) -> None:
    """Good or bad, page or not: the same protection."""
    photo = FILES["plain.jpg"]
    answers = [
        served.get("/"), served.get("/v1/health"), served.get("/v1/models"), served.get("/v1/metrics"),
        served.get("/favicon.ico"), served.post("/v1/score", photo), served.post("/v1/preview", photo),
        served.post("/v1/score", photo, Accept=NDJSON), served.post("/v1/score", b"none"),
        served.post("/v1/score", photo, "text/plain"), served.post("/v1/score", b"", "image/jpeg"),
        served.get("/none"), served.get("/v1/score"), served.get("/v1/models/pocket/pool/x"),
        served.get("/v1/health", {"Host": "evil.example"}), served.get("/v1/health", {"Origin": "http://evil.example"}),
        served.ask("OPTIONS", "/v1/score", headers={"Access-Control-Request-Method": "POST"}),
        served.post("/v1/score", photo, **{"Content-Length": str(10**12)}),
        served.ask("TRACE", "/v1/health"), served.ask("HEAD", "/v1/none"),
    ]  # fmt: skip
    assert {one.status for one in answers} == {200, 204, 400, 403, 404, 405, 413, 415, 421, 422}
    for one in answers:
        assert {name: one.headers.get(name) for name in OWN} == OWN, one
        assert "cache-control" in one.headers and "server" not in one.headers and "set-cookie" not in one.headers
        assert not [name for name in one.headers if name.startswith("access-control")], one
        if one.status >= 400 and one.body:
            problem = one.json()
            assert one.headers["content-type"] == "application/problem+json"
            assert problem["status"] == one.status and problem["type"] == "about:blank"
            assert problem["title"] and problem["detail"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True), ("127.0.0.1:1", True), ("localhost", True), ("LOCALHOST:8500", True), ("[::1]:80", True),
        ("localhost.", True), ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.nip.io", False),
        ("192.168.0.1", False), ("0.0.0.0", False), ("127.1", False), ("2130706433", False), ("[::]", False),
        ("", False), ("127.0.0.1@evil.example", False), ("evil.example@127.0.0.1", False), ("127.0.0.1/x", False),
        ("127.0.0.1:x", False), ("127.0.0.1:99999", False), ("[::1", False), ("localhost?x", False),
        ("localhost,evil.example", False), ("localhost evil.example", False),
        *([(HERE, False)] if HERE not in ("localhost", "127.0.0.1") else []),
    ],
)  # fmt: skip
def test_rebinding(served: Served, host: str, known: bool) -> None:
    """A name that leads here is not enough."""
    answer = served.get("/v1/health", {"Host": host})
    assert answer.status == (200 if known else 421), answer
    if not known:
        assert "--name" in answer.json()["detail"]
    assert served.get("/", {"Host": host}).status == answer.status


def test_other_sites(served: Served) -> None:
    """A browser that shows another site's page cannot use the service; its own page can."""
    photo, here = FILES["plain.jpg"], f"http://127.0.0.1:{served.port}"
    assert served.post("/v1/score", photo, Origin=here).status == 200
    assert served.post("/v1/score", photo, **{"Sec-Fetch-Site": "same-origin"}).status == 200
    assert served.post("/v1/score", photo, **{"Sec-Fetch-Site": "none"}).status == 200
    for origin in (
        "http://evil.example",
        "null",
        "",
        f"{here}.evil.example",
        f"http://localhost:{served.port}",
        "file://",
    ):
        answer = served.post("/v1/score", photo, Origin=origin)
        assert answer.status == 403, origin
        assert served.get("/v1/models", {"Origin": origin}).status == 403
    for site in ("cross-site", "same-site", "x"):
        assert served.get("/v1/models", {"Sec-Fetch-Site": site}).status == 403
        assert served.ask("DELETE", "/v1/tastes/x", headers={"Sec-Fetch-Site": site}).status == 403
        assert served.get("/", {"Sec-Fetch-Site": site}).status == 200  # a link to it
    for name in ("Origin", "Authorization"):
        answer = served.ask("GET", "/v1/models", headers=[(name, here), (name, here)])
        assert answer.status == 400 and "twice" in answer.json()["detail"]


def test_token(tmp_path: Path) -> None:
    """One is made where others can reach it; it is needed, in a header, for all that does something."""
    with service(tmp_path, "--host", "0.0.0.0", "--name", "photos.example.org") as one:
        assert one.url == f"http://0.0.0.0:{one.port}"
        (token,) = re.findall(r"^token: (\S{20,}) ", one.said(), re.MULTILINE)
        photo = FILES["plain.jpg"]
        for path in ("/", "/about", "/static/serve.js", "/v1/health", "/v1/ready"):
            assert one.get(path).status == 200, path
        closed = [
            "/v1/models",
            "/v1/metrics",
            "/v1/openapi.json",
            "/v1/models/pocket/pool/0",
            "/v1/none",
            "/v1/",
            "/v1/health/",
        ]
        wrong = [
            {}, {"Authorization": token}, {"Authorization": f"Basic {token}"}, {"Authorization": "Bearer"},
            {"Authorization": "Bearer "}, {"Authorization": f"Bearer {token[:-1]}"},
            {"Authorization": f"Bearer {token}x"},
            {"Authorization": f"Bearer {token.swapcase()}"}, {"Authorization": "Bearer \xff\xfe"},
            {"X-Token": token}, {"Cookie": f"token={token}"},
        ]  # fmt: skip
        for path in closed:
            for headers in wrong:
                answer = one.get(path, headers)
                assert answer.status == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert token.encode() not in answer.body
            for query in ("token", "access_token", "Authorization"):
                assert one.get(f"{path}?{query}={token}").status == 401
        for path in ("/v1/score", "/v1/explain", "/v1/preview", "/v1/bursts", "/v1/tastes"):
            assert one.post(path, photo).status == 401
        assert one.get("/%761/models").status == one.get("/v1/../v1/models").status == 401
        assert one.get("//v1/models").status == one.get("/V1/models").status == 404
        one.token = token
        assert one.get("/v1/models").status == 200
        assert one.get("/v1/models", {"Authorization": f"bearer   {token}"}).status == 200
        assert one.post("/v1/score", photo).status == 200
        assert one.get("/v1/none").status == 404
        # no site can take over an address, so that all of this machine's are good; a name has to be known
        for host, known in (("192.168.7.7:80", True), ("[fe80::1]", True), ("photos.example.org", True),
                            (HERE, True), ("evil.example", False), ("", False)):  # fmt: skip
            assert one.get("/v1/models", {"Host": host}).status == (200 if known else 421), host
        own = {"Host": "photos.example.org", "Origin": "https://photos.example.org"}  # behind a proxy that has TLS
        assert one.get("/v1/models", own).status == 200
        assert one.get("/v1/models", {"Origin": "https://photos.example.org"}).status == 403
        assert token not in one.log()
        for pid in one.children():
            assert token.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_token_of_ones_own(tmp_path: Path) -> None:
    """From a file before one from the variable, also for this machine alone; decoders know neither."""
    token, other = "my-own-token-of-letters", "another-token-of-letters"
    (tmp_path / "token").write_text(f"{token}\n")
    with service(tmp_path, "--token-file", tmp_path / "token", environment={"MILNET_TOKEN": other}) as one:
        assert token not in one.said() and one.get("/v1/models").status == 401
        assert one.get("/v1/models", {"Authorization": f"Bearer {other}"}).status == 401
        one.token = token
        assert one.get("/v1/models").status == 200
        for pid in one.children():
            known = Path(f"/proc/{pid}/environ").read_bytes()
            assert token.encode() not in known and other.encode() not in known


# ---- nothing is kept -------------------------------------------------------------------------------------------------


def listing(*folders: Path) -> set[tuple[str, int, int]]:
    """All files below folders, with their sizes and times."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                state = path.stat()
                found.add((str(path), state.st_size, state.st_mtime_ns))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to look at open files")
def test_nothing_is_written(served: Served, rated: list[dict[str, Any]]) -> None:
    """No photo, no rating, no name on the disk: neither afterwards, nor in the middle of a large upload."""
    places = [served.folder / "work", served.folder / "tmp", served.home]

    def open_files() -> list[str]:
        """Those of the service's processes, with what they share in memory: others write to /dev/shm, too."""
        found = []
        for pid in [served.pid, *served.children()]:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = str(link.readlink())
                if target.startswith("/") and not re.match(r"/dev/(null|zero|u?random|pts/.*)$", target):
                    found.append(target)
            maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found += [line[line.index("/dev/shm/") :] for line in maps if "/dev/shm/" in line]
        return found

    before, opened = listing(*places), sorted(set(open_files()))
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1400, 3), dtype=np.uint8)
    large = encoded(Image.fromarray(noise), "PNG", compress_level=0)
    assert len(large) > 5 << 20
    body, kind = form_of([("large.png", large), ("small.jpg", FILES["plain.jpg"])])
    head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(head.encode() + body[: len(large) - 1000])
        end = 100
        while served.figures()[("milnet_held_bytes",)] < (5 << 20) and end:
            end -= 1
        assert end, "it has not come to hold the upload"
        assert sorted(set(open_files())) == opened
        assert listing(*places) == before
        connection.sendall(body[len(large) - 1000 :])
        assert connection.recv(12) == b"HTTP/1.1 200"
    served.post("/v1/preview", large)
    served.form("/v1/explain", list(FILES.items()))
    assert served.post("/v1/tastes", {"name": "kept", "ratings": rated}).status == 201
    assert served.get("/v1/tastes/kept/download").status == 200
    served.ask("DELETE", "/v1/tastes/kept")
    assert listing(*places) == before
    assert sorted(set(open_files())) == opened
