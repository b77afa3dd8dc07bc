"""Build softcuda for the Python that runs this file: `python tests/softcuda/build.py` prints the finished folder.

CuPy reaches the CUDA runtime through one extension module with the runtime linked into it. The build fetches CuPy's own
source for the installed version, compiles that one module against the software device, and lays the result over a
folder of links to the installed package. Nothing in the environment itself is changed.

Needs g++ and a package registry for pip. Takes about half a minute, once for each CuPy, Python and state
of these files.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
DISTRIBUTIONS = ("cupy-cuda12x", "cupy")
# The headers of the CUDA that the device reports itself to be.
HEADERS = ("nvidia-cuda-runtime-cu12==12.9.*", "nvidia-cuda-nvcc-cu12==12.9.*")
CUDA_VERSION = 12090
EXTENSION = "cupy_backends/cuda/api/runtime"
CXX = ("g++", "-std=c++17", "-fPIC")

# CuPy includes this header, which belongs to a package of several hundred megabytes, for two functions.
PROFILER_HEADER = """#pragma once
#include <cuda_runtime_api.h>
extern "C" cudaError_t cudaProfilerStart();
extern "C" cudaError_t cudaProfilerStop();
"""

# Runs in the throw-away environment; the options are those of CuPy's own build.
CYTHONIZE = """
import sys
import Cython
from Cython.Build import cythonize
from setuptools import Extension
name, cuda_version = sys.argv[1:]
cythonize(
    [Extension(name.replace("/", "."), [name + ".pyx"], language="c++")],
    language_level=3,
    compile_time_env={
        "CUPY_USE_CUDA_PYTHON": False,
        "CUPY_CUFFT_STATIC": False,
        "CUPY_CYTHON_VERSION": Cython.__version__,
        "CUPY_CUDA_VERSION": int(cuda_version),
        "CUPY_HIP_VERSION": 0,
    },
    compiler_directives={
        "embedsignature": True,
        "c_api_binop_methods": True,
        "binding": False,
        "warn.deprecated.IF": False,
        "freethreading_compatible": True,
    },
)
"""


FFMPEG = """
cuArray3DCreate_v2 cuArrayCreate_v2 cuArrayDestroy cuCtxCreate_v2 cuCtxDestroy_v2 cuCtxGetCurrent cuCtxGetDevice
cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetLimit cuDeviceComputeCapability cuDeviceGet cuDeviceGetAttribute
cuDeviceGetByPCIBusId cuDeviceGetCount cuDeviceGetName cuDeviceGetPCIBusId cuDevicePrimaryCtxGetState
cuDevicePrimaryCtxRelease cuDevicePrimaryCtxReset cuDevicePrimaryCtxRetain cuDevicePrimaryCtxSetFlags
cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventQuery cuEventRecord cuEventSynchronize cuGLGetDevices_v2
cuGetErrorName cuGetErrorString cuGraphicsGLRegisterImage cuGraphicsMapResources cuGraphicsResourceGetMappedPointer_v2
cuGraphicsSubResourceGetMappedArray cuGraphicsUnmapResources cuGraphicsUnregisterResource cuInit cuLaunchKernel
cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy cuMemAllocManaged cuMemAllocPitch_v2 cuMemAlloc_v2
cuMemFree_v2 cuMemcpy cuMemcpy2DAsync_v2 cuMemcpy2D_v2 cuMemcpyAsync cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2
cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemsetD8Async cuModuleGetFunction
cuModuleGetGlobal cuModuleLoadData cuModuleUnload cuStreamAddCallback cuStreamCreate cuStreamDestroy_v2 cuStreamQuery
cuStreamSynchronize cuStreamWaitEvent cuTexObjectCreate cuTexObjectDestroy
"""
"""What FFmpeg looks up in the driver before it uses any of it (`cuda_load_functions` of nv-codec-headers)."""


class BuildError(Exception):
    """softcuda cannot be built here; the first line says why, the lines after it are the log of the failing step."""


def cupy_version() -> str:
    """The version of the installed CuPy."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise BuildError("CuPy for CUDA 12 is not installed in this environment: pip install cupy-cuda12x")


def backends() -> Path:
    """The installed `cupy_backends` package, the parent of the one module that is rebuilt."""
    spec = importlib.util.find_spec("cupy_backends")
    if spec is None or spec.origin is None:
        raise BuildError("CuPy is installed without its package cupy_backends, which softcuda builds on")
    package = Path(spec.origin).parent
    # On softcuda the package found is the overlay; its files link to the real one.
    return (package / "__init__.py").resolve().parent


def sources() -> list[Path]:
    """Every file that the build's result depends on."""
    return sorted(p for p in HERE.rglob("*") if p.suffix in {".py", ".cpp", ".h"})


def folder() -> Path:
    """Where the build for this Python, this CuPy and these sources is or will be."""
    abi = sysconfig.get_config_var("SOABI")
    digest = hashlib.sha256(str(backends()).encode())
    for path in sources():
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softcuda"
    root = Path(os.environ.get("SOFTCUDA_BUILD") or default).resolve()
    return root / f"cupy-{cupy_version()}-{abi}-{digest.hexdigest()[:12]}"


