"""Batches: every prompt once, padded on the right with a mask, answers of exactly one token, positions that exist."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from taia_lens.batch import NO_TOKEN, Batch, make_batches
from taia_lens.errors import SiteError, SuiteError
from taia_lens.metrics import Context, measure
from taia_lens.suite import Suite, make_suite


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_every_row_is_in_one_batch_with_its_own_tokens(suite: Suite, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    batches = make_batches(suite, tokenizer, size)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(suite)))
    assert all(len(batch.rows) <= size for batch in batches)
    for batch in batches:
        for i, row in enumerate(batch.rows):
            prompt = tokenizer(suite.rows[row].prompt)["input_ids"]
            assert batch.tokens[i, batch.mask[i]].tolist() == prompt
            assert batch.last[i] == len(prompt) - 1
            assert tokenizer.decode([batch.answer[i]]) == suite.rows[row].answer.strip()
            assert tokenizer.decode([batch.contrast[i]]) == str(suite.rows[row].contrast).strip()


def test_padding_is_on_the_right_and_masked(batch: Batch) -> None:
    assert not batch.mask.all() and batch.mask[:, 0].all()
    assert (batch.mask.long().diff(dim=1) <= 0).all()  # once padding starts it does not end


def test_rows_of_one_length_need_no_padding_together(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    whole = make_batches(suite, tokenizer, len(suite))[0]
    padding = [int((~b.mask).sum()) for b in make_batches(suite, tokenizer, 3)]
    assert sum(padding) < int((~whole.mask).sum())


def test_choices_are_one_token_each_and_filled_up(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"prompt": "w1", "choices": [" w3", " w4", " w5"], "label": 2, "domain": "id"},
        {"prompt": "w2", "choices": [" w6", " w7"], "label": 0, "domain": "id"},
    ]
    (batch,) = make_batches(make_suite("choices", rows), tokenizer, 2)
    assert batch.choices.tolist() == [[7, 8, 9], [10, 11, NO_TOKEN]] and batch.answer.tolist() == [9, 10]
    assert batch.contrast.tolist() == [NO_TOKEN, NO_TOKEN]


def test_choices_that_fill_up_a_row_are_never_chosen(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"prompt": "w1", "choices": [" w3", " w4", " w5"], "label": 2, "domain": "id"},
        {"prompt": "w2", "choices": [" w6", " w7"], "label": 0, "domain": "id"},
    ]
    (batch,) = make_batches(make_suite("choices", rows), tokenizer, 2)
    logits = torch.zeros(2, 64)
    logits[0, 9], logits[1, 10], logits[1, 11] = 3.0, 1.0, -1.0
    logits[:, 0] = logits[:, -1] = 50.0  # where -1 or a clamped 0 would point
    found = measure(["choice_accuracy", "logit_diff", "accuracy"], Context(batch, logits, logits), logits)
    assert found["choice_accuracy"].tolist() == [1.0, 1.0] and found["accuracy"].tolist() == [0.0, 0.0]
    assert found["logit_diff"].tolist() == [3.0, 2.0]  # 3 - mean(0, 0); 1 - -1


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_metrics_are_what_their_definitions_say(seed: int, batch: Batch) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, host, donor = (torch.randn(len(batch.rows), 64, generator=generator) for _ in range(3))
    found = measure(["prob", "logprob", "logit_diff", "kl_host", "kl_donor"], Context(batch, host, donor), logits)
    p, rows = logits.double().softmax(-1), torch.arange(len(batch.rows))
    for name, end in (("kl_host", host), ("kl_donor", donor)):
        q = end.double().softmax(-1)
        torch.testing.assert_close(found[name].double(), (q * (q / p).log()).sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["prob"].double(), p[rows, batch.answer], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["logprob"].double(), p[rows, batch.answer].log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["logit_diff"], logits[rows, batch.answer] - logits[rows, batch.contrast])


def test_the_divergence_from_itself_is_zero(batch: Batch) -> None:
    logits = torch.randn(len(batch.rows), 64, generator=torch.Generator().manual_seed(0))
    found = measure(["kl_host"], Context(batch, logits, logits + 1), logits)["kl_host"]
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": " w1 w2"}, r"row 0: the answer ' w1 w2' is 2 tokens \(w1 \| w2\), and one token is needed; give one of one token"),
        ({"answer": " zebra"}, r"the answer ' zebra' is not in the vocabulary, and one token is needed"),
        ({"answer": "w1"}, r"the answer 'w1' joins with the prompt's last word, .*; write ' w1' with a leading space"),
        ({"answer": " w1", "contrast": " w2 w3"}, r"the contrast ' w2 w3' is 2 tokens"),
        ({"choices": [" w1", " w2 w3"], "label": 0}, r"the choice ' w2 w3' is 2 tokens"),
        ({"choices": [" w1", "  w1"], "label": 0}, r"two of its answers are the same token"),
        ({"answer": " w1", "contrast": "  w1"}, r"two of its answers are the same token"),
    ],
    ids=str,
)
def test_answers_of_more_or_less_than_one_token_are_refused(tokenizer: PreTrainedTokenizerBase, row: dict, message: str) -> None:
    suite = make_suite("bad", [{"prompt": "w5 w6", "domain": "id"} | row])
    with pytest.raises(SuiteError, match=message) as caught:
        make_batches(suite, tokenizer, 2)
    assert "\n" not in str(caught.value)


def test_a_batch_size_of_nothing_is_refused(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    for size in (0, -3):
        with pytest.raises(SuiteError, match=f"a batch size of {size} holds no prompt; write 1 or more"):
            make_batches(suite, tokenizer, size)


def test_a_tokenizer_that_ends_every_text_keeps_the_answer_in_its_place(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert isinstance(raw.model, models.WordLevel)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    ending = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (plain,), (ended,) = (make_batches(suite, t, len(suite)) for t in (tokenizer, ending))
    assert torch.equal(plain.answer, ended.answer)
    # The answer is predicted by the prompt's last word, not by an end-of-text that no answer ever follows.
    for i in range(len(suite)):
        assert ended.tokens[i, ended.mask[i]].tolist() == [1, *plain.tokens[i, plain.mask[i]].tolist()]


# Positions


def test_positions_are_where_they_say(batch: Batch) -> None:
    for i in range(len(batch.rows)):
        length = int(batch.mask[i].sum())
        for position in (0, 1, -1, -2):
            assert batch.at((position,))[i].nonzero().flatten().tolist() == [position % length]
        assert batch.at("last")[i].nonzero().flatten().tolist() == [length - 1]
        assert batch.at((0, -1))[i].nonzero().flatten().tolist() == sorted({0, length - 1})
    assert torch.equal(batch.at("all"), batch.mask)


def test_a_position_that_some_row_lacks_is_refused(batch: Batch) -> None:
    for position in (2, -3, 100):
        with pytest.raises(SiteError, match=rf"no position {position}: the shortest prompt has 2 tokens; positions are -2 to 1"):
            batch.at((0, position))


def test_a_key_is_of_the_tokens_and_the_mask_only(suite: Suite, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> None:
    (again,) = make_batches(suite, tokenizer, len(suite))
    assert again.key == batch.key
    tokens, mask = batch.tokens.clone(), batch.mask.clone()
    tokens[0, 0] += 1
    mask[-1, -1] = False
    for other in (
        Batch(batch.rows, tokens, batch.mask, batch.answer, batch.choices, batch.contrast),
        Batch(batch.rows, batch.tokens, mask, batch.answer, batch.choices, batch.contrast),
    ):
        assert other.key != batch.key


def test_what_goes_to_a_gpu_is_pinned_and_not_waited_for(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the GPU: what is asked of torch."""
    asked: list[object] = []
    real = torch.Tensor.to

    def to(self: torch.Tensor, device: object, **named: object) -> torch.Tensor:
        if not str(device).startswith("cuda"):
            return real(self, device, **named)  # type: ignore[call-overload]
        asked.append(named)
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    batch.to("cuda:1")
    assert asked == ["pinned", {"non_blocking": True}] * 5
    asked.clear()
    assert torch.equal(batch.to("cpu").tokens, batch.tokens) and asked == []
