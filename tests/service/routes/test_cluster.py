"""Workers, GPUs and what fits on them."""

from typing import Any

from tests.polling import eventually
from tests.service.conftest import TREE

GPU = {"name": "NVIDIA H200", "memory_bytes": 141 << 30}


def announce(site: Any, name: str, *gpus: dict[str, Any], ttl_s: float = 60, **facts: Any) -> None:
    known = {"host": "node1", "pid": 7, "slots": 2, "busy": 0, "jobs": [], "memory_bytes": 4 << 30}
    site.registry.register("workers", name, {**known, "gpus": list(gpus), **facts}, ttl_s)


def test_workers_say_what_they_run(site) -> None:
    announce(site, "w2", {"index": 0, "uuid": "GPU-a", "job": "job_1", **GPU}, busy=1, jobs=["job_1"])
    announce(site, "w1", host="node2")
    page = site.http.get("/workers").json()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", "w1", "w2", False)
    worker = page["data"][1]
    assert worker | {"time": None} == {
        "object": "worker", "id": "w2", "host": "node1", "pid": 7, "slots": 2, "busy": 1, "jobs": ["job_1"],
        "gpus": [{"index": 0, "uuid": "GPU-a", "job": "job_1", **GPU}], "memory_bytes": 4 << 30, "time": None,
    }  # fmt: skip


def test_a_worker_that_fell_silent_is_not_listed(site) -> None:
    announce(site, "w1", {"index": 0, "uuid": "GPU-a", "job": None, **GPU}, ttl_s=0.2)
    announce(site, "w2")
    assert len(site.http.get("/workers").json()["data"]) == 2
    eventually(lambda: [worker["id"] for worker in site.http.get("/workers").json()["data"]] == ["w2"])
    assert site.http.get("/gpus").json()["data"] == []


def test_a_gpu_that_two_workers_share_is_listed_once(site) -> None:
    first, second = {"index": 0, "uuid": "GPU-a", **GPU}, {"index": 1, "uuid": "GPU-b", **GPU}
    announce(site, "w1", {**first, "job": None}, {**second, "job": None})
    announce(site, "w2", {**first, "job": "job_1"})
    announce(site, "w3", {"index": 0, "job": None, **GPU}, host="node2")
    gpus = site.http.get("/gpus").json()["data"]
    assert gpus == [
        {"object": "gpu", "id": "GPU-a", "host": "node1", "index": 0, "workers": ["w1", "w2"], "job": "job_1", **GPU},
        {"object": "gpu", "id": "GPU-b", "host": "node1", "index": 1, "workers": ["w1"], "job": None, **GPU},
        {"object": "gpu", "id": "w3/0", "host": "node2", "index": 0, "workers": ["w3"], "job": None, **GPU},
    ]


def test_the_queue_counts_what_waits_and_runs(site) -> None:
    assert site.http.get("/queue").json() == {
        "object": "queue", "queued": 0, "ready": 0, "waiting": 0, "running": 0, "data": [],
    }  # fmt: skip
    running = site.submit("running")
    site.claim()
    site.submit("low")
    site.submit("waits", job={"depends_on": [running["id"]], "priority": 9})
    site.submit("high", job={"priority": 1})
    site.submit("lower", job={"priority": -1})
    queue = site.http.get("/queue", params={"limit": 2}).json()
    assert {name: queue[name] for name in ("queued", "ready", "waiting", "running")} == {
        "queued": 4, "ready": 3, "waiting": 1, "running": 1,
    }  # fmt: skip
    assert [(job["run"], job["queue"]["position"]) for job in queue["data"]] == [("high", 1), ("low", 2)]
    assert site.http.get("/queue", params={"limit": 0}).status_code == 422


def test_a_job_that_asks_for_more_gpus_than_any_known_worker_has_is_refused(site) -> None:
    shared = {"training": {**TREE["training"], "sequence_length": 8, "total_batch_size": 128}}
    assert site.submit("nobody-knows", job={"resources": {"gpus": 8}}, **shared)["status"] == "queued"
    announce(site, "w1", *({"index": index, "uuid": f"GPU-{index}", "job": None, **GPU} for index in range(2)))
    announce(site, "w2")
    assert site.submit("two", job={"resources": {"gpus": 2}}, **shared)["status"] == "queued"
    body = {"experiment_name": "three", "data": {"source": "stories"}, "job": {"resources": {"gpus": 3}}}
    body["training"] = {"total_batch_size": 491_520}  # of three shares
    refused = site.http.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "does_not_fit")
    assert "3" in refused.json()["detail"]
    assert "gpus 2" in refused.json()["hint"]


def test_a_job_that_insists_on_a_gpu_is_refused_where_no_known_worker_has_one(site) -> None:
    announce(site, "w1")
    body = {"experiment_name": "x", "device": {"device": "cuda"}, "job": {"preset": "quickstart"}}
    refused = site.http.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "does_not_fit")
    assert "device.device" in refused.json()["hint"]


def test_processes_that_share_a_memory_need_as_much_each(site) -> None:
    announce(site, "w1")
    body = {"experiment_name": "many", "job": {"preset": "quickstart", "resources": {"processes": 64}}}
    body["training"] = {"batch_size": 1, "sequence_length": 64, "total_batch_size": 64 * 64}
    one = site.http.post("/jobs?validate_only=true", json={**body, "job": {"preset": "quickstart"}}).json()
    needed = one["budget"]["memory"]["required_bytes"] * 64 / 2**30
    refused = site.http.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "does_not_fit")
    assert f"{needed:,.1f} GiB" in refused.json()["detail"]
