"""One self-contained `report.html`: scores, loss curves, answers beside prompts, denoising strips, speech to hear."""

import base64
import dataclasses
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.scorecard import labelled, span
from omnidiff_jax.evaluation.standing import page as standings
from omnidiff_jax.records import Waveform

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #eee }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto } .wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: #fff }
.dense { font-size: .8rem } .dense td, .dense th { padding: .25rem .45rem; vertical-align: top }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.card { border: 1px solid #ddd; border-radius: 8px; padding: .7rem; width: min(20rem, 100%); box-sizing: border-box }
.card.good { border-left: 5px solid #2a9d5c } .card.bad { border-left: 5px solid #d1495b }
.card p { margin: .2rem 0; overflow-wrap: anywhere } .label { color: #777; font-size: .8rem }
img.pixel { image-rendering: pixelated; outline: 1px solid #ddd } audio { width: 100%; height: 2.2rem }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin-top: .3rem } .strip span { width: 100%; font-size: .8rem }
.bar { background: #eee; width: 8rem; height: .7rem; position: relative; border-radius: 3px }
.bar i { position: absolute; height: 100%; border-radius: 3px; background: #3a7ca5 }
"""
_PHONE = "<meta name=viewport content='width=device-width, initial-scale=1'>"


@dataclasses.dataclass(frozen=True)
class View:
    """One answered question, ready to be shown.

    Attributes:
        asked: text of the prompt, and what its speech says.
        answered: text of the answer.
        expected: text of a right answer.
        good: the judge's word; None where it gives none.
        prompt_image, image: uint8 [H, W, 3], or None.
        prompt_audio, audio: or None.
        strip: pictures or texts of the decoding steps.
    """

    asked: str
    answered: str
    expected: str
    good: bool | None = None
    prompt_image: np.ndarray | None = None
    image: np.ndarray | None = None
    prompt_audio: Waveform | None = None
    audio: Waveform | None = None
    strip: tuple[Any, ...] = ()


def write_report(
    path: str | os.PathLike[str],
    title: str,
    scorecard: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    views: Mapping[str, Sequence[View]],
    note: str = "",
) -> None:
    """Writes the report.

    Args:
        path: the HTML file.
        title: its heading.
        scorecard: content of `scorecard.json`.
        metrics: lines of `metrics.jsonl`; may be empty.
        views: answers to show, by label.
        note: on what the scores rest.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", "<h2>Scorecard</h2>"]
    parts += [f"<p>{html.escape(note)}</p>"] if note else []
    parts.append(_scores(scorecard))
    if published := standings(scorecard.get("exams", {})):
        parts += ["<h2>Beside what was published</h2>", published]
    if metrics:
        parts += ["<h2>Training</h2>", _curves(metrics)]
    for task, shown in views.items():
        parts.append(f"<h2>{html.escape(task)}</h2><div class=cards>{''.join(map(_card, shown))}</div>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{_PHONE}<title>{html.escape(title)}</title>"
    Path(path).write_text(f"{head}<style>{_STYLE}</style>{''.join(parts)}", encoding="utf-8")


def _scores(scorecard: Mapping[str, Any]) -> str:
    rows = []
    entries = labelled(scorecard.get("exams", {})) or scorecard["tasks"]
    for name, entry in entries.items():
        for part in (entry, *entry.get("also", ())):
            value, ceiling, floor = (part[k] for k in ("value", "ceiling", "floor"))
            better = "higher" if part["higher_is_better"] else "lower"
            reached = np.clip((value - floor) / (ceiling - floor), 0, 1) if ceiling != floor else 0.0
            bar = f"<div class=bar><i style='width:{100 * reached:.0f}%'></i></div>"
            unseen = part.get("further", {}).get("compositional", {})
            split = f"; {unseen['value']:.3f} ({span(unseen)}) on unseen pairs" if unseen else ""
            cells = f"<td class=n>{value:.3f}<td class=n>{span(part)}<td class=n>{ceiling:.3f}<td class=n>{floor:.3f}"
            rows.append(
                f"<tr><td>{html.escape(name)}<td>{html.escape(part['metric'])} ({better} is better){split}{cells}"
                f"<td>{bar}<td class=n>{part['n']}<td>{html.escape(part['judge'])}"
            )
    seconds = "  ·  ".join(f"{html.escape(k)} {v:.0f} s" for k, v in scorecard.get("seconds", {}).items())
    versions = "  ·  ".join(f"{html.escape(k)} {html.escape(v)}" for k, v in scorecard.get("versions", {}).items())
    numbers = "<th class=n>value<th class=n>95 %<th class=n>ceiling<th class=n>floor"
    head = f"<tr><th>task<th>metric{numbers}<th>floor to ceiling<th class=n>n<th>judge"
    note = "Ceiling: the judge's score of the true answers. Floor: its score of the model's answers to other questions."
    body = f"<div class=wide tabindex=0><table>{head}{''.join(rows)}</table></div>"
    return f"{body}<p class=label>{note}<br>{seconds}<br>{versions}</p>"


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    figure, axes = _pyplot().subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    held_out = [(line["step"], line["held_out_loss"]) for line in metrics if "held_out_loss" in line]
    metrics = [line for line in metrics if "held_out_loss" not in line]
    steps = np.array([line["step"] for line in metrics])
    axes[0].plot(steps, _smooth([line.get("loss") for line in metrics]), color="#3a7ca5", label="all tasks")
    if held_out:
        axes[0].plot(*zip(*held_out, strict=True), "o-", color="#d1495b", label="held out")
    axes[0].set_title("loss")
    for axis, group, title in (
        (axes[1], "task_loss", "loss by task"),
        (axes[2], "noise_loss", "loss by noise level t"),
    ):
        for name in sorted({key for line in metrics for key in line.get(group, {})}):
            axis.plot(steps, _smooth([line.get(group, {}).get(name) for line in metrics]), label=name, linewidth=1.2)
        axis.set_title(title)
    stages = [str(line.get("stage")) for line in metrics]
    begins = {name: steps[stages.index(name)] for name in dict.fromkeys(stages)}
    for axis in axes:
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        if axis.lines:
            axis.legend(fontsize=7)
        for step in list(begins.values())[1:]:
            axis.axvline(step, color="#999", linestyle=":", linewidth=1)
    legend = "  ·  ".join(f"{html.escape(name)} from step {step}" for name, step in begins.items())
    picture = f"<img style='max-width:100%' src='{_png_of_figure(figure)}' alt='loss curves'>"
    return f"{picture}<p class=label>{legend}</p>"


def _smooth(values: Sequence[float | None], window: int = 15) -> np.ndarray:
    """Running mean over the values present; NaN before the first."""
    series = np.array([np.nan if v is None else float(v) for v in values])
    out = np.full(len(series), np.nan)
    for i in range(len(series)):
        part = series[max(0, i - window + 1) : i + 1]
        if np.isfinite(part).any():
            out[i] = np.nanmean(part)
    return out


def _card(view: View) -> str:
    mark = "" if view.good is None else (" good" if view.good else " bad")
    parts = [f"<div class='card{mark}'><p class=label>asked</p><p>{html.escape(view.asked)}</p>"]
    if view.prompt_image is not None:
        parts.append(_image(view.prompt_image, 96))
    if view.prompt_audio is not None:
        parts.append(_audio(view.prompt_audio))
    parts.append("<p class=label>answered</p>")
    if view.answered:
        parts.append(f"<p><b>{html.escape(view.answered)}</b></p>")
    if view.image is not None:
        parts.append(_image(view.image, 128))
    if view.audio is not None:
        parts.append(_audio(view.audio))
    if not view.answered and view.image is None and view.audio is None:
        parts.append("<p>nothing</p>")
    if view.expected not in ("", view.asked):
        parts.append(f"<p class=label>expected: {html.escape(view.expected)}</p>")
    if view.strip:
        width = 40 if len(view.strip) > 1 else 280  # a strip of small pictures, or one of all steps
        frames = (f"<span>{html.escape(f)}</span>" if isinstance(f, str) else _image(f, width) for f in view.strip)
        parts.append(f"<p class=label>decoding steps</p><div class=strip>{''.join(frames)}</div>")
    return "".join(parts) + "</div>"


def _image(image: np.ndarray, width: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"<img class=pixel width={width} src='{_data(buffer, 'image/png')}' alt=''>"


def _audio(wave: Waveform) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.samples, wave.rate, format="WAV", subtype="PCM_16")
    figure, axis = _pyplot().subplots(figsize=(3, 0.9))
    axis.imshow(_decibels(wave.samples), origin="lower", aspect="auto", cmap="magma", vmin=-90, vmax=0)
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    picture = f"<img style='width:100%' src='{_png_of_figure(figure, 80)}' alt='spectrogram'>"
    return f"{picture}<audio controls src='{_data(buffer, 'audio/wav')}'></audio>"


def _decibels(samples: np.ndarray, window: int = 512, hop: int = 128) -> np.ndarray:
    """Magnitude spectrogram [window / 2 + 1, frames] in dB below its peak."""
    padded = np.pad(samples, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    magnitude = np.abs(np.fft.rfft(frames)).T
    return 20 * np.log10(np.maximum(magnitude / max(float(magnitude.max()), 1e-6), 1e-6))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("drawing the report needs matplotlib: pip install 'omnidiff_jax[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png_of_figure(figure: Any, dpi: int = 90) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    _pyplot().close(figure)
    return _data(buffer, "image/png")


def _data(buffer: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
