"""A real browser for tests: a headless Chromium that opens files and tells all that they do.

    with chromium() as browser, opened(browser, page, width=390) as seen: ...

Debian's Chromium (`apt-get install chromium`), Chrome, or the one of `playwright install chromium`.
It makes no connection of its own, so that each one is the page's.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (  # without these it looks for updates, components and accounts
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--no-first-run", "--disable-quic"),
    *("--no-pings", "--disable-domain-reliability"),
)
PATIENCE_MS = 60_000  # a busy machine's


def own_program() -> str:
    """Where playwright would have put its own Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def program() -> str:
    """The Chromium of this machine; empty where there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), "")
    return found or next(filter(os.path.isfile, [own_program()]), "")


def why_not() -> str:
    """Why no test can have a browser here; empty where it can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"no playwright: {error}"
    if not program():
        return "no Chromium: apt-get install chromium, or playwright install chromium"
    return ""


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser of playwright's (https://playwright.dev/python/docs/api/class-browser)."""
    from playwright.sync_api import sync_playwright

    words = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    path = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=words)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """An open page, and what it did beside being shown."""

    page: object  # playwright's
    requests: list[str] = field(default_factory=list)  # of anything but the file itself
    messages: list[str] = field(default_factory=list)  # errors, warnings, and what was thrown
    dialogs: list[str] = field(default_factory=list)
    visits: list[str] = field(default_factory=list)  # addresses, the first one among them
    forbidden: list[str] = field(default_factory=list)  # requests that the page's policy stopped

    @property
    def misdeeds(self) -> list[str]:
        return [*self.requests, *self.messages, *self.dialogs]


@contextlib.contextmanager
def opened(
    browser, file: Path, width=1280, height=800, colors="light", clock=False, **options
) -> Iterator[Seen]:
    """A file, opened as by a double click, in a window and a profile of its own. clock: the page's
    time stands still but for what the test puts it on. options: of playwright's new_context."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=colors,
        reduced_motion="reduce",  # what a test asks for is there at once
        **options,
    )
    context.set_default_timeout(PATIENCE_MS)
    seen, address = Seen(context.new_page()), file.resolve().as_uri()

    def requested(request) -> None:
        if request.url.partition("#")[0] != address:
            seen.requests.append(request.url)

    def said(message) -> None:
        if message.type in ("error", "warning"):
            seen.messages.append(f"{message.type}: {message.text}")

    def asked(dialog) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def failed(request) -> None:
        if request.failure == "csp":
            seen.forbidden.append(request.url)

    def visited(frame) -> None:
        seen.visits.append(frame.url)

    context.on("request", requested)
    context.on("requestfailed", failed)
    seen.page.on("framenavigated", visited)
    context.on("console", said)
    context.on("weberror", lambda error: seen.messages.append(str(error.error)))
    context.on("dialog", asked)
    try:
        if clock:
            seen.page.clock.install()
        seen.page.goto(address)
        yield seen
    finally:
        context.close()
