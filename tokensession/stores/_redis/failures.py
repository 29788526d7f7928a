"""What an error of the driver or server means: one of our errors, and whether another try may help."""

from __future__ import annotations

import re

from redis import exceptions as driver

from ...errors import StoreUnavailable
from .._remote.operations import NoAnswer

__all__ = ["DRIVER_ERRORS", "code_of", "translated"]

# OSError is also the TimeoutError of `clock.bounded`.
DRIVER_ERRORS = (driver.RedisError, driver.RedisClusterException, OSError)

# The driver strips the server's code off the errors for which it has a class.
_CODES: dict[type[Exception], str] = {
    driver.ReadOnlyError: "READONLY",
    driver.OutOfMemoryError: "OOM",
    driver.NoPermissionError: "NOPERM",
    driver.MovedError: "MOVED",
    driver.AskError: "MOVED",
    driver.BusyLoadingError: "LOADING",
    driver.MasterDownError: "MASTERDOWN",
    driver.ClusterDownError: "CLUSTERDOWN",
    driver.TryAgainError: "TRYAGAIN",
    driver.AuthenticationError: "WRONGPASS",
    driver.AuthorizationError: "WRONGPASS",
    driver.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
}

# By the server's code: what happened, and what to do.
_REFUSALS = {
    "NOAUTH": ("wants a password", "Give the store's URL (redis://user:password@host) or your client one."),
    "WRONGPASS": ("rejected the user name or password", "Check the store's URL, and the server's users."),
    "DB": (
        "has no database of this number",
        "Correct the number at the end of the store's URL, or raise the server's setting `databases`.",
    ),
    "READONLY": ("is a replica, and cannot be written", "Connect to the primary, for example by Sentinel."),
    "OOM": ("is full", "Raise its maxmemory, or give the tokens a server of their own."),
    "MISCONF": ("cannot write to its disk, and takes no data", "Look into the server's log."),
    "NOREPLICAS": ("takes no data, because too few replicas are connected", "Check the replicas."),
    "WRONGTYPE": (
        "has something else under this record's name: another program's data",
        "Choose another prefix.",
    ),
    "NOPERM": (
        "does not permit this user a command, key or channel that the store needs",
        "Extend the user's rights: the store's documentation lists them.",
    ),
    "MOVED": ("is part of a cluster", "Pass a redis.asyncio.RedisCluster to RedisStore."),
}
# What a server says instead of NOPERM about a command of a script: Valkey, and Redis since version 7.
_DENIED = ("ACL failure in script", "The user executing the script can't")
# What a server before version 7 puts in front of an error of a script's command.
_IN_SCRIPT = re.compile(r"Error running script .*@user_script: ?\d+: -?")
_TRANSIENT = ("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")


def translated(error: Exception, where: str) -> StoreUnavailable | NoAnswer:
    """This error as one of ours. `where` names the server, without a password.

    What the server says is not repeated: it may contain the arguments of a command.
    """
    code = code_of(error)
    if code in _REFUSALS:
        happened, todo = _REFUSALS[code]
        return StoreUnavailable(f"{where} {happened}.", todo=todo)
    if code in _TRANSIENT:
        return NoAnswer(StoreUnavailable(f"{where} is not ready ({code}).", todo="Try again later."))
    if isinstance(error, driver.ResponseError):
        return StoreUnavailable(f"{where} answered with an error ({code or type(error).__name__}).")
    if isinstance(error, driver.ConnectionError):
        happened = f"{where} cannot be reached, or closed the connection."
    elif isinstance(error, driver.TimeoutError | OSError):
        happened = f"{where} did not answer in time."
    else:
        return StoreUnavailable(f"The driver for {where} failed ({type(error).__name__}).")
    return NoAnswer(StoreUnavailable(happened, todo="Check that it is running, and the store's URL."))


def code_of(error: Exception) -> str:
    """The server's code for this error, such as "READONLY", or ""."""
    if getattr(error, "status_code", None) == "NOAUTH":  # the driver's class is that of WRONGPASS
        return "NOAUTH"
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    text = _IN_SCRIPT.sub("", str(error))
    if text.startswith(_DENIED):
        return "NOPERM"
    first = text.split(" ", 1)[0]  # without the "ERR" of "DB index is out of range"
    return first if first.isalpha() and first.isupper() else ""
