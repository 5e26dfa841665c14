"""A whole run of the any-to-any model as one frozen, typed value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from omnidiff_jax.codecs.tokenizers import Sizes, TokenizersConfig
from omnidiff_jax.config import Count, DecayRate, Natural, Share, build, choose, free, overlaid, suggest, to_dict
from omnidiff_jax.data.config import DataConfig, EncodingConfig, RejectsConfig
from omnidiff_jax.data.mixture import group_names
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.data.readers import Reader, SourceConfig
from omnidiff_jax.diffusion.loss import LossConfig
from omnidiff_jax.diffusion.masking import MaskingConfig
from omnidiff_jax.errors import UserError
from omnidiff_jax.models.adapter import AdapterConfig
from omnidiff_jax.models.backbone import BackboneConfig
from omnidiff_jax.models.omni import OmniConfig
from omnidiff_jax.speech_frames import SpeechLayout
from omnidiff_jax.tasks.registry import TASKS, Decoding
from omnidiff_jax.training.config import OptimizerConfig, TrainingConfig
from omnidiff_jax.training.initial import InitConfig
from omnidiff_jax.training.lora import LoraConfig

PROGRAM = "omni"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What a run learns from, and the shape of its rows.

    Attributes:
        sources: by name; `Stage.weights` or `Stage.epochs` say how much of each.
        length: tokens of a row.
        frames: speech frames of a row.
        samples: most samples in a row.
        open_rows: rows that packing keeps open.
        streams: virtual streams, a multiple of the largest number of hosts ever used.
        max_tail_pads: each sample gets 1 to as many pad tokens appended.
        encoding: how sets are built, by `omnidiff data build` or before training.
        workers: processes that read and encode raw sources; 0 = a thread of the run's own.
        rejects: how much of a source may be unusable.
        remix: whether a run that goes on may weigh its sources otherwise than its checkpoint, or leave some out.
    """

    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    length: Count = 3072
    frames: Natural = 1536
    samples: Count = 96
    open_rows: Count = 24
    streams: Count = 32
    max_tail_pads: Natural = 16
    encoding: EncodingConfig = free(EncodingConfig())
    workers: Natural = free(0)
    rejects: RejectsConfig = free(RejectsConfig())
    remix: bool = free(False)


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    """The loss measured on samples that are not trained on.

    Attributes:
        every: steps between measurements, which are also made before the first and after the last; 0 = none.
        batches: of the run's size, always the same.
        examples: of each source, where they are generated.
        sources: by name, all weighed alike; one named like a task is of that task. {} = the run's own ones that are
            generated, from their test splits.
    """

    every: Natural = 0
    batches: Count = 4
    examples: Count = 32
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """Everything that decides a run of the whole model; `run_config` makes one of a config's mapping.

    Attributes:
        masking: how clean tokens are corrupted, see `MaskingConfig`; so `tail_pad_gamma` and `min_noise`.
        min_noise_of: of some sources or tasks, by name, in place of `min_noise`; a source's goes before its task's.
        loss: what is minimised.
        tokenizers: where they lie.
        model: sizes of the backbone; vocabulary and dtype follow from the tokenizers and `dtype`.
        init: converted or trained weights to start from.
        lora: thin matrices trained beside frozen ones.
        image_factors: bits of each factor of an image code, whose rows of embedding and head add up
            (`training/factors.py`); () = a code is one thing, as released.
        image_bits: share of the variance of an image code's first random rows that its bits make up, so that codes that
            look alike begin alike; 0 = none, as released.
        data: what it learns from.
        held_out: the loss measured beside training.
        decoding: how answers are generated, by task.
        fast: the same with fewer calls of the model, of the tasks where that was measured to lose next to nothing.
    """

    masking: Literal["paper", "released"] = "paper"
    tail_pad_gamma: Share = 0.6
    min_noise: DecayRate = 1e-3
    min_noise_of: Mapping[str, DecayRate] = dataclasses.field(default_factory=dict)
    loss: LossConfig = LossConfig()
    tokenizers: TokenizersConfig = TokenizersConfig()
    model: BackboneConfig = BackboneConfig()
    init: InitConfig = free(InitConfig())
    lora: LoraConfig = LoraConfig()
    image_factors: tuple[Count, ...] = ()
    image_bits: Share = 0.0
    data: DataSettings = DataSettings()
    held_out: HeldOutConfig = free(HeldOutConfig())
    decoding: Mapping[str, Decoding] = free(default_factory=dict)
    fast: Mapping[str, Decoding] = free(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        _ = self.corruption(())
        self.check_names()

    def corruption(self, groups: Sequence[tuple[str, str]]) -> MaskingConfig:
        """Of a training batch.

        Args:
            groups: the (source, task) pairs that its `group_ids` number.
        """
        of = self.min_noise_of
        settings = {
            "mode": self.masking,
            "tail_pad_gamma": self.tail_pad_gamma,
            "min_noise": self.min_noise,
            "min_noise_of_groups": [of.get(source, of.get(task, self.min_noise)) for source, task in groups if of],
        }
        return build(MaskingConfig, settings, "config")

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources that some stage trains on: those named like a task in its order, the others by name."""
        weighed = {name for stage in self.stages.values() for name, weight in stage.named.items() if weight}
        used = {name: source for name, source in self.data.sources.items() if name in weighed or source.task in weighed}
        return {name: used[name] for name in (*(n for n in TASKS if n in used), *sorted(used.keys() - set(TASKS)))}

    def held_out_sources(self, readers: Mapping[str, Reader]) -> dict[str, SourceConfig]:
        """What the held-out loss is measured on; {} where none is.

        Args:
            readers: the table. A source whose reader gives sets is generated; any other has no split to spare that
                would not be its training data.

        Raises:
            UserError: a loss is asked for, and there is nothing to measure it on.
        """
        if not self.held_out.every:
            return {}
        own = {
            name: dataclasses.replace(source, split="test", examples=self.held_out.examples)
            for name, source in self.sources.items()
            if source.reader in readers and readers[source.reader].gives == "sets"
        }
        found = dict(self.held_out.sources) or own
        if not found:
            raise UserError(
                f"config.held_out.every = {self.held_out.every}, but no source of this run is generated; name "
                "config.held_out.sources, or set config.held_out.every=0"
            )
        return found

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """The (source, task) pairs that loss is told apart by: what `Batch.group_ids` number."""
        return group_names({name: source.task for name, source in self.sources.items()})

    def check_names(self) -> None:
        """Raises UserError where a stage or a noise level names what is neither a source nor a task."""
        known = {*self.data.sources, *TASKS}
        for name in self.min_noise_of:
            if name not in known:
                raise UserError(f"config.min_noise_of has {name!r}, no source or task; {suggest(name, known)}")
        if self.min_noise_of and self.masking != "paper":
            raise UserError('config.min_noise_of needs config.masking = "paper", where a sample has one noise level')
        for stage in self.stages.values():
            for name in stage.named:
                if name not in known:
                    raise UserError(f"config.stages weighs {name!r}, no source or task; {suggest(name, known)}")

    @property
    def optimizer_used(self) -> OptimizerConfig:
        """The optimizer; under LoRA the backbone is frozen, whatever `optimizer.frozen` says."""
        if not self.lora.rank:
            return self.optimizer
        return dataclasses.replace(self.optimizer, frozen=(*self.optimizer.frozen, "backbone/*"))

    def omni(self, tokenizers: Sizes) -> OmniConfig:
        """Sizes of the model; the vocabulary's and the speech encoder's follow from the tokenizers."""
        backbone = dataclasses.replace(self.model, vocab_size=tokenizers.vocabulary.size, dtype=self.dtype)
        encoder = tokenizers.speech_encoder
        adapter = AdapterConfig(inputs=encoder.width if encoder else 1, outputs=backbone.width)
        return OmniConfig(backbone, encoder, adapter)

    def packing(self, tokenizers: Sizes) -> PackingConfig:
        """Shape of a row."""
        data, encoder = self.data, tokenizers.speech_encoder
        return PackingConfig(
            length=data.length,
            frames=data.frames,
            samples=data.samples,
            open_rows=data.open_rows,
            speech=encoder.layout if encoder else SpeechLayout(()),
        )

    def loading(self, tokenizers: Sizes) -> DataConfig:
        """Order and shape of batches."""
        return DataConfig(
            seed=self.seed,
            batch_size=self.batch_size,
            streams=self.data.streams,
            max_tail_pads=self.data.max_tail_pads,
            packing=self.packing(tokenizers),
            workers=self.data.workers,
            rejects=self.data.rejects,
            remix=self.data.remix,
        )


def run_config(config: Mapping[str, Any]) -> RunConfig:
    """The typed config of a mapping: a ConfigDict, or what a checkpoint of this or an earlier version holds.

    Raises:
        UserError: a config of another program, an unknown key, or a value that cannot be; the key is named.
    """
    if config.get("program", PROGRAM) != PROGRAM:
        raise UserError(
            f"config.program = {config.get('program')!r}; this needs a config of program {PROGRAM!r}, such as "
            "experiments/configs/nano.py"
        )
    given = {key: config[key] for key in config}
    if "data" in given:
        given["data"] = _with_sources(given["data"], given.get("stages", {}))
    if named := given.get("held_out", {}).get("sources", {}):
        given["held_out"] = dict(given["held_out"]) | {"sources": {name: _source(name, named[name]) for name in named}}
    decoding, fast = given.get("decoding", {}), given.get("fast", {})
    for group, names in (("decoding", decoding), ("fast", fast)):
        for name in names:
            choose(TASKS, name, f"task in config.{group}")
    given["decoding"] = {
        name: _decoding(to_dict(task.decoding), decoding.get(name, {})) for name, task in TASKS.items()
    }
    given["fast"] = {name: overlaid(given["decoding"][name], fast[name]) for name in fast}
    return build(RunConfig, given)


def _decoding(default: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """Settings of a task with those that a config names. A rule of length that names its rate is whole: it is not of
    the default's kind, which may count something else."""
    settings: dict[str, Any] = overlaid(default, given)
    rule = given.get("adaptive") if hasattr(given, "keys") else None  # what else it may be, `build` refuses
    if rule is not None and hasattr(rule, "keys") and "rate" in rule:
        settings["adaptive"] = rule
    return settings


def _source(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A source as its config has it; named like a task, it is of that task."""
    source = {key: given[key] for key in given}
    if not source.get("task") and name in TASKS:
        source["task"] = name
    return source


def _with_sources(data: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """`config.data` with its shorthands written out as sources.

    `set` and `folder` say where every source lies: "encoded" in `folder/NAME`, "jsonl" in `folder/NAME.jsonl`. Where no
    `sources` are named, each task that a stage weighs is one. `examples` are the sizes of Scenes' sources, as configs
    had them before sources had names.
    """
    shared, folder = data.get("set", ""), data.get("folder", "")
    examples = data.get("examples", {})
    named = data.get("sources", {})
    names = list(named) or [
        task
        for task in TASKS
        if any(task in stage.get(key, {}) for stage in stages.values() for key in ("weights", "epochs"))
    ]
    sources = {}
    for name in names:
        source = _source(name, named[name] if named else {})
        if shared:
            source["reader"] = shared
            if folder:
                source["path"] = f"{folder}/{name}{'.jsonl' if shared == 'jsonl' else ''}"
        if name in examples:
            source["examples"] = examples[name]
        sources[name] = source
    rest = {key: data[key] for key in data if key not in ("set", "folder", "examples", "sources")}
    return rest | {"sources": sources}
