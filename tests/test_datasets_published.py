"""TAD66K, KonIQ-10k, EVA, PARA, AADB: small files in the published form, and every defect of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.annotations import Problems, load_table, save_table
from milnet.cli import main
from milnet.datasets import FORMATS, Tad66kOptions, format_name, read_dataset
from milnet.datasets.aadb import AadbOptions
from milnet.datasets.eva import EvaOptions
from milnet.datasets.koniq10k import Koniq10kOptions
from milnet.datasets.para import ParaOptions
from milnet.datasets.table import TableOptions
from milnet.entropy import maximum_entropy
from milnet.errors import AnnotationError, MilnetError, UsageError

BINS = ",".join(f"aestheticScore_{1 + step / 2}" for step in range(9))
PARA = f"imageName,sessionId,semantic,{BINS},aestheticScore_mean,aestheticScore_std,qualityScore_mean"
PUBLISHED: dict[str, dict[str, str]] = {
    "tad66k": {
        "merge/train.csv": "image,score\nbird_1.jpg,5.43\nhill_1.jpg,1.13\nsea_1.jpg,10\n",
        "merge/test.csv": "image,score\nbird_2.jpg,4.5\nhill_2.jpg,9.46\n",
    },
    "koniq10k": {
        "koniq10k_distributions_sets.csv": (
            "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"
            "10004473376.jpg,0.0,0.0,0.238095238095,0.695238095238,0.0666666666667,105,77.3836206897,0.527277894494,training\n"
            "10007357496.jpg,0.0,0.03125,0.46875,0.489583333333,0.0104166666667,96,68.7285714286,0.580003024795,test\n"
            "10043785683.jpg,0.0,0.0,0.433962264151,0.566037735849,0.0,106,71.2043269231,0.497974333332,validation\n"
        )
    },
    "eva": {
        "data/votes_filtered.csv": (
            "image_id=user_id=score=difficulty=visual=composition=quality=semantic=vote_time=1=2=3=4\n"
            "71=E1773=7=3=3=3=2=3=21.4=1=0=0=1\n71=C76=4=2=3=2=2=3=33=0=1=0=0\n106=E1773=10=4=4=4=4=4=9=1=1=1=1\n"
        ),
        "data/image_content_category.csv": '\ufeff"image_id","sort"\n"71","5"\n"106","3"\n"132","3"\n',
    },
    "para": {
        "annotation/PARA-GiaaTrain.csv": (
            f"{PARA}\niaa_pub1_.jpg,session1,portrait,0,0,1,2,10,8,4,0,0,3.22,0.55,3.4\n"
            "iaa_pub71_.jpg,session2,animal,0,0,0,0,0,0,3,1,1,4.3,0.4,4\n"
        ),
        "annotation/PARA-GiaaTest.csv": f"{PARA}\niaa_pub2_.jpg,session1,scene,25,0,0,0,0,0,0,0,0,1.0,0.0,1.2\n",
    },
    "aadb": {
        "imgListTrainRegression_score.txt": "farm1_a.jpg 0.55\nfarm1_b.jpg 1\n",
        "imgListValidationRegression_score.txt": "farm2_c.jpg 0.05 \n",
        "imgListTestNewRegression_score.txt": "farm3_d.jpg 0.8\n",
        "imgListTestRegression_score.txt": "farm1_a.jpg 0.9\n",  # the older test photos
        "imgListTrainRegression_ColorHarmony.txt": "farm1_b.jpg -0.4\nfarm1_a.jpg 0.2\n",
        "imgListTestNewRegression_ColorHarmony.txt": "farm3_d.jpg 1.0\n",
    },
}
THEMES = {
    "unmerge/train/bird.csv": "image,score\nbird_2.jpg,4.5\nboth.jpg,6.0\n",
    "unmerge/train/hill.csv": "image,score\nhill_1.jpg,1.13\nboth.jpg,6\n",
    "unmerge/test/bird.csv": "image,score\nbird_1.jpg,5.43\n",
    "unmerge/test/hill.csv": "image,score\nhill_2.jpg,9.46\n",
}


def put(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    return folder


def read(folder, name, files=None, problems=None, options=None):
    put(folder, PUBLISHED[name] if files is None else files)
    return read_dataset(name, folder, problems or Problems(), options)


def test_tad66k(tmp_path):
    imported = read(tmp_path, "tad66k")
    table = imported.table
    assert table.ids == ("bird_1", "hill_1", "sea_1", "bird_2", "hill_2") and table.name == "tad66k"
    assert dict(table.columns) == {"split": ("train", "train", "train", "test", "test")}
    assert table.values.tolist() == list(range(11)) and table.threshold == 5 and table.groups == ()
    np.testing.assert_array_equal(table.votes, maximum_entropy([5.43, 1.13, 10, 4.5, 9.46], None, np.arange(11.0)))
    assert table.scores.tolist() == pytest.approx([5.43, 1.13, 10, 4.5, 9.46])
    assert table.images[0] == "bird_1.jpg" and table.source == {"format": "tad66k", "variant": "merge"}
    digest = hashlib.sha256(PUBLISHED["tad66k"]["merge/test.csv"].encode()).hexdigest()
    assert sorted(imported.inputs) == ["merge/test.csv", "merge/train.csv"]
    assert imported.inputs["merge/test.csv"] == digest
    assert imported.report[0] == "the variant merge" and imported.report[-1] == "split: 3 train, 2 test"


def test_tad66k_by_themes(tmp_path):
    imported = read(tmp_path, "tad66k", THEMES)
    table = imported.table
    assert table.ids == ("bird_2", "both", "hill_1", "bird_1", "hill_2") and table.groups == ("theme",)
    assert table.column("theme") == ("bird", "bird+hill", "hill", "bird", "hill")
    assert table.column("split") == ("train", "train", "train", "test", "test") and "crosses" not in table.columns
    assert "1 photos are in several themes, which are joined by '+': both.jpg" in imported.report
    assert table.source["variant"] == "unmerge" and len(imported.inputs) == 4


def test_tad66k_photos_that_cross_over(tmp_path):
    put(tmp_path / "labels", THEMES | PUBLISHED["tad66k"])
    imported = read_dataset("TAD_66K", tmp_path, Problems())
    assert imported.table.column("crosses") == ("yes", "", "", "yes", "")
    assert "1 photos of the test part of merge are in the training part of unmerge: bird_2" in imported.report
    assert "1 photos of the test part of unmerge are in the training part of merge: bird_1" in imported.report
    other = read_dataset("tad66k", tmp_path, Problems(), Tad66kOptions(variant="unmerge"))
    assert other.table.column("crosses") == ("yes", "", "", "yes", "") and other.table.source["variant"] == "unmerge"
    assert len(other.inputs) == len(imported.inputs) == 6


def test_tad66k_variants_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"expected TAD66K with merge or unmerge, got .*"):
        read(tmp_path, "tad66k", {})
    with pytest.raises(UsageError, match=r"--variant unmerge: expected merge, which .* holds"):
        read(tmp_path, "tad66k", options=Tad66kOptions(variant="unmerge"))
    with pytest.raises(UsageError, match="--variant both: expected merge or unmerge"):
        read(tmp_path, "tad66k", THEMES, options=Tad66kOptions(variant="both"))


def test_koniq10k(tmp_path):
    imported = read(tmp_path, "koniq10k")
    table = imported.table
    assert table.ids == ("10004473376", "10007357496", "10043785683") and table.name == "koniq10k"
    assert table.votes[1].tolist() == pytest.approx([0, 3, 45, 47, 1]) and table.threshold == 3
    assert dict(table.columns) == {
        "split": ("train", "test", "validation"),
        "MOS": ("77.3836206897", "68.7285714286", "71.2043269231"),
        "SD": ("0.527277894494", "0.580003024795", "0.497974333332"),
    }
    assert imported.report[-1] == "split: 1 train, 1 test, 1 validation"
    file = tmp_path / "koniq10k_distributions_sets.csv"
    assert read_dataset("KonIQ-10k", file, Problems()).table.ids == table.ids
    general = read_dataset("table", file, Problems(), TableOptions(split_column="set")).table
    np.testing.assert_array_equal(general.votes, table.votes)


def test_koniq10k_photos_of_two_sizes(tmp_path):
    put(tmp_path, {f"{size}/10004473376.jpg": "" for size in ("512x384", "1024x768")})
    with pytest.raises(UsageError, match=r"could be 1024x768/.* or 512x384/.* keep one of them there, or name another"):
        read(tmp_path, "koniq10k", options=Koniq10kOptions(images=tmp_path))
    table = read(tmp_path, "koniq10k", options=Koniq10kOptions(images=tmp_path / "512x384")).table
    assert table.images == ("10004473376.jpg", "", "")


def test_eva(tmp_path):
    imported = read(tmp_path, "eva")
    table = imported.table
    assert table.ids == ("71", "106") and table.values.tolist() == list(range(11)) and table.threshold == 5
    assert table.votes[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0] and table.votes[1, 10] == 1
    assert dict(table.columns) == {"category": ("5", "3")} and table.images == ("71.jpg", "106.jpg")
    assert table.source == {"format": "eva", "ids": "ava"} and sorted(imported.inputs) == ["categories", "labels"]
    assert "3 ratings by 2 raters" in imported.report and "photos of AVA" in imported.report[-1]
    (tmp_path / "data" / "image_content_category.csv").unlink()
    alone = read_dataset("eva", tmp_path / "data" / "votes_filtered.csv", Problems())
    assert not alone.table.columns and list(alone.inputs) == ["labels"]


def test_eva_ids_and_categories(tmp_path):
    files = dict(PUBLISHED["eva"])
    files["data/votes_filtered.csv"] = files["data/votes_filtered.csv"].replace("71=C76", "071.jpg=C76")
    files["data/image_content_category.csv"] = '"image_id","sort"\n"106","3"\n'
    put(tmp_path, {"images/EVA_category/5/71.jpg": "", "images/106.jpg": ""})
    imported = read(tmp_path, "eva", files, options=EvaOptions(images=tmp_path / "images"))
    assert imported.table.totals.tolist() == [2, 1] and imported.table.column("category") == ("", "3")
    assert "1 photos have no category: 71" in imported.report
    assert imported.table.images == ("EVA_category/5/71.jpg", "106.jpg")


def test_para(tmp_path):
    imported = read(tmp_path, "para")
    table = imported.table
    assert table.ids == ("iaa_pub1_", "iaa_pub71_", "iaa_pub2_") and table.values.tolist() == list(
        np.arange(1, 5.5, 0.5)
    )
    assert table.votes[0].tolist() == [0, 0, 1, 2, 10, 8, 4, 0, 0] and table.threshold == 3
    assert table.images == ("session1/iaa_pub1_.jpg", "session2/iaa_pub71_.jpg", "session1/iaa_pub2_.jpg")
    assert dict(table.columns) == {
        "session": ("session1", "session2", "session1"),
        "semantic": ("portrait", "animal", "scene"),
        "aestheticScore_mean": ("3.22", "4.3", "1.0"),
        "aestheticScore_std": ("0.55", "0.4", "0.0"),
        "qualityScore_mean": ("3.4", "4", "1.2"),
        "split": ("train", "train", "test"),
    }
    assert "not for commercial use" in imported.report[-1] and sorted(imported.inputs) == ["test", "train"]
    put(tmp_path, {"imgs/session1/iaa_pub1_.jpg": "", "imgs/session1/iaa_pub71_.jpg": ""})
    for options in (None, ParaOptions(images=tmp_path)):
        found = read_dataset("para", tmp_path / "annotation", Problems(), options).table
        assert found.image_path(0) == tmp_path / "imgs" / "session1" / "iaa_pub1_.jpg"
        assert found.images[1:] == ("", "")  # a photo of another session is another photo


def test_para_columns_of_one_file(tmp_path):
    files = dict(PUBLISHED["para"])
    files["annotation/PARA-GiaaTest.csv"] = files["annotation/PARA-GiaaTest.csv"].replace("semantic", "scene")
    imported = read(tmp_path, "para", files)
    assert "semantic" not in imported.table.columns
    for name in ("scene", "semantic"):
        assert f"column {name!r} is in one of the files only and is left out" in imported.report


def test_aadb(tmp_path):
    imported = read(tmp_path, "aadb")
    table = imported.table
    assert table.ids == ("farm1_a", "farm1_b", "farm2_c", "farm3_d") and table.threshold == 0.5
    assert table.values.tolist() == [0, 0.25, 0.5, 0.75, 1] and table.totals.tolist() == pytest.approx([5, 5, 5, 5])
    assert table.scores.tolist() == pytest.approx([0.55, 1, 0.05, 0.8])
    np.testing.assert_array_equal(table.votes, 5 * maximum_entropy([0.55, 1, 0.05, 0.8], None, np.linspace(0, 1, 5)))
    assert dict(table.columns) == {
        "split": ("train", "train", "validation", "test"),
        "ColorHarmony": ("0.2", "-0.4", "", "1.0"),
    }
    assert "number of votes: 5 a photo" in imported.report and len(imported.inputs) == 5
    missing = "there is no imgListValidationRegression_ColorHarmony.txt: the attribute is empty for these photos"
    assert missing in imported.report
    put(tmp_path, {"photos/old/farm1_a.jpg": "", "photos/new/farm3_d.jpg": ""})
    found = read(tmp_path, "aadb", options=AadbOptions(images=tmp_path / "photos")).table
    assert found.images == ("old/farm1_a.jpg", "", "", "new/farm3_d.jpg")
    assert read(tmp_path / "x", "aadb", {f"imgListFiles_label/{k}": v for k, v in PUBLISHED["aadb"].items()})


def test_aadb_attributes_that_leave_photos_out(tmp_path):
    name = "imgListTrainRegression_ColorHarmony.txt"
    imported = read(tmp_path, "aadb", PUBLISHED["aadb"] | {name: "farm1_b.jpg 0\n"})
    assert imported.table.column("ColorHarmony")[:2] == ("", "0")
    assert "ColorHarmony: empty for 2 photos" in imported.report


TRAIN, TEST, KONIQ = "merge/train.csv", "merge/test.csv", "koniq10k_distributions_sets.csv"
EVA, SORT, GIAA = "data/votes_filtered.csv", "data/image_content_category.csv", "annotation/PARA-GiaaTrain.csv"
AADB, HARMONY = "imgListTrainRegression_score.txt", "imgListTrainRegression_ColorHarmony.txt"
# format, file, what is replaced, by what, line of the defect, reason
DEFECTS = [
    ("tad66k", TRAIN, "hill_1.jpg,1.13", "hill_1.jpg", 3, "expected 2 fields as in the header, got 1"),
    ("tad66k", TRAIN, "hill_1.jpg,1.13", "hill_1.jpg,1.13,2", 3, "expected 2 fields as in the header, got 3"),
    ("tad66k", TRAIN, "hill_1.jpg,1.13", "", 3, "expected a row, got a blank line"),
    ("tad66k", TRAIN, "1.13", "good", 3, "expected a mean from 0 to 10 in column 'score', got 'good'"),
    ("tad66k", TRAIN, "1.13", "nan", 3, "in column 'score', got 'nan'"),
    ("tad66k", TRAIN, "1.13", "-inf", 3, "in column 'score', got '-inf'"),
    ("tad66k", TRAIN, "1.13", "10.01", 3, "expected a mean from 0 to 10 in column 'score', got '10.01'"),
    ("tad66k", TRAIN, "1.13", "-1", 3, "in column 'score', got '-1'"),
    ("tad66k", TRAIN, "hill_1.jpg", "", 3, "expected photo in column 'image', got ''"),
    ("tad66k", TRAIN, "hill_1.jpg", "bird_1.png", 3, "photo 'bird_1.png' appears twice: first on line 2 as 'bird_1"),
    ("tad66k", TEST, "bird_2.jpg", "hill_1.jpg", 2, "photo 'hill_1.jpg' appears twice: first on line 3 of {train}"),
    ("tad66k", TRAIN, "hill_1", "h\udcffll_1", 3, "expected UTF-8, got other bytes"),
    ("tad66k", TRAIN, "hill_1", "h\0ll_1", 3, "expected text, got a NUL character"),
    ("tad66k", TRAIN, "hill_1.jpg", '"hill_1.jpg"x', 3, "is not valid csv"),
    ("koniq10k", KONIQ, ",96,", ",", 3, "expected 10 fields as in the header, got 9"),
    ("koniq10k", KONIQ, "0.03125", "0.13125", 3, "expected fractions that sum to 1 within 0.001, got 1.1"),
    ("koniq10k", KONIQ, "0.03125", "-0.03125", 3, "expected a fraction >= 0 in column 'c2', got '-0.03125'"),
    ("koniq10k", KONIQ, "0.03125", "x", 3, "expected a fraction >= 0 in column 'c2', got 'x'"),
    ("koniq10k", KONIQ, ",96,", ",0,", 3, "expected votes > 0 in column 'c_total', got '0'"),
    ("koniq10k", KONIQ, "68.7285714286", "NaN", 3, "expected a number from 0 to 100 in column 'MOS', got 'NaN'"),
    ("koniq10k", KONIQ, "68.7285714286", "101", 3, "expected a number from 0 to 100 in column 'MOS', got '101'"),
    ("koniq10k", KONIQ, "0.580003024795", "-1", 3, "expected a number >= 0 in column 'SD', got '-1'"),
    ("koniq10k", KONIQ, ",test", ",testing", 3, "expected training, validation, test in column 'set', got 'testing'"),
    ("koniq10k", KONIQ, "10007357496", "10004473376", 3, "appears twice: first on line 2"),
    ("eva", EVA, "71=C76=4=2", "71=C76=4", 3, "expected 13 fields as in the header, got 12"),
    ("eva", EVA, "C76=4", "C76=11", 3, "expected one of the values 0, 1, ..., 10 in column 'score', got '11'"),
    ("eva", EVA, "C76=4", "C76=4.5", 3, "in column 'score', got '4.5'"),
    ("eva", EVA, "C76=4", "C76=", 3, "in column 'score', got ''"),
    ("eva", EVA, "C76=4", "C76=inf", 3, "in column 'score', got 'inf'"),
    ("eva", EVA, "71=C76", "sea=C76", 3, "expected a whole number of at most 9 digits as image id, got 'sea'"),
    ("eva", EVA, "71=C76", "71= ", 3, "expected a rater in column 'user_id', got ' '"),
    ("eva", EVA, "71=C76", "071=E1773", 3, "rater 'E1773' rates '71.jpg' twice: first on line 2"),
    ("eva", EVA, "71=C76", "71=C\udcff", 3, "expected UTF-8"),
    ("eva", SORT, '"106"', '"71"', 3, "photo '71' appears twice: first on line 2"),
    ("eva", SORT, '"106"', '"sea"', 3, "expected a whole number of at most 9 digits as image id, got 'sea'"),
    ("eva", SORT, '"106","3"', '"106",""', 3, "expected a category in column 'sort', got ''"),
    ("eva", SORT, '"106","3"', '"106"', 3, "expected 2 fields as in the header, got 1"),
    ("para", GIAA, "animal,0", "animal", 3, "expected 15 fields as in the header, got 14"),
    ("para", GIAA, "animal,0", "animal,x", 3, "expected a whole number >= 0 in column 'aestheticScore_1.0', got 'x'"),
    ("para", GIAA, "animal,0", "animal,-1", 3, "in column 'aestheticScore_1.0', got '-1'"),
    ("para", GIAA, "0,3,1,1,4.3", "0,0,0,0,4.3", 3, "expected at least one vote, got none"),
    ("para", GIAA, "4.3", "nan", 3, "expected a number from 1 to 5 in column 'aestheticScore_mean', got 'nan'"),
    ("para", GIAA, "4.3", "5.3", 3, "expected a number from 1 to 5 in column 'aestheticScore_mean', got '5.3'"),
    ("para", GIAA, "4.3,0.4", "4.3,-0.4", 3, "expected a number from 0 to 4 in column 'aestheticScore_std'"),
    ("para", GIAA, "session2", " ", 3, "expected a session in column 'sessionId', got ' '"),
    ("para", GIAA, "iaa_pub71_.jpg", "", 3, "expected photo in column 'imageName', got ''"),
    ("para", GIAA, "iaa_pub71_", "iaa_pub1_", 3, "photo 'iaa_pub1_.jpg' appears twice: first on line 2"),
    ("para", GIAA, "animal", "\udcff", 3, "expected UTF-8"),
    ("aadb", AADB, "farm1_b.jpg 1", "farm1_b.jpg", 2, "expected the name of a photo and a number, got 1 fields: 'farm"),
    ("aadb", AADB, "farm1_b.jpg 1", "farm1_b.jpg 1 0", 2, "got 3 fields: 'farm1_b.jpg 1 0'"),
    ("aadb", AADB, "\nfarm1_b.jpg 1", "\n\nfarm1_b.jpg 1", 2, "got 0 fields: ''"),
    ("aadb", AADB, "b.jpg 1", "b.jpg x", 2, "expected a mean from 0 to 1 in column 'score', got 'x'"),
    ("aadb", AADB, "b.jpg 1", "b.jpg 1.01", 2, "in column 'score', got '1.01'"),
    ("aadb", AADB, "b.jpg 1", "b.jpg nan", 2, "in column 'score', got 'nan'"),
    ("aadb", AADB, "farm1_b", "farm1_a", 2, "photo 'farm1_a.jpg' appears twice: first on line 1"),
    ("aadb", AADB, "farm1_b", "farm1\udcff", 2, "expected UTF-8"),
    ("aadb", HARMONY, "a.jpg 0.2", "a.jpg 1.2", 2, "a number from -1 to 1 in column 'ColorHarmony', got '1.2'"),
    ("aadb", HARMONY, "a.jpg 0.2", "c.jpg 0.2", 2, "photo 'farm1_c.jpg' is not in imgListTrainRegression_score.txt"),
    ("aadb", HARMONY, "farm1_a", "farm1_b", 2, "photo 'farm1_b.jpg' appears twice: first on line 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "old", "new", "line", "reason"), DEFECTS)
def test_defects_name_file_and_line(tmp_path, name, file, old, new, line, reason):
    text = PUBLISHED[name][file]
    assert text.count(old) == 1 or old in ("1.13", "hill_1", "farm1_b", "farm1_a"), "the change must be of one line"
    files = PUBLISHED[name] | {file: text.replace(old, new)}
    reason = reason.format(train=tmp_path / TRAIN)
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, name, files)
    assert f"{tmp_path / file}, line {line}: " in str(caught.value) and reason in str(caught.value)
    problems = Problems(keep_going=True)
    table = read(tmp_path, name, files, problems).table
    found = [problem for problem in problems.found if problem.line == line and reason in problem.reason]
    assert len(found) == 1 and {problem.file for problem in problems.found} <= {str(tmp_path / n) for n in files}
    whole = read(tmp_path, name).table
    left = [whole.ids.index(photo) for photo in table.ids if photo in whole.ids]
    assert left and (len(left) < len(whole) or file in (EVA, SORT, HARMONY) or new.startswith("\n"))
    for photo in set(table.ids) & set(whole.ids) - {"71"}:  # one rating of 71 is the defect
        np.testing.assert_array_equal(table.votes[table.ids.index(photo)], whole.votes[whole.ids.index(photo)])


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("unmerge/train/hill.csv", "both.jpg,6", "both.jpg,6.1", "has the score '6.1', but '6.0' on line 3 of "),
        ("unmerge/train/hill.csv", "both.jpg,6", "both.jpg,x", "photo 'both.jpg' has the score 'x', but '6.0' on"),
        ("unmerge/test/hill.csv", "hill_2", "both", "photo 'both.jpg' appears twice: first on line 3 of "),
        ("unmerge/train/hill.csv", "both", "hill_1", "photo 'hill_1.jpg' appears twice: first on line 2"),
        ("unmerge/train/hill.csv", "both.jpg", "both.png", "photo 'both.png' appears twice: first on line 3 of "),
    ],
)
def test_defects_between_themes(tmp_path, file, old, new, reason):
    files = THEMES | {file: THEMES[file].replace(old, new)}
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "tad66k", files)
    assert f"{tmp_path / file}, line " in str(caught.value) and reason in str(caught.value)
    problems = Problems(keep_going=True)
    table = read(tmp_path, "tad66k", files, problems).table
    theme = "bird+hill" if "test" in file else "bird"
    assert len(problems.found) == 1 and table.column("theme")[table.ids.index("both")] == theme


MISSING = [
    ("tad66k", TEST, r"merge/test\.csv: cannot be read: No such file"),
    ("para", "annotation/PARA-GiaaTest.csv", r"PARA-GiaaTest\.csv: cannot be read: No such file"),
    ("aadb", "imgListValidationRegression_score.txt", r"Validation\w+\.txt: cannot be read: No such file"),
    ("koniq10k", KONIQ, r"expected KonIQ-10k with koniq10k_distributions_sets\.csv, got "),
    ("eva", EVA, r"expected EVA with votes_filtered\.csv, got "),
]


@pytest.mark.parametrize(("name", "file", "reason"), MISSING)
@pytest.mark.parametrize("keep_going", [False, True])
def test_missing_and_empty_files(tmp_path, name, file, reason, keep_going):
    files = dict(PUBLISHED[name])
    for text in ("", " \n\n"):
        with pytest.raises(AnnotationError, match=r"expected labels, but the file is empty") as caught:
            read(tmp_path / "empty", name, files | {file: text}, Problems(keep_going=keep_going))
        assert caught.value.file == str(tmp_path / "empty" / file)
    del files[file]
    with pytest.raises(MilnetError, match=reason):
        read(tmp_path / "missing", name, files, Problems(keep_going=keep_going))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "reason"),
    [
        ("tad66k", TRAIN, "score", "points", "expected the columns image, score, but score is not among image, points"),
        ("koniq10k", KONIQ, "c3", "c6", "but c3 is not among image_name, c1"),
        ("eva", EVA, "=", ",", "Say which with --separator"),
        ("eva", EVA, "user_id", "user", "expected the columns image_id, user_id, score, but user_id is not among"),
        ("eva", SORT, "sort", "kind", "expected the columns image_id, sort, but sort is not among image_id, kind"),
        ("para", GIAA, "_4.5", "_4.75", "but aestheticScore_4.5 is not among"),
        ("para", GIAA, "imageName,sessionId", "name,session", "but imageName, sessionId are not among"),
    ],
)
def test_headers(tmp_path, name, file, old, new, reason):
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, name, PUBLISHED[name] | {file: PUBLISHED[name][file].replace(old, new)})
    assert caught.value.line == 1 and caught.value.file == str(tmp_path / file) and reason in str(caught.value)


def test_themes_that_one_part_lacks(tmp_path):
    files = {name: text for name, text in THEMES.items() if name != "unmerge/test/hill.csv"}
    with pytest.raises(AnnotationError, match=r"test/hill\.csv: there is no such file, but there is one in train"):
        read(tmp_path, "tad66k", files)
    problems = Problems(keep_going=True)
    assert len(read(tmp_path, "tad66k", files, problems).table) == 4 and len(problems.found) == 1
    with pytest.raises(AnnotationError, match=r"unmerge/test: expected a file for each theme"):
        read(tmp_path / "b", "tad66k", {name: text for name, text in THEMES.items() if "test" not in name})
    with pytest.raises(AnnotationError, match=r"train/hill\.csv: no photo with a usable row is left"):
        read(tmp_path, "tad66k", THEMES | {"unmerge/train/hill.csv": "image,score\n"})


def test_nothing_left(tmp_path):
    files = {name: text.replace(",", ",x") for name, text in PUBLISHED["tad66k"].items()}
    files = {name: text.replace("xscore", "score") for name, text in files.items()}
    with pytest.raises(AnnotationError, match="no photo with usable votes is left"):
        read(tmp_path, "tad66k", files, Problems(keep_going=True))


def test_names_of_formats():
    for text in ("KonIQ_10k", "koniq", "koniq-10k", "KONIQ10K"):
        assert format_name(text) == "koniq10k"
    assert format_name("TAD-66k") == "tad66k" and format_name(" Eva ") == "eva"
    with pytest.raises(UsageError, match=r"tad66k \(tad-66k\), koniq10k \(koniq-10k\) \(koniq\), eva, para, aadb"):
        format_name("spaq")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), str.rstrip, lambda text: "\ufeff" + text])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, name, change):
    plain = read(tmp_path / "plain", name).table
    files = {file: change(text.removeprefix("\ufeff")) for file, text in PUBLISHED[name].items()}
    table = read(tmp_path / "changed", name, files).table
    assert table.ids == plain.ids and dict(table.columns) == dict(plain.columns)
    np.testing.assert_array_equal(table.votes, plain.votes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_options_of_another_format_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"the format {name} is read with {FORMATS[name].__name__}, got TableOptions"):
        read_dataset(name, tmp_path, Problems(), TableOptions())


def test_the_command(tmp_path, capsys, monkeypatch):
    put(tmp_path, PUBLISHED["tad66k"] | THEMES)
    arguments = ["import", "tad66k", str(tmp_path), "-o", str(tmp_path / "data"), "--variant", "unmerge"]
    monkeypatch.setattr("sys.argv", ["milnet", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    table, manifest = load_table(tmp_path / "data")
    assert manifest.config["source"] == {"format": "tad66k", "variant": "unmerge"} and table.groups == ("theme",)
    assert "the variant unmerge" in capsys.readouterr().out


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([(name, file) for name, files in PUBLISHED.items() for file in files]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
)
def test_any_damage_is_a_defect_or_harmless(tmp_path_factory, where, changes):
    name, file = where
    folder = put(tmp_path_factory.mktemp("damaged"), PUBLISHED[name])
    data = PUBLISHED[name][file].encode()
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length :]
    (folder / file).write_bytes(data)
    for keep_going in (False, True):
        try:
            imported = read_dataset(name, folder, Problems(keep_going=keep_going))
        except MilnetError:
            continue
        save_table(imported.table, folder / "made", inputs=imported.inputs, overwrite=True)
        assert load_table(folder / "made")[0].ids == imported.table.ids
