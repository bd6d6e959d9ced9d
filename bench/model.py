"""The model of `bench tokens`: a LLaMA of 217 million parameters in F16, random, made on the spot and kept.

Its vocabulary is as large as a real one's: the logits of each token, 128 KB, come back over the wire.
"""

from __future__ import annotations

from pathlib import Path

from tests.live import model

VOCABULARY = 32_000
SHAPE = model.Shape(
    layers=9, width=1024, heads=16, feed_forward=4096, context=2048, words=VOCABULARY - 3 - 256, half=True
)


def make(directory: Path) -> Path:
    """The GGUF file below `directory`, 440 MB; written unless it is there."""
    path = directory / f"llama-{SHAPE.layers}x{SHAPE.width}-{VOCABULARY}-f16.gguf"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        model.make(path.with_suffix(".part"), SHAPE).rename(path)
    return path
