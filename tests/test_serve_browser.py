"""The page, in a real browser without a screen: a sound file is said, and what is said into the microphone."""

from __future__ import annotations

import asyncio
import os
import shutil
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, sync_playwright
from serving import Counted, served

from gpupipe.media.sound import read_pcm
from gpupipe.serve.http.app import application
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.hub import Hub
from gpupipe.serve.tokens import Tokens
from gpupipe.serve.webrtc.routes import Peers

pytestmark = pytest.mark.timeout(180)

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), "")
WAIT_MS, POLL_MS = 30_000, 50

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def said(folder: Path) -> Path:
    """What the microphone hears, over and over: a second of silence, and the demo's speech."""
    pcm = np.concatenate([np.zeros(48_000, np.float32), *read_pcm(folder / "anna" / "aud.wav", 48_000)])
    path = folder.parent / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((pcm * 32767).astype("<i2").tobytes())
    return path


@contextmanager
def page_of(folder: Path) -> Iterator[str]:
    """A server with the page; its address."""
    with Hub(folder, ["cpu"], {}, {}) as hub:
        hub.load("anna")
        made: list[tuple[Peers, asyncio.AbstractEventLoop]] = []
        peers = Peers(hub, Counted(), Uploads(hub.limits), host="127.0.0.1")
        app = application(hub, Tokens(()), None, metrics=Counted(), extra=peers.routes(Tokens(())))

        async def within(scope: object, receive: object, send: object) -> None:
            made[:] = [(peers, asyncio.get_running_loop())]
            await app(scope, receive, send)  # type: ignore[arg-type]

        with served(within) as port:
            try:
                yield f"http://127.0.0.1:{port}/"
            finally:
                for each, loop in made:
                    asyncio.run_coroutine_threadsafe(each.aclose(), loop).result(30)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with page_of(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser(said: Path) -> Iterator[Browser]:
    if not BROWSER:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium: apt-get install -y chromium")
        pytest.skip("there is no Chromium (apt-get install -y chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=[
                "--no-sandbox",
                "--autoplay-policy=no-user-gesture-required",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={said}",
                "--allow-loopback-in-peer-connection",
            ],
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, size: dict[str, int]) -> Iterator[Page]:
    """The page, with no error in its scripts, and nothing wider than the window."""
    context = browser.new_context(viewport=size, permissions=["microphone"])  # type: ignore[arg-type]
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    until(page, "document.querySelector('#character').value === 'anna'")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
    context.close()


def until(page: Page, condition: str) -> None:
    """Wait for something in the page. (Playwright's own way needs `eval`, which the page's headers forbid.)"""
    for _ in range(WAIT_MS // POLL_MS):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(POLL_MS)
    pytest.fail(f"{condition} did not come; the page says: {page.inner_text('body')}")


def pixels(page: Page, video: str) -> NDArray[np.uint8]:
    """What a video shows now, uint8 `[H, W]`, its green."""
    size, data = page.evaluate(
        """(id) => {
            const video = document.querySelector(id), canvas = document.createElement("canvas");
            canvas.width = video.videoWidth; canvas.height = video.videoHeight;
            const context = canvas.getContext("2d");
            context.drawImage(video, 0, 0);
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
            return [[canvas.height, canvas.width], Array.from(data.filter((_, at) => at % 4 === 1))];
        }""",
        video,
    )
    return np.array(data, np.uint8).reshape(size)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_sound_file_is_said(
    browser: Browser, address: str, folder: Path, size: dict[str, int], tmp_path: Path
) -> None:
    with opened(browser, address, size) as page:
        page.set_input_files("#sound", folder / "anna" / "aud.wav")
        page.click("#speak")
        until(page, "document.querySelector('#video').currentTime > 0.4")
        before = page.evaluate("document.querySelector('#video').currentTime")
        page.screenshot(path=tmp_path / "said.png", full_page=True)
        until(page, f"document.querySelector('#video').currentTime > {before}")
        until(page, "document.querySelector('#video').webkitAudioDecodedByteCount > 0")
        assert page.evaluate("[video.videoWidth, video.videoHeight]") == [320, 192]
        assert pixels(page, "#video").std() > 10


def test_the_microphone_is_said(browser: Browser, address: str, tmp_path: Path) -> None:
    with opened(browser, address, DESKTOP) as page:
        page.click("#microphone")
        until(page, "document.querySelector('#peer').currentTime > 0.2")
        state = "document.querySelector('#peer-state').textContent"
        until(page, f"{state} === 'speaks'")
        until(page, "document.querySelector('#round-trip').textContent.endsWith('ms')")
        until(page, "parseInt(document.querySelector('#bitrate').textContent) > 0")
        page.screenshot(path=tmp_path / "microphone.png", full_page=True)
        assert page.evaluate("[peer.videoWidth, peer.videoHeight]") == [320, 192]
        assert page.evaluate("peer.srcObject.getAudioTracks().length") == 1
        assert pixels(page, "#peer").std() > 10
        page.click("#microphone")
        page.wait_for_selector("#peer", state="hidden", timeout=WAIT_MS)
