"""One free GPU for one job: a kernel lock a device, so that jobs beside each other on a machine take different ones.

The scheduler counts GPUs and does not say which. What CUDA_VISIBLE_DEVICES lists (Slurm sets it to a job's own) is the
choice; the lock is gone with its process, however that ends.
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

FOLDER = Path(f"/tmp/mobilebert-gpus-{os.getuid()}")  # one on a machine, whatever a job's environment says

_held = []  # open lock files, until this process ends


def bind() -> str | None:
    """Take a free GPU and set CUDA_VISIBLE_DEVICES to it alone; to be called before torch is imported.

    Returns the device; None, and nothing is changed, where there is no GPU and in a process of torchrun, which hands out
    the devices itself. Raises UserError where each one is held by another job.
    """
    if "LOCAL_RANK" in os.environ:
        return None
    known = installed()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(known)))))
    devices = [device.strip() for device in listed.split(",") if device.strip() not in ("", "-1", "NoDevFiles")]
    for device in devices:
        # By its name: Slurm may show every job its own GPU as number 0.
        name = known[int(device)] if device.isdigit() and int(device) < len(known) else device
        # A file that stays: a lock on one that was removed would be no lock. Closed in every child.
        file = (_folder() / name.replace("/", "-")).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers are nvidia-smi's
        return device
    if devices:
        raise UserError(f"no free GPU: {', '.join(devices)} held by other jobs; run as many at once as there are GPUs")
    return None


def installed() -> list[str]:
    """The name of each GPU of this machine, without torch: the UUID that `nvidia-smi` lists, or the driver's bus address
    where that is not installed."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
        return re.findall(r"^GPU \d+:.*\(UUID: ([^)]+)\)", found, re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        return sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))


def _folder() -> Path:
    """Of this user, on this machine."""
    with contextlib.suppress(FileExistsError):
        FOLDER.mkdir(mode=0o700)
    facts = FOLDER.lstat()  # a link would lead to a folder that somebody else chose
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UserError(f"{FOLDER}: no folder of this user, who keeps the locks of the GPUs there; have it removed")
    return FOLDER
