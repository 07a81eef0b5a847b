"""Deliberate mistakes in losses, reference point, metrics and weights; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

LOSSES = "preference/test_losses.py"
PAIR_LOSSES = "preference/test_pair_losses.py"
NOISE = "preference/test_label_noise.py"
METHODS = "training/test_methods.py"
POINT = "preference/test_reference_point.py"
PROSPECT = "preference/test_prospect.py"
METRICS = "preference/test_preference_metrics.py"
TRL = "training/test_against_trl.py"
FIELDS = "training/test_every_field.py"
CLASS_WEIGHTS = "preference/test_class_weights.py"
CROSSING = "evaluation/test_search_and_crossing.py"
KTO_BY_HAND = f"{LOSSES}::test_kto_of_one_thumb_up_and_one_thumb_down_worked_by_hand"
DPO_BY_HAND = f"{PAIR_LOSSES}::test_dpo_worked_by_hand"
RPO_BY_HAND = f"{METHODS}::test_rpo_is_dpo_and_alpha_times_the_likelihood_worked_by_hand"
ORPO_BY_HAND = f"{METHODS}::test_orpo_is_the_likelihood_and_beta_times_the_odds_worked_by_hand"
BCO_BY_HAND = f"{METHODS}::test_bco_on_single_thumbs_worked_by_hand"
AS_TRL = f"{TRL}::test_the_family_s_losses_and_gradients_equal_trl_s"
SHIFT = f"{POINT}::test_the_reward_shift_does_not_depend_on_how_many_each_class_has"
AVERAGED = f"{METHODS}::test_an_averaged_z0_is_half_of_what_was_and_half_of_what_is"

LOSS_MISTAKES = [
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
        "training/microbatch_losses.py",
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
        "training/microbatch_losses.py",
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
        ("evaluation/test_measures.py::test_wins_ties_losses_and_flips_worked_by_hand",),
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
]
