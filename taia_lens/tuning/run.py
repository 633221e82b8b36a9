"""Training the tuned side: transformers' Trainer around a LoRA adapter or the whole model, or RED; the folder that comes of it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from taia_lens.errors import PairError, TaiaLensError
from taia_lens.examples import NO_LABEL, collate
from taia_lens.loading import load_one
from taia_lens.loading.adapters import adapter_file
from taia_lens.loading.models import DTYPES, LOAD_ERRORS, Options, from_folder, load_message, locate, resolve_device
from taia_lens.loading.tokenizers import tokenizer_of
from taia_lens.results import check_out, versions, whole_folder
from taia_lens.scales import write_scales
from taia_lens.sites import GRAFTABLE
from taia_lens.tuning.data import Data, read_data
from taia_lens.tuning.parts import components, with_lora
from taia_lens.tuning.red import train_red
from taia_lens.tuning.settings import TRAIN, Settings


def tune(
    base: str | Path,
    data: str | Path,
    out: Path,
    settings: Settings,
    *,
    every: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Make the tuned side of a pair: a LoRA adapter on `base`, a whole checkpoint, or RED's scales, trained on the answers in `data`.

    On a CPU the same settings give the same bits.

    Args:
        base: A local folder or a Hub id.
        data: JSONL: a suite, chats (`messages`) or instructions; see `tuning.data.read_data`.
        out: The folder to write; `load_pair(base, out)` takes it. Written whole or not at all.
        settings: What to train, and how.
        every: Also train on rows that a suite calls out of distribution.
        device: `auto` takes a GPU where there is one.
        dtype: What the base is loaded in and (in full) saved in; `auto` keeps the checkpoint's own. Weights that are trained
            are float32 meanwhile, with bfloat16 arithmetic where the checkpoint is bfloat16.
        allow_pickle: Also read weights from .bin files, which can run code when opened.
        trust_remote_code: Also run modelling code that comes with a checkpoint.
        progress: Draw a bar on stderr.

    Returns:
        What `out`/tuning.json holds.

    Raises:
        TaiaLensError: Something cannot be loaded, read, trained or written.
    """
    check_out(out)
    started = time.time()
    options = _options(device, dtype, allow_pickle, trust_remote_code)
    if adapter_file(base, options) is not None:
        raise PairError(f"base {base} is an adapter; give the model that it was trained on, or merge it first")
    with contextlib.redirect_stdout(sys.stderr), torch.enable_grad():
        settings = _with_known_length(settings, base, options)
        tokenizer = tokenizer_of(base, "base", options)
        if tokenizer is None:
            raise PairError(f"{base} brings no tokenizer, and text must become tokens; put the tokenizer's files into the folder")
        rows = read_data(data, tokenizer, max_length=settings.max_length, every=every, limit=settings.limit, seed=settings.seed)
        set_seed(settings.seed)
        job = _Job(base, rows, tokenizer, settings, options, started, progress)
        return _scales(job, out) if settings.red else _weights(job, out)


@dataclass(frozen=True, eq=False)
class _Job:
    """What was asked for, the data being read."""

    base: str | Path
    rows: Data
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    options: Options
    started: float
    progress: bool


def _weights(job: _Job, out: Path) -> dict[str, Any]:
    settings, whole = job.settings, from_folder(job.base, job.options)
    loaded = _dtype(whole, job.base)
    model, trained = _to_train(whole, job.tokenizer, settings)
    bf16 = settings.full and loaded == torch.bfloat16
    losses = _train(model, job.rows, settings, job.options.device, bf16=bf16, progress=job.progress)
    with whole_folder(out) as partial:
        _save(partial, model.to(loaded) if settings.full else model, job.tokenizer, _name(job.base))
        return _write(partial, job, trained, losses, str(loaded).removeprefix("torch."))


def _scales(job: _Job, out: Path) -> dict[str, Any]:
    o = job.options
    pickle, remote = o.allow_pickle, o.trust_remote_code
    model = load_one(job.base, tokenizer=job.tokenizer, device=o.device, dtype=o.dtype, allow_pickle=pickle, trust_remote_code=remote)
    scales, losses = train_red(replace(model, name=_name(job.base)), job.rows, job.settings, progress=job.progress)
    trained = {"parameters": scales.gain.numel() + scales.offset.numel(), "tensors": {"mlp": 2 * len(scales.sites)}}
    with whole_folder(out) as partial:
        write_scales(partial, scales)
        return _write(partial, job, trained, losses, model.dtype)


def _write(folder: Path, job: _Job, trained: dict[str, Any], losses: list[float], dtype: str) -> dict[str, Any]:
    record = _record(_name(job.base), job.rows, job.settings, trained, losses, job.started)
    record |= {"dtype": dtype, "device": job.options.device}
    (folder / "tuning.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _record(base: str, data: Data, settings: Settings, trained: dict[str, Any], losses: list[float], started: float) -> dict[str, Any]:
    """What tuning.json says; no path of this machine is in it."""
    return {
        "base": base,
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "form": data.form,
            "read": data.read,
            "left_out": dict(data.left_out),
            "used": len(data.examples),
            "labels": data.n_labels,
        },
        "settings": asdict(settings) | {"lr": settings.rate, "method": settings.method},
        "trained": trained,
        "loss": {"first": losses[0], "last": losses[-1], "steps": losses},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "versions": versions() | {"accelerate": metadata.version("accelerate")},
    }


