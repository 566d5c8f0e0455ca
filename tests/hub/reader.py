"""Read datasets of the hub that the environment names; one process answers many requests.

Standard input: a list of questions ``{source, token, revision, column, skip}``. Standard output: the answers.
"""

import json
import sys
from typing import Any

from model_core.data.sources.hub_access import token_from
from model_core.data.sources.registry import open_source
from model_core.errors import ModelCoreError


def answer(question: dict[str, Any]) -> dict[str, Any]:
    token = token_from({"HF_TOKEN": question["token"], "HF_HOME": "/nowhere"})
    asked = {"revision": question.get("revision"), "text_column": question.get("column", "text")}
    try:
        source = open_source(question["source"], seed=0, token=token, **asked)
        documents = [[document.text, document.category] for document in source.documents(question.get("skip", 0))]
    except ModelCoreError as error:
        return {"code": error.code, "said": str(error), "hint": error.hint}
    advice = [advice.code for advice in source.warnings]
    told = {"revision": source.revision, "count": source.count, "text_bytes": source.text_bytes, "advice": advice}
    return {"code": None, "documents": documents, "facts": dict(source.facts), **told}


if __name__ == "__main__":
    json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout)
