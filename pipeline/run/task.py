"""What a recipe's references stand for: the seed network, the data, the loss and the metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from growpipe.data import Loaders
from growpipe.data.loader_items import ByPosition, as_tuple, length_of, named_pairs, pairs
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError
from growpipe.quality import DEFAULT_METRICS
from growpipe.run.store import Run
from growpipe.seeding import seed_everything
from growpipe.torch_module.called import take_positions
from growpipe.torch_module.export import GrowthExport, export_growth_form
from growpipe.torch_module.outputs import LossFunction, to_numpy
from growpipe.training.evaluation import Objective
from growpipe.training.losses import loss_of
from growpipe.training.metrics import Metric, metric_of, own_metric
from growpipe.user_code import call_user_code, hash_user_files, load_reference

__all__ = ["Task", "TrainedNetwork", "as_feed", "input_names", "load_task"]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network and its two views.

    Attributes:
        key: hashes of the files that it was made from.
        module: on the CPU, in evaluation mode.
        export: of ``module``; the growth history is in the metadata of the graph.
    """

    key: tuple[str, str]
    module: nn.Module
    export: GrowthExport


@dataclass(eq=False)
class Task:
    """A recipe's model, data, loss and metric, imported.

    Attributes:
        run: whose recipe it is.
        objective: data, loss and metric.
        config: the recipe values that enter the key of every stage that uses the model or the data, plus
            hashes of the user's own files.
        names: the arguments of ``forward`` that inputs are for; None if inputs come by position.
        network: the trained network that was used last; see `growpipe.run.stages.network`.
    """

    run: Run
    objective: Objective
    config: Mapping[str, Any]
    names: tuple[str, ...] | None = None
    network: TrainedNetwork | None = None
    _template: Any = None

    def build_seed(self) -> nn.Module:
        """The seed network as the recipe's ``model`` builds it, initialised from the run's seed.

        Raises:
            UsageError: it is not an ``nn.Module``.
        """
        recipe = self.run.recipe
        seed_everything(self.run.seed, "seed network")
        builder = load_reference(recipe.model, self.run.folder)
        model = call_user_code(recipe.model, builder, **recipe.model_options)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{recipe.model} returned {type(model).__name__}, not an nn.Module")
        if self.names is not None:
            take_positions(model, self.names)
        return model

    def export(self, model: nn.Module) -> GrowthExport:
        """Export ``model``, which is left on the CPU in evaluation mode, under the recipe's names.

        Raises:
            UsageError: the model cannot be exported.
        """
        recipe = self.run.recipe
        model.to("cpu").eval()
        return export_growth_form(
            model,
            self.example_inputs(),
            input_names=recipe.inputs or self.names,
            output_names=recipe.outputs,
        )

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """The inputs of the first validation batch, at most 8 samples.

        Raises:
            UsageError: there is none.
        """
        inputs, _ = next(pairs(self.objective.loaders.validation), (None, None))
        if inputs is None:
            raise UsageError("the validation loader gave no batches; look at the recipe's data")
        return tuple(tensor[:8] for tensor in as_tuple(inputs))

    def output_template(self) -> Any:
        """What the network gives for `example_inputs`: the form in which losses and metrics take outputs."""
        if self._template is None:
            with torch.no_grad():
                model = self.build_seed().eval()
                self._template = call_user_code("the network", model, *self.example_inputs())
        return self._template

    def analysis_batches(self, samples: int) -> list[tuple[Any, Any]]:
        """Training batches of about ``samples`` samples, the same at every call."""
        seed_everything(self.run.seed, "analysis set")
        batches, count = [], 0
        for batch in pairs(self.objective.loaders.train):
            batches.append(batch)
            count += length_of(batch[0])
            if count >= samples:
                break
        return batches

    def loss_on_a_batch(self, model: nn.Module) -> torch.Tensor:
        """The loss of ``model``, on the CPU, on the first of `analysis_batches`."""
        inputs, target = self.analysis_batches(1)[0]
        return self.objective.loss_fn(call_user_code("the network", model, *as_tuple(inputs)), target)

    def validation_feed(self, graph: ir.Model) -> dict[str, AnyArray]:
        """The first validation batch by the names of the graph's inputs."""
        inputs, _ = next(pairs(self.objective.loaders.validation), (None, None))
        if inputs is None:
            raise UsageError("the validation loader gave no batches; look at the recipe's data")
        return as_feed(input_names(graph), as_tuple(inputs))

    def one_sample(self, graph: ir.Model) -> dict[str, AnyArray]:
        """The first validation sample, a batch of one, by input name: what latency is measured on."""
        feed = self.validation_feed(graph)
        return {name: np.ascontiguousarray(array[:1]) for name, array in feed.items()}


