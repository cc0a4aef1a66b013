"""Uploads: a request in, uint8 images out, in any of the three forms of the contract: one image, a form, or an array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from app.detection.detector import stack_features
from app.detection.imaging.arrays import read_array
from app.detection.imaging.centring import centre_images
from app.detection.imaging.decode import Preprocess, decodes_quickly, looks_inverted, plain_scanlines
from app.detection.imaging.errors import ImageError
from app.detection.imaging.preprocess import PreprocessedImage
from app.detection.imaging.upload_warnings import LOOKS_INVERTED, decode_upload, in_words
from app.serving.api.query import NPY
from app.serving.api.responses import ImageInfo
from app.serving.api.upload_errors import array_problem, form_problem, image_problem, unsupported_type
from app.serving.engine.decoders import DecodeOptions, Decoders, Result
from app.serving.engine.thread_stage import Deadline, Stages
from app.serving.errors import InvalidBody, NotAnImage, Problem, UnsupportedType
from app.serving.http.body import read_body
from app.serving.http.forms import Part, media_type, parse_form
from app.serving.settings import Settings

FORM = "multipart/form-data"
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"})
OCTETS = "application/octet-stream"  # the content tells the type
INLINE_ARRAY_IMAGES = 256  # larger arrays are centred on a thread
_OTHER_NAMES = frozenset({OCTETS, "image/jpg", "image/pjpeg", "image/x-png", "image/x-bmp", "image/x-ms-bmp", "image/tif"})
_ACCEPTED_TYPES = IMAGE_TYPES | _OTHER_NAMES  # all by their content
_NPY_SIGNATURE = b"\x93NUMPY"
_INLINE_FORM_BYTES = 2048  # larger forms are parsed on a thread
_CHUNK_IMAGES = 1024  # that are centred between two looks at the deadline
_ARRAY_IMAGE_S, _FORM_BYTE_S = 5e-6, 2e-9  # cost of centring an image, of parsing a byte of a form
_INLINE_LENGTH_DIGITS = 4  # a Content-Length of more digits announces an image for the decoder processes
_INLINE_INFO = [ImageInfo("image")]  # of an unprepared image that is the whole body
_PLAIN_OPTIONS = DecodeOptions("auto", 28)  # with which plain PNGs are decoded together
_NO_IMAGES = np.empty((0, 28, 28), np.uint8)


class Upload(NamedTuple):
    """The images of a request, prepared or as they were sent in an array, and those that could not be decoded.

    Or one plain PNG (see `plain_scanlines`), which is decoded later, with the others of its batch.
    """

    images: NDArray[np.uint8]  # [n, S, S]; n is 0 for a plain PNG
    infos: Sequence[ImageInfo]  # of each image
    features: NDArray[np.float32] | None = None  # upload features [n, K]; None where no image was prepared
    is_array: bool = False
    failed: Mapping[int, tuple[str, Problem]] = MappingProxyType({})  # position in the request -> name and problem
    scanlines: bytes | None = None  # of a plain PNG

    def decoded(self, image: PreprocessedImage | None) -> "Upload":
        """The upload with the image that its plain PNG was decoded to; the same upload if `image` is None."""
        if image is None:
            return self
        changed = image.preprocess or image.warnings
        warnings = tuple(map(in_words, image.warnings))
        infos = [ImageInfo(self.infos[0].name, image.preprocess, warnings)] if changed else self.infos
        return Upload(image.image[None], infos)


@dataclass(slots=True)
class Body:
    """The complete body of a request and its type."""

    kind: str  # media type, one of the supported ones
    content_type: str  # the whole header
    data: bytes


class Uploads:
    """Reads and decodes uploads under the limits of the settings."""

    def __init__(self, settings: Settings, decoders: Decoders, stages: Stages) -> None:
        self._settings = settings
        self._decoders = decoders
        self._stages = stages

    async def receive(self, request: Request, headers: Mapping[bytes, bytes]) -> Body:
        """The request's body. Raises Overloaded, UnsupportedType, TooLarge, RequestTimeout or InvalidBody."""
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        kind = content_type if content_type in IMAGE_TYPES else media_type(content_type)
        if kind not in _ACCEPTED_TYPES and kind not in (FORM, NPY):
            raise unsupported_type(kind)
        limit = self._settings.array_limit if kind == NPY else self._settings.body_limit
        if len(headers.get(b"content-length", b"")) > _INLINE_LENGTH_DIGITS:
            check = self._stages.arrays.check if kind == NPY else self._decoders.check
            check()  # before the body is received: a refused body is only discarded
        data = await read_body(request.receive, headers, limit=limit)
        if not data:
            raise NotAnImage("The body is empty; send an image, as `curl -F file=@seven.png` does.")
        if kind == OCTETS and data[: len(_NPY_SIGNATURE)] == _NPY_SIGNATURE:
            kind = NPY
        if kind not in (NPY, FORM):
            data = bytes(data)
        return Body(kind, content_type, cast(bytes, data))  # the buffers of arrays and forms are read as bytes are

    async def decode_array(self, body: Body, preprocess: Preprocess, size: int, *, deadline: float) -> Upload:
        """The images of an array, size x size. Raises InvalidBody, TooLarge, Overloaded or TimeoutError."""
        try:
            array = read_array(body.data, max_images=self._settings.max_array_images, size=size)
        except ImageError as error:
            raise array_problem(error, body.data) from None
        centre = preprocess != "none"
        if len(array) <= INLINE_ARRAY_IMAGES:
            return _array_upload(None, array, centre=centre)
        cost = len(array) * _ARRAY_IMAGE_S
        return await self._stages.arrays.run(cost, deadline, _array_upload, array, centre=centre)

    async def decode(self, body: Body, preprocess: Preprocess, size: int, *, deadline: float) -> Upload:
        """The images of a file or form, size x size.

        Raises:
            Problem: nothing in the body can be decoded.
            Overloaded, TimeoutError: see `Decoders.decode`.
        """
        options = DecodeOptions(preprocess, size)
        if body.kind == FORM:
            return await self._decode_form(body, options, deadline)
        if (scanlines := _plain_scanlines(body.data, options)) is not None:
            return Upload(_NO_IMAGES, _INLINE_INFO, scanlines=scanlines)
        (result,) = await self.decode_files([body.data], options, deadline)
        if isinstance(result, ImageError):
            raise image_problem(result, body.data)
        return _prepared_upload([("image", result)], {})

    async def _decode_form(self, body: Body, options: DecodeOptions, deadline: float) -> Upload:
        if len(body.data) <= _INLINE_FORM_BYTES:
            parts = _parse_form(None, body, self._settings.max_images)
        else:
            cost = len(body.data) * _FORM_BYTE_S
            parts = await self._stages.pictures.run(cost, deadline, _parse_form, body, self._settings.max_images)
        body.data = b""  # the parts are copies
        failed: dict[int, tuple[str, Problem]] = {
            index: (part.name, problem) for index, part in enumerate(parts) if (problem := _wrong_type(part))
        }
        if len(parts) == 1 and not failed and (scanlines := _plain_scanlines(parts[0].data, options)) is not None:
            return Upload(_NO_IMAGES, [ImageInfo(parts[0].name)], scanlines=scanlines)
        accepted = [(index, part) for index, part in enumerate(parts) if index not in failed]
        results = await self.decode_files([part.data for _, part in accepted], options, deadline)
        prepared = []
        for (index, part), result in zip(accepted, results, strict=True):
            if isinstance(result, ImageError):
                failed[index] = part.name, image_problem(result, part.data, part.name)
            else:
                prepared.append((part.name, result))
        if not prepared:
            raise combine_problems([problem for _, problem in failed.values()], len(parts))
        return _prepared_upload(prepared, failed)

    async def decode_files(self, files: list[bytes], options: DecodeOptions, deadline: float) -> list[Result]:
        """Decode the files of one request: here if it is one that decodes quickly, else in the decoder processes."""
        if len(files) == 1 and decodes_quickly(files[0], *options):  # 0.3 ms less than a process takes
            return [self._decode_here(files[0], options)]
        return await self._decoders.decode(files, options, deadline=deadline)

    def _decode_here(self, data: bytes, options: DecodeOptions) -> Result:
        try:
            return decode_upload(data, preprocess=options.preprocess, max_pixels=self._settings.max_pixels, size=options.size)
        except ImageError as error:
            return error


