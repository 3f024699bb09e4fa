"""Pages that this project writes, read by a strict parser and by a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Page(HTMLParser):
    """Reads a page strictly: every tag that is opened is closed, in order."""

    VOID = frozenset({"meta", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data if not {"style", "script"} & set(self.open) else ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def marked(self, name: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if name in attributes.get("class", "").split()]


def needs_nothing(page: Page, *, scripts: int = 1) -> None:
    """Fails where a page names anything outside itself, or lets a browser fetch it; or has other than its scripts."""
    addresses = [value for _, given in page.tags for name, value in given.items() if name in ("src", "href", "data")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]
    assert len(page.all("script")) == scripts
    policy = next(one["content"] for one in page.all("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert ("script-src" in policy) == bool(scripts)


def browse(page: Path, profile: Path, *options: str) -> str:
    """What a headless browser makes of a page; skips the test where none is installed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    quiet = "--disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to start for root otherwise
    command = [browser, "--headless", *quiet.split(), *sandbox, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
