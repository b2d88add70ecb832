"""One file a modality: how its samples are decoded, brought to one shape, and measured."""
