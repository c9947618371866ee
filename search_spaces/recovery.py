"""How a changed network is trained back: the settings of recovery, as a job file may write them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from search_spaces.schemes import Frozen

LABELS, LOGITS = "labels", "logits"
"""The losses that need no tensor inside the network."""

Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
LossName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


class RecoverySpec(Frozen):
    """Training after a change of structure. The original network is the teacher; labels are needed only where `losses` names them."""

    losses: dict[LossName, Weight] = Field(default={LOGITS: 1.0}, min_length=1, max_length=16)
    """Weight of each loss in the sum: `logits` (the original's outputs), `labels`, and, on tensors inside the network, `features`,
    `cosine`, `attention`. A weight of 0 leaves a loss out."""
    tensors: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Tensors inside the network for `features`, `cosine` and `attention`, by their names in the ONNX graph; left out: some are chosen,
    spread over the depth of the network."""
    outputs: Literal["auto", "classes", "values"] = "auto"
    """What the outputs are: scores of classes, or values. auto: scores where labels are whole numbers, and without labels where an output
    has the shape [rows, 2 or more]."""
    temperature: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)] = 4.0
    """Temperature of the softmax that softens class scores in `logits`."""

    rows: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Training rows seen in all, each pass over the data counted; left out: whoever starts the training decides."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Rows per step. A model whose batch dimension is fixed is trained with that."""
    seconds: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
    """Wall-clock limit in seconds, after which the best state so far is taken; left out: none."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` is with Nesterov's momentum."""
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    """Highest learning rate; left out: chosen for the kind of network, smaller for transformers than for convolutions."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of `sgd`, and the first moment's decay of `adamw`."""
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1e-4
    """Not applied to biases and normalizations. `adamw` multiplies it by the learning rate, `sgd` adds it to the gradient."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises; it falls along a cosine to 0 after that."""
    clip: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = 1.0
    """Longest gradient (2-norm over all parameters); a longer one is shortened to it. null: never."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16`: mixed precision where the processor has bfloat16 arithmetic, float32 elsewhere."""

    hold_back: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the training rows that is not trained on but watched, to stop early and to keep the best state; 0: nothing is watched
    and the last state is kept."""
    evaluations: Annotated[int, Field(ge=1, le=10_000)] = 10
    """How often the rows held back are scored during the training, at equal intervals."""
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = 4
    """Training stops after so many evaluations in a row without a new best. null: never."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> RecoverySpec:
        if not any(self.losses.values()):
            raise ValueError(f"at least one loss needs a weight above 0, got {self.losses}; leave `losses` out to learn from the original")
        return self

    @property
    def active(self) -> dict[str, float]:
        """The losses with a weight above 0, by name in alphabetical order."""
        return {name: weight for name, weight in sorted(self.losses.items()) if weight > 0}
