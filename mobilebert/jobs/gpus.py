"""Take a free GPU for a job; kernel locks keep the jobs of a machine on different ones.

The scheduler counts GPUs but does not say which to use. The choice is among those that
CUDA_VISIBLE_DEVICES lists; Slurm sets it to the job's GPUs. A lock ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import subprocess
from pathlib import Path

from mobilebert.util.errors import UserError

FOLDER = Path(f"/tmp/mobilebert-gpus-{os.getuid()}")  # the same for every job, so it does not depend on TMPDIR

_held = []  # open lock files, until this process ends


def bind() -> str | None:
    """Take a free GPU, set CUDA_VISIBLE_DEVICES to it alone and return it.

    Call it before torch is imported. Returns None and changes nothing if there is no GPU, and in a
    torchrun process, because torchrun assigns the devices. Raises UserError if all are taken.
    """
    if "LOCAL_RANK" in os.environ:
        return None
    known = installed()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(known)))))
    devices = [device.strip() for device in listed.split(",") if device.strip() not in ("", "-1", "NoDevFiles")]
    for device in devices:
        # The lock is on the device's name: Slurm may number every job's GPU 0.
        name = known[int(device)] if device.isdigit() and int(device) < len(known) else device
        # The file is never removed: a new file of that name would not be locked. Children close it.
        file = (_folder() / name.replace("/", "-")).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # number the devices as nvidia-smi does
        return device
    if devices:
        raise UserError(
            f"no free GPU: {', '.join(devices)} held by other jobs; wait until one ends, and run at most one job per GPU"
        )
    return None


def installed() -> list[str]:
    """Return the name of each GPU without torch: the UUID that `nvidia-smi` lists, or the driver's
    bus address if that program fails."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
        return re.findall(r"^GPU \d+:.*\(UUID: ([^)]+)\)", found, re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        return sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))


def _folder() -> Path:
    """Return the folder of this user's locks. Raises UserError if it belongs to someone else."""
    with contextlib.suppress(FileExistsError):
        FOLDER.mkdir(mode=0o700)
    facts = FOLDER.lstat()  # a link could lead to a folder that another user chose
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UserError(f"{FOLDER}: not a folder of yours, but your GPU locks belong there; have it removed")
    return FOLDER
