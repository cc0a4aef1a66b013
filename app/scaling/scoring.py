"""Images in, rows with their scores out; and one part of a bulk job: slices in, a Parquet file with these rows out.

A part is written to a hidden file and renamed, and its metadata say what it holds: a job that was interrupted skips the parts
that are complete, and a part that is scored twice is there once. A part with a file that could not be read is not complete.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.detection.conformal import too_few_images
from app.detection.detector import Detector, stack_features, with_calibration
from app.detection.drafts import DRAFT_PREFIX, write_atomically
from app.detection.imaging.centring import centre_image
from app.detection.imaging.decode import Preprocess, looks_inverted
from app.detection.imaging.errors import ImageError
from app.detection.imaging.preprocess import PreprocessedImage
from app.detection.imaging.upload_warnings import LOOKS_INVERTED, decode_upload
from app.detection.store import CARD, load
from app.scaling.sources import Item, Slice, read

_BATCH = 256  # images in memory at a time, and in a forward pass
_DIGEST = b"oddigit"  # key of the metadata; absent where the part is not complete
UNREAD = "unread"  # key of a row, which is not written: reading failed, and may succeed in another run

Row = dict[str, Any]


class Job(NamedTuple):
    """What every part of a bulk job has in common."""

    version: str  # folder of the detector's version
    destination: str  # folder of the parts; empty where the rows are not written into one
    preprocess: Preprocess = "auto"
    alpha: float | None = None  # None: the model's own
    device: str = "auto"


class Done(NamedTuple):
    """A part that is complete."""

    part: int  # its number
    images: int
    errors: int = 0
    anomalies: int = 0
    skipped: bool = False  # it was complete before


class ImageScorer:
    """A detector that scores images, or parts of a bulk job. Each process has one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._detector = Detector(load(Path(job.version)), job.device)
        self._alpha = self._detector.bundle.card.alpha if job.alpha is None else job.alpha

    @property
    def image_size(self) -> int:
        """Side of the images that the detector reads, in pixels."""
        return self._detector.image_size

    def score_part(self, part: Sequence[Slice]) -> list[Row]:
        """A row for each image of the slices, in their order."""
        return list(self.score(read(part, self.image_size)))

    def score(self, items: Iterable[Item]) -> Iterator[Row]:
        """A row for each image, in their order; one that cannot be scored has its name and the error in place of a score."""
        prepared = ((item.name, self._prepare(item)) for item in items)  # one by one, because the files may be large
        while batch := list(islice(prepared, _BATCH)):
            images = [image for _, image in batch if isinstance(image, PreprocessedImage)]
            scored = self._detect(images) if images else iter(())
            for name, image in batch:
                yield {"name": name, **(next(scored) if isinstance(image, PreprocessedImage) else image)}

    def _detect(self, images: list[PreprocessedImage]) -> Iterator[Row]:
        pixels = np.stack([image.image for image in images])
        preparation = self._detector.bundle.card.preprocess
        detections = self._detector.detect(pixels, stack_features([image.features for image in images]))
        columns = (
            [too_few_images(self._alpha, size) for size in detections.calibration_sizes.tolist()],
            detections.scores.tolist(),
            detections.p_values.tolist(),
            detections.reconstruction_errors.tolist(),
            detections.embeddings.tolist(),
            detections.calibrated.tolist(),
        )
        for image, too_few, score, p_value, error, embedding, calibrated in zip(images, *columns, strict=True):
            if too_few:
                yield {"error": too_few}
                continue
            yield {
                "score": score,
                "p_value": p_value,
                "is_anomaly": p_value <= self._alpha,
                "reconstruction_error": error,
                "embedding": embedding,
                "preprocess": list(image.preprocess),
                "warnings": list(with_calibration(image.warnings, image.preprocess, preparation, calibrated)),
            }

    def _prepare(self, item: Item) -> PreprocessedImage | Row:
        """The image as the network reads it, or the error that says why there is none."""
        if item.content is None:
            return {"error": item.error, UNREAD: item.is_unread}
        try:
            if isinstance(item.content, bytes):
                return decode_upload(item.content, preprocess=self._job.preprocess, size=self.image_size)
        except ImageError as error:
            return {"error": str(error)}
        if self._job.preprocess == "none":
            return PreprocessedImage(item.content)
        image, moved = centre_image(item.content)
        warnings = (LOOKS_INVERTED,) if looks_inverted(item.content[None])[0] else ()
        return PreprocessedImage(image, ("centred",) if moved else (), warnings)


@cache
def _card_digest(version: str) -> str:
    """The digest of the card, which lists the digests of all files: two stores may hold different versions of one number."""
    return hashlib.sha256((Path(version) / CARD).read_bytes()).hexdigest()


def path_of(job: Job, index: int) -> Path:
    """The file of a part."""
    return Path(job.destination) / f"part-{index:08d}.parquet"


def write(job: Job, index: int, part: Sequence[Slice], rows: list[Row]) -> Done:
    """Write the rows of a part, and count them. Raises OSError with the name of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.list_(pa.string())
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("score", pa.float32()),
            ("p_value", pa.float64()),
            ("is_anomaly", pa.bool_()),
            ("reconstruction_error", pa.float32()),
            ("embedding", pa.list_(pa.float32())),
            ("preprocess", text),
            ("warnings", text),
            ("error", pa.string()),
        ],
        None if any(row.get(UNREAD) for row in rows) else {_DIGEST: _digest(job, part)},
    )
    target = path_of(job, index)
    safe = [{**row, "name": row["name"].encode(errors="backslashreplace").decode()} for row in rows]  # names need not be text
    try:
        write_atomically(target, lambda file: pq.write_table(pa.Table.from_pylist(safe, schema), file))
    except OSError as error:
        raise OSError(f"{target} cannot be written: {error.strerror or error}") from error
    return Done(index, len(rows), sum("error" in row for row in rows), sum(row.get("is_anomaly", False) for row in rows))


def complete(job: Job, index: int, part: Sequence[Slice]) -> Done | None:
    """What is known of a part that was written before, None where it was not completely, or for other images or options."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(OSError, pa.ArrowInvalid), pq.ParquetFile(path_of(job, index)) as file:
        if (file.metadata.metadata or {}).get(_DIGEST) == _digest(job, part):
            rows = file.read(["is_anomaly", "error"])
            anomalies = rows["is_anomaly"].to_pylist().count(True)
            return Done(index, len(rows), len(rows) - rows["error"].null_count, anomalies, skipped=True)
    return None


def remove_others(job: Job, parts: int) -> None:
    """Remove the parts of a larger job that was in this folder before, and what an interrupted one left."""
    for path in Path(job.destination).glob("part-*.parquet"):
        if path.stem[5:].isdigit() and int(path.stem[5:]) >= parts:
            path.unlink()
    for path in Path(job.destination).glob(f"{DRAFT_PREFIX}*"):
        path.unlink()


def _digest(job: Job, part: Sequence[Slice]) -> bytes:
    options = (_card_digest(job.version), job.preprocess, job.alpha)
    slices = repr([tuple(piece) for piece in part])
    return hashlib.sha256(repr((options, slices)).encode(errors="backslashreplace")).hexdigest().encode()
