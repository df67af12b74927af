"""The stages of a round: train, export, analyse, rewrite, check; and the control that never grows.

Each stage reads published stages and publishes its own (see `growpipe.run.store`). Data flows one way; a
stage that is called before its inputs are there says which one to run first.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from growpipe import analyser
from growpipe.checks.measure.accuracy import accuracy
from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed, NothingToSplit, UsageError
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.recipe_limits import alignment, budget_for, check_limits, width_limits
from growpipe.run.store import METRICS, Run, StageRecord
from growpipe.run.task import Task, as_feed, input_names
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow, load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.torch_module.outputs import output_tensors, to_numpy
from growpipe.torch_module.widen import reinitialise
from growpipe.training.train import TrainingStage, make_optimizer, train

__all__ = [
    "CONTROL",
    "analyse_round",
    "export_round",
    "previous_stage",
    "rewrite_round",
    "round_stage",
    "test_accuracy",
    "train_control",
    "train_round",
]

CONTROL = "control/train"
GROWTH_FORM = "growth.onnx"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
CHILD = "child.onnx"
PLAN = "plan"
_JOURNAL_PREFIX = "growpipe."
_EXPORT_TOLERANCE = 1e-4  # relative to the output's scale, float32 through two runtimes


def round_stage(number: int, stage: str) -> str:
    """The name of a stage, e.g. ``round-00/train``."""
    return f"round-{number:02d}/{stage}"


def previous_stage(run: Run, number: int, stage: str) -> StageRecord:
    """A published stage that another one reads.

    Raises:
        UsageError: it is not there.
    """
    record = run.published(round_stage(number, stage))
    if record is None:
        command = {"check": "check-round"}.get(stage, stage)
        raise UsageError(f"round {number} has no {stage} stage yet; run first: growpipe {command} {run.path}")
    return record


def train_round(task: Task, number: int) -> StageRecord:
    """Train the seed network (round 0) or what the last rewrite made, as long as the recipe says.

    Publishes ``weights.safetensors``, ``optimizer.safetensors`` and ``metrics.jsonl``.
    """
    run = task.run
    settings = run.recipe.train
    inputs: dict[str, str] = {}
    parent: StageRecord | None = None
    last = number >= run.recipe.growth.rounds
    if number > 0:
        found = previous_stage(run, number - 1, "analyse").facts
        # Where nothing was left to split, the same network gets the last stage of training.
        parent = previous_stage(run, number - 1, "train" if found["stopped"] else "rewrite")
        inputs = parent.inputs(WEIGHTS, OPTIMIZER)
        last = last or bool(found["stopped"] or found["budget_spent"])
    epochs = settings.final_epochs if last else settings.epochs
    name = round_stage(number, "train")
    retrain = last and number > 0 and run.recipe.growth.finish == "retrain"
    config = {**_training_config(task, epochs), "last": last, "retrain": retrain}

    def produce(folder: Path) -> dict[str, Any]:
        model = task.build_seed()
        if parent is None:
            # A network that cannot be exported or grown should say so before it is trained, not after.
            if run.peers.rank == 0:
                _require_growth(task, find_channel_groups(_export(task, model), run.recipe.growth.freeze))
        else:
            load_grown(model, parent.folder / WEIGHTS)
        if retrain:
            seed_everything(run.seed, "retrain")
            reinitialise(model)
        model.to(run.device)
        optimizer = make_optimizer(model, settings)
        if parent is not None and not retrain:
            load_optimizer(optimizer, model, parent.folder / OPTIMIZER)
        return _train_into(folder, task, model, optimizer, name, epochs, last, config, inputs)

    record = run.stage(name, produce, config=config, inputs=inputs, everywhere=True)
    _discard_progress(run, name)
    return record


def _training_config(task: Task, epochs: int) -> dict[str, Any]:
    """What a stage of so many epochs depends on: not on how long the others are."""
    settings = task.run.recipe.train.model_dump(mode="json", exclude={"epochs", "final_epochs"})
    return {**task.config, "train": settings, "epochs": epochs}


def _progress_folder(run: Run, name: str) -> Path:
    """Where a stage that trains keeps its checkpoint until it is published."""
    return run.path / Path(name).parent / f".progress-{Path(name).name}"


def _discard_progress(run: Run, name: str) -> None:
    if run.peers.rank == 0:
        shutil.rmtree(_progress_folder(run, name), ignore_errors=True)


def _require_growth(task: Task, groups: ChannelGroups) -> None:
    if not any(group.splittable for group in groups.groups):
        barrier = next((str(group.barrier) for group in groups.groups if group.barrier), "it has no channels")
        raise UsageError(
            f"the seed network has no channel group that can split: {barrier}; see growpipe inspect"
        )
    check_limits(task.run.recipe, groups)


def train_control(task: Task, epochs: int) -> StageRecord:
    """The honest control: the seed network, never grown, for as many epochs as the grown one had in all."""
    settings = task.run.recipe.train
    config = _training_config(task, epochs)

    def produce(folder: Path) -> dict[str, Any]:
        model = task.build_seed().to(task.run.device)
        optimizer = make_optimizer(model, settings)
        facts = _train_into(folder, task, model, optimizer, CONTROL, epochs, True, config, {})
        if task.run.peers.rank:
            return facts
        export = _export(task, model)
        save_model(export, folder / GROWTH_FORM)
        return {
            **facts,
            **_costs(find_channel_groups(export)),
            "test_accuracy": test_accuracy(task, folder / GROWTH_FORM),
        }

    record = task.run.stage(CONTROL, produce, config=config, inputs={}, everywhere=True)
    _discard_progress(task.run, CONTROL)
    return record


def test_accuracy(task: Task, path: Path) -> dict[str, Any] | None:
    """Accuracy of an ONNX file on the test set in onnxruntime, with its interval; None for a regression."""
    if not task.objective.classify:
        return None
    feed, targets = task.gathered(task.objective.loaders.test, input_names(load_model(path)))
    return dataclasses.asdict(accuracy(path, feed, targets))


def _train_into(
    folder: Path,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    epochs: int,
    last: bool,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    run = task.run
    stage = TrainingStage(
        name,
        epochs,
        until="end" if last else run.recipe.train.trigger,
        seed=run.seed,
        checkpoint=_progress_folder(run, name),
        key=json.dumps([config, inputs], sort_keys=True),
    )
    history = train(
        model, optimizer, task.objective, run.recipe.train, stage, device=run.device, peers=run.peers
    )
    save_grown(model, folder / WEIGHTS)
    save_optimizer(optimizer, model, folder / OPTIMIZER)
    (folder / METRICS).write_text("".join(json.dumps(dataclasses.asdict(epoch)) + "\n" for epoch in history))
    done = history[-1]
    return {
        "epochs": len(history),
        "train_loss": done.train_loss,
        "validation_loss": done.validation_loss,
        "validation_accuracy": done.validation_accuracy,
        **({"processes": run.peers.world} if run.peers.world > 1 else {}),
    }


def export_round(task: Task, number: int) -> StageRecord:
    """Export the trained network to growth form; torch and onnxruntime must agree.

    Publishes ``growth.onnx``.

    Raises:
        CheckFailed: a parameter or an output differs.
    """
    run = task.run
    trained = previous_stage(run, number, "train")
    inputs = trained.inputs(WEIGHTS)
    before: Path | None = None
    if number > 0:
        grew = not previous_stage(run, number - 1, "analyse").facts["stopped"]
        stage, file = ("rewrite", CHILD) if grew else ("export", GROWTH_FORM)
        parent = previous_stage(run, number - 1, stage)
        inputs |= parent.inputs(file)
        before = parent.folder / file

    def produce(folder: Path) -> dict[str, Any]:
        model = load_grown(task.build_seed(), trained.folder / WEIGHTS).eval()
        graph = _export(task, model)
        if before is not None:
            # The exporter knows nothing of the growth history; the graph before has it.
            history = load_model(before).metadata_props
            graph.metadata_props.update(
                {key: value for key, value in history.items() if key.startswith(_JOURNAL_PREFIX)}
            )
        save_model(graph, folder / GROWTH_FORM)
        examples = task.example_inputs()
        feed = as_feed(input_names(graph), examples)
        outputs = run_model(folder / GROWTH_FORM, feed)
        expected = dict(zip(outputs, _outputs(model, examples), strict=True))
        divergence = compare(expected, outputs)
        if not divergence.relative <= _EXPORT_TOLERANCE:
            raise CheckFailed(
                f"the graph of round {number} differs from torch by {divergence.relative:.1e} of the "
                f"output's scale, more than {_EXPORT_TOLERANCE:.0e}; compare them operator by operator"
            )
        return {**_costs(find_channel_groups(graph)), "torch_divergence": divergence.relative}

    config = {**task.config, "inputs": run.recipe.inputs, "outputs": run.recipe.outputs}
    return run.stage(round_stage(number, "export"), produce, config=config, inputs=inputs)


def _export(task: Task, model: nn.Module) -> ir.Model:
    recipe = task.run.recipe
    model.to("cpu").eval()
    return export_growth_form(
        model, task.example_inputs(), input_names=recipe.inputs, output_names=recipe.outputs
    ).graph


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[npt.NDArray]:
    with torch.no_grad():
        output = model(*inputs)
    return [to_numpy(value) for value in output_tensors(output)]


def _costs(groups: ChannelGroups) -> dict[str, Any]:
    cost: CostModel = groups.cost
    return {
        "widths": {group.name: group.width for group in groups.groups if group.splittable},
        "parameters": cost.parameters(),
        "macs": cost.macs(),
    }


def analyse_round(task: Task, number: int) -> StageRecord:
    """Find the split plan of the trained network.

    Publishes the folder ``plan`` (see `SplitPlan.save`), unless nothing is left to split; then the fact
    ``stopped`` says why.
    """
    run = task.run
    trained, exported = previous_stage(run, number, "train"), previous_stage(run, number, "export")
    growth = run.recipe.growth

    def produce(folder: Path) -> dict[str, Any]:
        model = load_grown(task.build_seed(), trained.folder / WEIGHTS).eval()
        budget = budget_for(task, load_model(exported.folder / GROWTH_FORM))
        try:
            plan = analyser.analyse(
                model,
                task.objective.loss_fn,
                # The spectra's samples, and as many that they do not see as a trial wants.
                task.analysis_batches(growth.samples + analyser.RANKING_SAMPLES // 2),
                task.example_inputs(),
                scheme=growth.scheme,
                c=growth.c,
                growth=growth.share,
                epsilon=growth.epsilon,
                budget=budget,
                metric=growth.metric,
                ranking=growth.ranking,
                max_factor=growth.max_factor,
                balance=growth.balance,
                align=alignment(run.recipe),
                widths=width_limits(growth),
                freeze=growth.freeze,
                max_samples=growth.samples,
                seed=run.seed,
                device=run.device,
            )
        except NothingToSplit as nothing:
            return {"stopped": str(nothing), "budget_spent": False}
        plan.save(folder / PLAN)
        return {
            "stopped": None,
            "epsilon": plan.epsilon,
            "predicted_change": plan.predicted_change,
            "realised_change": plan.realised_change,
            "added_channels": plan.added_channels,
            "budget_spent": plan.notes["analysis"]["budget_spent"],
            **_own_cost(plan, budget),
        }

    config = {
        **task.config,
        "growth": growth.model_dump(mode="json", exclude={"rounds"}),
        "budget": run.recipe.budget.model_dump(mode="json"),
        "batch_size": run.recipe.train.batch_size,
    }
    inputs = trained.inputs(WEIGHTS) | exported.inputs(GROWTH_FORM)
    return run.stage(round_stage(number, "analyse"), produce, config=config, inputs=inputs, everywhere=True)


def _own_cost(plan: SplitPlan, budget: analyser.Budget) -> dict[str, Any]:
    """What the grown network costs, where the budget is of something else than parameters and MACs."""
    if budget.cost is None:
        return {}
    return {"cost": plan.notes["analysis"]["cost"], "unit": budget.cost.unit}


def rewrite_round(task: Task, number: int) -> StageRecord:
    """Apply the plan to the ONNX graph and to the torch module, optimizer included; the two must agree.

    Publishes ``child.onnx``, ``weights.safetensors`` and ``optimizer.safetensors``.

    Raises:
        CheckFailed: a grown parameter differs between the two.
        UsageError: the analysis found nothing to split.
    """
    run = task.run
    trained, exported = previous_stage(run, number, "train"), previous_stage(run, number, "export")
    analysed = previous_stage(run, number, "analyse")
    if analysed.facts["stopped"]:
        raise UsageError(f"round {number} has nothing to rewrite: {analysed.facts['stopped']}")

    def produce(folder: Path) -> dict[str, Any]:
        plan = SplitPlan.load(analysed.folder / PLAN)
        child = grow_graph(load_model(exported.folder / GROWTH_FORM), plan)
        save_model(child, folder / CHILD)

        model = load_grown(task.build_seed(), trained.folder / WEIGHTS).eval()
        optimizer = make_optimizer(model, run.recipe.train)
        load_optimizer(optimizer, model, trained.folder / OPTIMIZER)
        grown = grow(model, plan, optimizer=optimizer)
        _assert_lockstep(grown, child)
        save_grown(grown, folder / WEIGHTS)
        save_optimizer(optimizer, grown, folder / OPTIMIZER)
        return _costs(find_channel_groups(child))

    config = {**task.config, "train": run.recipe.train.optimizer}
    inputs = trained.inputs(WEIGHTS, OPTIMIZER) | exported.inputs(GROWTH_FORM)
    inputs |= analysed.inputs(*(f"{PLAN}/{file}" for file in ("plan.json", "plan.safetensors")))
    return run.stage(round_stage(number, "rewrite"), produce, config=config, inputs=inputs)


def _assert_lockstep(grown: nn.Module, child: ir.Model) -> None:
    tensors = named_tensors(grown)
    for name, value in child.graph.initializers.items():
        if name not in tensors or value.const_value is None:
            continue  # a constant of the graph, none of the module's
        if not np.array_equal(value.const_value.numpy(), to_numpy(tensors[name]), equal_nan=True):
            raise CheckFailed(f"after the split {name!r} differs between the torch module and the ONNX graph")
