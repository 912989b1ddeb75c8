"""Long-context benchmarks: through lm-eval (`bridge`), and their samples from local files (`local`)."""
