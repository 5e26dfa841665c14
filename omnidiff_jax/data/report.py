"""One self-contained `report.html` of a source: counts, rejects, histograms, pictures and sounds of some samples."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from omnidiff_jax.media.audio import wav_bytes
from omnidiff_jax.media.image import png_bytes
from omnidiff_jax.records import Record, Waveform

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #eee } td.n { text-align: right }
.cards { display: flex; flex-wrap: wrap; gap: 1rem } .card { border: 1px solid #ddd; padding: .7rem; width: 20rem }
.bar { background: #3a7ca5; height: .8rem; display: inline-block } audio { width: 100% } img { max-width: 100% }
"""
_SIDE, _SECONDS, _CHARACTERS = 256, 15.0, 600


def page(name: str, report: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The page.

    Args:
        name: of the source.
        report: of `check.check_records`, with `amounts_to` where that is known.
        records: to be shown, media in memory.
    """
    rejected, examples = report["rejected"], report["examples_of_rejects"]
    parts = [
        f"<h1>{html.escape(name)}</h1><p>{report['accepted']} accepted, {sum(rejected.values())} rejected</p>",
        _table("Rejected", {f"{reason}: {examples[reason]}": count for reason, count in rejected.items()}),
        *(
            _table(what.capitalize().replace("_", " "), report.get(what, {}))
            for what in ("tasks", "languages", "sizes")
        ),
        _table("Amounts to", report.get("amounts_to", {})),
        _table("Shown again by the image tokenizer, dB", report.get("shown_again", {})),
        *(_histogram(what, ends) for what, ends in report["spread"].items()),
        "<h2>Samples</h2><div class='cards'>",
        *map(_card, records),
        "</div>",
    ]
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(name)}</title><style>{_STYLE}</style>"
    return head + "\n".join(parts) + "\n"


def _table(title: str, counts: Mapping[str, Any]) -> str:
    if not counts:
        return ""
    rows = "".join(f"<tr><td>{html.escape(str(k))}<td class='n'>{html.escape(str(v))}" for k, v in counts.items())
    return f"<h2>{html.escape(title)}</h2><table>{rows}</table>"


def _histogram(title: str, ends: Mapping[str, int]) -> str:
    most = max(ends.values())
    rows = "".join(
        f"<tr><td class='n'>≤ {html.escape(end)}<td><span class='bar' style='width:{300 * count / most:.0f}px'></span> "
        f"{count}"
        for end, count in ends.items()
    )
    return f"<h2>{html.escape(title.capitalize())}</h2><table>{rows}</table>"


def _card(record: Record) -> str:
    turns = "".join(
        f"<p><b>{html.escape(message.role)}</b> {html.escape(message.content[:_CHARACTERS])}"
        for message in record.messages
    )
    pictures = "".join(_embedded("img", "image/png", png_bytes(_small(image))) for image in record.images)
    sounds = "".join(_embedded("audio controls", "audio/wav", wav_bytes(_start(wave))) for wave in record.audios)
    told = html.escape(f"{record.task} {record.meta or ''}")
    return f"<div class='card'><p>{told}{turns}{pictures}{sounds}</div>"


def _embedded(tag: str, kind: str, content: bytes) -> str:
    return f"<{tag} src='data:{kind};base64,{base64.b64encode(content).decode()}'></{tag.split()[0]}>"


def _small(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture)


def _start(wave: Waveform) -> Waveform:
    return Waveform(wave.samples[: int(_SECONDS * wave.rate)], wave.rate)
