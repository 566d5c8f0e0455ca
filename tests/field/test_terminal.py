# ruff: noqa: F811 - fixtures of another folder are imported by their names
"""The terminal: narrow, without Unicode, behind a closed pipe, and with texts that would like to control it."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount import cli
from headcount.client import AmbiguousJob, Client, ConnectionLost, UnknownJob, messages
from headcount.terminal import json_text
from model_core.config_loader import parse_config, preset_names, preset_tree
from model_core.console import one_line, printable
from service.protocol.lines import event_stream_lines
from tests.headcount.commands.conftest import headcount, service  # noqa: F401
from tests.headcount.commands.sample_responses import JOB, OTHER, WORKER, Service, job, status, stream
from worker.jobs.spec import parse_spec

# What prompts, samples, names and messages may hold: other scripts, line ends that only some readers know, and
# sequences that clear the screen, retitle the window, start a C1 command or write over the line.
NASTY = "Zoë 日本 😀\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\r\ni\n\x1b[2J\x1b]0;title\x07\x9b31m\x00\x7f\tend"
EVENTS = [
    {"seq": 1, "time": "2026-01-01T00:00:01Z", "attempt": 1, "type": "sample", "step": 1, "texts": [NASTY]},
    {"seq": 2, "time": "2026-01-01T00:00:02Z", "attempt": 1, "type": "warning", "code": "x", "detail": NASTY},
    {"seq": 3, "time": "2026-01-01T00:00:03Z", "attempt": 1, "type": "novel", "note": NASTY},
]
GENERATED = {"run": "one", "prompt": NASTY, "choices": [{"index": 0, "text": NASTY, "finish_reason": "stop"}]}
CHECKPOINT = {
    "file": "model_best.pt", "step": 200, "val_loss": 0.92, "size_bytes": 12_345_678, "full": False, "pinned": True,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
RUN = {
    "object": "run", "name": "one", "status": "failed", "job": JOB, "attempt": 1, "created_at": "2026-01-01T00:00:00Z",
    "checkpoints": [CHECKPOINT], "outcome": {"error": {"code": "cuda_oom", "detail": NASTY}},
    "config": {
        "model": {"n_layer": 2, "n_head": 2, "n_head_list": [4, 2], "n_embd": 64, "block_size": 64},
        "data": {"dataset": "tales", "train_file": "tales_train.npy"},
    },
    "links": {"self": "/runs/one"},
}  # fmt: skip
LISTED_RUN = {
    **{name: value for name, value in RUN.items() if name != "checkpoints"},
    "checkpoint_count": 1, "step": 4, "val_loss": 1.5, "size_bytes": 1000,
}  # fmt: skip
ERROR = {"code": "cuda_oom", "detail": NASTY, "step": 3, "hint": "halve training.batch_size"}
FAILED = job(
    status="failed", error=ERROR, metadata={"who": NASTY}, worker={**WORKER, "host": NASTY}, run="a-long-name-" * 5,
    progress={"step": 300, "max_steps": 1200, "loss": 2.5, "val_loss": 2.75}, attempts=[],
    started_at="2026-01-01T00:00:00Z", finished_at="2026-01-01T00:02:35Z", warnings=[{"code": "x", "detail": NASTY}],
)  # fmt: skip
QUEUED = job(id=OTHER, status="queued", queue={"position": 1, "jobs_ahead": 0, "eta_s": [5, 65]}, priority=3)
DATASET = {
    "name": "tales", "state": "failed", "source": "hub:own/corpus", "documents": 20000, "tokens": 3_000_000,
    "job": OTHER, "error": {"code": "invalid_data", "detail": NASTY},
}  # fmt: skip
CURVES = {"loss": {"steps": [1, 2, 3], "values": [2.5, 1.25, "nan"], "points_total": 3}}
GPU = {"index": 0, "uuid": "GPU-1", "name": NASTY, "memory_bytes": 139 * 2**30, "job": JOB}
REPLIES = {
    "GET /jobs": {"data": [FAILED, QUEUED], "has_more": True},
    f"GET /jobs/{JOB}": FAILED,
    f"GET /jobs/{JOB}/events": {"data": EVENTS, "has_more": False},
    f"GET /jobs/{JOB}/metrics": {"series": CURVES},
    "GET /queue": {"queued": 1, "ready": 1, "waiting": 0, "running": 0, "data": [QUEUED]},
    "GET /workers": {"data": [{"id": NASTY, "slots": 1, "busy": 1, "jobs": [JOB], "gpus": [GPU]}]},
    "GET /datasets": {"data": [DATASET], "has_more": False},
    "GET /runs": {"data": [LISTED_RUN], "has_more": False},
    "GET /runs/one": RUN,
    "GET /runs/one/checkpoints": {"data": [CHECKPOINT]},
    "POST /generate": GENERATED,
}
VIEWS = [
    ("jobs",), ("job", JOB), ("logs", JOB), ("events", JOB), ("metrics", JOB), ("queue",), ("workers",), ("datasets",),
    ("runs",), ("run", "one"), ("checkpoints", "one"), ("generate", "one", NASTY.replace("\x00", "")),
    ("report", "configs/variable_heads.yaml", "--formulas"), ("--help",), ("submit", "--help"),
]  # fmt: skip


@pytest.fixture
def told(service: Service) -> Service:
    """A service whose every text is nasty."""
    for asked, body in REPLIES.items():
        service.says(asked, body)
    return service


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command as a process would, with streams of an encoding and a width: exit code, stdout, stderr."""

    def run(*arguments: str, encoding: str = "utf-8", columns: int | None = None) -> tuple[int, str, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in "oe"]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "argv", ["headcount", *arguments])
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        return int(end.value.code or 0), out, err

    return run


