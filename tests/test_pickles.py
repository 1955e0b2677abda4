"""The published code's feature files: what is read, and that nothing in them is ever run."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.annotations import Table
from milnet.artifacts import read_array, read_lines, read_manifest, verify_files
from milnet.errors import ArtifactError, MilnetError, NumericError, UsageError
from milnet.features import Features, photos_digest
from milnet.pickles import MAX_BYTES, import_features, read_array_pickle

ARRAY = np.array([[1.5, -2, 3]], np.float32)
# pickle.dumps(ARRAY, protocol).hex() under NumPy 1.26.4, Python 3.11
NUMPY_1 = {
    2: (
        "8002636e756d70792e636f72652e6d756c746961727261790a5f7265636f6e7374727563740a7100636e756d70790a6e6461"
        "727261790a71014b00857102635f636f646563730a656e636f64650a7103580100000062710458060000006c6174696e3171"
        "05867106527107877108527109284b014b014b0386710a636e756d70790a64747970650a710b58020000006634710c898887"
        "710d52710e284b0358010000003c710f4e4e4e4affffffff4affffffff4b0074711062896803580e0000000000c3803f0000"
        "00c3800000404071116805867112527113747114622e"
    ),
    3: (
        "8003636e756d70792e636f72652e6d756c746961727261790a5f7265636f6e7374727563740a7100636e756d70790a6e6461"
        "727261790a71014b008571024301627103877104527105284b014b014b03867106636e756d70790a64747970650a71075802"
        "00000066347108898887710952710a284b0358010000003c710b4e4e4e4affffffff4affffffff4b0074710c6289430c0000"
        "c03f000000c000004040710d74710e622e"
    ),
    4: (
        "80049596000000000000008c156e756d70792e636f72652e6d756c74696172726179948c0c5f7265636f6e73747275637494"
        "93948c056e756d7079948c076e6461727261799493944b0085944301629487945294284b014b014b03869468038c05647479"
        "70659493948c02663494898887945294284b038c013c944e4e4e4affffffff4affffffff4b0074946289430c0000c03f0000"
        "00c000004040947494622e"
    ),
    5: (
        "80059581000000000000008c126e756d70792e636f72652e6e756d65726963948c0b5f66726f6d6275666665729493942896"
        "0c000000000000000000c03f000000c000004040948c056e756d7079948c0564747970659493948c02663494898887945294"
        "284b038c013c944e4e4e4affffffff4affffffff4b007494624b014b0386948c014394749452942e"
    ),
}


def put(folder: Path, data: bytes, name: str = "7") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def refused(folder: Path, data: bytes) -> str:
    """The message with which a file is refused; it names the file."""
    file = put(folder, data)
    with pytest.raises(ArtifactError) as caught:
        read_array_pickle(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).endswith("expected one NumPy array of floats, pickled or saved by torch, and nothing else")
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 6144), (1, 40, 1, 1), (1, 40, 5, 5), (3,)])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8"])
def test_arrays(tmp_path, protocol, shape, kind):
    for array in (
        np.random.default_rng(1).normal(size=shape).astype(kind),
        np.asfortranarray(np.random.default_rng(2).normal(size=shape)).astype(kind, order="F"),
        np.random.default_rng(3).normal(size=(*shape, 2)).astype(kind)[..., 0],  # not contiguous
    ):
        read = read_array_pickle(put(tmp_path, pickle.dumps(array, protocol)))
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=") and read.flags.writeable and read.flags.c_contiguous


@pytest.mark.parametrize("protocol", NUMPY_1)
def test_arrays_of_numpy_1(tmp_path, protocol):
    np.testing.assert_array_equal(read_array_pickle(put(tmp_path, bytes.fromhex(NUMPY_1[protocol]))), ARRAY)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_saved_by_torch(tmp_path, zipped, protocol):
    array = np.random.default_rng(1).normal(size=(1, 2048)).astype(np.float32)
    torch.save(array, tmp_path / "7", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    if protocol == 2 or zipped:
        np.testing.assert_array_equal(read_array_pickle(tmp_path / "7"), array)
    else:  # the number at the beginning is then written otherwise; nobody asked for such files
        assert "7: " in refused(tmp_path, (tmp_path / "7").read_bytes())


class Call:
    """Pickles as a call of anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, object]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, (f"touch {marker}",)),
        "builtins.eval": Call(eval, (touch,)),
        "builtins.exec": Call(exec, (touch,)),
        "builtins.getattr": Call(getattr, (Call(__import__, ("os",)), "system")),
        "builtins.__import__": Call(__import__, ("os",)),
        "io.open": Call(builtins.open, (str(marker), "w")),
        "numpy.load": Call(np.load, (str(marker),)),
        "numpy.memmap": Call(np.memmap, (str(marker), "uint8", "w+", 0, (4,))),
        "collections.OrderedDict": OrderedDict(a=Call(os.system, (f"touch {marker}",))),
        "torch._utils._rebuild_tensor_v2": Call(torch._utils._rebuild_tensor_v2, (None, 0, (1,), (1,), False, None)),
        "_codecs.lookup": Call(__import__("_codecs").lookup, ("utf-8",)),
        "numpy.dtypes": Call(type(np.dtype("f4")), ()),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", attacks(Path("x")))
