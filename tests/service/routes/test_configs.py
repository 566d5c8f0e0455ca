"""Presets and validation of configurations."""

import pytest
import yaml

from model_core.config_loader import preset_names, preset_text


def test_presets_are_listed_and_read_as_they_were_written(site) -> None:
    listed = site.http.get("/configs").json()["data"]
    assert [preset["name"] for preset in listed] == list(preset_names())
    site.submit("quickstart")
    quickstart = next(preset for preset in site.http.get("/configs").json()["data"] if preset["name"] == "quickstart")
    assert (quickstart["free_name"], quickstart["title"][:7]) == ("quickstart-2", "A small")
    assert (quickstart["model"]["heads"], quickstart["model"]["block_size"]) == ([8, 4, 2, 1], 256)
    text = site.http.get("/configs/quickstart")
    assert (text.text, text.headers["content-type"]) == (preset_text("quickstart"), "application/yaml")
    tree = site.http.get("/configs/quickstart", headers={"Accept": "application/json"}).json()
    assert tree == yaml.safe_load(text.text)
    assert site.http.get("/configs/quickstart", headers={"Accept": "image/png"}).status_code == 406
    assert site.http.get("/configs/nothing").json()["code"] == "unknown_preset"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_right(site, name: str) -> None:
    body, kind = preset_text(name), {"Content-Type": "application/yaml"}
    reply = site.http.post("/configs/validate", content=body, headers=kind)
    assert reply.status_code == 200, reply.text
    assert reply.json()["config"]["experiment_name"]
