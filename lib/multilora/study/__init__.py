"""The study of multi-LoRA composition: a testbed of scenes, ComposLoRA's sets, and what judges their images."""
