"""Raw records to token ids: `Record` -> `EncodedExample`, through the tokenizers, in batches.

Nothing here is random. Tail pads are not added (packing adds them, anew every epoch), and nothing is masked.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from omnidiff_jax.codecs.judgment import check_audios, check_tags, check_trainable
from omnidiff_jax.codecs.media import Codecs
from omnidiff_jax.errors import UserError
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.media.image import read_image
from omnidiff_jax.records import AUDIO_TAG, IMAGE_TAG, EncodedExample, Medium, Record, RejectedRecord, Waveform
from omnidiff_jax.tasks.chat import ChatLayout, media_roles
from omnidiff_jax.tokenizers.image import fit

T = TypeVar("T")
_LONGEST_STRIP = 8


def encode(
    records: Iterable[Record], codecs: Codecs, rejected: "collections.Counter[str]", chunk: int = 128
) -> Iterator[EncodedExample]:
    """Training samples, in the order of `records`.

    Args:
        records: raw samples; media may be paths.
        codecs: the tokenizers.
        rejected: reason -> count of the records left out; added to.
        chunk: records whose media are encoded together.

    Yields:
        an example for each record that can be used; frames are float16.

    Raises:
        UserError: at the end, every record was left out: such a set would only stand in the way of the mended one.
    """
    usable = 0
    for group in _chunks(records, chunk):
        for result in _encode(group, codecs, generate=False):
            if isinstance(result, RejectedRecord):
                rejected[result.reason] += 1
            else:
                usable += 1
                yield result
    if not usable and rejected:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
        raise UserError(
            f"none of {rejected.total()} records can be used: {reasons}; `omnidiff data check` shows one of each"
        )


def encode_prompts(records: Sequence[Record], codecs: Codecs) -> list[EncodedExample]:
    """Generation prompts: the turns of each record, then the assistant's header; nothing is a target.

    Raises:
        RejectedRecord: a record cannot be encoded; its `number` says which.
    """
    results = _encode(records, codecs, generate=True)
    for number, result in enumerate(results):
        if isinstance(result, RejectedRecord):
            result.number = number
            raise result
    return [result for result in results if isinstance(result, EncodedExample)]


def encode_one(record: Record, codecs: Codecs) -> EncodedExample:
    """One training sample.

    Raises:
        RejectedRecord: the record cannot be used.
    """
    (result,) = _encode([record], codecs, generate=False)
    if isinstance(result, RejectedRecord):
        raise result
    return result


def load_media(record: Record) -> Record:
    """The record with its media in memory: images uint8 [H, W, 3], audios `Waveform`.

    A user's audio is the mean of its channels, an assistant's the first one (released code).

    Raises:
        RejectedRecord: a file is missing or unusable, or they do not match the tags.
    """
    check_tags(record)
    roles = media_roles(record.messages, AUDIO_TAG)
    images = tuple(_load("image", image, read_image) for image in record.images)
    audios = tuple(
        _load("audio", audio, functools.partial(read_audio, channels="first" if role == "assistant" else "mean"))
        for audio, role in zip(record.audios, roles, strict=True)
    )
    hole = _load("hole", record.hole, read_image)
    if hole is not None:
        hole = hole if hole.dtype == bool else hole.mean(axis=-1) > 127
        if not images or hole.shape != images[-1].shape[:2]:
            pixels = images[-1].shape[:2] if images else "no"
            raise RejectedRecord("hole of another size", f"{hole.shape} pixels, the picture has {pixels}")
    return dataclasses.replace(record, images=images, audios=audios, hole=hole)


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


def _encode(records: Sequence[Record], codecs: Codecs, generate: bool) -> list[EncodedExample | RejectedRecord]:
    """One result per record, media of all records encoded together."""
    results: list[EncodedExample | RejectedRecord] = []
    loaded: list[Record | RejectedRecord] = []
    for record in records:
        try:
            whole = load_media(record)
            (check_audios if generate else check_trainable)(whole)
            loaded.append(whole)
        except RejectedRecord as error:
            loaded.append(error)
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
            results.append(example if item.hole is None else _painted(example, item.hole, codecs))
        except RejectedRecord as error:
            results.append(error)
    return results


def _images(records: Sequence[Record], codecs: Codecs) -> list[np.ndarray]:
    """Codes of every image of every record, in order."""
    pixels: dict[int, list[np.ndarray]] = {}
    places: list[tuple[int, int]] = []
    for record in records:
        for image, role in zip(record.images, media_roles(record.messages, IMAGE_TAG), strict=True):
            size = codecs.assistant_image_size if role == "assistant" else codecs.user_image_size
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


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


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