# --- what the terminal cannot show -----------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0])
def test_what_cannot_be_shown_is_replaced(told, terminal, view) -> None:
    code, out, err = terminal(*view, encoding="ascii", columns=80)
    assert (code, err, bool(out.strip())) == (0, "", True)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("view", [view for view in VIEWS if view[0] not in {"events", "logs", "report", "--help"}][:-1])
def test_json_is_exact_in_every_encoding_and_for_every_reader_of_lines(told, terminal, view, encoding) -> None:
    _, out, _ = terminal(*view, "--json", encoding=encoding)
    assert json.loads(out) == json.loads(json.dumps(json.loads(told.replies[told.asked[-1].partition("?")[0]][0][1])))
    assert out.splitlines() == out.removesuffix("\n").split("\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("command", [("events", JOB), ("logs", JOB, "--json"), ("events", JOB, "--json")])
def test_events_are_a_line_each_with_every_character(told, terminal, command, encoding) -> None:
    _, out, _ = terminal(*command, encoding=encoding)
    assert [json.loads(line) for line in out.splitlines()] == EVENTS


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_error_that_cannot_be_shown_is_one_line(service, terminal, encoding) -> None:
    service.says(f"GET /jobs/{JOB}", {"code": "job_not_found", "detail": NASTY}, 404)
    code, out, err = terminal("job", JOB, encoding=encoding)
    assert (code, out, len(err.splitlines()), "job_not_found" in err) == (2, "", 1, True)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_job_is_followed_on_any_terminal(told, terminal, tmp_path, encoding) -> None:
    (tmp_path / "a.yaml").write_text("experiment_name: one\n")
    told.says("POST /jobs", job(status="queued"), 202)
    told.replies[f"GET /jobs/{JOB}/events"] = []
    events = [(event["type"], event["seq"], event) for event in EVENTS]
    told.says(f"GET /jobs/{JOB}/events", stream(status("running"), *events, status("succeeded")))
    code, out, err = terminal("submit", str(tmp_path / "a.yaml"), "--follow", encoding=encoding, columns=20)
    assert (code, err) == (0, "")
    assert not _controls(out)


# --- what would control the terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0])
def test_no_text_controls_the_terminal(told, terminal, view) -> None:
    _, out, err = terminal(*view)
    assert not _controls(out + err)


def test_a_log_has_one_line_for_each_event_whatever_its_reader_takes_for_line_ends(told, terminal) -> None:
    _, out, _ = terminal("logs", JOB)
    assert [line.partition("Z")[0] for line in out.splitlines()] == [event["time"].rstrip("Z") for event in EVENTS]
    assert all("Zoë 日本 😀 b c d e f g h i" in line for line in out.splitlines())


def test_a_log_shows_values_as_json(service, terminal) -> None:
    event = {**EVENTS[0], "type": "start", "used": {"threads": None, "tf32": True, "kernels": [1, "a"]}}
    service.says(f"GET /jobs/{JOB}/events", {"data": [event], "has_more": False})
    _, out, _ = terminal("logs", JOB)
    assert json.loads(out.partition("used=")[2]) == event["used"]


def test_generated_text_keeps_its_lines(told, terminal) -> None:
    _, out, _ = terminal("generate", "one", "x")
    assert "\u2028b\u2029c\\x85d\\x0be\\x0cf\\x1cg\\x0dh\ni\n\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\x00\\x7f\tend" in out


PIECES = ["a\u2028b", "\x85\r", "\nc\x1b", "[2J\r"]


@pytest.mark.parametrize("ends", ["\n", "\r", "\r\n"])
def test_pieces_of_a_text_are_the_text(service, terminal, ends) -> None:
    events = [("message", None, {"index": 0, "text": piece}) for piece in PIECES]
    sent = stream(*events, ("end", None, {})).decode().replace("\\u2028", "\u2028").replace("\\u0085", "\x85")
    service.says("POST /generate", sent.replace("\n", ends).encode())
    assert terminal("generate", "one", "p ", "--stream")[:2] == (0, "p a\u2028b\\x85\nc\\x1b[2J\\x0d\n")
    _, out, _ = terminal("generate", "one", "p", "--stream", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == PIECES


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_is_split_at_its_line_ends_only_in_blocks_of_any_size(size) -> None:
    sent = 'event: m\r\ndata: {"text": "a\u2028b\x85c"}\r\n\r\nevent: end\rdata: {}\r\r'.encode()
    blocks = [sent[i : i + size] for i in range(0, len(sent), size)]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=iter(blocks)))
    with Client("http://service", transport) as client:
        assert list(client.generate_stream({"run": "one"})) == [{"text": "a\u2028b\x85c"}]


