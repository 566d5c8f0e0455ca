"""A service with a real inference application, in a thread, and runs of tiny random models."""

from pathlib import Path
from typing import Any

import httpx
import torch

from model_core.attention.quota import AttentionQuota
from model_core.checkpoint import parameters_state, writer
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST, CheckpointInfo
from model_core.storage.dataset import EXAMPLES, Dataset
from model_core.storage.dataset import TOKENIZER as TOKENIZER_FILE
from model_core.storage.files import write_json
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from tests.service.conftest import TOKENIZER, TREE, Site
from tests.service.fake_host import Served
from worker.inference.app import create_app
from worker.inference.model_cache import ModelCache
from worker.jobs.settings import InferenceSettings

N_VOCAB, BLOCK = 280, 64
TEXTS = ["One day a little cat went to the garden. The cat saw a red ball, and she was happy."] * 3
OWN = train_bpe(TEXTS, N_VOCAB)
DATA = {"source": "stories", "tokenizer": {"type": "bpe", "vocab_size": N_VOCAB}}


class RealSite(Site):
    """A running service and an inference application that computes.

    Args:
        data: Data root.
        redis_url: Address of an empty Redis.
        quota_bytes: Most bytes of attention on disk.
    """

    def __init__(self, data: Path, redis_url: str, *, quota_bytes: int = 1 << 30) -> None:
        super().__init__(data, redis_url)
        self.add_texts("texts")
        models = ModelCache(self.layout, device="cpu", settings=InferenceSettings(memory_gb=0.2, weights="fp32"))
        self._inference = Served(create_app(models, quota=AttentionQuota(self.layout, quota_bytes)))
        self.registry.register("inference", "real", {"url": self._inference.url, "device": "cpu", "models": []}, 900)

    def add_texts(self, name: str) -> Dataset:
        """A dataset of the models' own tokenizer, with ten examples."""
        made = self.add_dataset(name, tokenizer={**TOKENIZER, "n_vocab": N_VOCAB, "sha256": OWN.sha256})
        write_json(made.directory / TOKENIZER_FILE, OWN.to_dict())
        ids = [OWN.encode(TEXTS[0])[number:] for number in range(10)]
        examples = [{"id": n, "text": OWN.decode(tokens), "tokens": tokens} for n, tokens in enumerate(ids)]
        write_json(made.directory / EXAMPLES, examples)
        return made

    def add_model(self, name: str, *, dataset: str = "texts", seed: int = 0, **model: Any) -> Run:
        """A run with a real checkpoint."""
        shape = {**TREE["model"], "vocab_size": 320, "block_size": BLOCK, **model}
        run = self.make_run(name, checkpoint=None, model=shape, data={**DATA, "dataset": dataset})
        self.publish_model(run, seed=seed)
        return run

    def publish_model(self, run: Run, *, seed: int, file: str = BEST, step: int = 3) -> CheckpointInfo:
        """Write a checkpoint of random parameters."""
        torch.manual_seed(seed)
        state = parameters_state(GPT(run.config().model), run.config(), OWN, step)
        return run.publish(file, writer(state), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)

    def loaded_models(self) -> list[Any]:
        """Models in the memory of the inference application."""
        found: list[Any] = httpx.get(f"{self._inference.url}/healthz").json()["models"]
        return found

    def close(self) -> None:
        """Stop both servers."""
        self._inference.stop()
        super().close()
