"""One trainer for every method, on transformers' `Trainer`.

What it adds: the batch plan decides who meets whom before step 1; the reference is scored once; KTO's reference point
z0 is taken over the whole batch, all its microbatches, before the first backward, so that neither gradient nor metric
depends on how a batch was cut; a loss that is not a number stops the run and names its rows; checkpoints are whole or
not there. Optimizers, schedules, callbacks and trackers are transformers' own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import set_seed

from thumbtune.data.chat import template_digest
from thumbtune.data.formats import Rows, rows_from_dataset
from thumbtune.engine.loading import cache_folder, load_model
from thumbtune.engine.logprobs import Branch, completion_log_probs, evaluating
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.engine.reference import fingerprint_weights, reference_log_probs
from thumbtune.errors import ConfigError, TrainingError
from thumbtune.preference.class_weights import recommend_class_weights
from thumbtune.preference.metrics import both_rewards_fall
from thumbtune.preference.reference_point import estimate_reference_point
from thumbtune.training.checkpoints import (
    find_checkpoint,
    rotate_checkpoints,
    staged_checkpoint,
    sweep_staging,
)
from thumbtune.training.config import DPOConfig, KTOConfig, PreferenceConfig
from thumbtune.training.interrupt import save_on_interrupt
from thumbtune.training.manifest import build_manifest, describe_adapters, digest_architecture, write_json
from thumbtune.training.methods import METHODS
from thumbtune.training.metrics import MetricWindow
from thumbtune.training.policy import add_adapter, disable_dropout, resolve_policy
from thumbtune.training.rows import Collator, PlanSampler, ScoredRows, TokenizedRows, tokenize_rows

logger = logging.getLogger(__name__)

MISMATCHED = "mismatched_"


class PreferenceTrainer(Trainer):
    """Trains a policy on preference rows. Use `KTOTrainer` or `DPOTrainer`.

    Args:
        model: a hub name or folder, a model, or a PEFT model (a trained adapter becomes its own reference).
        ref_model: another model as the reference; by default the policy as it stands before step 1.
        args: `KTOConfig` or `DPOConfig`.
        train_dataset: a `datasets.Dataset`, a list of row dicts, or `Rows` as read from a file.
        eval_dataset: the same, or a dict of such by name.
        processing_class, tokenizer: the tokenizer, under its new name or its old one; loaded with the model's name
            if not given.
        peft_config: train an adapter of this shape instead of all weights.
        optimizers, callbacks: as for transformers' `Trainer`.
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
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
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
        if processing_class is not None and tokenizer is not None and processing_class is not tokenizer:
            raise ConfigError(
                "processing_class and tokenizer are two names of one argument: give one of them"
            )
        self.method = METHODS[args.method]
        set_seed(args.seed)  # a fresh adapter's weights are drawn below
        self.model_name, model, processing_class = resolve_policy(model, processing_class or tokenizer, args)
        self.ref_model = load_model(ref_model) if isinstance(ref_model, (str, Path)) else ref_model
        model, self._adapter_is_fresh = add_adapter(model, peft_config)
        if args.disable_dropout:
            disable_dropout(model)
        args.remove_unused_columns = False
        if not torch.cuda.is_available():
            args.dataloader_pin_memory = False

        train_rows = self._tokenize(train_dataset, processing_class, args, "train_dataset")
        self.class_counts = _count_classes(train_rows)
        _settle_class_weights(args, self.class_counts)
        eval_sets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        tokenized_eval = {
            name: ScoredRows(self._tokenize(rows, processing_class, args, f"eval_dataset {name}".strip()))
            for name, rows in eval_sets.items()
            if rows is not None
        }
        self.alarms: list[str] = []
        self.interrupted = False
        self._windows = {"train": MetricWindow(), "eval": MetricWindow()}
        self._reward_history: dict[str, list[float]] = {"rewards/chosen": [], "rewards/rejected": []}
        self._staging: Path | None = None
        self._rows_of_batch: list[int] = []
        self._references_ready = False
        self._reference_fingerprint: str | None = None
        self.on_reference_progress: Callable[[int, int], None] | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(processing_class.pad_token_id),
            train_dataset=ScoredRows(train_rows),
            eval_dataset=tokenized_eval.get("") if set(tokenized_eval) <= {""} else tokenized_eval,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True  # losses are divided by the rows of the whole batch
        self.plan = self._plan(
            train_rows, args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        for adjustment in args.adjustments:
            logger.warning(adjustment)

    # ---- what happens before step 1

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score the reference, write the manifest, train. Ctrl-C finishes the step, saves a checkpoint and stops;
        a second Ctrl-C stops at once. `interrupted` tells afterwards."""
        folder = Path(self.args.output_dir)
        self.interrupted = False
        sweep_staging(folder)
        if resume_from_checkpoint:
            resume_from_checkpoint = find_checkpoint(resume_from_checkpoint, folder)
        self._score_references()
        self.manifest = self.build_manifest()
        set_seed(self.args.seed)  # whatever was drawn since the trainer was made
        if self.is_world_process_zero():
            write_json(self.manifest, folder / "manifest.json")
        with save_on_interrupt(self):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _tokenize(self, dataset: Any, tokenizer: Any, args: PreferenceConfig, source: str) -> TokenizedRows:
        rows = dataset if isinstance(dataset, Rows) else rows_from_dataset(dataset, source=source)
        return tokenize_rows(rows, tokenizer, args, paired=self.method.paired)

    def _plan(self, rows: TokenizedRows, batch_size: int) -> BatchPlan:
        return BatchPlan(
            labels=tuple(rows.labels) if rows.labels is not None else None,
            prompt_keys=tuple(rows.prompt_keys),
            batch_size=batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            mismatched=self.method.mismatched(self.args),
        )

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * math.ceil(len(self.plan) / self.plan.batch_size))

    def _planned_rows(self) -> Iterator[PlannedRow]:
        steps, epoch = self.planned_steps, 0
        while steps > 0:
            for batch in self.plan.epoch(epoch)[:steps]:
                yield from batch
                steps -= 1
            epoch += 1

    def _score_references(self) -> None:
        """Fill in the reference log-probs of all branches that will be met, once."""
        if self._references_ready:
            return
        with self._reference_model() as (model, fingerprint):
            self._score_reference(self.train_dataset, self._planned_rows(), model, fingerprint)
            self._reference_fingerprint = fingerprint
            for dataset in self._eval_sets().values():
                plan = self._plan(dataset.rows, self.args.per_device_eval_batch_size)
                self._score_reference(dataset, plan.rows(0), model, fingerprint)
        self.ref_model = None  # nothing needs it any more
        self._references_ready = True

    def _score_reference(
        self, dataset: ScoredRows, planned: Iterator[PlannedRow], model: Any, fingerprint: str
    ) -> None:
        own = [branch for row in dataset.rows.branches for branch in row]
        dataset.log_probs = self._score(own, model, fingerprint).view(len(dataset), -1)
        what = "the reference model's log-prob is not a number"
        _stop_if_not_finite(dataset.log_probs.sum(-1), range(len(dataset)), dataset, what)
        lent = {(p.row, p.mismatched_row): p for p in planned if p.mismatched_row is not None}
        if lent:
            scores = self._score(
                [dataset.rows.mismatched_branch(p) for p in lent.values()], model, fingerprint
            )
            _stop_if_not_finite(scores, [row for row, _ in lent], dataset, what)
            dataset.mismatched_log_probs = {
                (row, lender): score
                for (row, lender), score in zip(lent, scores.tolist(), strict=True)
                if lender is not None
            }

    def _score(self, branches: list[Branch], model: Any, fingerprint: str) -> Tensor:
        cache = self.args.reference_cache
        with self.compute_loss_context_manager():
            return reference_log_probs(
                model,
                branches,
                pad_token_id=self.data_collator.pad_token_id,
                cache=Path(cache) if cache else cache_folder() / "reference",
                max_tokens=self.args.reference_max_tokens,
                precision="bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "float32",
                fingerprint=fingerprint,
                on_progress=self.on_reference_progress,
            )

    def _fingerprint_reference(self) -> str:
        if self._reference_fingerprint is None:
            with self._reference_model() as (_, self._reference_fingerprint):
                pass
        assert self._reference_fingerprint is not None
        return self._reference_fingerprint

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[tuple[Any, str]]:
        if self.ref_model is not None:
            self.ref_model.to(self.args.device)
            yield self.ref_model, fingerprint_weights(self.ref_model)
        elif self._adapter_is_fresh:  # it changes nothing yet, so the base is cheaper and the same
            with self.model.disable_adapter():
                yield self.model, fingerprint_weights(self.model, without="lora_")
        else:
            yield self.model, fingerprint_weights(self.model)

    def build_manifest(self) -> dict[str, Any]:
        """What this run is made of; see `thumbtune.training.manifest`."""
        rows: TokenizedRows = self.train_dataset.rows
        epochs = math.ceil(self.planned_steps / math.ceil(len(self.plan) / self.plan.batch_size))
        return build_manifest(
            config=self.args,
            model_name=self.model_name,
            data={
                "digest": rows.digest,
                "rows": len(rows),
                "classes": self.class_counts,
                "counts": dict(rows.counts),
                "template_digest": template_digest(self.processing_class),
                "tokens_digest": rows.digest_tokens(),
                "eval": {
                    name: {"digest": dataset.rows.digest, "tokens_digest": dataset.rows.digest_tokens()}
                    for name, dataset in self._eval_sets().items()
                },
            },
            model={
                "architecture": digest_architecture(self.model),
                "weights": fingerprint_weights(self.model),
                "reference": self._fingerprint_reference(),
                "adapters": describe_adapters(self.model),
            },
            plan={
                "digest": self.plan.digest(epochs),
                "batch_size": self.plan.batch_size,
                "steps": self.planned_steps,
                "one_sided_batches": self.plan.count_one_sided(),
            },
        )

    # ---- one step

    def _get_train_sampler(self, train_dataset: Any = None) -> PlanSampler:
        return PlanSampler(self.plan)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """All microbatches of one optimizer step, with the reference point of the whole batch."""
        microbatches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows_of_batch = [row for microbatch in microbatches for row in microbatch["row"].tolist()]
        if self.plan.mismatched and microbatches:
            reference_point = self._estimate_reference_point(microbatches, "train", self.train_dataset)
            for microbatch in microbatches:
                microbatch["reference_point"] = reference_point
        return microbatches, len(self._rows_of_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The microbatch's share of the batch's mean loss."""
        losses = self._losses(model, inputs, "train", self.train_dataset)
        loss = losses.sum() / (num_items_in_batch or len(losses))
        return (loss, {"losses": losses.detach()}) if return_outputs else loss

    def _losses(
        self, model: nn.Module, inputs: Mapping[str, Tensor], mode: str, dataset: ScoredRows
    ) -> Tensor:  # (rows,)
        log_probs = completion_log_probs(model, inputs)  # (branches,)
        log_ratio = log_probs - inputs["reference"]
        reference_point = inputs.get("reference_point", log_ratio.new_zeros(()))
        losses = self.method.loss(self.args, log_ratio, inputs["desirable"], reference_point)
        what = f"the loss is not a number at step {self._current_step(mode)}"
        _stop_if_not_finite(losses, inputs["row"].tolist(), dataset, what)
        rewards = self.args.beta * log_ratio
        self._windows[mode].add_completions(
            losses=losses,
            rewards=rewards,
            gains=rewards - self.args.beta * reference_point,
            log_probs=log_probs,
            desirable=inputs["desirable"],
        )
        return losses

    @torch.no_grad()
    def _estimate_reference_point(
        self, microbatches: list[dict[str, Tensor]], mode: str, dataset: ScoredRows
    ) -> Tensor:
        log_ratios, rows = [], []
        with evaluating(self.model), self.compute_loss_context_manager():
            for microbatch in microbatches:
                inputs = self._prepare_inputs(
                    {k: v for k, v in microbatch.items() if k.startswith(MISMATCHED)}
                )
                mismatched = {name.removeprefix(MISMATCHED): tensor for name, tensor in inputs.items()}
                log_ratios.append(completion_log_probs(self.model, mismatched) - mismatched["reference"])
                rows += microbatch["row"].tolist()
        what = f"a mismatched log ratio is not a number at step {self._current_step(mode)}"
        _stop_if_not_finite(torch.cat(log_ratios), rows, dataset, what)
        reference_point = estimate_reference_point(torch.cat(log_ratios))
        self._windows[mode].add_value("z0", float(reference_point))
        return reference_point

    def _current_step(self, mode: str) -> int:
        return self.state.global_step + (mode == "train")  # a step counts once it is done

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is None:  # a scaler skips such steps and tries a smaller scale
            rows, what = (
                self._rows_of_batch,
                f"the gradient is not a number at step {self._current_step('train')}",
            )
            finite = torch.isfinite(torch.as_tensor(norm)).cpu()
            _stop_if_not_finite(
                torch.where(finite, 0.0, math.nan).expand(len(rows)), rows, self.train_dataset, what
            )
        return norm

    # ---- evaluation, logs, checkpoints

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, z0, rewards and AUC on held-out rows, in fixed batches, against the same reference."""
        if eval_dataset is not None and not isinstance(eval_dataset, (ScoredRows, dict, str)):
            raise ConfigError(
                "evaluate() takes the eval_dataset that the trainer was made with: pass new rows there"
            )
        self._score_references()
        metrics: dict[str, float] = {}
        for name, dataset in self._eval_sets().items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            metrics |= {f"{prefix}_{key}": value for key, value in self._evaluate_rows(dataset).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluate_rows(self, dataset: ScoredRows) -> dict[str, float]:
        window = self._windows["eval"] = MetricWindow()
        plan = self._plan(dataset.rows, self.args.per_device_eval_batch_size)
        with evaluating(self.model), self.compute_loss_context_manager():
            for batch in plan.epoch(0):
                inputs = self._prepare_inputs(self.data_collator([dataset[planned] for planned in batch]))
                if plan.mismatched:
                    inputs["reference_point"] = self._estimate_reference_point([inputs], "eval", dataset)
                self._losses(self.model, inputs, "eval", dataset)
        return {"loss": window.mean_loss(), **window.summarize()}

    def _eval_sets(self) -> dict[str, ScoredRows]:
        if self.eval_dataset is None:
            return {}
        return self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's metrics to transformers' own, and raise the alarm where both rewards fall."""
        if "loss" in logs:
            summary = self._windows["train"].summarize()
            self._windows["train"] = MetricWindow()
            self._watch_rewards(summary)
            logs = {**logs, **summary}
        super().log(logs, start_time)

    def _watch_rewards(self, summary: Mapping[str, float]) -> None:
        for name, history in self._reward_history.items():
            if name in summary:
                history.append(summary[name])
        if both_rewards_fall(
            self._reward_history["rewards/chosen"], self._reward_history["rewards/rejected"]
        ):
            message = (
                f"step {self.state.global_step}: the rewards of 👍 and of 👎 both keep falling: "
                "the learning rate is probably too high"
            )
            if not self.alarms:
                logger.warning(message)
            self.alarms.append(message)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter or the model, unless a weight is not a number."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"weights of {name} are not numbers after step {self.state.global_step}: nothing was saved. "
                    "Continue from an earlier checkpoint with a lower learning_rate"
                )
        super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        with staged_checkpoint(folder, name) as self._staging:
            try:
                super()._save_checkpoint(model, trial)
                self._name_best_checkpoint(folder, name)
            finally:
                self._staging = None
        if self.args.should_save and self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            protected = {name, Path(best).name} if best else {name}
            rotate_checkpoints(folder, keep=self.args.save_total_limit, protected=protected)

    def _name_best_checkpoint(self, folder: Path, name: str) -> None:
        """Let the saved state name the best checkpoint where it will stand, not where it was staged."""
        assert self._staging is not None
        best = f"checkpoint-{self.state.best_global_step}"
        is_saved = best == name or (folder / best).is_dir()
        if not is_saved:  # an earlier best stays
            return
        self.state.best_model_checkpoint = str(folder / best)
        path = self._staging / name / "trainer_state.json"
        if path.is_file():
            state = json.loads(path.read_text())
            state["best_model_checkpoint"] = self.state.best_model_checkpoint
            path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")


