"""One trainer for every method, on transformers' `Trainer`.

What it adds: the batch plan decides who meets whom before step 1; the reference is scored once; a whole batch is in
hand at each step and cut into microbatches here, so that KTO's reference point z0 is taken over all of it, on all
ranks, before the first backward, and neither gradient nor metric depends on the cut; a loss that is not a number stops
the run and names its rows; checkpoints are whole or not there. Log-probs come from `thumbtune.engine`. Optimizers,
schedules, callbacks and trackers are transformers' own.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from thumbtune.engine.allocator import keep_freed_memory
from thumbtune.engine.fast_modules import speed_up_modules
from thumbtune.engine.low_precision import drop_low_precision_copies
from thumbtune.engine.microbatches import cut_batch
from thumbtune.engine.paths import PaddedPath
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.engine.ranks import Ranks, whole_value
from thumbtune.errors import ConfigError
from thumbtune.training.alarms import RewardWatch
from thumbtune.training.checkpoints import find_checkpoint, sweep_staging
from thumbtune.training.class_balance import count_classes, settle_class_weights, settle_flip_rates
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.evaluating import EvaluatesRows, all_rows_of
from thumbtune.training.finite import stop_if_not_finite
from thumbtune.training.given_rows import check_stream, is_stream, open_rows
from thumbtune.training.interrupt import save_on_interrupt
from thumbtune.training.manifest import describe_run, write_json
from thumbtune.training.methods import METHODS
from thumbtune.training.metrics import MetricWindow
from thumbtune.training.microbatch_losses import ComputesLosses
from thumbtune.training.model_card import name_dataset, tag_model
from thumbtune.training.offloading import offload_activations
from thumbtune.training.policy import (
    Loading,
    add_adapter,
    disable_dropout,
    keep_four_bits_trainable,
    refuse_quantized_weights,
    resolve_policy,
)
from thumbtune.training.precision import train_in_float32
from thumbtune.training.ranks import agree_on_path, check_sharding
from thumbtune.training.reference_model import choose_reference
from thumbtune.training.reference_pass import ScoresReference
from thumbtune.training.router_loss import find_router_loss
from thumbtune.training.rows import Microbatch, PlanLoader, PlanSampler, ScoredRows
from thumbtune.training.saving import SavesWhole
from thumbtune.training.streaming import StreamedRows, StreamLoader, StreamSampler
from thumbtune.training.tokens import TokenizedRows, tokenize_rows
from thumbtune.training.zero import make_moving_point

logger = logging.getLogger(__name__)


class PreferenceTrainer(ScoresReference, EvaluatesRows, ComputesLosses, SavesWhole):
    """Trains a policy on preference rows. Use the trainer of a method: `thumbtune.training.trainers`.

    Args:
        model: a hub name or folder, a model, or a PEFT model (a trained adapter becomes its own reference).
        ref_model: another model as the reference, or its name, loaded as the policy was; by default the policy as it
            stands before step 1.
        args: the method's config, such as `KTOConfig`.
        data_collator: refused; TRL's scripts give it a place.
        train_dataset: a `datasets.Dataset`, a list of row dicts, or `Rows` as read from a file; with `max_steps` also
            an iterable dataset or a generator, which is trained window by window.
        eval_dataset: the same, or a dict of such by name. A stream is read to its end.
        processing_class, tokenizer: the tokenizer, under its new name or its old one; loaded with the model's name
            if not given.
        compute_metrics: called with what `thumbtune.training.eval_predictions` says, after each evaluation.
        callbacks, optimizers: as for transformers' `Trainer`.
        quantization_config: how to load models that are given by name, such as in 4 bits for QLoRA.
        peft_config: train an adapter of this shape instead of all weights.
    """

    config_class: type[PreferenceConfig]
    args: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: str | nn.Module | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tokenizer: Any = None,
    ) -> None:
        if args is None:
            args = self.config_class(output_dir=f"thumbtune-{self.config_class.method}")
        if not isinstance(args, self.config_class):
            raise ConfigError(
                f"args is a {type(args).__name__}: {type(self).__name__} takes {self.config_class.__name__}"
            )
        if train_dataset is None:
            raise ConfigError(
                "train_dataset is missing: give a datasets.Dataset with prompt, completion and label"
            )
        if data_collator is not None:
            raise ConfigError(
                "data_collator is refused: batches are planned as token ids, and cut and packed by the engine. Change "
                "the rows before you give them, or set max_length, truncation and pad_to_multiple_of"
            )
        if processing_class is not None and tokenizer is not None and processing_class is not tokenizer:
            raise ConfigError(
                "processing_class and tokenizer are two names of one argument: give one of them"
            )
        self.method = METHODS[args.method]
        self._uses_reference = self.method.uses_reference(args)
        self._zero = self.method.reference_point(args)
        self._moving_point = make_moving_point(args)
        set_seed(args.seed)  # a fresh adapter's weights are drawn below
        named = model if isinstance(model, (str, Path)) else None
        self.model_name, model, processing_class = resolve_policy(
            model, processing_class or tokenizer, args, quantization_config
        )
        model, adapter_is_fresh = add_adapter(model, peft_config)
        refuse_quantized_weights(model)
        keep_four_bits_trainable(model)
        became_float32 = train_in_float32(model, args)
        tag_model(model, args.method)
        if args.disable_dropout:
            disable_dropout(model)
        args.remove_unused_columns = False
        if not torch.cuda.is_available():
            args.dataloader_pin_memory = False

        self.stream: StreamedRows | None = None
        if is_stream(train_dataset):
            check_stream(args)
            self.stream = StreamedRows(train_dataset, processing_class, args, paired=self.method.paired)
        train_rows = (
            self.stream.rows
            if self.stream
            else self._tokenize(train_dataset, processing_class, args, "train_dataset")
        )
        self.dataset_name = name_dataset(train_dataset)
        self.class_counts = count_classes(train_rows)
        settle_class_weights(args, self.class_counts, of_what=" of the first window" if self.stream else "")
        settle_flip_rates(args, train_rows)
        eval_sets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        tokenized_eval = {
            name: ScoredRows(
                self._tokenize(rows, processing_class, all_rows_of(args), f"eval_dataset {name}".strip())
            )
            for name, rows in eval_sets.items()
            if rows is not None
        }
        self.pad_token_id: int = processing_class.pad_token_id
        self.interrupted = False
        self._windows = {"train": MetricWindow(), "eval": MetricWindow()}
        self._reward_watch = RewardWatch()
        self._shown: list[tuple[Tensor, Tensor]] = []
        self._rows_of_batch: Sequence[int] = ()
        self._references_ready = False
        self._reference_fingerprint: str | None = None
        self.on_reference_progress: Callable[[int, int], None] | None = None
        # transformers' loop sees one item a step, the whole batch, and `training_step` cuts it
        self.config = args
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.stream or ScoredRows(train_rows),
            eval_dataset=tokenized_eval.get("") if set(tokenized_eval) <= {""} else tokenized_eval,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True  # losses are divided by the rows of the whole batch
        self.ranks = Ranks.find(self.args.device)
        self.path = agree_on_path(self.model, args.engine, pad_token_id=self.pad_token_id, ranks=self.ranks)
        if args.pad_to_multiple_of is not None and isinstance(self.path, PaddedPath):
            self.path = replace(self.path, pad_to_multiple_of=int(args.pad_to_multiple_of))
        elif args.pad_to_multiple_of is not None:
            args.adjustments.append("pad_to_multiple_of has no effect on the packed path: it has no padding")
        self._is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        check_sharding(
            self.accelerator,
            is_asked_for=bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true",
            has_reference_model=ref_model is not None,
        )
        if (
            not self._is_sharded and self.args.device.type == "cpu"
        ):  # they keep copies of weights: of whole ones
            speed_up_modules(self.model)
        self._is_moving = getattr(args, "sync_ref_model", False)
        self.reference = choose_reference(
            self,
            ref_model,
            adapter_is_fresh=adapter_is_fresh,
            named=named,
            loading=Loading.of(model if named is None else None, args, quantization_config, became_float32),
        )
        self.router_loss = find_router_loss(self.model, args.router_aux_loss_coef)
        self.plan = self._plan(
            train_rows,
            args.train_batch_size * self.config.gradient_accumulation_steps * args.world_size,
        )
        if not self.steps_per_epoch:
            raise ConfigError(
                f"dataloader_drop_last=True drops the only batch: {len(self.plan)} rows are fewer than the "
                f"{self.plan.batch_size} of a batch. Lower the batch, or leave it out"
            )
        for adjustment in args.adjustments:
            logger.warning(adjustment)

    @property
    def alarms(self) -> list[str]:
        """What the run should not have done, step by step."""
        return self._reward_watch.alarms

    # ---- what happens before step 1

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score the reference, write the manifest, train. Ctrl-C finishes the step, saves a checkpoint and stops;
        a second Ctrl-C stops at once. `interrupted` tells afterwards."""
        folder = Path(self.args.output_dir)
        self.interrupted = False
        self.ranks.decide(partial(sweep_staging, folder))
        if resume_from_checkpoint:
            resume_from_checkpoint = self.ranks.decide(
                partial(find_checkpoint, resume_from_checkpoint, folder)
            )
        if self.args.keep_freed_memory and self.args.device.type == "cpu":
            keep_freed_memory()
        if not self._is_sharded:
            self._score_references()
        self.manifest = self.build_manifest()
        set_seed(self.args.seed)  # whatever was drawn since the trainer was made
        self.ranks.decide(partial(write_json, self.manifest, folder / "manifest.json"))
        if resume_from_checkpoint and (done := self.take_up_finished(Path(resume_from_checkpoint))):
            return done
        try:
            with save_on_interrupt(self):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            drop_low_precision_copies(self.model)

    def _tokenize(self, dataset: Any, tokenizer: Any, args: PreferenceConfig, source: str) -> TokenizedRows:
        return tokenize_rows(open_rows(dataset, source), tokenizer, args, paired=self.method.paired)

    def _plan(self, rows: TokenizedRows, batch_size: int) -> BatchPlan:
        return BatchPlan(
            labels=rows.labels,
            prompt_keys=rows.prompt_keys,
            batch_size=batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            mismatched=self._zero == "mismatched",
            siblings_together=self.args.siblings_together,
        )

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; of a stream, those of its first window."""
        whole, rest = divmod(len(self.plan), self.plan.batch_size)
        return whole + int(rest > 0 and not self.args.dataloader_drop_last)

    def _planned_epochs(self) -> Iterator[Iterator[PlannedRow]]:
        """The rows of each epoch, up to the last step."""
        steps, epoch = self.planned_steps, 0
        while steps > 0:
            n_batches = min(steps, self.steps_per_epoch)
            yield chain.from_iterable(islice(self.plan.batches(epoch), n_batches))
            steps -= n_batches
            epoch += 1

    @property
    def _whole_model(self) -> Any:
        """The model for passes without gradient: wrapped only where each rank holds a part of the weights."""
        return self.model_wrapped if self._is_sharded else self.model

    def build_manifest(self) -> dict[str, Any]:
        """What this run is made of, as the main process finds it; see `thumbtune.training.manifest`."""
        self._fingerprint_reference()
        return self.ranks.decide(partial(describe_run, self))

    # ---- one step

    def get_train_dataloader(self) -> PlanLoader | StreamLoader:
        """The plan's batches, this rank's share of each."""
        rank, world_size = self.args.process_index, self.args.world_size
        drop_last, n_workers = self.args.dataloader_drop_last, self.args.dataloader_num_workers
        if self.stream is not None:
            make_plan = partial(self._plan, batch_size=self.plan.batch_size)
            sampler = StreamSampler(
                self.stream,
                make_plan,
                self._score_window,
                rank=rank,
                world_size=world_size,
                drop_last=drop_last,
            )
            return StreamLoader(self.stream, sampler, n_workers=n_workers)
        lengths = self.train_dataset.lengths
        return PlanLoader(
            self.train_dataset,
            PlanSampler(self.plan, lengths, rank, world_size, drop_last=drop_last),
            num_workers=n_workers,
        )

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:  # () this rank's part of the batch's mean loss
        """Forward and backward over a whole batch, microbatch by microbatch."""
        inputs = self._complete(inputs)
        self._n_tokens += inputs.count_tokens()
        if self.method.paired:
            n_chosen = self.ranks.sum(torch.tensor(inputs.count_chosen_tokens(), device=self.args.device))
            inputs = replace(inputs, mean_chosen_tokens=n_chosen / inputs.n_total)
        cuts = self._cut(inputs)
        n_microbatches = self.ranks.max(len(cuts))  # ranks take their forwards and backwards together
        if inputs.mismatched and n_microbatches > 1:
            inputs = replace(inputs, reference_point=self._estimate_reference_point(inputs, "train"))
        microbatches = [inputs.select(places) for places in cuts] if n_microbatches > 1 else [inputs]
        microbatches += [inputs.keep_step()] * (n_microbatches - len(microbatches))
        total = torch.zeros((), device=self.args.device)
        for number, microbatch in enumerate(microbatches, start=1):
            is_last = number == n_microbatches
            self.accelerator.gradient_state._set_sync_gradients(is_last)  # DeepSpeed steps when it is told so
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model), self._offloading():
                total += super().training_step(model, microbatch)
        if self._zero == "classes":
            self._move_reward_shift()
        return total

    def _offloading(self) -> Any:
        return (
            offload_activations(self.model) if self.args.activation_offloading else contextlib.nullcontext()
        )

    def _cut(self, batch: Microbatch) -> list[list[int]]:
        def cost(places: list[int]) -> int:
            return self.path.count_tokens(batch.select(places).flat_branches())

        return cut_batch(
            [tuple(row[0].prompt_ids) for row in batch.branches],
            cost=cost,
            max_tokens=self.args.max_tokens_per_microbatch,
            max_rows=self.args.per_device_train_batch_size,
        )

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Autocast by the settings, so that passes before training compute in its precision too."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype, cache_enabled=cache_enabled)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The next batch, whole."""
        batches, n_rows = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows_of_batch = [row for batch in batches for row in batch.rows]
        return batches, n_rows

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(batch.n_total for batch in batch_samples)

    def floating_point_ops(self, inputs: Any) -> int:
        """transformers' estimate, 6 per parameter and token, for the tokens of a batch."""
        return 6 * self.model.num_parameters() * self.path.count_tokens(inputs.flat_branches())

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            n_tokens = torch.tensor(self.path.count_tokens(inputs.flat_branches()), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(n_tokens).sum())

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The microbatch's share of the batch's mean loss; ranks average their gradients, so times their number."""
        inputs = self._prepare_inputs(inputs)
        losses = self._losses(model, inputs, "train", self.train_dataset)
        loss = losses.sum() * self.args.world_size / inputs.n_total
        return (loss, {"losses": losses.detach()}) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = whole_value(super()._get_grad_norm(model, grad_norm=grad_norm))
        if self.accelerator.scaler is None:  # a scaler skips such steps and tries a smaller scale
            rows, what = (
                self._rows_of_batch,
                f"the gradient is not a number at step {self._current_step('train')}",
            )
            finite = torch.isfinite(torch.as_tensor(norm)).cpu()
            stop_if_not_finite(
                torch.where(finite, 0.0, math.nan).expand(len(rows)), rows, self.train_dataset, what
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's metrics to transformers' own, and raise the alarm where both rewards fall."""
        if "loss" in logs:
            summary = self._windows["train"].gather_ranks(self.ranks).summarize()
            self._windows["train"] = MetricWindow()
            if self._uses_reference:
                self._reward_watch.look(summary, self.state.global_step)
            logs = {**logs, **summary, "num_tokens": sum(self.ranks.gather(self._n_tokens))}
        super().log(logs, start_time)
