"""Versions between stores: by a folder and by an address of fsspec; nothing that is altered comes in."""

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import pytest
from tampering import memory_below, understated_zip

from app.detection import store
from app.detection.archive import ArchiveError, pack, unpack
from app.detection.store import CARD, StoreError


@pytest.fixture(params=["folder", "file://", "memory://"])
def address(request, tmp_path):
    """A folder, and two addresses of fsspec."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    return f"{request.param}{tmp_path}/shared"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_version_is_pushed_and_pulled_into_an_empty_store(oddigit, tiny_store, tmp_path, address):
    """It is the same file by file; the highest is pulled where none is named; pulling it again changes nothing."""
    pushed = oddigit("push", address, "--store", tiny_store)
    assert pushed.exit_code == 0, pushed.stderr
    for _ in range(2):
        pulled = oddigit("pull", address, "--store", tmp_path / "new")
        assert pulled.exit_code == 0, pulled.stderr
    assert contents(tmp_path / "new") == contents(tiny_store)
    assert store.names(tmp_path / "new") == ["mnist"]
    digest = pushed.stdout.split()[-1]
    assert oddigit("pull", address, "--store", tmp_path / "other", "--version", 1, "--sha256", digest).exit_code == 0
    assert oddigit("pull", address, "--store", tmp_path / "third", "--sha256", "0" * 64).exit_code == 2
    assert not (tmp_path / "third").exists()


def test_a_full_disk_leaves_no_part_of_an_archive(oddigit_on_full_disk, tiny_store, tmp_path):
    """And the message names the file."""
    done = oddigit_on_full_disk("push", tmp_path, "--store", tiny_store)
    assert done.returncode == 2 and "mnist-1.zip cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_pushed_twice_at_once_is_whole(oddigit, tiny_store, tmp_path, monkeypatch):
    """A second push that runs between the first one's writing and renaming takes no draft away from it."""
    replace = Path.replace

    def replace_later(draft, target):
        monkeypatch.setattr(Path, "replace", replace)
        pushed.append(oddigit("push", tmp_path / "shared", "--store", tiny_store))
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    pushed = []
    pushed.append(oddigit("push", tmp_path / "shared", "--store", tiny_store))
    assert [each.exit_code for each in pushed] == [0, 0], pushed[-1].stderr
    assert sorted(contents(tmp_path / "shared")) == ["mnist-1.zip", "mnist-1.zip.sha256"]
    assert oddigit("pull", tmp_path / "shared", "--store", tmp_path / "new").exit_code == 0


def test_a_pushed_file_can_be_read_by_others(oddigit, tiny_store, tmp_path):
    """As far as the umask says."""
    umask = os.umask(0o022)
    try:
        assert oddigit("push", tmp_path, "--store", tiny_store).exit_code == 0
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_what_is_not_there_is_a_sentence(oddigit, tiny_store, tmp_path, address):
    """A missing version, an empty address, a detector that the store has not."""
    assert "no version" in oddigit("pull", f"{address}/empty", "--store", tmp_path / "new").stderr
    oddigit("push", address, "--store", tiny_store)
    assert "there is 1" in oddigit("pull", address, "--version", 2, "--store", tmp_path / "new").stderr
    assert oddigit("push", address, "--store", tmp_path / "nowhere").exit_code == 2


def test_a_checksum_that_is_none_and_an_empty_address_are_refused(oddigit, tiny_store, tmp_path):
    """The archive is not to blame for a checksum that was cut, and no address is not the root of the file system."""
    oddigit("push", tmp_path / "shared", "--store", tiny_store)
    for digest, words in (("abc", "64 hexadecimal digits"), ("0" * 64, "not the archive of --sha256")):
        refused = oddigit("pull", tmp_path / "shared", "--store", tmp_path / "new", "--sha256", digest)
        assert (refused.exit_code, words in refused.stderr) == (2, True), refused.stderr
    for command in ("push", "pull"):
        refused = oddigit(command, "", "--store", tiny_store)
        assert (refused.exit_code, refused.stderr.strip()) == (2, "The address is empty.")