def test_nothing_is_imported_or_run(tmp_path, protocol, name):
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    for data in (
        pickle.dumps(attack, protocol),
        pickle.dumps((ARRAY, attack), protocol),
        pickle.dumps(Call(np._core.multiarray._reconstruct, (np.ndarray, (0,), attack)), protocol),
    ):
        message = refused(tmp_path, data)
        assert not marker.exists()
        message = message.replace("__builtin__", "builtins").replace("nt.system", "posix.system")  # their older names
        assert f"asks to import '{name if name != 'builtins.getattr' else 'builtins.'}" in message
    torch.save(attack, tmp_path / "saved")
    assert "asks to import" in refused(tmp_path, (tmp_path / "saved").read_bytes()) and not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """What is refused above does run when it is unpickled."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(attacks(marker)["builtins.exec"]))
    assert marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("value", [[ARRAY], {"a": ARRAY}, (ARRAY,), "text", 7, None, [[[]]], {1}, 2**70, 1.5, b"bytes"])
def test_other_values(tmp_path, protocol, value):
    message = refused(tmp_path, pickle.dumps(value, protocol))
    assert (
        "instead of an array" in message or "which no array of floats needs" in message or "asks to import" in message
    )


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols(tmp_path, protocol):
    assert "pickle instruction" in refused(tmp_path, pickle.dumps(ARRAY, protocol))
    assert "pickle instruction INST" in refused(tmp_path, b"(ios\nsystem\n.")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([None, 1]), "an array of objects, not of floats (f2, f4, f8)"),
        (np.arange(3), "an array of the type 'i8', not of floats"),
        (np.array([1 + 1j]), "the type 'c16'"),
        (np.array(["a"]), "the type 'U1'"),
        (np.array([True]), "the type 'b1'"),
        (np.zeros(2, [("a", "f4")]), "the type 'V4'"),
        (np.array(["2020-01-01"], "M8[D]"), "the type 'M8'"),
        (np.float32(1), "asks to import 'numpy._core.multiarray.scalar'"),
        (np.array(1.0), "whose shape is not 1 to 8 whole numbers above 0"),
        (np.zeros((1,) * 9), "whose shape is not 1 to 8 whole numbers above 0"),
        (np.array([[1.0]]).view(np.matrix), "asks to import 'numpy.matrix'"),
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_other_arrays(tmp_path, array, reason):
    for protocol in (2, 4):
        assert reason in refused(tmp_path, pickle.dumps(array, protocol))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path, bad):
    array = ARRAY.copy()
    array[0, 2] = bad
    with pytest.raises(NumericError, match=rf"7: expected finite numbers, got {bad} at \(0, 2\)"):
        read_array_pickle(put(tmp_path, pickle.dumps(array)))


FLOATS = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"
DTYPE = FLOATS + b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
HUGE = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x03" + b"".join(parts) + b"."


def state(shape: bytes = b"K\x01\x85", dtype: bytes = DTYPE, data: bytes = b"C\x04\x00\x00\x80?") -> bytes:
    return b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def test_hand_made_pickles_are_right(tmp_path):
    assert read_array_pickle(put(tmp_path, pickled(EMPTY, state()))).tolist() == [1.0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickled(EMPTY, state(HUGE)), "holds 4 bytes for an array of the shape (2147483647, 2147483647), which takes"),
        (pickled(EMPTY, state(b"K\x00\x85", data=b"C\x00")), "whose shape is not"),
        (pickled(EMPTY, state(b"K\x02\x85")), "holds 4 bytes for an array of the shape (2,), which takes 8"),
        (pickled(EMPTY, state(b"J\xff\xff\xff\xff\x85")), "whose shape is not 1 to 8 whole numbers above 0"),
        (pickled(EMPTY, state(b"\x88\x85")), "whose shape is not"),
        (pickled(EMPTY, state(b"K\x01\x85\x85")), "whose shape is not"),
        (pickled(EMPTY, state(data=b"]")), "pickle instruction EMPTY_LIST"),
        (pickled(EMPTY, state(data=b"N")), "holds a state of Array that makes no array of floats"),
        (pickled(EMPTY, state(dtype=b"N")), "holds a state of Array"),
        (pickled(EMPTY, state(dtype=FLOATS)), "holds an array without a byte order"),
        (pickled(EMPTY, state(), state()), "holds a state of Array"),
        (pickled(EMPTY, b"N(K\x01tb"), "holds a state of NoneType"),
        (pickled(EMPTY, b"}b"), "pickle instruction EMPTY_DICT"),
        (pickled(b"cnumpy\nndarray\n", state()), "holds a state of Name that makes no array"),  # on a class itself
        (pickled(EMPTY), "holds an array without content"),
        (pickled(EMPTY.replace(b"K\x00\x85", HUGE)), "holds a call of array that makes no array of floats"),
        (pickled(EMPTY.replace(b"cnumpy\nndarray\n", DTYPE)), "holds a call of array that makes"),
        (pickled(b"cnumpy\nndarray\n", HUGE, b"R"), "holds a call of ndarray that makes no array of floats"),
        (pickled(b"cnumpy\nndarray\n", HUGE, b"\x81"), "pickle instruction NEWOBJ"),
        (pickled(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R"), "holds a call of encode"),
        (
            pickled(b"c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R"),
            "not the bytes of an",
        ),
        (pickled(b"K\x01K\x02\x86K\x03R"), "a call without arguments"),
        (pickled(b"K\x01K\x02\x85R"), "holds a call of int that makes no array"),
        (pickled(b"X\x01\x00\x00\x00aR"), "takes more than it has"),
        (pickled(b"(R"), "takes more than it has"),
        (pickled(b"t"), "a tuple that has no beginning"),
        (pickled(b"h\x07"), "asks for value 7, which it never stored"),
        (pickled(b"K\x01K\x02\x93"), "asks for a name that is no text"),
        (pickled(b"Pid\n"), "pickle instruction PERSID"),
        (pickled(b"K\x01Q"), "pickle instruction BINPERSID"),
        (pickled(b"\x82\x01"), "pickle instruction EXT1"),
        (pickled(b"\x83\x01\x00"), "pickle instruction EXT2"),
        (pickled(b"\x84\x01\x00\x00\x00"), "pickle instruction EXT4"),
        (pickled(b"\x97"), "pickle instruction NEXT_BUFFER"),
        (pickled(b"\x8e" + struct.pack("<Q", 1 << 60)), "is not a complete pickle"),  # bytes that are not there
        (pickled(b"\x96" + struct.pack("<Q", 1 << 40)), "is not a complete pickle"),
        (pickled(b"K\x01r\xff\xff\xff\x7f"), "holds int instead of an array"),  # a place far away in the memo
        (pickled(b"N" * 2000), "a pickle of more than 1,000 instructions"),
        (pickled(b"K\x01", b"\x85" * 900), "holds tuple instead of an array"),
        (pickled(EMPTY, state(b"K\x01" + b"q\x00h\x00\x86" * 150)), "whose shape is not"),  # 2^150 values to show
        (pickled(EMPTY, state()) + b".", "has 1 bytes behind its end"),
        (pickled(EMPTY, state())[:-1], "is not a complete pickle"),
        (b"\x80\x03.", "holds nothing instead of an array"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not a complete pickle"),
        (b"hello world", "pickle"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "pickle"),
        (b"PK\x03\x04rubbish", "is a damaged zip file"),
    ],
)
def test_damaged_and_hostile_files(tmp_path, data, reason):
    tracemalloc.start()
    assert reason in refused(tmp_path, data)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_one_text_many_times(tmp_path):
    """Encoding costs nothing in the file, so it is counted."""
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
    again = b"h\x00h\x01h\x02\x86R"
    names = b"c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    assert "blows up one text many times" in refused(tmp_path, pickled(names, again * 150))


def test_extension_codes_that_are_registered(tmp_path):
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(b"\x80\x02\x82\xf0.")  # fills the interpreter's cache, which find_class is not asked about
        assert "pickle instruction EXT1" in refused(tmp_path, b"\x80\x02\x82\xf0X\x04\x00\x00\x00true\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_zip_files(tmp_path):
    def archive(*entries, kind=zipfile.ZIP_STORED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as file:
            for name, data in entries:
                file.writestr(name, data)
        return buffer.getvalue()

    good = pickle.dumps(ARRAY, 2)
    np.testing.assert_array_equal(read_array_pickle(put(tmp_path, archive(("x/data.pkl", good)))), ARRAY)
    assert "with 0 entries data.pkl" in refused(tmp_path, archive(("x/data", good)))
    assert "with 2 entries data.pkl" in refused(tmp_path, archive(("x/data.pkl", good), ("y/data.pkl", good)))
    bomb = archive(("x/data.pkl", b"N" * (30 << 20)), kind=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000 and "a compressed data.pkl" in refused(tmp_path, bomb)
    damaged = archive(("x/data.pkl", pickle.dumps(ARRAY, 3))).replace(b"\xc0?", b"\xc1?")
    assert "is a damaged zip file (Bad CRC-32" in refused(tmp_path, damaged)
    torch.save(torch.zeros(3), tmp_path / "tensor")
    assert "asks to import 'torch._utils._rebuild_tensor_v2'" in refused(tmp_path, (tmp_path / "tensor").read_bytes())


def test_files_that_are_none(tmp_path):
    with pytest.raises(ArtifactError, match=r"none: cannot be read \(No such file or directory\)"):
        read_array_pickle(tmp_path / "none")
    with pytest.raises(ArtifactError, match="is no file"):
        read_array_pickle(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="is no file"):
        read_array_pickle(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ArtifactError, match="has 67,108,865 bytes, more than 67,108,864"):
        read_array_pickle(tmp_path / "large")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_truncated_files(tmp_path, protocol):
    whole = pickle.dumps(ARRAY, protocol)
    for length in range(len(whole)):
        refused(tmp_path, whole[:length])


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([2, 3, 4, 5]),
    st.lists(st.tuples(st.integers(0, 240), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=3),
)
def test_any_damage_is_refused_or_numbers(tmp_path_factory, protocol, changes):
    data = pickle.dumps(ARRAY, protocol)
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length :]
    try:
        array = read_array_pickle(put(tmp_path_factory.mktemp("damaged"), data))
    except MilnetError:
        return
    assert np.isfinite(array).all() and array.dtype.kind == "f" and array.nbytes <= len(data)


@pytest.fixture
def table():
    ids = ("7", "8", "dir/9", "10")
    return Table(name="ava", ids=ids, votes=np.ones((4, 3)), values=np.arange(1.0, 4), images=("7.jpg", "", "", ""))


def written(folder: Path, shape: tuple[int, ...] = (1, 6), ids=("7", "dir/9", "10")) -> dict[str, np.ndarray]:
    arrays = {}
    for seed, photo in enumerate(ids):
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        arrays[photo] = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        (folder / photo).write_bytes(pickle.dumps(arrays[photo], 2 + seed))
    return arrays


def test_import_of_features(tmp_path, table):
    arrays = written(tmp_path / "files")
    (tmp_path / "files" / "unused").write_bytes(b"not read")
    told = []
    folder = tmp_path / "features" / "published"
    manifest = import_features(table, tmp_path / "files", folder, progress=lambda *step: told.append(step))
    values = read_array(folder / "features.npy")
    assert values.dtype == np.float16 and values.shape == (4, 6)
    for row, photo in enumerate(table.ids):
        if photo in arrays:
            np.testing.assert_array_equal(values[row], arrays[photo][0].astype(np.float16))
    assert np.isnan(values[1]).all() and read_array(folder / "readable.npy").tolist() == [True, False, True, True]
    assert read_lines(folder / "pixels.txt") == ("",) * 4
    assert (folder / "errors.csv").read_text() == "id,file,reason\n8,,there is no file '8'\n"
    assert read_manifest(folder, "features").digest == manifest.digest
    verify_files(folder, manifest)
    assert sorted(manifest.files) == ["features.npy", "pixels.txt", "readable.npy"]
    assert manifest.config == {
        "backbone": "published files",
        "weights": "unknown",
        "preprocess": {},
        "normalisation": {},
        "ranges": {"taps": [0, 6], "last": [0, 6]},
        "seen": "unknown (published files)",
    }
    assert manifest.inputs == {"photos": photos_digest(table)}
    assert manifest.counts == {"photos": 3, "unreadable": 1} and told[0] == (0, 3, "files") and told[-1][:2] == (3, 3)
    with pytest.raises(ArtifactError, match="exists already"):
        import_features(table, tmp_path / "files", folder)
    assert import_features(table, tmp_path / "files", folder, overwrite=True).digest == manifest.digest


def test_import_of_narrow_and_wide_features(tmp_path, table):
    arrays = written(tmp_path / "narrow", (1, 6, 1, 1))
    import_features(table, tmp_path / "narrow", tmp_path / "a")
    np.testing.assert_array_equal(
        read_array(tmp_path / "a" / "features.npy")[0], arrays["7"].reshape(6).astype(np.float16)
    )
    arrays = written(tmp_path / "wide", (1, 6, 5, 5))
    with pytest.raises(UsageError, match=r"7 holds wide features \(1, 6, 5, 5\), a map of 25 cells .* pass --narrow"):
        import_features(table, tmp_path / "wide", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    import_features(table, tmp_path / "wide", tmp_path / "b", narrow=True)
    means = arrays["7"].astype(np.float64).mean((0, 2, 3))
    np.testing.assert_array_equal(read_array(tmp_path / "b" / "features.npy")[0], means.astype(np.float16))
    # the maps themselves, cell y * 5 + x, for a reducer
    manifest = import_features(table, tmp_path / "wide", tmp_path / "c", wide=True)
    assert manifest.config["wide"] == {"pooling": "adaptive", "cells": 5, "stored": "float16"}
    made = Features(tmp_path / "c", table)
    assert made.maps is not None and made.maps.shape == (len(table), 25, 6)
    np.testing.assert_array_equal(made.maps[0][8], arrays["7"][0, :, 1, 3].astype(np.float16))
    np.testing.assert_array_equal(made.values[0], means.astype(np.float16))
    with pytest.raises(UsageError, match=r"holds \(1, 6, 1, 1\), no maps \(1, D, 5, 5\): leave --wide out"):
        import_features(table, tmp_path / "narrow", tmp_path / "d", wide=True)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (pickle.dumps(Call(os.system, ("touch marker",))), ArtifactError, r"asks to import '\w+.system'"),
        (pickle.dumps(ARRAY)[:-9], ArtifactError, "is not a complete pickle"),
        (pickle.dumps(ARRAY), ArtifactError, r"expected an array \(1, 6\) like the first one, got \(1, 3\)"),
        (pickle.dumps(ARRAY[0]), ArtifactError, r"expected an array \(1, D\), .*, got \(3,\)"),
        (pickle.dumps(np.zeros((2, 6))), ArtifactError, r"expected an array \(1, D\), .*, got \(2, 6\)"),
        (pickle.dumps(np.full((1, 6), np.nan)), NumericError, "expected finite numbers"),
        (pickle.dumps(np.full((1, 6), 1e6)), NumericError, r"does not fit float16: 1e\+06 is above 65504"),
    ],
)
def test_bad_files_are_named(tmp_path, table, data, error, reason):
    written(tmp_path / "files")
    (tmp_path / "files" / "10").write_bytes(data)
    with pytest.raises(error, match=rf"files/10: .*{reason}"):
        import_features(table, tmp_path / "files", tmp_path / "made")
    assert not (tmp_path / "made").exists() and not Path("marker").exists()
    problems: list[MilnetError] = []
    manifest = import_features(table, tmp_path / "files", tmp_path / "made", problems=problems)
    assert len(problems) == 1 and isinstance(problems[0], error)
    assert manifest.counts == {"photos": 2, "unreadable": 2}
    assert read_array(tmp_path / "made" / "readable.npy").tolist() == [True, False, True, False]
    assert f"10,{tmp_path / 'files' / '10'}," in (tmp_path / "made" / "errors.csv").read_text()


def test_no_files_at_all(tmp_path, table):
    with pytest.raises(UsageError, match="expected the folder of the published feature files, got"):
        import_features(table, tmp_path / "none", tmp_path / "made")
    (tmp_path / "files").mkdir()
    with pytest.raises(ArtifactError, match=r"none of the 4 photos has a file in .* like '7'; there are none"):
        import_features(table, tmp_path / "files", tmp_path / "made")
    (tmp_path / "files" / "7.pkl").touch()
    with pytest.raises(ArtifactError, match=r"there are 1 files, the first '7\.pkl'"):
        import_features(table, tmp_path / "files", tmp_path / "made")
    (tmp_path / "files" / "7").touch()
    with pytest.raises(ArtifactError, match=r"none of the 1 files in .* could be read; the first: .*7: is empty"):
        import_features(table, tmp_path / "files", tmp_path / "made", problems=[])