def test_a_text_that_breaks_off_is_an_error(service, terminal) -> None:
    service.says("POST /generate", stream(("message", None, {"index": 0, "text": "a"})))
    code, out, err = terminal("generate", "one", "", "--stream")
    assert (code, out, len(err.splitlines())) == (1, "a", 1)
    with pytest.raises(ConnectionLost):
        list(Client().generate_stream({"run": "one"}))


def _controls(text: str) -> list[str]:
    return re.findall("[^\\n\\t -~\xa0-\U0010ffff]", text)


# --- pipes and widths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["report configs/variable_heads.yaml", "--help"])
def test_a_reader_that_has_gone_ends_the_command_without_a_word(command) -> None:
    line = f"{sys.executable} -m headcount {command} | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode in {0, 141}, ended.stderr) == (True, "")


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    line = f"{sys.executable} -m headcount --version > /dev/full"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines()), "Traceback" in ended.stderr) == (1, 1, False)


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("view", VIEWS[:11], ids=lambda view: view[0])
def test_a_table_fits_the_terminal_and_cuts_no_id(told, terminal, view, columns) -> None:
    _, out, _ = terminal(*view, columns=columns)
    words = out.split()
    wide = [line for line in out.splitlines() if len(line) > columns and len(line.split()) > 1]
    assert wide == [] or view[0] in {"logs", "events"}  # whose lines the terminal wraps
    assert not [word for word in words if "…" in word]
    shown = {word.strip(",()") for word in words}
    assert {found for found in (JOB, OTHER) if found in "".join(words)} <= shown


def test_a_pipe_gets_a_line_for_each_job(told, terminal) -> None:
    _, out, _ = terminal("jobs")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("job_")] == [JOB, OTHER]


def test_a_list_tells_why_a_job_failed_how_long_it_took_and_how_well(told, terminal) -> None:
    _, out, _ = terminal("jobs", columns=80)
    for said in ("cuda_oom", "halve training.batch_size", "0:02:35", "val loss 2.75", "d ago", "300/1200"):
        assert said in out


# --- names of jobs ---------------------------------------------------------------------------------------------------

IDS = ["job_" + start + "0" * (32 - len(start)) for start in ("aa1", "aa2", "b", "c", "d", "42")]
TRAINED, TESTED, EXPORTED, MADE, BAD, NUMBER = IDS
KNOWN = [
    job(id=TRAINED, run="one", kind="train", status="succeeded", allowed_actions=["delete"]),
    job(id=TESTED, run="one", kind="test", status="running", allowed_actions=["cancel", "pause"]),
    job(id=EXPORTED, run="one", kind="export", status="running", allowed_actions=["cancel"]),
    job(id=MADE, run=None, dataset="tales", kind="prepare", status="running", allowed_actions=["cancel"]),
    job(id=BAD, run="bad", kind="train", status="failed", allowed_actions=["retry", "delete"]),
    job(id=NUMBER, run="0007", kind="train", status="paused", allowed_actions=["resume", "cancel"]),
]


