"""`fastervlm serve` in a process of its own, and a client."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


OURS = ("-m", "fastervlm.cli", "serve")
STOCK = ("-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
LONGEST_START = 900  # seconds, on a machine that has other things to do


@contextmanager
def serving(*arguments, log, program=OURS, env=None):
    """The address of a server that answers; it and all its processes end with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *program, *map(str, arguments), "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **QUIET, **(env or {})}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1", server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(server, address, log):
    ends = time.monotonic() + LONGEST_START
    while True:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < ends, f"no answer in {LONGEST_START} s: {log.read_text(errors='replace')[-3000:]}"
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.5)


def message(text, *files):
    """A question about pictures, as OpenAI's protocol writes it."""
    shown = [f"data:image/png;base64,{base64.b64encode(Path(file).read_bytes()).decode()}" for file in files]
    return [
        {
            "role": "user",
            "content": [*({"type": "image_url", "image_url": {"url": url}} for url in shown), {"type": "text", "text": text}],
        }
    ]


def processes_of(session, patience=60):
    """The processes of a session that are still there after a while."""
    left, ends = None, time.monotonic() + patience
    while left is None or (left and time.monotonic() < ends):
        time.sleep(0 if left is None else 1)
        listed = subprocess.run(["ps", "-s", str(session), "-o", "pid="], capture_output=True, text=True, check=False)
        left = listed.stdout.split()
    return left
