"""The demo pair's training recipe: pretrain the base, tune adapters on it. Seeded, resumable, CPU or GPU.

Writes Hugging Face folders; measuring is `taia_lens.demo.measure`. A run is a function of its seed: the data of step k are
drawn from (seed, k), so a run that was stopped and resumed sees what an uninterrupted one sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from taia_lens.demo.world import World, pretraining_text, routing_tuning, truth_tuning
from taia_lens.errors import ResultError

PAD, BOS, EOS = 0, 1, 2
PROJECTIONS = {"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
POOL = 16  # batches drawn together and sorted by length, so that little is padded


@dataclass(frozen=True)
class Pretraining:
    """Recipe of the base. About 3.1M parameters."""

    seed: int = 0
    steps: int = 3200
    batch: int = 256
    lr: float = 1.5e-3
    warmup: int = 100
    layers: int = 16
    d_model: int = 128
    heads: int = 8
    d_mlp: int = 320
    save_every: int = 200


@dataclass(frozen=True)
class Tuning:
    """Recipe of the tuned side: LoRA on every projection (`train="attn"` gives TOA, `"mlp"` gives TOF)."""

    seed: int = 0
    steps: int = 400
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 10
    r: int = 16
    alpha: int = 32
    train: Literal["all", "attn", "mlp"] = "all"
    skill: Literal["routing", "truth"] = "routing"


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Whitespace-separated words, one id each, BOS in front."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(world.vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **specials)


def new_model(world: World, recipe: Pretraining) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.d_mlp,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def by_length(rows: list, batch: int, rng: np.random.Generator) -> list[list]:
    """Batches of rows of about equal length, in random order."""
    rows = sorted(rows, key=lambda r: len(r[0]) if isinstance(r, tuple) else len(r))
    chunks = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [chunks[i] for i in rng.permutation(len(chunks))]


def pretraining_batches(world: World, recipe: Pretraining, start: int) -> Iterator[torch.Tensor]:
    ids = {w: i for i, w in enumerate(world.vocabulary)}
    for pool in range(start // POOL, -(-recipe.steps // POOL)):
        rng = np.random.default_rng([recipe.seed, 2, pool])
        rows = [[BOS, *(ids[w] for w in s), EOS] for s in pretraining_text(world, recipe.batch * POOL, rng)]
        for i, chunk in enumerate(by_length(rows, recipe.batch, rng)):
            if start <= pool * POOL + i < recipe.steps:
                yield pad(chunk, PAD)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


def step_(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, labels: torch.Tensor, lr: float) -> float:
    """One optimiser step on the labelled positions; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    # Right padding needs no mask under causal attention: padded positions carry no label and come after all that do.
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss became {loss.item()}: lower the learning rate ({lr:.2g})")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, losses: list[float], record: dict[str, object]
) -> None:
    """Write model, optimiser and progress so that a stop at any moment leaves the last whole state."""
    state = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    save_file(state, folder / "state.tmp", metadata={"step": str(step), "losses": json.dumps(losses), "recipe": json.dumps(record)})
    (folder / "state.tmp").replace(folder / "state.safetensors")


def load_state_(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, object]
) -> tuple[int, list[float]]:
    """Restore what `save_state` wrote, into model and optimiser; (0, []) where there is nothing.

    Raises:
        ResultError: It was written by another recipe.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as handle:
        meta = handle.metadata()
    if json.loads(meta["recipe"]) != record:
        raise ResultError(f"{path} belongs to another recipe ({meta['recipe']}); give another --out")
    tensors = load_file(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            slots.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    return int(meta["step"]), json.loads(meta["losses"])


def pretrain(folder: Path, world: World, recipe: Pretraining, *, device: str = "cpu") -> Path:
    """Train the base into `folder`/base, resuming from `folder`/state.safetensors; returns the model's folder."""
    if _made(folder / "base", world, recipe):
        return folder / "base"
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(world, recipe).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)
    start, losses = load_state_(folder, model, optimizer, _record(world, recipe))
    bar = tqdm(pretraining_batches(world, recipe, start), total=recipe.steps, initial=start, desc="pretrain", disable=None)
    for step, tokens in enumerate(bar, start):
        tokens = tokens.to(device)
        labels = tokens.masked_fill(tokens == PAD, -100)
        losses.append(step_(model, optimizer, tokens, labels, recipe.lr * cosine(step, recipe.steps, recipe.warmup)))
        if step % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        if (step + 1) % recipe.save_every == 0:
            save_state(folder, model, optimizer, step + 1, losses, _record(world, recipe))
    model.save_pretrained(folder / "base")
    make_tokenizer(world).save_pretrained(folder / "base")
    record = _record(world, recipe) | {"final_loss": float(np.mean(losses[-100:]))}
    (folder / "base" / "recipe.json").write_text(json.dumps(record, indent=1))
    return folder / "base"


def _record(world: World, recipe: Pretraining | Tuning) -> dict[str, object]:
    return {"world_seed": world.seed, **asdict(recipe)}


def _made(folder: Path, world: World, recipe: Pretraining | Tuning) -> bool:
    """Whether the folder holds what this recipe makes.

    Raises:
        ResultError: It holds what another recipe made.
    """
    path = folder / "recipe.json"
    if not path.exists():
        return False
    kept = json.loads(path.read_text())
    asked = _record(world, recipe)
    odd = [key for key in asked if kept.get(key) != asked[key]]
    if odd:
        raise ResultError(f"{folder} was made with {odd[0]} {kept.get(odd[0])}, and {asked[odd[0]]} is asked for; give another --out")
    return True


def tune(base: Path, folder: Path, world: World, recipe: Tuning, *, device: str = "cpu") -> Path:
    """Train a LoRA adapter on one skill's tuning data, loss on the answer only; returns the adapter's folder."""
    from peft import LoraConfig, get_peft_model

    if _made(folder, world, recipe):
        return folder
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    targets = [p for part, names in PROJECTIONS.items() if recipe.train in ("all", part) for p in names]
    model = get_peft_model(model, LoraConfig(r=recipe.r, lora_alpha=recipe.alpha, target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=recipe.lr)
    ids = {w: i for i, w in enumerate(world.vocabulary)}
    rng = np.random.default_rng([recipe.seed, 3])
    text = (routing_tuning if recipe.skill == "routing" else truth_tuning)(world, recipe.batch * recipe.steps, rng)
    data = [([BOS, *(ids[w] for w in prompt.split())], ids[answer]) for prompt, answer in text]
    bar = tqdm(by_length(data, recipe.batch, rng), desc=f"tune {recipe.skill}, {recipe.train}, seed {recipe.seed}", disable=None)
    for step, chunk in enumerate(bar):
        tokens = pad([[*row, answer] for row, answer in chunk], PAD).to(device)
        labels = pad([[-100] * len(row) + [answer] for row, answer in chunk], -100).to(device)
        loss = step_(model, optimizer, tokens, labels, recipe.lr * min(1.0, (step + 1) / recipe.warmup))
        bar.set_postfix(loss=f"{loss:.3f}")
    # The base's path would tie the adapter to this machine; its hash is kept beside it instead (see the model card).
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "recipe.json").write_text(json.dumps(_record(world, recipe), indent=1))
    return folder
