"""What makes a dataset: the part of a configuration that decides its bytes.

Two jobs that want the same dataset made in the same way share one preparation; made in another way, it is another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from model_core.config import ExperimentConfig
from model_core.loading import parse_config

_MADE = "stories"  # a source whose documents follow from the seed
RECIPE = ("source", "revision", "text_column", "split", "dedupe", "tokenizer")  # keys of `data`, beside the seed


@dataclass(frozen=True)
class Preparation:
    """How a dataset is made.

    Attributes:
        dataset: Its name.
        config: Nothing but its section `data`, and `device.seed` where the dataset has a seed of its own.
    """

    dataset: str
    config: ExperimentConfig

    @classmethod
    def of(cls, config: ExperimentConfig, *, own_seed: bool = False) -> Preparation:
        """What a configuration wants prepared.

        Args:
            config: Whose `data.source` is set.
            own_seed: Whether its `device.seed` is the dataset's; a training's is not, so that trainings with other
                seeds share their data.
        """
        written = config.data.model_dump(mode="json", exclude_unset=True)
        data = {key: written[key] for key in RECIPE if key in written}
        tree: dict[str, Any] = {"data": {"dataset": config.data.dataset_name, **data}}
        if own_seed and "seed" in config.device.model_fields_set:
            tree["device"] = {"seed": config.device.seed}
        return cls(config.data.dataset_name, parse_config(tree).config)

    @property
    def recipe(self) -> str:
        """Equal for datasets that are made in the same way: a hash, a colon and the seed.

        A training takes a dataset that was split with another seed as well: for it only what stands before the colon
        counts, where the seed of made text is too.
        """
        seed, data = self.config.device.seed, self.config.data.model_dump(mode="json")
        facts = {key: data[key] for key in RECIPE} | ({"seed": seed} if data["source"] == _MADE else {})
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}:{seed}"
