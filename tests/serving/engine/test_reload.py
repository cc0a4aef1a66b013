import gc
import json
import os
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from conftest import make_bundle
from live import WATCHFUL, serving, wait_until
from strokes import npy, png, stroke_images

from app.detection import store
from app.detection.bundle import ONNX_FILES, SCORER, WEIGHTS, sha256
from app.detection.detector import Detector
from app.detection.imaging.centring import centre_images
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.store import CARD, StoreError
from app.detection.store_path import Stores
from app.network.autoencoder import Autoencoder, ModelConfig
from app.serving import schemas
from app.serving.engine.reload import RETRY_S, Versions

PNG, NPY = {"content-type": "image/png"}, {"content-type": "application/x-npy"}
IMAGES = centre_images(stroke_images(6, seed=9))[0]  # as `auto` leaves them


@pytest.fixture(scope="module")
def bundles():
    """Four detectors that score differently."""
    return [make_bundle(seed) for seed in range(4)]


@pytest.fixture
def root(bundles, tmp_path):
    """A store with one version, to be added to."""
    store.publish(bundles[0], tmp_path / "store")
    return tmp_path / "store"


class Watched:
    """A server on a store that changes under it."""

    def __init__(self, server, client, root):
        self.server, self.client, self.root = server, client, root

    @property
    def ready(self):
        return schemas.Readiness.model_validate(self.client.get("/readyz").json())

    @property
    def version(self):
        return self.ready.model.version

    def until(self, holds, patience=2.0):
        """Wait for what takes two seconds on an idle machine; a machine under load gets ten times that."""
        until = time.monotonic() + 10 * patience
        while not holds():
            assert time.monotonic() < until, self.server.log.read_text()[-2000:]
            time.sleep(0.05)

    def reloads(self, outcome):
        label = f'reloads_total{{model="mnist",outcome="{outcome}"}}'
        lines = [line for line in self.client.get("/metrics").text.splitlines() if label in line]
        return float(lines[0].split()[-1]) if lines else 0.0


