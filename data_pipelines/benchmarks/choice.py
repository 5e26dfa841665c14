"""SEED-Bench-2-Plus and MMMU: multiple choice about pictures, by what is said or by which option is likeliest."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import files
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Medium, Protocol, Published, Scores
from omnidiff_jax.evaluation.choices import LETTERS, Letters, lettered, open_right
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.evaluation.sheets import both

SEED_LAYOUTS = "a folder with SEED-Bench-2-plus-text-rich.json and text_rich/, or VLMEvalKit's SEEDBench2_Plus.tsv"
MMMU_LAYOUTS = (
    "the parquet files of MMMU/MMMU (validation-*.parquet, a folder a subject or merged), or VLMEvalKit's "
    "MMMU_DEV_VAL.tsv"
)
_PICTURES = [f"image_{number}" for number in range(1, 8)]
_ASKED = ("question_id", "question", "answer", "data_id", "question_image_type")


def _choice(
    split: str,
    name: str,
    question: str,
    options: Sequence[str],
    answer: str,
    picture: Medium | None,
    protocol: Protocol,
    **truth: Any,
) -> Item:
    told = "\n".join(f"{letter}. {text}" for letter, text in lettered(options).items())
    bracketed = "\n".join(f"({letter}) {text}" for letter, text in lettered(options).items())
    prompt = protocol.prompt if options else protocol.settings.get("open", "{question}")
    text = prompt.format(question=question, options=told, bracketed=bracketed)
    kept = {"answer": answer, "question": question, "options": list(options), **truth}
    return Item(split, name, "vqa", text, picture, truth=kept)


def read_seed(data: str, protocol: Protocol) -> Iterator[Item]:
    """Questions, in the order of the file.

    Raises:
        UserError: none of the layouts is there.
    """
    place = files.folder(data, SEED_LAYOUTS)
    if table := files.table_in(place, "SEEDBench2_Plus.tsv"):
        for row in files.table_rows(table):
            options = [row.text(letter) for letter in "ABCD"]
            picture, name = row.media.get("image"), row.text("index")
            yield _choice(
                row.text("category"), name, row.text("question"), options, row.text("answer"), picture, protocol
            )
        return
    found = files.found(place, "SEED-Bench-2-plus-text-rich.json")
    if not found:
        raise files.unreadable(data, SEED_LAYOUTS)
    content = files.json_file(found[0])
    root = files.first(place, "text_rich") or found[0].parent
    with files.told(str(found[0]), "a list of questions"):
        lines = list(content["questions"] if isinstance(content, Mapping) else content)
    for number, line in enumerate(lines, start=1):
        with files.told(f"{found[0]}, question {number}", f"{', '.join(_ASKED)} and choice_A to choice_D"):
            options = [str(line[f"choice_{letter}"]) for letter in "ABCD"]
            name, question, answer, file, kind = (str(line[key]) for key in _ASKED)
        yield _choice(kind.lower(), name, question, options, answer, _inside(root, file), protocol)


def _inside(root: Path, name: str) -> Medium:
    """A picture by a path that may name the folder again that it lies in."""
    repeated = name.startswith(f"{root.name}/") and not (root / name).is_file()
    return files.beside(root.parent if repeated else root, name)


def read_mmmu(data: str, protocol: Protocol) -> Iterator[Item]:
    """Questions of the validation split, subject by subject. Of several pictures the first is shown.

    Raises:
        UserError: none of the layouts is there, or options that are no list.
    """
    place = files.folder(data, MMMU_LAYOUTS)
    if table := files.table_in(place, "MMMU_DEV_VAL.tsv"):
        yield from _mmmu_table(table, protocol)
        return
    paths = files.found(place, "validation-*.parquet") if place.is_dir() else [place]
    if not paths:
        raise files.unreadable(data, MMMU_LAYOUTS)
    for row in files.parquet_rows(paths, _PICTURES):
        options, answers = _list(row.text("options"), row.where), _answers(row["answer"])
        shown = [row.media[name] for name in _PICTURES if name in row.media]
        count = row.text("question").count("<image ") + row.text("options").count("<image ")
        yield _choice(
            "validation",
            row.text("id"),
            row.text("question"),
            options,
            answers[0],
            shown[0] if shown else None,
            protocol,
            answers=answers,
            subject=row.text("id").removeprefix("validation_").rpartition("_")[0],
            pictures=count,
        )


def _mmmu_table(path: Path, protocol: Protocol) -> Iterator[Item]:
    """VLMEvalKit makes an open question one of choice: A is the answer, B "Other Answers"."""
    for row in files.table_rows(path):
        if row.cells.get("split", "validation") not in ("validation", "val"):
            continue
        options = [row.cells[letter] for letter in LETTERS if row.cells.get(letter)]
        subject = row.cells.get("category", "")
        name, picture = row.cells.get("id") or row.text("index"), row.media.get("image")
        kept = {"answers": [row.text("answer")], "subject": subject, "pictures": len(row.media)}
        yield _choice("validation", name, row.text("question"), options, row.text("answer"), picture, protocol, **kept)


def _list(text: str, where: str) -> list[str]:
    """Options, which MMMU keeps as the string of a Python list."""
    try:
        found = files.literal(text or "[]")
    except ValueError as error:
        raise UserError(f"{where}: options are no list: {text[:80]!r}") from error
    if not isinstance(found, list):
        raise UserError(f"{where}: options are no list: {text[:80]!r}")
    return [files.written(str(option)) for option in found]


def _answers(told: Any) -> list[str]:
    """The right answers; of open questions there may be several, in the string of a list."""
    text = str(told)
    if text.startswith("[") and text.endswith("]"):
        try:
            found = files.literal(text)
        except ValueError:
            return [text]
        return [files.written(str(answer)) for answer in found] or [text]
    return [text]


def score(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """Percent of the questions answered right; what names no option is wrong, and counted."""
    rule = Letters.named(protocol.reads, "reads")()
    right, unparsed, several, strange = [], 0, 0, 0
    for one in answered:
        truth = one.item.truth
        several += int(truth.get("pictures", 1)) > 1
        strange += bool(truth["options"]) and truth["answer"] not in lettered(truth["options"])
        if not truth["options"]:
            right.append(open_right(one.text, truth.get("answers", [truth["answer"]])))
            continue
        letter = picked(one, protocol) or rule.read(one.text, lettered(truth["options"]))
        unparsed += not letter
        right.append(letter == truth["answer"])
    numbers = {"accuracy": Ratios.of(right, scale=100.0)}
    splits = dict.fromkeys(str(one.item.truth.get("subject") or one.item.split) for one in answered)
    for name in splits if len(splits) > 1 else ():
        of = [str(one.item.truth.get("subject") or one.item.split) == name for one in answered]
        numbers[name] = numbers["accuracy"].where(of)
    notes = {"with several pictures, of which one was shown": several, "whose answer is no option": strange}
    return Scores(numbers, unparsed, {told: count for told, count in notes.items() if count})


def picked(one: Answered, protocol: Protocol) -> str:
    """The letter of the likeliest option, where options were ranked; "" where an answer was generated."""
    bounds: Any = one.answer.get("bounds")
    if not bounds:
        return ""
    mean = protocol.settings.get("likelihood") == "a token"
    costs = [nats / count if mean else nats for nats, count in bounds]
    return LETTERS[costs.index(min(costs))]


def exports(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str | bytes]:
    """MMMU's submission, id -> answer, and VLMEvalKit's table with the options."""
    rule, told = Letters.named(protocol.reads, "reads")(), {}
    most = max([len(one.item.truth["options"]) for one in answered], default=0)
    columns = LETTERS[: max(most, 4)]
    rows = [["index", "category", "question", *columns, "answer", "prediction"]]
    for one in answered:
        truth = one.item.truth
        options = lettered(truth["options"])
        letter = picked(one, protocol) or (rule.read(one.text, options) if options else "")
        told[one.item.name] = letter or one.text
        cells = [one.item.name, str(truth.get("subject") or one.item.split), truth["question"]]
        cells += [*[options.get(column, "") for column in columns], truth["answer"], letter or one.text]
        rows.append([str(cell) for cell in cells])
    return {"answers.json": json.dumps(told, indent=1) + "\n"} | both("vlmevalkit", rows)


_SELECT = "Question: {question}\nOptions:\n{options}\nPlease select the correct answer from the options above. "
_DIRECT = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
_OMNI = (("Omni-Diffusion v1", 34.5, "arXiv 2603.06577v1"), ("Omni-Diffusion (ICML)", 34.7, "ICML 2026 version"))
_KIT = Protocol(
    "VLMEvalKit's prompt and exact matching; that the paper's number is of it is probable", _SELECT, "vlmevalkit"
)

SEED2PLUS = Benchmark(
    "SEED-Bench-2-Plus, text-rich pictures",
    SEED_LAYOUTS,
    "AILab-CVC/SEED-Bench-2-plus on Hugging Face (CC BY-NC 4.0), or VLMEvalKit's SEEDBench2_Plus.tsv",
    {},
    {
        "vlmevalkit": _KIT,
        "lmms_eval": Protocol("LLaVA's prompt, as the released README shows a sample", _DIRECT, "vlmevalkit"),
        "likelihood": Protocol(
            "the benchmark's own protocol: the likeliest option; ours are bounds of masked diffusion",
            "{question}",
            "vlmevalkit",
            draws=32,
            settings={"likelihood": "an answer"},
        ),
    },
    read_seed,
    score,
    exports,
    published=tuple(Published(model, "accuracy", value, source) for model, value, source in _OMNI),
    total=2277,
)

_MMMU = Protocol(
    "MMMU's own prompt and reading, but that what names no option is wrong, where its script guesses",
    "{question}\n\n{bracketed}\n\nAnswer with the option's letter from the given choices directly.",
    "mmmu",
    settings={"open": "{question}\n\nAnswer the question using a single word or phrase."},
)

MMMU = Benchmark(
    "MMMU, validation",
    MMMU_LAYOUTS,
    "MMMU/MMMU on Hugging Face (Apache-2.0; pictures of their own licences), or VLMEvalKit's MMMU_DEV_VAL.tsv",
    {"validation": (900,)},
    {
        "paper": _MMMU,
        "vlmevalkit": dataclasses.replace(_KIT, settings={"open": "{question}"}),
        "likelihood": Protocol(
            "the likeliest option, by bounds of masked diffusion; open questions are generated",
            "{question}",
            "mmmu",
            draws=32,
            settings={"likelihood": "an answer", "open": "{question}"},
        ),
    },
    read_mmmu,
    score,
    exports,
    published=(Published("Omni-Diffusion (ICML)", "accuracy", 31.1, "ICML 2026 version"),),
)
