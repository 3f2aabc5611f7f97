"""Phones through adb: a dialogue written by hand, and the real client with no phone attached.

No phone took part. The lines of the client and of LiteRT's benchmark program are theirs; every
number in the dialogue is made up.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mobilebert.cli.main import main
from mobilebert.deployment import phone_latency
from mobilebert.deployment.devices import HOME, Adb, Phone, abi_of, serials
from mobilebert.util.errors import UserError

ARM64 = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00" + bytes(44)
NEW_LOG = """INFO: STARTING!
INFO: Loaded model /data/local/tmp/mobilebert-0/model-0.tflite
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=5 first=90000 curr=80000 min=79000 max=90000 avg=82000 std=4000 p5=79000 median=80000 p95=90000

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=70000 curr=60000 min=59000 max=1.2e+06 avg=61000 std=3000 p5=59500 median=60500 p95=66000

INFO: Inference timings in us: Init: 20000, First inference: 90000, Warmup (avg): 82000, Inference (avg): 61000
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory
INFO: Memory footprint delta from the start of the tool (MB): init=30.5 overall=120.25
"""
OLD_LOG = """STARTING!
count=2 first=339304 curr=266325 min=266325 max=339304 avg=302814 std=36489
count=50 first=3e+06 curr=266931 min=265837 max=268116 avg=2.66e+06 std=419
Inference timings in us: Init: 20283, First inference: 339304, Warmup (avg): 302814, Inference (avg): 2.66e+06
"""
INPUTS = [("input_ids", [1, 128]), ("token_type_ids", [1, 128]), ("attention_mask", [1, 128])]


class Dialogue:
    """A client that answers as written, for phones that are ready, and notes what it was asked."""

    def __init__(self, devices="A1\tdevice\n", log=NEW_LOG, abis="arm64-v8a,armeabi-v7a", fails="", code="0\n"):
        self.devices, self.log, self.abis, self.fails, self.code = devices, log, abis, fails, code
        self.asked, self.waits = [], []  # what was asked, and how long the answer may take

    def __call__(self, words, seconds):
        assert words[0] == "adb"
        assert all(isinstance(word, str) for word in words)
        self.asked.append(words[1:])
        self.waits.append(seconds)
        line = " ".join(words[1:])
        if self.fails and self.fails in line:
            return subprocess.CompletedProcess(words, 1, "", "adb: error: device 'A1' not found\n")
        if words[1] == "devices":
            return self.answer(words, f"* daemon started successfully\nList of devices attached\n{self.devices}\n")
        if line.endswith("echo $?"):
            return self.answer(words, self.code)
        if words[3] == "pull":
            Path(words[5]).write_text(self.log)
        known = {"getprop ro.product.model": "Pixel 4\n", "getprop ro.build.version.release": "13\n"}
        return self.answer(words, {**known, "getprop ro.product.cpu.abilist": f"{self.abis}\n"}.get(words[-1], ""))

    @staticmethod
    def answer(words, text):
        return subprocess.CompletedProcess(words, 0, text, "")

    def shell(self, serial):
        return [words[3] for words in self.asked if words[:3] == ["-s", serial, "shell"]]


@pytest.fixture
def binary(tmp_path):
    path = tmp_path / "benchmark_model"
    path.write_bytes(ARM64)
    return path


@pytest.fixture
def model(tmp_path, monkeypatch):
    path = tmp_path / "my model; reboot.tflite"  # a name that a shell must never read
    path.write_bytes(b"")
    monkeypatch.setattr(phone_latency, "inputs_of", lambda _: INPUTS)
    return path


def test_a_model_is_pushed_run_with_each_number_of_threads_read_and_removed(model, binary):
    dialogue = Dialogue()
    found = phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    (phone,) = found["phones"]
    assert (phone["serial"], phone["model"], phone["android"]) == ("A1", "Pixel 4", "13")
    times = phone["models"][str(model)]
    assert list(times) == ["1", "2", "4"]
    assert times["4"] == {
        "runs": 50, "p50": 60.5, "p95": 66.0, "mean": 61.0, "min": 59.0, "max": 1200.0, "std": 3.0,
        "cold_start_ms": 110.0, "memory_mb": 120.25,
    }  # fmt: skip
    shell = dialogue.shell("A1")
    runs = [line for line in shell if "--graph=" in line]
    assert [line.split("--num_threads=")[1].split()[0] for line in runs] == ["1", "2", "4"]
    assert all("--input_layer=input_ids,token_type_ids,attention_mask" in line for line in runs)
    assert all("input_ids,0,99:token_type_ids,0,0:attention_mask,1,1" in line for line in runs)
    folder = shell[-1].removeprefix("rm -rf ")
    assert folder.startswith(f"{HOME}/mobilebert-")
    assert f"mkdir {folder}" in shell
    assert not any("reboot" in line for line in shell)
    assert ["-s", "A1", "push", str(model), f"{folder}/model-0.tflite"] in dialogue.asked
    text = phone_latency.table(found)
    assert "Pixel 4 (A1)" in text
    assert len(text.splitlines()) == 4


def test_phones_are_chosen_by_serial(model, binary):
    dialogue = Dialogue(devices="A1\tdevice\n10.0.0.2:5555\tdevice\nB\tunauthorized\n")
    found = phone_latency.measure([model], ["10.0.0.2:5555", "A1"], binary, 50, Adb(dialogue))
    assert [phone["serial"] for phone in found["phones"]] == ["10.0.0.2:5555", "A1"]
    assert all(dialogue.shell(serial)[-1].startswith("rm -rf /data/local/tmp/mobilebert-") for serial in ("A1", "10.0.0.2:5555"))


@pytest.mark.parametrize(
    ("devices", "serial", "problem"),
    [
        ("", None, r"^android: no phone is attached; enable USB debugging"),
        ("", "A1", r"^android:A1: no phone is attached"),
        ("B2\tdevice\n", "A1", r"^android:A1: attached: B2$"),
        ("A1\tunauthorized\n", None, r"^android:A1: unauthorized; unlock it and allow USB debugging"),
        ("A1\toffline\n", "A1", r"^android:A1: offline; plug it in again"),
        ("A1\tno permissions (missing udev rules?); see [http://x]\n", None, r"^android:A1: no permissions; this user may not"),
        ("A1\trecovery\n", None, r"^android:A1: recovery; wait until"),
        ("A1\tdevice\nB2\tdevice\n", None, r"^android: 2 phones; name one as android:SERIAL \(attached: A1, B2\)$"),
    ],
)
def test_a_phone_that_is_absent_or_not_ready_is_one_line(devices, serial, problem, model, binary):
    dialogue = Dialogue(devices)
    with pytest.raises(UserError, match=problem):
        phone_latency.measure([model], [serial], binary, 50, Adb(dialogue))
    assert dialogue.asked == [["devices"]]


def test_a_program_for_another_processor_is_refused_before_anything_is_copied(model, binary):
    dialogue = Dialogue(abis="armeabi-v7a")
    with pytest.raises(UserError, match=r"is built for arm64-v8a; android:A1 runs armeabi-v7a$"):
        phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    assert not any("push" in words or "mkdir" in words[-1] for words in dialogue.asked)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), (b"#!/bin/sh\n", "is no program for Android"), (b"\x7fELF", "is no program")],
)
def test_a_binary_that_is_missing_or_no_program_is_one_line(content, problem, tmp_path):
    path = tmp_path / "benchmark_model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{problem}.*--benchmark-binary names"):
        abi_of(path)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("", "it printed nothing"),
        ("STARTING!\nERROR: Failed to load model\n", "ERROR: Failed to load model"),
        (NEW_LOG.partition("INFO: Inference timings")[0], "p95=66000"),
    ],
)
def test_output_without_a_result_is_one_line_and_the_phone_is_cleaned(log, says, model, binary):
    dialogue = Dialogue(log=log)
    with pytest.raises(UserError, match=f"the benchmark printed no result .*{says}"):
        phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    assert dialogue.shell("A1")[-1].startswith("rm -rf ")


@pytest.mark.parametrize(
    ("code", "log", "says"),
    [
        ("1\n", "STARTING!\nERROR: Failed to load model\n", "ended with exit code 1 (ERROR: Failed to load model)"),
        ("139\r\n", "", "ended with exit code 139 (it printed nothing)"),
        ("1\n", NEW_LOG + "ERROR: out of memory\x1b[0m\n", "ended with exit code 1 (ERROR: out of memory [0m)"),
        ("124\n", "STARTING!\n", f"did not end within {phone_latency.ENDED_S} seconds (STARTING!)"),
    ],
)
def test_a_benchmark_that_fails_says_its_last_line_and_the_phone_is_cleaned(code, log, says, model, binary):
    dialogue = Dialogue(log=log, code=code)
    with pytest.raises(UserError) as caught:
        phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    assert str(caught.value) == f"android:A1: {model}: the benchmark {says}"
    assert dialogue.shell("A1")[-1].startswith("rm -rf ")


def test_a_benchmark_that_the_phone_cannot_start_is_called_by_its_name(model, binary):
    for answers, says in (
        ({"fails": "--graph="}, "failed (adb: error"),
        ({"code": "no shell"}, "the phone gave no exit code (no"),
    ):
        with pytest.raises(UserError) as caught:
            phone_latency.measure([model], [None], binary, 50, Adb(Dialogue(**answers)))
        assert str(caught.value).startswith(f"android:A1: benchmark_model: {says}")


def test_the_phone_ends_the_program_before_the_computer_leaves(model, binary):
    dialogue = Dialogue()
    phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    runs = [(words[-1].split(), wait) for words, wait in zip(dialogue.asked, dialogue.waits) if "--graph=" in words[-1]]
    assert len(runs) == 3
    for words, wait in runs:
        assert words[0] == "timeout"
        assert phone_latency.LONGEST_S < int(words[1]) < wait


def test_a_phone_that_is_unplugged_is_named_by_the_first_failure(model, binary):
    dialogue = Dialogue(fails="model-0.tflite")
    with pytest.raises(UserError, match=r"^adb -s A1 push .*: failed \(adb: error: device 'A1' not found\)$"):
        phone_latency.measure([model], [None], binary, 50, Adb(dialogue))
    assert dialogue.shell("A1")[-1].startswith("rm -rf ")


def test_an_old_benchmark_program_has_no_median():
    found = phone_latency.parse(OLD_LOG, 0, "x")
    assert found["cold_start_ms"] == pytest.approx(359.587)  # Init and the first inference
    assert (found["runs"], found["p50"], found["mean"], found["min"], found["memory_mb"]) == (50, None, 2660.0, 265.837, None)


def test_a_client_that_hangs_or_cannot_start_is_one_line():
    def hangs(words, seconds):
        raise subprocess.TimeoutExpired(words, seconds)

    def missing(words, seconds):
        raise FileNotFoundError(2, "No such file or directory")

    for program, problem in ((hangs, "adb devices: no answer within 60 seconds"), (missing, "adb devices: cannot be run")):
        with pytest.raises(UserError, match=problem):
            Adb(program).states()


def test_no_word_reaches_the_phones_shell_that_it_could_read():
    for word in ("a;reboot", "$(id)", "a\nb", "'", "a|b", "`id`", "a>b", "*", "\\"):
        with pytest.raises(UserError, match="a sign that a shell could read"):
            Phone(Adb(Dialogue()), "A1").run(f"{HOME}/x", [word], "log", 1)


@pytest.mark.parametrize(
    ("devices", "found"),
    [([], []), (["local"], []), (["android"], [None]), (["android:A1", "android:10.0.0.2:5555"], ["A1", "10.0.0.2:5555"])],
)
def test_devices_are_read_from_their_names(devices, found):
    assert serials(devices) == found


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        (["iphone"], "device: 'iphone' is unknown; allowed: local, android, android:SERIAL"),
        (["android:"], "device: 'android:' is unknown"),
        (["android:a b"], "is unknown"),
        (["local", "android"], "local and a phone"),
        (["android", "android:A1"], "without its serial beside another"),
        (["android:A1", "android:A1"], "given twice"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices, problem):
    with pytest.raises(UserError, match=problem):
        serials(devices)


def test_the_program_refuses_what_a_phone_does_not_take(tmp_path, capsys):
    file = tmp_path / "model.tflite"
    file.write_bytes(b"")
    phone = ["--device", "android"]
    for words, problem in [
        ([str(file), *phone], "--device android needs --benchmark-binary PATH"),
        ([str(file), *phone, "--length", "64"], "--length is not for a phone"),
        ([str(file), *phone, "--threads", "1"], "--threads is not for a phone"),
        (["mobilebert", *phone, "--benchmark-binary", "x"], "mobilebert: a phone runs .tflite files"),
        ([str(file), "--benchmark-binary", "x"], "--benchmark-binary is for --device android"),
        ([str(file), *phone, "--benchmark-binary", str(tmp_path / "none")], "none: cannot be read"),
        ([*phone], "--device needs a MODEL before it"),
    ]:
        assert main(["latency", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert problem in lines[0]


@pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed (Debian package adb)")
def test_the_real_client_says_that_no_phone_is_attached(model, binary, monkeypatch):
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "5099")  # a server of our own
    try:
        assert json.dumps(Adb().states()) == "{}"
        for serial, problem in ((None, r"^android: no phone is attached"), ("A1", r"^android:A1: no phone is attached")):
            with pytest.raises(UserError, match=problem):
                phone_latency.measure([model], [serial], binary, 50)
        with pytest.raises(UserError, match=r"^adb -s A1 shell getprop ro.product.model: failed \(.*not found"):
            Phone(Adb(), "A1").facts()
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)