def test_an_altered_archive_is_refused(oddigit, tiny_store, tmp_path):
    """Whether its checksum was altered with it or not."""
    oddigit("push", tmp_path / "shared", "--store", tiny_store)
    archive = tmp_path / "shared" / "mnist-1.zip"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    refused = oddigit("pull", tmp_path / "shared", "--store", tmp_path / "new")
    assert (refused.exit_code, "checksum differs" in refused.stderr) == (2, True)
    archive.write_bytes(altered(tiny_store, {"scorer.npz": b"x"}))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name("mnist-1.zip.sha256").write_text(f"{digest}  mnist-1.zip\n")
    refused = oddigit("pull", tmp_path / "shared", "--store", tmp_path / "new")
    assert (refused.exit_code, "checksum differs" in refused.stderr) == (2, True)
    assert contents(tmp_path / "new") == {}


def altered(root, changes):
    """The archive of version 1 with other or more files."""
    files = contents(root / "mnist" / "1") | changes
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "report/../../evil", "..", "c:evil", "a\\evil", ".hidden", "a/b/c"]
)
def test_nothing_is_written_outside_of_the_version(tiny_store, tmp_path, name):
    """Names that lead elsewhere refuse the archive."""
    before = set(tmp_path.parent.rglob("*evil*"))
    with pytest.raises(ArchiveError):
        unpack(altered(tiny_store, {name: b"x"}), tmp_path / "new")
    assert set(tmp_path.parent.rglob("*evil*")) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"more.bin": b"x"}, ArchiveError),
        ({CARD: b"{}"}, ArchiveError),
        ({CARD: b'{"name": "../x", "version": 1}'}, ArchiveError),
        ({CARD: b'{"name": "mnist", "version": 1}'}, StoreError),
        ({"autoencoder.pth": b""}, StoreError),
        ({"big": bytes(2**23)}, ArchiveError),
    ],
    ids=["more", "card-empty", "card-path", "card-wrong", "empty-weights", "big"],
)
def test_other_files_than_those_of_the_card_are_refused(tiny_store, tmp_path, changes, error):
    """And the store stays as it was."""
    with pytest.raises(error):
        unpack(altered(tiny_store, changes), tmp_path, max_bytes=2**23)
    assert list(tmp_path.iterdir()) == []


def test_a_file_unpacks_to_no_more_than_the_size_that_it_states(tmp_path):
    data = understated_zip(CARD)
    with memory_below(2**20), pytest.raises(ArchiveError, match="damaged"):
        unpack(data, tmp_path)


def test_names_that_are_folders_of_others_and_other_compressions_are_refused(tiny_store, tmp_path):
    """Nothing is written for them."""
    with pytest.raises(ArchiveError, match="names"):
        unpack(altered(tiny_store, {"report": b"x", "report/y": b"x"}), tmp_path)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(CARD, b"{}")
    with pytest.raises(ArchiveError, match="Deflate"):
        unpack(out.getvalue(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 1000])
def test_what_is_no_archive_is_refused(tmp_path, data):
    """Empty, cut off, something else."""
    with pytest.raises(ArchiveError):
        unpack(data, tmp_path)


def test_another_version_of_the_same_number_stays(tiny_store, tiny_bundle, tmp_path):
    """It is not replaced."""
    import dataclasses

    other = dataclasses.replace(tiny_bundle, card=tiny_bundle.card.model_copy(update={"created": "2026-02-02T00:00:00+00:00"}))
    store.publish(other, tmp_path)
    kept = contents(tmp_path)
    with pytest.raises(StoreError, match="same number"):
        unpack(pack(tiny_store / "mnist" / "1"), tmp_path)
    assert contents(tmp_path) == kept


def test_a_damaged_version_in_the_store_is_not_called_pulled(tiny_store, tmp_path):
    """Nothing is repaired in place."""
    archive = pack(tiny_store / "mnist" / "1")
    folder = unpack(archive, tmp_path)
    (folder / "scorer.npz").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=f"{folder} is there already, and damaged; remove it"):
        unpack(archive, tmp_path)
    assert (folder / "scorer.npz").read_bytes() == b"damaged"


def test_fsspec_is_needed_for_addresses_alone(oddigit, tiny_store, tmp_path, monkeypatch):
    """Without it a folder works, and an address is answered with the command that installs it."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert oddigit("push", tmp_path / "shared", "--store", tiny_store).exit_code == 0
    refused = oddigit("push", "s3://bucket/detectors", "--store", tiny_store)
    assert refused.exit_code == 2
    assert 'pip install "oddigit[remote]"' in refused.stderr


def test_an_unknown_address_is_a_sentence(oddigit, tiny_store):
    """A protocol that nobody knows."""
    refused = oddigit("push", "nowhere://x", "--store", tiny_store)
    assert refused.exit_code == 2
    assert "nowhere" in refused.stderr
