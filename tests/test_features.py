"""`features`: speech features from files and from Python: what is right comes back, what is wrong is named."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from numpy.typing import NDArray

from gpupipe.character.features import check_features, read_features
from gpupipe.character.folder import GpupipeWarning
from gpupipe.errors import PackageError

REMEDY = "give a NumPy file with float32 [N, 512]"


def refusal(path: Path) -> str:
    """What is said of a file, without its name."""
    with pytest.raises(PackageError) as caught:
        read_features(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: features")
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(f"{path}: ")


def write(path: Path, descr: str, shape: str, data: bytes = b"", *, order: str = "False") -> None:
    """A `.npy` file, whatever its header says."""
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 512), ">f4"), f"features: wrong type (got '>f4'); {REMEDY}"),
        (np.zeros((5, 512), np.int32), f"features: wrong type (got 'int32'); {REMEDY}"),
        (np.zeros((5, 512), np.complex64), f"features: wrong type (got 'complex64'); {REMEDY}"),
        (np.array([{"a": 1}], object), f"features: wrong type (got 'object'); {REMEDY}"),
        (np.zeros((5, 511), np.float32), f"features: wrong shape (got (5, 511)); {REMEDY}"),
        (np.zeros((5, 511)), f"features: wrong shape (got (5, 511)); {REMEDY}"),
        (np.zeros((0, 512), np.float32), f"features: wrong shape (got (0, 512)); {REMEDY}"),
        (np.zeros(512, np.float32), f"features: wrong shape (got (512,)); {REMEDY}"),
        (np.zeros((1, 5, 512), np.float32), f"features: wrong shape (got (1, 5, 512)); {REMEDY}"),
        (np.array(1, np.float32), f"features: wrong shape (got ()); {REMEDY}"),
    ],
)
def test_another_shape_or_type(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    np.save(tmp_path / "f.npy", array, allow_pickle=True)
    assert refusal(tmp_path / "f.npy") == message
    with pytest.raises(PackageError) as caught:
        check_features(array)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float, dtype: type) -> None:
    features: NDArray[Any] = small.features(9).astype(dtype)
    features[4, 511] = features[7, 0] = value
    np.save(tmp_path / "f.npy", features)
    message = "features row 4: holds NaN or infinity; compute the features again"
    assert refusal(tmp_path / "f.npy") == message
    with pytest.raises(PackageError) as caught:
        check_features(features)
    assert str(caught.value) == message


def test_numbers_that_float32_cannot_hold() -> None:
    features = small.features(9).astype(np.float64)
    features[5, 3] = 1e39
    with pytest.raises(PackageError, match=r"^features row 5: holds a number beyond float32; "):
        check_features(features)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_converted_and_said_to_be(tmp_path: Path, dtype: type) -> None:
    features: NDArray[Any] = small.features(9).astype(dtype)
    wanted = np.array([[np.float32(value) for value in row] for row in features.tolist()])
    np.save(tmp_path / "f.npy", features)
    name = np.dtype(dtype).name
    for source, said in ((tmp_path / "f.npy", f"{tmp_path / 'f.npy'}: "), (features, "")):
        with pytest.warns(GpupipeWarning) as caught:
            rows = read_features(source) if isinstance(source, Path) else check_features(source)
        assert [str(warning.message) for warning in caught] == [f"{said}features: {name} converted to float32"]
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, wanted)


def test_features_come_back_as_written(tmp_path: Path) -> None:
    features = small.features(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order in "CF":
            for version in ((1, 0), (2, 0), (3, 0)):
                with (tmp_path / "f.npy").open("wb") as file:
                    npy.write_array(file, np.array(features, order=order), version=version)  # type: ignore[call-overload]
                    file.write(b"and something after it")
                rows = read_features(tmp_path / "f.npy")
                np.testing.assert_array_equal(rows, features)
                assert rows.flags.c_contiguous
        assert check_features(features) is features
        every_other = check_features(small.features(10)[::2])
    np.testing.assert_array_equal(every_other, small.features(10)[::2])
    assert every_other.flags.c_contiguous


def test_files_that_are_no_features(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    assert refusal(path) == f"features: no such file; {REMEDY}"
    path.mkdir()
    assert refusal(path) == f"features: no such file; {REMEDY}"
    path.rmdir()
    with path.open("wb") as file:
        np.savez(file, a=small.features(3), b=small.features(3))
    assert refusal(path) == f"features: is an archive of arrays (.npz); {REMEDY}"
    for junk in (
        b"",
        b"hello",
        b"\x93NUMPY",
        b"\x80\x04K\x01.",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x09\x00" + bytes(99),
    ):
        path.write_bytes(junk)
        assert refusal(path).startswith("features: is no NumPy array: ")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    np.save(tmp_path / "f.npy", np.array([Trap()], object), allow_pickle=True)
    assert "wrong type (got 'object')" in refusal(tmp_path / "f.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("descr", "shape", "data", "message"),
    [
        ("<f4", "(5, 512)", 10239, "float32 [5, 512] (got '10239 bytes of 10240')"),
        ("<f4", "(5, 512)", 0, "float32 [5, 512] (got '0 bytes of 10240')"),
        ("<f8", "(5, 512)", 10240, "float64 [5, 512] (got '10240 bytes of 20480')"),
        (
            "<f4",
            f"({10**12}, 512)",
            2048,
            f"float32 [{10**12}, 512] (got '2048 bytes of {2048 * 10**12}')",
        ),
        (
            "<f4",
            f"({10**40}, 512)",
            2048,
            f"float32 [{10**40}, 512] (got '2048 bytes of {2048 * 10**40}')",
        ),
    ],
)
@pytest.mark.parametrize("order", ["False", "True"])
def test_a_header_that_claims_more_than_there_is(
    tmp_path: Path, descr: str, shape: str, data: int, message: str, order: str
) -> None:
    write(tmp_path / "f.npy", descr, shape, bytes(data), order=order)
    assert refusal(tmp_path / "f.npy") == (
        f"features: holds less than its header says, which is {message}; copy the file or compute the features again"
    )


@pytest.mark.parametrize(
    ("shape", "said"),
    [("(-5, 512)", "wrong shape (got (-5, 512))"), ("(5, -512)", "wrong shape"), ("(-1, -512)", "wrong shape")],
)
def test_a_header_with_a_negative_shape(tmp_path: Path, shape: str, said: str) -> None:
    write(tmp_path / "f.npy", "<f4", shape, bytes(10240))
    assert refusal(tmp_path / "f.npy").startswith(f"features: {said}")


def test_a_header_whose_length_is_a_lie(tmp_path: Path) -> None:
    """4 GiB of header are not read, or given memory, on a file's word."""
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'")
    assert refusal(tmp_path / "f.npy").startswith("features: is no NumPy array: EOF: reading array header")


