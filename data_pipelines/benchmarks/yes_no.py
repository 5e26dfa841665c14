"""POPE and MME: questions about pictures whose answer is yes or no. Spoken MME asks those of MME aloud."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipelines.benchmarks import files
from omnidiff_jax.errors import UserError
from omnidiff_jax.evaluation.benchmark import Answered, Benchmark, Item, Medium, Protocol, Published, Scores
from omnidiff_jax.evaluation.intervals import Ratios
from omnidiff_jax.evaluation.sheets import both
from omnidiff_jax.evaluation.transcripts import one_line
from omnidiff_jax.evaluation.yes_no import OTHER, YES, YesNo, detections, mme_task

POPE_SPLITS = ("random", "popular", "adversarial")
PERCEPTION: Mapping[str, int] = {
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
}
COGNITION: Mapping[str, int] = {
    "commonsense_reasoning": 140,
    "numerical_calculation": 40,
    "text_translation": 40,
    "code_reasoning": 40,
}
_SINGLE = "{question}\nAnswer the question using a single word or phrase."
POPE_LAYOUTS = (
    "a folder with coco_pope_{random,popular,adversarial}.json (JSON lines) and the pictures of COCO val2014 in "
    "val2014/ or beside them, or VLMEvalKit's POPE.tsv"
)
MME_LAYOUTS = (
    "MME_Benchmark_release_version with a folder a task (X.jpg beside X.txt, or images/ and questions_answers_YN/), a "
    "folder with images/TASK/ and eval_tool/Your_Results/TASK.txt, or VLMEvalKit's MME.tsv"
)
_PICTURES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


def read_pope(data: str, protocol: Protocol) -> Iterator[Item]:
    """Questions, split by split in the order of their files.

    Raises:
        UserError: none of the layouts is there.
    """
    place = files.folder(data, POPE_LAYOUTS)
    if table := files.table_in(place, "POPE.tsv"):
        yield from _pope_table(table, protocol)
        return
    there = {split: files.found(place, f"coco_pope_{split}.json") for split in POPE_SPLITS}
    if not any(there.values()):
        raise files.unreadable(data, POPE_LAYOUTS)
    for split, paths in there.items():
        for path in paths[:1]:
            pictures = files.first(place, "val2014", "images/val2014", "coco/val2014") or path.parent
            for number, line in files.json_lines(path):
                with files.told(f"{path}, line {number}", "question_id, text, image and label"):
                    name, question = str(line["question_id"]), str(line["text"])
                    picture, label = str(line["image"]), _label(str(line["label"]), f"{path}, line {number}")
                truth = {"answer": label, "question": question, "file": picture}
                text = protocol.prompt.format(question=question)
                yield Item(split, name, "vqa", text, files.beside(pictures, picture), truth=truth, cluster=picture)


def _pope_table(path: Path, protocol: Protocol) -> Iterator[Item]:
    """VLMEvalKit asks a question once and counts it in each split that it is of; here each is an item."""
    for row in files.table_rows(path):
        question, label = row.text("question"), _label(row.text("answer"), row.where)
        truth = {"answer": label, "question": question, "file": row.cells.get("image_path", row.text("index"))}
        for split in row.text("category").split(","):
            name = row.text("index")
            text = protocol.prompt.format(question=question)
            yield Item(split.strip(), name, "vqa", text, row.medium("image"), truth=truth, cluster=str(truth["file"]))


def _label(word: str, where: str) -> str:
    """Yes or no in small letters; raises UserError where the word is neither."""
    if word.strip().lower() not in ("yes", "no"):
        raise UserError(f"{where}: the right answer must be yes or no, it is {word[:40]!r}; copy the file again")
    return word.strip().lower()


def _said(answered: Sequence[Answered], protocol: Protocol) -> list[str]:
    rule = YesNo.named(protocol.reads, "reads")()
    return [rule.read(one.said(protocol)) for one in answered]


def score_pope(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """In percent: F1, of all questions or as the mean of the splits' F1s, accuracy, precision, recall, share of yes."""
    said = _said(answered, protocol)
    found = detections(said, [one.item.truth["answer"] for one in answered])
    numbers = {name: dataclasses.replace(ratios, weights=100 * ratios.weights) for name, ratios in found.items()}
    splits = {split: [one.item.split == split for one in answered] for split in POPE_SPLITS}
    each = {f"F1 of {split}": numbers["F1"].where(of) for split, of in splits.items() if any(of)}
    mean = {"mean F1 of the splits": Ratios.joined(list(each.values()))}
    whole = {"F1": numbers.pop("F1")}
    heads = mean | whole if protocol.settings["headline"] == "mean F1 of the splits" else whole | mean
    return Scores(heads | numbers | each, sum(word == OTHER for word in said))


