"""Media files: every format comes in the same way, and every bad file is refused in one line that names it."""

from __future__ import annotations

import functools
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.scenes.speech import heard_voice, say
from omnidiff_jax.answering.media import to_image
from omnidiff_jax.errors import UserError, notice
from omnidiff_jax.files import safe_join, write_bytes
from omnidiff_jax.media.audio import AudioLimits, read_audio, wav_bytes, write_wav
from omnidiff_jax.media.image import ImageLimits, read_image, write_png
from omnidiff_jax.media.speech import check_heard
from omnidiff_jax.records import Waveform

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def refusal(read, path: Path) -> str:
    """The message `read(path)` refuses with: one line, naming the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


# Audio


@pytest.mark.parametrize(
    ("ending", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 1 / 127),
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "PCM_32", 1e-6),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 0.02),
        ("flac", "PCM_16", 1e-4),
        ("flac", "PCM_24", 1e-6),
        ("ogg", "VORBIS", 0.1),
        ("mp3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_every_encoding_is_read(tmp_path: Path, ending: str, subtype: str, tolerance: float) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(), RATE, subtype=subtype)
    waveform = read_audio(path)
    assert waveform.rate == RATE and waveform.samples.dtype == np.float32
    np.testing.assert_allclose(waveform.samples, tone(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000, 192_000])
def test_the_files_own_rate_is_kept(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.1, rate), rate)
    waveform = read_audio(tmp_path / "a.wav")
    assert waveform.rate == rate and waveform.seconds == pytest.approx(0.1, rel=1e-3)


def test_channels_are_averaged_for_the_encoder_and_dropped_for_the_tokenizer(tmp_path: Path) -> None:
    left, right = tone(), 0.5 * tone(hertz=300.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav").samples, (left + right) / 2, atol=1e-6)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channels="first").samples, left)


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    for ending in ("raw", "mp3", "txt", "WAV", ""):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(wav_bytes(Waveform(tone(), RATE)))
        assert len(read_audio(path).samples) == len(tone())


def test_overshoot_is_clipped_and_unscaled_samples_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hot.wav", 3 * tone(), RATE, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "hot.wav").samples).max() == 1.0
    soundfile.write(tmp_path / "unscaled.wav", 32768 * tone(), RATE, subtype="FLOAT")
    assert "peaks at 1.311e+04" in refusal(read_audio, tmp_path / "unscaled.wav")


@pytest.mark.parametrize(("value", "at"), [(np.nan, 0), (np.inf, 7), (-np.inf, 7999)])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float, at: int) -> None:
    samples = tone()
    samples[at] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert f"holds 1 NaN or infinite samples, the first at {at}" in refusal(read_audio, tmp_path / "a.wav")


def test_audio_that_is_not_there_or_not_audio_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(read_audio, tmp_path / "missing.wav")
    assert "not a regular file" in refusal(read_audio, tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "empty (0 bytes)" in refusal(read_audio, tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("dear diary\n" * 99)
    assert "not readable audio" in refusal(read_audio, tmp_path / "text.wav")
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    assert "not readable audio" in refusal(read_audio, tmp_path / "picture.png")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.float32), RATE)
    assert "has 0 samples" in refusal(read_audio, tmp_path / "silent.wav")
    soundfile.write(tmp_path / "old.aiff", tone(), RATE)
    assert "is AIFF; convert it" in refusal(read_audio, tmp_path / "old.aiff")
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refusal(read_audio, tmp_path / "pipe.wav")


@pytest.mark.parametrize(("ending", "kept"), [("wav", 0.5), ("wav", 0.999), ("flac", 0.5), ("ogg", 0.5), ("mp3", 0.5)])
def test_audio_cut_short_is_refused(tmp_path: Path, ending: str, kept: float) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(2.0), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(read_audio, path)
    assert "cut short" in message or "not readable audio" in message


def test_a_streamed_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    content = bytearray(wav_bytes(Waveform(tone(), RATE)))
    data = content.index(b"data") + 4
    content[data : data + 4] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav").samples) == len(tone())


def test_limits_are_checked_on_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone()] * 3, 1), RATE)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded before it was checked"))

    for limits, reason in (
        (AudioLimits(max_seconds=0.4), "0.5 s long, over the limit of 0.4 s"),
        (AudioLimits(max_bytes=1000), "over the limit of 0 MiB"),
        (AudioLimits(max_rate=12_000), "16000 samples per second, outside 8000-12000"),
        (AudioLimits(max_channels=2), "3 channels, over 2"),
    ):
        assert reason in refusal(functools.partial(read_audio, limits=limits), path)
    soundfile.write(path, tone(0.1, 4000), 4000)
    assert "4000 samples per second" in refusal(read_audio, path)


@settings(max_examples=60)
@given(ending=st.sampled_from(["wav", "flac", "ogg", "mp3"]), data=st.data())
def test_damaged_audio_is_read_or_refused_only(tmp_path_factory, ending: str, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"a.{ending}"
    soundfile.write(path, tone(0.2), RATE)
    content = bytearray(path.read_bytes())
    for position, value in data.draw(st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255))).items():
        content[position] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        waveform = read_audio(path)
    except UserError:
        return
    assert len(waveform.samples) and np.abs(waveform.samples).max() <= 1.0


def test_wav_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.wav"
    write_wav(path, Waveform(tone(), RATE))
    np.testing.assert_allclose(read_audio(path).samples, tone(), atol=1e-4)
    with pytest.raises(UserError, match="NaN"):
        write_wav(path, Waveform(np.array([0.0, np.nan], np.float32), RATE))
    assert len(read_audio(path).samples) == len(tone())


# Images


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "jpg", "gif"])
def test_every_image_format_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    flat = np.full((6, 8, 3), (200, 30, 90), np.uint8)
    Image.fromarray(flat).save(path)
    image = read_image(path)
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - flat).max() <= (8 if ending in ("jpg", "webp") else 0)


def test_modes_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = picture()[..., 0]
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, -1))

    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, -1))

    Image.fromarray(grey > 127).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 0], np.where(grey > 127, 255, 0))

    palette = Image.fromarray(picture()).quantize(16)
    palette.save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(palette.convert("RGB")))

    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = read_image(tmp_path / "a.jpg")[0, 0]
    assert red[0] > 240 and red[1] < 40 and red[2] < 40

    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    assert "floating-point pixels" in refusal(read_image, tmp_path / "a.tiff")


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("PA", (0, 0))])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str, value: tuple[int, ...]) -> None:
    image = Image.new("RGBA" if mode == "PA" else mode, (4, 4), value if mode != "PA" else (1, 2, 3, 0))
    if mode == "PA":
        image = image.quantize(4)
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(), -1))


def test_images_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(read_image, tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    assert "empty (0 bytes)" in refusal(read_image, tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("dear diary")
    assert "not a readable image" in refusal(read_image, tmp_path / "text.png")
    (tmp_path / "sound.png").write_bytes(wav_bytes(Waveform(tone(), RATE)))
    assert "not a readable image" in refusal(read_image, tmp_path / "sound.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff"])
def test_an_image_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(picture(64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    message = refusal(read_image, path)
    assert "damaged" in message or "not a readable image" in message


def png_of_size(width: int, height: int) -> bytes:
    """A png whose header claims any size, with no pixels behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((9000, 9000), "is 9000x9000, over 64 million pixels"),
        ((10_000, 10_000), "is 10000x10000, over 64 million pixels"),
        ((60_000, 60_000), "too many pixels"),
        ((0, 5), "image"),
    ],
)
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int], reason: str) -> None:
    (tmp_path / "a.png").write_bytes(png_of_size(*size))
    assert reason in refusal(read_image, tmp_path / "a.png")