@pytest.fixture
def watched(root, tmp_path):
    """The server on `root`."""
    with (
        serving(tmp_path / "log", "--store", str(root), command=WATCHFUL, ODDIGIT_DRAIN_S="0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield Watched(server, client, root)


def corrupted(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def truncated(folder):
    content = (folder / SCORER).read_bytes()
    (folder / SCORER).write_bytes(content[: len(content) // 2])


def card_truncated(folder):
    content = (folder / CARD).read_bytes()
    (folder / CARD).write_bytes(content[: len(content) // 2])


def incomplete(folder):
    (folder / SCORER).unlink()


def signed_anew(folder, change):
    """A card that was changed, with its checksum right."""
    card = json.loads((folder / CARD).read_text())
    card.pop("card_sha256")
    change(card)
    (folder / CARD).write_text(json.dumps({**card, "card_sha256": store._card_digest(card)}))


def of_another_architecture(folder):
    """Weights that belong to another network, under a card whose checksums are right: what a publisher's mistake looks like."""
    torch.save(Autoencoder(ModelConfig(hidden=(32, 16))).state_dict(), folder / WEIGHTS)
    digest = sha256((folder / WEIGHTS).read_bytes())
    signed_anew(folder, lambda card: card["files"].update({WEIGHTS: digest}))


def self_check_failing(folder):
    """A card that promises other scores, with its checksum right."""
    signed_anew(folder, lambda card: card["self_check"].update(scores=[2 * score for score in card["self_check"]["scores"]]))


def of_an_impossible_seed(folder):
    """A self-check that numpy has no generator for."""
    signed_anew(folder, lambda card: card["self_check"].update(seed=-1))


def blind_to_a_statistic(folder):
    """An features scorer with one statistic fewer than there are."""
    with np.load(folder / SCORER) as archive:
        arrays = dict(archive)
    count = len(FEATURE_NAMES) - 1
    usual = {"evidence_mean": np.zeros(count), "evidence_precision": np.eye(count), "evidence_units": np.ones(2)}
    arrays.update(usual, upload_calibration=np.arange(len(arrays["calibration"]), dtype=float))
    np.savez(folder / SCORER, **arrays)
    digest = sha256((folder / SCORER).read_bytes())
    signed_anew(folder, lambda card: card["files"].update({SCORER: digest}))


def add(bundle, root, spoil=None):
    """The next version of the store, spoilt before it appears."""
    staging = root.parent / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(root, staging)
    folder = store.publish(bundle, staging)
    if spoil:
        spoil(folder)
    return folder.rename(root / "mnist" / folder.name)


SPOILT = [
    corrupted,
    truncated,
    card_truncated,
    incomplete,
    of_another_architecture,
    self_check_failing,
    of_an_impossible_seed,
    blind_to_a_statistic,
]


def test_a_new_version_is_taken_up(bundles, watched):
    """What appears in the store serves soon, announced by log, metrics and probe; its own threshold judges."""
    store.publish(bundles[1], watched.root)
    watched.until(lambda: watched.version == 2)
    answer = watched.client.post("/score", content=npy(IMAGES), headers=NPY).json()
    assert answer["model"] == {"name": "mnist", "version": 2}
    assert answer["threshold"] == bundles[1].card.threshold
    assert watched.client.get("/model").json()["threshold"] == bundles[1].card.threshold
    assert watched.reloads("taken_up") == 2
    text = watched.client.get("/metrics").text
    assert 'version="1"} 0.0' in text
    assert 'version="2"} 1.0' in text
    assert "serving mnist/2" in watched.server.log.read_text()


def test_bad_versions_are_refused_and_the_old_one_serves_on(bundles, watched):
    """Corrupted, truncated, incomplete, of another architecture, failing its self-check or in ways of its own: each is told
    of, none is served."""
    for number, spoil in enumerate(SPOILT, start=2):
        add(bundles[1], watched.root, spoil)
        watched.until(lambda number=number: any(r.version == number for r in watched.ready.refused_versions))
    ready = watched.ready
    assert ready.model.version == 1
    assert [refused.version for refused in ready.refused_versions] == list(range(2, 2 + len(SPOILT)))
    assert all(len(refused.reason) > 20 for refused in ready.refused_versions)
    assert watched.reloads("refused") == len(SPOILT)
    assert watched.client.post("/score", content=npy(IMAGES), headers=NPY).json()["model"]["version"] == 1
    time.sleep(0.4)  # a few more looks at the store
    assert watched.reloads("refused") == len(SPOILT)
    assert watched.server.log.read_text().count("is refused") == len(SPOILT)
    store.publish(bundles[2], watched.root)
    watched.until(lambda: watched.version == 2 + len(SPOILT))


def test_a_version_that_is_mended_gets_another_chance(bundles, watched):
    """What is copied file by file is refused while it is incomplete and served when it is whole."""
    whole = store.publish(bundles[1], watched.root.parent / "elsewhere")
    folder = watched.root / "mnist" / "2"
    folder.mkdir()
    card = json.loads((whole / CARD).read_text()) | {"version": 2}
    card.pop("card_sha256")
    (folder / CARD).write_text(json.dumps({**card, "card_sha256": store._card_digest(card)}))
    watched.until(lambda: watched.ready.refused_versions)
    for name in (SCORER, WEIGHTS, *ONNX_FILES):
        assert watched.version == 1
        shutil.copy(whole / name, folder / name)
    watched.until(lambda: watched.version == 2)
    assert watched.ready.refused_versions == []


def test_removing_a_version_rolls_back(bundles, watched):
    """The next lower good one serves again; a refused one that is removed is forgotten."""
    store.publish(bundles[1], watched.root)
    add(bundles[2], watched.root, corrupted)
    watched.until(lambda: watched.version == 2 and watched.ready.refused_versions)
    shutil.rmtree(watched.root / "mnist" / "2")
    watched.until(lambda: watched.version == 1)
    shutil.rmtree(watched.root / "mnist" / "3")
    watched.until(lambda: not watched.ready.refused_versions)
    assert watched.client.post("/score", content=npy(IMAGES), headers=NPY).json()["threshold"] == bundles[0].card.threshold


def test_a_store_that_goes_away_takes_nothing_with_it(watched):
    """The version in service needs its files no more; without any version left it serves on."""
    shutil.rmtree(watched.root)
    time.sleep(0.4)
    assert watched.version == 1
    assert watched.client.post("/score", content=npy(IMAGES), headers=NPY).status_code == 200


def test_a_pin_holds(bundles, root):
    """A server that was told its version takes up no other."""
    known = versions(root, pinned=1)
    assert known.best().bundle.card.version == 1
    store.publish(bundles[1], root)
    assert known.best(serving=1) is None


def test_reloading_can_be_left_out(bundles, watched, tmp_path):
    """ODDIGIT_RELOAD=false serves what was there at the start, though another server takes the new version up."""
    options = ("--store", str(watched.root))
    with serving(tmp_path / "log2", *options, ODDIGIT_RELOAD="false", command=WATCHFUL, ODDIGIT_DRAIN_S="0") as server:
        store.publish(bundles[1], watched.root)
        watched.until(lambda: watched.version == 2)
        time.sleep(0.4)
        assert httpx.get(f"{server.url}/readyz", timeout=60).json()["model"]["version"] == 1


def test_a_bad_version_that_was_there_at_the_start_is_counted_too(bundles, root, tmp_path):
    """The server starts with the best good one, and says what it refused: in probe and metric."""
    add(bundles[1], root, corrupted)
    with (
        serving(tmp_path / "log", "--store", str(root), command=WATCHFUL, ODDIGIT_DRAIN_S="0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        watched = Watched(server, client, root)
        assert watched.version == 1
        assert [refused.version for refused in watched.ready.refused_versions] == [2]
        assert watched.reloads("refused") == 1


def test_twenty_reloads_under_load_fail_nobody_and_mix_nothing(bundles, watched):
    """Every answer is good, and its scores, threshold and version are those of one and the same detector."""
    expected = [Detector(bundle, "cpu").detect(IMAGES).scores for bundle in bundles]
    array, single = npy(IMAGES), png(IMAGES[0])
    done, seen = threading.Event(), set()

    def ask(kind):
        answers = []
        with httpx.Client(base_url=watched.server.url, timeout=60) as client:
            while not done.is_set():
                body, headers = (array, NPY) if kind else (single, PNG)
                response = client.post("/score?preprocess=none", content=body, headers=headers)
                answers.append((response.status_code, response.json()))
                if response.status_code == 200:
                    seen.add(response.json()["model"]["version"])
        return answers

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, index % 3 == 0) for index in range(6)]
        try:
            for version in range(2, 22):
                watched.until(lambda version=version: version - 1 in seen, patience=5)
                store.publish(bundles[(version - 1) % 4], watched.root)
            watched.until(lambda: 21 in seen, patience=5)
        finally:
            done.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {status for status, _ in answers} == {200}
    assert {answer["model"]["version"] for _, answer in answers} == set(range(1, 22))
    for _, answer in answers:
        which = (answer["model"]["version"] - 1) % 4
        assert answer["threshold"] == bundles[which].card.threshold
        scores = [result["score"] for result in answer["results"]]
        np.testing.assert_allclose(scores, expected[which][: len(scores)], rtol=1e-4)
        assert all(result["is_anomaly"] == (result["score"] > answer["threshold"]) for result in answer["results"])


def versions(root, pinned=None):
    """The versions of a store, where loading is as in production."""
    return Versions(root, "mnist", pinned, lambda folder: Detector(store.load(folder), "cpu"))


def test_the_best_is_the_highest_good_one(bundles, root):
    """Bad ones are passed over, once; what serves already is not loaded again."""
    for spoil in (None, corrupted):
        add(bundles[1], root, spoil)
    known = versions(root)
    assert known.best().bundle.card.version == 2
    assert [folder.name for folder in known.rejected] == ["3"]
    assert known.stored == [1, 2, 3]
    assert known.best(serving=2) is None
    assert known.best(serving=1).bundle.card.version == 2
    assert versions(root, pinned=1).best().bundle.card.version == 1


def test_a_store_without_a_good_version_gives_way_to_the_next_one(bundles, root, tmp_path):
    """A broken version of one's own does not keep the shipped detector from serving, until it is repaired."""
    own = tmp_path / "own"
    folder = store.publish(bundles[1], own)
    intact = (folder / WEIGHTS).read_bytes()
    corrupted(folder)
    (own / "mnist" / "2").mkdir()
    known = versions(Stores((own, root)))
    assert known.best().bundle.folder == root / "mnist" / "1"
    assert known.best(serving=1) is None
    assert list(known.rejected) == [own / "mnist" / "2", folder]
    (folder / WEIGHTS).write_bytes(intact)
    assert known.best(serving=1).bundle.folder == folder
    assert list(known.rejected) == [own / "mnist" / "2"]


def test_a_refused_version_is_tried_again_after_a_minute(bundles, root, caplog):
    """It may have been refused for want of memory. It is logged once; a change of its permissions has it tried at once."""
    folder, now, broken, tried, loaded = add(bundles[1], root), [0.0], [True], [], []

    def load(each):
        tried.append(each.name)
        detector = Detector(store.load(each), "cpu")
        if broken and each == folder:
            loaded.append(weakref.ref(detector))
            raise OSError(24, "Too many open files")
        return detector

    known = Versions(root, "mnist", None, load, clock=lambda: now[0])
    assert known.best().bundle.card.version == 1
    assert known.best(serving=1) is None
    now[0] += RETRY_S
    assert known.best(serving=1) is None
    assert (tried, caplog.text.count("is refused")) == (["2", "1", "2"], 1)
    gc.collect()
    assert [each() for each in loaded] == [None, None]  # what it had loaded is free again
    (folder / WEIGHTS).chmod(0o600)
    assert known.best(serving=1) is None
    assert tried == ["2", "1", "2", "2"]
    broken.clear()
    now[0] += RETRY_S
    assert known.best(serving=1).bundle.card.version == 2
    assert not known.rejected


def test_where_nothing_can_serve_the_reasons_are_told(bundles, root):
    """Without a good version, and without any: a sentence that says why or what to do."""
    corrupted(root / "mnist" / "1")
    with pytest.raises(StoreError, match=r"truncated or altered"):
        versions(root).best()
    with pytest.raises(StoreError, match="oddigit train"):
        versions(root.parent / "nowhere").best()
    with pytest.raises(StoreError, match="no version 9"):
        versions(root, pinned=9).best()


def fifo(folder):
    (folder / SCORER).unlink()
    os.mkfifo(folder / SCORER)


def fifo_for_a_card(folder):
    (folder / CARD).unlink()
    os.mkfifo(folder / CARD)


def device(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def without_end(folder):
    os.truncate(folder / SCORER, 2**40)


def of_700000_units(folder):
    signed_anew(folder, lambda card: card["architecture"].update(hidden=[700_000, 64, 12]))


def test_hostile_versions_do_not_stop_the_watcher(bundles, watched):
    """FIFOs, devices, terabytes and huge layers are refused one after the other, and a good version after them serves."""
    hostile = (fifo, fifo_for_a_card, device, without_end, of_700000_units)
    staging = watched.root.parent / "hostile"
    for spoil in (None, *hostile, None):
        folder = store.publish(bundles[1], staging)
        if spoil:
            spoil(folder)
    for version in map(str, range(2, 7)):
        (staging / "mnist" / version).rename(watched.root / "mnist" / version)
    watched.until(lambda: len(watched.ready.refused_versions) == len(hostile), patience=5)
    assert watched.version == 1
    (staging / "mnist" / "7").rename(watched.root / "mnist" / "7")
    watched.until(lambda: watched.version == 7)


def test_reasons_for_clients_name_no_path_of_the_server(bundles, root):
    """They begin at the store; the log has the whole path."""
    add(bundles[1], root, corrupted)
    known = versions(root)
    known.best()
    assert known.rejected[root / "mnist" / "2"].startswith(f"mnist/2/{WEIGHTS} ")


def test_a_version_that_hangs_while_it_is_loaded_is_passed_over(bundles, root):
    """After the timeout the next version serves, and the one that hangs is not tried again before its thread has ended."""
    add(bundles[1], root)
    tried, hanging, now = [], threading.Event(), [0.0]
    detectors = {folder.name: Detector(store.load(folder), "cpu") for folder in (root / "mnist").iterdir()}

    def load(folder):
        tried.append(folder.name)
        if folder.name == "2":
            hanging.wait(60)
        return detectors[folder.name]

    known = Versions(root, "mnist", None, load, load_timeout_s=1, clock=lambda: now[0])
    assert known.best().bundle.card.version == 1
    assert "within 1 s" in known.rejected[root / "mnist" / "2"]
    now[0] += RETRY_S
    assert known.best(serving=1) is None
    assert tried == ["2", "1"]
    hanging.set()
    known.load_timeout_s = 60
    assert wait_until(lambda: known.best(serving=1)).bundle.card.version == 2


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), RecursionError(), KeyboardInterrupt()], ids=repr)
def test_no_error_of_a_version_stops_the_search(bundles, root, error):
    """Whatever loading raises, the version is refused and the next one is tried."""
    add(bundles[1], root)

    def load(folder):
        if folder.name == "2":
            raise error
        return Detector(store.load(folder), "cpu")

    known = Versions(root, "mnist", None, load)
    assert known.best().bundle.card.version == 1
    assert [folder.name for folder in known.rejected] == ["2"]
