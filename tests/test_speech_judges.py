"""Judges of speech: which reader a folder is for, what it is given, folders that are no Whisper; transformers' own."""

import json
import sys
import types

import numpy as np
import pytest

from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.judges.speech import SphinxJudge, WhisperJudge
from omnidiff_jax.media.features import resample
from omnidiff_jax.records import Waveform

NOISE = Waveform(np.random.default_rng(0).standard_normal(12000).astype(np.float32) / 8, 24000)
LETTERS = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]


def faster(monkeypatch, heard):
    """A stand-in for the package: keeps what it is asked, and hears what it is told."""
    asked = []

    class WhisperModel:
        def __init__(self, folder, **options):
            if heard is None:
                raise Exception("Unable to open file 'model.bin'")

        def transcribe(self, samples, **options):
            asked.append((len(samples), options))
            return [types.SimpleNamespace(text=text) for text in heard], None

    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=WhisperModel))
    return asked


def test_a_folder_of_ctranslate2(tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="without tokenizer.json"):
        WhisperJudge(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    asked = faster(monkeypatch, [" Hello,", " world. "])
    judge = WhisperJudge(tmp_path)
    assert judge.hear(NOISE) == "Hello, world."
    ((count, options),) = asked
    assert count == 8000 and options["beam_size"] == 1 and options["temperature"] == 0.0  # half a second at 16 kHz
    assert judge.hear(Waveform(np.zeros(0, np.float32), 16000)) == "" and len(asked) == 1
    (tmp_path / "model.bin").write_bytes(b"y")
    assert WhisperJudge(tmp_path).name != judge.name and judge.name.startswith("whisper-")
    faster(monkeypatch, None)  # raises what the tokenizer's package raises
    with pytest.raises(UserError, match=r"cannot be read as Whisper \(Unable to open file 'model.bin'\)"):
        WhisperJudge(tmp_path)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match="needs faster-whisper"):
        WhisperJudge(tmp_path)


@pytest.mark.parametrize("spec", [b"WhisperSpec", b"TransformerSpec"])
def test_damaged_folders_of_ctranslate2(spec, tmp_path):
    """Its own header: version, name of the model, revision, number of variables; then nothing."""
    pytest.importorskip("faster_whisper", reason="the judge is in the extra `benchmarks`")
    name = len(spec + b"\0").to_bytes(2, "little") + spec + b"\0"
    header = (6).to_bytes(4, "little") + name + (3).to_bytes(4, "little") + (9).to_bytes(4, "little")
    (tmp_path / "tokenizer.json").write_text("{}")
    for content in (header, b"", b"\xff" * 64):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as Whisper"):
            WhisperJudge(tmp_path)


def test_a_folder_of_transformers_without_it(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is no Whisper"):
        WhisperJudge(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the extra torch"):
        WhisperJudge(tmp_path)


def test_a_folder_of_transformers_is_asked_for_no_beams(tmp_path, monkeypatch):
    """Versions of its pipeline differ in what they do unasked."""
    asked = []

    def pipeline(kind, model):
        def listen(given, **options):
            asked.append((kind, model, given["sampling_rate"], len(given["raw"]), options))
            return {"text": " Yes. "}

        return listen

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(pipeline=pipeline))
    for file in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / file).write_bytes(b"x")
    assert WhisperJudge(tmp_path).hear(NOISE) == "Yes."
    greedy = {"return_timestamps": True, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    assert asked == [("automatic-speech-recognition", str(tmp_path), 16000, 8000, greedy)]


def test_pocketsphinx_hears_nothing_in_silence():
    pytest.importorskip("pocketsphinx", reason="the judge is in the extra `eval`")
    judge = SphinxJudge()
    assert judge.name.startswith("pocketsphinx-") and judge.hear(Waveform(np.zeros(8000, np.float32), 16000)) == ""


def tiny_whisper(folder):
    """Random weights in transformers' form, with every file that a released one has."""
    torch = pytest.importorskip("torch")
    whisper = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = whisper.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    words.add_special_tokens({"additional_special_tokens": special})
    words.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    ids = dict(zip(special, words.convert_tokens_to_ids(special), strict=True))
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = whisper.WhisperConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=32,
        **sizes,
        **ends,
    )
    model = whisper.WhisperForConditionalGeneration(config)
    model.generation_config = whisper.GenerationConfig(
        **ends,
        max_length=24,
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False,
        max_initial_timestamp_index=50,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    whisper.WhisperFeatureExtractor().save_pretrained(folder)
    return whisper, model.eval(), words


def test_a_folder_of_transformers_is_heard_greedily(tmp_path):
    whisper, model, words = tiny_whisper(tmp_path / "tiny")
    judge = WhisperJudge(tmp_path / "tiny")
    heard = judge.hear(NOISE)
    samples = resample(NOISE.samples, NOISE.rate, 16000)
    features = whisper.WhisperFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features
    (ids,) = model.generate(features, return_timestamps=True, num_beams=1, do_sample=False).tolist()
    said = words.decode([number for number in ids if number < len(LETTERS)])
    assert len(said) > 5 and heard == said.strip() == judge.hear(NOISE)
    assert judge.hear(Waveform(np.zeros(0, np.float32), 16000)) == ""
    for file in ("config.json", "model.safetensors"):
        content = (tmp_path / "tiny" / file).read_bytes()
        (tmp_path / "tiny" / file).write_bytes(content[:40])
        with pytest.raises(UserError, match="cannot be read as Whisper"):
            WhisperJudge(tmp_path / "tiny")
        (tmp_path / "tiny" / file).write_bytes(content)
