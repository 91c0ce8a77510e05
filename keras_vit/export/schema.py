"""The part of TensorFlow's model metadata schema, metadata_schema.fbs, that is used here.

In the form that `flatbuffer.pack` takes: the fields of a table in the order of their slots. Unused
fields at the end of a table are left out.
"""

IDENTIFIER, PARSER = b"M001", "1.0.0"  # the first version of the schema has all these fields
FEATURE, IMAGE = 1, 2
NORMALIZATION = 1
SCHEMA = {
    "ModelMetadata": {
        "name": str,
        "description": str,
        "version": str,
        "subgraph_metadata": ["SubGraphMetadata"],
        "author": str,
        "license": str,
        "associated_files": ["AssociatedFile"],
        "min_parser_version": str,
    },
    "SubGraphMetadata": {
        "name": str,
        "description": str,
        "input_tensor_metadata": ["TensorMetadata"],
        "output_tensor_metadata": ["TensorMetadata"],
    },
    "TensorMetadata": {
        "name": str,
        "description": str,
        "dimension_names": [str],
        "content": "Content",
        "process_units": ["ProcessUnit"],
        "stats": "Stats",
        "associated_files": ["AssociatedFile"],
    },
    "Content": {
        "content_properties_type": int,
        "content_properties": {FEATURE: "FeatureProperties", IMAGE: "ImageProperties"},
    },
    "ProcessUnit": {"options_type": int, "options": {NORMALIZATION: "NormalizationOptions"}},
    "FeatureProperties": {},
    "ImageProperties": {"color_space": int},
    "NormalizationOptions": {"mean": [float], "std": [float]},
    "Stats": {"max": [float], "min": [float]},
    "AssociatedFile": {"name": str, "description": str, "type": int},
}
COLOR_SPACES = {3: 1, 1: 2}  # by number of channels: RGB, GRAYSCALE
DESCRIPTIONS, TENSOR_AXIS_LABELS = 1, 2  # types of associated files
