"""`dptr push` and `dptr.load("user/model")`, against a server that answers as the hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image, ImageDraw

import dptr
from dptr.cache import hub
from dptr.cache.errors import UserError
from dptr.cache.file_names import PREDICTIONS_FOLDER
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.evaluate import ReadImages, keep_predictions
from dptr.trainer.model.model_file import BUNDLED
from dptr.trainer.push import model_card
from dptr.trainer.recipe import Recipe
from dptr.trainer.training import runs

TOKEN = "hf_standin"


@dataclass
class Hub:
    """What the stand-in holds: repositories with their files, and large files by their SHA-256."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The requests of huggingface_hub that creating a repository, one commit and a download take."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any = None, code: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        content = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "no token that may write"}, 401)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer({"url": f"{self.hub.url}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            objects = json.loads(content)["objects"]
            actions = {one["oid"]: {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}} for one in objects}
            return self.answer(
                {"transfer": "basic", "objects": [{**one, "actions": actions[one["oid"]]} for one in objects]}
            )
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": one["path"], "uploadMode": modes[one["path"].endswith(".safetensors")], "shouldIgnore": False}
                for one in json.loads(content)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, content.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            else:
                self.hub.repositories[name][value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.commit(name)
        return self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        content, oid = self.body(), self.path.rpartition("/")[2]
        self.hub.large[oid] = content
        self.answer(code=200 if hashlib.sha256(content).hexdigest() == oid else 422)

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.hub.repositories:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files, commit = self.hub.repositories[name], self.hub.commit(name)
        if parts[0] == "api":
            listed = [{"rfilename": path} for path in files]
            if "tree" in parts:
                found = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
                return self.answer(found)
            return self.answer({"id": name, "modelId": name, "sha": commit, "siblings": listed})
        content = files[parts[-1]]
        return self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of this machine; the clients' settings point to it, and to a cache of the test's own."""
    held, before = Hub(), constants.ENDPOINT
    serving = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": held}))
    held.url = f"http://127.0.0.1:{serving.server_port}"
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", held.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(before, held.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The hub's other way for large files is a protocol of its own; this one is git's.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield held
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def word(tmp_path: Path) -> Path:
    image = Image.new("RGB", (64, 20), "white")
    ImageDraw.Draw(image).text((8, 4), "street", fill="black")
    image.save(tmp_path / "word.png")
    return tmp_path / "word.png"


def push(workspace: Path, *more: str) -> int:
    return run_command(["push", str(BUNDLED), "me/reader", "--workspace", str(workspace), "--quiet", *more])


def test_what_is_pushed_is_read_with_again(
    server: Hub, tmp_path: Path, word: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = dptr.Prediction("street", 0.9, [])
    read = ReadImages(["0", "1"], ["street", "road"], [prediction, prediction], [])
    keep_predictions(Workspace(tmp_path).models / "english", "/home/someone/signs", read)
    assert push(tmp_path, "--license", "apache-2.0", "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = server.repositories["me/reader"]
    assert set(files) == {"model.safetensors", "README.md", "recipe.toml"} == set(said["files"])
    assert said["commit"] == server.commit("me/reader")
    assert not server.private
    card = ModelCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert (data["library_name"], data["license"]) == ("dptr", "apache-2.0")
    results = data["model-index"][0]["results"]
    assert [(found["dataset"]["name"], found["metrics"][0]["value"]) for found in results] == [("signs", 0.5)]
    assert "| signs | 2 | 50.0% (" in card.text
    assert "someone" not in files["README.md"].decode()
    there, here = (dptr.load(name).read([word])[0] for name in ("me/reader", BUNDLED))
    assert there == here
    assert run_command(["read", "me/reader", str(word), "--json", "--workspace", str(tmp_path), "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == here.text


def test_a_model_that_was_downloaded_is_used_without_the_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(tmp_path, "--private") == 0
    assert server.private == {"me/reader"}
    first = hub.download("me/reader", ["model.safetensors"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.download("me/reader", ["model.safetensors"]) == first
    assert hub.name_of(first / "model.safetensors") == "me--reader"
    with pytest.raises(UserError, match="other is not on this machine and the hub cannot be reached"):
        dptr.load("me/other")


def test_what_the_hub_does_not_have_or_take_is_one_line(
    server: Hub, tmp_path: Path, word: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"the hub has no model 'me/nothing'"):
        dptr.load("me/nothing")
    server.repositories["me/text"] = {"config.json": b"{}"}
    with pytest.raises(UserError, match=r"me/text on the hub holds no model\.safetensors"):
        dptr.load("me/text")
    assert run_command(["read", "me/nothing", str(word), "--workspace", str(tmp_path)]) == 2
    assert "no run at me/nothing, and the hub has no model 'me/nothing'" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert push(tmp_path) == 2
    assert "uploading me/reader" in capsys.readouterr().err
    assert server.repositories == {"me/text": {"config.json": b"{}"}}


@pytest.mark.parametrize("repo", ["reader", "me/../reader", "me/reader@main", "a/b/c"])
def test_what_is_no_name_on_the_hub_is_rejected_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], repo: str
) -> None:
    assert run_command(["push", str(BUNDLED), repo, "-o", str(tmp_path / "out")]) == 2
    assert "is not a hub name" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_card_tells_the_data_of_a_run_and_what_it_read_of_the_words_kept_back(tmp_path: Path) -> None:
    data = {"images": {"rows": 12, "sha256": "ab" * 32}, "from": None}
    run = runs.start_or_continue(tmp_path / "run", "finetune", Recipe(), dptr.Charset("αβγ"), 32, data)
    lines = [{"step": step, "validation_accuracy": share} for step, share in ((100, 0.5), (200, 0.75), (300, 0.7))]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = model_card(run, "me/greek", run.folder)
    assert "the best checkpoint has a word accuracy of 75.0% (step 200)" in card
    assert "| images.rows | 12 |" in card
    assert "ab" * 32 in card
    assert "3 characters" in card
    assert "αβγ" in card
    assert f"dptr {dptr.__version__}" in card
    assert not (run.folder / PREDICTIONS_FOLDER).exists()


NASTY = "a|b`c`<img src=x>[x](http://y)\u202e\n| d | 9 |"


def test_names_of_data_are_text_in_a_card(tmp_path: Path) -> None:
    read = ReadImages(["0"], ["street"], [dptr.Prediction("street", 0.9, [])], [])
    run = runs.start_or_continue(tmp_path / "run", "finetune", Recipe(), dptr.Charset("αβγ"), 32, {NASTY: NASTY})
    keep_predictions(run.folder, NASTY.replace("/", ""), read)
    body = model_card(run, "me/greek", run.folder).split("\n---\n", 1)[1]
    assert not {"<img", "[x]", "\u202e", "`c`"} & {part for part in ("<img", "[x]", "\u202e", "`c`") if part in body}
    rows = [line for line in body.splitlines() if "a&#124;b" in line]
    assert len(rows) == 2
    assert all(line.count("|") in (3, 4) for line in rows)


def test_a_folder_with_files_is_not_pushed_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.start_or_continue(tmp_path / "run", "finetune", Recipe(), dptr.Charset("αβγ"), 32, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for out in (run.folder, tmp_path / "mine"):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert run_command(["push", str(BUNDLED), "me/reader", "-o", str(out), "--workspace", str(tmp_path)]) == 2
        assert "Name" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