def _serve(request: httpx.Request) -> httpx.Response:
    wanted = {key: request.url.params[key] for key in ("run", "dataset", "kind") if key in request.url.params}
    if not all(re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name) for name in wanted.values()):
        return httpx.Response(422, json={"code": "invalid_parameter"})
    ids = [one["id"] for one in KNOWN]
    start = ids.index(request.url.params["after"]) + 1 if "after" in request.url.params else 0
    found = [one for one in KNOWN[start:] if all(one[key] == value for key, value in wanted.items())]
    page = found[:2]  # small pages: every page is read
    last = page[-1]["id"] if page else None
    return httpx.Response(200, json={"data": page, "has_more": len(found) > 2, "last_id": last})


@pytest.mark.parametrize(
    ("typed", "action", "meant"),
    [
        (TRAINED, None, TRAINED),  # an id is not looked up
        ("job_" + "f" * 32, "cancel", "job_" + "f" * 32),
        ("job_b", None, EXPORTED),
        ("b", None, EXPORTED),
        ("AA2", None, TESTED),
        ("one", None, TRAINED),  # a run is its training
        ("one", "pause", TESTED),  # or the job that can be paused
        ("bad", None, BAD),
        ("bad", "retry", BAD),
        ("0007", "resume", NUMBER),
        ("42", None, NUMBER),
        ("tales", "cancel", MADE),
    ],
)
def test_a_job_is_found_by_what_people_type(typed, action, meant) -> None:
    with Client("http://service", httpx.MockTransport(_serve)) as client:
        assert client.find_job(typed, action) == meant


@pytest.mark.parametrize(
    ("typed", "action", "listed"),
    [("aa", None, {TRAINED, TESTED}), ("job_aa", "pause", {TRAINED, TESTED}), ("one", "cancel", {TESTED, EXPORTED})],
)
def test_what_can_be_several_jobs_lists_them(typed, action, listed) -> None:
    with (
        Client("http://service", httpx.MockTransport(_serve)) as client,
        pytest.raises(AmbiguousJob) as no,
    ):
        client.find_job(typed, action)
    assert set(re.findall("job_[0-9a-f]{32}", str(no.value))) == listed


@pytest.mark.parametrize("typed", ["nobody", "../runs", "Zoë", "", "job_", "job_x", "a b", "e", "job_" + "a" * 33])
def test_what_is_no_job_says_so(typed) -> None:
    with Client("http://service", httpx.MockTransport(_serve)) as client, pytest.raises(UnknownJob):
        client.find_job(typed)


@pytest.mark.parametrize("command", ["job", "logs", "events", "metrics", "cancel", "pause", "resume", "retry"])
def test_every_command_takes_a_name(told, terminal, command) -> None:
    for action in ("cancel", "pause", "resume", "retry"):
        told.says(f"POST /jobs/{JOB}/{action}", FAILED, 202)
    told.replies["GET /jobs"] = []
    told.says("GET /jobs", {"data": [FAILED], "has_more": False})
    code, _, err = terminal(command, "one")
    assert (code, err, told.asked[0]) == (0, "", "GET /jobs?run=one&limit=100")
    assert f"/jobs/{JOB}" in told.asked[-1]


@pytest.mark.parametrize("command", [("cancel", "aa"), ("logs", "aa")])
def test_several_jobs_are_exit_code_2(service, terminal, command) -> None:
    empty, known = {"data": [], "has_more": False}, {"data": KNOWN, "has_more": False}
    for page in (empty, empty, known):
        service.says("GET /jobs", page)
    code, out, err = terminal(*command)
    assert (code, out, len(err.splitlines()), TRAINED in err, TESTED in err) == (2, "", 1, True, True)


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_prompt_of_a_locale_without_utf8_arrives_as_it_was_typed(told, terminal) -> None:
    typed = "Zoë".encode().decode("ascii", "surrogateescape")  # how Python reads it under LC_ALL=C
    assert terminal("generate", "one", typed)[0] == 0
    assert json.loads(told.bodies[-1])["prompt"] == "Zoë"
    assert terminal("generate", "one", "\udcff")[0] == 2


