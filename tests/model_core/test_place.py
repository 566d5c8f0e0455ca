"""Where a process stands among those that train together is what its variables say."""

import pytest

from model_core.errors import InvalidParameter
from model_core.launch import LISTENER, DistEnv, dist_env

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
OURS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "9", LISTENER: "5"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, DistEnv()),
        ({"WORLD_SIZE": "8"}, DistEnv()),
        (TORCHRUN, DistEnv(rank=3, world_size=4, local_rank=1, local_world=2, launched=True)),
        (OURS, DistEnv(rank=0, world_size=2, local_rank=0, local_world=2, port=9, listener=5, launched=True)),
        ({**OURS, "RANK": "1", "LOCAL_RANK": "1"}, DistEnv(1, 2, 1, 2, port=9, launched=True)),
    ],
)
def test_a_place_is_read_from_the_variables_of_a_launcher(environment: dict[str, str], place: DistEnv) -> None:
    assert dist_env(environment) == place


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "4"}, "RANK=4 WORLD_SIZE=4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 LOCAL_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "-1"}, "RANK='-1'"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_its_variables(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        dist_env({**TORCHRUN, **wrong})
