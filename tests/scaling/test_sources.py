"""The images of each kind of source: each has a row, and a file is opened once for many images."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from strokes import npy, png, stroke_images

from app.cli.score_inputs import read_all
from app.scaling import sources
from app.scaling.sources import divide, read

IMAGES = stroke_images(40, seed=21)
FILES = [png(image) for image in IMAGES[:4]]
HEADER = 512  # bytes before the content of a member of a tar file


def read_source(path):
    """All images of a source, in one list."""
    return [item for part in divide([str(path)]) for item in read(part, 28)]


def tar(*members):
    """A tar file of these members: images, or entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for index, member in enumerate(members):
            entry = tarfile.TarInfo(f"{index}.png") if isinstance(member, bytes) else member
            content = member if isinstance(member, bytes) else b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def header_of(index):
    """The offset of the header of a member of the tar file of FILES."""
    return sum(HEADER + -len(file) // HEADER * -HEADER for file in FILES[:index])


def damaged(data):
    return data[: header_of(2)] + b"x" + data[header_of(2) + 1 :]


@pytest.mark.parametrize(
    ("change", "images"),
    [(damaged, 2), (lambda data: data[: header_of(2) + 100], 2), (lambda data: data[: header_of(2)], 2),
     (lambda data: data[: header_of(4)], 4), (lambda data: data + b"x" * 600, 4), (lambda data: data + damaged(data), 6)],
    ids=["header", "within a header", "before a header", "without an end", "more after the end", "second of two"],
)  # fmt: skip
def test_a_damaged_tar_file_is_a_row_with_an_error(tmp_path, change, images):
    """The images before the damage are read, and the error says that others follow which cannot be."""
    (tmp_path / "a.tar").write_bytes(change(tar(*FILES)))
    found = read_source(tmp_path / "a.tar")
    assert [item.content for item in found] == [*(FILES * 2)[:images], None]
    assert found[-1].name == str(tmp_path / "a.tar") and "damaged or truncated at byte" in found[-1].error


def test_tar_files_that_are_joined_are_read_to_their_end(tmp_path):
    """As `cat a.tar b.tar` joins them; zeros may follow."""
    (tmp_path / "a.tar").write_bytes(tar(*FILES) + tar() + tar(*FILES[:2]) + bytes(700))
    assert [item.content for item in read_source(tmp_path / "a.tar")] == [*FILES, *FILES[:2]]


def test_links_in_a_tar_file_are_rows_with_errors(tmp_path):
    """Hard links are what tar makes of a second name of a file. Folders are no images, whatever their names."""
    entries = []
    for name, kind in (("hard.png", tarfile.LNKTYPE), ("symbolic.png", tarfile.SYMTYPE), ("folder.png", tarfile.DIRTYPE)):
        entries.append(tarfile.TarInfo(name))
        entries[-1].type, entries[-1].linkname = kind, "0.png"
    (tmp_path / "a.tar").write_bytes(tar(FILES[0], *entries))
    image, *links = read_source(tmp_path / "a.tar")
    assert image.content == FILES[0]
    assert [(item.name, item.content) for item in links] == [
        (f"{tmp_path}/a.tar/{name}.png", None) for name in ("hard", "symbolic")
    ]
    assert "--hard-dereference" in links[0].error


def test_a_file_is_opened_once_for_its_images(tmp_path, monkeypatch):
    """At an address, each time is a request. After an error it is opened again."""
    opened = []
    open_file = sources.open_file

    def count(path):
        opened.append(path)
        return open_file(path)

    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(tar(*FILES))
    (part,) = divide([str(tmp_path / "*.tar")])
    monkeypatch.setattr(sources, "open_file", count)
    assert [item.content for item in read(part, 28)] == FILES * 2
    assert opened == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    broken = part[1]._replace(start=-1)
    assert [item.content for item in read([part[0], broken, part[1]], 28)] == [FILES[0], None, FILES[1]]
    assert opened[2:] == [f"{tmp_path}/a.tar"] * 2


def test_a_parquet_file_of_one_row_group_is_divided(tmp_path, monkeypatch):
    """It would be one part, which one process scores and holds in memory."""
    table = pa.table({"image": [bytes([index]) for index in range(40)]})
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(sources, "PART_IMAGES", 15)
    monkeypatch.setattr(sources, "_ROWS_AT_A_TIME", 7)
    parts = list(divide([str(tmp_path / "a.parquet")]))
    assert [sum(piece.images for piece in part) for part in parts] == [15, 15, 10]
    found = [item for part in parts for item in read(part, 28)]
    assert [(item.name, item.content) for item in found] == [
        (f"{tmp_path}/a.parquet[0:{index}]", bytes([index])) for index in range(40)
    ]


def test_a_large_row_group_is_not_read_into_memory_whole(tmp_path, monkeypatch):
    """Its first rows are read in pieces of a megabyte, up to the last of them."""
    pixels = np.random.default_rng(0).bytes(8_000_000)
    table = pa.table({"image": [pixels[start : start + 2000] for start in range(0, len(pixels), 2000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    sizes = []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            sizes.append(len(data := super().read(size)))
            return data

    first = next(iter(divide([str(tmp_path / "a.parquet")])))
    monkeypatch.setattr(sources, "open_file", lambda path: Counted((tmp_path / "a.parquet").read_bytes()))
    assert sum(1 for _ in read(first, 28)) == 2000
    assert max(sizes) < 3_000_000 and sum(sizes) < 6_000_000


def test_an_array_that_is_named_twice_is_read_twice(tmp_path):
    """The file stays open between the two."""
    (tmp_path / "a.npy").write_bytes(npy(stroke_images(3, seed=0)))
    parts = divide([str(tmp_path / "a.npy")] * 2)
    assert [item.error for part in parts for item in read(part, 28)] == [""] * 6


@pytest.mark.parametrize("other", [7, "text"])
def test_a_column_of_other_structs_with_bytes_is_no_column_of_images(tmp_path, other):
    """A size or a description may be called `bytes` too."""
    table = pa.table({"about": [{"bytes": other}], "image": [{"bytes": FILES[0], "path": None}]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [item.content for item in read_source(tmp_path / "a.parquet")] == [FILES[0]]


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 14, 56), np.uint8), np.zeros((5, 32, 32), np.uint8), np.zeros((0, 28, 28), np.uint8), np.zeros(784, np.uint8),
     np.zeros((5, 28, 28))],
    ids=["other sides", "too large", "no image", "one axis", "float"],
)  # fmt: skip
def test_an_array_that_is_refused_is_one_row_with_the_error_of_the_plain_command(tmp_path, monkeypatch, array):
    """Whatever the number of its images."""
    monkeypatch.setattr(sources, "PART_IMAGES", 2)
    np.save(tmp_path / "a.npy", array)
    assert read_source(tmp_path / "a.npy") == list(read_all([str(tmp_path / "a.npy")], 28, False))


def test_an_array_in_fortran_order_is_refused_once(tmp_path, monkeypatch):
    """With what to do; its images do not follow each other in the file."""
    monkeypatch.setattr(sources, "PART_IMAGES", 15)
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGES))
    (item,) = read_source(tmp_path / "a.npy")
    assert item.content is None and "np.ascontiguousarray" in item.error


def test_links_to_folders_are_followed_once(tmp_path):
    """By both commands; a link to a folder above would never end."""
    for name in ("in/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.npy").write_bytes(npy(IMAGES[:1]))
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path / "in")
    names = [f"{tmp_path}/in/a/0.npy[0]", f"{tmp_path}/in/b/0.npy[0]"]
    assert [item.name for item in read_source(tmp_path / "in")] == names
    assert [item.name for item in read_all([str(tmp_path / "in")], 28, False)] == names
