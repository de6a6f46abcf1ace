"""Programs run in several gloo processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys


def launch(*words: object, processes: int = 2, seconds: int = 240, **environment: str) -> None:
    """Run a program in gloo processes; what one of them said last where it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    many = f"--nproc_per_node={processes}"
    command = [sys.executable, "-m", "torch.distributed.run", many, f"--master_port={port}"]
    process = subprocess.Popen(
        [*command, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its processes waiting for each other
        raise
    said = errors.partition("torch/distributed/elastic")[0]  # what follows is the launcher's own
    assert process.returncode == 0, said[-6000:]
