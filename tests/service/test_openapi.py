"""The OpenAPI document and its page."""

import json
import shutil
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def schema(site) -> dict[str, Any]:
    document: dict[str, Any] = site.http.get("/openapi.json").json()
    return document


def test_every_reference_leads_somewhere_and_every_operation_declares_problems(schema) -> None:
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert set(references(schema)) <= known
    assert "HTTPValidationError" not in json.dumps(schema)
    for path, operations in schema["paths"].items():
        kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
        for operation in operations.values():
            assert set(operation["responses"]["default"]["content"]) == {kind}, path


@pytest.mark.parametrize("kind", ["application/json", "application/yaml"])
@pytest.mark.parametrize("path", ["/jobs", "/configs/validate"])
def test_the_examples_of_a_body_work_when_they_are_sent(site, schema, path: str, kind: str) -> None:
    content = schema["paths"][path]["post"]["requestBody"]["content"][kind]
    body = yaml.safe_dump(content["example"]) if kind.endswith("yaml") else json.dumps(content["example"])
    reply = site.http.post(path, content=body, headers={"Content-Type": kind})
    assert reply.status_code in {200, 202}, reply.text


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize", "/score"])
def test_the_example_of_a_body_of_json_is_a_request(schema, path: str) -> None:
    content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    jsonschema.validate(content["example"], content["schema"])


def test_the_example_of_generate_is_a_request(schema) -> None:
    content = schema["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    resolved = {"$defs": schema["components"]["schemas"], **schema["components"]["schemas"]["GenerateRequest-Input"]}
    jsonschema.validate(content["example"], resolved)


def test_answers_are_what_the_schema_says(site, schema) -> None:
    job = site.submit("tiny")
    site.make_run("tiny", job_id=job["id"])
    for path, template in (
        (job["links"]["self"], "/jobs/{job_id}"),
        ("/jobs", "/jobs"),
        ("/runs/tiny", "/runs/{run}"),
        ("/runs/tiny/report", "/runs/{run}/report"),
        ("/runs", "/runs"),
        ("/configs", "/configs"),
        (f"{job['links']['events']}", "/jobs/{job_id}/events"),
        (f"{job['links']['metrics']}?name=loss,val_loss", "/jobs/{job_id}/metrics"),
    ):
        answer = schema["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        text = json.dumps({**answer, "components": schema["components"]})
        jsonschema.validate(site.http.get(path).json(), json.loads(text))


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_a_browser_shows_the_page_and_asks_no_other_host(site) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.url}/docs")
        block = page.locator("#operations-jobs-submit_jobs_post")
        block.locator(".opblock-summary-control").click()
        block.get_by_label("Request content type").select_option("application/yaml")
        text = block.locator("textarea.body-param__text")
        assert text.input_value().startswith("experiment_name: quickstart")
        block.locator("button.execute").click()
        block.locator(".live-responses-table .response-col_status").first.wait_for()
        assert "202" in block.locator(".live-responses-table tbody .response-col_status").first.inner_text()
        browser.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith("data:")}
    assert hosts == {urlsplit(site.url).netloc}
    assert [job["run"] for job in site.http.get("/jobs").json()["data"]] == ["quickstart", None]


def references(value: Any) -> list[str]:
    """Every $ref below a value."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in references(item)]
    return [found for item in value for found in references(item)] if isinstance(value, list) else []
