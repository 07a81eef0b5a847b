"""Deliberate mistakes in rows and the trainer; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

CHAT = "data/test_chat.py"
TRL = "training/test_against_trl.py"
PRECISION = "training/test_precision.py"
STORAGE = "training/test_token_storage.py"
KTO_AS_TRL = f"{TRL}::test_loss_and_every_gradient_equal_trl_s[kto, adapter]"
DPO_AS_TRL = f"{TRL}::test_loss_and_every_gradient_equal_trl_s[dpo, adapter]"
CUT = f"{TRL}::test_a_batch_cut_into_microbatches_has_the_loss_and_gradients_of_trl_s_whole_batch"
START = f"{TRL}::test_before_the_first_step_both_stand_at_half_the_weights"

TRAINING_MISTAKES = [
    # ---- rows as token ids
    Mistake(
        "chats in a batch get the special tokens of plain text",
        "data/chat.py",
        "for row in rows.values() for text in row], not is_chat)",
        "for row in rows.values() for text in row], True)",
        (f"{CHAT}::test_the_batch_meets_a_moved_boundary_and_a_bos_as_the_row_does",),
    ),
    Mistake(
        "prompts of one hash are one prompt",
        "training/token_storage.py",
        "if span != read(first[number]):",
        "if False:",
        (f"{STORAGE}::test_spans_whose_hashes_clash_are_still_told_apart",),
    ),
    Mistake(
        "pictures are passed over",
        "data/rows.py",
        "        if held:\n",
        "        if False:\n",
        ("data/test_formats.py::test_a_picture_is_refused_in_every_format_and_its_absence_is_not[a.jsonl]",),
    ),
    # ---- the trainer
    Mistake(
        "the reference is ignored",
        "training/microbatch_losses.py",
        "log_ratio = log_probs - inputs.reference.T.flatten()",
        "log_ratio = log_probs + 0",
        (START,),
    ),
    Mistake(
        "the reference is that of the row before",
        "training/rows.py",
        "return self.log_probs[rows]",
        "return self.log_probs[rows].roll(1, 0)",
        (START,),
    ),
    Mistake(
        "z0 ignores the reference",
        "training/zero.py",
        "log_ratio = log_probs - batch.mismatched_reference",
        "log_ratio = log_probs",
        (KTO_AS_TRL,),
    ),
    Mistake(
        "z0 is that of one microbatch",
        "training/trainer.py",
        'inputs = replace(inputs, reference_point=self._estimate_reference_point(inputs, "train"))',
        "pass",
        (f"{CUT}[1-4]",),
    ),
    Mistake(
        "the loss is the mean over microbatch means",
        "training/trainer.py",
        "losses.sum() * self.args.world_size / inputs.n_total",
        "losses.mean() / self.config.gradient_accumulation_steps",
        (f"{CUT}[3-2]",),
    ),
    Mistake(
        "a class weight does not reach the loss",
        "training/methods.py",
        '"undesirable_weight": config.undesirable_weight,',
        '"undesirable_weight": 1.0,',
        (START,),
    ),
    Mistake(
        "chosen and rejected are swapped on the way to DPO",
        "training/methods.py",
        "return scores.log_ratio.chunk(2)",
        "return scores.log_ratio.chunk(2)[::-1]",
        (DPO_AS_TRL,),
    ),
    Mistake(
        "pairs are stacked pair by pair",
        "training/rows.py",
        "branch for column in zip(*self.branches, strict=True) for branch in column",
        "branch for row in self.branches for branch in row",
        (DPO_AS_TRL,),
    ),
    Mistake(
        "the references of pairs are stacked pair by pair",
        "training/microbatch_losses.py",
        "inputs.reference.T.flatten()",
        "inputs.reference.flatten()",
        (DPO_AS_TRL,),
    ),
    Mistake(
        "labels stay behind when a batch is cut",
        "training/rows.py",
        "desirable=self.desirable[index]",
        "desirable=self.desirable[: len(places)]",
        (f"{CUT}[1-4]",),
    ),
    Mistake(
        "weights that came in bf16 are trained in bf16",
        "training/trainer.py",
        "became_float32 = train_in_float32(model, args)",
        "became_float32 = False",
        (f"{PRECISION}::test_weights_that_are_frozen_beside_trained_ones_become_float32_too",),
    ),
    Mistake(
        "a reference in bf16 scores in bf16 beside a policy that became float32",
        "training/reference_model.py",
        "in_float32(self._model) if self._loading.became_float32 else nullcontext()",
        "nullcontext()",
        (f"{PRECISION}::test_a_reference_in_bf16_scores_as_the_policy_does_and_stays_as_it_was",),
    ),
    Mistake(
        "a reference by name is loaded by its name alone",
        "training/policy.py",
        "load_model(name, **self.init_kwargs)",
        "load_model(name)",
        (f"{PRECISION}::test_a_reference_by_name_is_loaded_as_the_policy_was[name-lora]",),
    ),
]