def build() -> Path:
    """Build softcuda unless that was done before, and return its folder.

    Of several processes that ask at once one builds and the others wait for it. A build is made beside its final place
    and renamed, so a folder that exists is complete.

    Raises:
        BuildError: a tool, the registry or a compilation failed.
    """
    if sys.platform != "linux":
        raise BuildError(f"softcuda runs on Linux, this is {sys.platform}")
    out = folder()
    if out.is_dir():
        return out
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            raise BuildError(f"softcuda is compiled with g++ and binutils, and there is no {tool} on PATH")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.is_dir():
            return out
        print("softcuda: building the software CUDA device (once, about half a minute)", file=sys.stderr, flush=True)
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a build that was killed
        try:
            _build_into(partial, partial / "work")
            shutil.rmtree(partial / "work")
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def _build_into(out: Path, work: Path) -> None:
    library = out / "lib" / "libcuda.so.1"
    library.parent.mkdir(parents=True)
    work.mkdir()
    source = _fetch_cupy(work)
    tools = _tools(work, source)
    includes = _includes(work, tools)
    objects = _compile_device(work, includes)

    _step("translate CuPy's runtime module with Cython", [tools, "-c", CYTHONIZE, EXTENSION, CUDA_VERSION], cwd=source)
    python_headers = sysconfig.get_paths()["include"]
    module = work / "runtime.o"
    _step(
        "compile CuPy's runtime module",
        [*CXX, "-O1", "-fpermissive", "-w", "-c", f"-I{python_headers}", *includes, f"-I{source / 'cupy_backends'}",
         source / f"{EXTENSION}.cpp", "-o", module],
    )  # fmt: skip
    objects.append(_compile_stubs(work, module, objects))
    _step("link the device", [*CXX, "-shared", *objects, "-o", library, "-Wl,-soname,libcuda.so.1", "-ldl", "-pthread"])
    encoder = library.with_name("libnvidia-encode.so.1")
    _step(
        "compile the encoder",
        [*CXX, "-shared", "-O2", "-Wall", *(HERE / "nvenc").glob("*.cpp"), "-o", encoder,
         f"-Wl,-soname,{encoder.name},-z,nodelete", "-ldl", "-pthread"],
    )  # fmt: skip

    installed, overlay = backends(), out / "python" / "cupy_backends"
    shutil.copytree(
        installed, overlay, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__", "runtime.*.so")
    )
    target = out / "python" / f"{EXTENSION}.{sysconfig.get_config_var('SOABI')}.so"
    _step("link CuPy's runtime module", [*CXX, "-shared", module, library, "-o", target])
    # What compiles kernels later: a copy, so that the folder stays what it was built from.
    ignore = shutil.ignore_patterns("__pycache__", "*.cpp")
    shutil.copytree(HERE, out / "softcuda", ignore=ignore)


def _fetch_cupy(work: Path) -> Path:
    version = cupy_version()
    _step(
        f"fetch CuPy's source with pip (cupy {version})",
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "cupy", f"cupy=={version}",
         "-d", work],
        env={"CUPY_INSTALL_USE_STUB": "1"},
    )  # fmt: skip
    archive = work / f"cupy-{version}.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / f"cupy-{version}"


def _tools(work: Path, source: Path) -> Path:
    """A throw-away environment with Cython and CUDA's headers; returns its Python."""
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    _step(
        "fetch Cython and the CUDA headers with pip",
        [python, "-m", "pip", "install", "-q", _cython(source), "setuptools", *HEADERS],
    )
    return python


def _cython(source: Path) -> str:
    """The requirement for Cython: the version that the installed CuPy was made with, else what its source asks for.

    Modules made by different versions of Cython do not always share types, and the rebuilt one joins the others.
    """
    for module in (backends() / "cuda" / "api").glob("*.so"):
        if found := re.search(rb"_cython_(\d+)_(\d+)_(\d+)\b", module.read_bytes()):
            return "cython==" + ".".join(part.decode() for part in found.groups())
    requirements = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return next(str(r) for r in requirements if r.lower().startswith("cython"))


def _includes(work: Path, python: Path) -> list[str]:
    extra = work / "include"
    extra.mkdir()
    (extra / "cuda_profiler_api.h").write_text(PROFILER_HEADER, encoding="utf-8")
    site = _step("find the CUDA headers", [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
    nvidia = Path(site.strip()) / "nvidia"
    return [f"-I{nvidia / 'cuda_runtime' / 'include'}", f"-I{nvidia / 'cuda_nvcc' / 'include'}", f"-I{extra}"]


def _compile_device(work: Path, includes: Sequence[str]) -> list[Path]:
    objects = []
    for path in sorted((HERE / "device").glob("*.cpp")):
        objects.append(work / f"{path.stem}.o")
        _step(f"compile {path.name}", [*CXX, "-O2", "-Wall", *includes, "-c", path, "-o", objects[-1]])
    return objects


def _compile_stubs(work: Path, module: Path, objects: Sequence[Path]) -> Path:
    """Give each CUDA function that CuPy's module links, or FFmpeg looks up, and the device lacks a body that fails and
    says so."""
    wanted = _step("list what CuPy's module needs", ["nm", "--undefined-only", "--format=just-symbols", module])
    had = _step("list what the device has", ["nm", "--defined-only", "--format=just-symbols", *objects])
    missing = sorted({*re.findall(r"^cuda\w+$", wanted, re.M), *FFMPEG.split()} - set(had.split()))
    path = work / "stubs.c"
    not_supported = 801  # cudaErrorNotSupported
    path.write_text(
        "#include <stdio.h>\n"
        f'#define STUB(name) int name(void) {{ fputs("softcuda: " #name " is not emulated\\n", stderr); '
        f"return {not_supported}; }}\n" + "".join(f"STUB({name})\n" for name in missing),
        encoding="utf-8",
    )
    _step("compile the stubs", ["gcc", "-fPIC", "-O1", "-c", path, "-o", path.with_suffix(".o")])
    return path.with_suffix(".o")


def _step(what: str, command: Sequence[object], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run one command of the build and return its standard output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"softcuda: could not {what} (exit status {done.returncode})\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Build, and print the folder."""
    try:
        print(build())
    except BuildError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
