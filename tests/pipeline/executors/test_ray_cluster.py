"""Stage 1 on a Ray cluster of two workers on this machine: the hashes of a plain run, also when a worker is lost."""

from __future__ import annotations

import hashlib
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from dptr.cache.errors import UserError
from dptr.pipeline.executors.executor import Work, Worker
from dptr.pipeline.executors.store_builder import StoreInMaking
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dptr[ray]'")
from dptr.pipeline.executors.ray_cluster import Cluster, joined

#: One cluster for all of them.
pytestmark = pytest.mark.xdist_group("cluster")

WORDS = [a + b + c for a in "bcdfghk" for b in "aeiou" for c in "lmnrst"]
SETTINGS = EmbedTextSettings(shard_rows=32)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # By default Ray's workers step back for whatever else runs, such as the other half of the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield from _of_two_workers()


def _of_two_workers() -> Iterator[Cluster]:
    with joined(None, workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "store"
    embed_text([str(corpus)], folder, SETTINGS)
    return folder


@pytest.mark.slow
def test_prompts_of_two_workers_are_those_of_one_process(
    cluster: Cluster, corpus: Path, plain: Path, tmp_path: Path
) -> None:
    summary = embed_text([str(corpus)], tmp_path / "store", SETTINGS, executor=cluster)
    assert summary.computed == len(WORDS)
    assert hashes(tmp_path / "store") == hashes(plain), "the manifest, too"


@pytest.mark.slow
def test_a_worker_that_is_killed_half_way_changes_nothing(
    cluster: Cluster, corpus: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    commit = StoreInMaking.commit

    def kill_one(making: StoreInMaking, *shard: object) -> None:
        commit(making, *shard)  # type: ignore[arg-type]
        if not killed:
            workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_Worker")]
            workers[0].kill()
            killed.append(workers[0].pid)

    monkeypatch.setattr(StoreInMaking, "commit", kill_one)
    embed_text([str(corpus)], tmp_path / "store", SETTINGS, executor=cluster)
    assert killed
    assert hashes(tmp_path / "store") == hashes(plain)


@pytest.mark.slow
def test_a_bank_of_two_workers_is_that_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        picture = Image.effect_mandelbrot((120, 90), (-2 + number * 0.3, -1.5, 1, 1.5), 50).convert("RGB")
        picture.save(photos / f"{number}.png")
    (photos / "2broken.png").write_bytes(b"no picture")
    (photos / "3again.png").write_bytes((photos / "3.png").read_bytes())
    settings = OrpBankSettings(crops_per_image=2, shard_rows=4, batch=4)
    build_orp_bank([photos], tmp_path / "plain", settings)
    build_orp_bank([photos], tmp_path / "cluster", settings, executor=cluster)
    assert hashes(tmp_path / "cluster") == hashes(tmp_path / "plain")


def test_a_worker_says_what_is_wrong_in_one_line(cluster: Cluster) -> None:
    def maker() -> Work[int]:
        def work(item: int) -> Callable[[], int]:
            raise UserError("the item is wrong", "Give another")

        return work

    with pytest.raises(UserError, match="the item is wrong"):
        list(cluster.in_order(Worker(maker(), maker, ()), [1]))


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that was started by itself and asks for a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path has to be short
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
        command = [*ray, f"--port={port}", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"]
        with (tmp_path_factory.mktemp("head") / "log").open("w+") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                until = time.monotonic() + 120
                while "Ray runtime started" not in Path(log.name).read_text():
                    assert started.poll() is None, Path(log.name).read_text()
                    assert time.monotonic() < until
                    time.sleep(0.2)
                yield f"127.0.0.1:{port}"
            finally:
                started.terminate()
                started.wait(60)


@pytest.mark.slow
def test_a_cluster_that_runs_already_is_joined_with_its_token(
    head: str, corpus: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "dptr", "embed-text", str(corpus), "--shard-rows", "32", "--quiet"]
    command += ["--engine", "ray", "--engine-workers", "1", "--address", head]
    subprocess.run([*command, "-o", str(tmp_path / "store")], check=True, timeout=250)
    assert hashes(tmp_path / "store") == hashes(plain)


def test_a_cluster_that_asks_for_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def reject(*_: object, **__: object) -> None:
        raise ConnectionError("Failed to connect\nray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")

    monkeypatch.setattr(ray, "init", reject)
    with pytest.raises(UserError, match="It needs a token: set RAY_AUTH_MODE"), joined("head:1"):
        pass