def _plain_scanlines(data: bytes, options: DecodeOptions) -> bytes | None:
    return plain_scanlines(data) if options == _PLAIN_OPTIONS else None


def _wrong_type(part: Part) -> UnsupportedType | None:
    if part.content_type in _ACCEPTED_TYPES or not part.content_type:
        return None
    return unsupported_type(part.content_type, part.name)


def _parse_form(deadline: Deadline | None, body: Body, max_parts: int) -> list[Part]:
    try:
        pause = deadline.check if deadline is not None else None
        return parse_form(body.data, body.content_type, max_parts=max_parts, pause=pause)
    except InvalidBody as error:
        raise form_problem(error, body.data) from None


def _array_upload(deadline: Deadline | None, array: NDArray[np.uint8], *, centre: bool) -> Upload:
    """An upload of the images of an array [N, S, S]; images that lie off the middle are shifted if `centre`."""
    if not centre:
        unchanged = np.zeros(len(array), np.bool_)
        return Upload(array, _ArrayInfos(unchanged, unchanged), is_array=True)
    result, moved, inverted = array, [], looks_inverted(array)
    for start in range(0, len(array), _CHUNK_IMAGES):
        if deadline is not None:
            deadline.check()
        chunk = slice(start, start + _CHUNK_IMAGES)
        images, shifted = centre_images(array[chunk])
        moved.append(shifted)
        if shifted.any():
            if not result.flags.writeable:  # a body of several messages is: its images are replaced where they are
                result = array.copy()
            result[chunk] = images
    return Upload(result, _ArrayInfos(np.concatenate(moved), inverted), is_array=True)