class KTOTrainer(PreferenceTrainer):
    """KTO: learns from single completions with a 👍 or a 👎 each. Paired rows are un-paired."""

    config_class = KTOConfig


class DPOTrainer(PreferenceTrainer):
    """DPO: learns from pairs. Thumbs are paired up where one prompt has both; what is left over is counted."""

    config_class = DPOConfig


def _stop_if_not_finite(values: Tensor, rows: Sequence[int], dataset: ScoredRows, what: str) -> None:
    """Raise `TrainingError` with the rows, by their place in the data, whose value is NaN or infinite."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if not bad:
        return
    named = ", ".join(f"row {rows[i]} ({dataset.rows.where[rows[i]]})" for i in bad[:5])
    raise TrainingError(
        f"{what}, on {len(bad)} rows: {named}. "
        "Look at these rows with `thumbtune data show`, lower learning_rate, or set max_grad_norm"
    )


def _count_classes(rows: TokenizedRows) -> dict[str, int]:
    if rows.labels is None:
        return {"pairs": len(rows)}
    return {"desirable": sum(rows.labels), "undesirable": len(rows.labels) - sum(rows.labels)}


def _settle_class_weights(args: PreferenceConfig, counts: Mapping[str, int]) -> None:
    """Replace "auto" by weights from the class balance; warn about one-sided data."""
    if not isinstance(args, KTOConfig):
        return
    if args.desirable_weight == "auto":
        args.desirable_weight, args.undesirable_weight = recommend_class_weights(
            counts["desirable"], counts["undesirable"]
        )
        args.adjustments.append(
            f"class weights 'auto': {args.desirable_weight:.4g} for {counts['desirable']} 👍, "
            f"{args.undesirable_weight:.4g} for {counts['undesirable']} 👎"
        )
    if not counts["desirable"] or not counts["undesirable"]:
        logger.warning("all labels are of one class: KTO can only push one way, so watch length and KL")
