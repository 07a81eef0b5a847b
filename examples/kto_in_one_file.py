"""KTO in one file: thumbs in, better model out, with nothing but torch and transformers.

    python examples/kto_in_one_file.py thumbs.jsonl --model M --out DIR

thumbs.jsonl holds one row per line, {"prompt": ..., "completion": ..., "label": true}, as text or as chat messages.
Read it from top to bottom. thumbtune does the same, and besides: LoRA, many GPUs, resume, counts, charts, checks.
"""

import argparse
import json
import os
import random

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer


def kto_loss(log_ratio, desirable, z0, beta, desirable_weight=1.0, undesirable_weight=1.0):
    """KTO (arXiv:2402.01306, Sec. 4): w (1 - σ(β (r - z0))) for a thumbs-up, w (1 - σ(β (z0 - r))) for a thumbs-down.

    r is log π(y|x) - log π_ref(y|x), one per row; z0 is what counts as neither gain nor loss. 1 - σ(a) is σ(-a).
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-sign * beta * (log_ratio - z0))


def tokenize(tokenizer, row, max_length):
    """Token ids of prompt and completion. The completion starts where `prompt` and `prompt + completion` part ways,
    and ends with the end of turn, so that the model learns to stop. Too long a completion loses its end."""
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        both = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
    else:
        as_ids = {"tokenize": True, "return_dict": True}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **as_ids)[
            "input_ids"
        ]
        both = tokenizer.apply_chat_template(row["prompt"] + row["completion"], **as_ids)["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(prompt, both, strict=False)) if a != b), len(prompt))
    return both[:start], both[start:max_length]


def log_probs(model, branches):
    """log π(y|x) of each (prompt ids, completion ids), summed over the completion's tokens, in nats."""
    width = max(len(prompt) + len(completion) for prompt, completion in branches)
    ids = torch.zeros(len(branches), width, dtype=torch.long)  # what stands in the padding is never looked at
    attended, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(branches):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        attended[row, :end] = 1
        trained[row, len(prompt) : end] = True
    ids, attended, trained = ids.to(model.device), attended.to(model.device), trained.to(model.device)
    logits = (
        model(input_ids=ids, attention_mask=attended).logits[:, :-1].float()
    )  # position t foretells t + 1
    nats = -cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (nats * trained[:, 1:]).sum(1)


def plan_batches(prompts, batch_size, epochs, rng):
    """All batches of the run, each a list of (row, lender). The lender's completion under this row's prompt is the
    mismatched completion: the next row of the batch that asks something else, or None where all ask the same."""
    batches = []
    for _ in range(epochs):
        order = rng.sample(range(len(prompts)), len(prompts))
        for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            turned = [batch[i + 1 :] + batch[:i] for i in range(len(batch))]
            lenders = [
                next((other for other in others if prompts[other] != prompts[row]), None)
                for row, others in zip(batch, turned, strict=True)
            ]
            batches.append(list(zip(batch, lenders, strict=True)))
    return batches


def main():
    parser = argparse.ArgumentParser(description="Fine-tune a model on thumbs by KTO.")
    parser.add_argument("thumbs", help="JSONL with prompt, completion and label")
    parser.add_argument("--model", required=True, help="hub name or folder")
    parser.add_argument("--out", required=True, help="folder for the trained model")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int, help="stop after so many batches")
    parser.add_argument("--batch-size", type=int, default=16, help="rows that one optimizer step sees")
    parser.add_argument("--microbatch-size", type=int, default=4, help="rows that one forward sees")
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and completion")
    args = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # run it again: the same weights, bit for bit
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # eval: no dropout, or ratios hold noise

    with open(args.thumbs, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(row["label"] in (True, False) for row in rows):
        raise SystemExit(f"{args.thumbs}: each label has to be true or false")
    tokens = [tokenize(tokenizer, row, args.max_length) for row in rows]
    kept = [i for i, (_, completion) in enumerate(tokens) if completion]
    print(f"{len(kept)} of {len(rows)} rows; {len(rows) - len(kept)} have no room for a completion")
    prompts, completions = zip(*(tokens[i] for i in kept), strict=True)
    desirable = torch.tensor([bool(rows[i]["label"]) for i in kept], device=model.device)

    batches = plan_batches(prompts, args.batch_size, args.epochs, random.Random(0))[: args.max_steps]

    def score(pairs):  # log π of completion j under prompt i, for each (i, j); (i, i) is the row itself
        return log_probs(model, [(prompts[i], completions[j]) for i, j in pairs])

    def split(pairs):
        return [pairs[i : i + args.microbatch_size] for i in range(0, len(pairs), args.microbatch_size)]

    # The reference is the model as it stands now. The plan says what it will be asked, so ask it once and keep no copy.
    asked = {pair for batch in batches for row, lender in batch for pair in ((row, row), (row, lender))}
    asked = sorted((i, j) for i, j in asked if j is not None)
    with torch.no_grad():
        reference = {pair: value for few in split(asked) for pair, value in zip(few, score(few), strict=True)}

    def log_ratios(pairs):
        return score(pairs) - torch.stack([reference[pair] for pair in pairs])

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    for step, batch in enumerate(batches, start=1):
        # z0 first, over the whole batch: how far the model has drifted from the reference on completions that
        # nobody asked for. At least zero, and no gradient flows through it.
        mismatched = [(row, lender) for row, lender in batch if lender is not None]
        with torch.no_grad():
            drift = [log_ratios(few) for few in split(mismatched)]
        z0 = torch.cat(drift).mean().clamp(min=0) if drift else torch.zeros((), device=model.device)
        # Then the loss, microbatch by microbatch; the sum of their gradients is that of the whole batch's mean.
        total = 0.0
        for few in split([(row, row) for row, _ in batch]):
            own = torch.tensor([row for row, _ in few], device=model.device)
            loss = kto_loss(log_ratios(few), desirable[own], z0, args.beta).sum() / len(batch)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} of {len(batches)}: loss {total:.6f}, z0 {z0.item():.6f} nats")

    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
