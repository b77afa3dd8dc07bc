"""Options: declared once, and the same wherever they are written."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpupipe
from gpupipe import options
from gpupipe.colour import PixelFormat
from gpupipe.errors import DeviceError, GpupipeError, OptionError
from gpupipe.media.encoders import DEFAULT_THREADS, EncoderOptions
from gpupipe.options import EngineOptions, ModelOptions, OutputOptions, SpeechOptions, declared, from_json, split
from gpupipe.options.groups import GROUPS
from gpupipe.options.page import markdown

EVERY = {name: option for group in GROUPS for name, option in declared(group).items()}
TYPES = {entry.name: str(entry.type) for group in GROUPS for entry in dataclasses.fields(group)}
LIMITS = {"max_pixels", "max_frames", "isolate"}
ENGINE = {"device", "workers", "max_memory", "cache", "feature_cache"} | LIMITS
OUTPUT = set(declared(OutputOptions))

# The keywords that mypy knows


@pytest.mark.parametrize(
    ("keywords", "names"),
    [
        (options.LimitKeywords, LIMITS),
        (options.EngineKeywords, ENGINE),
        (options.ModelKeywords, set(declared(ModelOptions))),
        (options.RenderKeywords, set(EVERY)),
        (options.FramesKeywords, set(EVERY) - {"sound"} - (OUTPUT - {"pixel_format"})),
        (options.JobKeywords, set(EVERY) - ENGINE),
        (options.TuneKeywords, {"device", "max_memory", "model", "provider", "precision", "features", "encoder"}),
        (options.JobFramesKeywords, set(EVERY) - ENGINE - {"sound"} - (OUTPUT - {"pixel_format"})),
    ],
)
def test_keywords_are_the_fields(keywords: Any, names: set[str]) -> None:
    assert {name: hint.__forward_arg__ for name, hint in keywords.__annotations__.items()} == {
        name: TYPES[name].replace("int", "int | Auto") if EVERY[name].auto else TYPES[name] for name in names
    }
    assert keywords.__required_keys__ == frozenset()


def test_a_name_is_declared_once() -> None:
    assert len(EVERY) == len(TYPES) == sum(len(declared(group)) for group in GROUPS)
    flags = [option.flag for option in EVERY.values()]
    assert len(set(flags)) == len(flags)


def test_choices_and_ranges_are_those_of_the_types() -> None:
    for name, literal in (
        ("provider", options.ProviderChoice),
        ("pixel_format", PixelFormat),
        ("image_format", options.ImageFormat),
    ):
        assert EVERY[name].choices == get_args(literal)
        assert EVERY[name].kind == "choice"
    for name, option in EVERY.items():
        assert ("None" in TYPES[name]) == (option.unset is not None), name
        assert option.default is not None or option.unset is not None, name
        assert {"int": "number", "bool": "switch"}.get(TYPES[name], option.kind) == option.kind, name
    assert EVERY["encoder_threads"].unset == f"{DEFAULT_THREADS} on every machine"


def test_the_encoders_options_are_the_outputs() -> None:
    assert EncoderOptions.of(OutputOptions()) == EncoderOptions()
    chosen = OutputOptions(encoder="libx265", crf=7, preset="fast", encoder_threads=2)
    assert EncoderOptions.of(chosen) == EncoderOptions("libx265", 7, "fast", 2)


def test_help_shows_the_options() -> None:
    for function, keywords in (
        (gpupipe.render, options.RenderKeywords),
        (gpupipe.frames, options.FramesKeywords),
    ):
        shown = inspect.signature(function).parameters
        assert keywords.__annotations__.keys() <= shown.keys()
        assert shown["batch"].default is None
        text = inspect.getdoc(function) or ""
        assert "    start_frame: position in the ping-pong order to start at [default: 0]" in text
        assert "--" not in text


# Splitting


def test_splitting() -> None:
    rows = np.zeros((4, 512), np.float32)
    given = {"device": "cuda:1", "batch": np.int64(4), "features": rows, "crf": 0, "audio": Path("a.wav")}
    engine, model, speech, output = split(given)
    assert engine == EngineOptions(device="cuda:1")
    assert model == ModelOptions(batch=4)
    assert type(model.batch) is int
    assert speech.features is rows
    assert speech.audio == Path("a.wav")
    assert output == OutputOptions(crf=0)
    assert split({}) == (EngineOptions(), ModelOptions(), SpeechOptions(), OutputOptions())


@pytest.mark.parametrize(
    ("keywords", "taking", "by"),
    [
        ({"colour": 1}, options.RenderKeywords, "render()"),
        ({"parallel": 1}, options.RenderKeywords, "render()"),
        ({"device": "cpu"}, options.JobKeywords, "submit()"),
        ({"crf": 1}, options.FramesKeywords, "frames()"),
    ],
)
def test_a_keyword_that_there_is_not(keywords: dict[str, Any], taking: type, by: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^{by[:-2]}\(\) got an unexpected keyword argument '{next(iter(keywords))}'$"
    ):
        split(keywords, taking, by=by)


def test_python_is_told_as_it_was_called(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^render\(\) got an unexpected keyword argument 'speed'$"):
        gpupipe.render(tmp_path, "talk.mp4", speed=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^frames\(\) got an unexpected keyword argument 'encoder'$"):
        next(iter(gpupipe.frames(tmp_path, encoder="libx264")))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch", True, "not a whole number (got True); give 1 to 512, or auto"),
        ("batch", "8", "not a whole number (got '8'); give 1 to 512, or auto"),
        ("batch", 8.0, "not a whole number (got 8.0); give 1 to 512, or auto"),
        ("batch", "Auto", "not a whole number (got 'Auto'); give 1 to 512, or auto"),
        ("crf", "auto", "not a whole number (got 'auto'); give 0 or more"),
        ("start_frame", None, "not a whole number (got None); give 0 or more"),
        ("batch", 513, "out of range (got 513); give 1 to 512"),
        ("frames", 0, "out of range (got 0); give 1 or more"),
        ("start_frame", -1, "out of range (got -1); give 0 or more"),
        ("max_memory", 0, "out of range (got 0); give 1 or more"),
        ("max_memory", "8G", "not a whole number (got '8G'); give 1 or more"),
        ("sound", 1, "neither true nor false (got 1)"),
        ("precision", "int4", "no such choice (got 'int4'); give fp32, tf32, fp16 or int8"),
        ("overwrite", "no", "neither true nor false (got 'no')"),
        ("device", "cuda:x", "no such device (got 'cuda:x'); give auto, cpu, cuda or cuda:N"),
        ("device", "cuda:1\n", "no such device (got 'cuda:1\\n'); give auto, cpu, cuda or cuda:N"),
        ("device", 0, "not a name (got 0); give auto, cpu, cuda or cuda:N"),
        ("provider", "trt", "no such choice (got 'trt'); give auto, cpu, cuda or tensorrt"),
        ("provider", [], "not a name (got []); give auto, cpu, cuda or tensorrt"),
        ("encoder", 264, "not a name (got 264)"),
        ("audio", 3, "not a path (got 3); give the name of a file"),
        ("audio", "", "not a path (got ''); give the name of a file"),
        ("audio", b"a.wav", "not a path (got b'a.wav'); give the name of a file"),
        ("model", "a\0b", "not a path (got 'a\\x00b'); give the name of a file"),
        ("model", np.zeros(3), "not a path (got array([0., 0., 0.])); give the name of a file"),
        ("features", [1.0], "not a path (got [1.0]); give the name of a file"),
    ],
)
def test_a_value_that_an_option_cannot_have(name: str, value: object, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        split({name: value})
    assert str(caught.value) == f"{name}: {said}"
    assert caught.value.on_command_line() == f"{EVERY[name].flag}: {said}"


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.sampled_from(["cpu", "cuda:3", "nv12", "png", "a.npy", Path("x")]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@given(st.sampled_from(sorted(EVERY)), ANYTHING)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: object) -> None:
    taken: Any = next(group for group in GROUPS if name in declared(group))
    try:
        made = taken(**{name: value})
    except OptionError as error:
        said = str(error)
        assert said.startswith(f"{name}: ")
        assert "\n" not in said
        return
    kept = getattr(made, name)
    option = EVERY[name]
    if kept is None:
        assert option.unset is not None
    elif option.kind in ("number", "bytes", "size") and kept not in option.words:
        assert type(kept) is int
        assert option.least <= kept <= (kept if option.most is None else option.most)
    elif option.kind == "choice":
        assert kept in option.choices
    else:
        assert type(kept) is bool if option.kind == "switch" else kept == value


# What is left to a tuning


def test_auto_is_the_default_in_words() -> None:
    auto = {name for name, option in EVERY.items() if option.auto}
    assert auto == {"batch", "runs", "encoders", "workers", "cache"}
    for name in auto:
        assert EVERY[name].default is EVERY[name].read("auto") is EVERY[name].from_json("auto", Path()) is None
        assert split({name: "auto"}) == split({})
    assert EVERY["batch"].default_text == "auto: as tuned, else 8"
    assert EngineOptions().feature_cache is None
    error = OptionError("too many", field="--batch", remedy="use --batch auto, or --batch 4")
    assert str(error) == 'batch: too many; use batch="auto", or batch 4'
    with pytest.raises(OptionError, match="runs: out of range"):
        split({"runs": 0})


def test_all_is_a_number_of_bytes_in_words() -> None:
    assert {name for name, option in EVERY.items() if option.words} == {"cache", "feature_cache"}
    assert EVERY["cache"].read("all") == split({"cache": "all"})[0].cache == "all"
    with pytest.raises(OptionError, match=r"cache: not a whole number .got 'most'.; give 0 or more, or auto or all"):
        split({"cache": "most"})
    error = OptionError("too small", field="--cache", remedy="use --cache all")
    assert str(error) == 'cache: too small; use cache="all"'


def test_a_size_is_a_number_of_bytes_or_says_its_unit() -> None:
    sizes: dict[Any, int | str] = {
        200_000_000: 200_000_000,
        np.int64(7): 7,
        "4G": 4 << 30,
        "auto": "auto",
        "off": "off",
    }
    for value, kept in sizes.items():
        engine, *_ = split({"feature_cache": value})
        assert engine.feature_cache == kept
        assert type(engine.feature_cache) is type(kept)
        assert EVERY["feature_cache"].read(str(value)) == kept
    wrong: list[Any] = ["much", "", True, 1.5, [], -1]
    for value in wrong:
        with pytest.raises(
            OptionError, match=r"^feature_cache: (not a number of bytes|not a whole number|out of range) "
        ):
            split({"feature_cache": value})


# A server's


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"port": 65536}, "port: out of range (got 65536); give 0 to 65535"),
        ({"most_load": 0.0}, "most_load: no share (got 0.0); give a number up to 1, such as 0.85"),
        ({"most_load": True}, "most_load: no share (got True); give a number up to 1, such as 0.85"),
        ({"most_load": float("nan")}, "most_load: no share (got nan); give a number up to 1, such as 0.85"),
        ({"max_sessions": 0}, "max_sessions: out of range (got 0); give 1 or more"),
        ({"token_file": ""}, "token_file: not a path (got ''); give the name of a file"),
    ],
)
def test_what_a_server_cannot_have(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        options.ServeOptions(**keywords)
    assert str(caught.value) == said


def test_a_share_is_read() -> None:
    share = declared(options.ServeOptions)["most_load"]
    assert [share.read(text) for text in ("0.85", "1", ".5")] == [0.85, 1.0, 0.5]
    for text in ("", "85%", "1.01", "-1", "1e-1", "inf"):
        with pytest.raises(OptionError, match="no share"):
            share.read(text)
    assert not set(declared(options.ServeOptions)) & set(EVERY)


# Bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("1k", 1024),
        ("8G", 8 * 1024**3),
        ("8 GiB", 8 * 1024**3),
        ("1.5g", 3 * 2**29),
        ("500MB", 500_000_000),
        ("2T", 2 * 1024**4),
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert EVERY["cache"].read(text) == options.read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "8GG", "1e9", "nan", "8 G B", "٣", "8,5G"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        options.read_bytes(text)
    assert str(caught.value) == f"not a number of bytes (got {text!r}); give one such as 8G or 500M"


# JSON


def test_from_json() -> None:
    told = {"audio": "a/b.wav", "features": "/f.npy", "batch": 3, "sound": False, "crf": None, "preset": "fast"}
    assert from_json(told, Path("/jobs")) == {
        "audio": Path("/jobs/a/b.wav"),
        "features": Path("/f.npy"),
        "batch": 3,
        "sound": False,
        "crf": None,
        "preset": "fast",
    }


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"start-frame": 1}, "'start-frame': no such option; write start_frame"),
        ({"overwrit": True}, "overwrit: no such option; write overwrite"),
        ({"no_audio": True}, "no_audio: no such option; write sound"),
        ({"device": "cpu"}, "device: is the same for all jobs (got 'cpu'); give it on the command line"),
        ({"cache": 1}, "cache: is the same for all jobs (got 1); give it on the command line"),
        ({"start_frame": 1.5}, "start_frame: not a whole number (got 1.5); give 0 or more"),
        (
            {"\x1b[31m": 1},
            f"'\\x1b[31m': no such option; there are {', '.join(options.options_of(options.JobKeywords))}",
        ),
        (
            {"batch_" * 100_000: 1},
            f"'{('batch_' * 7)[:40]}': no such option; there are {', '.join(options.options_of(options.JobKeywords))}",
        ),
        ({"audio": "\ud800"}, "audio: not a path (got '\\ud800'); give the name of a file"),
        ({"audio": "a" * 10_000 + "\0"}, f"audio: not a path (got '{'a' * 398}…); give the name of a file"),
        ({"sound": None}, "sound: neither true nor false (got None)"),
        ({"features": [0.0]}, "features: not a path (got [0.0]); give the name of a file"),
    ],
)
def test_json_that_is_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        from_json(told, Path())
    assert str(caught.value) == caught.value.on_command_line() == said


def test_json_that_has_an_unknown_name() -> None:
    with pytest.raises(OptionError, match=r"^colour: no such option; there are model, provider, batch, .*, overwrite$"):
        from_json({"colour": 1}, Path())


# How errors spell options


@pytest.mark.parametrize(
    ("error", "python", "command_line"),
    [
        (
            DeviceError("no GPU", remedy="see nvidia-smi, or use --device cpu"),
            'no GPU; see nvidia-smi, or use device="cpu"',
            "no GPU; see nvidia-smi, or use --device cpu",
        ),
        (
            OptionError("out of range", field="--start-frame", value="--batch", remedy="leave --start-frame out"),
            "start_frame: out of range (got '--batch'); leave start_frame out",
            "--start-frame: out of range (got '--batch'); leave --start-frame out",
        ),
        (
            GpupipeError("--no-audio is needed", file="--odd name", field="--no-audio", remedy="use --overwrite or so"),
            "--odd name: sound: sound=False is needed; use overwrite=True or so",
            "--odd name: --no-audio: --no-audio is needed; use --overwrite or so",
        ),
        (
            GpupipeError("see `gpupipe bench --json`", remedy="a smaller --batch, fewer --frames; --some-other 3"),
            "see `gpupipe bench --json`; a smaller batch, fewer frames; some_other 3",
            "see `gpupipe bench --json`; a smaller --batch, fewer --frames; --some-other 3",
        ),
        (GpupipeError("a -- b --- c a--b"), "a -- b --- c a--b", "a -- b --- c a--b"),
        (GpupipeError("wrong", field="frame 3", value=None), "frame 3: wrong (got None)", "frame 3: wrong (got None)"),
    ],
)
def test_an_error_spells_options_as_its_caller_does(error: GpupipeError, python: str, command_line: str) -> None:
    assert (str(error), error.on_command_line()) == (python, command_line)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.on_command_line()) == (python, command_line)
    assert str(error.naming("f")) == "f: " + python.removeprefix("--odd name: ")


def test_the_documentation_is_that_of_the_declarations() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "options.md"
    assert page.read_text("utf-8") == markdown()
    assert all(f"`{option.flag}" in markdown() and f"| `{name}` |" in markdown() for name, option in EVERY.items())
