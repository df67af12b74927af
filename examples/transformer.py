"""A transformer that grows in the Trainer of its library (pip install transformers accelerate).

python examples/transformer.py
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from growpipe import save_grown
from growpipe.callbacks import TrainerGrowth, When


def build():
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def sentences(count, seed):
    """The label says whether the first token is a small one."""
    tokens = torch.randint(2, 40, (count, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": int(t[0] < 20)} for t in tokens]


def main():
    torch.manual_seed(0)
    model = build()
    growth = TrainerGrowth(When(epochs=(2, 4)), 1.5, 0.5, max_samples=256)
    arguments = TrainingArguments(
        "runs/transformer",
        num_train_epochs=8,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        bf16=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    Trainer(model, arguments, train_dataset=sentences(512, seed=0), callbacks=[growth]).train()
    for done in growth.history:
        print(done)
    save_grown(model, "transformer.safetensors")


if __name__ == "__main__":
    main()
