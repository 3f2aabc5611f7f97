"""Talk to Android phones through adb: find them, copy files, run a program, clean up."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mobilebert.util.errors import UserError
from mobilebert.util.text import one_line

LOCAL, ANDROID = "local", "android"
HOME = "/data/local/tmp"  # the one folder in which the shell user may run programs
SERIAL = re.compile(r"[A-Za-z0-9._:-]{1,64}")
ABIS = {40: "armeabi-v7a", 183: "arm64-v8a", 3: "x86", 62: "x86_64"}  # e_machine of an ELF file -> Android's name
TIMED_OUT = (124, 143)  # exit codes of a program that `timeout` ended: its own, and that of the signal
WAIT_S = 60  # for an answer; a phone that is asked for a permission never answers
HELP = {
    "unauthorized": "unlock it and allow USB debugging for this computer",
    "offline": "plug it in again, or run: adb reconnect",
    "no permissions": "this user may not read the USB port; see the udev rules of the package adb",
}

Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]


def serials(devices: Sequence[str]) -> list[str | None]:
    """Return the serial of each `android[:SERIAL]`, None if it names none; [] for local.

    Raises UserError for another device, one that is given twice, and local beside a phone.
    """
    found: list[str | None] = []
    for device in devices:
        kind, colon, serial = device.partition(":")
        if device == LOCAL:
            continue
        if kind != ANDROID or (colon and not SERIAL.fullmatch(serial)):
            raise UserError(f"device: {device!r} is unknown; allowed: {LOCAL}, {ANDROID}, {ANDROID}:SERIAL")
        found.append(serial or None)
    if found and len(found) < len(devices):
        raise UserError(f"device: {LOCAL} and a phone; time them in two runs, because each run has its own table")
    if len(set(found)) < len(found) or (None in found and len(found) > 1):
        raise UserError("device: a phone is given twice, or without its serial beside another; name each as android:SERIAL")
    return found


def abi_of(program: Path) -> str:
    """Return the processor that a program is built for, in Android's words.

    Raises UserError for a file that is missing or no program for Android.
    """
    try:
        with program.open("rb") as stream:
            head = stream.read(20)
    except OSError as error:
        raise UserError(
            f"{program}: cannot be read ({error.strerror}); --benchmark-binary names LiteRT's benchmark_model"
        ) from None
    abi = ABIS.get(int.from_bytes(head[18:20], "little")) if head.startswith(b"\x7fELF") and len(head) == 20 else None
    if abi is None:
        raise UserError(f"{program}: is no program for Android; --benchmark-binary names LiteRT's benchmark_model")
    return abi


def _run(words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, stdin=subprocess.DEVNULL
    )


class Adb:
    """The client `adb`. run: starts a program without a shell and returns what it printed."""

    def __init__(self, run: Run | None = None):
        if run is None and shutil.which("adb") is None:
            raise UserError("android: adb is not installed; Debian and Ubuntu: apt install adb")
        self._program = run or _run

    def __call__(self, *words: str, seconds: float = WAIT_S, name: str = "") -> str:
        """Return what `adb WORDS` printed.

        name: what an error calls the command, in place of its words. Raises UserError if it fails
        or does not answer.
        """
        what = name or f"adb {' '.join(words[:4])}"
        try:
            done = self._program(["adb", *words], seconds)
        except subprocess.TimeoutExpired:
            raise UserError(f"{what}: no answer within {seconds:g} seconds") from None
        except OSError as error:
            raise UserError(f"{what}: cannot be run ({error.strerror})") from None
        if done.returncode:
            raise UserError(f"{what}: failed ({one_line(done.stderr.strip() or done.stdout.strip()) or done.returncode})")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return serial -> state of the phones that are attached."""
        lines = [line for line in self("devices").splitlines() if not line.startswith(("*", "List of devices"))]
        found = [line.split(maxsplit=1) for line in lines if line.strip()]
        return {words[0]: words[-1].strip() for words in found}

    def phone(self, serial: str | None) -> Phone:
        """Return the phone with this serial, or the only one if it is None.

        Raises UserError if it is absent, not ready, or one of several without a serial.
        """
        states = self.states()
        attached = f"attached: {', '.join(states)}" if states else "no phone is attached; enable USB debugging and plug one in"
        if serial is None and len(states) > 1:
            raise UserError(f"android: {len(states)} phones; name one as android:SERIAL ({attached})")
        if not states or (serial is not None and serial not in states):
            raise UserError(f"android{f':{serial}' if serial else ''}: {attached}")
        name = serial or next(iter(states))
        if states[name] != "device":
            state = next((known for known in HELP if states[name].startswith(known)), states[name])
            raise UserError(f"android:{name}: {state}; {HELP.get(state, 'wait until `adb devices` says device')}")
        return Phone(self, name)


class Phone:
    """A phone with a folder of our own, which is removed at the end of a `with`."""

    def __init__(self, adb: Adb, serial: str):
        self._adb, self.serial = adb, serial
        self.folder = f"{HOME}/mobilebert-{secrets.token_hex(4)}"

    def __enter__(self) -> Phone:
        self._ask("shell", f"mkdir {self.folder}")
        return self

    def __exit__(self, failed: object, *_) -> None:
        # If the phone is gone, the error that says so is the first one, not that of the removal.
        with contextlib.suppress(*([UserError] if failed else [])):
            self._ask("shell", f"rm -rf {self.folder}")

    def _ask(self, *words: str, seconds: float = WAIT_S, name: str = "") -> str:
        return self._adb("-s", self.serial, *words, seconds=seconds, name=name)

    def property(self, name: str) -> str:
        """Return one of the phone's properties, such as ro.product.model."""
        return self._ask("shell", f"getprop {name}").strip()

    def facts(self) -> dict[str, str]:
        """Return the phone's serial, model, system and processors."""
        names = {"model": "ro.product.model", "android": "ro.build.version.release", "abis": "ro.product.cpu.abilist"}
        return {"serial": self.serial, **{key: self.property(name) for key, name in names.items()}}

    def push(self, file: Path, name: str) -> str:
        """Copy a file into the folder and return its place there. name: ours, without blanks."""
        place = f"{self.folder}/{name}"
        self._ask("push", str(file.resolve()), place, seconds=600)
        return place

    def pull(self, name: str, target: Path) -> None:
        """Copy a file of the folder to this computer."""
        self._ask("pull", f"{self.folder}/{name}", str(target.resolve()))

    def run(self, program: str, arguments: Sequence[str], log: str, seconds: int) -> int:
        """Run a program of the folder and return its exit code; its output goes to the file `log`
        there.

        The phone itself ends the program after `seconds`, for it goes on if this computer leaves.
        The exit code is then one of TIMED_OUT. The phone joins the words to a line for its shell.
        So they may have only letters, digits and "-_=.,:/", which no shell reads as anything else.
        """
        line = " ".join([program, *arguments])
        if not re.fullmatch(r"[A-Za-z0-9_=.,:/ -]+", line):
            raise UserError(f"android:{self.serial}: a word of {line!r} has a sign that a shell could read")
        self._ask("shell", f"chmod 755 {program}")
        line = f"timeout {seconds} {line} > {self.folder}/{log} 2>&1; echo $?"
        name = f"android:{self.serial}: {program.rpartition('/')[2]}"
        code = self._ask("shell", line, seconds=seconds + WAIT_S, name=name).strip()
        if not code.isdecimal():
            raise UserError(f"{name}: the phone gave no exit code ({one_line(code)})")
        return int(code)