def export_pope(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str | bytes]:
    """POPE's answer files, a line a question in the order of its own: {"question", "answer"}; VLMEvalKit's table."""
    lines: dict[str, list[str]] = {}
    for one in answered:
        told = {"question": one.item.truth["question"], "answer": one_line(one.said(protocol))}
        lines.setdefault(f"coco_pope_{one.item.split}_answers.json", []).append(json.dumps(told) + "\n")
    return {name: "".join(told) for name, told in lines.items()} | vlmevalkit(answered, protocol)


def vlmevalkit(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str | bytes]:
    """Predictions as VLMEvalKit has them, by `PRED_FORMAT=tsv` or as a sheet."""
    rows = [["index", "category", "question", "answer", "prediction"]]
    for one in answered:
        truth = one.item.truth
        cells = (one.item.name, one.item.split, truth.get("question", ""), truth["answer"], one.said(protocol))
        rows.append([str(cell) for cell in cells])
    return both("vlmevalkit", rows)


def read_mme(data: str, protocol: Protocol) -> Iterator[Item]:
    """Questions, task by task, those about one picture together; called FILE and a number from 1.

    Raises:
        UserError: none of the layouts is there, or a file of questions is damaged.
    """
    asked: collections.Counter[str] = collections.Counter()
    for item in _mme_questions(data, protocol):
        asked[item.cluster] += 1
        yield dataclasses.replace(item, name=f"{item.truth['file']} {asked[item.cluster]}")


def _mme_questions(data: str, protocol: Protocol) -> Iterator[Item]:
    place = files.folder(data, MME_LAYOUTS)
    if table := files.table_in(place, "MME.tsv"):
        for row in files.table_rows(table):
            file, picture = row.text("image_path"), row.medium("image")
            label = _label(row.text("answer"), row.where)
            yield _question(row.text("category"), file, row.text("question"), label, picture, protocol)
        return
    results = files.first(place, "eval_tool/Your_Results", "Your_Results")
    nested = files.first(
        place, "MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark"
    )
    root, read = nested or place, False
    for task in (*PERCEPTION, *COGNITION):
        if (root / task).is_dir():
            read = True
            yield from _mme_folder(root / task, task, protocol)
        elif results and (results / f"{task}.txt").is_file():
            read = True
            yield from _mme_results(results / f"{task}.txt", place / "images" / task, task, protocol)
    if not read:
        raise files.unreadable(data, MME_LAYOUTS)


def _question(task: str, file: str, question: str, answer: str, picture: Medium, protocol: Protocol) -> Item:
    truth = {"answer": answer.strip().lower(), "question": question, "file": Path(file).name}
    text, cluster = protocol.prompt.format(question=question), f"{task}/{Path(file).name}"
    return Item(task, "", "vqa", text, picture, truth=truth, cluster=cluster)


def _mme_folder(folder: Path, task: str, protocol: Protocol) -> Iterator[Item]:
    split = (folder / "questions_answers_YN").is_dir()
    texts, pictures = (folder / "questions_answers_YN", folder / "images") if split else (folder, folder)
    for path in sorted(texts.glob("*.txt")):
        named = [pictures / f"{path.stem}{ending}" for ending in _PICTURES]
        picture = next((file for file in named if file.is_file()), named[0])
        for number, line in files.text_lines(path):
            question, answer = _cells(line, 2, f"{path}, line {number}")
            yield _question(task, picture.name, question, answer, files.FileMedium(str(picture)), protocol)


def _mme_results(path: Path, pictures: Path, task: str, protocol: Protocol) -> Iterator[Item]:
    for number, line in files.text_lines(path):
        file, question, answer = _cells(line, 3, f"{path}, line {number}")
        yield _question(task, file, question, answer, files.beside(pictures, file), protocol)


def _cells(line: str, least: int, where: str) -> list[str]:
    cells = line.split("\t")
    if len(cells) < least or cells[least - 1].strip().lower() not in ("yes", "no"):
        raise UserError(f"{where}: must be {'FILE, ' * (least - 2)}QUESTION and Yes or No, with tabs between")
    return cells[:least]


def score_mme(answered: Sequence[Answered], protocol: Protocol) -> Scores:
    """The sum of the perception tasks' scores, up to 2,000, that of cognition, and each task's, up to 200."""
    said = _said(answered, protocol)
    right = [word == one.item.truth["answer"] for word, one in zip(said, answered, strict=True)]
    pictures = [one.item.cluster for one in answered]
    tasks = {
        task: mme_task(right, pictures, of)
        for task in (*PERCEPTION, *COGNITION)
        if any(of := [one.item.split == task for one in answered])
    }
    sums = {}
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        parts = [tasks[task] for task in members if task in tasks]
        if parts:
            sums[name] = Ratios.joined(parts, [1.0] * len(parts))
    share = {"yes ratio": Ratios.of([word == YES for word in said])}
    return Scores(sums | tasks | share, sum(word == OTHER for word in said))


