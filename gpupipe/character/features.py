"""Speech features from a file or from Python: the one place where they are checked."""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gpupipe.character.folder import GpupipeWarning
from gpupipe.errors import PackageError, reason
from gpupipe.geometry import SPEECH_WIDTH

Features = NDArray[np.float32]

_REMEDY = f"give a NumPy file with float32 [N, {SPEECH_WIDTH}]"
_CONVERTED = (np.dtype(np.float64), np.dtype(np.float16))
# A header is a line of text. NumPy takes at most 10 000 characters of it, after at most 12 bytes.
_HEADER_BYTES = 1 << 14
_ARCHIVE = b"PK"
# As much of NumPy's words as a line takes: they may quote the header.
_SAID = 120


def read_features(path: Path) -> Features:
    """Read speech features from a `.npy` file.

    Nothing is allocated for an array before its header is known to be true: `numpy.load` takes the memory first.

    Returns:
        float32 `[N, 512]`, N at least 1, in C order.

    Raises:
        PackageError: the file is missing, holds something else, or less than its header says.

    Warns:
        GpupipeWarning: the file holds float64 or float16, which were converted.
    """
    if not path.is_file():
        raise _wrong("no such file", path)
    try:
        with path.open("rb") as file:
            features = _read(file, path)
    except OSError as error:
        raise _wrong(f"cannot be read: {reason(error)}", path) from error
    return check_features(features, path)


def check_features(features: NDArray[Any], file: Path | None = None) -> Features:
    """Speech features as every other room takes them.

    Args:
        features: float32 `[N, 512]`, or float64 or float16.
        file: the file that holds them, for messages; None for an array from Python.

    Returns:
        float32 `[N, 512]`, N at least 1, in C order: the same array where it is so already.

    Raises:
        PackageError: another type or shape, or numbers that are not finite in float32.

    Warns:
        GpupipeWarning: float64 or float16 were converted.
    """
    _check_kind(features.dtype, features.shape, file)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(features, np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        beyond = bool(np.isfinite(features[row]).all())
        raise PackageError(
            "holds a number beyond float32" if beyond else "holds NaN or infinity",
            file=file,
            field=f"features row {row}",
            remedy="compute the features again",
        )
    if features.dtype != np.float32:
        where = "" if file is None else f"{file}: "
        warnings.warn(f"{where}features: {features.dtype} converted to float32", GpupipeWarning, stacklevel=3)
    return rows


def _check_kind(dtype: np.dtype[Any], shape: tuple[int, ...], file: Path | None) -> None:
    if dtype != np.float32 and dtype not in _CONVERTED:
        raise _wrong("wrong type", file, str(dtype))
    if len(shape) != 2 or shape[1] != SPEECH_WIDTH or shape[0] < 1:
        raise _wrong("wrong shape", file, shape)


def _read(file: BinaryIO, path: Path) -> NDArray[Any]:
    """The array of a `.npy` file, of a type and shape that features may have.

    The format: `numpy.lib.format`, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    # The readers see the beginning alone, so that a length in it that is a lie reads no more than that.
    head = io.BytesIO(file.read(_HEADER_BYTES))
    if head.getvalue().startswith(_ARCHIVE):
        raise _wrong("is an archive of arrays (.npz)", path)
    try:
        version = npy.read_magic(head)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its version is {version[0]}.{version[1]}")
        # Version 3 differs from 2 in the encoding of field names, which no array of plain numbers has.
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(head)
    except Exception as error:  # the text of a header is Python's, and may fail in any of Python's ways
        raise _wrong(f"is no NumPy array: {reason(error)[:_SAID]}", path) from error
    _check_kind(dtype, shape, path)
    promised, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - head.tell()
    if there < promised:
        raise PackageError(
            f"holds less than its header says, which is {dtype} {list(shape)}",
            file=path,
            field="features",
            value=f"{there} bytes of {promised}",
            remedy="copy the file or compute the features again",
        )
    file.seek(head.tell())
    numbers: NDArray[Any] = np.fromfile(file, dtype, math.prod(shape))
    return numbers.reshape(shape, order="F" if by_columns else "C")


def _wrong(what: str, file: Path | None, *value: Any) -> PackageError:
    got = {"value": value[0]} if value else {}
    return PackageError(what, file=file, field="features", remedy=_REMEDY, **got)
