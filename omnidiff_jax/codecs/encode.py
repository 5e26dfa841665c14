"""Raw records to token ids: `Record` -> `EncodedExample`, through the tokenizers, in batches.

Nothing here is random. Tail pads are not added (packing adds them, anew every epoch), and nothing is masked.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from omnidiff_jax.codecs.heard import FEATURES, Heard
from omnidiff_jax.codecs.judgment import check_audios, check_tags, check_trainable
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import read_image
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, EncodedExample, Medium, Record, RejectedRecord, Waveform
from omnidiff_jax.tasks.chat import ChatLayout, media_roles
from omnidiff_jax.tokenizers.image import fit

_LONGEST_STRIP = 8
# Bytes of media in memory: of records that are encoded together, and of one that is accepted at all.
_TOGETHER = 64 * 2**20
_MOST_BYTES = 2**30


def encode(
    records: Iterable[Record | RejectedRecord], codecs: Codecs, chunk: int = 128, heard: Heard = FEATURES
) -> Iterator[EncodedExample | RejectedRecord]:
    """Training samples, in the order of `records`, in memory that does not grow with their number or size.

    Args:
        records: raw samples; media may be paths. One that was rejected already stays so.
        codecs: the tokenizers.
        chunk: most records whose media are encoded together.
        heard: how heard speech is kept.

    Yields:
        for each record an example, whose frames are float16, or why it cannot be used.
    """
    group: list[Record | RejectedRecord] = []
    size = 0
    for record in records:
        group.append(record if isinstance(record, RejectedRecord) else _prepared(record, codecs, heard))
        size += _bytes(group[-1])
        if len(group) == chunk or size >= _TOGETHER:
            yield from _encode(group, codecs, generate=False, heard=heard)
            group, size = [], 0
    yield from _encode(group, codecs, generate=False, heard=heard)


def _prepared(record: Record, codecs: Codecs, heard: Heard) -> Record | RejectedRecord:
    """The record with its media in memory, as they are encoded, if it can train anything."""
    try:
        whole = load_media(record, codecs)
        check_trainable(whole)
        return heard.before(whole)
    except RejectedRecord as error:
        return error


def encode_prompts(records: Sequence[Record], codecs: Codecs) -> list[EncodedExample]:
    """Generation prompts: the turns of each record, then the assistant's header; nothing is a target.

    Raises:
        RejectedRecord: a record cannot be encoded; its `number` says which.
    """
    results = _encode([_askable(record) for record in records], codecs, generate=True)
    for number, result in enumerate(results):
        if isinstance(result, RejectedRecord):
            result.number = number
            raise result
    return [result for result in results if isinstance(result, EncodedExample)]


def _askable(record: Record) -> Record | RejectedRecord:
    try:
        whole = load_media(record)
        check_audios(whole)
        return whole
    except RejectedRecord as error:
        return error


def encode_one(record: Record, codecs: Codecs) -> EncodedExample:
    """One training sample.

    Raises:
        RejectedRecord: the record cannot be used.
    """
    (result,) = encode([record], codecs)
    if isinstance(result, RejectedRecord):
        raise result
    return result


def load_media(record: Record, codecs: Codecs | None = None) -> Record:
    """The record with its media in memory: images uint8 [H, W, 3], audios `Waveform`.

    A user's audio is the mean of its channels, an assistant's the first one (released code).

    Args:
        record: media may be paths.
        codecs: given, each image is brought to the size it is encoded at before the next one is read.

    Raises:
        RejectedRecord: a file is missing or unusable, they do not match the tags, or they take too much memory.
    """
    check_tags(record)
    images, audios, size, shape = [], [], 0, None
    for image, role in zip(record.images, media_roles(record.messages, IMAGE_TAG), strict=True):
        pixels = _load("image", image, read_image)
        shape = pixels.shape[:2]
        images.append(pixels if codecs is None else fit_image(pixels, _side(codecs, role)))
        size = _within_memory(size + images[-1].nbytes)
    for audio, role in zip(record.audios, media_roles(record.messages, AUDIO_TAG), strict=True):
        read = functools.partial(read_audio, channels="first" if role == "assistant" else "mean")
        audios.append(_load("audio", audio, read))
        size = _within_memory(size + audios[-1].samples.nbytes)
    hole = _load("hole", record.hole, read_image)
    if hole is not None:
        hole = hole if hole.dtype == bool else hole.mean(axis=-1) > 127
        if hole.shape != shape:
            raise RejectedRecord("hole of another size", f"{hole.shape} pixels, the picture has {shape or 'no'}")
    return dataclasses.replace(record, images=tuple(images), audios=tuple(audios), hole=hole)


def _within_memory(size: int) -> int:
    if size > _MOST_BYTES:
        raise RejectedRecord("too many media", f"over {_MOST_BYTES >> 20} MiB in memory; part the record")
    return size


def _bytes(record: Record | RejectedRecord) -> int:
    """Of media in memory."""
    if isinstance(record, RejectedRecord):
        return 0
    arrays = [*record.images, *(wave.samples for wave in record.audios)]
    return sum(array.nbytes for array in arrays) + (0 if record.hole is None else record.hole.nbytes)


def _side(codecs: Codecs, role: str) -> int:
    """Pixels of a side of an image that is drawn, or looked at."""
    return codecs.assistant_image_size if role == "assistant" else codecs.user_image_size


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], as `tokenizers.image.fit` does.

    A strip longer than 8 times its width loses its ends first: they would be cropped anyway, and resizing all of it
    could take any amount of memory.
    """
    longest = _LONGEST_STRIP * min(image.shape[:2])
    top, left = (max(side - longest, 0) // 2 for side in image.shape[:2])
    return fit(image[top : image.shape[0] - top, left : image.shape[1] - left], size)


def code_hole(hole: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [k]: the codes of a grid whose patch touches the hole, bool [size, size]."""
    rows, columns = grid
    patches = hole.reshape(rows, hole.shape[0] // rows, columns, hole.shape[1] // columns)
    return patches.any(axis=(1, 3)).reshape(-1)


def _load(kind: str, medium: Any, read: Callable[..., Any]) -> Any:
    if not isinstance(medium, str | os.PathLike | Medium):
        return medium
    try:
        return read(medium)
    except UserError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise RejectedRecord(f"{'missing' if missing else 'unusable'} {kind}", str(error)) from error


def _encode(
    loaded: Sequence[Record | RejectedRecord], codecs: Codecs, generate: bool, heard: Heard = FEATURES
) -> list[EncodedExample | RejectedRecord]:
    """One result per record, media of all records encoded together."""
    results: list[EncodedExample | RejectedRecord] = []
    usable = [record for record in loaded if isinstance(record, Record)]
    images = iter(_images(usable, codecs))
    audios = iter(_audios(usable, codecs))
    for item in loaded:
        if isinstance(item, RejectedRecord):
            results.append(item)
            continue
        codes = [next(images) for _ in item.images]
        sounds = [next(audios) for _ in item.audios]
        try:
            example = _example(item, codes, sounds, codecs.layout, generate)
            example = example if item.hole is None else _painted(example, item.hole, codecs)
            results.append(heard.after(item, example))
        except RejectedRecord as error:
            results.append(error)
    return results


def _images(records: Sequence[Record], codecs: Codecs) -> list[np.ndarray]:
    """Codes of every image of every record, in order."""
    pixels: dict[int, list[np.ndarray]] = {}
    places: list[tuple[int, int]] = []
    for record in records:
        for image, role in zip(record.images, media_roles(record.messages, IMAGE_TAG), strict=True):
            size = _side(codecs, role)
            fitted = pixels.setdefault(size, [])
            places.append((size, len(fitted)))
            fitted.append(fit_image(image, size))
    codes = {size: np.asarray(codecs.images(np.stack(fitted))) for size, fitted in pixels.items()}
    return [codes[size][number] for size, number in places]


def _audios(records: Sequence[Record], codecs: Codecs) -> list[np.ndarray | RejectedRecord]:
    """Frames of every user audio and codes of every assistant audio, in order; a fault stands in its place."""
    waves: list[Waveform] = []
    roles: list[str] = []
    for record in records:
        waves.extend(record.audios)
        roles.extend(media_roles(record.messages, AUDIO_TAG))
    spoken = [wave for wave, role in zip(waves, roles, strict=True) if role == "assistant"]
    codes = iter(_all_or_each(codecs.speech, spoken))
    return [
        next(codes) if role == "assistant" else _guarded(codecs.features, wave)
        for wave, role in zip(waves, roles, strict=True)
    ]


def _all_or_each(
    encode_all: Callable[[list[Waveform]], Sequence[np.ndarray]], waves: list[Waveform]
) -> Sequence[np.ndarray | RejectedRecord]:
    """Encodes together; if one of them is refused, one by one, so that only that one is lost."""
    if not waves:
        return []
    try:
        return list(encode_all(waves))
    except UserError:
        return [_guarded(lambda one: encode_all([one])[0], wave) for wave in waves]


def _guarded(make: Callable[[Waveform], np.ndarray], wave: Waveform) -> np.ndarray | RejectedRecord:
    try:
        return make(wave)
    except UserError as error:
        return RejectedRecord("unusable audio", str(error))


def _example(
    record: Record,
    images: Sequence[np.ndarray],
    audios: Sequence[np.ndarray | RejectedRecord],
    layout: ChatLayout,
    generate: bool,
) -> EncodedExample:
    heard, media = [], []
    for audio, role in zip(audios, media_roles(record.messages, AUDIO_TAG), strict=True):
        if isinstance(audio, RejectedRecord):
            raise audio
        if not len(audio):
            raise RejectedRecord("unusable audio", "too short for a single frame or code")
        if role != "assistant":
            heard.append(np.asarray(audio, np.float16))
        media.append(audio if role == "assistant" else len(audio))
    try:
        if generate:
            tokens = layout.prompt(record.messages, images, media)
            targets = np.zeros(len(tokens), bool)
        else:
            rendered = layout.render(record.messages, images, media)
            tokens, targets = rendered.tokens, rendered.targets
    except UserError as error:
        raise RejectedRecord("messages cannot be laid out", str(error)) from error
    frames = np.concatenate(heard) if heard else np.zeros((0, layout.speech.width), np.float16)
    counts = np.array([len(frames) for frames in heard], np.int32)
    return EncodedExample(record.sample_id, record.task, tokens, targets, frames, counts)


def _painted(example: EncodedExample, hole: np.ndarray, codecs: Codecs) -> EncodedExample:
    """The example with nothing to learn but the codes of its last picture whose patch touches the hole, bool [H, W]."""
    codes = code_hole(
        fit_image(np.repeat(hole[..., None], 3, axis=-1) * np.uint8(255), codecs.assistant_image_size)[..., 0] > 127,
        codecs.image_grid,
    )
    if not codes.any():
        raise RejectedRecord("hole is empty", "no pixel of it lies in the part of the picture that the model sees")
    first = np.flatnonzero(example.tokens == codecs.layout.vocabulary.begin_image)[-1] + 1
    targets = np.zeros_like(example.targets)
    targets[first : first + len(codes)] = codes
    return dataclasses.replace(example, targets=targets)
