"""Run Snakemake and training jobs in forks of one process that has imported all that they need.

Importing torch and transformers takes longer than most jobs of `smoke`. `Warm.interpreter` is a
script to call in place of Python: it sends Snakemake and the stages of STAGES to the warm process,
with its standard streams, and runs every other command in Python itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

STAGES = ("pretrain", "transfer", "distill", "attention", "finetune", "quantize")
INTERPRETER = """#!{python} -IS
import os, sys
words = sys.argv[1:]
if words[:2] != ["-m", "snakemake"] and (words[:2] != ["-m", "mobilebert"] or words[2] not in {stages}):
    os.execv("{python}", ["{python}", *words])
import json, socket
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    job = json.dumps([words[1:], os.getcwd(), dict(os.environ), sys.argv[0]]).encode()
    socket.send_fds(server, [len(job).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(job)
    sys.exit(int(server.recv(8) or b"137"))
"""


class Warm:
    """A process that runs commands in forks of itself. Start it once for many workflows."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        address = f"{self._folder.name}/jobs"
        self.interpreter = Path(self._folder.name, "python")
        self.interpreter.write_text(INTERPRETER.format(python=sys.executable, stages=STAGES, address=address))
        self.interpreter.chmod(self.interpreter.stat().st_mode | stat.S_IXUSR)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def serve(address: str) -> None:
    """Run the commands that arrive at a Unix socket until the process is killed."""
    from mobilebert.study import stages
    from mobilebert.study.code_hash import code_hash

    for module in ("snakemake.cli", *(f"mobilebert.stages.{stage}" for stage in STAGES)):
        importlib.import_module(module)
    for stage in stages.STAGES:  # every command needs these hashes: two seconds
        code_hash(stage)
    gc.collect()
    gc.freeze()  # so the garbage collector of a fork does not touch, and so copy, shared memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes forks that have ended
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                if not os.fork():
                    server.close()
                    run(connection)


def run(connection: socket.socket) -> None:
    """Run one command with its sender's streams, folder and environment; send its exit code."""
    import snakemake.cli

    import mobilebert.cli.main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        size, streams, *_ = socket.recv_fds(connection, 8, 3)
        content = bytearray()
        while len(content) < int.from_bytes(size, "big"):
            content += connection.recv(1 << 16)
        (module, *words), folder, environment, interpreter = json.loads(content)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *words]
        if module == "snakemake":
            sys.executable = interpreter  # Snakemake starts its jobs with it, so they come here too
            code = snakemake.cli.main(words)
        else:
            code = mobilebert.cli.main.main(words)
    except SystemExit as end:
        code = end.code
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(str(code or 0).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