def test_image_limits_come_from_the_caller(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())
    for limits, reason in (
        (ImageLimits(max_pixels=47), "is 8x6"),
        (ImageLimits(max_bytes=10), "over the limit of 0 MiB"),
    ):
        assert reason in refusal(functools.partial(read_image, limits=limits), tmp_path / "a.png")


@settings(max_examples=60)
@given(ending=st.sampled_from(["png", "jpg", "webp", "gif", "bmp", "tiff"]), data=st.data())
def test_a_damaged_image_is_read_or_refused_only(tmp_path_factory, ending: str, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"a.{ending}"
    Image.fromarray(picture(16, 16)).save(path)
    content = bytearray(path.read_bytes())
    for position, value in data.draw(st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255))).items():
        content[position] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_image(path)
    except UserError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3


# Paths


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "", "link/secret", "loose", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path)
    (root / "loose").symlink_to("../secret")
    with pytest.raises(UserError):
        safe_join(root, name)


def test_names_inside_the_folder_are_joined(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(root)
    (root / "inner").symlink_to(root / "a")
    assert safe_join(root, "a/../b.wav") == root / "b.wav"
    assert safe_join(tmp_path / "alias", "a/b.wav") == root / "a" / "b.wav"
    assert safe_join(root, "inner/b.wav") == root / "a" / "b.wav"
    assert safe_join(root, str(root / "a" / "b.wav")) == root / "a" / "b.wav"
    assert safe_join("/", str(root / "a")) == root / "a"


def test_links_that_lead_out_are_followed_only_when_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "b.wav").write_text("x")
    assert safe_join(root, "link/b.wav", links=True) == root / "link" / "b.wav"
    for name in ("link/../../b.wav", "../b.wav", str(tmp_path / "b.wav")):
        with pytest.raises(UserError, match="leads out of|is absolute"):
            safe_join(root, name, links=True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(path / "under_a_file", b"")


# Deep pixels


def tiff(path: Path, pixels: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1) -> Path:
    """An uncompressed grey TIFF of one strip, as scanners and scientific tools write them; 12 bits are packed."""
    height, width = pixels.shape
    if bits == 12:
        pairs = pixels.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        content = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8).tobytes()
    else:
        content = pixels.tobytes()
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(content)), (339, sample_format)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory + b"\0\0\0\0")
    return path


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("dtype", "bits", "white_is_zero"),
    # Pillow reads no other form with 0 as white.
    [
        ("<u1", 8, False),
        ("<u2", 12, False),
        ("<u2", 16, False),
        ("<u4", 32, False),
        ("<u1", 8, True),
        ("<u2", 16, True),
    ],
)
def test_deep_pixels_keep_their_scale(tmp_path: Path, dtype: str, bits: int, white_is_zero: bool) -> None:
    full = 2**bits - 1
    shown = np.round(RAMP * full)
    path = tiff(
        tmp_path / "a.tif", (full - shown if white_is_zero else shown).astype(dtype), bits, 1, 1 - white_is_zero
    )
    np.testing.assert_allclose(read_image(path)[..., 0], RAMP * 255, atol=0.51)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_image(image), read_image(path))


