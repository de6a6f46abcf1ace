"""An export goes to a hub: a local one, which keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import bolus
from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import BolusError, UsageError
from bolus.recipe import EncoderSpec


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    files: dict[str, bytes]
    created: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        url = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if self.path == "/api/repos/create":
            Hub.created.append(json.loads(body))
            answer = {"url": f"{url}/me/encoder"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif self.path.startswith("/api/models/me/encoder/preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif self.path.startswith("/api/models/me/encoder/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{url}/me/encoder/commit/abc", "commitOid": "abc"}
        said = json.dumps(answer).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_GET(self) -> None:
        self.send_error(404)

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    encoder = build_encoder(EncoderSpec(backbone="vit_tiny", in_channels=3), seed=0).eval()
    save_encoder(encoder, tmp_path / "e", preprocessing=Preprocessing(32, 3).to_json())
    return tmp_path / "e"


def test_a_folder_is_pushed_whole(hub: type[Hub], source: Path, tmp_path: Path) -> None:
    found = bolus.export(source, to="hf", out=tmp_path / "out", push="me/encoder")
    assert any(note.startswith("pushed to http://127.0.0.1") for note in found.notes)
    assert hub.created[0]["visibility"] == "private"
    here = {p.relative_to(found.folder).as_posix(): p.read_bytes() for p in found.folder.rglob("*") if p.is_file()}
    assert hub.files == here
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "contract.json", "README.md"} <= set(here)


def test_a_hub_that_refuses_leaves_the_folder(hub: type[Hub], source: Path, tmp_path: Path) -> None:
    with pytest.raises(BolusError, match="is written, and was not pushed to me/other"):
        bolus.export(source, to="hf", out=tmp_path / "out", push="me/other")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_hub_that_is_not_there_leaves_the_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(BolusError, match="is written, and was not pushed to me/encoder"):
        bolus.export(source, to="hf", out=tmp_path / "out", push="me/encoder")
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_is_no_name_is_told_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"push: expected OWNER/NAME, found '\.\./up'"):
        bolus.export(source, to="hf", out=tmp_path / "out", push="../up")
    assert not (tmp_path / "out").exists()
