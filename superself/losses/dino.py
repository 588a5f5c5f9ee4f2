"""DINO: cross-entropy between a centred, sharpened teacher and a student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from superself.basics.distributed import total
from superself.basics.validate import require_count, require_fraction, require_positive
from superself.losses.swav import cross_view_entropy, require_views


class DINOLoss(nn.Module):
    """Cross-entropy between the teacher's distribution for some views and the student's for other views of the same images.

    L = mean over views i of the teacher, and over all views v of the student other than i, of
    -sum_k softmax((g_i - c) / t')_k log softmax(f_v / t)_k, averaged over the batch, in float32. No gradient flows into the
    teacher. The chance level is ln K. The centre c is a moving average of the teacher's outputs, of all processes; it moves
    in ``commit``, after the optimizer step, so that a batch is not centred by itself:

        loss = criterion(student_outputs, teacher_outputs)  # of views in the same order, the teacher's being the first
        ...  # backward pass and optimizer step
        criterion.commit()

    Source: Caron et al., DINO, arXiv:2104.14294, and the authors' code.
    Deviations: none.
    Args:
        count: K, width of the outputs.
        student_temperature: t.
        teacher_temperature: t', if none is passed with a batch; smaller is sharper.
        center_momentum: fraction of the old centre that is kept.
    Shape:
        student: V views, each (B, K); teacher: (B, K) for each of the first views -> scalar ().
    Raises:
        ValueError: if an argument is out of range, there are fewer than two views, or shapes differ.
    """

    center: Tensor  # (K,)

    def __init__(
        self,
        count: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        require_count("count", count, "is the width of the outputs")
        require_positive("student_temperature", student_temperature, "divides the outputs of the student")
        require_positive("teacher_temperature", teacher_temperature, "divides the outputs of the teacher")
        require_fraction("center_momentum", center_momentum, "is the fraction of the centre that is kept")
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(count))
        self._pending: tuple[Tensor, int] | None = None  # sum of the teacher's outputs (K,), and their number

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], teacher_temperature: float | None = None
    ) -> Tensor:
        """The loss of a batch; remembers the teacher's outputs for ``commit``."""
        return self.with_entropy(student, teacher, teacher_temperature)[0]

    def with_entropy(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], teacher_temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the mean entropy () of the teacher's distributions; see ``forward``."""
        require_views(student, teacher, "student", "teacher")
        if student[0].shape[1] != len(self.center):
            raise ValueError(
                f"the outputs have width {student[0].shape[1]} and the centre {len(self.center)}; pass the width of the "
                "outputs to DINOLoss."
            )
        with torch.autocast(student[0].device.type, enabled=False):
            predicted = [log_softmax(view.float() / self.student_temperature, dim=1) for view in student]
            targets = self.targets(teacher, teacher_temperature)
            outputs = torch.cat([view.detach().float() for view in teacher])
            self._pending = outputs.sum(0), len(outputs)
            entropy = torch.special.entr(torch.cat(targets)).sum(1).mean()
            return cross_view_entropy(predicted, targets), entropy

    @torch.no_grad()
    def targets(self, teacher: Sequence[Tensor], teacher_temperature: float | None = None) -> list[Tensor]:
        """The distributions (B, K) that the student is to predict, one for each view of the teacher."""
        temperature = self.teacher_temperature if teacher_temperature is None else teacher_temperature
        with torch.autocast(self.center.device.type, enabled=False):
            return [softmax((view.float() - self.center) / temperature, dim=1) for view in teacher]

    @property
    def pending(self) -> tuple[Tensor, int] | None:
        """What the next ``commit`` moves the centre by."""
        return self._pending

    def remember_parts(self, parts: Sequence[tuple[Tensor, int] | None]) -> None:
        """Keeps what was ``pending`` after each part of a batch, for the next ``commit``."""
        kept = [part for part in parts if part is not None]
        if kept:
            self._pending = sum(outputs for outputs, _ in kept), sum(count for _, count in kept)

    @torch.no_grad()
    def commit(self) -> None:
        """Moves the centre towards the mean of the outputs of the last batch, if there was one. All processes call it."""
        if self._pending is not None:
            outputs, count = self._pending
            self._pending = None
            summed = total(torch.cat([outputs, torch.full_like(outputs[:1], count)]))
            self.center.lerp_(summed[:-1] / summed[-1], 1 - self.center_momentum)
