"""Judges with their published weights, on real pictures and recordings: `omnidiff data fetch commons DIR`.

Where they lie is told by OMNIDIFF_COMMONS (the DIR of that command); without it these tests skip.
"""

import collections
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnidiff_jax.answering.queries import Request, Response
from omnidiff_jax.evaluation.exam import Case
from omnidiff_jax.evaluation.judges.named import open_judge
from omnidiff_jax.evaluation.names import spelt
from omnidiff_jax.evaluation.pictures import Gallery
from omnidiff_jax.evaluation.sounds import heard
from omnidiff_jax.media.audio import read_audio
from omnidiff_jax.records import Waveform

PLACE = Path(os.environ.get("OMNIDIFF_COMMONS") or "nowhere")
HALF = 50


def needs(*parts):
    missing = [part for part in parts if not (PLACE / part / "about.json").is_file()]
    return pytest.mark.skipif(
        bool(missing),
        reason=f"no {', '.join(missing)}: OMNIDIFF_COMMONS names no folder of `omnidiff data fetch commons`",
    )


def named_emoji():
    """Name -> file, of a hundred that are no flags, one in so many of all in the order of their names."""
    rows = json.loads((PLACE / "google" / "emoji.json").read_text(encoding="utf-8"))
    rows = sorted((row["name"], row["image"]) for row in rows if row["category"] not in ("Flags", "Component"))
    return dict(rows[:: len(rows) // 100][:100])


def picture(style, file):
    drawn = Image.open(PLACE / style / "pictures" / file).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    white.alpha_composite(drawn)
    return np.asarray(white.convert("RGB"))


@needs("imagenet", "google", "twitter")
def test_pictures_are_found_again_by_imagenets_features():
    judge = open_judge(f"imagenet:{PLACE / 'imagenet'}", "picture features")
    files = named_emoji()
    gallery = Gallery.of(judge, {name: picture("google", file) for name, file in files.items()})
    asked = list(files)[:HALF]
    shifted = [
        np.pad(picture("google", files[name]), ((2, 0), (1, 0), (0, 0)), mode="edge")[:64, :64] for name in asked
    ]
    other = gallery.ranks([picture("twitter", files[name]) for name in asked], asked)
    assert (gallery.ranks(shifted, asked) <= 1).mean() >= 0.95
    assert (other <= 5).mean() >= 0.5
    shuffled = gallery.ranks(shifted, asked[HALF // 2 :] + asked[: HALF // 2])
    # Of 50 at chance 2.5 are in the top 5; ten or more would be once in 10,000 times.
    assert (shuffled <= 5).mean() < 0.2 and 35 < shuffled.mean() < 66


@needs("dnsmos", "recorded")
def test_recorded_speech_sounds_better_than_noise():
    judge = open_judge(f"dnsmos:{PLACE / 'dnsmos'}", "speech quality")
    rng = np.random.default_rng(0)
    spoken = read_audio(str(min((PLACE / "recorded" / "librivox").glob("*.wav"))))
    noise = Waveform(rng.normal(0, 0.1, 9 * 16000).astype(np.float32), 16000)
    noisy = Waveform(spoken.samples + rng.normal(0, 0.05, len(spoken.samples)).astype(np.float32), spoken.rate)
    found = [judge.opinion(clip).overall for clip in (spoken, noisy, noise)]
    assert found[0] > found[1] + 0.5 and found[0] > found[2] + 1


@needs("whisper", "recorded")
def test_recorded_speech_is_understood():
    judge = open_judge(f"whisper:{PLACE / 'whisper'}", "speech")
    folder = PLACE / "recorded" / "librivox"
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"<s> (.*) </s> \((\S+)\)", line) for line in lines]
    cases = [Case(Request(), Response(), {"spoken": row[1]}) for row in rows]
    responses = [Response(audio=read_audio(str(folder / f"{row[2]}.wav"))) for row in rows]
    errors, words = heard(judge).score(responses, cases)
    assert errors.sum() / words.sum() < 0.1
    errors, words = heard(judge).score(responses[1:] + responses[:1], cases)
    assert errors.sum() / words.sum() > 0.7


@needs("google")
def test_the_rules_of_names_join_one_and_several_only():
    rows = json.loads((PLACE / "google" / "emoji.json").read_text(encoding="utf-8"))
    found = collections.defaultdict(set)
    for row in rows:
        found[spelt(row["name"])].add(row["name"].lower())
    joined = {name for name, together in found.items() if len(together) > 1}
    assert joined == {"eye", "sparkle", "bustinsilhouette"}  # of 1,911, those that are there as one and as several
