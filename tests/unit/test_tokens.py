"""Signed webhook tokens: only what one of our secrets has signed names an attempt."""

from uuid import UUID

import pytest
from pydantic import SecretStr

from worker.stages.tokens import TokenName, read_token, sign_token

NEW, OLD, OTHER = (SecretStr(letter * 32) for letter in "noe")
NAME = TokenName(UUID("0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69"), 12, "Zq-3_0aB9xYw")
TOKEN = sign_token(NAME, NEW)


def test_token_is_short_and_fits_into_a_url():
    assert len(TOKEN) < 80
    assert TOKEN.replace(".", "").replace("-", "").replace("_", "").isalnum()
    assert len(TOKEN.rpartition(".")[2]) * 6 >= 128


@pytest.mark.parametrize("secrets", [(NEW,), (NEW, OLD), (OLD, NEW)])
def test_token_that_any_secret_of_the_list_has_signed_names_its_attempt(secrets):
    assert read_token(TOKEN, secrets) == NAME


@pytest.mark.parametrize("secrets", [(), (OTHER,), (OLD, OTHER)])
def test_token_of_another_secret_names_nothing(secrets):
    assert read_token(TOKEN, secrets) is None


def spoil(place: int) -> str:
    letter = "A" if TOKEN[place] != "A" else "B"
    return TOKEN[:place] + letter + TOKEN[place + 1 :]


@pytest.mark.parametrize("place", range(len(TOKEN)))
def test_token_with_any_letter_changed_names_nothing(place):
    assert read_token(spoil(place), [NEW]) is None


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a-random-token-of-today",
        f"{TOKEN} ",
        f"{TOKEN}\n",
        f" {TOKEN}",
        f"{TOKEN}=",
        f"{TOKEN}.x",
        TOKEN[:-1],
        TOKEN.replace(".12.", ".012."),
        TOKEN.replace(".12.", ".١٢."),
        TOKEN.rpartition(".")[0] + ".",
        "x" * 100_000,
    ],
    ids=repr,
)
def test_text_of_another_form_names_nothing(token):
    assert read_token(token, [NEW]) is None


def test_tokens_of_another_job_number_or_epoch_differ():
    others = {
        sign_token(TokenName(NAME.job_id, 13, NAME.epoch), NEW),
        sign_token(TokenName(NAME.job_id, 12, "0"), NEW),
        sign_token(TokenName(UUID(int=7), 12, NAME.epoch), NEW),
        sign_token(NAME, OLD),
        TOKEN,
    }
    assert len({token.rpartition(".")[2] for token in others}) == 5