def export_mme(answered: Sequence[Answered], protocol: Protocol) -> dict[str, str | bytes]:
    """A file a task of four columns, as `calculation.py` reads them; VLMEvalKit's table."""
    lines: dict[str, list[str]] = {}
    for one in answered:
        truth = one.item.truth
        said = one.said(protocol)
        cells = (truth["file"], truth["question"], str(truth["answer"]).capitalize(), said)
        lines.setdefault(f"mme/{one.item.split}.txt", []).append("\t".join(map(one_line, cells)) + "\n")
    return {name: "".join(told) for name, told in lines.items()} | vlmevalkit(answered, protocol)


def read_spoken(data: str, protocol: Protocol) -> Iterator[Item]:
    """MME's questions as recordings: `spoken.tsv` in the folder of MME, TASK, FILE, LINE (from 1) and a wav's path.

    Raises:
        UserError: no manifest, a line that is no such row, or one that names no question.
    """
    place = files.folder(data, MME_LAYOUTS)
    manifest = place / "spoken.tsv"
    if not manifest.is_file():
        raise UserError(
            f"{manifest} is missing: the spoken questions are not published; make a table TASK, FILE, LINE, WAV"
        )
    wavs: dict[tuple[str, str, int], str] = {}
    for number, line in files.text_lines(manifest):
        with files.told(f"{manifest}, line {number}", "TASK, FILE, LINE (from 1) and WAV, with tabs between"):
            task, file, asked, wav = line.split("\t")
            wavs[task, file, int(asked)] = wav
    for item in read_mme(data, protocol):
        said = wavs.pop((item.split, str(item.truth["file"]), int(item.name.rpartition(" ")[2])), "")
        if said:
            yield dataclasses.replace(item, task="spoken_vqa", text="", audio=files.beside(place, said))
    if wavs:
        raise UserError(
            f"{manifest}: {len(wavs)} lines name no question, such as {', '.join(map(str, next(iter(wavs))))}"
        )


_POPE = Protocol(
    "POPE's own question and reading; headline as LLaVA's table has it. Which was used is not said; the paper's 76.6 "
    "is probably an F1",
    reads="pope",
    settings={"headline": "mean F1 of the splits"},
)
_POPE_SOURCE = (
    "github.com/AoiDragon/POPE (output/coco; MIT) and COCO val2014 (cocodataset.org; annotations CC BY 4.0, pictures "
    "under Flickr's terms)"
)
_OMNI = ("Omni-Diffusion v1", "Omni-Diffusion (ICML)")
_FROM = ("arXiv 2603.06577v1", "ICML 2026 version")

POPE = Benchmark(
    "POPE on COCO, hallucinated objects",
    POPE_LAYOUTS,
    _POPE_SOURCE,
    {"random": (3000, 2910), "popular": (3000,), "adversarial": (3000,)},
    {
        "paper": _POPE,
        "lmms_eval": dataclasses.replace(_POPE, note="LLaVA's and lmms-eval's prompt", prompt=_SINGLE),
        "vlmevalkit": dataclasses.replace(
            _POPE, note="VLMEvalKit: neither or both words is Unknown", reads="vlmevalkit", settings={"headline": "F1"}
        ),
    },
    read_pope,
    score_pope,
    export_pope,
    published=tuple(
        Published(model, "mean F1 of the splits", value, source)
        for model, value, source in zip(_OMNI, (76.6, 76.4), _FROM, strict=True)
    ),
)

_MME = Protocol("tools/evaluate_imageqa_mme.py of the released code with MME's own calculation.py", reads="mme")

MME = Benchmark(
    "MME, perception and cognition",
    MME_LAYOUTS,
    "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (by request; research only), or VLMEvalKit's MME.tsv",
    {task: (count,) for task, count in {**PERCEPTION, **COGNITION}.items()},
    {
        "released": _MME,
        "vlmevalkit": dataclasses.replace(_MME, note="VLMEvalKit: yes or no as words anywhere", reads="vlmevalkit"),
    },
    read_mme,
    score_mme,
    export_mme,
    published=(
        *(
            Published(model, "perception", value, source)
            for model, value, source in zip(_OMNI, (1216.7, 1176.1), _FROM, strict=True)
        ),
        Published("Dynin-Omni", "perception", 1733.6, "arXiv 2604.00007, its claim"),
    ),
)

_SPOKEN = Protocol(
    "the spoken questions and the rule for spoken answers are not published; this reads the text of the answer",
    reads="mme_spoken",
)

MME_SPOKEN = Benchmark(
    "MME with spoken questions",
    f"{MME_LAYOUTS}; and spoken.tsv: TASK, FILE, LINE, WAV",
    f"{MME.source}; the recordings are your own",
    MME.counts,
    {
        "text_answer": _SPOKEN,
        "speech_answer": dataclasses.replace(
            _SPOKEN, note="as text_answer, of what a judge hears in the speech of the answer", judge="speech"
        ),
    },
    read_spoken,
    score_mme,
    export_mme,
    published=(
        Published("Omni-Diffusion (ICML), to text", "perception", 997.1, "ICML 2026 version"),
        Published("Omni-Diffusion (ICML), to speech", "perception", 967.1, "ICML 2026 version"),
    ),
)
