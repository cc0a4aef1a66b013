"""The user's own store and the shipped one."""

import errno
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from live import ROOT, environment

from app.detection import store
from app.detection.store import StoreError
from app.detection.store_path import SHIPPED_STORE, NoOwnStore, Stores, read_stores
from app.serving.engine.reload import Versions
from app.serving.settings import read_settings


def named(bundle, name):
    return replace(bundle, card=bundle.card.model_copy(update={"name": name}))


@pytest.fixture
def stores(tiny_bundle, tmp_path):
    """A user's store with mine/1 and mnist/1, before another with mnist/1 to 3 and other/1."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    for name in ("mine", "mnist"):
        store.publish(named(tiny_bundle, name), own)
    for name in ("mnist", "mnist", "mnist", "other"):
        store.publish(named(tiny_bundle, name), shipped)
    return Stores((own, shipped))


def test_an_own_detector_hides_the_shipped_one_of_its_name(stores):
    """So that what a `git pull` brings never replaces a user's version; a version by its number is found in both."""
    own, shipped = stores.roots
    assert store.names(stores) == ["mine", "mnist", "other"]
    assert store.find(stores, "mnist") == own / "mnist" / "1"
    assert store.find(stores, "mnist", 3) == shipped / "mnist" / "3"
    assert store.find(stores, "other") == shipped / "other" / "1"
    assert len(store.folders(stores, "mnist")) == 4


def test_what_is_not_there_is_told_with_what_is(stores, tmp_path):
    """Names and versions of both stores, and how to add the shipped one."""
    with pytest.raises(store.StoreError, match="there is mine, mnist, other"):
        store.find(stores, "none")
    with pytest.raises(store.StoreError, match=r"no version 9 of 'mnist' .*; there is 1, 1, 2, 3"):
        store.find(stores, "mnist", 9)
    with pytest.raises(store.StoreError, match="add `:shipped` to ODDIGIT_STORE"):
        store.find(tmp_path / "empty", "mnist")


def test_a_server_takes_up_an_own_version_of_a_shipped_detector(stores, tiny_bundle):
    """Even if both stores give it the same number; without it, the shipped one serves again."""
    own, shipped = stores.roots
    versions = Versions(stores, "other", None, load=lambda folder: folder)
    assert versions.best() == shipped / "other" / "1"
    assert versions.best(serving=1) is None
    store.publish(named(tiny_bundle, "other"), own)
    assert versions.best(serving=1) == own / "other" / "1"
    assert versions.best(serving=1) is None
    shutil.rmtree(own / "other")
    assert versions.best(serving=1) == shipped / "other" / "1"


@pytest.mark.parametrize(
    ("text", "variables", "roots"),
    [
        ("", {"HOME": "/home/ada"}, (Path("/home/ada/.local/share/oddigit"), SHIPPED_STORE)),
        ("", {"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}, (Path("/data/oddigit"), SHIPPED_STORE)),
        ("", {}, (SHIPPED_STORE,)),
        ("/srv/store", {}, (Path("/srv/store"),)),
        (":", {}, (SHIPPED_STORE,)),
        ("/srv/store:shipped", {}, (Path("/srv/store"), SHIPPED_STORE)),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the folders of other platforms differ")
def test_the_stores_follow_from_the_environment(text, variables, roots):
    """The data folder of XDG and the shipped store, or those that are listed."""
    assert read_stores(text, variables).roots == roots
    given = variables | ({"ODDIGIT_STORE": text} if text else {})
    assert read_settings(given).store == Stores(roots)


def test_without_a_home_the_shipped_store_is_only_read():
    """As for the random user of a container: nothing is written into the program's own folder, unless that was named."""
    stores = read_stores("", {})
    assert store.find(stores, "mnist").parents[1] == SHIPPED_STORE
    with pytest.raises(NoOwnStore, match=r"HOME .* --store or ODDIGIT_STORE"):
        _ = stores.own
    assert read_stores("shipped", {}).own == SHIPPED_STORE


def test_an_installed_wheel_finds_the_shipped_detector(tmp_path):
    """The detectors are in the wheel, so that commands work without a clone."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    done = subprocess.run([*build, clone], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    command = [sys.executable, "-m", "app", "score", clone / "tests/samples/seven.png", "--format", "jsonl"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(PYTHONPATH=str(target), HOME=str(tmp_path)), capture_output=True, text=True
    )
    assert done.returncode == 0 and '"is_anomaly": false' in done.stdout, done.stderr


@pytest.mark.parametrize("closed", ["own", "own/mnist"])
def test_a_store_that_cannot_be_read_is_not_replaced_in_silence(tiny_bundle, tmp_path, monkeypatch, closed):
    """Another detector of the same name has other thresholds. A folder that need not be there may be closed."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    for root in (own, shipped):
        store.publish(tiny_bundle, root)
    (own / "lost+found").mkdir()
    iterdir, stat = Path.iterdir, Path.stat

    def refuse(folder, action, closed):
        if any(folder.is_relative_to(each) for each in closed):
            raise PermissionError(errno.EACCES, "Permission denied")
        return action(folder)

    listed = [tmp_path / closed, own / "lost+found"]
    monkeypatch.setattr(Path, "iterdir", lambda folder: refuse(folder, iterdir, listed))
    below = tmp_path / closed / "mnist"  # of a folder that cannot be searched, nothing is known
    monkeypatch.setattr(Path, "stat", lambda folder, **_: refuse(folder, stat, [below]))
    both = Stores((own, shipped))
    for look in (store.find, store.by_preference):
        with pytest.raises(StoreError, match=f"{closed} cannot be read: Permission denied"):
            look(both, "mnist")
    if closed == "own":
        with pytest.raises(StoreError, match="own cannot be read"):
            store.names(both)
    else:  # a detector that cannot be read is listed, and the others are
        store.publish(named(tiny_bundle, "other"), shipped)
        assert store.names(both) == ["mnist", "other"]
    monkeypatch.setattr(Path, "stat", lambda folder, **_: refuse(folder, stat, [tmp_path]))
    assert store.folders(own, "mnist") == []
