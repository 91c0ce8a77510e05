"""Bytes of picture files to pixels inside a TensorFlow graph, equal to what PIL makes of them."""

CHANNELS = (1, 3)  # of pictures that can be decoded here
GREY = (19595, 38470, 7471)  # PIL's weights of red, green and blue, in 65536ths
ORIENTATION = 0x0112  # EXIF's tag
APPS = range(0xE0, 0xF0)  # markers of the segments that open a JPEG; EXIF's is the second


def pixels(content, channels):
    """The bytes of a JPEG, PNG, GIF, BMP or WebP, a scalar string, as `(H, W, channels)` uint8.

    As `keras_vit.images.load_image` does it: grey becomes colour, alpha is dropped, a JPEG is
    turned upright by its EXIF tag; of a moving picture the first frame.
    """
    import tensorflow as tf

    def jpeg():
        # The defaults are faster, and off by 1.2 levels on average: PIL has the accurate transform.
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


def orientation(content):
    """How the pixels of a JPEG lie, by its EXIF tag: 1..8, 1 where it does not tell."""
    import tensorflow as tf

    data = tf.concat([tf.io.decode_raw(content, "uint8"), tf.zeros(1, "uint8")], axis=0)
    end = tf.size(data) - 1  # what lies behind the file reads as zero

    def number(start, size, little=False):
        """Whole numbers of that many bytes; `start` may be a vector."""
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
    base = segment + 10  # the TIFF header: byte order, 42, where the table of tags begins
    little = number(base, 1) == ord("I")
    table = base + number(base + 4, 4, little)
    entries = table + 2 + 12 * tf.range(number(table, 2, little))
    values = tf.where(number(entries, 2, little) == ORIENTATION, number(entries + 8, 2, little), 0)
    found = tf.reduce_max(tf.concat([values, [1]], axis=0))
    return tf.where(is_exif(segment) & (found <= 8), found, 1)


def turned(x, orientation):
    """`(H, W, C)` as it is to be looked at, by its EXIF orientation."""
    import tensorflow as tf

    def among(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    x = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(x, (1, 0, 2)), lambda: x)
    x = tf.cond(among(2, 3, 6, 7), lambda: x[:, ::-1], lambda: x)
    return tf.cond(among(3, 4, 7, 8), lambda: x[::-1], lambda: x)
