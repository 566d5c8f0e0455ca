"""The Docker files, without an engine: their contents, the Compose specification, and the commands as written."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from model_core.hardware.process_environment import OPENMP
from tests.polling import eventually
from tests.process import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PASSWORD = "only-for-this-test"
BIN = Path(sys.executable).parent


def instructions() -> list[str]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def stage(name: str) -> list[str]:
    lines = instructions()
    start = next(i for i, line in enumerate(lines) if line.startswith("FROM") and line.endswith(f"AS {name}"))
    ends = (i for i, line in enumerate(lines) if i > start and line.startswith("FROM"))
    return lines[start : next(ends, len(lines))]


def interpolated(text: str, values: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        return values.get(match["name"]) or (match["rest"] or "").removeprefix(":-")

    found = re.sub(r"(?<!\$)\$\{(?P<name>\w+)(?P<rest>:[-?][^}]*)?\}", replace, text)
    return found.replace("$$", "$")


# --- what can be read ------------------------------------------------------------------------------------------


def test_every_copied_file_is_in_the_checkout() -> None:
    copies = [shlex.split(line)[1:-1] for line in instructions() if line.startswith("COPY") and "--from" not in line]
    assert copies
    for source in (source for copy in copies for source in copy):
        assert (ROOT / source).exists(), source


def test_the_image_holds_every_package_and_no_secret() -> None:
    packages = {"headcount", "service", "worker", "model_core", "configs"}
    assert packages <= {word for line in stage("source") for word in line.split()}
    assert not re.search(r"token|password|secret", DOCKERFILE, re.IGNORECASE)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_an_image_runs_as_a_number_that_is_not_root(name: str) -> None:
    user = next(line.split()[1] for line in stage(name) if line.startswith("USER"))
    assert all(part.isdigit() and int(part) > 0 for part in user.split(":"))


def test_the_api_image_gets_no_torch() -> None:
    assert not any("optional-dependencies" in line for line in [*stage("base"), *stage("api")])
    assert any("optional-dependencies" in line for line in stage("worker"))


def test_the_linter_has_nothing_to_say() -> None:
    result = subprocess.run(
        [BIN / "hadolint", "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_compose_meets_its_specification() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(entry.startswith("/tmp") for entry in service["tmpfs"])
    assert {"test", "interval", "timeout", "retries"} <= service["healthcheck"].keys()
    assert "stop_grace_period" in service or "inference" in name


def test_only_the_api_is_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_only_the_cpu_variants_have_a_profile_and_only_the_others_gpus() -> None:
    assert {name for name, s in SERVICES.items() if s.get("profiles") == ["cpu"]} == {"worker-cpu", "inference-cpu"}
    assert {name for name, service in SERVICES.items() if "deploy" in service} == {"worker", "inference"}
    device = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["count"], device["capabilities"]) == ("all", ["gpu"])


def test_what_a_person_set_for_openmp_reaches_what_computes_and_nothing_is_set_otherwise() -> None:
    passed = {name: {key for key, value in s["environment"].items() if value is None} for name, s in SERVICES.items()}
    computes = {"worker", "worker-cpu", "inference", "inference-cpu"}  # null passes on what is set
    assert passed == {name: set(OPENMP) if name in computes else set() for name in SERVICES}


def test_every_variable_is_in_the_example() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    used |= {key for service in SERVICES.values() for key, value in service["environment"].items() if value is None}
    named = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert used == named


# --- what can be run -------------------------------------------------------------------------------------------


class Stack:
    """The services as processes: their commands as written, their host names and ports on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        redis, self.api, gpu, cpu = free_ports(4)
        self._hosts = {"@redis:6379": f"@127.0.0.1:{redis}", "0.0.0.0": "127.0.0.1"}
        self._own = {
            "redis": {},
            "api": {"8000": str(self.api)},
            "inference": {"http://inference:8100": f"http://127.0.0.1:{gpu}", "8100": str(gpu)},
            "inference-cpu": {"http://inference-cpu:8100": f"http://127.0.0.1:{cpu}", "8100": str(cpu)},
        }
        self._redis_port = redis
        (directory / "data").mkdir()
        (directory / "redis").mkdir()
        self._bin = commands_in(directory / "bin")

    def start(self, name: str) -> None:
        command = self._command(name)
        command += ["--port", str(self._redis_port), "--bind", "127.0.0.1"] if name == "redis" else []
        directory = self.directory / "redis" if name == "redis" else ROOT
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=directory, env=self._environment(name), stdout=log, stderr=log
            )

    def health(self, name: str) -> bool:
        kind, *test = SERVICES[name]["healthcheck"]["test"]
        words = [self._mapped(name, word) for word in test]
        command = words if kind == "CMD" else ["/bin/sh", "-c", *words]
        run = subprocess.run(
            command, cwd=ROOT, env=self._environment(name), capture_output=True, check=False, timeout=30
        )
        return run.returncode == 0

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _command(self, name: str) -> list[str]:
        service = SERVICES[name]
        written = service.get("command") or command_of(service["build"]["target"])
        return [self._mapped(name, word) for word in written]

    def _environment(self, name: str) -> dict[str, str]:
        written = SERVICES[name].get("environment", {})
        mapped = {key: self._mapped(name, str(value)) for key, value in written.items() if value is not None}
        mapped = {key: str(self.directory / "data") if value == "/data" else value for key, value in mapped.items()}
        # Two workers in one host name would be one node: a container has a name of its own.
        own = {"REDIS_PORT": str(self._redis_port), "HOSTNAME": socket.gethostname()}
        return {"PATH": f"{self._bin}:{BIN}:/usr/bin:/bin", "HOME": str(self.directory), **own, **mapped}

    def _mapped(self, name: str, text: str) -> str:
        text = interpolated(text, {"HEADCOUNT_REDIS_PASSWORD": PASSWORD})
        for old, new in {**self._hosts, **self._own.get(name, {})}.items():
            text = text.replace(old, new)
        return text


