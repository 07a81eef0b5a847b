"""Deliberate mistakes, each of which must turn tests red: what a green suite is worth.

A copy of the package gets one mistake at a time, and the tests named beside it run against that copy. They all must
pass on the unharmed copy and all must fail on the harmed one. A snippet that is no longer in its file exactly once
fails here, so that the list cannot rot: bring it up to date with the code, or drop it with its reason.

All mistakes run in one child process, one after another (`python tests/test_deliberate_mistakes.py`), since importing
torch takes longer than most of them.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))  # in the child process nobody else does it

from mistakes import Mistake  # noqa: E402
from mistakes_in_loop import LOOP_MISTAKES  # noqa: E402
from mistakes_in_service import SERVICE_MISTAKES  # noqa: E402

PACKAGE = REPOSITORY / "src" / "thumbtune"


LOSSES = "preference/test_losses.py"
PAIR_LOSSES = "preference/test_pair_losses.py"
NOISE = "preference/test_label_noise.py"
METHODS = "training/test_methods.py"
POINT = "preference/test_reference_point.py"
PROSPECT = "preference/test_prospect.py"
METRICS = "preference/test_preference_metrics.py"
CHAT = "data/test_chat.py"
PLAN = "engine/test_plan.py"
LOG_PROBS = "engine/test_logprobs.py"
REFERENCE = "engine/test_reference.py"
ATTENTION = "engine/test_attention.py"
PACKING = "engine/test_packing.py"
PACKED = "engine/test_packed.py"
HEAD = "engine/test_head.py"
FAST = "engine/test_fast_modules.py"
ROTARY = "engine/test_rotary.py"
MICROBATCHES = "engine/test_microbatches.py"
PATHS = "engine/test_paths.py"
GENERATE = "evaluation/test_generate.py"
TRL = "training/test_against_trl.py"
PRECISION = "training/test_precision.py"
FIELDS = "training/test_every_field.py"
CLASS_WEIGHTS = "preference/test_class_weights.py"
FAULTS = "training/test_trl_faults.py"
STORAGE = "training/test_token_storage.py"
CROSSING = "evaluation/test_search_and_crossing.py"

KTO_BY_HAND = f"{LOSSES}::test_kto_of_one_thumb_up_and_one_thumb_down_worked_by_hand"
DPO_BY_HAND = f"{PAIR_LOSSES}::test_dpo_worked_by_hand"
KTO_AS_TRL = f"{TRL}::test_loss_and_every_gradient_equal_trl_s[kto, adapter]"
DPO_AS_TRL = f"{TRL}::test_loss_and_every_gradient_equal_trl_s[dpo, adapter]"
RPO_BY_HAND = f"{METHODS}::test_rpo_is_dpo_and_alpha_times_the_likelihood_worked_by_hand"
ORPO_BY_HAND = f"{METHODS}::test_orpo_is_the_likelihood_and_beta_times_the_odds_worked_by_hand"
BCO_BY_HAND = f"{METHODS}::test_bco_on_single_thumbs_worked_by_hand"
AS_TRL = f"{TRL}::test_the_family_s_losses_and_gradients_equal_trl_s"
SHIFT = f"{POINT}::test_the_reward_shift_does_not_depend_on_how_many_each_class_has"
AVERAGED = f"{METHODS}::test_an_averaged_z0_is_half_of_what_was_and_half_of_what_is"
CUT = f"{TRL}::test_a_batch_cut_into_microbatches_has_the_loss_and_gradients_of_trl_s_whole_batch"
START = f"{TRL}::test_before_the_first_step_both_stand_at_half_the_weights"
UNPADDED = f"{LOG_PROBS}::test_the_padded_path_equals_one_unpadded_row_at_a_time"
EXACTLY_BEFORE = f"{PACKING}::test_each_scored_token_is_predicted_from_exactly_what_stands_before_it"
ATTENDS = f"{ATTENTION}::test_it_equals_slow_attention_of_each_branch_value_and_gradient"
RIDES = f"{ATTENTION}::test_riders_attend_to_what_was_kept_as_if_it_stood_before_them"
CHECKPOINTS = f"{PACKED}::test_activation_checkpointing_changes_no_gradient_and_keeps_no_prompts"
NAIVE_HEAD = f"{HEAD}::test_it_equals_the_naive_head_value_and_gradient"
ALONE = f"{PATHS}::test_where_padding_changes_a_model_s_numbers_each_row_has_a_forward_of_its_own"
VARLEN = "engine/test_varlen.py::test_rows_and_riders_are_handed_over_as_they_are"
LORA_LAYER = "engine/test_fast_lora.py::test_one_lora_layer_equals_peft_s_own_value_and_gradient"
SHARED = f"{LOG_PROBS}::test_shared_prompts_duplicates_and_chunks_change_nothing"

MISTAKES = [
    # ---- the losses
    Mistake(
        "the sign of KTO is flipped",
        "preference/losses.py",
        "weight * torch.sigmoid(-sign * gain)",
        "weight * torch.sigmoid(sign * gain)",
        (KTO_BY_HAND, f"{LOSSES}::test_before_the_first_step_each_loss_already_teaches"),
    ),
    Mistake(
        "1 - sigmoid(x) for sigmoid(-x)",
        "preference/losses.py",
        "weight * torch.sigmoid(-sign * gain)",
        "weight * (1 - torch.sigmoid(sign * gain))",
        (
            f"{LOSSES}::test_a_nearly_certain_completion_keeps_the_gradient_that_one_minus_sigmoid_loses"
            "[dtype2-18.0]",
        ),
    ),
    Mistake(
        "z0 is missing from KTO",
        "preference/losses.py",
        "beta * (log_ratio - reference_point), desirable,",
        "beta * log_ratio, desirable,",
        (KTO_BY_HAND, f"{LOSSES}::test_at_the_reference_point_the_loss_is_half_the_weight"),
    ),
    Mistake(
        "z0 is subtracted from beta r instead of r",
        "preference/losses.py",
        "beta * (log_ratio - reference_point), desirable,",
        "beta * log_ratio - reference_point, desirable,",
        (KTO_BY_HAND, f"{LOSSES}::test_thresholds_of_beta_times_z0_are_kto"),
    ),
    Mistake(
        "z0 moves thumbs down the other way",
        "preference/losses.py",
        "beta * (log_ratio - reference_point), desirable,",
        "beta * (log_ratio - torch.where(desirable, 1, -1) * reference_point), desirable,",
        (KTO_BY_HAND,),
    ),
    Mistake(
        "beta is missing from KTO",
        "preference/losses.py",
        "beta * (log_ratio - reference_point), desirable,",
        "log_ratio - reference_point, desirable,",
        (KTO_BY_HAND,),
    ),
    Mistake(
        "beta is missing from DPO",
        "preference/pair_losses.py",
        "_logistic_loss(beta * (chosen_log_ratio - rejected_log_ratio), label_smoothing)",
        "_logistic_loss(chosen_log_ratio - rejected_log_ratio, label_smoothing)",
        (DPO_BY_HAND,),
    ),
    Mistake(
        "the class weights are swapped",
        "preference/losses.py",
        "desirable_weight, undesirable_weight)\n    return weight * torch.sigmoid",
        "undesirable_weight, desirable_weight)\n    return weight * torch.sigmoid",
        (KTO_BY_HAND, f"{LOSSES}::test_kto_lies_between_zero_and_the_class_weight"),
    ),
    Mistake(
        "the thresholds are swapped",
        "preference/losses.py",
        "torch.where(desirable, z_yes, z_no)",
        "torch.where(desirable, z_no, z_yes)",
        (
            f"{LOSSES}::test_thresholds_worked_by_hand",
            f"{LOSSES}::test_each_threshold_moves_its_own_class_only",
        ),
    ),
    Mistake(
        "DPO prefers the rejected completion",
        "preference/pair_losses.py",
        "beta * (chosen_log_ratio - rejected_log_ratio)",
        "beta * (rejected_log_ratio - chosen_log_ratio)",
        (DPO_BY_HAND,),
    ),
    Mistake(
        "label smoothing smooths nothing",
        "preference/pair_losses.py",
        "functional.logsigmoid(-margin)",
        "functional.logsigmoid(margin)",
        (DPO_BY_HAND,),
    ),
    Mistake(
        "IPO aims at half its margin",
        "preference/pair_losses.py",
        "1 / (2 * beta)",
        "1 / (4 * beta)",
        (
            f"{PAIR_LOSSES}::test_ipo_worked_by_hand",
            f"{TRL}::test_the_family_s_losses_and_gradients_equal_trl_s[ipo-adapter]",
        ),
    ),
    Mistake(
        "IPO sums where it should average",
        "training/methods.py",
        "*(scores.log_ratio / scores.n_tokens).chunk(2), beta=config.beta",
        "*_ratios(scores), beta=config.beta",
        (f"{TRL}::test_the_family_s_losses_and_gradients_equal_trl_s[ipo-adapter]",),
    ),
    Mistake(
        "SimPO's margin helps instead of asking",
        "preference/pair_losses.py",
        "rejected_mean_log_prob) - gamma",
        "rejected_mean_log_prob) + gamma",
        (f"{PAIR_LOSSES}::test_simpo_worked_by_hand",),
    ),
    Mistake(
        "APO-zero pushes rejected completions up",
        "preference/pair_losses.py",
        "torch.sigmoid(beta * rejected_log_ratio)",
        "torch.sigmoid(-beta * rejected_log_ratio)",
        (f"{PAIR_LOSSES}::test_apo_zero_worked_by_hand",),
    ),
    Mistake(
        "BCO on pairs likes rejected completions",
        "preference/pair_losses.py",
        "functional.logsigmoid(-beta * rejected_log_ratio)",
        "functional.logsigmoid(beta * rejected_log_ratio)",
        (f"{PAIR_LOSSES}::test_bco_on_pairs_worked_by_hand",),
    ),
    Mistake(
        "ORPO compares probabilities instead of odds",
        "preference/pair_losses.py",
        "return log_prob - torch.where(is_near, near, far)",
        "return log_prob",
        (f"{PAIR_LOSSES}::test_the_odds_ratio_worked_by_hand",),
    ),
    Mistake(
        "CPO prefers the rejected completion",
        "preference/pair_losses.py",
        "beta * (chosen_log_prob - rejected_log_prob)",
        "beta * (rejected_log_prob - chosen_log_prob)",
        (f"{PAIR_LOSSES}::test_cpo_worked_by_hand",),
    ),
    Mistake(
        "CPO reads log-probs per token",
        "training/methods.py",
        "*scores.log_probs.chunk(2), beta=config.beta",
        "*_mean_log_probs(scores), beta=config.beta",
        (f"{AS_TRL}[cpo-adapter]",),
    ),
    Mistake(
        "CPO forgets its likelihood",
        "training/method_configs.py",
        '{"cpo": 1.0, "sft": self.cpo_alpha}',
        '{"cpo": 1.0}',
        (f"{AS_TRL}[cpo-adapter]",),
    ),
    Mistake(
        "RPO's alpha weighs the preference",
        "training/method_configs.py",
        '{"sigmoid": 1.0, "sft": self.rpo_alpha}',
        '{"sigmoid": self.rpo_alpha, "sft": 1.0}',
        (RPO_BY_HAND,),
    ),
    Mistake(
        "weights of a sum of losses are dropped",
        "training/methods.py",
        "weight * PAIR_TERMS[name]",
        "PAIR_TERMS[name]",
        (RPO_BY_HAND, ORPO_BY_HAND),
    ),
    Mistake(
        "ORPO's beta weighs the likelihood",
        "training/method_configs.py",
        '{"sft": 1.0, "odds_ratio": self.beta}',
        '{"sft": self.beta, "odds_ratio": 1.0}',
        (
            ORPO_BY_HAND,
            f"{TRL}::test_orpo_equals_trl_s_but_for_the_likelihood_of_prompts[longer prompts-adapter]",
        ),
    ),
    Mistake(
        "the likelihood is that of the rejected completions",
        "training/methods.py",
        "scores.log_probs.chunk(2)[0], scores.mean_chosen_tokens",
        "scores.log_probs.chunk(2)[1], scores.mean_chosen_tokens",
        (RPO_BY_HAND, ORPO_BY_HAND),
    ),
    Mistake(
        "APO-zero on single thumbs has a reference point",
        "training/method_configs.py",
        'return self.loss_type not in ("kto_thresholds", "apo_zero_unpaired")',
        'return self.loss_type != "kto_thresholds"',
        (f"{AS_TRL}[apo_u-adapter]",),
    ),
    Mistake(
        "BCO has no shift",
        "training/methods.py",
        "return kto_logsigmoid_loss(scores.log_ratio, desirable, scores.reference_point, **",
        "return kto_logsigmoid_loss(scores.log_ratio, desirable, torch.zeros(()), **",
        (BCO_BY_HAND,),
    ),
    Mistake(
        "BCO's shift stays where it began",
        "training/zero.py",
        "return self._moving_point.value if isinstance(self._moving_point, RewardShift) else 0.0",
        "return 0.0",
        (f"{FIELDS}::test_changing_a_field_moves_a_loss_or_a_weight[bco-reward_shift_decay]",),
    ),
    Mistake(
        "the likelihood is per microbatch",
        "training/trainer.py",
        "if mean_chosen_tokens is None:  # in evaluation the microbatch is the whole batch",
        "if True:",
        (f"{METHODS}::test_neither_the_cut_nor_the_engine_changes_a_step[adapter-rpo]",),
    ),
    Mistake(
        "the log-sigmoid value has its sign flipped",
        "preference/losses.py",
        "functional.logsigmoid(sign * beta",
        "functional.logsigmoid(-sign * beta",
        (f"{LOSSES}::test_the_log_sigmoid_value_worked_by_hand",),
    ),
    Mistake(
        "flip rates of the classes are swapped",
        "preference/label_noise.py",
        "own = torch.where(desirable, desirable_flip_rate, undesirable_flip_rate)",
        "own = torch.where(desirable, undesirable_flip_rate, desirable_flip_rate)",
        (f"{NOISE}::test_the_correction_worked_by_hand",),
    ),
    Mistake(
        "a row's weight is dropped",
        "training/trainer.py",
        "self.method.loss(self.args, scores) * inputs.weights",
        "self.method.loss(self.args, scores)",
        (f"{METHODS}::test_a_row_of_twice_the_weight_counts_as_two_rows",),
    ),
    Mistake(
        "a resumed run forgets the average of its zero",
        "training/saving.py",
        'self._moving_point.restore(state.get("reference_point"))',
        "pass",
        (f"{METHODS}::test_averages_of_the_zero_follow_the_batches_and_survive_a_checkpoint",),
    ),
    Mistake(
        "a reference-free z0 is measured against something",
        "training/rows.py",
        "None if lent is None else torch.zeros_like(lent)",
        "None if lent is None else torch.ones_like(lent)",
        (f"{METHODS}::test_a_reference_free_zero_is_the_mean_log_prob_of_lent_completions",),
    ),
    Mistake(
        "the crossing is read as straight over pairs, not over their logarithm",
        "evaluation/crossing.py",
        "return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))",
        "return before + share * (after - before)",
        (f"{CROSSING}::test_a_crossing_worked_by_hand",),
    ),
    Mistake(
        "noisy thumbs pass for fewer of them in the crossing",
        "evaluation/price_of_pairs.py",
        "if condition.rows is None or condition != Condition(rows=condition.rows):",
        "if condition.rows is None:",
        (
            "evaluation/test_compare.py::"
            "test_a_crossing_takes_from_the_sweeps_what_has_fewer_thumbs_and_nothing_else",
        ),
    ),
    Mistake(
        "every number of bought pairs runs at the settings of the pairs in the thumbs",
        "evaluation/pairs_bought.py",
        'request.settings.get(name_bought(n_pairs), request.settings.get("dpo", {}))',
        'request.settings.get("dpo", {})',
        ("evaluation/test_compare.py::test_each_number_of_bought_pairs_has_the_settings_searched_for_it",),
    ),
    Mistake(
        "the search takes the worst settings",
        "evaluation/search.py",
        "return max(measured",
        "return min(measured",
        (f"{CROSSING}::test_the_best_is_taken_the_earliest_among_equals_and_never_one_that_failed",),
    ),
    Mistake(
        "noise keeps the wrong presses and flips the right ones",
        "evaluation/conditions.py",
        '_draw(seed, "noise", example) < condition.noise',
        '_draw(seed, "noise", example) > condition.noise',
        (
            "evaluation/test_conditions.py::"
            "test_noise_flips_about_its_share_and_more_noise_flips_the_same_rows_and_others",
        ),
    ),
    Mistake(
        "a model that prefers a place wins by it",
        "evaluation/judges.py",
        'second == "B"',
        'second == "A"',
        (
            "evaluation/test_judges.py::test_a_model_is_asked_in_both_orders_and_a_liking_for_a_place_is_a_half",
        ),
    ),
    Mistake(
        "a prompt that was never liked counts as a negative flip",
        "evaluation/measures.py",
        "for a, b in pairs if b > 0.5]",
        "for a, b in pairs]",
        ("evaluation/test_compare.py::test_wins_ties_losses_and_flips_worked_by_hand",),
    ),
    Mistake(
        "loss aversion weighs gains",
        "preference/prospect.py",
        "torch.where(outcome < 0, loss_aversion",
        "torch.where(outcome > 0, loss_aversion",
        (f"{PROSPECT}::test_gains_and_losses_worked_by_hand",),
    ),
    Mistake(
        "the prospect value has no slope at zero",
        "preference/prospect.py",
        "linear = outcome * ",
        "linear = outcome.sign() * size * ",
        (f"{LOSSES}::test_before_the_first_step_each_loss_already_teaches",),
    ),
    # ---- the reference point and the metrics
    Mistake(
        "z0 is not clamped at zero",
        "preference/reference_point.py",
        "estimate_uniform_reference_point(mismatched_log_ratio).clamp(min=0)",
        "estimate_uniform_reference_point(mismatched_log_ratio)",
        (f"{POINT}::test_a_negative_mean_is_clamped_at_zero_and_single_negatives_are_not",),
    ),
    Mistake(
        "z0 clamps each completion instead of the mean",
        "preference/reference_point.py",
        "estimate_uniform_reference_point(mismatched_log_ratio).clamp(min=0)",
        "estimate_uniform_reference_point(mismatched_log_ratio.clamp(min=0))",
        (f"{POINT}::test_a_negative_mean_is_clamped_at_zero_and_single_negatives_are_not",),
    ),
    Mistake(
        "z0 takes a gradient",
        "preference/reference_point.py",
        "mismatched_log_prob.detach().float()",
        "mismatched_log_prob.float()",
        (f"{POINT}::test_it_takes_no_gradient",),
    ),
    Mistake(
        "an average of the zero keeps what it should forget",
        "preference/reference_point.py",
        "self.decay * before + (1 - self.decay) * value",
        "(1 - self.decay) * before + self.decay * value",
        (f"{POINT}::test_a_moving_average_starts_at_the_first_value_and_forgets",),
    ),
    Mistake(
        "an average of the zero starts at zero",
        "preference/reference_point.py",
        "before = value if self.value is None else self.value",
        "before = self.value or 0.0",
        (f"{POINT}::test_a_moving_average_starts_at_the_first_value_and_forgets", SHIFT, AVERAGED),
    ),
    Mistake(
        "z0 is averaged, and the batch's own is used",
        "training/zero.py",
        "reference_point = reference_point.new_tensor(self._moving_point.update(float(reference_point)))",
        "self._moving_point.update(float(reference_point))",
        (AVERAGED,),
    ),
    Mistake(
        "the reward shift follows the frequent class",
        "preference/reference_point.py",
        "log_ratio.detach().float()[desirable == label]",
        "log_ratio.detach().float()",
        (SHIFT,),
    ),
    Mistake(
        "the reward shift is a sum of the classes, not their middle",
        "preference/reference_point.py",
        "sum(known) / len(known) if known",
        "sum(known) if known",
        (SHIFT, BCO_BY_HAND),
    ),
    # ---- class weights
    Mistake(
        "the frequent class gets the weight of the rare one",
        "preference/class_weights.py",
        "return LOWEST_BALANCE * n_undesirable / n_desirable, 1.0",
        "return 1.0, LOWEST_BALANCE * n_undesirable / n_desirable",
        (
            f"{CLASS_WEIGHTS}::test_the_paper_s_example_of_one_desirable_row_in_ten",
            f"{CLASS_WEIGHTS}::test_the_weighted_balance_lies_in_the_interval",
        ),
    ),
    Mistake(
        "many thumbs up are balanced to one half, past the nearest bound",
        "preference/class_weights.py",
        "n_desirable / (HIGHEST_BALANCE * n_undesirable)",
        "n_desirable / (LOWEST_BALANCE * n_undesirable)",
        (
            f"{CLASS_WEIGHTS}::test_many_thumbs_up_raise_the_weight_of_the_thumbs_down_to_the_upper_bound",
            f"{CLASS_WEIGHTS}::test_a_weight_is_raised_no_further_than_to_the_nearest_bound",
        ),
    ),
    Mistake(
        "counts that fit are weighed all the same",
        "preference/class_weights.py",
        "if n_desirable > HIGHEST_BALANCE * n_undesirable:",
        "if n_desirable > LOWEST_BALANCE * n_undesirable:",
        (f"{CLASS_WEIGHTS}::test_counts_that_fit_keep_weights_of_one[120]",),
    ),
    Mistake(
        "weights 'auto' are of the other class",
        "training/class_balance.py",
        "args.desirable_weight, args.undesirable_weight = recommend_class_weights(",
        "args.undesirable_weight, args.desirable_weight = recommend_class_weights(",
        ("training/test_config.py::test_auto_weights_come_from_the_counts_and_say_so",),
    ),
    Mistake(
        "ties count fully in the AUC",
        "preference/metrics.py",
        "last_rank - (counts.double() - 1) / 2",
        "last_rank",
        (f"{METRICS}::test_the_area_worked_by_hand",),
    ),
    # ---- log-probs
    Mistake(
        "the completion mask is one column early",
        "engine/logprobs.py",
        "attention_mask[:, prompt_width:].bool()",
        "attention_mask[:, prompt_width - 1 : -1].bool()",
        (f"{LOG_PROBS}::test_padding_worked_by_hand", f"{UNPADDED}[llama]"),
    ),
    Mistake(
        "logits are read one token late",
        "engine/logprobs.py",
        ".logits[:, :-1]  # (B, C, V)",
        ".logits[:, 1:]  # (B, C, V)",
        (f"{UNPADDED}[llama]",),
    ),
    Mistake(
        "the first completion token is dropped",
        "engine/logprobs.py",
        'return _sum_token_log_probs(logits, batch["input_ids"][:, -width:], completion_mask)',
        'return _sum_token_log_probs(logits[:, 1:], batch["input_ids"][:, -width:][:, 1:], completion_mask[:, 1:])',
        (f"{LOG_PROBS}::test_no_prompt_token_is_scored_and_no_completion_token_is_missed",),
    ),
    Mistake(
        "the prompt's last token counts as completion",
        "data/chat.py",
        "boundary = _common_prefix_length(prompt_ids, both_ids)",
        "boundary = _common_prefix_length(prompt_ids, both_ids) - 1",
        (f"{TRL}::test_trl_and_ours_cut_the_same_text_into_the_same_tokens",),
    ),
    Mistake(
        "padding is counted",
        "engine/logprobs.py",
        ".masked_fill(~mask, 0.0)",
        "",
        (f"{LOG_PROBS}::test_a_log_prob_worked_by_hand", f"{UNPADDED}[llama]"),
    ),
    Mistake(
        "the log-prob is a mean over tokens",
        "engine/logprobs.py",
        ".masked_fill(~mask, 0.0).sum(-1)",
        ".masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)",
        (f"{LOG_PROBS}::test_a_log_prob_worked_by_hand",),
    ),
    Mistake(
        "positions count the padding on the left",
        "engine/logprobs.py",
        "(attention_mask.cumsum(-1) - 1).clamp(min=0)",
        "torch.arange(shape[1]).expand(shape)",
        (f"{UNPADDED}[gpt2]",),
    ),
    Mistake(
        "positions behind a shared prompt count its padding",
        "engine/logprobs.py",
        "prompt_mask.sum(-1, keepdim=True) + torch",
        "torch.full_like(prompt_mask[:, :1], prompt_mask.shape[1]) + torch",
        (f"{SHARED}[gpt2]",),
    ),
    Mistake(
        "padding is attended to",
        "engine/logprobs.py",
        "attention_mask[row, columns] = 1",
        "attention_mask[row, : columns.stop] = 1",
        (f"{UNPADDED}[llama]",),
    ),
    Mistake(
        "scores come back in the order of the chunks",
        "engine/logprobs.py",
        "scores[members] = ",
        "scores[done : done + len(members)] = ",
        (f"{SHARED}[llama]",),
    ),
    Mistake(
        "a completion rides on another prompt",
        "engine/logprobs.py",
        "[position[tuple(branch.prompt_ids)] for branch in branches]",
        "[0 for branch in branches]",
        (f"{SHARED}[llama]",),
    ),
    Mistake(
        "the cached reference does not see where the prompt ends",
        "engine/reference.py",
        'key.update(len(ids).to_bytes(8, "little"))',
        "pass",
        (f"{REFERENCE}::test_other_token_ids_are_another_key[branches1]",),
    ),
    Mistake(
        "a failed write leaves its half behind",
        "engine/reference.py",
        "Path(staging).unlink(missing_ok=True)",
        "pass",
        (f"{REFERENCE}::test_a_write_that_fails_leaves_nothing_behind",),
    ),
    Mistake(
        "a sample's log-prob is that of the temperature",
        "evaluation/generate.py",
        "logits.log_softmax(-1)",
        "(logits / max(temperature, 0.1)).log_softmax(-1)",
        (f"{GENERATE}::test_the_log_prob_is_the_score_of_the_same_tokens[settings1]",),
    ),
    # ---- who meets whom
    Mistake(
        "a completion is lent to a row of its own prompt",
        "engine/plan.py",
        "np.flatnonzero(keys[line] == keys[lent])",
        "np.flatnonzero(line == lent)",
        (f"{PLAN}::test_a_lent_completion_is_always_of_another_prompt",),
    ),
    Mistake(
        "completions are lent on by one, whatever their prompts",
        "engine/plan.py",
        "- start + shift) % n_rows]",
        "- start + 1) % n_rows]",
        (f"{PLAN}::test_every_completion_is_lent_once_where_no_prompt_fills_more_than_half_of_the_batch",),
    ),
    Mistake(
        "the rare class may miss the last batch",
        "engine/plan.py",
        "one_each = n_rare >= len(sizes)",
        "one_each = False",
        (f"{PLAN}::test_a_small_last_batch_gets_its_row_of_the_rare_class",),
    ),
    Mistake(
        "a row alone may borrow from its own prompt",
        "engine/plan.py",
        "np.where(choice < begin, choice, choice + (end - begin))",
        "choice",
        (f"{PLAN}::test_a_row_alone_can_be_lent_any_completion_of_another_prompt_and_no_other",),
    ),
    Mistake(
        "every epoch has the same order",
        "engine/plan.py",
        'draw_from(f"{self.seed}/{epoch}")',
        'draw_from(f"{self.seed}")',
        (f"{PLAN}::test_epochs_are_shuffled_anew",),
    ),
    Mistake(
        "a row is lent its own completion",
        "training/token_storage.py",
        "lender = self.branches[planned.mismatched_row][0]",
        "lender = self.branches[planned.row][0]",
        (f"{FAULTS}::test_ours_lends_completions_of_the_same_batch_whatever_the_number_of_processes[3]",),
    ),
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
        "training/trainer.py",
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
        "training/trainer.py",
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
    # ---- the packed row
    Mistake(
        "completions of one prompt see each other",
        "engine/packing.py",
        "pieces += [Piece(*spans[index], prompt=prompts[-1]) for index in indices]",
        "pieces[-1] = Piece(start, len(ids))",
        (f"{PACKING}::test_a_row_worked_by_hand", EXACTLY_BEFORE),
    ),
    Mistake(
        "a completion sees no prompt",
        "engine/packing.py",
        "Piece(*spans[index], prompt=prompts[-1])",
        "Piece(*spans[index])",
        (f"{PACKING}::test_a_row_worked_by_hand", EXACTLY_BEFORE),
    ),
    Mistake(
        "positions of completions start at zero",
        "engine/packing.py",
        "torch.arange(n_prompt, n_prompt + len(completion_ids))",
        "torch.arange(len(completion_ids))",
        (f"{PACKING}::test_a_row_worked_by_hand", EXACTLY_BEFORE),
    ),
    Mistake(
        "positions go on from one completion to the next",
        "engine/packing.py",
        "torch.arange(n_prompt, n_prompt + len(completion_ids))",
        "torch.arange(len(ids) - len(completion_ids), len(ids)) - start",
        (f"{PACKING}::test_a_row_worked_by_hand", EXACTLY_BEFORE),
    ),
    Mistake(
        "a token is scored from the state of its own place",
        "engine/packing.py",
        "states += [first_states[index], *range(starts[index], starts[index] + n_tokens - 1)]",
        "states += range(starts[index], starts[index] + n_tokens)",
        (f"{PACKING}::test_a_row_worked_by_hand", EXACTLY_BEFORE),
    ),
    Mistake(
        "tokens are counted for another branch",
        "engine/packing.py",
        "owners += [index] * n_tokens",
        "owners += [len(branches) - 1 - index] * n_tokens",
        (f"{PACKING}::test_a_row_worked_by_hand",),
    ),
    Mistake(
        "positions of riders start at zero",
        "engine/packing.py",
        "torch.arange(len(prompt_ids), len(prompt_ids) + len(fed))",
        "torch.arange(len(fed))",
        (f"{PACKING}::test_riders_worked_by_hand",),
    ),
    Mistake(
        "riders are fed their last token",
        "engine/packing.py",
        "fed = list(completion_ids[:-1])",
        "fed = list(completion_ids)",
        (f"{PACKING}::test_riders_worked_by_hand",),
    ),
    Mistake(
        "all ride on one prompt",
        "engine/packing.py",
        "pieces.append(Piece(len(ids), len(ids) + len(fed), prompt=carrier.prompts[prompt]))",
        "pieces.append(Piece(len(ids), len(ids) + len(fed), prompt=carrier.prompts[0]))",
        (f"{PACKING}::test_riders_worked_by_hand",),
    ),
    Mistake(
        "the bound of a microbatch is ignored",
        "engine/microbatches.py",
        "if cost(held + part) <= max_tokens:",
        "if cost(held) <= max_tokens:",
        (
            f"{MICROBATCHES}::test_a_cut_by_tokens_worked_by_hand",
            f"{MICROBATCHES}::test_no_microbatch_exceeds_its_tokens_unless_one_row_does[packed_cost]",
        ),
    ),
    # ---- its attention
    Mistake(
        "a query sees the token after it",
        "engine/attention.py",
        ".triu(first + 1)",
        ".triu(first + 2)",
        (ATTENDS, RIDES),
    ),
    Mistake(
        "a query does not see itself",
        "engine/attention.py",
        ".triu(first + 1)",
        ".triu(first)",
        (ATTENDS, RIDES),
    ),
    Mistake(
        "a window is one token too long",
        "engine/attention.py",
        ".tril(first - window)",
        ".tril(first - window - 1)",
        (ATTENDS, RIDES, f"{ATTENTION}::test_a_window_of_one_sees_itself_alone"),
    ),
    Mistake(
        "a block with a window forgets that its keys start late",
        "engine/attention.py",
        "yield _Block(start, stop, prompt, own, position - lowest)",
        "yield _Block(start, stop, prompt, own, position)",
        (ATTENDS, RIDES),
    ),
    Mistake(
        "the prompt's gradient is that of its last completion",
        "engine/attention.py",
        "target[0, :, slice(*block.prompt)] += grad[:, :n_prompt]",
        "target[0, :, slice(*block.prompt)] = grad[:, :n_prompt]",
        (ATTENDS,),
    ),
    Mistake(
        "the slope of attention's soft cap is missing",
        "engine/attention.py",
        "grad_scores.mul_(slope)",
        "pass",
        (ATTENDS,),
    ),
    Mistake(
        "the scaling is missing from the gradient of the keys",
        "engine/attention.py",
        "torch.bmm(grad_scores.transpose(1, 2), q).mul_(ctx.rule.scaling)",
        "torch.bmm(grad_scores.transpose(1, 2), q)",
        (ATTENDS,),
    ),
    Mistake(
        "a recomputed forward keeps the prompts again",
        "engine/attention.py",
        "if packed.keeps is not None and not packed.keeps.closed:",
        "if packed.keeps is not None:",
        (f"{CHECKPOINTS}[llama-False]", f"{CHECKPOINTS}[llama-True]"),
    ),
    # ---- its head
    Mistake(
        "the slope of the head's soft cap is missing",
        "engine/head.py",
        "grad_logits.mul_(slope)",
        "pass",
        (NAIVE_HEAD,),
    ),
    Mistake(
        "the scale of the head is missing from its gradient",
        "engine/head.py",
        "grad_logits.mul_(ctx.head.scale)",
        "pass",
        (NAIVE_HEAD,),
    ),
    Mistake(
        "a frozen head does not scale what it has summed when a higher logit comes",
        "engine/head.py",
        "(pulled[rows] * fading[:, None])",
        "(pulled[rows] * 1.0)",
        (NAIVE_HEAD,),
    ),
    Mistake(
        "kept logits are taken for those of the tile after",
        "engine/head.py",
        "zip_longest(_list_tiles(len(targets), len(copy)), kept)",
        "zip_longest(_list_tiles(len(targets), len(copy)), kept[1:] + kept[:1])",
        (f"{HEAD}::test_logits_that_were_kept_give_the_gradient_that_new_ones_give[head0]",),
    ),
    Mistake(
        "the gradient of the head's weight is that of its last tile",
        "engine/head.py",
        "grad_weight[columns] += product",
        "grad_weight[columns] = product",
        (NAIVE_HEAD,),
    ),
    Mistake(
        "the varlen kernel is told of a window one key too wide",
        "engine/varlen.py",
        "-1 if window is None else window - 1",
        "-1 if window is None else window",
        (VARLEN,),
    ),
    Mistake(
        "the varlen kernel's keys of a rider are the first of the kept row",
        "engine/varlen.py",
        "torch.arange(n_kept + piece.start, n_kept + piece.stop)",
        "torch.arange(piece.start, piece.stop)",
        (VARLEN,),
    ),
    # ---- its modules
    Mistake(
        "the norm's gradient forgets that the norm moves",
        "engine/fast_modules.py",
        ".sub_(normed.mul_(overlap))",
        "",
        (f"{FAST}::test_the_norm_equals_its_naive_form_value_and_gradient[shape0]",),
    ),
    Mistake(
        "a low-precision copy is never made anew",
        "engine/low_precision.py",
        "elif kept.state != state:",
        "elif False:",
        (
            f"{FAST}::test_a_copy_is_made_once_per_change_of_the_weight",
            f"{FAST}::test_new_weights_behind_the_parameter_s_back_are_seen",
        ),
    ),
    Mistake(
        "kept copies outlive the optimizer's step",
        "engine/low_precision.py",
        "    register_optimizer_step_post_hook(outdate_trained)",
        "    pass",
        (f"{FAST}::test_a_step_of_the_optimizer_makes_new_low_precision_copies[fused]",),
    ),
    Mistake(
        "LoRA's scaling is missing from the gradient of A",
        "engine/lora.py",
        "return (grad @ b).mul_(scaling)",
        "return grad @ b",
        (f"{LORA_LAYER}[plain-False-False]",),
    ),
    Mistake(
        "LoRA's scaling is missing from the gradient of B",
        "engine/lora.py",
        "(grad.t() @ low).mul_(scaling)",
        "(grad.t() @ low)",
        (f"{LORA_LAYER}[plain-False-False]",),
    ),
    Mistake(
        "the adapter behind a gated MLP learns nothing for gate and up",
        "engine/lora.py",
        "(grad @ weight).addmm_(grad_low, a).view_as(up)",
        "(grad @ weight).view_as(up)",
        (
            "engine/test_fast_lora.py::test_packed_lora_has_the_values_and_gradients_of_peft_s_own_forward[plain-llama]",
        ),
    ),
    Mistake(
        "DoRA is computed as plain LoRA",
        "engine/lora.py",
        "and not layer.lora_variant.get(name)",
        "and True",
        (f"{LORA_LAYER}[dora-False-False]",),
    ),
    Mistake(
        "modules are taken without a trial",
        "engine/fast_modules.py",
        "return bool((own - fast).abs().max() <= _TRIAL_TOLERANCE * own.abs().max())",
        "return True",
        (f"{FAST}::test_one_kind_with_two_activations_is_tried_twice",),
    ),
    Mistake(
        "queries and keys get the gradient of the turn forward",
        "engine/rotary.py",
        "_turn(grad, cos, sin[..., half:], -sin[..., :half], ctx.dtype)",
        "_turn(grad, cos, -sin[..., :half], sin[..., half:], ctx.dtype)",
        (f"{ROTARY}::test_it_equals_the_written_out_form_value_and_gradient[1-5]",),
    ),
    Mistake(
        "who turns pairs that lie side by side is taken for one who turns halves",
        "engine/rotary.py",
        "if own is None or not _agrees(own):",
        "if own is None:",
        (f"{ROTARY}::test_each_family_s_attention_is_taken_or_left_as_its_way_of_turning_is[cohere2]",),
    ),
    # ---- who is packed
    Mistake(
        "what layers tell of their windows is not looked at",
        "engine/packed.py",
        "if told.get(layer) != expected:",
        "if False:",
        (
            f"{PATHS}::test_a_layer_that_does_not_tell_its_window_runs_padded",
            f"{PATHS}::test_a_layer_that_tells_a_window_it_should_not_have_runs_padded",
        ),
    ),
    Mistake(
        "a layer's own mask is not looked at",
        "engine/attention.py",
        "if attention_mask is not None and attention_mask.numel() > 1:",
        "if False:",
        (f"{PATHS}::test_a_layer_with_a_mask_of_its_own_runs_padded",),
    ),
    Mistake(
        "attention dropout is looked for in evaluation alone",
        "engine/packed.py",
        "        _let_attention_train(causal)",
        "        pass",
        (f"{PATHS}::test_attention_dropout_runs_padded",),
    ),
    Mistake(
        "whether padding changes a model's numbers is not tried",
        "engine/paths.py",
        "if not _gives_own_numbers(model, path.log_probs):",
        "if False:",
        (f"{ALONE}[auto-rwkv]",),
    ),
    Mistake(
        "prompts are kept when their riders have ridden",
        "engine/paths.py",
        "self.batch.keeps.close()",
        "pass",
        (f"{PACKED}::test_a_carrier_lets_go_of_its_prompts_once_they_were_ridden",),
    ),
    *SERVICE_MISTAKES,
    *LOOP_MISTAKES,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_is_still_one_edit_away(mistake: Mistake) -> None:
    source = (PACKAGE / mistake.file).read_text()
    assert source.count(mistake.right) == 1, (
        f"{mistake.file} holds {mistake.right!r} {source.count(mistake.right)} times: bring the list up to date"
    )


def test_names_of_mistakes_are_told_apart() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.timeout(600)
def test_every_deliberate_mistake_turns_its_tests_red(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": str(tmp_path / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",  # or a mistake of the same length, in the same second, would not be seen
        "OMP_NUM_THREADS": "1",
    }
    shutil.copytree(PACKAGE, tmp_path / "src" / "thumbtune", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-P", __file__, str(tmp_path)]
    with (tmp_path / "output").open("w") as output:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, timeout=580, check=False
        )
    assert done.returncode == 0, (tmp_path / "output").read_text()[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["imported"] == str(tmp_path / "src" / "thumbtune" / "__init__.py")
    assert results["unharmed"]["not passed"] == [], results["unharmed"]["output"]
    survivors = {
        mistake.name: results[mistake.name]["not failed"]
        for mistake in MISTAKES
        if results[mistake.name]["not failed"]
    }
    assert survivors == {}, "these mistakes leave these tests green"


# ---- the child process


class Outcomes:
    """A pytest plugin that notes how each test ended. Only an assertion counts as red: a crash proves nothing."""

    def __init__(self) -> None:
        self.of_test: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.of_test[report.nodeid] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else str(report.longrepr)
            if report.when != "call" or not message.startswith("AssertionError"):
                self.of_test[report.nodeid] = f"{report.when} crashed: {message[:200]}"


def run_tests(tests: list[str]) -> tuple[dict[str, str], str]:
    """Outcome of each test on the package as it stands on disk now, imported afresh, and what pytest printed."""
    for name, module in list(sys.modules.items()):
        of_tests = str(getattr(module, "__file__", None) or "").startswith(str(REPOSITORY / "tests"))
        if name.split(".")[0] == "thumbtune" or (of_tests and name != "__main__"):
            del sys.modules[name]
    importlib.invalidate_caches()
    outcomes, printed = Outcomes(), StringIO()
    arguments = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--assert=plain",
        "--tb=line",
        *(f"tests/{test}" for test in tests),
    ]
    with redirect_stdout(printed), redirect_stderr(printed):
        pytest.main(arguments, plugins=[outcomes])
    found = {test: outcomes.of_test.get(f"tests/{test}", "not run") for test in tests}
    return found, printed.getvalue()


@contextmanager
def harmed(path: Path, mistake: Mistake) -> Iterator[None]:
    whole = path.read_text()
    assert whole.count(mistake.right) == 1
    path.write_text(whole.replace(mistake.right, mistake.wrong))
    try:
        yield
    finally:
        path.write_text(whole)


def run_all(folder: Path) -> None:
    from hypothesis import Phase, settings

    # The first counter-example is enough: a smaller one costs time, and chance has no place here.
    settings.register_profile(
        "first counter-example", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True
    )
    settings.load_profile("first counter-example")
    found, printed = run_tests(sorted({test for mistake in MISTAKES for test in mistake.red}))
    results: dict[str, object] = {
        "imported": sys.modules["thumbtune"].__file__,
        "unharmed": {
            "not passed": [test for test, outcome in found.items() if outcome != "passed"],
            "output": printed[-3000:],
        },
    }
    for mistake in MISTAKES:
        started = time.monotonic()
        with harmed(folder / "src" / "thumbtune" / mistake.file, mistake):
            found, _ = run_tests(list(mistake.red))
        results[mistake.name] = {
            "not failed": [f"{test}: {outcome}" for test, outcome in found.items() if outcome != "failed"],
            "seconds": round(time.monotonic() - started, 1),
        }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
