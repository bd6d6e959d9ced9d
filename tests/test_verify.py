"""Goal: `verify` names what is wrong and leaves no descriptor open. (test_payload.py has every damage.)"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.payload import ensure
from app.verify import Damaged, verify
from tests.conftest import MakePayload


def test_it_names_what_is_wrong_and_loses_no_descriptor(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    assets = ensure(payload, str(base), {})
    before = os.listdir("/proc/self/fd")
    verify(assets.fd, payload.manifest)
    (assets.path / "backend-assets/lib").mkdir()
    with pytest.raises(Damaged, match="backend-assets/lib does not belong there"):
        verify(assets.fd, payload.manifest)
    (assets.path / "backend-assets/lib").rmdir()
    assets.server.unlink()
    with pytest.raises(Damaged, match="llama-cpp-rpc-server is missing"):
        verify(assets.fd, payload.manifest)
    assert os.listdir("/proc/self/fd") == before
    os.close(assets.fd)
