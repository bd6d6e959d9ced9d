"""Goal: the picture is an SVG that shows every peer's figure, longest for the greatest, and names the machine."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.picture import draw
from bench.report import Row

FACTS = {"cpu": "2 x Some & Sons", "kernel": "6.1", "openssl": "OpenSSL 3", "date": "2030-01-01", "stunnel": "5.68"}
ROWS = [
    Row("up", "GB/s", (5.0,), "direct"),
    Row("up", "GB/s", (0.4, 0.5, 0.6), "stunnel"),
    Row("up", "GB/s", (1.0, 1.1, 1.2), "worker"),
    Row("up", "x", (2.2,), "worker / stunnel"),
    Row("64 B both ways", "us", (108.0,), "stunnel"),
    Row("64 B both ways", "us", (123.0,), "worker"),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_each_peer_has_its_bar_and_its_number() -> None:
    root = ElementTree.fromstring(draw(FACTS, ROWS))
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    for number in ("0.50", "1.10", "108", "123", "up (no relay: 5.00)"):
        assert number in texts
    assert any("Some & Sons" in text and "Linux 6.1" in text for text in texts)
    assert any("stunnel 5.68" in text for text in texts)
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if bar.attrib["width"] != "100%"]
    assert len(widths) == 4, "one bar each for stunnel and worker in both panels, none for the ratio"
    assert widths[1] > 2 * widths[0]
