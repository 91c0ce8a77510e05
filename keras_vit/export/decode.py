"""Image files decoded inside a TensorFlow graph, to the same pixels as PIL's."""

from keras_vit.types import Tensor

CHANNELS = (1, 3)  # numbers of channels that can be decoded here
GREY = (19595, 38470, 7471)  # PIL's weights of red, green and blue, times 65536
ORIENTATION = 0x0112  # the EXIF tag
APPS = range(0xE0, 0xF0)  # markers of a JPEG's application segments; EXIF uses the second


def pixels(content: Tensor, channels: int) -> Tensor:
    """Decode a JPEG, PNG, GIF, BMP or WebP file, a scalar string, to `(H, W, channels)` uint8.

    As in `keras_vit.images.load_image`, grey becomes colour, alpha is dropped and a JPEG is
    rotated according to its EXIF tag. Of an animation the first frame is taken.
    """
    import tensorflow as tf

    def jpeg():
        # The faster default is off by 1.2 levels on average; PIL uses the accurate transform.
        x = tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)
        return turned(x, orientation(content))

    def other():
        x = tf.io.decode_image(content, 3, expand_animations=False)
        return tf.ensure_shape(x, (None, None, 3))

    x = tf.cond(tf.io.is_jpeg(content), jpeg, other)
    if channels == 3:
        return x
    x = tf.reduce_sum(tf.cast(x, "int32") * GREY, axis=-1, keepdims=True)
    return tf.cast((x + 0x8000) // 0x10000, "uint8")


def orientation(content: Tensor) -> Tensor:
    """The EXIF orientation of a JPEG: 1..8; 1 if it has none."""
    import tensorflow as tf

    data = tf.concat([tf.io.decode_raw(content, "uint8"), tf.zeros(1, "uint8")], axis=0)
    end = tf.size(data) - 1  # bytes past the end read as zero

    def number(start, size, little=False):
        """Integers of that many bytes; `start` may be a vector."""
        steps = tf.range(size)
        steps = tf.where(little, size - 1 - steps, steps)
        at = tf.clip_by_value(start[..., None] + steps, 0, end)
        found = tf.cast(tf.gather(data, at), "int32")
        return tf.reduce_sum(found * [256**i for i in reversed(range(size))], axis=-1)

    def is_exif(segment):
        return (number(segment + 1, 1) == APPS[1]) & (number(segment + 4, 4) == 0x45786966)  # Exif

    def goes_on(segment):
        marker = number(segment + 1, 1)
        return (marker >= APPS[0]) & (marker <= APPS[-1]) & ~is_exif(segment)

    def following(segment):
        return segment + 2 + number(segment + 2, 2)

    segment = tf.while_loop(goes_on, following, [tf.constant(2)])[0]
    base = segment + 10  # the TIFF header: byte order, 42, offset of the table of tags
    little = number(base, 1) == ord("I")
    table = base + number(base + 4, 4, little)
    entries = table + 2 + 12 * tf.range(number(table, 2, little))
    values = tf.where(number(entries, 2, little) == ORIENTATION, number(entries + 8, 2, little), 0)
    found = tf.reduce_max(tf.concat([values, [1]], axis=0))
    return tf.where(is_exif(segment) & (found <= 8), found, 1)


def turned(x: Tensor, orientation: Tensor) -> Tensor:
    """`(H, W, C)` rotated and mirrored upright, given its EXIF orientation."""
    import tensorflow as tf

    def among(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    x = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(x, (1, 0, 2)), lambda: x)
    x = tf.cond(among(2, 3, 6, 7), lambda: x[:, ::-1], lambda: x)
    return tf.cond(among(3, 4, 7, 8), lambda: x[::-1], lambda: x)
