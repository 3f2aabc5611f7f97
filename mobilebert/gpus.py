"""One free GPU for one job: a kernel lock a device, so that jobs beside each other on a machine take different ones.

The scheduler counts GPUs and does not say which. What CUDA_VISIBLE_DEVICES lists (Slurm sets it to a job's own) is the
choice; the lock is gone with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

from mobilebert.errors import UserError

_held = []  # open lock files, until this process ends


def bind() -> str | None:
    """Take a free GPU and set CUDA_VISIBLE_DEVICES to it alone; to be called before torch is imported.

    Returns the device; None, and nothing is changed, where there is no GPU and in a process of torchrun, which hands out
    the devices itself. Raises UserError where each one is held by another job.
    """
    if "LOCAL_RANK" in os.environ:
        return None
    devices = visible()
    for device in devices:
        # A file that stays: a lock on one that was removed would be no lock. Inheritable to no one: close-on-exec.
        file = (_folder() / device.replace("/", "-")).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return device
    if devices:
        raise UserError(f"no free GPU: {', '.join(devices)} held by other jobs; run as many at once as there are GPUs")
    return None


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: an index, or a UUID of a GPU or its part."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device.strip() for device in listed.split(",") if device.strip() not in ("", "-1", "NoDevFiles")]
    return [str(index) for index in range(count())]


def count() -> int:
    """GPUs of this machine, without torch: those that `nvidia-smi` lists, or the driver where that is not installed."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
        return sum(line.startswith("GPU ") for line in found.splitlines())
    except (OSError, subprocess.SubprocessError):
        folder = Path("/proc/driver/nvidia/gpus")
        return len(list(folder.iterdir())) if folder.is_dir() else 0


def _folder() -> Path:
    """Of this user, on this machine."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = base / f"mobilebert-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set XDG_RUNTIME_DIR to a folder of your own")
    return folder
