"""A set that is built shard by shard: what it is made from, which shards are there, and how they become one set.

A folder of a set has `plan.json`, written first: what is encoded, and which records each shard holds. A shard is there
once `shard-NUMBER.json` is, which sums up its examples and is written after them; the set is, once `manifest.json` is.
Every file is written beside, flushed, and renamed or uploaded whole: a kill at any moment loses the shards under way.
Whoever builds a shard again, anywhere, writes the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omnidiff_jax.data.sources import RandomAccess
from omnidiff_jax.data.storage import MANIFEST, Manifest, Shard, file_name, merged
from omnidiff_jax.errors import UserError
from omnidiff_jax.locks import Lock
from omnidiff_jax.places import Place, scratch, tidy
from omnidiff_jax.records import Medium, Record, RejectedRecord, stable_id

PLAN = "plan.json"
# How many hosts build the set, while it is not whole.
HOSTS = "hosts.json"
VERSION = 1
# What may change of an origin while the set stays the same one, or grows: where it lies, and how much there is.
_PASSING = ("path", "world", "records")
_AT_ONCE = 16
_TOLD = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a set is made from, and how it is cut.

    Attributes:
        origin: of its records, for people and to tell one source from another.
        identity: of their content; another one where the source has grown.
        tokenizers: their fingerprint.
        encoding: as in a `Manifest`.
        ends: of the shards; shard k holds records ends[k - 1] (0) up to ends[k].
    """

    origin: Mapping[str, Any]
    identity: str
    tokenizers: str
    encoding: Mapping[str, Any]
    ends: tuple[int, ...] = ()

    @property
    def records(self) -> int:
        return self.ends[-1] if self.ends else 0

    def span(self, number: int) -> range:
        """Records of a shard."""
        return range(self.ends[number - 1] if number else 0, self.ends[number])

    def up_to(self, records: int, size: int) -> Plan:
        """The plan with further shards, of `size` records but the last one, for those that are new."""
        ends = (*range(self.records + size, records, size), records) if records > self.records else ()
        return dataclasses.replace(self, ends=(*self.ends, *ends))

    def dump(self) -> bytes:
        return (json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes, where: str) -> Plan:
        try:
            told = json.loads(content)
            version = told.pop("version")
            plan = cls(**told | {"ends": tuple(map(int, told["ends"]))})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}/{PLAN} is not the plan of a data set; remove {where} and build it again"
            ) from error
        if version != VERSION:
            raise UserError(f"{where}/{PLAN} is of version {version}, this code reads {VERSION}; remove {where}")
        return plan


