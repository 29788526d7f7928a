"""The tree of errors: the docstring is right, messages have three parts, errors can be copied and pickled."""

from __future__ import annotations

import inspect
import pickle
import re
import traceback
from typing import Any

import pytest

from tokensession import errors
from tokensession.errors import TokenSessionError

CLASSES = [getattr(errors, name) for name in errors.__all__]
EXTRAS: dict[str, dict[str, Any]] = {
    "GrantRejected": {"code": "invalid_grant", "certain": False},
    "GrantLost": {"code": "invalid_grant", "certain": False},
    "ClientRejected": {"code": "invalid_client"},
    "Superseded": {"record": ("bytes", "version")},
    "InvalidTokenResponse": {"granted": True},
}
MAY_BE_SPENT = "If refresh tokens rotate here, the one that was sent may be spent."
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def made(kind: type[TokenSessionError]) -> TokenSessionError:
    pause = {"retry_after": 12.5} if issubclass(kind, errors.TokenUnavailable) else {}
    return kind("It happened.", **pause, **EXTRAS.get(kind.__name__, {}))


def tree_in_docstring() -> dict[str, str]:
    """Child → parent, as in the module's docstring."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |├── |└── |    )*)(\w+)", line)
        if match and match[2] in errors.__all__:
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            if depth:
                parents[match[2]] = above[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES if kind is not TokenSessionError}
    assert tree_in_docstring() == real


def test_every_error_of_the_module_is_public() -> None:
    defined = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)


def test_only_configuration_errors_are_value_errors() -> None:
    for kind in CLASSES:
        assert issubclass(kind, ValueError) is issubclass(kind, errors.ConfigurationError)


def test_no_two_branches_overlap() -> None:
    """Each branch needs one kind of reaction."""
    branches = [kind for kind in CLASSES if kind.__bases__[0] is TokenSessionError]
    for kind in CLASSES:
        if kind is not TokenSessionError:
            assert sum(issubclass(kind, branch) for branch in branches) == 1


@every_class
def test_a_message_says_what_happened_then_what_is_intact_then_what_to_do(
    kind: type[TokenSessionError],
) -> None:
    error = made(kind)
    text = re.sub(r" \(retry_after=[\d.]+ s\)$", "", str(error)).removesuffix(f" {MAY_BE_SPENT}")
    assert text == " ".join(filter(None, ("It happened.", error.intact, error.todo)))
    assert all(part == "" or part.endswith(".") for part in (error.intact, error.todo))
    assert (error.intact and error.todo) or isinstance(error, errors.ConfigurationError), "it has its own"


@every_class
def test_a_todo_that_you_pass_replaces_that_of_the_class(kind: type[TokenSessionError]) -> None:
    if "todo" in inspect.signature(kind).parameters:
        error = kind("It happened.", todo="Do this.")
        assert "Do this." in str(error)
        assert type(error).todo == "" or type(error).todo not in str(error)


def test_the_pause_is_shown_in_seconds() -> None:
    assert str(errors.TokenUnavailable("No.", retry_after=2.25)).endswith("(retry_after=2.2 s)")
    assert "retry_after" not in str(errors.TokenUnavailable("No."))


@every_class
def test_again_returns_a_copy_whose_traceback_says_it_once(kind: type[TokenSessionError]) -> None:
    original, cause = made(kind), ConnectionResetError()
    with pytest.raises(kind):
        raise original from cause
    copy = original.again()
    assert type(copy) is kind
    assert copy is not original
    assert copy.__cause__ is cause
    assert copy.__traceback__ is None
    with pytest.raises(kind) as raised:
        raise copy
    printed = "".join(traceback.format_exception(raised.value))
    assert printed.count(copy.args[0]) == 1
    assert (str(copy), copy.args, copy.__dict__) == (str(original), original.args, original.__dict__)


def test_what_a_caller_changes_on_a_copy_stays_with_the_copy() -> None:
    original = errors.TokenUnavailable("No.", retry_after=5)
    original.add_note("seen first")
    copy = original.again()
    copy.retry_after = 1
    copy.add_note("seen by one caller")
    assert original.retry_after == 5
    assert original.__notes__ == ["seen first"]
    assert original.again().__notes__ == ["seen first"]


@every_class
def test_an_error_survives_pickling(kind: type[TokenSessionError]) -> None:
    error = made(kind)
    error.todo = "Do this."
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is kind
        assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


def test_each_error_carries_what_its_handler_needs() -> None:
    assert errors.GrantRejected("No.", code="invalid_grant").code == "invalid_grant"
    assert errors.GrantRejected("No.").code == ""
    assert errors.ClientRejected("No.", code="invalid_client").code == "invalid_client"
    assert errors.RateLimited("No.", retry_after=3).retry_after == 3
    assert errors.NotSent("No.").retry_after is None
    assert errors.Superseded("No.", record="r").record == "r"


@pytest.mark.parametrize("kind", [errors.GrantRejected, errors.GrantLost])
def test_a_rejection_says_whether_the_credential_is_tried_again(kind: type[errors.GrantRejected]) -> None:
    certain, probable = kind("No."), kind("No.", certain=False)
    assert (certain.certain, probable.certain) == (True, False)
    assert "not sent again" in str(certain)
    assert "tried again from time to time" in str(probable)
    assert "tried again" not in str(kind("No.", certain=False, intact="All is well."))


def test_k26_an_error_after_a_lost_answer_does_not_say_that_the_credentials_are_unchanged() -> None:
    """It may have spent the refresh token, and "try again" must be true."""
    assert "unchanged" not in str(errors.OutcomeUnknown("It was reset."))
    assert "is not known" in str(errors.OutcomeUnknown("It was reset."))
    assert "unchanged" in str(errors.NotSent("No connection."))


def test_a_response_that_may_have_carried_a_token_says_that_the_refresh_token_may_be_spent() -> None:
    assert MAY_BE_SPENT in str(errors.InvalidTokenResponse("It is empty.", granted=True))
    assert MAY_BE_SPENT not in str(errors.InvalidTokenResponse("It is a page."))
    assert not errors.InvalidTokenResponse("It is a page.").granted