class _ArrayInfos(Sequence[ImageInfo]):
    """The infos of the images of an array, made when they are needed: a list of 100,000 takes 13 MB."""

    def __init__(self, moved: NDArray[np.bool_], inverted: NDArray[np.bool_]) -> None:
        """Of N images, some were `moved` [N] to the middle or look `inverted` [N]."""
        self._moved, self._inverted = moved.tolist(), inverted.tolist()

    def __len__(self) -> int:
        return len(self._moved)

    def __getitem__(self, index: int) -> ImageInfo:  # type: ignore[override]  # no slices
        steps = ("centred",) if self._moved[index] else ()
        return ImageInfo(str(index), steps, (LOOKS_INVERTED,) if self._inverted[index] else ())


def _prepared_upload(prepared: list[tuple[str, PreprocessedImage]], failed: dict[int, tuple[str, Problem]]) -> Upload:
    """An upload of named images."""
    return Upload(
        images=np.stack([image.image for _, image in prepared]),
        infos=[ImageInfo(name, image.preprocess, image.warnings) for name, image in prepared],
        features=stack_features([image.features for _, image in prepared]),
        failed=failed,
    )


def combine_problems(problems: list[Problem], images: int) -> Problem:
    """One problem for the failed ones of `images` images: of the type of `problems` if they have one type, else InvalidBody."""
    if len(problems) == 1:
        return problems[0]
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else InvalidBody
    failed = f"{len(problems)} of the {images} images could not be read"
    if len(problems) == images:
        failed = f"None of the {images} images could be read"
    return kind(f"{failed}. The first: {problems[0].detail}")
