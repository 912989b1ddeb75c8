"""What is put on a model: the handle, the dial, the rotary module, and the hooks of `generate`."""
