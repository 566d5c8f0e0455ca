"""Load folders with transformers, in a process without our packages and without a network.

    python in_transformers.py REQUEST.json ANSWER.pt

It makes the folders of `make` with random weights, and loads those of `load`. It runs in transformers 4.51 and 5.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    set_seed,
)


def made(folder: Path, asked: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Save a random model as asked; returns its logits."""
    set_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**asked["config"], attn_implementation="eager")).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    if asked["as"] == "half":
        model.half()
    if asked["as"] == "pickle":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        part = model.transformer if asked["as"] == "body" else model
        part.save_pretrained(folder, max_shard_size="40KB" if asked["as"] == "sharded" else "1GB")
    with torch.no_grad():
        return model.float()(ids).logits


def loaded(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Load a folder in every way; returns what came of it."""
    ids = torch.tensor(asked["ids"])
    how = {"trust_remote_code": True, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **how)
    fused = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **how)
    tokenizer, processor = (auto.from_pretrained(folder, **how) for auto in (AutoTokenizer, AutoProcessor))
    with torch.no_grad():
        answer = model(ids, output_attentions=True)
        mask = torch.ones_like(ids)
        write = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
        written = {
            "cached": model.generate(ids, use_cache=True, **write),
            "recomputed": model.generate(ids, use_cache=False, **write),
            "fused": fused.generate(ids, **write),
        }
        if not transformers.__version__.startswith("4."):  # where GPT-2 has no such cache
            written["static"] = model.generate(ids, cache_implementation="static", **write)
        body = AutoModel.from_pretrained(folder, **how)(ids).last_hidden_state
        head = model.lm_head(body)
    again = folder.with_name(f"{folder.name}-again-{transformers.__version__}")
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    encoded = tokenizer(asked["text"])["input_ids"]
    return {
        "class": type(model).__name__,
        "logits": answer.logits,
        "fused": fused(ids).logits.detach(),
        "of_body": head,
        "attentions": list(answer.attentions),
        "written": written,
        "encoded": encoded,
        "processed": processor(asked["text"])["input_ids"],
        "decoded": tokenizer.decode(encoded),
        "special": (tokenizer.bos_token_id, tokenizer.eos_token_id),
        "again": str(again),
        "plain": _plain(folder, ids),
    }


def _plain(folder: Path, ids: torch.Tensor) -> torch.Tensor | str:
    try:
        return GPT2LMHeadModel.from_pretrained(folder)(ids).logits.detach()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    answer = {
        "version": transformers.__version__,
        "made": {n: made(Path(a["folder"]), a, torch.tensor(request["ids"])) for n, a in request["make"].items()},
        "loaded": {name: loaded(Path(asked["folder"]), asked) for name, asked in request["load"].items()},
    }
    torch.save(answer, sys.argv[2])
