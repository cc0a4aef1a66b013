"""Versions altered after they were published, by someone who can write to the store."""

import hashlib
import io
import json
import tracemalloc
import zipfile
from contextlib import contextmanager

import pytest

from app.detection import store
from app.detection.bundle import BundleError
from app.detection.detector import Detector
from app.detection.store import CARD


def sign(folder, **changes):
    """Write the card again, true to the files as they are now: what an attacker with write access would do."""
    card = json.loads((folder / CARD).read_text())
    card.pop("card_sha256")
    card["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else digest
        for name, digest in card["files"].items()
    }
    card |= changes
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    (folder / CARD).write_text(json.dumps({**card, "card_sha256": digest}))


def understated_zip(name, compression=zipfile.ZIP_DEFLATED):
    """An archive of at most 256 KiB whose one entry states 1,000 bytes, and unpacks to 256 MiB."""
    file, size = io.BytesIO(), 2**28
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, bytes(size))
    return file.getvalue().replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))


@contextmanager
def memory_below(size):
    """Python takes less than `size` bytes more at any time inside of the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def refused(folder, runtime="onnx"):
    """The sentence with which the version is refused."""
    with pytest.raises(BundleError) as caught:
        Detector(store.load(folder), "cpu", runtime)
    sentence = str(caught.value)
    assert len(sentence) > 20
    assert "\n" not in sentence
    return sentence
