"""One of two ranks that take steps together; it writes its results to a file.

The second runs out of memory, or gets a loss that is no number, where the test needs that.
"""

import json
import os
import sys
from pathlib import Path

import torch

from model_core.errors import ModelCoreError
from model_core.launch import dist_env
from model_core.training.distributed import ProcessGroup, Rendezvous
from model_core.training.trainer import take_step, train
from tests.model_core.factories import tiny_state


def state_of(ranks, *, rows=4, forward=None, on_oom="fail"):
    """A model in its first step; its rows are the same however many ranks share them."""
    torch.set_num_threads(1)
    section = {"batch_size": rows, "total_batch_size": 256, "max_steps": 2, "on_oom": on_oom}
    return tiny_state(ranks, forward=forward, **section)


def gradients_of_a_step(state):
    """The loss of one step, and what the optimizer was given."""
    given = []
    state.optimizer.register_step_pre_hook(lambda *_: given.extend(p.grad.flatten() for p in state.model.parameters()))
    return take_step(state).loss, torch.cat(given)


def _on_the_second(ranks, faulty):
    return lambda model: model if ranks.env.is_main else faulty(model)


def _short_of_memory(model):
    def forward(idx, targets):
        if len(idx) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return model(idx, targets)

    return forward


def _not_a_number(model):
    def forward(idx, targets):
        logits, loss = model(idx, targets)
        return logits, loss * float("nan")

    return forward


def _end_of(state):
    """How two steps ended, and whether the weights were touched."""
    before = [parameter.clone() for parameter in state.model.parameters()]
    try:
        train(state, (), lambda: False)
        code = "done"
    except ModelCoreError as error:
        code = error.code
    same = all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    return {"code": code, "batch_size": state.batch_size, "position": state.loader.position, "untouched": same}


def main(directory):
    rendezvous = Rendezvous(dist_env(os.environ))
    ranks = ProcessGroup.join(rendezvous, "cpu")
    loss, gradients = gradients_of_a_step(state_of(ranks))
    torch.save(gradients, directory / f"gradients{ranks.env.rank}.pt")
    ranks.seed_rank(7, 3)
    seen = {
        "loss": loss,
        "draw": torch.rand(1).item(),
        "non_finite": _end_of(state_of(ranks, forward=_on_the_second(ranks, _not_a_number))),
        "short": _end_of(state_of(ranks, forward=_on_the_second(ranks, _short_of_memory))),
        "halved": _end_of(state_of(ranks, forward=_on_the_second(ranks, _short_of_memory), on_oom="halve")),
        "stopped": [train(state := state_of(ranks), (), lambda: not ranks.env.is_main), state.step],
    }
    (directory / f"seen{ranks.env.rank}.json").write_text(json.dumps(seen))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
