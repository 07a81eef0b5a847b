"""One script, two libraries: only the import differs.

    python examples/swap_one_import.py thumbs.jsonl --model M --library trl
    python examples/swap_one_import.py thumbs.jsonl --model M --library thumbtune

Both start at a loss of 0.5 (policy and reference are one model then). After that they part, because they meet the rows
in another order and estimate z0 from another batch; docs/how-to/replace-your-kto-trainer.md lists what differs. With
two rows that fit in one batch nothing of this differs, and the losses are equal.
"""

import argparse
import tempfile

parser = argparse.ArgumentParser(description="The same KTO run by either library.")
parser.add_argument("thumbs", help="JSONL with prompt, completion and label")
parser.add_argument("--model", required=True, help="hub name or folder")
parser.add_argument("--library", choices=["trl", "thumbtune"], default="thumbtune")
parser.add_argument("--max-steps", type=int, default=5)
parser.add_argument("--learning-rate", type=float, default=5e-6)
options = parser.parse_args()

if options.library == "trl":
    from trl import KTOConfig, KTOTrainer
else:
    from thumbtune import KTOConfig, KTOTrainer

# From here on nothing knows which library it is.

from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    args = KTOConfig(
        output_dir=folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        max_length=1024,
        bf16=False,  # TRL's default is True, ours False: say it
        gradient_checkpointing=False,  # the same
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = KTOTrainer(
        model=options.model,
        args=args,
        train_dataset=Dataset.from_json(options.thumbs),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )
    trainer.train()

for entry in trainer.state.log_history:
    if "loss" in entry:
        print(f"{options.library} step {entry['step']}: loss {entry['loss']:.6f}")
