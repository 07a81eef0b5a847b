"""The lesson's lab: KTO on 5,000 Turkish thumbs with the lesson's settings, then a look at the rewards by class.

    python examples/cookbook_kto.py --model meta-llama/Llama-3.1-8B-Instruct
    python examples/cookbook_kto.py --model ./small-model --rows 200 --max-steps 5     # a quick look, on a CPU too

The rows are made up from public facts, half of them good answers and half with a known flaw; the last tenth is held
out. Where a setting cannot hold on this machine (8-bit paged optimizer, bf16), the run says what took its place.
"""

import argparse
import os

from datasets import Dataset

from thumbtune import KTOConfig, KTOTrainer
from thumbtune.data.synth.facts import make_fact_thumbs
from thumbtune.engine.loading import load_model_and_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="The lesson's KTO lab.")
    parser.add_argument("--model", required=True, help="hub name or folder")
    parser.add_argument(
        "--out", default="runs/cookbook-kto", help="folder for checkpoints and the trained model"
    )
    parser.add_argument("--rows", type=int, default=5000, help="how many thumbs to make")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after so many optimizer steps")
    options = parser.parse_args()

    os.environ.setdefault("WANDB_MODE", "offline")  # WANDB_MODE=online sends the curves to your account

    # 1. A model and its tokenizer.
    model, tokenizer = load_model_and_tokenizer(options.model)

    # 2. Thumbs: {"prompt": "Ankara'nın nüfusu nedir?", "completion": …, "label": true}. An instruct model gets them as
    # chat messages, through its own template; a base model as plain text.
    rows = make_fact_thumbs(rows=options.rows, language="tr", seed=0, chat=bool(tokenizer.chat_template))
    rows = [{name: row[name] for name in ("prompt", "completion", "label")} for row in rows]
    n_held_out = len(rows) // 10
    train_dataset = Dataset.from_list(rows[n_held_out:])
    eval_dataset = Dataset.from_list(rows[:n_held_out])

    # 3. The lesson's settings.
    cfg = KTOConfig(
        output_dir=options.out,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=5e-6,
        bf16=True,
        optim="paged_adamw_8bit",
        max_length=4096,
        max_prompt_length=2048,
        beta=0.1,
        desirable_weight=1.0,  # as many 👍 as 👎, so both weigh the same
        undesirable_weight=1.0,
        logging_steps=5,
        report_to="wandb",
        max_steps=options.max_steps,
    )

    # 4. Train. All weights: in float32 with 8-bit moments that is 10 bytes a parameter, 80 GB for 8 billion. Give
    # peft_config=LoraConfig(...) for an adapter instead, with a learning rate of 1e-5 to 2e-4.
    trainer = KTOTrainer(
        model=model, args=cfg, train_dataset=train_dataset, eval_dataset=eval_dataset, tokenizer=tokenizer
    )
    trainer.train()
    trainer.save_model(options.out)

    # 5. Look: 👍 should stay or rise, 👎 should fall, z0 should rise slowly. Both falling: learning rate too high.
    print(f"{'step':>6} {'loss':>8} {'👍 reward':>10} {'👎 reward':>10} {'z0':>8}")
    for entry in trainer.state.log_history:
        if "rewards/margins" in entry:
            print(
                f"{entry['step']:>6} {entry['loss']:>8.4f} {entry['rewards/chosen']:>10.4f} "
                f"{entry['rewards/rejected']:>10.4f} {entry['z0']:>8.4f}"
            )
    held_out = trainer.evaluate()
    print(f"held out, {n_held_out} rows, one seed:")
    for name in ("eval_rewards/chosen", "eval_rewards/rejected", "eval_rewards/margins", "eval_auc"):
        print(f"  {name.removeprefix('eval_')}: {held_out[name]:.4f}")
    for alarm in trainer.alarms[:1]:
        print(f"alarm: {alarm}")
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main()
