"""Deliberate mistakes in attention, head and modules; `test_deliberate_mistakes.py` makes them."""

from __future__ import annotations

from mistakes import Mistake

ATTENTION = "engine/test_attention.py"
PACKED = "engine/test_packed.py"
HEAD = "engine/test_head.py"
FAST = "engine/test_fast_modules.py"
ROTARY = "engine/test_rotary.py"
ATTENDS = f"{ATTENTION}::test_it_equals_slow_attention_of_each_branch_value_and_gradient"
RIDES = f"{ATTENTION}::test_riders_attend_to_what_was_kept_as_if_it_stood_before_them"
CHECKPOINTS = f"{PACKED}::test_activation_checkpointing_changes_no_gradient_and_keeps_no_prompts"
NAIVE_HEAD = f"{HEAD}::test_it_equals_the_naive_head_value_and_gradient"
VARLEN = "engine/test_varlen.py::test_rows_and_riders_are_handed_over_as_they_are"
LORA_LAYER = "engine/test_fast_lora.py::test_one_lora_layer_equals_peft_s_own_value_and_gradient"

OPERATION_MISTAKES = [
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
        "(grad_scores * slope).to(q.dtype)",
        "grad_scores.to(q.dtype)",
        (ATTENDS,),
    ),
    Mistake(
        "the scaling is missing from the gradient of the queries",
        "engine/attention.py",
        "grad_query.mul_(ctx.rule.scaling)",
        "grad_query",
        (ATTENDS,),
    ),
    Mistake(
        "a recomputed forward keeps the prompts again",
        "engine/attention.py",
        "if packed.keeps is not None and not packed.keeps.closed:",
        "if packed.keeps is not None:",
        (f"{CHECKPOINTS}[llama-False]", f"{CHECKPOINTS}[llama-True]"),
    ),
    Mistake(
        "queries are scaled in the forward alone",
        "engine/attention.py",
        "q = _group_heads(query, block, kv_heads, ctx.rule.scaling)",
        "q = _group_heads(query, block, kv_heads)",
        (ATTENDS,),
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
        "zip_longest(tiles, kept)",
        "zip_longest(tiles, kept[1:] + kept[:1])",
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
]