@pytest.mark.parametrize("option", [("--temperature", "nan"), ("--top-p", "inf")])
def test_a_number_that_json_lacks_is_bad_input(told, terminal, option) -> None:
    code, _, err = terminal("generate", "one", "x", *option)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"experiment_name: one\n", "application/yaml"),
        (b'{"experiment_name":\t"one"}', "application/json"),
        (b"{experiment_name: one}", "application/yaml"),
    ],
)
def test_a_configuration_is_read_from_standard_input(text, kind, monkeypatch) -> None:
    from headcount.client import body_of

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert body_of("-") == (text, kind)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.replace(b"\t", b" "))))
    body, kind = body_of("-", ["training.max_steps=5"])
    assert (json.loads(body), kind) == ({"experiment_name": "one", "training": {"max_steps": 5}}, "application/json")


@pytest.mark.parametrize(("tail", "numbers"), [(0, []), (1, [3]), (2, [2, 3]), (99, [1, 2, 3])])
@pytest.mark.parametrize("command", ["logs", "events"])
def test_the_last_events(told, terminal, command, tail, numbers) -> None:
    _, out, _ = terminal(command, JOB, "--tail", str(tail))
    assert [int(number) for number in re.findall(r":0(\d)Z", out)] == numbers


def test_the_last_events_are_followed_by_those_to_come(told, terminal) -> None:
    told.says(f"GET /jobs/{JOB}/events", stream(status("running"), ("novel", 4, {"seq": 4}), status("succeeded")))
    _, out, _ = terminal("events", JOB, "--tail", "1", "--follow")
    assert [json.loads(line).get("seq") for line in out.splitlines()] == [3, None, 4, None]


@pytest.mark.parametrize(
    ("options", "files", "asked"),
    [
        ((), ["layer00.png", "layer01.png", "sheet.png"], "format=png"),
        (("--layer", "1", "--cmap", "magma"), ["layer01.png"], "layer=1&cmap=magma"),
        (("--layer", "1", "--head", "2", "--format", "svg"), ["layer01_head02.svg"], "layer=1&head=2&format=svg"),
        (("--max-tokens", "7", "--format", "pdf"), ["layer00.pdf", "layer01.pdf", "sheet.pdf"], "max_tokens=7"),
    ],
)
def test_attention_is_saved_as_it_is_asked_for(service, terminal, tmp_path, options, files, asked) -> None:
    manifest = {"run": "one", "id": "0", "sha256": "ab", "layers": [{"layer": 0}, {"layer": 1}]}
    service.says("GET /attention/one/0", manifest)
    code, out, _ = terminal("attention", "one", "0", "--out", str(tmp_path / "new"), *options)
    assert (code, [Path(line).name for line in out.splitlines()]) == (0, files)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(files)
    sent = httpx.URL(service.asked[-1].partition(" ")[2]).params
    assert set(httpx.QueryParams(asked).items()) | {("checkpoint", "sha256=ab")} <= set(sent.items())


@pytest.mark.parametrize("options", [("--head", "1"), ("--format", "gif"), ("--layer", "-1"), ("--max-tokens", "0")])
def test_a_picture_that_cannot_be_is_refused_before_anything_is_asked(service, terminal, options) -> None:
    code, _, err = terminal("attention", "one", "0", *options)
    assert (code, len(err.splitlines()), service.asked) == (2, 1, [])


def test_the_version(terminal) -> None:
    code, out, _ = terminal("--version")
    assert (code, re.fullmatch(r"headcount \d+\.\d+\S*\n", out) is not None) == (0, True)


