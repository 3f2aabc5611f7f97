"""A bundle carries finished jobs and saved states to another folder of results, whole or not."""

import io
import json
import tarfile

import pytest

from mobilebert.jobs import locks
from mobilebert.jobs.bundle import read_bundle, write_bundle
from mobilebert.jobs.record import sealed
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

RECORD = {
    "schema": 1,
    "study": "s",
    "status": "ok",
    "fingerprint": "f" * 64,
    "config": {},
    "inputs": {},
    "metrics": {"loss": 2.5},
}


def finished(folder, stage, name, **fields):
    """Write a finished job's record and a model beside it."""
    place = folder / stage / name
    (place / "model").mkdir(parents=True)
    (place / "model/model.safetensors").write_bytes(stage.encode() * 100)
    (place / "result.json").write_text(json.dumps(sealed(RECORD | {"stage": stage, "name": name} | fields)))
    return place


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results/s"
    finished(folder, "pretrain", "teacher")
    finished(folder, "finetune", "student/sst2")
    (folder / "report").mkdir()
    (folder / "report/result.json").write_text(json.dumps(sealed(RECORD | {"stage": "report", "name": ""})))
    (folder / ".cache").mkdir()
    (folder / ".cache/ids.npy").write_bytes(b"0")
    (folder / ".state/distill-student-0123").mkdir(parents=True)
    (folder / ".state/distill-student-0123/step.safetensors").write_bytes(b"1")
    (folder / ".state/distill-student-0123.lock").touch()
    return folder.parent


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_of(path, members, manifest=None):
    """Write a tar file by hand: manifest first, then name -> bytes or TarInfo."""
    with tarfile.open(path, "w") as tar:
        first = {"bundle.json": json.dumps(manifest).encode()} if manifest is not None else {}
        for name, content in (first | members).items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def test_jobs_and_states_arrive_as_they_left(results, tmp_path):
    line = write_bundle(results, "s", tmp_path / "b.tar")
    assert "2 finished records and 1 saved states of s" in line
    assert "3 jobs and saved states imported, 0 were here" in read_bundle(tmp_path / "b.tar", tmp_path / "other")
    kept = {
        name: body for name, body in files(results / "s").items() if name.startswith(("pretrain", "finetune", ".state/distill"))
    }
    assert files(tmp_path / "other/s") == {name: body for name, body in kept.items() if not name.endswith(".lock")} | {
        ".lock": b""
    }


def test_what_is_here_stays(results, tmp_path):
    write_bundle(results, "s", tmp_path / "b.tar")
    mine = finished(tmp_path / "other/s", "pretrain", "teacher", metrics={"loss": 1.5})
    before = files(mine)
    unfinished = tmp_path / "other/s/finetune/student/sst2/model"
    unfinished.mkdir(parents=True)
    (unfinished / "half").touch()
    assert "2 jobs and saved states imported, 1 were here" in read_bundle(tmp_path / "b.tar", tmp_path / "other")
    assert files(mine) == before
    assert not (unfinished / "half").exists()


@pytest.mark.parametrize("cut", [3000, -12_000])
def test_a_truncated_bundle_changes_nothing(results, tmp_path, cut):
    write_bundle(results, "s", tmp_path / "b.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cut\.tar"):
        read_bundle(tmp_path / "cut.tar", tmp_path / "other")
    assert set(files(tmp_path / "other")) <= {"s/.lock"}


def test_a_changed_byte_is_found_before_anything_moves(results, tmp_path):
    write_bundle(results, "s", tmp_path / "b.tar")
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content.replace(b"pretrainpretrain", b"pretrainpretraim", 1))
    with pytest.raises(UserError, match=r"teacher/model/model\.safetensors is damaged"):
        read_bundle(tmp_path / "b.tar", tmp_path / "other")
    assert set(files(tmp_path / "other")) == {"s/.lock"}


@pytest.mark.parametrize("name", ["../out/x", "pretrain/../../x", "/etc/x", "x", "pretrain//x", ".cache/x", "pretrain/./x"])
def test_a_member_outside_the_jobs_is_refused(tmp_path, name):
    bundle = tar_of(tmp_path / "b.tar", {name: b"1"}, {"study": "s", "files": {name: "0" * 64}})
    with pytest.raises(UserError, match="outside the study's jobs"):
        read_bundle(bundle, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_link_is_refused(tmp_path):
    link = tarfile.TarInfo("pretrain/t/result.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    bundle = tar_of(tmp_path / "b.tar", {link.name: link}, {"study": "s", "files": {link.name: "0" * 64}})
    with pytest.raises(UserError, match="not a plain file"):
        read_bundle(bundle, tmp_path / "other")


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"study": "s"},
        {"study": "../s", "files": {}},
        {"study": "", "files": {}},
        {"study": ".s", "files": {}},
        {"study": 1, "files": []},
        {"study": "s\0", "files": {}},
        {"study": "s\n", "files": {}},
        {"study": "\ud800", "files": {}},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, manifest):
    with pytest.raises(UserError, match=r"bundle\.json is damaged"):
        read_bundle(tar_of(tmp_path / "b.tar", {}, manifest), tmp_path / "other")


def test_a_record_in_the_place_of_a_stage_replaces_no_jobs(results, tmp_path):
    record = finished(tmp_path / "made", "pretrain", ".") / "result.json"
    body = record.read_bytes()
    manifest = {"study": "s", "files": {"pretrain/result.json": file_sha256(record)}}
    before = files(results)
    with pytest.raises(UserError, match="holds records of several jobs"):
        read_bundle(tar_of(tmp_path / "b.tar", {"pretrain/result.json": body}, manifest), results)
    assert files(results) == before | {"s/.lock": b""}


@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 4096])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.tar: not a"):
        read_bundle(tmp_path / "b.tar", tmp_path / "other")
    with pytest.raises(UserError, match="cannot be imported"):
        read_bundle(tmp_path / "absent.tar", tmp_path / "other")


def test_nothing_is_bundled_from_an_edited_a_busy_or_an_empty_folder(results, tmp_path):
    record = results / "s/pretrain/teacher/result.json"
    whole = record.read_text()
    record.write_text(whole.replace("2.5", "0.5"))
    with pytest.raises(UserError, match="edited by hand"):
        write_bundle(results, "s", tmp_path / "b.tar")
    record.write_text(whole)
    with locks.lock(results / "s/.lock", "held"), pytest.raises(UserError, match="in use"):
        write_bundle(results, "s", tmp_path / "b.tar")
    (tmp_path / "results/empty").mkdir()
    with pytest.raises(UserError, match="neither a finished record"):
        write_bundle(results, "empty", tmp_path / "b.tar")
    assert not list(tmp_path.glob("*.tar"))


def test_a_bundle_never_replaces_a_file(results, tmp_path):
    (tmp_path / "b.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists; name a new file"):
        write_bundle(results, "s", tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"mine"


def test_the_manifest_holds_the_hash_of_every_file(results, tmp_path):
    write_bundle(results, "s", tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        hashes = json.load(tar.extractfile("bundle.json"))["files"]
        assert set(tar.getnames()) == {"bundle.json", *hashes}
    assert hashes == {name: file_sha256(results / "s" / name) for name in hashes}
