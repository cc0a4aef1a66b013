"""Uploads: a request in, uint8 images out, in any of the three forms of the contract: one image, a form, or an array."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from app.detection.detector import stack_features
from app.detection.imaging.decode import Preprocess, decode_array, decode_image, decodes_quickly
from app.detection.imaging.errors import ImageError
from app.detection.imaging.preprocess import PreprocessedImage, centre_images
from app.serving.api.query import NPY
from app.serving.api.responses import ImageInfo
from app.serving.engine.decoders import Decoders
from app.serving.errors import InvalidBody, Problem, UnsupportedType, from_image_error
from app.serving.http.body import Part, media_type, parse_form, read_body
from app.serving.settings import Settings

FORM = "multipart/form-data"
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"})
_UNDECLARED = ("", "application/octet-stream")  # content types of form parts whose client names no type
_INLINE_FORM_BYTES = 2048  # larger forms are parsed on a thread
_INLINE_ARRAY_IMAGES = 256  # larger arrays are centred on a thread
_INLINE_INFO = [ImageInfo("image")]  # of an unprepared image that is the whole body


class Upload(NamedTuple):
    """The images of a request: prepared images, or an array as it was sent; and the images that could not be decoded."""

    images: NDArray[np.uint8]  # [n, S, S]
    infos: Sequence[ImageInfo]  # of each image
    features: NDArray[np.float32] | None = None  # upload features [n, K]; None where no image was prepared
    is_array: bool = False
    failed: Mapping[int, tuple[str, Problem]] = MappingProxyType({})  # position in the request -> name and problem


class Body(NamedTuple):
    """The complete body of a request and its type."""

    kind: str  # media type, one of the supported ones
    content_type: str  # the whole header
    data: bytes


class Uploads:
    """Reads and decodes uploads under the limits of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._deadline_s = settings.deadline_ms / 1000
        self._decoders = Decoders(deadline_s=self._deadline_s)

    async def receive(self, request: Request, headers: Mapping[bytes, bytes]) -> Body:
        """The request's body. Raises UnsupportedType, TooLarge, RequestTimeout or InvalidBody."""
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        kind = content_type if content_type in IMAGE_TYPES else media_type(content_type)
        if kind not in IMAGE_TYPES and kind not in (FORM, NPY):
            raise UnsupportedType(f"{kind or 'No content type'} is not accepted; send an image, multipart/form-data or {NPY}.")
        limit = self._settings.max_array_bytes if kind == NPY else self._settings.max_body_bytes
        data = await read_body(request.receive, headers, limit=limit)
        if not data:
            raise InvalidBody("The body is empty.")
        return Body(kind, content_type, data)

    async def decode(self, body: Body, preprocess: Preprocess, size: int) -> Upload:
        """The images of a body, size x size. Raises a Problem when nothing in the body can be decoded."""
        if body.kind == FORM:
            return await self._decode_form(body, preprocess, size)
        try:
            if body.kind == NPY:
                array = decode_array(body.data, max_images=self._settings.max_array_images, size=size)
                return await _array_upload(array, centre=preprocess != "none")
            if decodes_quickly(body.data):  # quicker than a thread
                prepared = self._decode(body.data, preprocess, size)
            else:
                prepared = await self._decoders.run(len(body.data), self._decode, body.data, preprocess, size)
        except ImageError as error:
            raise from_image_error(error) from None
        if prepared.features is None and not prepared.preprocess:
            return Upload(prepared.image[None], _INLINE_INFO)
        return _prepared_upload([("image", prepared)], {})

    def close(self) -> None:
        self._decoders.close()

    async def _decode_form(self, body: Body, preprocess: Preprocess, size: int) -> Upload:
        deadline = time.monotonic() + self._deadline_s
        parse = partial(parse_form, body.data, body.content_type, max_parts=self._settings.max_images)
        is_small = len(body.data) <= _INLINE_FORM_BYTES
        parts = parse() if is_small else await self._decoders.run(len(body.data), parse)
        if is_small and len(parts) == 1 and decodes_quickly(parts[0].data):
            results = self._decode_parts(parts, preprocess, size, deadline)
        else:
            results = await self._decoders.run(len(body.data), self._decode_parts, parts, preprocess, size, deadline)
        prepared, failed = [], {}
        for index, (part, result) in enumerate(zip(parts, results, strict=True)):
            if isinstance(result, Problem):
                failed[index] = part.name, result
            else:
                prepared.append((part.name, result))
        if not prepared:
            raise combine_problems([problem for _, problem in failed.values()])
        return _prepared_upload(prepared, failed)

    def _decode_parts(
        self, parts: list[Part], preprocess: Preprocess, size: int, deadline: float
    ) -> list[PreprocessedImage | Problem]:
        results: list[PreprocessedImage | Problem] = []
        for part in parts:
            if time.monotonic() > deadline:
                raise TimeoutError
            results.append(self._decode_part(part, preprocess, size))
        return results

    def _decode_part(self, part: Part, preprocess: Preprocess, size: int) -> PreprocessedImage | Problem:
        if part.content_type not in IMAGE_TYPES and part.content_type not in _UNDECLARED:
            return UnsupportedType(f"{part.name}: {part.content_type} is not accepted; send an image.")
        try:
            return self._decode(part.data, preprocess, size)
        except ImageError as error:
            return from_image_error(error, part.name)

    def _decode(self, data: bytes, preprocess: Preprocess, size: int) -> PreprocessedImage:
        return decode_image(data, preprocess=preprocess, max_pixels=self._settings.max_pixels, size=size)


async def _array_upload(array: NDArray[np.uint8], *, centre: bool) -> Upload:
    """An upload of the images of an array [N, S, S]; images that lie off the middle are shifted if `centre`."""
    if not centre:
        return Upload(array, [ImageInfo(str(index)) for index in range(len(array))], is_array=True)
    inline = len(array) <= _INLINE_ARRAY_IMAGES
    images, moved = centre_images(array) if inline else await asyncio.to_thread(centre_images, array)
    infos = [ImageInfo(str(index), ("centred",) if shifted else ()) for index, shifted in enumerate(moved.tolist())]
    return Upload(images, infos, is_array=True)


def _prepared_upload(prepared: list[tuple[str, PreprocessedImage]], failed: dict[int, tuple[str, Problem]]) -> Upload:
    """An upload of named images."""
    return Upload(
        images=np.stack([image.image for _, image in prepared]),
        infos=[ImageInfo(name, image.preprocess, image.warnings) for name, image in prepared],
        features=stack_features([image.features for _, image in prepared]),
        failed=failed,
    )


def combine_problems(problems: list[Problem]) -> Problem:
    """One problem for a request in which nothing could be decoded: of the images' kind where all agree, else InvalidBody."""
    if len(problems) == 1:
        return problems[0]
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else InvalidBody
    return kind(f"None of the {len(problems)} images could be read. The first: {problems[0].detail}")
