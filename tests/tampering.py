"""Versions altered after they were published, by someone who can write to the store."""

import hashlib
import json

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


def refused(folder, runtime="onnx"):
    """The sentence with which the version is refused."""
    with pytest.raises(BundleError) as caught:
        Detector(store.load(folder), "cpu", runtime)
    sentence = str(caught.value)
    assert len(sentence) > 20
    assert "\n" not in sentence
    return sentence
