"""README.md of an exported folder: a short model card with what is known and nothing else.

It includes the origin of the run's data and its licence, as far as manifest and configuration record them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from model_core.catalog import LICENCES_MADE_HERE, HubDataset, hub_dataset
from model_core.config import DataConfig, ExperimentConfig, ModelConfig
from model_core.errors import InvalidData
from model_core.hf.hf_config import is_plain
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import Dataset
from model_core.tokenizer import Tokenizer

_UNKNOWN = "not known here"


@dataclass(frozen=True)
class Provenance:
    """Origin of a dataset.

    Attributes:
        source: From what it was made, in Markdown.
        licence: Licence as its publisher states it.
        hub: Name on the Hugging Face hub; None if it is not from there.
    """

    source: str = _UNKNOWN
    licence: str = _UNKNOWN
    hub: str | None = None


def render_card(
    run: str,
    info: CheckpointInfo,
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    provenance: Provenance,
    *,
    licence: str | None = None,
    imported: str | None = None,
) -> str:
    """Write the model card.

    Args:
        run: Name of the run.
        info: Sidecar of the checkpoint.
        config: Configuration of the run.
        tokenizer: Tokenizer of the run.
        provenance: Origin of the data on which it was trained.
        licence: Licence of the model, as the Hub names licences; None if it is not stated.
        imported: Name of the folder from which the run was imported, so that its training is unknown.

    Returns:
        Markdown with a YAML head.
    """
    model = config.model
    facts = {
        "run": f"`{run}`, {info.file}",
        **(_training(info, config, provenance) if imported is None else _before(imported)),
        **_numbers(tokenizer),
        "licence of the model": licence or "not stated",
    }
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {"license": licence} if licence else {}
    head |= {"datasets": [provenance.hub]} if provenance.hub and imported is None else {}
    head["tags"] = ["gpt2", "headcount"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run}",
        _introduction(model),
        "## Loading",
        _loading(model),
        "## Training",
        _table(("", ""), tuple(facts.items())),
        "## Layers",
        _layers(model),
    ]
    return "\n\n".join(parts) + "\n"


def find_provenance(data: DataConfig, dataset: Dataset, trained_at: str) -> Provenance:
    """Find the origin of the data on which a checkpoint was trained.

    Args:
        data: Section `data` of the run.
        dataset: Dataset that has the name now, if there is one.
        trained_at: When the checkpoint was saved, RFC 3339 UTC; a dataset that was made later is another one.

    Returns:
        What manifest or configuration record.
    """
    try:
        manifest = dataset.manifest()
    except InvalidData:
        manifest = None
    if manifest is None or manifest["created_at"] > trained_at:
        manifest = {"source": data.source, "revision": data.revision, "origin": {}}
    source = manifest["source"]
    if source is None:
        return Provenance()
    hub = hub_dataset(source)
    if hub is None:  # made by this program, or from a file, whose name stays private
        form = source.partition(":")[0]
        return Provenance(f"`{form}`", LICENCES_MADE_HERE.get(form, _UNKNOWN))
    return Provenance(_published(hub, manifest), manifest["origin"].get("licence") or hub.licence, hub.id)


def _introduction(model: ModelConfig) -> str:
    sizes = f"width {model.n_embd}, context {model.block_size} tokens, vocabulary {model.vocab_size}"
    if is_plain(model):
        return f"A GPT-2 of {model.n_layer} layers with {model.heads[0]} attention heads each ({sizes})."
    return f"A GPT-2 of {model.n_layer} layers whose attention heads differ from GPT-2's, see below ({sizes})."


def _loading(model: ModelConfig) -> str:
    trust = "" if is_plain(model) else ", trust_remote_code=True"
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})',
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})',
        'text = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**text, max_new_tokens=50)[0]))",
    ]
    block = "\n".join(["```python", *code, "```"])
    if is_plain(model):
        return block
    why = "`modeling_headcount.py` gives every layer its own heads; transformers runs it with `trust_remote_code=True`."
    return f"{block}\n\n{why} A plain `GPT2LMHeadModel` refuses this folder."


def _training(info: CheckpointInfo, config: ExperimentConfig, provenance: Provenance) -> dict[str, str]:
    loss = "not measured" if info.val_loss is None else f"{info.val_loss:.4f} nats a token"
    return {
        "steps": f"{info.step:,}",
        "validation loss": loss,
        "data": f"`{config.data.dataset_name}`",
        "made from": provenance.source,
        "licence of the data": provenance.licence,
    }


def _before(imported: str) -> dict[str, str]:
    return {"origin": f"imported from a folder `{imported}`; its training is not known here"}


def _numbers(tokenizer: Tokenizer) -> dict[str, str]:
    bpe = "GPT-2's BPE" if tokenizer.kind == "gpt2" else "a byte-level BPE of its own"
    return {"tokenizer": f"{bpe}, {tokenizer.n_vocab:,} ids", "numbers": "float32"}


def _layers(model: ModelConfig) -> str:
    shape = zip(model.heads, model.head_dims, strict=True)
    rows = [(str(layer), str(heads), str(dim)) for layer, (heads, dim) in enumerate(shape)]
    return _table(("layer", "heads", "head size"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _published(hub: HubDataset, manifest: dict[str, Any]) -> str:
    config = manifest["origin"].get("config") or hub.config
    which = f", configuration `{config}`" if config else ""
    at = f", at `{manifest['revision']}`" if manifest["revision"] else ""
    return f"[{hub.id}]({hub.page}){which}{at}"
