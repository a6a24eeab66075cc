"""The model: loading, points, capture, per-token measures, and the worker that runs tasks."""
