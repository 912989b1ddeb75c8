"""Everything that `extend` puts on a model: the handle, the dial, the rotary module, and the hooks of `generate`."""