WHOLE = io.BytesIO()
np.save(WHOLE, small.features(3))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.integers(0, 7000),
)
def test_any_damage_is_one_line(tmp_path: Path, changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(WHOLE.getvalue())
    for at, value in changes:
        damaged[at] = value
    (tmp_path / "f.npy").write_bytes(damaged[:length])
    told = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rows = read_features(tmp_path / "f.npy")
        except PackageError as error:
            told = str(error)
    if told is None:
        assert rows.dtype == np.float32
        assert rows.shape[1:] == (512,)
    else:
        assert told.startswith(f"{tmp_path / 'f.npy'}: features")
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "header",
    [
        "{[]: 1}",
        "[" * 5000,
        "(" * 5000 + ")" * 5000,
        "{'descr': (), 'fortran_order': False, 'shape': (5, 512)}",
        "{'descr': [(1,)], 'fortran_order': False, 'shape': (5, 512)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 5}",
        "{'descr': '<f4', 'fortran_order': 1, 'shape': (5, 512)}",
        "{'descr': '<f4', 'shape': (5, 512)}",
        "'''",
        "\x00",
        " " * 20_000,
    ],
)
def test_strange_headers(tmp_path: Path, header: str) -> None:
    text = header.encode()
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(10240))
    assert refusal(tmp_path / "f.npy").startswith("features: is no NumPy array: ")