def _options(device: str, dtype: str, allow_pickle: bool, trust_remote_code: bool) -> Options:
    if dtype not in DTYPES:
        raise PairError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    found = resolve_device(device)
    if found not in ("cpu", "cuda", "cuda:0", "mps"):
        raise PairError(f"the trainer picks the first device of a kind itself, not {device}; set CUDA_VISIBLE_DEVICES, and write cuda")
    return Options(found, dtype, allow_pickle, trust_remote_code)


def _with_known_length(settings: Settings, base: str | Path, options: Options) -> Settings:
    """The settings with no more positions than the model was made for."""
    name, local = locate(base, options), Path(base).expanduser().is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=options.trust_remote_code)
    except LOAD_ERRORS as error:
        raise PairError(load_message(base, error)) from error
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    return replace(settings, max_length=min(settings.max_length, known or settings.max_length))


def _dtype(model: PreTrainedModel, base: str | Path) -> torch.dtype:
    found = {parameter.dtype for parameter in model.parameters()}
    if not all(dtype.is_floating_point for dtype in found) or getattr(model.config, "quantization_config", None) is not None:
        raise PairError(f"{base} is quantised, and its tuned side could not be held against it; give the model it was made from")
    if len(found) > 1:
        raise PairError(f"{base} mixes {', '.join(sorted(map(str, found)))}; say one: --dtype float32")
    return found.pop()


def _to_train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The model, ready to be trained, and a record of what will be: numbers of parameters, and of tensors by component."""
    of = components(model, tokenizer)
    everything = settings.full and settings.train == "all"
    wanted = {name for name, component in of.items() if everything or component in TRAIN[settings.train]}
    if settings.full:
        _check_saves(model)
        ready: Any = model.float() if next(model.parameters()).dtype.itemsize < 4 else model
        for name, parameter in ready.named_parameters():
            parameter.requires_grad_(name in wanted)
    else:
        ready, wanted = with_lora(model, wanted, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    counts = {component: sum(of[name] == component for name in wanted) for component in GRAFTABLE}
    n = sum(p.numel() for p in ready.parameters() if p.requires_grad)
    return ready, {"parameters": n, "tensors": {component: count for component, count in counts.items() if count}}


def _check_saves(model: PreTrainedModel) -> None:
    """A generation config that transformers reads but refuses to write would cost the training at its end."""
    if model.can_generate() and model.generation_config is not None:
        try:
            model.generation_config.validate(strict=True)
        except ValueError as error:
            raise PairError(f"the base's generation_config.json cannot be saved again; mend it: {error}") from error


def answer_loss(
    outputs: Any, labels: Int[Tensor, "batch pos"], num_items_in_batch: Int[Tensor, ""] | Float[Tensor, ""] | int
) -> Float[Tensor, ""]:
    """Cross-entropy summed over the labelled tokens of these rows, over their number in the whole step: one loss for every model."""
    kept = labels[:, 1:] != NO_LABEL
    total = torch.nn.functional.cross_entropy(outputs.logits[:, :-1][kept].float(), labels[:, 1:][kept], reduction="sum")
    return total / num_items_in_batch


class _Watch(TrainerCallback):
    """Keeps each step's loss, draws the bar, and stops a training that has diverged."""

    def __init__(self, rate: float, progress: bool) -> None:
        self.losses: list[float] = []
        self.rate = rate
        self.bar = tqdm(desc="tune", disable=not progress, file=sys.stderr)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        self.losses.append(logs["loss"])
        if not math.isfinite(logs["loss"]):
            raise TaiaLensError(f"the loss became {logs['loss']} at step {len(self.losses)}; lower --lr ({self.rate:g})")
        self.bar.total = state.max_steps
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
        self.bar.update()


def _train(model: Any, data: Data, settings: Settings, device: str, *, bf16: bool, progress: bool) -> list[float]:
    """Train the model in place; the loss of each step."""
    watch = _Watch(settings.rate, progress)
    with tempfile.TemporaryDirectory() as scratch:  # the trainer wants one, and writes nothing into it
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=settings.at_once,
            gradient_accumulation_steps=settings.batch_size // settings.at_once,
            num_train_epochs=settings.epochs,
            learning_rate=settings.rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup,
            weight_decay=0.0,
            optim="adamw_torch",
            seed=settings.seed,
            bf16=bf16,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device != "cpu",
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # on several it would split the batch by itself
        used_cache = model.config.use_cache
        trainer = Trainer(model, arguments, collate, train_dataset=list(data.examples), compute_loss_func=answer_loss, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        trainer.train()
        model.config.use_cache = used_cache
    watch.bar.close()
    return watch.losses


def _save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    model.peft_config["default"].base_model_name_or_path = base  # its path would tie the adapter to this machine
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def _name(base: str | Path) -> str:
    """The Hub id, or the folder's own name."""
    path = Path(base).expanduser()
    return path.resolve().name if path.is_dir() else str(base)
