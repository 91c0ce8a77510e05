"""AdamW and SGD as papers on vision transformers use them: decay of matrices only, layer-wise
rates, warm-up and cosine decay, an average of the weights. All of it is kept in saved files."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vit.layers.base import register
from keras_vit.models.base import Backbone
from keras_vit.types import Tensor

Base: Any = object  # a Keras optimizer stands beside the mixin


class Rate(NamedTuple):
    """How a variable is trained."""

    path: str
    scale: float  # of the learning rate
    decays: bool


class Layerwise(Base):
    """Mixin for Keras' optimizers: a rate for each variable, stored in the config.

    It differs from Keras' own in four places. The variables that decay, and their scales, are in
    the config: Keras' `exclude_from_weight_decay` is lost in a saved file. The scale applies to the
    decay, too, as in PyTorch's parameter groups. Gradients are clipped after the sum over the
    replicas of a `tf.distribute` strategy, not before. The momentum of the average warms up, and
    `use_average` exchanges it with the weights.
    """

    def __init__(self, *args: Any, variable_rates: Any = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.variable_rates = [tuple(row) for row in variable_rates]
        self._of_index: list[tuple[float, bool]] = []

    def get_config(self) -> dict[str, Any]:
        rows = [list(row) for row in self.variable_rates]
        return {**super().get_config(), "variable_rates": rows}

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        known = {path: (scale, decays) for path, scale, decays in self.variable_rates}
        unknown = [v.path for v in variables if v.path not in known]
        if unknown and any(scale != 1 for scale, _ in known.values()):
            raise ValueError(
                "The optimizer has layer-wise rates of another model: it does not know "
                f"{', '.join(unknown[:3])}. Make one with train.optimizer(model, ...)."
            )
        self._of_index = [known.get(v.path, (1.0, is_matrix(v.path))) for v in variables]
        super().build(variables)
        if self.use_ema:
            self._averaged = self.add_variable(
                (), dtype="int32", initializer="zeros", name="average_in_model"
            )

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Not available: it would be lost in a saved file."""
        raise ValueError(
            "Which variables decay is decided by train.optimizer(): matrices do. Keras' "
            "exclude_from_weight_decay is lost when the optimizer is saved."
        )

    def _apply_weight_decay(self, variables):  # in update_step, with the variable's rate
        pass

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        scale, decays = self._of_index[self._get_variable_index(variable)]
        rate = learning_rate if scale == 1 else learning_rate * scale
        if self.weight_decay and decays:
            factor = ops.cast(rate * self.weight_decay, variable.dtype)
            self.assign_sub(variable, ops.multiply(variable, factor))
        super().update_step(gradient, variable, rate)

    # Keras clips and then, on TensorFlow, sums over the replicas.

    def _clip_gradients(self, grads):
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(super()._clip_gradients(list(grads)), variables, strict=True))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if keras.backend.backend() != "tensorflow":
            grads = super()._clip_gradients(grads)
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    # The average of the weights.

    def _update_model_variables_moving_average(self, trainable_variables):
        """As Keras', with a momentum of at most (1 + t) / (10 + t) after t updates, as in
        `tf.train.ExponentialMovingAverage`; batches that are only accumulated do not count."""
        t = ops.cast(self.iterations, "float32")
        momentum = ops.minimum(self.ema_momentum, (1 + t) / (10 + t))
        momentum = ops.where(t == 0, 0.0, momentum)  # the average begins as the weights
        if self.gradient_accumulation_steps:
            updates = (self._iterations + 1) % self.gradient_accumulation_steps == 0
            momentum = ops.where(ops.logical_or(updates, t == 0), momentum, 1.0)
        for variable, average in zip(
            trainable_variables, self._model_variables_moving_average, strict=True
        ):
            if average is not None:
                m = ops.cast(momentum, variable.dtype)
                average.assign(ops.add(ops.multiply(m, average), ops.multiply(1 - m, variable)))

    def use_average(self, use: bool) -> None:
        """Put the average into the model and the weights in its place, or the reverse.

        A variable of the optimizer says which it is, so files of either state can be continued.
        """
        if bool(ops.convert_to_numpy(self._averaged)) == use:
            return
        for variable, average in self._averages():
            value = ops.convert_to_numpy(variable) + 0
            variable.assign(ops.convert_to_numpy(average))
            average.assign(value)
        self._averaged.assign(int(use))

    def finalize_variable_values(self, var_list: Any) -> None:
        """At the end of `fit` the model has the average."""
        if not self.use_ema:
            return
        self.use_average(True)
        for variable, average in self._averages():  # a later `fit` begins with it
            average.assign(ops.convert_to_numpy(variable))
        self._averaged.assign(0)

    def _averages(self):
        pairs = zip(self._trainable_variables, self._model_variables_moving_average, strict=True)
        return [pair for pair in pairs if pair[1] is not None]

    def table(self) -> str:
        """The scales of the learning rate as text: one line for each scale, the highest first."""
        groups: dict[float, list[Any]] = {}
        for row in self.variable_rates:
            groups.setdefault(row[1], []).append(row)
        lines = [f"{'scale':>9}  {'decay':>5}  {'no decay':>8}  layers"]
        for scale in sorted(groups, reverse=True):
            rows = groups[scale]
            decay = sum(decays for *_, decays in rows)
            names = dict.fromkeys(path.split("/")[0] for path, *_ in rows)
            shown = ", ".join([*names][:4]) + (" ..." if len(names) > 4 else "")
            lines.append(f"{scale:9.3g}  {decay:5}  {len(rows) - decay:8}  {shown}")
        return "\n".join(lines)


