"""What every backbone is: a graph of plain numbers."""

import keras
import keras_hub

from keras_vit.layers.base import arguments
from keras_vit.layers.patches import pair
from keras_vit.models.quantization import Quantizable, quantized_layers


class Backbone(Quantizable, keras_hub.models.Backbone):
    """Base of the backbones.

    A family writes `graph`, a function of plain numbers that returns inputs and outputs; what it
    passes on goes to `trunk` and to the layers of the class `block`. The arguments of these, with
    their defaults, are the constructor's arguments and the config.
    """

    trunk = None  # a function to which `graph` passes **trunk
    block = None  # the layer class to which the last of them passes **block
    fixed_size = False  # whether the weights fit one image size only

    @classmethod
    def defaults(cls):
        """All hyper-parameters and their default values."""
        functions = [cls.graph, cls.trunk, cls.block and cls.block.__init__]
        return {k: v for f in functions if f for k, v in arguments(f).items() if k != "x"}

    def __init__(self, dtype=None, name=None, trainable=True, **options):
        known = self.defaults()
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no argument {', '.join(unknown)}. "
                f"It takes: {', '.join(known)}."
            )
        passed_on = arguments(self.block.__init__) if self.block else ()
        options = {**{k: v for k, v in known.items() if k not in passed_on}, **options}
        if options["image_size"] is not None:
            options["image_size"] = pair(options["image_size"])
        inputs, outputs = self.graph(**options, dtype=dtype)
        super().__init__(
            inputs=inputs, outputs=outputs, dtype=dtype, name=name, trainable=trainable
        )
        self.options = options

    def get_config(self):
        # KerasHub's own record, a DTypePolicyMap, forgets the dtypes of the other layers, and what
        # is loaded with one cannot be saved again.
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        config = {**super().get_config(), "dtype": dtype, **quantized_layers(self)}
        return {**config, **self.options}

    def option(self, name):
        """The value of a hyper-parameter, its default where none was given."""
        return self.options.get(name, self.defaults().get(name))

    @property
    def image_size(self):
        """(height, width) of the images, in pixels; None: any."""
        return self.options["image_size"]

    @staticmethod
    def stride(options):
        """Pixels from one token to the next, for those hyper-parameters."""
        return options["patch_size"]

    def default_lora_layer_names(self):
        return ["qkv"]