@pytest.mark.parametrize(
    ("pixels", "bits", "sample_format", "named"),
    [
        ((RAMP * 32767).astype("<i2"), 16, 2, r"signed pixels \(mode I\)"),
        ((RAMP * 70000 - 900).astype("<i4"), 32, 2, r"signed pixels \(mode I\)"),
        ((RAMP * 65535).astype("<u4"), 32, 1, r"32-bit pixels \(mode I\) of which none is over 65535"),
        (RAMP.astype("<f4"), 32, 3, r"floating-point pixels \(mode F\)"),
    ],
)
def test_pixels_without_a_scale_are_refused_by_their_mode(
    tmp_path: Path, pixels: np.ndarray, bits: int, sample_format: int, named: str
) -> None:
    path = tiff(tmp_path / "a.tif", pixels, bits, sample_format)
    message = refusal(read_image, path)
    assert re.search(named, message) and "damaged" not in message and "8 or 16 bits" in message
    with Image.open(path) as image, pytest.raises(UserError, match=named):
        to_image(image)


# What is heard


def test_channels_that_cancel_are_named(tmp_path: Path) -> None:
    speech = tone(0.5)
    path = tmp_path / "stereo.wav"
    for other in (-speech, -0.995 * speech, 0.3 - speech):
        soundfile.write(path, np.stack([speech, other], axis=1), RATE)
        assert "2 channels cancel each other out" in refusal(read_audio, path)
        assert len(read_audio(path, "first").samples) == len(speech)
    noise = np.random.default_rng(0).normal(0, 0.1, len(speech))
    for channels in ([speech, 0 * speech], [speech, noise], [speech, speech], [0 * speech] * 31 + [speech], [speech]):
        soundfile.write(path, np.stack(channels, axis=1), RATE)
        check_heard(read_audio(path))


@given(st.floats(-0.9, 0.9), st.integers(400, 20_000), st.floats(0, 4e-4))
def test_silence_is_no_speech(constant: float, samples: int, noise: float) -> None:
    wave = np.full(samples, constant, np.float32)
    wave += np.random.default_rng(samples).uniform(-noise, noise, samples).astype(np.float32)
    with pytest.raises(UserError, match="no speech heard"):
        check_heard(Waveform(wave, RATE))


@given(st.sampled_from([8000, 16_000, 44_100, 192_000]), st.floats(0.01, 1.0), st.integers(0, 9000))
def test_less_than_a_window_is_refused_at_every_rate(rate: int, peak: float, samples: int) -> None:
    wave = Waveform(peak * np.sin(np.arange(samples, dtype=np.float32)), rate)
    if samples / rate >= 0.025:
        check_heard(wave)
        return
    with pytest.raises(UserError, match=f"audio of {samples} samples .* shorter than one window of 25 ms"):
        check_heard(wave)


def test_narrow_band_speech_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    notice.cache_clear()
    for _ in range(3):
        check_heard(Waveform(tone(rate=11_025), 11_025))
        check_heard(Waveform(tone(), RATE))
    assert capfd.readouterr().err.count("audio at 11025 Hz holds nothing above 5.5") == 1


def test_fixtures_and_scenes_are_heard(golden: Path) -> None:
    files = [np.load(golden / name) for name in ("01_sensevoice_frontend.npz", "04_whispervq.npz")]
    waves = {name: file[name] for file in files for name in file.files if "waveform" in name and file[name].ndim}
    # Of features shorter than their window: the front-end still makes them, a request of that length is refused.
    assert len(waves.pop("in/waveform_short")) < 400 and len(waves) >= 3
    for wave in waves.values():
        check_heard(Waveform(np.asarray(wave, np.float32), RATE))
    for voice in range(12):
        check_heard(say("red", heard_voice(voice)))
