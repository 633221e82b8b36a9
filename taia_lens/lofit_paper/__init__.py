"""LoFiT's own experiments from end to end (Yin, Ye and Durrett, arXiv 2406.01563): its splits, its settings, its tests.

Where this differs from the paper's code, on purpose (https://github.com/fc2869/lo-fit, ebd344a):

- TruthfulQA is trained and tested with one prompt, `Q: ...` / `A:`, and without the six solved examples that the code puts in
  front when it tests only; MC2 is over all right answers of the dataset, not over the best one.
- Answers are compared without case, articles, spaces at the ends and sentence marks; the code's MQuAKE scorer keeps the space
  in front, so that a right answer of an untuned model counts as wrong.
- CLUTRR's answer follows `'s` on the same line, and generation stops at a full stop, a comma or a new line.
- Of the epochs the one with the lowest validation loss is kept, and the values learnt are float32 whatever the model is.
- Every fold and seed has a folder of its own, and offsets are kept.
"""

from taia_lens.lofit_paper.protocol import Protocol, protocol
from taia_lens.lofit_paper.run import CONTROLS, Outcome, run
from taia_lens.lofit_paper.tasks import TASKS, Fold, folds

__all__ = ["CONTROLS", "TASKS", "Fold", "Outcome", "Protocol", "folds", "protocol", "run"]
