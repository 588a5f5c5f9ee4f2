"""compare: did training help, and which of several backbones is best?"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superself.basics.random import preserve_random_state
from superself.basics.validate import require_count
from superself.comparison.budget import parse_budget
from superself.comparison.contestants import Contestant, read_entries
from superself.comparison.measuring import Protocol, Splits, measure, random_network
from superself.comparison.result import Comparison, Row, summarise
from superself.comparison.training import Trainer
from superself.data import Preprocessing
from superself.evaluation.leakage import duplicates_warning, near_duplicates
from superself.networks import describe, fresh_copy, load_weights
from superself.training.hyper_parameters import OF_THE_DATA

RANDOM, SUPERVISED, IMAGENET = "random initialised", "supervised", "ImageNet"
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision's and most of timm's weights


def compare(
    entries: Any,
    train: Any,
    test: Any,
    *,
    random: nn.Module | None = None,
    k: int = 20,
    temperature: float = 0.1,
    seed: int = 0,
    print: bool = True,
    seeds: Sequence[int] | None = None,
    fractions: Sequence[float] = (),
    budget: Any = None,
    backbone: str | nn.Module = "resnet18",
    settings: dict[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    supervised: bool = False,
    finetune: bool = False,
    imagenet: str | Path | nn.Module | None = None,
    how: Sequence[str] = ("knn", "linear"),
    evaluators: Sequence[Any] = (),
    store: str | Path | None = None,
    device: Any = None,
    progress: bool = True,
) -> Comparison:
    """Measures backbones on labelled images next to the same network with random weights, and prints one table.

    All get the same images with the preprocessing that each was trained with, in evaluation mode; the same call gives the same
    numbers, unless a ``budget`` in minutes trains more on a faster machine. The batch norms of the random network get the
    statistics of training images (see ``random_twin``). Unreadable images are left out. Methods that are named are trained
    on ``train`` without its labels. A difference counts if its 95 % confidence interval does not contain 0 (see
    ``paired_difference``). Ctrl-C ends the comparison with a table of what has been measured.

    Args:
        entries: a module, a supervisor, the name of a run ("store/base") or an exported file; the name of a method or preset
            ("simclr"), or ("simclr", arguments), which is trained here; a list of these; a dictionary that names them. A
            list within it holds several runs of one method.
        train: labelled images: the neighbours for kNN, and the training set of the linear probe.
        test: labelled images of the same classes, on which accuracy is measured.
        random: the backbone to compare with, used without changes; None: the same network with fresh random weights for each
            architecture and seed, also where training started from pretrained ones.
        k: number of neighbours that vote.
        temperature: of their votes; see ``knn_predict``.
        seed: used if ``seeds`` is None.
        print: print the table.
        seeds: of the random weights, of the runs that are trained here, and of the split that chooses the linear probe's
            regularisation; several give a mean and a deviation.
        fractions: of the labels: (0.01, 0.1) adds the accuracies of linear classifiers on 1 % and 10 % of each class.
        budget: of each run that is trained here: minutes, "90s", "2min", "1h", or "5 epochs".
        backbone: of methods that are trained here, unless their arguments name one.
        settings: of ``supervise``; None for batches of 64, lr=1e-3 and "warmup_cosine".
        image_size: of images of different sizes, for methods that are named and backbones that do not know their own.
        supervised: adds the network trained from random weights with the labels, for the same budget.
        finetune: adds each entry after training with the labels, the backbone at a tenth of the learning rate.
        imagenet: adds the network with weights of this file, normalised as on ImageNet, or this module.
        how: the classifiers.
        evaluators: their main values become further columns.
        store: a folder that keeps the runs that are trained here.
        device: where they are trained; None for the CPU.
        progress: print the progress of training; nothing is printed with ``print=False``.
    Raises:
        TypeError: if an entry is none of these.
        ValueError: if a data set has no labels, ``test`` has classes that ``train`` does not have, a backbone cannot be
            re-initialised, or something is to be trained without a budget.
    """
    protocol = Protocol(tuple(how), k, temperature, tuple(fractions), tuple(evaluators))
    seeds = (seed,) if seeds is None else tuple(seeds)
    for number in seeds:
        require_count("seeds", number, "makes a run repeatable", minimum=0)
    contestants = read_entries(entries)
    trained = [contestant.name for contestant in contestants if contestant.method is not None]
    if budget is None and (trained or supervised or finetune):
        what = f"{', '.join(trained)} would be trained" if trained else "supervised= and finetune= train networks"
        raise ValueError(f'{what}, and budget= is missing; pass for example budget="2min" or budget="5 epochs".')
    trainer = Trainer(
        None if budget is None else parse_budget(budget),
        dict(settings or {}),
        backbone,
        None if store is None else Path(store),
        device,
        progress and print,
    )
    table = _Table(Splits(train, test, image_size), protocol, trainer, seeds, random, supervised, finetune, imagenet)
    complete = True
    try:
        with trainer.folder(), preserve_random_state():
            table.fill(contestants)
    except KeyboardInterrupt:
        if not table.rows:
            raise
        complete = False
    except Exception:
        if print and table.rows:
            builtins.print(table.result(complete=False))
        raise
    comparison = table.result(complete)
    if print:
        builtins.print(comparison)
    return comparison


@dataclass(eq=False)
class _Table:
    """The rows that have been measured so far."""

    splits: Splits
    protocol: Protocol
    trainer: Trainer
    seeds: tuple[int, ...]
    random: nn.Module | None
    supervised: bool
    finetune: bool
    imagenet: str | Path | nn.Module | None
    rows: dict[str, Row] = field(default_factory=dict)
    references: dict[Any, str] = field(default_factory=dict)  # architecture -> name of its random row
    origin: str = ""
    warnings: list[str] = field(default_factory=list)

    def fill(self, contestants: list[Contestant]) -> None:
        """Measures all contestants, and the references of each architecture before its first contestant."""
        known = [backbone for contestant in contestants for backbone, _ in contestant.backbones]
        shared = next((p for b in known if (p := getattr(b, "preprocessing", None)) is not None), None)
        images = {}
        for contestant in contestants:  # what cannot be built is reported before anything is trained
            if contestant.method is not None:
                options = {name: value for name, value in contestant.arguments.items() if name in OF_THE_DATA}
                images[contestant.name] = self.splits.for_training(shared, options)
                self.trainer.make(contestant.method, images[contestant.name], self.seeds[0], contestant.arguments)
        for contestant in contestants:
            alone = len(contestant.backbones) == 1
            for backbone, facts in contestant.backbones:
                self._add_entry(
                    contestant.name, self.seeds[0], backbone, facts, self.seeds if alone else self.seeds[:1]
                )
            for seed in () if contestant.method is None else self.seeds:
                arguments = (contestant.name, contestant.method, images[contestant.name], seed, contestant.arguments)
                self._add_entry(contestant.name, seed, *self.trainer.pretrain(*arguments), (seed,))

    def result(self, complete: bool) -> Comparison:
        """The comparison of the rows so far."""
        warnings = list(self.warnings)
        if not complete:
            runs = sum(len(row.runs) for row in self.rows.values())
            warnings.append(f"Interrupted: this is what had been measured, {runs} networks.")
        return summarise(self.rows, self.protocol.k, self._protocol(), warnings, complete)

    def _add_entry(
        self, name: str, seed: int, backbone: nn.Module, facts: dict[str, float], tuning_seeds: tuple[int, ...]
    ) -> None:
        reference = self._reference_of(name, backbone)
        found = measure(backbone, self.splits, self.protocol, seed, facts)
        self.rows.setdefault(name, Row("entry", reference)).runs.append(found)
        for number in tuning_seeds if self.finetune else ():
            row = Row("fine-tuned", reference)
            self._add_with_labels(f"{name}, fine-tuned", row, backbone, number, from_scratch=False)

    def _reference_of(self, name: str, backbone: nn.Module) -> str:
        """The name of the random row of this architecture; measures it, and the other references, if it is new."""
        preprocessing = getattr(backbone, "preprocessing", None)
        reading = preprocessing and (preprocessing.shape, preprocessing.sobel, preprocessing.reading)
        shapes = tuple((key, tuple(value.shape)) for key, value in backbone.state_dict().items())
        key = None if self.random is not None else (type(backbone).__qualname__, describe(backbone), shapes, reading)
        if key in self.references:
            return self.references[key]
        of = f" (of {name})" if self.references else ""
        if not self.references:
            warning = duplicates_warning(*self._duplicates(preprocessing))
            self.warnings += [] if warning is None else [warning]
        reference = RANDOM + of
        runs = []
        for seed in self.seeds if self.random is None else self.seeds[:1]:
            network = self.random
            if network is None:
                network, origin = self._random_network(backbone, seed)
            else:
                origin = "passed as random="
            self.origin = self.origin or origin
            runs.append(measure(network, self.splits, self.protocol, seed))
        self.rows[reference] = Row("random", None, runs)
        self.references[key] = reference
        if self.imagenet is not None:
            pretrained = self._with_imagenet_weights(backbone)
            found = measure(pretrained, self.splits, self.protocol, self.seeds[0])
            self.rows[IMAGENET + of] = Row("imagenet", reference, [found])
        for seed in self.seeds if self.supervised else ():
            network, _ = self._random_network(backbone, seed)
            self._add_with_labels(SUPERVISED + of, Row("supervised", reference), network, seed, from_scratch=True)
        return reference

    def _random_network(self, backbone: nn.Module, seed: int) -> tuple[nn.Module, str]:
        try:
            return random_network(backbone, self.splits, seed)
        except ValueError as error:
            raise ValueError(f"{error} Or pass a randomly initialised backbone as random=.") from error

    def _add_with_labels(self, name: str, row: Row, backbone: nn.Module, seed: int, from_scratch: bool) -> None:
        """Trains a copy of the backbone with the labels, and measures its features and its head."""
        train, test = self.splits.at(getattr(backbone, "preprocessing", None))
        supervisor, facts = self.trainer.with_labels(name, backbone, train, seed, from_scratch)
        found = measure(supervisor.get_backbone(), self.splits, self.protocol, seed, facts)
        logits, labels, images, readable = supervisor.logits(test)
        right = (logits.argmax(1) == labels).double()
        right[~readable] = math.nan
        found.correct["head"] = right
        self.rows.setdefault(name, row).runs.append(found)

    def _with_imagenet_weights(self, backbone: nn.Module) -> nn.Module:
        if isinstance(self.imagenet, nn.Module):
            return self.imagenet
        network = fresh_copy(backbone)
        load_weights(network, self.imagenet)
        train, _ = self.splits.at(getattr(backbone, "preprocessing", None))
        known = getattr(backbone, "preprocessing", None) or Preprocessing.of(train)
        mean, std = IMAGENET_STATISTICS
        if known.shape[0] == len(mean) and all(0 <= value <= 1 for value in known.mean):
            known = replace(known, mean=mean, std=std)
        network.preprocessing = known
        return network

    def _duplicates(self, preprocessing: Preprocessing | None) -> tuple[list[tuple[int, int]], Any, Any]:
        train, test = self.splits.at(preprocessing)
        return near_duplicates(train, test), train, test

    def _protocol(self) -> list[str]:
        """How it was measured, in sentences."""
        runs = {name: row.runs for name, row in self.rows.items()}
        notes = next(iter(runs.values()))[0].notes
        known, asked = notes["known"], notes["asked"]
        guess = (asked == known.mode().values).float().mean()
        classes = len(torch.cat([known, asked]).unique())
        lines = [
            f"{len(known)} training and {len(asked)} test images of {classes} classes. Majority-class accuracy: {guess:.1%}. "
            f"Standard error of an accuracy: up to {0.5 / math.sqrt(len(asked)):.1%}."
        ]
        if "knn" in self.protocol.how:
            lines.append(
                f"kNN: vote of the {self.protocol.k} training images with the most similar features (cosine), "
                f"weighted exp(similarity / {self.protocol.temperature:g})."
            )
        if "linear" in self.protocol.how:
            chosen = sorted({run.notes["C"] for measured in runs.values() for run in measured})
            lines.append(
                "Linear: logistic regression on standardised features, with C chosen on a fifth of the training images "
                f"({' or '.join(f'{value:g}' for value in chosen)})."
            )
        origin = self.origin
        if len(self.seeds) > 1 and self.random is None:
            origin = origin.replace(f"seed {self.seeds[0]}", f"seeds {', '.join(map(str, self.seeds))}")
        lines.append(f"Random initialised: {origin}.")
        lines += self.trainer.describe()
        if any(len(measured) > 1 for measured in runs.values()):
            lines.append("In the table, ± is the standard deviation over runs.")
        return lines