@register
class LayerwiseAdamW(Layerwise, keras.optimizers.AdamW):
    """AdamW (https://arxiv.org/abs/1711.05101) with a rate for each variable; `optimizer` makes it.

    Args:
        variable_rates: rows (path of a variable, scale of its learning rate, whether it decays). A
            variable that is in none has scale 1, and decays if it is a matrix.
        learning_rate and the others: as in `keras.optimizers.AdamW`.
    """


@register
class LayerwiseSGD(Layerwise, keras.optimizers.SGD):
    """SGD with a rate for each variable; `optimizer(kind="sgd")` makes it.

    Args:
        variable_rates: as in `LayerwiseAdamW`.
        learning_rate and the others: as in `keras.optimizers.SGD`.
    """


def optimizer(
    model: keras.Model,
    learning_rate: float,
    *,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    start: float = 0.0,
    end: float = 0.0,
    clip_norm: float | None = 1.0,
    ema: float | None = None,
    accumulation: int | None = None,
    kind: str = "adamw",
    **options: Any,
) -> Layerwise:
    """An optimizer with linear warm-up and cosine decay, for a model of this package.

    Only matrices decay: kernels, not biases, norms, tokens and positions (as in timm). With
    `layer_decay` the scale of layer i of L + 2 is layer_decay^(L + 1 - i) (section 2.1 of
    https://arxiv.org/abs/2106.08254, and appendix A.2 of https://arxiv.org/abs/2111.06377), for
    both the learning rate and the decay. See `levels`.

    Args:
        model: a built model; its structure and names are read, and it is not changed.
        learning_rate: the peak.
        weight_decay: per step, multiplied by the learning rate.
        layer_decay: 1: the same rate everywhere; 0.65 to 0.75 is usual in fine-tuning.
        total_steps: the batches of the whole training, after which the rate is `end`; None: the
            rate stays constant. Batches count, not updates, with `accumulation`, too.
        warmup_steps: the batches in which the rate rises from `start`.
        start, end: the first and the last rate.
        clip_norm: the largest norm of all gradients together; None: no clipping.
        ema: momentum of an average of the weights, 0.999 for instance, which `fit` puts into the
            model at its end; None: no average. Its horizon of 1 / (1 - ema) updates should be
            much shorter than the training. `train.Average` evaluates and saves it before.
        accumulation: over how many batches gradients are averaged for one update.
        kind: `"adamw"` or `"sgd"` (momentum 0.9).
        options: arguments of the Keras optimizer: `beta_2`, `epsilon`, `momentum` ...

    Raises:
        ValueError: layer_decay for a model without blocks; an unknown kind; fewer steps in total
            than for warm-up.
    """
    classes = {"adamw": LayerwiseAdamW, "sgd": LayerwiseSGD}
    if kind not in classes:
        raise ValueError(f"kind must be one of {', '.join(classes)}. Received: {kind!r}")
    defaults = {"adamw": {"epsilon": 1e-8}, "sgd": {"momentum": 0.9}}[kind]
    return classes[kind](
        schedule(learning_rate, total_steps, warmup_steps, start, end),
        weight_decay=weight_decay,
        global_clipnorm=clip_norm,
        use_ema=ema is not None,
        ema_momentum=0.99 if ema is None else ema,
        gradient_accumulation_steps=accumulation if accumulation and accumulation > 1 else None,
        variable_rates=list(rates(model, layer_decay)),
        **{**defaults, **options},
    )


