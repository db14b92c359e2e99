"""The demo's server, without a browser: what any client may send."""

import json
from uuid import uuid4

import httpx
import pytest

from fastervlm.demo.serve import examples_for
from tests.support.browser import demo_server


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where the server puts what it is sent."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(engine, uploads):
    """A server over the tiny model; its examples are drawn first."""
    assert examples_for(engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        with demo_server(uploads / "said", "--model", engine.subject.path) as address:
            yield f"{address}gradio_api"


def asked(address, file):
    """What a client gets that asks about a file by its name."""
    values = [file, "What is it?", 4, "cls", 0, True, 4, None]
    call = {"data": values, "fn_index": 0, "session_hash": uuid4().hex}
    assert httpx.post(f"{address}/queue/join", json=call, timeout=60).status_code == 200
    with httpx.stream("GET", f"{address}/queue/data", params={"session_hash": call["session_hash"]}, timeout=60) as answer:
        return [json.loads(line.removeprefix("data:")) for line in answer.iter_lines() if line.startswith("data:")]


@pytest.mark.parametrize("form", [{}, {"url": "http://127.0.0.1/x.png"}, {"orig_name": "x.png", "is_stream": True}])
def test_no_client_reads_a_file_of_the_server(address, picture, uploads, form):
    secret = picture()
    (uploads / "link.png").unlink(missing_ok=True)
    (uploads / "link.png").symlink_to(secret)
    for path in (secret, uploads / ".." / secret.relative_to(uploads.parent), uploads / "link.png", "x\0y"):
        events = asked(address, {"path": str(path)} | form)
        assert "data:image" not in json.dumps(events)
        assert events[-2]["output"]["error"] == "This file was not handed in here; choose it on the page.", path


def test_what_was_handed_in_is_answered(address, picture):
    with picture().open("rb") as file:
        (path,) = httpx.post(f"{address}/upload", files={"files": ("mine.png", file)}, timeout=60).json()
    events = asked(address, {"path": path})
    assert "data:image" in json.dumps(events)
    assert events[-2]["success"]


@pytest.mark.parametrize(("megabytes", "status"), [(19, 200), (21, 413)])
def test_an_upload_has_at_most_20_megabytes(address, megabytes, status):
    files = {"files": ("large.png", bytes(megabytes << 20))}
    assert httpx.post(f"{address}/upload", files=files, timeout=60).status_code == status
