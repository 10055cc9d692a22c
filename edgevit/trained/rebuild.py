"""Schedules of architectures that reduce on their own: VitModel and settings → ReducedModel, with the same weights.

Nothing stands between the blocks here. A schedule says how the architecture is put together from the checkpoint's
modules, which the new module shares; without a schedule it runs as it was loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from edgevit.errors import ScheduleError
from edgevit.stages import ReducedModel, VitModel
from edgevit.tokens import method
from edgevit.tokens.base import Reduction
from edgevit.tokens.schedule import TokenSchedule

if TYPE_CHECKING:
    from edgevit.tokens.lowering import Lowering
    from edgevit.trained.base import Trained


class Architecture(Reduction):
    """Base of a method whose reduction is part of a trained architecture. `weights` is the architecture's name."""

    architecture: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    no_search: ClassVar[str | None] = "reduces as its checkpoint was trained to, so there is nothing to search"

    @classmethod
    def check_model(cls, vit: VitModel, restoring: bool) -> str | None:
        """The weights; `rebuild` refuses what else a schedule may say."""
        return super().check_model(vit, False)

    @classmethod
    def wants(cls) -> tuple[str, ...]:
        """The checkpoint."""
        return (f"its trained checkpoint (--arch {cls.weights}:NAME)",)

    @classmethod
    def build(cls, module: Any, schedule: TokenSchedule, lowering: Lowering) -> Trained:
        """The architecture with a schedule's settings, from the modules of another. Raises ScheduleError."""
        raise NotImplementedError


def one_amount(key: str, amounts: Sequence[float]) -> str | None:
    """Why several amounts do not do, or None."""
    return f"{key}= takes one number" if len(amounts) > 1 else None


def rebuild(vit: VitModel, schedule: TokenSchedule, lowering: Lowering) -> ReducedModel:
    """Apply a schedule of the architecture's own, or none. Raises ScheduleError.

    tokens: what each block works on. dense_macs: of the model as it was loaded.
    """
    from edgevit.reduce import dense_macs

    shape = (1, 3, *vit.image_size)
    dense = dense_macs(vit.module, shape)
    module = cast("Trained", vit.module)
    if not schedule.is_none:
        cls = cast("type[Architecture]", method(schedule.method))
        if schedule.blocks or schedule.until:
            raise ScheduleError(f"{schedule}: {cls.name} reduces where it was trained to; drop @ and until=")
        if schedule.key not in cls.keys:
            keys = " or ".join(f"{key}=" for key in cls.keys)
            raise ScheduleError(f"{schedule}: {cls.name} is built from its settings, not for a budget; give {keys}")
        module = cls.build(module, schedule, lowering).eval()
    return ReducedModel(
        module=module,
        original=vit.module,
        schedule=schedule,
        tokens=module.tokens,
        dense_macs=dense,
        reduced_macs=dense if module is vit.module else dense_macs(module, shape),
    )