def test_a_run_is_opened_in_a_browser(told, tmp_path, monkeypatch) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    command = [sys.executable, "-m", "headcount", "open", "one"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == opened.read_text()
    assert ended.stdout.endswith("/runs/one\n")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["logs", "a-lo"], ["a-long-name-" * 5]),
        (["cancel", JOB[:6]], [JOB]),
        (["generate", "o"], ["one"]),
        (["submi"], ["submit"]),
        (["attention", "one", "0", "--c"], ["--checkpoint", "--cmap"]),
    ],
)
def test_a_shell_completes_commands_options_runs_and_jobs(told, terminal, monkeypatch, typed, completed) -> None:
    monkeypatch.setenv("_HEADCOUNT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["headcount", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    assert terminal() == (0, "".join(f"{word}\n" for word in completed), "")


def test_completion_is_silent_without_a_service(terminal, monkeypatch) -> None:
    monkeypatch.setenv("HEADCOUNT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("_HEADCOUNT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "headcount\nlogs\na")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert terminal()[2] == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_of_completion_names_the_command(terminal, shell) -> None:
    code, out, _ = terminal("completion", shell)
    assert (code, "_HEADCOUNT_COMPLETE" in out, f"complete_{shell}" in out) == (0, True, True)
    assert terminal("completion", "cmd")[0] == 2


@pytest.mark.parametrize(
    ("end", "code", "advice"),
    [("succeeded", 0, "generate one"), ("failed", 1, f"logs {JOB}"), ("cancelled", 75, f"resume {JOB}")],
)
def test_after_following_the_next_commands_are_named(service, terminal, tmp_path, end, code, advice) -> None:
    (tmp_path / "a.yaml").write_text("experiment_name: one\n")
    service.says("POST /jobs", job(status="queued"), 202)
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), status(end)))
    ended, out, _ = terminal("submit", str(tmp_path / "a.yaml"), "--follow")
    assert (ended, f"headcount {advice}" in out) == (code, True)
    ended, out, _ = terminal("submit", str(tmp_path / "a.yaml"), "--follow", "--json")
    assert (ended, [json.loads(line).get("status") for line in out.splitlines()]) == (code, ["queued", "running", end])


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("door", ["file", "preset"])
def test_our_own_presets_give_no_warnings(preset, door) -> None:
    tree = preset_tree(preset) if door == "file" else {"job": {"preset": preset}}
    assert parse_spec(tree).warnings == ()
    assert parse_config(preset_tree(preset)).warnings == ()


def test_make_up_takes_a_port() -> None:
    root = Path(__file__).parents[2]
    make = ["make", "--no-print-directory", "-n", "up"]  # under `make test` it is a make of its own
    for port, command in {"PORT=": "up", "PORT=8001": "up --port 8001"}.items():
        shown = subprocess.run([*make, port], capture_output=True, text=True, cwd=root, check=True).stdout
        assert shown.splitlines()[-1].partition("headcount ")[2].strip() == command


def test_lines_of_the_api_log_have_times(tmp_path) -> None:
    program = (
        "import json, logging.config; logging.config.dictConfig(json.load(open('service/log_config.json'))); "
        "logging.getLogger('uvicorn.error').info('a'); logging.getLogger('service.x').warning('b'); "
        "logging.getLogger('uvicorn.access').info('%s - \"%s %s HTTP/%s\" %d', 'host', 'GET', '/jobs', '1.1', 200)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = (said.stdout + said.stderr).splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in lines)


def test_programs_by_hand_replace_too_and_are_not_controlled(tmp_path) -> None:
    source = tmp_path / "Zoë.jsonl"
    source.write_text("".join(json.dumps({"text": f"{NASTY} {i}"}) + "\n" for i in range(40)))
    options = ["--source", f"file:{source}", "--name", "nasty", "--tokenizer", "gpt2", "--data-root", str(tmp_path)]
    command = [sys.executable, "-m", "model_core.data.prepare", *options]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}  # lacks letters, and has control characters
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    said = (ended.stdout + ended.stderr).decode("latin-1")
    assert (ended.returncode, "Traceback" in said, _controls(said)) == (0, False, [])


@settings(max_examples=50, deadline=None)
@given(st.text(), st.integers(1, 9))
def test_any_text_comes_whole_over_a_stream_and_safe_to_the_terminal(text, block) -> None:
    sent = f"data: {json.dumps({'text': text}, ensure_ascii=False)}\r\n\r\n".encode()
    blocks = (sent[i : i + block] for i in range(0, len(sent), block))
    assert [json.loads(message.data)["text"] for message in messages(event_stream_lines(blocks))] == [text]
    assert (len(f"{one_line(text)}.".splitlines()), _controls(one_line(text))) == (1, [])
    assert _controls(printable(text)) == []
    assert (json.loads(json_text(text)), len(json_text(text).splitlines())) == (text, 1)