class Shards:
    """The shards of one set, in a folder or bucket.

    Attributes:
        name: of the set.
        where: it lies, for messages.
        plan: of the set.
    """

    def __init__(self, name: str, where: str, place: Place, plan: Plan):
        self.name, self.where, self.place, self.plan = name, where, place, plan

    @classmethod
    def found(cls, name: str, where: str, place: Place) -> Shards | None:
        """Those that are begun there; None where nothing is.

        Raises:
            UserError: something else lies there.
        """
        content = place.read(PLAN)
        return None if content is None else cls(name, where, place, Plan.parse(content, where))

    @classmethod
    def begun(
        cls, name: str, where: str, place: Place, wanted: Plan, records: RandomAccess[Record], size: int
    ) -> Shards:
        """Those of a source, begun now or before; where it has grown since, there are more of them.

        Args:
            name, where, place: of the set.
            wanted: the plan, without shards.
            records: of the source.
            size: records of a shard that is new.

        Raises:
            UserError: they were begun from something else, by other tokenizers, the source has shrunk or changed, or
                something else lies there.
        """
        with _told(where):
            shards = cls.found(name, where, place)
            if shards is None:
                if (others := sorted(place.list())) and cls.found(name, where, place) is None:
                    raise UserError(
                        f"{where} exists already and is no set (it holds {others[0]}); remove it, or name another"
                    )
                place.create(PLAN, wanted.up_to(len(records), size).dump())
                shards = cls.found(name, where, place)
                assert shards is not None
            shards._check(wanted, records)
            if len(records) > shards.plan.records:
                grown = dataclasses.replace(wanted, ends=shards.plan.ends)
                shards.plan = grown.up_to(len(records), size)
                shards._put(PLAN, shards.plan.dump())
            return shards

    def _check(self, wanted: Plan, records: RandomAccess[Record]) -> None:
        plan, where = self.plan, self.where
        if plan.tokenizers != wanted.tokenizers:
            raise UserError(
                f"{where} was begun with other tokenizers ({plan.tokenizers}, these are {wanted.tokenizers}); go on "
                "with those, or remove it, or name another folder"
            )
        old, new = ({**side.origin, **side.encoding} for side in (plan, wanted))
        for key in sorted((old.keys() | new.keys()) - set(_PASSING)):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{where} was begun with {key} = {old.get(key)!r}, now it is {new.get(key)!r}; put that back, or "
                    "remove the folder, or name another"
                )
        if len(records) < plan.records:
            raise UserError(
                f"{where} was begun with {plan.records} records, its source has {len(records)} now: it shrank; put "
                "them back, or remove the folder, or name another"
            )
        if plan.identity != wanted.identity:
            if len(records) == plan.records:
                raise UserError(
                    f"{where} was begun with other records: their number is the same, their content is not; put them "
                    "back, or remove the folder, or name another"
                )
            for number, told in self._summaries().items():
                span = plan.span(number)
                if told["marks"] != [mark(read(records, k)) for k in (span[0], span[-1])]:
                    raise UserError(
                        f"{where}: among records {span.start + 1} to {span.stop} some are others than when they were "
                        "encoded; new records must come after the old ones: put those back, or name another folder"
                    )

    # ---- who builds ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, host: int, hosts: int) -> Iterator[None]:
        """Keeps others from building the same shards.

        Args:
            host, hosts: this is host number `host` of so many, which each build some.

        Raises:
            UserError: another process is this host, or the set was begun by another number of hosts.
        """
        with contextlib.ExitStack() as locks:
            with _told(self.where):
                self._join(hosts)
                locks.enter_context(self._lock(host, hosts))
            yield

    def _join(self, hosts: int) -> None:
        """Says how many hosts there are, or finds it said; one alone may take over from others, and others from it."""
        before = self._hosts()
        if before and before != hosts:
            if 1 not in (hosts, before):
                raise UserError(
                    f"{self.where} was begun by {before} hosts, this is one of {hosts}: give --shard=0/{before} to "
                    f"--shard={before - 1}/{before}, or finish it with --workers on one host"
                )
            with contextlib.ExitStack() as locks:
                for number in range(before):
                    locks.enter_context(self._lock(number, before))
                self.place.write(HOSTS, _hosts(hosts))
        elif not before and not self.place.create(HOSTS, _hosts(hosts)) and self._hosts() != hosts:
            raise UserError(f"{self.where} is begun by {self._hosts()} hosts, this is one of {hosts}; start them alike")

    def of_host(self, host: int, hosts: int) -> list[int]:
        """The shards of one of several hosts. The first ones of sets are not all the first host's."""
        return [k for k in range(len(self.plan.ends)) if (k + stable_id(self.name)) % hosts == host]

    def _hosts(self) -> int:
        content = self.place.read(HOSTS)
        try:
            return int(json.loads(content)["hosts"]) if content else 0
        except (ValueError, KeyError, TypeError):
            return 0

    @contextlib.contextmanager
    def _lock(self, host: int, hosts: int) -> Iterator[None]:
        what = self.where if hosts == 1 else f"{self.where}, shard {host}/{hosts},"
        otherwise = "name another folder" if hosts == 1 else "give another --shard"
        lock = Lock(self.place, f"host-{host}-of-{hosts}.lock", what, "builds", otherwise)
        lock.take()
        try:
            yield
        finally:
            lock.release()

    # ---- shards ----------------------------------------------------------------------------------------------------

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        names = self.place.list()
        return [k for k in range(len(self.plan.ends)) if _summary(k) not in names]

    @contextlib.contextmanager
    def written(self, number: int) -> Iterator[Path]:
        """A folder of this host for the file of a shard that is then committed."""
        with contextlib.ExitStack() as made:
            with _told(self.where):
                folder = made.enter_context(scratch(self.place, f"shard-{number:05d}"))
            yield folder

    def commit(self, number: int, folder: Path, shard: Shard, marks: Sequence[int]) -> None:
        """Makes a shard a part of the set.

        Args:
            number: of it.
            folder: that `written` gave, with the file of its examples, if it has any.
            shard: what is in it.
            marks: `mark` of its first record and its last one.
        """
        with _told(self.where):
            if shard.examples:
                self.place.put(folder / file_name(number), file_name(number))
            told = {"marks": list(marks), **dataclasses.asdict(shard)}
            self._put(_summary(number), (json.dumps(told) + "\n").encode(), folder)

    def _summaries(self) -> dict[int, dict[str, Any]]:
        """What is told of the shards that are there, by number."""
        names = self.place.list()
        there = [k for k in range(len(self.plan.ends)) if _summary(k) in names]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            contents = list(pool.map(lambda k: self.place.read(_summary(k)), there))
        try:
            return {k: json.loads(content or b"") for k, content in zip(there, contents, strict=True)}
        except ValueError as error:
            raise UserError(
                f"{self.where}: a shard's summary is damaged ({error}); remove it, it is built again"
            ) from error

    # ---- the set ---------------------------------------------------------------------------------------------------

    def finish(self) -> Manifest:
        """Makes the set whole; done again, and by several at once, it writes the same.

        Raises:
            UserError: shards are missing, or every record was left out: such a set would only stand in the way of the
                mended one, so nothing of it is left.
        """
        with _told(self.where):
            if missing := self.missing():
                raise UserError(f"{self.where} is not whole: {self.lacking(missing)}")
            told, sizes = self._summaries(), self.place.list()
            parts = [Shard(**{key: value for key, value in told[k].items() if key != "marks"}) for k in sorted(told)]
            for number, part in enumerate(parts):
                if sizes.get(file_name(number), 0) != part.size:
                    raise UserError(
                        f"{self.where}/{file_name(number)} has {sizes.get(file_name(number), 0)} bytes, {part.size} "
                        f"were written; remove {_summary(number)} beside it, and build again"
                    )
            manifest = merged(parts, self.plan.tokenizers, self.plan.origin, self.plan.encoding)
            if manifest.rejected and not manifest.examples:
                self.place.delete(MANIFEST, *self.place.list())
                tidy(self.place)
                worst = sorted(manifest.rejected.items(), key=lambda item: -item[1])[:3]
                reasons = ", ".join(f"{reason} ({count})" for reason, count in worst)
                raise UserError(
                    f"none of {sum(manifest.rejected.values())} records can be used: {reasons}; `omnidiff data check` "
                    "shows one of each"
                )
            # The manifest comes last: who sees it may take the folder as it is.
            self.place.delete(*(name for name in sizes if name == HOSTS or name.endswith(".lock")))
            tidy(self.place)
            if self.place.read(MANIFEST) != manifest.dump():
                self._put(MANIFEST, manifest.dump())
            return manifest

    def lacking(self, missing: Sequence[int]) -> str:
        """Which shards are missing, and whose they are."""
        hosts = self._hosts()
        shown = ", ".join(map(str, missing[:_TOLD])) + (", …" if len(missing) > _TOLD else "")
        told = f"shards {shown} of {len(self.plan.ends)} are missing (the first is 0)"
        if hosts < 2:
            return f"{told}; build it again with --workers, and what is there stays"
        whose = [h for h in range(hosts) if set(self.of_host(h, hosts)) & set(missing)]
        return f"{told}; start " + ", ".join(f"--shard={h}/{hosts}" for h in whose) + " again"

    def _put(self, name: str, content: bytes, folder: Path | None = None) -> None:
        """Writes a file that outlives a loss of power."""
        if folder is None:
            with scratch(self.place, name) as made:
                self._put(name, content, made)
            return
        (folder / name).write_bytes(content)
        self.place.put(folder / name, name)


def read(records: RandomAccess[Record], index: int) -> Record | RejectedRecord:
    """A record, or why it cannot be used."""
    try:
        return records[index]
    except RejectedRecord as error:
        return error


def mark(record: Record | RejectedRecord) -> int:
    """Tells a record from another, wherever its source lies; its id may follow from all that the source holds."""
    if isinstance(record, RejectedRecord):
        return stable_id("rejected", record.reason)
    names = [medium.name if isinstance(medium, Medium) else medium for medium in (*record.images, *record.audios)]
    told = [name.rpartition("/")[2] if isinstance(name, str) else "" for name in names]
    return stable_id(record.task, record.messages, told)


def _summary(number: int) -> str:
    return f"shard-{number:05d}.json"


def _hosts(number: int) -> bytes:
    return (json.dumps({"hosts": number}) + "\n").encode()


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Disks say in a `UserError` what is wrong, as buckets do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {where}: {error.strerror or error}; free space or name another folder"
        ) from error
