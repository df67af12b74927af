"""Growth in the Trainer of transformers: dict batches, gradient accumulation, bfloat16, checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from growpipe import GrowthBudget, load_grown
from growpipe.callbacks import Plateau, When
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.export import named_tensors

pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")
transformers = pytest.importorskip("transformers")
from growpipe.callbacks import TrainerGrowth  # noqa: E402 - it needs both

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other people's


class Net(nn.Module):
    """Takes names and gives a dict with its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        x = (self.embed(tokens) * mask[..., None]).mean(1)
        logits = self.head(torch.tanh(self.hidden(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def samples(count: int = 64) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 9, (count, 5), generator=torch.Generator().manual_seed(0))
    labels = (tokens.sum(1) % 9 > 4).long()
    return [{"tokens": t, "mask": torch.ones(5), "labels": y} for t, y in zip(tokens, labels, strict=True)]


def trainer(folder: Path, callback: Any, model: nn.Module | None = None, **options: Any) -> Any:
    if model is None:
        torch.manual_seed(0)
        model = Net()
    given = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "bf16": True,
        "use_cpu": True,
        "learning_rate": 0.01,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    arguments = transformers.TrainingArguments(str(folder), **{**given, **options})
    made = transformers.Trainer(
        model, arguments, train_dataset=samples(), eval_dataset=samples(16), callbacks=[callback]
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def small(when: When, *arguments: Any, **options: Any) -> TrainerGrowth:
    return TrainerGrowth(
        when, *arguments, **{"max_samples": 32, "ranking": "predicted", "epsilon": 0.1, **options}
    )


def test_the_model_grows_at_steps_and_everything_goes_on(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", transformers.TrainerCallback())
    plain.train()
    torch.manual_seed(0)
    model = Net()
    average = torch.optim.swa_utils.AveragedModel(model)
    callback = small(When(steps=(5,)), GrowthBudget(parameters=90), averaged=[average], growth=0.7)
    made = trainer(tmp_path / "grown", callback, model)
    made.train()
    (growth,) = callback.history
    assert made.model is model
    assert growth.step == 5
    assert growth.widths == {"hidden.weight": model.hidden.out_features}
    assert 3 < model.hidden.out_features == model.head.in_features
    assert growth.parameters == sum(p.numel() for p in model.parameters()) <= 90
    assert growth.macs == 4 * model.hidden.out_features + model.head.in_features * 2
    assert average.module.hidden.weight.shape == model.hidden.weight.shape
    state = made.optimizer.optimizer.state
    assert state.keys() == set(model.parameters())
    for parameter, entries in state.items():
        assert entries["exp_avg"].shape == parameter.shape
        assert int(entries["step"]) == 12
    # The same losses until the growth, the same rates and data to the end; the loss does not jump.
    logs = [[entry for entry in run.state.log_history if "learning_rate" in entry] for run in (plain, made)]
    assert [e["learning_rate"] for e in logs[0]] == [e["learning_rate"] for e in logs[1]]
    losses = [[entry["loss"] for entry in log] for log in logs]
    assert losses[0][:5] == losses[1][:5]
    assert losses[0][5:] != losses[1][5:]
    assert losses[0] == pytest.approx(losses[1], abs=0.2)


def test_training_resumes_from_a_checkpoint_after_growth(tmp_path: Path) -> None:
    when = When(steps=(3, 9), epochs=(1,), most=2)
    options = {"save_strategy": "steps", "save_steps": 6, "gradient_accumulation_steps": 1}

    def build() -> Net:
        torch.manual_seed(0)
        return Net()

    def grow() -> TrainerGrowth:
        return small(when, 4.0, 0.4)

    options["num_train_epochs"] = 2
    whole = trainer(tmp_path, grow(), build(), **options)
    whole.train()
    checkpoint = tmp_path / "checkpoint-6"
    model = load_grown(build(), checkpoint / "grown.safetensors")
    assert 3 < model.hidden.out_features < whole.model.hidden.out_features
    again = grow()
    rest = trainer(tmp_path, again, model, **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert [growth.step for growth in again.history] == [8]
    for name, tensor in named_tensors(whole.model).items():
        torch.testing.assert_close(named_tensors(rest.model)[name], tensor, rtol=1e-5, atol=1e-6)
    last = load_grown(build(), tmp_path / "checkpoint-12" / "grown.safetensors")
    assert last.hidden.out_features == whole.model.hidden.out_features


def test_the_model_grows_on_a_plateau_up_to_a_multiple_of_its_size(tmp_path: Path) -> None:
    plateau = Plateau("eval_loss", patience=1, min_delta=10.0)
    callback = small(When(plateau=plateau), 1.2, loss=nn.functional.cross_entropy)
    made = trainer(tmp_path, callback, eval_strategy="steps", eval_steps=2, bf16=False)
    seed = sum(p.numel() for p in made.model.parameters())
    made.train()
    # The first value is the best; the second is no better by 10. The budget is spent then.
    assert [growth.step for growth in callback.history] == [4]
    assert seed < callback.history[0].parameters <= 1.2 * seed


def test_what_cannot_work_is_one_line_before_the_first_step(tmp_path: Path) -> None:
    def refused(message: str, callback: Any, model: nn.Module | None = None, **options: Any) -> None:
        with pytest.raises(UsageError, match=message) as refusal:
            trainer(tmp_path, callback, model, **options).train()
        assert "\n" not in str(refusal.value)

    at = When(steps=(2,))
    refused("the network has 59 parameters, more than the budget of 20", small(at, GrowthBudget(20)))
    refused("'eval_loss' is never measured: set eval_strategy", small(When(plateau=Plateau("eval_loss"))))
    refused(
        "no metric 'eval_los' was logged; did you mean 'eval_loss'",
        small(When(plateau=Plateau("eval_los"))),
        eval_strategy="steps",
        eval_steps=2,
    )
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    refused("load_best_model_at_end cannot go back", small(at), **best)
    with pytest.raises(UsageError, match=r"When\(steps=\(100, 200\)\), not 3"):
        small(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"a budget of 0\.5 times the network leaves no room"):
        small(at, 0.5)
    with pytest.raises(UsageError, match="unknown option 'max_sample'; did you mean 'max_samples'"):
        small(at, max_sample=3)

    class Silent(Net):
        def forward(self, tokens: torch.Tensor, mask: torch.Tensor, labels: Any = None) -> Any:
            return {"logits": super().forward(tokens, mask)["logits"]}

    refused("the model gives no loss for a batch with the keys", small(at), Silent())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world_size": 2}, "cannot grow in several processes or on several devices"),
        ({"n_gpu": 2}, "cannot grow in several processes or on several devices"),
        ({"fsdp": ["full_shard"]}, "cannot grow under fsdp"),
        ({"torch_compile": True}, "cannot grow under torch_compile"),
    ],
)
def test_wrappers_that_hold_on_to_parameters_are_refused(settings: dict[str, Any], message: str) -> None:
    from growpipe.callbacks.trainer import _refuse

    plain = {"world_size": 1, "n_gpu": 0, "deepspeed": None, "fsdp": [], "torch_compile": False}
    with pytest.raises(UsageError, match=message):
        _refuse(SimpleNamespace(**{**plain, **settings}), When(steps=(1,)))
