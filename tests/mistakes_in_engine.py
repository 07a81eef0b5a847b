"""Deliberate mistakes in log-probs, plan and packed row; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

PLAN = "engine/test_plan.py"
LOG_PROBS = "engine/test_logprobs.py"
REFERENCE = "engine/test_reference.py"
PACKING = "engine/test_packing.py"
PACKED = "engine/test_packed.py"
MICROBATCHES = "engine/test_microbatches.py"
PATHS = "engine/test_paths.py"
GENERATE = "evaluation/test_generate.py"
TRL = "training/test_against_trl.py"
FAULTS = "training/test_trl_faults.py"
UNPADDED = f"{LOG_PROBS}::test_the_padded_path_equals_one_unpadded_row_at_a_time"
EXACTLY_BEFORE = f"{PACKING}::test_each_scored_token_is_predicted_from_exactly_what_stands_before_it"
ALONE = f"{PATHS}::test_where_padding_changes_a_model_s_numbers_each_row_has_a_forward_of_its_own"
SHARED = f"{LOG_PROBS}::test_shared_prompts_duplicates_and_chunks_change_nothing"

ENGINE_MISTAKES = [
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
        "a product over many keys keeps the last stretch alone",
        "engine/attention.py",
        "total += torch.bmm(some, those)",
        "total = torch.bmm(some, those)",
        ("engine/test_attention.py::test_it_equals_slow_attention_of_each_branch_value_and_gradient",),
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
]