def command_of(target: str) -> list[str]:
    line = next(line for line in reversed(stage(target)) if line.startswith("CMD"))
    command: list[str] = json.loads(line.removeprefix("CMD"))
    return command


def commands_in(directory: Path) -> Path:
    """A folder with the programs of the redis image, whichever server this machine has."""
    from headcount.embedded_redis import server_binary

    directory.mkdir()
    (directory / "redis-server").symlink_to(shutil.which("redis-server") or server_binary())
    client = directory / "redis-cli"
    code = (
        "import os, sys, redis\n"
        "client = redis.Redis(port=int(os.environ['REDIS_PORT']), password=os.environ['REDISCLI_AUTH'])\n"
        "print('PONG' if client.execute_command(*sys.argv[1:]) else 'no')\n"
    )
    client.write_text(f"#!{sys.executable}\n{code}")
    client.chmod(0o755)
    return directory


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    for name in reversed(list(stack.processes)):
        stack.stop(name)


def healthy(stack: Stack, name: str, seconds: float = 90) -> None:
    def answers() -> bool:
        assert stack.processes[name].poll() is None, stack.log(name)
        return stack.health(name)

    eventually(answers, seconds, every_s=0.2, describe=lambda: stack.log(name))


@pytest.mark.e2e
@pytest.mark.parametrize("variant", ["-cpu", pytest.param("", marks=pytest.mark.slow)])
def test_every_command_and_health_check_runs_as_written(stack: Stack, variant: str) -> None:
    stack.start("redis")
    healthy(stack, "redis")
    names = ["api", f"worker{variant}", f"inference{variant}"]
    for name in names:
        stack.start(name)
    for name in names:
        healthy(stack, name)
    ready = httpx.get(f"http://127.0.0.1:{stack.api}/readyz", trust_env=False)
    assert ready.status_code == 200, ready.text
    ends = {name: stack.stop(name) for name in [*names, "redis"]}
    assert set(ends.values()) <= {0, -signal.SIGTERM}, ends  # uvicorn raises the signal again when it has ended


@pytest.mark.e2e
def test_redis_wants_its_password(stack: Stack) -> None:
    import redis

    stack.start("redis")
    healthy(stack, "redis")
    with redis.Redis(port=stack._redis_port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
