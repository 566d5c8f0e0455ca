"""The hub token: where it is found, and that no text contains it."""

import errno

import pytest

from model_core.catalog import HubDataset
from model_core.data.sources.hub_access import HubBadToken, HubUnreachable, Token, token_from, translate_hub_errors
from model_core.errors import DiskFull, InvalidData


def test_the_environment_wins_over_the_login_and_the_login_over_nothing(tmp_path):
    (tmp_path / "token").write_text("hf_login\n")
    home = {"HF_HOME": str(tmp_path)}
    found = token_from({**home, "HF_TOKEN": "hf_variable"})
    assert (found.checked(), found.origin) == ("hf_variable", "HF_TOKEN")
    logins = [home, {**home, "HF_TOKEN": " \n"}, {"HF_TOKEN_PATH": str(tmp_path / "token")}]
    assert {(token_from(login).checked(), token_from(login).origin) for login in logins} == {
        ("hf_login", "the file of `hf auth login`")
    }
    assert token_from({"XDG_CACHE_HOME": str(tmp_path)}) is None


def test_a_token_shows_itself_to_nobody_by_accident():
    token = Token(" hf_secret\n")
    assert "hf_secret" not in f"{token} {token!r} {[token]}"
    assert token.redacted("Bearer hf_secret is wrong") == "Bearer [HF_TOKEN] is wrong"
    assert token.is_padded


@pytest.mark.parametrize("value", ["hf_a\nb", "hf_a\tb", "hf_a b", "hf_\xe4", "hf_\x7f", "hf_\u2028b"])
def test_what_can_be_no_token_is_refused_without_being_repeated(value):
    with pytest.raises(HubBadToken) as refused:
        Token(value, "HF_TOKEN").checked()
    assert "hf_a" not in f"{refused.value} {refused.value.hint}"
    assert "hf_\xe4" not in str(refused.value)
    assert "HF_TOKEN" in str(refused.value)


@pytest.mark.parametrize(
    ("raised", "becomes", "said"),
    [
        (RuntimeError("illegal header value b'Bearer hf_secret'"), InvalidData, r"b'Bearer \[HF_TOKEN\]'"),
        (ConnectionError("hf_secret was cut off"), HubUnreachable, r"\[HF_TOKEN\] was cut off"),
        (PermissionError(errno.EACCES, "denied", "/cache"), InvalidData, "'a/b'.* '/cache'"),
        (OSError(errno.ENOSPC, "full", "/cache/blob"), DiskFull, "'blob'"),
    ],
)
def test_whatever_a_library_raises_becomes_an_error_of_ours_without_the_token(raised, becomes, said):
    with pytest.raises(becomes, match=said), translate_hub_errors(HubDataset("a/b"), Token(" hf_secret")):
        raise raised
