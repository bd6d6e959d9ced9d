"""Goal: the table of contents survives its journey, and its digest follows the content."""

from __future__ import annotations

import json

import pytest

from app.manifest import FileEntry, Manifest, from_json
from tests.conftest import NATIVE, OPTIONS, MakePayload


def test_there_and_back(make_payload: MakePayload) -> None:
    manifest = make_payload().manifest
    again = from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest


def test_the_digest_follows_every_file() -> None:
    entry = FileEntry("0" * 64, 5, 0o700)
    one = Manifest({"a": entry}, OPTIONS, NATIVE)
    others = [
        Manifest(files, OPTIONS, NATIVE)
        for files in (
            {"b": entry},
            {"a": FileEntry("1" * 64, 5, 0o700)},
            {"a": FileEntry("0" * 64, 6, 0o700)},
            {"a": FileEntry("0" * 64, 5, 0o600)},
            {"a": entry, "b": entry},
        )
    ]
    assert len({manifest.digest for manifest in [one, *others]}) == 6
    assert one.digest == Manifest({"a": entry}, (), NATIVE).digest


def test_directories() -> None:
    entry = FileEntry("0" * 64, 5, 0o700)
    assert Manifest({"a/b/c": entry, "a/d": entry, "e": entry}, (), NATIVE).directories == {"a", "a/b"}


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "", "./a"])
def test_a_path_that_leaves_the_directory_is_refused(make_payload: MakePayload, path: str) -> None:
    plain = json.loads(make_payload().manifest.to_json())
    plain["files"][path] = ["0" * 64, 1, 0o600]
    with pytest.raises(ValueError, match="unsafe path"):
        from_json(json.dumps(plain).encode())