def schedule(
    peak: float,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    start: float = 0.0,
    end: float = 0.0,
) -> Any:
    """Linear warm-up from `start`, and cosine decay to `end`; a number if `total_steps` is None."""
    if total_steps is None and not warmup_steps:
        return peak
    if total_steps is None or total_steps < warmup_steps:
        raise ValueError(
            f"Warm-up is a part of the training: total_steps must be more than {warmup_steps}. "
            f"Received: {total_steps}"
        )
    rising = {"warmup_target": peak, "warmup_steps": warmup_steps} if warmup_steps else {}
    return keras.optimizers.schedules.CosineDecay(
        start if warmup_steps else peak,
        max(total_steps - warmup_steps, 1),
        alpha=end / peak if peak else 0.0,
        **rising,
    )


def is_matrix(path: str) -> bool:
    """Whether the variable of that path is a kernel, or a part of one's LoRA."""
    name = path.rpartition("/")[2]
    return name.endswith("kernel") or name.startswith("lora_kernel")


def rates(model: keras.Model, layer_decay: float = 1.0) -> Iterator[Rate]:
    """The rows of `variable_rates` for all weights of a model.

    Raises:
        ValueError: `layer_decay` is not 1, and the model has no blocks to count.
    """
    of, count = ({}, 0) if layer_decay == 1 else levels(model)
    for variable in model.weights:
        scale = layer_decay ** (count + 1 - of.get(id(variable), count + 1))
        yield Rate(variable.path, scale, is_matrix(variable.path))


def levels(model: keras.Model) -> tuple[dict[int, int], int]:
    """({id of a variable: its level}, the number L of blocks), by the rule of BEiT and MAE.

    Tokens, positions and patches have level 0, block k has k + 1, all that follows the blocks (the
    last norm, the head) has L + 1. A layer between two blocks has the level of the block before it,
    as SimMIM has it for Swin (https://arxiv.org/abs/2111.09886).
    """
    backbone: Any = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    blocks = {id(block) for block in backbone.blocks} if isinstance(backbone, Backbone) else set()
    if not blocks:
        raise ValueError(
            "layer_decay counts the blocks of a backbone of this package. Received: "
            f"{type(model).__name__}, which has none."
        )
    of: dict[int, int] = {}
    seen = 0

    def visit(layer):
        nonlocal seen
        if id(layer) in blocks:
            seen += 1
            of.update({id(variable): seen for variable in layer.weights})
            return
        level = seen if seen < len(blocks) else len(blocks) + 1
        for variable in [*layer._trainable_variables, *layer._non_trainable_variables]:
            of[id(variable)] = level
        for part in layer._layers:
            visit(part)

    for layer in backbone.layers:
        visit(layer)
    return of, len(blocks)


class Average(keras.callbacks.Callback):
    """Validates, and shows to the callbacks after it, the average of the weights: for
    `optimizer(ema=...)`.

    It stands before `ModelCheckpoint`, `Resume` or `BackupAndRestore`: these then save a model with
    the average in it, and continue with the weights themselves, which the optimizer keeps meanwhile
    (`keras.callbacks.SwapEMAWeights` cannot be continued).
    """

    def _use(self, use):
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        if optimizer.use_ema and optimizer.built:
            optimizer.use_average(use)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use(False)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._use(True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._use(True)
