"""How much is run, and held, at a time. A pair carries its own: what suits a machine is the user's to say."""

from __future__ import annotations

from dataclasses import dataclass

from taia_lens.errors import TaiaLensError


@dataclass(frozen=True)
class Budget:
    """How much is run, and held, at a time. It changes speed and memory, not results beyond rounding.

    Attributes:
        tokens: Of one call of a block. Fewer leave the processor idle, more fall out of its cache: `taia-lens check --measure`
            (`measure_pace`) finds what suits a model on a machine. It is not measured on the way, since stacks of other sizes
            would round otherwise, and a timing must not decide that. Halved where memory runs out.
        bytes: What residual streams may take up besides the models; a few nodes more where a deep trie needs them.

    A pair that is loaded takes another by `dataclasses.replace(pair, budget=Budget(tokens=6000))`.

    >>> Budget(tokens=6000)
    Budget(tokens=6000, bytes=536870912)
    """

    tokens: int = 1500
    bytes: int = 2**29

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.bytes < 1:
            raise TaiaLensError(f"a budget of {self.tokens} tokens and {self.bytes} bytes; write 1 or more of both")


BUDGET = Budget()
