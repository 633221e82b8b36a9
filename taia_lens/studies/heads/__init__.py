"""Heads: rankings of attention heads side by side, and head transfer between tasks."""

from taia_lens.studies.heads.across import transfer
from taia_lens.studies.heads.bench import BY, CHECKS, heads

__all__ = ["BY", "CHECKS", "heads", "transfer"]
