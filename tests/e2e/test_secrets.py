"""No file of the service contains a token that a client sent in a query."""

import pytest

pytestmark = pytest.mark.e2e

CANARY = "hf_CanaryInTheMine"


def test_a_token_in_a_query_appears_in_no_file_of_the_service(service) -> None:
    refused = service.client.get("/datasets", params={"limit": 3, "hf_token": CANARY})
    assert (refused.status_code, CANARY in refused.text) == (422, False)
    assert "/datasets?limit=3&hf_token=*** " in (service.data / "logs" / "api.log").read_text()
    files = [path for path in service.data.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