def input_names(graph: ir.Model) -> list[str]:
    """The graph's inputs, in order."""
    return [str(value.name) for value in graph.graph.inputs]


def as_feed(names: list[str], tensors: Iterable[torch.Tensor]) -> dict[str, AnyArray]:
    """Positional tensors as what onnxruntime is fed."""
    return {name: np.ascontiguousarray(to_numpy(t)) for name, t in zip(names, tensors, strict=True)}


def load_task(run: Run) -> Task:
    """Import what the run's recipe names, and set torch's threads to the recipe's.

    Raises:
        UsageError: a reference cannot be imported, or does not give what it should.
    """
    recipe = run.recipe
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    make_loaders = load_reference(recipe.data, run.folder)
    load_reference(recipe.model, run.folder)
    loaders = call_user_code(
        recipe.data, make_loaders, batch_size=recipe.train.batch_size, seed=run.seed, **recipe.data_options
    )
    if not isinstance(loaders, Loaders):
        raise UsageError(
            f"{recipe.data} returned {type(loaders).__name__}; "
            "it should return growpipe.data.Loaders(train, validation, test)"
        )
    for part in ("train", "validation", "test"):
        loader = getattr(loaders, part)
        if isinstance(loader, Iterator):
            raise UsageError(
                f"the {part} loader of {recipe.data} can be read only once ({type(loader).__name__}); give a "
                "list of batches, a DataLoader, or an object whose __iter__ starts from the beginning"
            )
    names = _names_of(loaders, recipe.target)
    if names is not None:
        by_position = (
            ByPosition(part, names, recipe.target)
            for part in (loaders.train, loaders.validation, loaders.test)
        )
        loaders = Loaders(*by_position)
    loss_fn = loss_of(recipe.task, recipe.loss, recipe.loss_options, run.folder, run.device)
    metric = _metric(run, loss_fn)
    named = (recipe.model, recipe.data, recipe.loss, recipe.metric, recipe.train.optimizer)
    references = [reference for reference in named if reference and ":" in reference]
    for reference in references:
        load_reference(reference, run.folder)  # before what they import is looked at
    config = {
        "model": recipe.model,
        "model_options": recipe.model_options,
        "data": recipe.data,
        "data_options": recipe.data_options,
        "task": recipe.task,
        "target": recipe.target,
        "loss": recipe.loss,
        "loss_options": recipe.loss_options,
        "metric": recipe.metric,
        "metric_options": recipe.metric_options,
        "lower_is_better": recipe.lower_is_better,
        "user_files": hash_user_files(references, recipe.depends, run.folder),
        "seed": run.seed,
        "device": run.device,
    }
    return Task(run, Objective(loaders, loss_fn, metric), config, names)


def _names_of(loaders: Loaders, target: str | None) -> tuple[str, ...] | None:
    """The arguments of ``forward`` that the inputs of the first batch are for; None if they have no names."""
    first = next(named_pairs(loaders.validation, target), None)
    if isinstance(first, Mapping):
        raise UsageError(
            f"a batch is a dict with the keys {sorted(map(str, first))}; set target in the recipe to the key "
            "of the target"
        )
    if not isinstance(first, (tuple, list)) or len(first) != 2 or not isinstance(first[0], Mapping):
        return None
    # What is no tensor, such as the name of a file, is not an input.
    return tuple(str(key) for key, value in first[0].items() if isinstance(value, torch.Tensor))


def _metric(run: Run, loss_fn: LossFunction) -> Metric:
    """What the recipe asks networks to be judged by."""
    recipe = run.recipe
    name = recipe.metric or DEFAULT_METRICS[recipe.task]
    if name == "loss":
        return own_metric("the loss", loss_fn, {}, recipe.quality)
    if ":" not in name:
        return metric_of(name, recipe.task)
    return own_metric(name, load_reference(name, run.folder), recipe.metric_options, recipe.quality)
