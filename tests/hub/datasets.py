"""Datasets and tokens of the emulated hub: one for each reason that reading can fail."""

from tests.hub.emulator import Hub, Repository, parquet

CANARY = "hf_CanaryInTheMine"
ROWS = [{"text": f"Story {n}. " + "word " * (n % 40), "category": "abc"[n % 3]} for n in range(150)]
TRAIN = [[row["text"], row["category"]] for row in ROWS[:120]]
CARD = b"""---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
---
"""
FILES = {
    "README.md": CARD,
    "data/train-00000-of-00002.parquet": parquet(ROWS[:70]),
    "data/train-00001-of-00002.parquet": parquet(ROWS[70:120]),
    "data/validation-00000-of-00001.parquet": parquet(ROWS[120:]),
}
TWO = b"---\nconfigs:\n- config_name: one\n  data_files: one/*\n- config_name: two\n  data_files: two/*\n---\n"
WIKITEXT = TWO.replace(b"one", b"wikitext-103-raw-v1")
LINES = [
    "",
    " = Cats = \n",
    "",
    " A cat sat . \n",
    " = = Diet = = \n",
    " Fish . \n",
    "",
    " = Dogs = \n",
    " A dog ran . \n",
]
# Two lines of twelve megabytes: what has come of a file is kept in pieces of ten.
LONG = b"".join(b'{"text": "%s", "more": "%s"}\n' % (text, b"x" * 12 * 2**20) for text in (b"One.", b"Two."))

REPOSITORIES = {
    "demo/public": Repository(FILES),
    "demo/gated": Repository(FILES, gated=True),
    "demo/cut": Repository({"data/train.jsonl": LONG}),
    "demo/rangeless": Repository({"data/train.jsonl": LONG}, ranges=False),
    "demo/shaky": Repository(FILES),
    "demo/lines": Repository({"test.jsonl": b'{"text": "One."}\n', "validation.jsonl": b'{"text": "Two."}\n'}),
    "demo/two": Repository({"README.md": TWO, "one/a.parquet": parquet(ROWS[:1]), "two/b.parquet": parquet(ROWS[1:2])}),
    "demo/huge": Repository({"train.txt": b"One."}, claims={"train.txt": 10**18}),
    "demo/program": Repository({"program.py": b"import datasets"}),
    "demo/table": Repository({"train.arrow": b"ARROW1"}),
    "demo/bare": Repository({"README.md": b"nothing yet"}),
    "demo/broken": Repository({"data/train.jsonl": b'{"text": "One."}\n{"text": \n'}),
    "BabyLM-community/babylm-eng": Repository(FILES, gated=True),
    "Skylion007/openwebtext": Repository(
        {"plain_text/partial-train/0000.parquet": parquet(ROWS[:2])}, branches=("refs/convert/parquet",)
    ),
    "Salesforce/wikitext": Repository(
        {
            "README.md": WIKITEXT,
            "wikitext-103-raw-v1/train-00000.parquet": parquet([{"text": line} for line in LINES]),
            "two/train-00000.parquet": parquet(ROWS),
        }
    ),
}
GATED = ("demo/gated", "BabyLM-community/babylm-eng")
TOKENS = {
    CANARY: dict.fromkeys(GATED, "granted"),
    "hf_new": {},
    "hf_waits": dict.fromkeys(GATED, "pending"),
    "hf_rejected": dict.fromkeys(GATED, "rejected"),
    "hf_old": {"expired": ""},
    "hf_narrow": {"demo/public": "forbidden"},
}


def fill(hub: Hub) -> None:
    """Give a hub all of them."""
    hub.repositories.update(REPOSITORIES)
    hub.tokens.update(TOKENS)
    hub.cuts.update({"demo/cut": 1, "demo/rangeless": 1})
    hub.failures.update({"demo/shaky": 1})
