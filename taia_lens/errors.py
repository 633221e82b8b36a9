"""The one error family: what was asked, what was found, what exists, what to write instead. Bugs are not of this family."""

from __future__ import annotations


class TaiaLensError(ValueError):
    """Something the user asked for cannot be done; the message is one line that says why and what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # one line, also where a library's own message had several


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left: torch says so by an error of its own on CUDA, by words on the CPU and on MPS."""
    words = "out of memory", "can't allocate memory", "not enough memory"
    return type(error).__name__ == "OutOfMemoryError" or any(some in str(error) for some in words)  # torch is not loaded for a name


class SiteError(TaiaLensError):
    """A site, layer, head or position that does not exist or cannot be read."""


class RecipeError(TaiaLensError):
    """A recipe that cannot be read or carried out. `shown`: where it stands in a text, with carets under the word."""

    def __init__(self, message: str, *, shown: str = "") -> None:
        super().__init__(message)
        self.shown = shown


class SuiteError(TaiaLensError):
    """A suite, or a row of one, that cannot be used."""


class PairError(TaiaLensError):
    """A model that cannot be loaded, or two models that are no pair."""


class CheckError(TaiaLensError):
    """A law that a model pair fails, so that no number from it could be trusted."""


class ResultError(TaiaLensError):
    """A result that cannot be written or read."""
